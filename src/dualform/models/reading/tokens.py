"""Encoding text reliably: special tokens, opening tokens, unknown tokens, and ids without a row in the embedding.

Tokenizers are made for one text at a time and for chat. Three of their properties would distort measurements:

- They turn the name of a special token, such as `<s>` or `<|endoftext|>`, into that token wherever it occurs, also in
  the text of a data set. `TextTokenizer.encode_plain` encodes it as plain text.
- They treat the start of a text specially (SentencePiece adds a space). `TextTokenizer.encode_after` encodes a text as
  it follows another one.
- They may produce ids without a row in the model's embedding. `TextTokenizer.require_rows` reports them before any
  forward.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ModelError

_ANCHORS = (":", "a", "x", ".")
"""Texts that serve as the preceding text if none is given or usable."""
_PROBES = ("x", "a", "the", "1")
"""Texts used to find out which tokens a tokenizer adds before a text."""


@dataclass(frozen=True)
class Opening:
    """The tokens at the start of every sequence."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Their names in the vocabulary."""
    origin: str
    """Where they come from, in a few words."""
    own: tuple[str, ...]
    """Names of the tokens that the tokenizer itself adds before a text."""
    note: str | None
    """A note for the result if the tokenizer itself would add other tokens."""


def opening_tokens(tokenizer: PreTrainedTokenizerBase, setting: str = "auto") -> Opening:
    """The tokens at the start of every sequence of a model.

    Args:
        tokenizer: The model's tokenizer.
        setting: `auto`: the tokens that the tokenizer itself adds before a text; if it adds none, its beginning-of-
            sequence token, else its end-of-sequence token, because most models attend strongly to the first token and
            perform poorly without one. `none`, `bos` or `eos`. Any other setting is a text in which names of special
            tokens become the tokens, such as `[gMASK]<sop>`.

    Raises:
        ConfigError: The tokenizer has no such token, or the text becomes no token.
    """
    own = _own_opening(tokenizer)
    own_names = _names(tokenizer, own)
    if setting == "auto":
        ids, origin = (own, "as the tokenizer adds them before a text") if own else _fallback(tokenizer)
    elif setting == "none":
        ids, origin = (), "none, as set"
    elif setting in ("bos", "eos"):
        token = getattr(tokenizer, f"{setting}_token_id")
        if token is None:
            raise ConfigError(
                f"opening {setting!r} requests a token that this tokenizer does not define. Give auto, none, or the "
                "text of the tokens, such as '<s>'."
            )
        ids, origin = (int(token),), "as set"
    else:
        ids, origin = encode(tokenizer, setting), "as set"
        if not ids:
            raise ConfigError(f"opening {setting!r} becomes no token. Give auto, none, bos, eos, or a text.")
    names = _names(tokenizer, ids)
    note = None
    if ids != own:
        used = f"Every sequence begins with {_listed(names)}" if ids else "Sequences begin without an opening token"
        default = f"the tokenizer by itself adds {_listed(own_names) if own else 'nothing'} before a text"
        note = f"{used} ({origin}); {default}. Another opening can be chosen with --opening."
    return Opening(ids, names, origin, own_names, note if ids != own else None)


def _fallback(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], str]:
    for attribute, role in (("bos_token_id", "beginning of sequence"), ("eos_token_id", "end of sequence")):
        if (token := getattr(tokenizer, attribute)) is not None:
            return (int(token),), f"the token for {role}"
    return (), "the tokenizer defines none"


def _own_opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The tokens that the tokenizer itself adds before a text."""
    for text in _PROBES:
        body = encode(tokenizer, text)
        whole = tuple(tokenizer(text, verbose=False)["input_ids"])
        for start in range(len(whole) - len(body) + 1) if body else ():
            if whole[start : start + len(body)] == body:
                return whole[:start]
    return ()


def _names(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> tuple[str, ...]:
    return tuple(str(name) for name in tokenizer.convert_ids_to_tokens(list(ids)))


def _listed(names: Iterable[str]) -> str:
    return " ".join(repr(name) for name in names)


def encode(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    """A text's tokens without added ones; names of special tokens become the tokens."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def chat_template_notes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """A note if the tokenizer has a chat template, which dualform does not apply."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    return (
        "The tokenizer has a chat template, which is not applied: the model reads plain prompts. If the model follows "
        "instructions, compare with --chat on, which writes demonstrations and queries as turns of a chat.",
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """Id of every special token by name: those with a role, and added tokens that are marked as special."""
    ids = {str(name): tokenizer.convert_tokens_to_ids(str(name)) for name in tokenizer.all_special_tokens}
    with_role = {name: index for name, index in ids.items() if isinstance(index, int)}
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return with_role | {str(token.content): int(index) for index, token in added.items() if token.special}


