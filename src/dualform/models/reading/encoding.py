"""Encoding a task's texts as token ids (prompts, answers, demonstrations) and truncating demonstrations to a context.

Prompt, answer and separator are encoded separately, so that a query's tokens never depend on what comes before or
after it. Answers and separators are encoded after the text that precedes them, because some tokenizers encode a word
differently at the start of a text.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from typing import Any

from transformers import PreTrainedTokenizerBase

from dualform.errors import ConfigError, ContextError, LabelWordError, TaskError
from dualform.models.reading.chat import ChatEncoder, choose_form
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.options import ChatSetting
from dualform.models.reading.tokens import Opening, TextTokenizer, chat_template_notes, opening_tokens
from dualform.tasks.demonstrations import Demonstrations
from dualform.tasks.task import Example, Task


@dataclass(frozen=True)
class EncodedDemonstrations:
    """Demonstrations as token ids: all in one prefix for the context, and one sequence each for training."""

    prefix: tuple[int, ...]
    """The tokens before a query: the opening tokens, then every demonstration followed by the separator."""
    content: tuple[int, ...]
    """Positions in `prefix` of the tokens of prompts and answers (without opening tokens and separators)."""
    demonstration_of: tuple[int, ...]
    """For each entry of `content`, the index of its demonstration."""
    sequences: tuple[tuple[int, ...], ...]
    """Each demonstration alone, with the opening tokens."""
    n_answer_tokens: tuple[int, ...]
    """Number of answer tokens at the end of each sequence."""


class Encoder:
    """Encodes the texts of one task for one model.

    A sequence consists of the opening tokens; the prompt, answer and separator of each demonstration; and the query's
    prompt and an answer. Answers are encoded as they follow the prompt's last words, the separator as it follows an
    answer, and every prompt as it starts a text, so that a query has the same tokens with and without demonstrations. A
    tokenizer that adds a space before the first word of a text (SentencePiece) therefore adds it before every prompt,
    which `notes` reports.

    Names of special tokens in an example's fields are encoded as plain text. In the template's own words and in the
    separator they become the special tokens.

    In a chat, the opening, the text after a user's message and the separator are the chat template's, and label words
    have no space in front; see `dualform.models.reading.chat`.

    Args:
        lm: The model.
        task: The task.
        opening: See `opening_tokens`.
        chat: Whether to write prompts as chats, see `choose_form`.
        system: System message of the chats.

    Raises:
        LabelWordError: Two label words become the same tokens, or one becomes no token or an unknown or special token.
        ConfigError: The opening cannot be used; or `chat` is `on`, and the tokenizer has no chat template.
        TaskError: The task has no separator and the model no end-of-sequence token to use instead; or, in a chat, the
            template of the task contains a special token. Methods raise it for an example whose prompt becomes no
            token, and for one whose text the chat template alters.
        ModelError: A text contains a token without a row in the embedding. All methods may raise it.
    """

    def __init__(
        self,
        lm: LanguageModel,
        task: Task,
        opening: str = "auto",
        *,
        chat: ChatSetting = "off",
        system: str | None = None,
    ) -> None:
        self.tokens = TextTokenizer(lm.tokenizer, lm.model, lm.name)
        """Encodes other texts for the same model."""
        self._task = task
        self._lm = lm
        self._setting = chat
        self._system = system
        self.form = choose_form(lm, chat)
        """Whether prompts are chats, and why."""
        self.chat = self._chat(opening, system) if self.form.chat else None
        """Encodes the turns of chats; None for plain prompts."""
        self.opened = opening_tokens(lm.tokenizer, opening) if self.chat is None else self._chat_opening(self.chat)
        """The opening tokens and their origin."""
        self.opening = self.opened.ids
        self.tokens.require_rows(self.opening, "the opening")
        self._template_specials = self._special_names_in(task.template.literals)
        self._words: dict[str, tuple[int, ...]] = {}
        self._statistics = _TextStatistics()
        if task.label_words is not None:
            self._check_label_words()
        if self.chat is None:
            self._separator = self._encode_separator(lm.tokenizer, task.template.separator)
            self.tokens.require_rows(self._separator, "the separator")
        else:
            self._separator = self.chat.separator
            self.chat.verify(self._example_chats(self.chat))

    def query(self, example: Example) -> Query:
        """The prompt of an example and the answers to score."""
        answers = tuple(self._answer(text) for text in self._task.answers(example))
        texts = tuple(example.fields[name] for name in self._task.template.fields)
        return Query(self._prompt(example), answers, texts)

    def text(self, example: Example) -> Query:
        """An unlabelled text as a query; a multiple-choice text without choices gets no answers."""
        if self._task.label_words is None and not example.choices:
            return Query(self._prompt(example), ())
        return self.query(example)

    def unlabelled(self, prompt: tuple[int, ...]) -> Query:
        """An already encoded prompt of this task as a query, with the task's label words as answers."""
        words = self._task.label_words or ()
        return Query(prompt, tuple(self._answer(f" {word}") for word in words))

    def demonstrations(self, demonstrations: Demonstrations) -> EncodedDemonstrations:
        """Encode all demonstrations, in order, with the labels that they are shown with."""
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
        """A prefix of `length` tokens without content: the opening tokens, then the separator repeated."""
        repeated = self._separator or self.opening or self._answer(" .")
        return (*self.opening, *islice(cycle(repeated), length - len(self.opening)))

    def fit(self, *arguments: Any, **options: Any) -> Demonstrations:
        """Deprecated name of `truncate_to_context`."""
        warnings.warn(
            "Encoder.fit is now called Encoder.truncate_to_context. The old name will not work in the next version.",
            DeprecationWarning,
            stacklevel=2,
        )
        return self.truncate_to_context(*arguments, **options)

    def truncate_to_context(
        self,
        demonstrations: Demonstrations,
        queries: Sequence[Query],
        context: int | None,
        *,
        any_label: bool = False,
    ) -> Demonstrations:
        """Keep as many demonstrations as leave room for the longest query, the same ones for every learner.

        Args:
            demonstrations: The drawn demonstrations.
            queries: All queries that will follow them.
            context: Length of the longest sequence in tokens; None for no limit.
            any_label: Leave room for any labels, not only for those that the demonstrations are shown with.

        Returns:
            The first `k_effective` demonstrations, with a warning if these are fewer than were drawn.

        Raises:
            ContextError: There is no room for the longest query, or for one demonstration next to it.
        """
        if context is None:
            return demonstrations
        own = max((len(query.prompt) + max(map(len, query.answers), default=0) for query in queries), default=0)
        room = context - len(self.opening) - own
        if room < 0:
            raise ContextError(
                f"a query takes {own} tokens, but the context holds {context}, opening tokens included. Raise "
                "--context, shorten the texts, or use a model with a longer context."
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
                f"next to the longest query (seed {demonstrations.seed}). Raise --context, shorten the texts, use a "
                "model with a longer context, or compare without demonstrations (-k 0)."
            )
        if k < len(lengths):
            warnings.warn(
                f"{len(lengths)} demonstrations take {sum(lengths)} tokens, but a context of {context} leaves room for "
                f"{room} next to the longest query: the prompt has the first {k} (seed {demonstrations.seed})",
                stacklevel=2,
            )
        return demonstrations.truncated(k)

    @property
    def splits_special_tokens(self) -> bool:
        """Whether encoding with transformers' `split_special_tokens=True` gives the same tokens for prompts."""
        return self.tokens.is_fast and not self._template_specials

    @property
    def separator(self) -> tuple[int, ...]:
        """The tokens after every demonstration, also after the last one."""
        return self._separator

    @property
    def separator_text(self) -> str:
        """The separator as text."""
        if self.chat is not None:
            return self.chat.separator_text
        own = self._task.template.separator
        return "".join(self.tokens.names(self._separator)) if own is None else own

    @property
    def n_template_tokens(self) -> int:
        """Number of tokens that a chat template adds to every prompt; 0 for plain prompts."""
        return 0 if self.chat is None else len(self.chat.generation_prompt)

    def prompt_text(self, example: Example) -> str:
        """The prompt of an example as text, in a chat up to where the assistant's answer begins."""
        text = self._task.template.render(example)
        if self.chat is None:
            return text
        return self.chat.message_text(text, f"row {example.row} of task {self._task.name}") + self.chat.generation_text

    def encode(self, text: str, where: str) -> tuple[int, ...]:
        """A text outside prompts, such as a passage of a file, encoded as plain text.

        Args:
            text: The text.
            where: The text's origin, for error messages.
        """
        ids = self.tokens.encode_plain(text)
        self.tokens.require_rows(ids, where)
        return ids

    def encode_head(self, text: str) -> tuple[int, ...]:
        """The first words of the template, in which names of special tokens become the tokens."""
        if not text:
            return ()
        return self.tokens.encode_marked(text) if self.chat is None else self.chat.head(text)

    def check_all(self) -> None:
        """Check that no example of the task contains a token without a row in the embedding.

        Raises:
            ModelError: An example contains such a token.
        """
        if not self.tokens.without_rows:
            return
        for name in dict.fromkeys(("train", self._task.selection_split, self._task.report_split)):
            for example in self._task.split(name):
                self.query(example)

    def notes(self) -> tuple[str, ...]:
        """Notes on how the texts encoded so far became tokens, one or two sentences each."""
        notes = self._form_notes()
        if self.opened.note is not None:
            notes.append(self.opened.note)
        if self.chat is None:
            notes += self._separator_notes()
        return (*notes, *self._statistics.notes(self._template_specials, in_chat=self.chat is not None))

    def _chat(self, opening: str, system: str | None) -> ChatEncoder:
        if opening != "auto":
            raise ConfigError(
                f"opening {opening!r} cannot be set for chats, which begin as the chat template writes them. Leave it "
                "out, or use plain prompts (--chat off)."
            )
        if names := self._special_names_in(self._task.template.literals):
            raise TaskError(
                f"the prompt {self._task.template.prompt!r} contains the special token {names[0]!r}, but with --chat "
                "the chat template adds all special tokens. Remove it from the prompt, or use plain prompts "
                "(--chat off)."
            )
        examples = [self._task.template.render(example) for example in self._task.demonstration_pool[:_EXAMPLES]]
        return ChatEncoder(self._lm.tokenizer, self.tokens, self._lm.name, examples, system)

    def _chat_opening(self, chat: ChatEncoder) -> Opening:
        own = opening_tokens(self._lm.tokenizer).own
        return Opening(chat.opening, self.tokens.names(chat.opening), "as the chat template writes them", own, None)

    def _example_chats(self, chat: ChatEncoder) -> list[tuple[list[tuple[str, str]], str]]:
        """Chats with 0, 1 and 3 demonstrations from the task's first examples that have the template's exact tokens."""
        usable: list[tuple[str, str]] = []
        for number, example in enumerate(self._task.demonstration_pool[:_EXAMPLES]):
            message = self._task.template.render(example)
            answers = [answer.removeprefix(" ") for answer in self._task.answers(example)]
            chat.message(chat.message_text(message, f"row {example.row} of task {self._task.name}"))
            for answer in answers:
                chat.answer(answer)
            if not any(map(self.tokens.special_names_in, (message, *answers))) and not chat.inexact:
                usable.append((message, answers[number % len(answers)]))
            chat.inexact.clear()
        usable = usable[:4] or [("The first message.", "good"), ("The second message.", "bad")]
        return [(usable[1 : 1 + n], usable[0][0]) for n in (0, 1, 3)]

    def _prompt(self, example: Example) -> tuple[int, ...]:
        where = f"row {example.row} of task {self._task.name}"
        text = self._task.template.render(example)
        if self.chat is not None:
            text = self.chat.message_text(text, where)
            ids = self.chat.message(text)
        elif self._template_specials:
            ids = self._prompt_with_specials(example)
        else:
            ids = self.tokens.encode_plain(text)
        if not ids:
            raise TaskError(f"{where} becomes an empty prompt. Remove the row, or add words to the prompt.")
        self.tokens.require_rows(ids, where)
        if self._template_specials:
            text = "\0".join(words for words, own in self._task.template.rendered(example) if not own)
        self._statistics.add(self.tokens, text, ids, len(self._template_specials))
        return ids if self.chat is None else (*ids, *self.chat.generation_prompt)

    def _special_names_in(self, literals: Sequence[str]) -> tuple[str, ...]:
        """Names of special tokens in the template's own words, repeats included."""
        return tuple(name for literal in literals for name, _ in self.tokens.split_at_specials(literal) if name)

    def _prompt_with_specials(self, example: Example) -> tuple[int, ...]:
        """A prompt whose template names special tokens; its fields are plain text."""
        # One entry per stretch of text between two special tokens: (special token before it, text).
        stretches = [("", "")]
        for text, own in self._task.template.rendered(example):
            for name, words in self.tokens.split_at_specials(text) if own else [("", text)]:
                if name:
                    stretches.append((name, words))
                else:
                    stretches[-1] = (stretches[-1][0], stretches[-1][1] + words)
        ids: list[int] = []
        for name, words in stretches:
            ids += self.tokens.encode_after_special(name, words)
        return tuple(ids)

    def _answer(self, text: str) -> tuple[int, ...]:
        if text not in self._words:
            if self.chat is None:
                ids = self.tokens.encode_after((self._task.template.tail,) if self._task.template.tail else (), text)
            else:
                ids = self.chat.answer(text.removeprefix(" "))
            if not ids:
                raise LabelWordError(f"answer {text!r} becomes no token with this tokenizer. Choose another word.")
            self.tokens.require_rows(ids, f"the answer {text!r}", predicted=True)
            if self._task.label_words is None:
                self._statistics.add(self.tokens, text, ids)
                return ids
            self._words[text] = ids
        return self._words[text]

    def _check_label_words(self) -> None:
        assert self._task.label_words is not None
        words = [self._answer(f" {word}") for word in self._task.label_words]
        for word, ids in zip(self._task.label_words, words, strict=True):
            if self.tokens.unknown in ids:
                missing = self.tokens.unknown_characters(word)
                raise LabelWordError(
                    f"label word {word!r} becomes the unknown token with this tokenizer, whose vocabulary lacks "
                    f"{', '.join(map(repr, missing)) or 'it'}, so it cannot be predicted. Choose another word with "
                    "--label-words."
                )
            if self.tokens.special_ids_in(ids):
                raise LabelWordError(
                    f"label word {word!r} becomes the special token {self.tokens.names(ids)[0]!r} with this "
                    "tokenizer. Choose another word with --label-words."
                )
        seen: dict[tuple[int, ...], str] = {}
        for word, ids in zip(self._task.label_words, words, strict=True):
            if ids in seen:
                raise LabelWordError(
                    f"label words {seen[ids]!r} and {word!r} become the same tokens {list(ids)} with this tokenizer, "
                    "so they cannot be distinguished. Choose other words with --label-words."
                )
            seen[ids] = word
        firsts: dict[int, str] = {}
        for word, ids in zip(self._task.label_words, words, strict=True):
            if ids[0] in firsts:
                warnings.warn(
                    f"label words {firsts[ids[0]]!r} and {word!r} begin with the same token ({ids[0]}): accuracy is "
                    "correct because it scores whole words, but measures over the vocabulary cannot distinguish them",
                    stacklevel=3,
                )
            firsts[ids[0]] = word

    def _encode_separator(self, tokenizer: PreTrainedTokenizerBase, separator: str | None) -> tuple[int, ...]:
        """The separator as it follows an answer, without a space that the tokenizer adds at the start of a text."""
        if separator is None:
            if tokenizer.eos_token_id is None:
                raise TaskError("the model has no end-of-sequence token to separate demonstrations: give a --separator")
            return (int(tokenizer.eos_token_id),)
        if not separator:
            return ()
        anchor = self._anchor
        ids = self.tokens.encode_after((anchor,), separator, marked=True)
        # Encoding separator and next prompt separately may change the text; then take the tokens of the whole text.
        before, after = self.tokens.encode_marked(anchor), self.tokens.encode_marked(self._first_words)
        whole = self.tokens.encode_marked(anchor + separator + self._first_words)
        between = len(whole) - len(before) - len(after)
        in_place = between >= 0 and whole[: len(before)] == before and whole[len(before) + between :] == after
        if in_place and self.tokens.joined_names(whole) != self.tokens.joined_names((*before, *ids, *after)):
            return whole[len(before) : len(before) + between]
        return ids

    @property
    def _anchor(self) -> str:
        """The end of a demonstration: the template's last words and an answer."""
        word = self._task.label_words[0] if self._task.label_words else "a"
        return f"{self._task.template.tail or ':'} {word}"

    @property
    def _first_words(self) -> str:
        """The first words of a prompt."""
        first = self._task.template.prompt.partition("{")[0].rstrip()
        return first or "The"

    def _form_notes(self) -> list[str]:
        """Notes on whether prompts are chats, and on texts that a chat's tokens differ for."""
        if self.chat is None:
            if self._setting == "off":
                return [*chat_template_notes(self._lm.tokenizer)]
            unused = "" if self._system is None else " The system message was not used."
            return [f"Prompts are plain texts, because {self.form.reason}.{unused}"]
        template, chat = "the tokenizer's chat template", self.chat
        notes = [
            f"Demonstrations and queries are turns of a chat, written by {template}, because {self.form.reason}. Every "
            f"chat begins with {chat.opening_text!r}, and every answer follows {chat.generation_text!r}."
        ]
        if chat.arguments:
            notes.append(
                f"The chat template would insert today's date; it was given {chat.arguments['date_string']} instead, "
                "so that runs on different days have the same tokens."
            )
        if chat.thinks:
            notes.append(
                "The chat template has a place for thoughts. Label words are scored at the beginning of the answer, "
                "without a thought before it."
            )
        if chat.inexact:
            notes.append(
                f"{len(chat.inexact):,} texts begin or end with characters that the tokenizer would join with the chat "
                "template's own; they were encoded apart from these, so their tokens differ from those of "
                "`apply_chat_template`."
            )
        return notes

    def _separator_notes(self) -> list[str]:
        """Notes on differences between the text of separator and prompt and their tokens."""
        template, notes = self._task.template, []
        if self.tokens.loses_line_breaks:
            parts = [f"the separator {template.separator!r}"] if "\n" in (template.separator or "") else []
            parts += ["the prompt"] if any("\n" in literal for literal in template.literals) else []
            if parts:
                notes.append(
                    f"This tokenizer cannot encode a line break, so {' and '.join(parts)} have none: the model reads "
                    f"{self.tokens.joined_names(self._separator)!r} between two demonstrations. A separator with other "
                    "characters (--separator) may be clearer."
                )
        if template.separator:
            anchor, first = self._anchor, self._first_words
            whole = self.tokens.joined_names(self.tokens.encode_marked(anchor + template.separator + first))
            own = self.tokens.encode_marked(first)
            pieces = self.tokens.joined_names((*self.tokens.encode_marked(anchor), *self._separator, *own))
            if whole != pieces and not notes:
                notes.append(
                    f"This tokenizer adds a space at the start of a text ({self.tokens.names(own)[0]!r}). Every prompt "
                    f"starts with it, also after the separator {template.separator!r}, so a query has the same tokens "
                    "with and without demonstrations."
                )
        return notes


