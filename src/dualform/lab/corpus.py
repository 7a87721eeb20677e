"""A corpus as tokens on disk: written once and memory-mapped by every run.

The file is flat and little-endian, with 2 bytes for each token if the vocabulary allows it and 4 otherwise. There is an
end-of-text token before, between and after documents. A JSON file next to it describes the text and the tokenizer, so
that the tokens are written again if one of them changes.
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
"""Characters that are tokenised together: enough work for all cores, with little memory."""
_LEARNED_FROM = 1 << 28
"""Characters of a text on which its tokenizer is trained; more would change little and take hours."""


@dataclass(frozen=True)
class Corpus:
    """Tokens on disk, with their tokenizer."""

    path: Path
    """File of the tokens."""
    tokenizer: PreTrainedTokenizerFast
    count: int
    """Number of tokens, including end-of-text tokens."""
    dtype: str
    """Numpy dtype of a token in the file: `<u2` or `<u4`."""
    digest: str
    """SHA-256 of the tokens."""
    n_bytes: int
    """UTF-8 bytes of the text, to convert nats a token to bits a byte."""
    n_documents: int

    @cached_property
    def ids(self) -> np.ndarray[tuple[int], np.dtype[np.integer[Any]]]:
        """The tokens, `(count,)`, memory-mapped."""
        return np.memmap(self.path, dtype=self.dtype, mode="r", shape=(self.count,))


def build_corpus(
    source: TextSource,
    folder: Path,
    tokenizer: PreTrainedTokenizerFast | int,
    *,
    name: str = "train",
    progress: Progress | None = None,
) -> Corpus:
    """A text as tokens, reused from `folder` if they belong to this text and tokenizer, else written now.

    With several processes, let one of them build the corpus first.

    Args:
        source: The text, read as a stream in bounded memory.
        folder: Folder of `<name>.bin`, `<name>.json` and `tokenizer`.
        tokenizer: A tokenizer, or the size of a vocabulary to train one on the first 268 million characters of the
            text.
        name: Name of the files.
        progress: Receives the number of tokens written.

    Raises:
        ConfigError: If the tokenizer has no end-of-text token, or the vocabulary is too small.
        TaskError: If the text is empty or cannot be read.
        HubError: If the connection to the hub fails.
        StorageError: If the folder cannot be written.
    """
    writable_dir(folder, _REMEDY)
    identity = dict(source.identity())
    if isinstance(tokenizer, int):
        tokenizer = _own_tokenizer(source, identity, tokenizer, folder / "tokenizer")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no end-of-text token (eos) to put between documents. Give it one.")
    expected = {"schema": SCHEMA, "tokenizer": tokenizer_digest(tokenizer), "source": identity}
    finished = _finished(folder / f"{name}.bin", tokenizer, expected)
    return finished or _write(source, folder / f"{name}.bin", tokenizer, expected, progress or SilentProgress())


def _finished(path: Path, tokenizer: PreTrainedTokenizerFast, expected: Mapping[str, Any]) -> Corpus | None:
    """The corpus at `path` if it is complete and its description is as expected, else None."""
    # If the description cannot be read, the tokens are written again.
    with suppress(OSError, ValueError, KeyError, TypeError):
        description = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        size = description["count"] * np.dtype(description["dtype"]).itemsize
        if all(description[key] == value for key, value in expected.items()) and path.stat().st_size == size:
            return Corpus(
                path,
                tokenizer,
                description["count"],
                description["dtype"],
                description["sha256"],
                description["bytes"],
                description["documents"],
            )
    return None


def _write(
    source: TextSource, path: Path, tokenizer: PreTrainedTokenizerFast, expected: Mapping[str, Any], progress: Progress
) -> Corpus:
    dtype = "<u2" if len(tokenizer) <= 1 << 16 else "<u4"
    description_path = path.with_suffix(".json")
    with atomic_write(path) as temporary:
        with temporary.open("wb") as file:
            writer = _Writer(file, tokenizer, dtype)
            for documents in _batches(source.documents()):
                writer.write(documents)
                progress.advance(0.0, f"{writer.count:,} tokens of {path.name} written")
        if not writer.n_documents:
            raise TaskError(f"{source.display_name} contains no text. Name a file or data set with documents in it.")
        with explain_storage_errors(description_path, _REMEDY):
            # Remove the old description before the new tokens appear, in case of a crash between the two.
            description_path.unlink(missing_ok=True)
    description = {
        **expected,
        "dtype": dtype,
        "count": writer.count,
        "sha256": writer.digest.hexdigest(),
        "bytes": writer.n_bytes,
        "documents": writer.n_documents,
    }
    with atomic_write(description_path) as temporary:
        temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    return Corpus(path, tokenizer, writer.count, dtype, description["sha256"], writer.n_bytes, writer.n_documents)


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
    """Writes documents as tokens and counts tokens, bytes and documents."""

    def __init__(self, file: BinaryIO, tokenizer: PreTrainedTokenizerFast, dtype: str) -> None:
        # A copy, because the settings below change the tokenizer.
        self._backend = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
        self._backend.no_truncation()
        self._backend.no_padding()
        # The text <|endoftext|> within a document does not end it.
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
    """The tokenizer in `folder` if it was trained on this text with this size, else one that is trained now."""
    expected = {"schema": SCHEMA, "vocab_size": vocab_size, "source": identity}
    origin = folder / "learned_from.json"
    with suppress(OSError, ValueError):
        if json.loads(origin.read_text(encoding="utf-8")) == expected:
            return AutoTokenizer.from_pretrained(folder)
    tokenizer = train_tokenizer(_beginning(source.documents()), vocab_size)
    with atomic_folder(folder, overwrite=True) as unfinished:
        tokenizer.save_pretrained(unfinished)
        (unfinished / origin.name).write_text(json.dumps(expected, indent=2) + "\n", encoding="utf-8")
    return tokenizer


def _beginning(documents: Iterator[str]) -> Iterator[str]:
    characters = 0
    for document in documents:
        yield document
        characters += len(document)
        if characters >= _LEARNED_FROM:
            return
