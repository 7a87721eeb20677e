"""From a task's texts to token ids: prompts, answers, demonstrations, and how many of them fit.

Prompt, answer and separator are encoded apart, so that a query's tokens never depend on what comes before or after
it. Answers and separators are encoded in place, because some tokenizers write a word differently at the start of a
text.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice

from transformers import PreTrainedTokenizerBase

from dualform.errors import ContextError, LabelWordError, TaskError
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.tokens import TextTokenizer, opening_tokens
from dualform.tasks.demonstrations import Demonstrations
from dualform.tasks.task import Example, Task


@dataclass(frozen=True)
class EncodedDemonstrations:
    """Demonstrations as token ids, once in a row for the context and once each for training."""

    prefix: tuple[int, ...]
    """What a query is put behind: the opening token, then every demonstration with its separator."""
    content: tuple[int, ...]
    """Positions in `prefix` that hold prompts and answers (no opening token, no separators)."""
    demonstration_of: tuple[int, ...]
    """For each entry of `content`, which demonstration it belongs to."""
    sequences: tuple[tuple[int, ...], ...]
    """Each demonstration alone, opening token first."""
    n_answer_tokens: tuple[int, ...]
    """How many tokens at the end of each sequence are its answer."""


class Encoder:
    """Turns one task's texts into ids of one model.

    A sequence is made of pieces: opening, then for each demonstration its prompt, its answer and the separator, then
    the query's prompt and an answer. Every piece is encoded where it stands: answers behind the prompt's last words,
    the separator behind an answer. Prompts are encoded as they begin a text, wherever they stand, since a query must
    have the same tokens with demonstrations and without. A tokenizer that writes a space before the first word of a
    text (SentencePiece) therefore writes it before every prompt; `notes` says so.

    What an example holds is text: names of special tokens in it are encoded as letters. In the prompt's and the
    separator's own words they stand for the tokens.

    Args:
        lm: The model.
        task: The task.
        opening: See `opening_tokens`.

    Raises:
        LabelWordError: Two label words become the same tokens, or one becomes none or an unknown token.
        ConfigError: The opening cannot be used.
        ModelError: A piece becomes a token that the model has no embedding for. All methods may raise it.
    """

    def __init__(self, lm: LanguageModel, task: Task, opening: str = "auto") -> None:
        self.tokens = TextTokenizer(lm.tokenizer, lm.model, lm.name)
        """Encodes other text for the same model."""
        self._task = task
        self.opened = opening_tokens(lm.tokenizer, opening)
        """The opening tokens, and where they come from."""
        self.opening = self.opened.ids
        self.tokens.require_rows(self.opening, "the opening")
        self._marks = self._marks_of(task.template.literals)
        self._words: dict[str, tuple[int, ...]] = {}
        self._seen = _Seen()
        if task.label_words is not None:
            self._check_label_words()
        self._separator = self._encode_separator(lm.tokenizer, task.template.separator)
        self.tokens.require_rows(self._separator, "the separator")

    def query(self, example: Example) -> Query:
        """The query's prompt and the answers to score."""
        answers = tuple(self._answer(text) for text in self._task.answers(example))
        return Query(self._prompt(example), answers)

    def text(self, example: Example) -> Query:
        """An unlabelled text as a query; free-text choices are answers only where the text brings them."""
        if self._task.label_words is None and not example.choices:
            return Query(self._prompt(example), ())
        return self.query(example)

    def unlabelled(self, prompt: tuple[int, ...]) -> Query:
        """A prompt of this task, as token ids, with the answers that all of its queries have."""
        words = self._task.label_words or ()
        return Query(prompt, tuple(self._answer(f" {word}") for word in words))

    def demonstrations(self, demonstrations: Demonstrations) -> EncodedDemonstrations:
        """All demonstrations, in order, with the labels that they show."""
        prefix = list(self.opening)
        content: list[int] = []
        owner: list[int] = []
        sequences = []
        n_answer_tokens = []
        for number, (example, label) in enumerate(zip(demonstrations.examples, demonstrations.labels, strict=True)):
            prompt = self._prompt(example)
            answer = self._answer(self._task.answers(example)[label])
            content += range(len(prefix), len(prefix) + len(prompt) + len(answer))
            owner += [number] * (len(prompt) + len(answer))
            prefix += [*prompt, *answer, *self._separator]
            sequences.append((*self.opening, *prompt, *answer))
            n_answer_tokens.append(len(answer))
        return EncodedDemonstrations(
            tuple(prefix), tuple(content), tuple(owner), tuple(sequences), tuple(n_answer_tokens)
        )

    def filler(self, length: int) -> tuple[int, ...]:
        """A prefix that says nothing: the opening token, then separators over and over, `length` tokens in all."""
        again = self._separator or self.opening or self._answer(" .")
        return (*self.opening, *islice(cycle(again), length - len(self.opening)))

    def fit(
        self,
        demonstrations: Demonstrations,
        queries: Sequence[Query],
        context: int | None,
        *,
        any_label: bool = False,
    ) -> Demonstrations:
        """As many demonstrations as leave room for the longest query: one truncation, for every learner.

        Args:
            demonstrations: The drawn ones.
            queries: All queries that will be put behind them.
            context: Longest sequence in tokens; None for no limit.
            any_label: They are to fit whatever labels they are shown with.

        Returns:
            The first `k_effective` demonstrations; a warning says when that is fewer than were drawn.

        Raises:
            ContextError: A query alone is too long.
        """
        if context is None:
            return demonstrations
        own = max((len(query.prompt) + max(map(len, query.answers), default=0) for query in queries), default=0)
        room = context - len(self.opening) - own
        if room < 0:
            raise ContextError(
                f"a query takes {own} tokens, but the context holds {context}. Raise --context, shorten the texts, or "
                "use a model with a longer context."
            )
        lengths = [
            len(self._prompt(example))
            + max(
                len(self._answer(text))
                for number, text in enumerate(self._task.answers(example))
                if any_label or number == label
            )
            + len(self._separator)
            for example, label in zip(demonstrations.examples, demonstrations.labels, strict=True)
        ]
        k, used = 0, 0
        for length in lengths:
            if used + length > room:
                break
            k, used = k + 1, used + length
        if lengths and k == 0:
            raise ContextError(
                f"the first demonstration takes {lengths[0]} tokens, but a context of {context} leaves room for {room} "
                f"beside the longest query (seed {demonstrations.seed}). Raise --context, shorten the texts, use a "
                "model with a longer context, or compare without demonstrations (-k 0)."
            )
        if k < len(lengths):
            warnings.warn(
                f"{len(lengths)} demonstrations take {sum(lengths)} tokens, but a context of {context} leaves room for "
                f"{room} beside the longest query: every learner gets the first {k} (seed {demonstrations.seed})",
                stacklevel=2,
            )
        return demonstrations.truncated(k)

    @property
    def splits_special_tokens(self) -> bool:
        """Whether prompts can be encoded anew with `split_special_tokens=True`, as transformers calls it."""
        return self.tokens.is_fast and not self._marks

    @property
    def separator(self) -> tuple[int, ...]:
        """What stands behind every demonstration, the last one included."""
        return self._separator

    def encode(self, text: str, where: str) -> tuple[int, ...]:
        """A text that belongs to no prompt, such as a passage of a file, as plain text.

        Args:
            text: The text.
            where: In what it was found, for messages.
        """
        ids = self.tokens.text(text)
        self.tokens.require_rows(ids, where)
        return ids

    def head(self, text: str) -> tuple[int, ...]:
        """First words of the prompt, in which names of special tokens stand for them."""
        return self.tokens.marked(text) if text else ()

    def check_all(self) -> None:
        """Encode every example of the task where the tokenizer knows tokens that the embedding does not.

        Raises:
            ModelError: One of them holds such a token.
        """
        if not self.tokens.without_rows:
            return
        for name in dict.fromkeys(("train", self._task.selection_split, self._task.report_split)):
            for example in self._task.split(name):
                self.query(example)

    def notes(self) -> tuple[str, ...]:
        """What a reader must know of how texts became tokens, in plain sentences; of all texts encoded so far."""
        found = [] if self.opened.note is None else [self.opened.note]
        return (*found, *self._separator_notes(), *self._seen.notes(self.tokens, self._marks))

    def _prompt(self, example: Example) -> tuple[int, ...]:
        text = self._task.template.render(example)
        ids = self._marked_prompt(example) if self._marks else self.tokens.text(text)
        where = f"row {example.row} of task {self._task.name}"
        if not ids:
            raise TaskError(f"{where} becomes an empty prompt")
        self.tokens.require_rows(ids, where)
        if self._marks:
            text = "\0".join(words for words, own in self._task.template.rendered(example) if not own)
        self._seen.add(self.tokens, text, ids, len(self._marks))
        return ids

    def _marks_of(self, literals: Sequence[str]) -> tuple[str, ...]:
        """Special tokens that the prompt's own words name, one for each time."""
        return tuple(name for literal in literals for name, _ in self.tokens.divided(literal) if name)

    def _marked_prompt(self, example: Example) -> tuple[int, ...]:
        """A prompt whose own words name special tokens, while its fields are plain text."""
        # (special token before it, text) for each stretch of text between two special tokens.
        stretches = [("", "")]
        for text, own in self._task.template.rendered(example):
            for name, words in self.tokens.divided(text) if own else [("", text)]:
                if name:
                    stretches.append((name, words))
                else:
                    stretches[-1] = (stretches[-1][0], stretches[-1][1] + words)
        ids: list[int] = []
        for name, words in stretches:
            ids += self.tokens.behind_special(name, words)
        return tuple(ids)

    def _answer(self, text: str) -> tuple[int, ...]:
        if text not in self._words:
            ids = self.tokens.behind((self._task.template.tail,) if self._task.template.tail else (), text)
            if not ids:
                raise LabelWordError(f"answer {text!r} becomes no token under this tokenizer. Choose another word.")
            self.tokens.require_rows(ids, f"the answer {text!r}", predicted=True)
            if self._task.label_words is None:
                self._seen.add(self.tokens, text, ids)
                return ids
            self._words[text] = ids
        return self._words[text]

    def _check_label_words(self) -> None:
        assert self._task.label_words is not None
        words = [self._answer(f" {word}") for word in self._task.label_words]
        for word, ids in zip(self._task.label_words, words, strict=True):
            if self.tokens.unknown in ids:
                lacking = self.tokens.unknown_characters(word)
                raise LabelWordError(
                    f"label word {word!r} becomes the unknown token under this tokenizer, whose vocabulary lacks "
                    f"{', '.join(map(repr, lacking)) or 'it'}, so it cannot be predicted. Choose another word with "
                    "--label-words."
                )
            if self.tokens.specials(ids):
                raise LabelWordError(
                    f"label word {word!r} becomes the special token {self.tokens.names(ids)[0]!r} under this "
                    "tokenizer. Choose another word with --label-words."
                )
        seen: dict[tuple[int, ...], str] = {}
        for word, ids in zip(self._task.label_words, words, strict=True):
            if ids in seen:
                raise LabelWordError(
                    f"label words {seen[ids]!r} and {word!r} become the same tokens {list(ids)} under this tokenizer, "
                    "so they cannot be told apart. Choose other words with --label-words."
                )
            seen[ids] = word
        firsts: dict[int, str] = {}
        for word, ids in zip(self._task.label_words, words, strict=True):
            if ids[0] in firsts:
                warnings.warn(
                    f"label words {firsts[ids[0]]!r} and {word!r} begin with the same token ({ids[0]}): accuracy "
                    "scores whole words and is right, but measures over the vocabulary cannot tell them apart",
                    stacklevel=3,
                )
            firsts[ids[0]] = word

    def _encode_separator(self, tokenizer: PreTrainedTokenizerBase, separator: str | None) -> tuple[int, ...]:
        """The separator behind an answer, so that no space comes before it that is not its own."""
        if separator is None:
            if tokenizer.eos_token_id is None:
                raise TaskError("the model has no end-of-sequence token to separate demonstrations: give a --separator")
            return (int(tokenizer.eos_token_id),)
        if not separator:
            return ()
        anchor = self._anchor
        ids = self.tokens.behind((anchor,), separator, marked=True)
        # A tokenizer that ends a word's space before the next prompt has written the separator's space already.
        before, after = self.tokens.marked(anchor), self.tokens.marked(self._first_words)
        whole = self.tokens.marked(anchor + separator + self._first_words)
        between = len(whole) - len(before) - len(after)
        in_place = between >= 0 and whole[: len(before)] == before and whole[len(before) + between :] == after
        if in_place and self.tokens.spelled(whole) != self.tokens.spelled((*before, *ids, *after)):
            return whole[len(before) : len(before) + between]
        return ids

    @property
    def _anchor(self) -> str:
        """The end of a demonstration: the prompt's last words and an answer."""
        word = self._task.label_words[0] if self._task.label_words else "a"
        return f"{self._task.template.tail or ':'} {word}"

    @property
    def _first_words(self) -> str:
        """What a prompt begins with."""
        first = self._task.template.prompt.partition("{")[0].rstrip()
        return first or "The"

    def _separator_notes(self) -> list[str]:
        """What becomes of the separator, and of the prompt behind it, that its text does not show."""
        template, found = self._task.template, []
        if self.tokens.loses_line_breaks:
            parts = [f"the separator {template.separator!r}"] if "\n" in (template.separator or "") else []
            parts += ["the prompt"] if any("\n" in literal for literal in template.literals) else []
            if parts:
                found.append(
                    f"This tokenizer cannot encode a line break, so {' and '.join(parts)} have none: the model reads "
                    f"{self.tokens.spelled(self._separator)!r} between two demonstrations. A separator with other "
                    "characters (--separator) may be clearer."
                )
        if template.separator:
            anchor, first = self._anchor, self._first_words
            whole = self.tokens.spelled(self.tokens.marked(anchor + template.separator + first))
            own = self.tokens.marked(first)
            pieces = self.tokens.spelled((*self.tokens.marked(anchor), *self._separator, *own))
            if whole != pieces and not found:
                found.append(
                    f"This tokenizer begins a text with a space of its own ({self.tokens.names(own)[0]!r}). Every "
                    f"prompt has it, also behind the separator {template.separator!r}: a query has the same tokens "
                    "with demonstrations and without."
                )
        return found