class TextTokenizer:
    """Encodes text for one model.

    Args:
        tokenizer: The model's tokenizer.
        model: The model, for the number of rows of its embedding.
        name: Name of the model in messages.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self.unknown = _unknown(tokenizer)
        """Id of the unknown token; None if the tokenizer has none."""
        special = special_tokens(tokenizer)
        self._special_ids = frozenset(special.values()) - {self.unknown}
        self._special_names = tuple(sorted((name for name in special if name.strip()), key=len, reverse=True))
        self.is_fast = bool(tokenizer.is_fast)
        """Whether the tokenizer is implemented by the tokenizers library, not in Python."""
        self.rows = _n_rows(model.get_input_embeddings(), model)
        """Number of rows of the embedding: the model can read ids from 0 to `rows - 1`."""
        self._n_predicted = min(self.rows, _n_rows(model.get_output_embeddings(), model))

    def special_names_in(self, text: str) -> tuple[str, ...]:
        """The special tokens whose names occur in a text."""
        return tuple(name for name in self._special_names if name in text)

    def special_ids_in(self, ids: Iterable[int]) -> frozenset[int]:
        """The special tokens among the ids, without the unknown token."""
        return self._special_ids.intersection(ids)

    def encode_plain(self, text: str) -> tuple[int, ...]:
        """A text's tokens, with names of special tokens encoded as plain text.

        If the tokenizer cannot encode such a name as plain text, the result contains the special token;
        `special_ids_in` finds it.
        """
        ids = encode(self._tokenizer, text)
        if not self._reads_special(text, ids):
            return ids
        split = self._split(text)
        if split is not None and not self._reads_special(text, split, certainly=True):
            return split
        pieces = self._encode_in_pieces(text)
        if not self.special_ids_in(pieces):
            return pieces
        return ids if split is None else split

    def encode_marked(self, text: str) -> tuple[int, ...]:
        """A text's tokens, with names of special tokens encoded as the tokens: for a template's own words."""
        return encode(self._tokenizer, text)

    def encode_after(self, before: Sequence[str], text: str, marked: bool = False) -> tuple[int, ...]:
        """A text's tokens as it follows another text.

        Args:
            before: Candidates for the preceding text; the first one whose own tokens do not change is used.
            text: The text to encode.
            marked: Encode names of special tokens as the tokens.

        Returns:
            The tokens of `text`; those it has alone if it would merge with every preceding text.
        """
        encoded = self.encode_marked if marked else self.encode_plain
        for words in (*before, *_ANCHORS):
            alone, together = encoded(words), encoded(words + text)
            if alone and together[: len(alone)] == alone:
                return together[len(alone) :]
        return encoded(text)

    def split_at_specials(self, text: str) -> list[tuple[str, str]]:
        """Split a text at the names of special tokens: pairs of a name and the text after it; the first name is ''."""
        names = [match[0] for match in re.finditer(self._pattern, text)]
        return list(zip(["", *names], re.split(self._pattern, text), strict=True))

    def encode_after_special(self, name: str, text: str) -> tuple[int, ...]:
        """Tokens of a special token and the plain text after it; `name` is '' for a text without special token."""
        if not name:
            return self.encode_plain(text) if text else ()
        alone, together = self.encode_marked(name), self.encode_marked(name + text)
        if together[: len(alone)] == alone and not self._reads_special(text, together[len(alone) :]):
            return together
        return (*alone, *self.encode_after((), text))

    def require_rows(self, ids: Iterable[int], where: str, predicted: bool = False) -> None:
        """Check that the model has an embedding for each id.

        Args:
            ids: Token ids.
            where: Origin of the ids, for the message.
            predicted: Whether the ids are answers, for which the output head needs rows, too.

        Raises:
            ModelError: An id has no row.
        """
        rows = self._n_predicted if predicted else self.rows
        for token in ids:
            if not 0 <= token < rows:
                name = self._tokenizer.convert_ids_to_tokens(token)
                raise ModelError(
                    f"{where} contains {name!r}, which the tokenizer of {self._name} encodes as token {token}, but the "
                    f"model's embedding has {rows} rows (ids 0 to {rows - 1}). Give the tokenizer that belongs to this "
                    "checkpoint, add the missing rows (resize_token_embeddings) and train them, or remove the token "
                    "from the texts."
                )

    @cached_property
    def without_rows(self) -> tuple[str, ...]:
        """Tokens of the vocabulary without a row in the embedding, lowest id first."""
        by_id = {index: token for token, index in self._tokenizer.get_vocab().items() if index >= self.rows}
        return tuple(by_id[index] for index in sorted(by_id))

    @cached_property
    def loses_line_breaks(self) -> bool:
        """Whether a line break becomes a space, an unknown token or nothing."""
        broken = self.encode_marked("a\nb")
        return broken in (self.encode_marked("a b"), self.encode_marked("ab")) or self.unknown in broken

    def joined_names(self, ids: Iterable[int]) -> str:
        """The names of tokens, joined: equal for two encodings of the same text."""
        return "".join(_names(self._tokenizer, tuple(ids)))

    def names(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Names of tokens in the vocabulary."""
        return _names(self._tokenizer, tuple(ids))

    def unknown_characters(self, text: str) -> tuple[str, ...]:
        """Characters of a text that are not in the vocabulary, in order of appearance."""
        if self.unknown is None:
            return ()
        return tuple(each for each in dict.fromkeys(text) if self.unknown in encode(self._tokenizer, each))

    def _reads_special(self, text: str, ids: Sequence[int], certainly: bool = False) -> bool:
        """Whether names of special tokens in a text were, or may have been, encoded as the tokens."""
        if self.special_ids_in(ids):
            return True
        names = self.special_names_in(text)
        # The unknown token also replaces unknown characters, so its id alone proves nothing.
        return bool(names) and (not certainly or (self._tokenizer.unk_token in names and self.unknown in ids))

    def _split(self, text: str) -> tuple[int, ...] | None:
        """A text's tokens with `split_special_tokens=True`; None if the tokenizer does not support it."""
        try:
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        except (TypeError, ValueError, NotImplementedError):
            return None
        return tuple(encoded["input_ids"])

    def _encode_in_pieces(self, text: str) -> tuple[int, ...]:
        """Cut the name of each special token after its first letter, so that no piece contains it, and join the tokens.

        Needed for SentencePiece vocabularies, which contain these names as ordinary tokens.
        """
        cuts = [0, *(match.start() + 1 for match in re.finditer(self._pattern, text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts) if start < end]

        def encoded(piece: str) -> tuple[int, ...]:
            return self._split(piece) or self.encode_marked(piece)

        ids = [*encoded(pieces[0])]
        for piece in pieces[1:]:
            for words in _ANCHORS:
                alone, together = encoded(words), encoded(words + piece)
                if together[: len(alone)] == alone:
                    ids += together[len(alone) :]
                    break
            else:
                ids += encoded(piece)
        return tuple(ids)

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile("|".join(re.escape(name) for name in self._special_names) or r"(?!)")


_UNKNOWN = "\u0378\U000e0042"
"""Characters that are in no vocabulary."""


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Id of the unknown token; None without one, or if it is in fact the end-of-text token, as in GPT-2."""
    token = tokenizer.unk_token_id
    if token is None:
        return None
    if token in (tokenizer.bos_token_id, tokenizer.eos_token_id) and token not in encode(tokenizer, _UNKNOWN):
        return None
    return int(token)


def _n_rows(module: object, model: PreTrainedModel) -> int:
    """Number of rows of an embedding or output head; the config's vocabulary size for any other module."""
    weight = getattr(module, "weight", None)
    for size in (getattr(module, "num_embeddings", None), getattr(module, "out_features", None)):
        if isinstance(size, int):
            return size
    if weight is not None and weight.dim() == 2:
        return int(weight.shape[0])
    return int(model.config.get_text_config().vocab_size)
