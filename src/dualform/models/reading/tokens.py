"""Text to token ids without surprises: special tokens, opening tokens, unknown tokens, ids without an embedding.

A tokenizer is made for one text at a time and for chat. Three of its habits would change what is measured here:

- It reads the words of a special token, such as `<s>` or `<|endoftext|>`, as that token wherever they stand, also in
  the text of a data set. `TextTokenizer.text` writes them as the plain text that they are.
- It treats the start of a text in its own way (SentencePiece writes a space there). `TextTokenizer.behind` encodes a
  piece where it stands: behind another one.
- It may know tokens that the model has no embedding for. `TextTokenizer.require_rows` names them before any forward.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ModelError

_ANCHORS = (":", "a", "x", ".")
"""Texts to stand in for whatever comes before a piece."""
_PROBES = ("x", "a", "the", "1")
"""Texts that show what a tokenizer puts in front of one."""


@dataclass(frozen=True)
class Opening:
    """The tokens that begin every sequence."""

    ids: tuple[int, ...]
    tokens: tuple[str, ...]
    """Their names in the vocabulary."""
    origin: str
    """Where they come from, in a few words."""
    own: tuple[str, ...]
    """What the tokenizer itself puts in front of a text."""
    note: str | None
    """A sentence for the result where the tokenizer alone would begin otherwise."""


def opening_tokens(tokenizer: PreTrainedTokenizerBase, setting: str = "auto") -> Opening:
    """The tokens that begin every sequence of a model.

    Args:
        tokenizer: The model's.
        setting: `auto`: what the tokenizer itself puts in front of a text; where it puts nothing, its beginning-of-
            sequence token, else its end-of-sequence token, since most models rest much of their attention on the first
            token and read badly without one. `none`, `bos` or `eos`; anything else is a text, in which the names of
            special tokens stand for them, such as `[gMASK]<sop>`.

    Raises:
        ConfigError: The tokenizer has no such token, or the text becomes none.
    """
    own = _own_opening(tokenizer)
    own_names = _names(tokenizer, own)
    if setting == "auto":
        ids, origin = (own, "as the tokenizer puts them in front of a text") if own else _fallback(tokenizer)
    elif setting == "none":
        ids, origin = (), "none, as set"
    elif setting in ("bos", "eos"):
        token = getattr(tokenizer, f"{setting}_token_id")
        if token is None:
            raise ConfigError(
                f"opening {setting!r} asks for a token that this tokenizer does not define. Give auto, none, or the "
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
        begins = f"Every sequence begins with {_listed(names)}" if ids else "Sequences begin without an opening token"
        itself = f"the tokenizer by itself puts {_listed(own_names) if own else 'nothing'} in front of a text"
        note = f"{begins} ({origin}); {itself}. Another opening can be chosen with --opening."
    return Opening(ids, names, origin, own_names, note if ids != own else None)


def _fallback(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], str]:
    for name, words in (("bos_token_id", "beginning of sequence"), ("eos_token_id", "end of sequence")):
        if (token := getattr(tokenizer, name)) is not None:
            return (int(token),), f"the token for {words}"
    return (), "the tokenizer defines none"


def _own_opening(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """What the tokenizer puts in front of a text of its own accord."""
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
    """A text as its tokenizer reads it, nothing added in front or behind; names of special tokens stand for them."""
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def chat_template_notes(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """A sentence where a model was made for chat, which dualform does not imitate."""
    if not getattr(tokenizer, "chat_template", None):
        return ()
    return (
        "The tokenizer has a chat template, which is not applied: the model reads plain prompts. Where it needs its "
        "chat's markers, write them into the prompt (--prompt) and the separator (--separator).",
    )


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    """All special tokens by name: those with a role, and those that a tokenizer's file only marks as special."""
    named = {str(name): tokenizer.convert_tokens_to_ids(str(name)) for name in tokenizer.all_special_tokens}
    found = {name: index for name, index in named.items() if isinstance(index, int)}
    marked = getattr(tokenizer, "added_tokens_decoder", {})
    return found | {str(token.content): int(index) for index, token in marked.items() if token.special}