@dataclass
class _Seen:
    """What was noticed in the texts that were encoded; each text counts once."""

    texts: set[int] = field(default_factory=set)
    tokens: int = 0
    named: dict[str, int] = field(default_factory=dict)
    """Special token that a text names -> how many texts do."""
    special: dict[str, int] = field(default_factory=dict)
    """Special token that could not be kept out -> in how many texts."""
    unknown: int = 0
    """Unknown tokens."""
    unknown_texts: int = 0
    lacking: dict[str, None] = field(default_factory=dict)
    """Characters that are unknown, a few."""

    def add(self, tokens: TextTokenizer, text: str, ids: tuple[int, ...], marks: int = 0) -> None:
        """Take note of a text and its tokens, `marks` of which are special on purpose."""
        key = hash(text)
        if key in self.texts:
            return
        self.texts.add(key)
        self.tokens += len(ids)
        unknown = 0 if tokens.unknown is None else ids.count(tokens.unknown)
        self.unknown += unknown
        if unknown:
            self.unknown_texts += 1
            if len(self.lacking) < _SHOWN:
                self.lacking |= dict.fromkeys(tokens.unknown_characters(text))
        for name in tokens.named(text):
            self.named[name] = self.named.get(name, 0) + 1
        special = tokens.specials(ids)
        if sum(map(ids.count, special)) > marks:
            for name in tokens.names(special):
                self.special[name] = self.special.get(name, 0) + 1

    def notes(self, tokens: TextTokenizer, marks: Sequence[str]) -> list[str]:
        """In plain sentences."""
        found = []
        if marks:
            shown = ", ".join(dict.fromkeys(map(repr, marks)))
            found.append(f"The prompt's own words hold special tokens ({shown}); they are read as such.")
        if self.special:
            shown = ", ".join(f"{name!r} in {n:,}" for name, n in self.special.items())
            found.append(
                f"Some texts become special tokens of the model, which this tokenizer cannot encode as plain text: "
                f"{shown} of {len(self.texts):,} texts."
            )
        if plain := {name: n for name, n in self.named.items() if name not in self.special}:
            shown = ", ".join(f"{name!r} in {n:,}" for name, n in plain.items())
            found.append(
                f"Some texts hold the names of special tokens ({shown} of {len(self.texts):,} texts); they were "
                "encoded as plain text."
            )
        if self.unknown:
            lacking = ", ".join(map(repr, list(self.lacking)[:_SHOWN]))
            found.append(
                f"{self.unknown:,} of {self.tokens:,} tokens of the texts ({self.unknown / self.tokens:.1%}, in "
                f"{self.unknown_texts:,} of {len(self.texts):,} texts) are unknown to this tokenizer"
                + (f", such as {lacking}." if lacking else ".")
            )
        return found


_SHOWN = 5
"""Unknown characters that a note shows."""