@dataclass
class _TextStatistics:
    """Counts over the texts that were encoded; each distinct text counts once."""

    texts: set[int] = field(default_factory=set)
    tokens: int = 0
    named: dict[str, int] = field(default_factory=dict)
    """Name of a special token -> number of texts that contain it."""
    special: dict[str, int] = field(default_factory=dict)
    """Special token that could not be avoided -> number of texts encoded with it."""
    unknown: int = 0
    """Number of unknown tokens."""
    unknown_texts: int = 0
    unknown_characters: dict[str, None] = field(default_factory=dict)
    """Some characters that are not in the vocabulary."""

    def add(self, tokens: TextTokenizer, text: str, ids: tuple[int, ...], n_expected_specials: int = 0) -> None:
        """Count a text and its tokens, of which `n_expected_specials` come from the template's special tokens."""
        key = hash(text)
        if key in self.texts:
            return
        self.texts.add(key)
        self.tokens += len(ids)
        unknown = 0 if tokens.unknown is None else ids.count(tokens.unknown)
        self.unknown += unknown
        if unknown:
            self.unknown_texts += 1
            if len(self.unknown_characters) < _MAX_CHARACTERS:
                self.unknown_characters |= dict.fromkeys(tokens.unknown_characters(text))
        for name in tokens.special_names_in(text):
            self.named[name] = self.named.get(name, 0) + 1
        special = tokens.special_ids_in(ids)
        if sum(map(ids.count, special)) > n_expected_specials:
            for name in tokens.names(special):
                self.special[name] = self.special.get(name, 0) + 1

    def notes(self, template_specials: Sequence[str], *, in_chat: bool = False) -> list[str]:
        """One note per kind of finding."""
        notes = []
        if template_specials:
            names = ", ".join(dict.fromkeys(map(repr, template_specials)))
            notes.append(f"The prompt's own words contain special tokens ({names}), which are encoded as such.")
        if self.special:
            counts = ", ".join(f"{name!r} in {n:,}" for name, n in self.special.items())
            notes.append(
                f"Some texts contain names of special tokens that this tokenizer cannot encode as plain text, so they "
                f"become special tokens: {counts} of {len(self.texts):,} texts."
            )
        if plain := {name: n for name, n in self.named.items() if name not in self.special}:
            counts = ", ".join(f"{name!r} in {n:,}" for name, n in plain.items())
            notes.append(
                f"Some texts contain names of special tokens ({counts} of {len(self.texts):,} texts); they were "
                "encoded as plain text"
                + (", where `apply_chat_template` would make them special tokens." if in_chat else ".")
            )
        if self.unknown:
            characters = ", ".join(map(repr, list(self.unknown_characters)[:_MAX_CHARACTERS]))
            notes.append(
                f"{self.unknown:,} of {self.tokens:,} tokens of the texts ({self.unknown / self.tokens:.1%}, in "
                f"{self.unknown_texts:,} of {len(self.texts):,} texts) are unknown to this tokenizer"
                + (f", such as {characters}." if characters else ".")
            )
        return notes


_EXAMPLES = 8
"""Number of the task's first examples that may be used to check the tokens of chats."""
_MAX_CHARACTERS = 5
"""Largest number of unknown characters that a note lists."""
