"""A corpus as tokens on disk: written once, read by every run as a map of the file.

The file is flat, little-endian, 2 bytes a token where the vocabulary allows it and 4 otherwise. Every document stands
between two end-of-text tokens. Beside it lies a JSON that says what it was made from, so that it is made again when
the text or the tokenizer is another.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from dualform.errors import ConfigError, TaskError
from dualform.files import atomic_write, explain_storage_errors, writable_dir
from dualform.lab.sources import TextSource
from dualform.lab.tokenizer import tokenizer_digest, train_tokenizer
from dualform.models.export.checkpoint import atomic_folder
from dualform.progress import Progress, SilentProgress

SCHEMA = 1

_REMEDY = "Free some space or choose another folder."
_AT_ONCE = 1 << 20
"""Characters that are tokenised together: enough for all cores, little for the memory."""
_LEARNED_FROM = 1 << 28
"""Characters of a text from which its tokenizer is learned; more would change little and take hours."""


@dataclass(frozen=True)
class Corpus:
    """Tokens on disk, and the tokenizer that made them."""

    path: Path
    """Of the tokens."""
    tokenizer: PreTrainedTokenizerFast
    count: int
    """Tokens, the end-of-text tokens included."""
    dtype: str
    """Of a token in the file, as numpy writes it: `<u2` or `<u4`."""
    digest: str
    """SHA-256 of the tokens."""
    n_bytes: int
    """UTF-8 bytes of the text, to turn nats a token into bits a byte."""
    n_documents: int

    @cached_property
    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.integer[Any]]]:
        """The tokens, `(count,)`, read from disk where they are touched."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))


def build_corpus(
    source: TextSource,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | int,
    *,
    name: str = "train",
    progress: Progress | None = None,
) -> Corpus:
    """A text as tokens: those that lie in `folder` where they are of this text and tokenizer, else written now.

    Of several processes let one build it first; the others find it then.

    Args:
        source: The text; read as a stream, in bounded memory.
        folder: Where `<name>.bin` and `<name>.json` are or come to be, and `tokenizer` too.
        tokenizer: The one to use; or the size of a vocabulary, to learn one from the text (its first 268 million
            characters, if it is longer).
        name: Of the files.
        progress: Told how many tokens are written.

    Returns:
        The corpus.

    Raises:
        ConfigError: The tokenizer has no end-of-text token, or the vocabulary is too small.
        TaskError: The text is empty or cannot be read.
        HubError: The hub broke off.
        StorageError: The folder cannot be written.
    """
    writable_dir(folder, _REMEDY)
    identity = dict(source.identity())
    if isinstance(tokenizer, int):
        tokenizer = _own_tokenizer(source, identity, tokenizer, folder / "tokenizer")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-text token (eos) to put between documents. Give it one.")
    asked = {"schema": SCHEMA, "tokenizer": tokenizer_digest(tokenizer), "source": identity}
    found = _finished(folder / f"{name}.bin", tokenizer, asked)
    return found or _write(source, folder / f"{name}.bin", tokenizer, asked, progress or SilentProgress())


def _finished(path: Path, tokenizer: PreTrainedTokenizerFast, asked: Mapping[str, Any]) -> Corpus | None:
    """The corpus at `path`, if it is whole and made from what is asked for."""
    # Whatever cannot be read as such a description is none, and the tokens are written anew.
    with suppress(OSError, ValueError, KeyError, TypeError):
        told = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size = told["count"] * np.dtype(told["dtype"]).itemsize
        if all(told[key] == value for key, value in asked.items()) and path.stat().st_size == size:
            return Corpus(
                path, tokenizer, told["count"], told["dtype"], told["sha256"], told["bytes"], told["documents"]
            )
    return None


def _write(
    source: TextSource, path: Path, tokenizer: PreTrainedTokenizerFast, asked: Mapping[str, Any], progress: Progress
) -> Corpus:
    dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    description = path.with_suffix(".json")
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:
            writer = _Writer(file, tokenizer, dtype)
            for documents in _batches(source.documents()):
                writer.write(documents)
                progress.advance(0.0, f"{writer.count:,} tokens of {path.name} written")
        if not writer.n_documents:
            raise TaskError(f"{source.shown} holds no text. Name a file or data set with documents in it.")
        with explain_storage_errors(description, _REMEDY):
            # An old description must not be found beside new tokens, not even after a crash between the two.
            description.unlink(missing_ok=True)
    told = {
        **asked,
        "dtype": dtype,
        "count": writer.count,
        "sha256": writer.digest.hexdigest(),
        "bytes": writer.n_bytes,
        "documents": writer.n_documents,
    }
    with atomic_write(description) as temporary:
        temporary.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    return Corpus(path, tokenizer, writer.count, dtype, told["sha256"], writer.n_bytes, writer.n_documents)


def _batches(documents: Iterator[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document)
        if characters >= _AT_ONCE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


class _Writer:
    """Writes documents as tokens, counting what it writes."""

    def __init__(self, file: BinaryIO, tokenizer: PreTrainedTokenizerFast, dtype: str) -> None:
        # A copy, because the setting below is one of the tokenizer itself.
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        # A document that speaks of <|endoftext|> does not end there.
        self._backend.encode_special_tokens = True
        self._end = np.array([tokenizer.eos_token_id], dtype)
        self._file = file
        self.digest = hashlib.sha256()
        self.count = self.n_bytes = self.n_documents = 0
        self._put(self._end)

    def write(self, documents: list[str]) -> None:
        for document, encoding in zip(
            documents, self._backend.encode_batch_fast(documents, add_special_tokens=False), strict=True
        ):
            self._put(np.array(encoding.ids, self._end.dtype))
            self._put(self._end)
            self.n_documents += 1
            self.n_bytes += len(document.encode())

    def _put(self, ids: np.ndarray[tuple[int], np.dtype[Any]]) -> None:
        written = ids.tobytes()
        self._file.write(written)
        self.digest.update(written)
        self.count += len(ids)


def _own_tokenizer(
    source: TextSource, identity: Mapping[str, Any], vocab_size: int, folder: Path
) -> PreTrainedTokenizerFast:
    """The tokenizer in `folder`, if learned from this text at this size; else learned now and put there."""
    asked = {"schema": SCHEMA, "vocab_size": vocab_size, "source": identity}
    origin = folder / "learned_from.json"
    with suppress(OSError, ValueError):
        if json.loads(origin.read_text(encoding="utf-8")) == asked:
            return AutoTokenizer.from_pretrained(folder)
    tokenizer = train_tokenizer(_beginning(source.documents()), vocab_size)
    with atomic_folder(folder, overwrite=True) as unfinished:
        tokenizer.save_pretrained(unfinished)
        (unfinished / origin.name).write_text(json.dumps(asked, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    characters = 0
    for document in documents:
        yield document
        characters += len(document)
        if characters >= _LEARNED_FROM:
            return
