"""From a task's texts to token ids: prompts, answers, demonstrations, and how many of them fit.

Prompt and answer are tokenised apart, so that a query's tokens never depend on what follows it. The answer is
tokenised in place, behind the template's own last words, because some tokenisers write a word differently at the
start of a text.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import cycle, islice

from transformers import PreTrainedTokenizerBase

from dualform.errors import ContextError, LabelWordError, TaskError
from dualform.models.language_model import LanguageModel
from dualform.models.layout import Query
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

    Raises:
        LabelWordError: Two label words become the same tokens, or one becomes none.
    """

    def __init__(self, lm: LanguageModel, task: Task) -> None:
        self._tokenizer = lm.tokenizer
        self._task = task
        self.opening: tuple[int, ...] = () if lm.bos is None else (lm.bos,)
        self._separator = self._encode_separator(lm.tokenizer, task.template.separator)
        self._words: dict[str, tuple[int, ...]] = {}
        if task.label_words is not None:
            self._check_label_words()

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

    def _prompt(self, example: Example) -> tuple[int, ...]:
        ids = _ids(self._tokenizer, self._task.template.render(example))
        if not ids:
            raise TaskError(f"row {example.row} of task {self._task.name} becomes an empty prompt")
        return ids

    def _answer(self, text: str) -> tuple[int, ...]:
        if text not in self._words:
            tail = self._task.template.tail or ":"
            alone, together = _ids(self._tokenizer, tail), _ids(self._tokenizer, tail + text)
            in_place = together[: len(alone)] == alone
            ids = together[len(alone) :] if in_place else _ids(self._tokenizer, text)
            if not ids:
                raise LabelWordError(f"answer {text!r} becomes no token under this tokenizer. Choose another word.")
            if self._task.label_words is None:
                return ids
            self._words[text] = ids
        return self._words[text]

    def _check_label_words(self) -> None:
        assert self._task.label_words is not None
        words = [self._answer(f" {word}") for word in self._task.label_words]
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

    @staticmethod
    def _encode_separator(tokenizer: PreTrainedTokenizerBase, separator: str | None) -> tuple[int, ...]:
        if separator is not None:
            return _ids(tokenizer, separator)
        if tokenizer.eos_token_id is None:
            raise TaskError("the model has no end-of-sequence token to separate demonstrations: give a --separator")
        return (int(tokenizer.eos_token_id),)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