class TextTokenizer:
    """Encodes text for one model.

    Args:
        tokenizer: The model's.
        model: The model, which says how many rows its embedding has.
        name: What messages call the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, name: str) -> None:
        self._tokenizer = tokenizer
        self._name = name
        self.unknown = _unknown(tokenizer)
        """The token for what the vocabulary lacks; None where there is none."""
        special = special_tokens(tokenizer)
        self._special_ids = frozenset(special.values()) - {self.unknown}
        self._special_names = tuple(sorted((name for name in special if name.strip()), key=len, reverse=True))
        self.is_fast = bool(tokenizer.is_fast)
        """Whether it is one of the tokenizers library's, not one that is written in Python."""
        self.rows = _rows(model.get_input_embeddings(), model)
        """Of the embedding: ids from 0 to one less can be read."""
        self._predicted = min(self.rows, _rows(model.get_output_embeddings(), model))

    def named(self, text: str) -> tuple[str, ...]:
        """The special tokens whose names stand in a text."""
        return tuple(name for name in self._special_names if name in text)

    def specials(self, ids: Iterable[int]) -> frozenset[int]:
        """The special tokens among some ids, the unknown token left out."""
        return self._special_ids.intersection(ids)

    def text(self, text: str) -> tuple[int, ...]:
        """A text as the plain text that it is: names of special tokens in it are letters like others.

        Where a tokenizer cannot be kept from reading them as special tokens, they are special tokens in what comes
        back; `specials` finds them.
        """
        ids = encode(self._tokenizer, text)
        if not self._reads_special(text, ids):
            return ids
        split = self._split(text)
        if split is not None and not self._reads_special(text, split, certainly=True):
            return split
        broken = self._broken(text)
        if not self.specials(broken):
            return broken
        return ids if split is None else split

    def marked(self, text: str) -> tuple[int, ...]:
        """A text in which the names of special tokens stand for them: a prompt's or separator's own words."""
        return encode(self._tokenizer, text)

    def behind(self, before: Sequence[str], text: str, marked: bool = False) -> tuple[int, ...]:
        """A text as it is encoded behind another one.

        Args:
            before: What it may stand behind; the first that keeps its own tokens decides.
            text: The text.
            marked: Names of special tokens stand for them.

        Returns:
            Its tokens. Where it would merge with everything before it, the tokens that it has alone.
        """
        encoded = self.marked if marked else self.text
        for words in (*before, *_ANCHORS):
            alone, together = encoded(words), encoded(words + text)
            if alone and together[: len(alone)] == alone:
                return together[len(alone) :]
        return encoded(text)

    def divided(self, text: str) -> list[tuple[str, str]]:
        """A text at the names of special tokens: each name with the text behind it, '' before the first."""
        names = [match[0] for match in re.finditer(self._pattern, text)]
        return list(zip(["", *names], re.split(self._pattern, text), strict=True))

    def behind_special(self, name: str, text: str) -> tuple[int, ...]:
        """A special token and the plain text behind it; '' for a text that begins with none."""
        if not name:
            return self.text(text) if text else ()
        alone, together = self.marked(name), self.marked(name + text)
        if together[: len(alone)] == alone and not self._reads_special(text, together[len(alone) :]):
            return together
        return (*alone, *self.behind((), text))

    def require_rows(self, ids: Iterable[int], where: str, predicted: bool = False) -> None:
        """Check that the model can read some ids.

        Args:
            ids: Token ids.
            where: In what they were found, for the message.
            predicted: They are answers, which the output head must know, too.

        Raises:
            ModelError: One of them has no row in the embedding.
        """
        rows = self._predicted if predicted else self.rows
        for token in ids:
            if not 0 <= token < rows:
                shown = self._tokenizer.convert_ids_to_tokens(token)
                raise ModelError(
                    f"{where} holds {shown!r}, which the tokenizer of {self._name} encodes as token {token}, but the "
                    f"model's embedding has {rows} rows (ids 0 to {rows - 1}). Give the tokenizer that belongs to this "
                    "checkpoint, add the missing rows (resize_token_embeddings) and train them, or leave the token out "
                    "of the texts."
                )

    @cached_property
    def without_rows(self) -> tuple[str, ...]:
        """Tokens that the tokenizer knows and the embedding does not, lowest id first."""
        found = {index: token for token, index in self._tokenizer.get_vocab().items() if index >= self.rows}
        return tuple(found[index] for index in sorted(found))

    @cached_property
    def loses_line_breaks(self) -> bool:
        """Whether a line break becomes a space, an unknown token or nothing."""
        broken = self.marked("a\nb")
        return broken in (self.marked("a b"), self.marked("ab")) or self.unknown in broken

    def spelled(self, ids: Iterable[int]) -> str:
        """The names of some tokens in a row: equal for ways of dividing one text into tokens."""
        return "".join(_names(self._tokenizer, tuple(ids)))

    def names(self, ids: Iterable[int]) -> tuple[str, ...]:
        """Their names in the vocabulary."""
        return _names(self._tokenizer, tuple(ids))

    def unknown_characters(self, text: str) -> tuple[str, ...]:
        """Characters of a text that the vocabulary lacks, in order of appearance."""
        if self.unknown is None:
            return ()
        return tuple(each for each in dict.fromkeys(text) if self.unknown in encode(self._tokenizer, each))

    def _reads_special(self, text: str, ids: Sequence[int], certainly: bool = False) -> bool:
        """Whether special tokens stand, or may stand, where the text only names them."""
        if self.specials(ids):
            return True
        named = self.named(text)
        # The unknown token stands for unknown characters, too, so that its id alone shows nothing.
        return bool(named) and (not certainly or (self._tokenizer.unk_token in named and self.unknown in ids))

    def _split(self, text: str) -> tuple[int, ...] | None:
        """As a tokenizer encodes it that is asked to leave special tokens alone; None where it cannot be asked."""
        try:
            encoded = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
        except (TypeError, ValueError, NotImplementedError):
            return None
        return tuple(encoded["input_ids"])

    def _broken(self, text: str) -> tuple[int, ...]:
        """As pieces: each special token's name is cut behind its first letter, so that the pieces do not hold it.

        Vocabularies that SentencePiece made hold the names as ordinary pieces, which would be matched.
        """
        cuts = [0, *(match.start() + 1 for match in re.finditer(self._pattern, text)), len(text)]
        pieces = [text[start:end] for start, end in pairwise(cuts) if start < end]

        def encoded(piece: str) -> tuple[int, ...]:
            return self._split(piece) or self.marked(piece)

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
"""Characters that no vocabulary has."""


def _unknown(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The unknown token; None where it is a name only, as in GPT-2, whose unknown token ends texts."""
    token = tokenizer.unk_token_id
    if token is None:
        return None
    if token in (tokenizer.bos_token_id, tokenizer.eos_token_id) and token not in encode(tokenizer, _UNKNOWN):
        return None
    return int(token)


def _rows(module: object, model: PreTrainedModel) -> int:
    """Of an embedding or output head; the config's word where it is neither."""
    weight = getattr(module, "weight", None)
    for size in (getattr(module, "num_embeddings", None), getattr(module, "out_features", None)):
        if isinstance(size, int):
            return size
    if weight is not None and weight.dim() == 2:
        return int(weight.shape[0])
    return int(model.config.get_text_config().vocab_size)
