"""Prompts as chats: demonstrations and queries as turns, written by the tokenizer's own chat template.

A chat has the parts of a plain prompt. The opening is all text before the first message (the beginning-of-sequence
token, the system message, the first header); a prompt is the user's message with the generation prompt, after which the
assistant's answer begins; an answer is a label word without a space in front; the separator is all text between an
answer and the next message (the end of the turn and the next header). These texts are found by rendering example chats,
and the resulting tokens are compared with those of `apply_chat_template`.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, hf_hub_download
from transformers import GenerationConfig, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ModelError, TaskError, first_line
from dualform.models.loading.packaged import PACKAGED_MODELS
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.options import ChatSetting
from dualform.models.reading.tokens import TextTokenizer
from dualform.plain_text import plain

FIXED_DATE = "26 Jul 2024"
"""The date that is given to templates that would otherwise insert today's, so that runs on different days have the same
tokens. It is the default of the template of Llama 3.1."""

_PLAIN = "Use plain prompts (--chat off)"
_USERS = ("Qzua", "Qzub", "Qzuc")
_ANSWERS = ("Qzaa", "Qzab")
"""Messages of the example chats: words that no template contains."""
_WORDS = ("The", "a", "1", "Qz:", "(good)")
"""Texts that begin and end with different characters."""


@dataclass(frozen=True)
class PromptForm:
    """Whether prompts are chats, and why."""

    chat: bool
    reason: str
    """Why, as the end of a sentence with `because`."""


def choose_form(lm: LanguageModel, setting: ChatSetting) -> PromptForm:
    """Decide whether the prompts of a model are plain texts or chats.

    `auto` chooses chats if the tokenizer has a chat template and one of these facts says that the model follows
    instructions: the generation config ends texts at two or more different tokens (the end of a turn besides the end of
    a text); the model card has the tag `conversational`, `chat` or `instruct`; the name contains the word `instruct`,
    `chat` or `it`. A template alone is not enough, because many base models come with one.

    Args:
        lm: The model; its weights are not needed.
        setting: `off`, `auto` or `on`.

    Raises:
        ConfigError: The setting is `on`, and the tokenizer has no chat template.
    """
    has_template = bool(getattr(lm.tokenizer, "chat_template", None))
    if setting == "on":
        require_template(lm.tokenizer, lm.name)
        return PromptForm(True, "--chat is on")
    if setting == "off":
        return PromptForm(False, "--chat is off")
    if not has_template:
        return PromptForm(False, "the tokenizer has no chat template")
    for reason in _signs_of_instruction(lm):
        return PromptForm(True, f"the tokenizer has a chat template and {reason}")
    return PromptForm(
        False,
        "the tokenizer has a chat template, but neither the generation config, the model card nor the name says that "
        "the model follows instructions",
    )


def require_template(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Check that a tokenizer has a chat template.

    Raises:
        ConfigError: It has none.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise ConfigError(
            f"chat is on, but the tokenizer of {name} has no chat template. {_PLAIN}, give the instruct version of the "
            "model, or add the model's template to its folder as chat_template.jinja."
        )


def _signs_of_instruction(lm: LanguageModel) -> Iterator[str]:
    """The facts that say that a model follows instructions, each as the end of a sentence."""
    config = lm.model.config
    source = str(getattr(config, "name_or_path", "") or "")
    ends = _end_tokens(getattr(lm.model, "generation_config", None)) | _end_tokens(_saved_generation_config(source))
    if len(ends) > 1:
        yield f"its generation config ends texts at {len(ends)} different tokens"
    for tag in _card_tags(source):
        if tag in ("conversational", "chat", "instruct"):
            yield f"its model card has the tag {tag}"
    packaged = PACKAGED_MODELS.get(lm.name)
    for name in (lm.name, source, (packaged and packaged.hub_id) or ""):
        last = Path(name).name
        if match := re.search(r"(?<![a-z0-9])(instruct|chat|it)(?![a-z0-9])", last.lower()):
            yield f"its name ({last}) contains the word {match[1]}"


def _end_tokens(config: GenerationConfig | None) -> set[int]:
    ends = getattr(config, "eos_token_id", None)
    return set(ends) if isinstance(ends, list | tuple) else set()


def _saved_generation_config(source: str) -> GenerationConfig | None:
    """The generation config next to a model's weights; a model on the meta device does not have it in memory."""
    if _file_of(source, "generation_config.json") is None:
        return None
    try:
        return GenerationConfig.from_pretrained(source)
    except (OSError, ValueError, TypeError):
        return None


def _card_tags(source: str) -> list[str]:
    """Tags of a model card, in lower case; empty without a card."""
    card = _file_of(source, "README.md")
    if card is None:
        return []
    try:
        tags = ModelCard.load(card, ignore_metadata_errors=True).data.tags or []
    except Exception:
        # A card is free text, and its front matter can be broken in any way.
        return []
    return [str(tag).lower() for tag in tags]


def _file_of(source: str, name: str) -> Path | None:
    """A file of a model's folder, or of a hub model; None if there is none or the hub does not answer."""
    if not source:
        return None
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if source.count("/") != 1:
        return None
    try:
        return Path(hf_hub_download(source, name))
    except Exception:
        # A missing file and each kind of unreachable hub have classes of their own.
        return None


@dataclass(frozen=True)
class _Place:
    """A place in a chat where a text is inserted: the template's words around it, up to the next special tokens."""

    before: str
    after: str
    start: tuple[int, ...]
    """Tokens of `before`, without those that depend on the text."""
    end: tuple[int, ...]
    """Tokens of `after`, without those that depend on the text."""

    @classmethod
    def of(cls, tokens: TextTokenizer, before: str, after: str, examples: Sequence[str]) -> "_Place":
        """The place between two texts, for texts that are like the examples."""
        after = _to_first_special(tokens, after)
        wholes = [tokens.encode_marked(before + example + after) for example in examples]
        start = _common_start(wholes)
        end = _common_start([whole[len(start) :][::-1] for whole in wholes])[::-1]
        return cls(before, after, start, end)

    def inside(self, tokens: TextTokenizer, text: str) -> tuple[int, ...] | None:
        """Tokens of a text in this place; None if it shares a token with the template's words."""
        whole = tokens.encode_marked(self.before + text + self.after)
        inside = whole[len(self.start) : len(whole) - len(self.end)]
        return inside if inside and whole == (*self.start, *inside, *self.end) else None

    def inside_plain(self, tokens: TextTokenizer, text: str) -> tuple[int, ...]:
        """Tokens of a text in this place, with names of special tokens in it encoded as plain text."""
        name, words = tokens.split_at_specials(self.before)[-1]
        special = tokens.encode_marked(name) if name else ()
        if tokens.encode_marked(name + words) == special:
            # A special token may swallow the white space after it.
            words = ""
        ids, n = tokens.encode_after((), words + text), len(self.start) - len(special)
        if ids[:n] == self.start[len(special) :]:
            return ids[n:]
        return tokens.encode_after((words,) if words else (), text)


class ChatEncoder:
    """Encodes messages and answers as a chat template writes them.

    Args:
        tokenizer: The model's tokenizer.
        tokens: Encodes texts for the same model.
        name: Name of the model in messages.
        examples: Some messages, to find out which tokens are the template's and which are a message's.
        system: The system message; None for none, or the template's own.

    Raises:
        ConfigError: The system message contains the name of a special token.
        ModelError: The template cannot be used: it fails, does not accept a system message, ignores the message,
            inserts today's date, or writes turns that depend on their place in the chat.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        tokens: TextTokenizer,
        name: str,
        examples: Sequence[str],
        system: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self._tokens = tokens
        self._name = name
        self.system = system
        self.arguments: dict[str, str] = {}
        """Further arguments of `apply_chat_template`."""
        self.thinks = False
        """Whether the template has a place for thoughts before an answer."""
        self.inexact: set[str] = set()
        """Texts whose tokens are not those of `apply_chat_template`, because they would merge with the template's."""
        if system is not None and (names := tokens.special_names_in(system)):
            raise ConfigError(
                f"the system message contains the name of the special token {names[0]!r}. Remove it: the chat template "
                "adds all special tokens."
            )
        self._fix_date()
        self._find_texts()
        self._find_tokens(examples)

    def messages(self, demonstrations: Sequence[tuple[str, str]], query: str) -> list[dict[str, str]]:
        """A chat for `apply_chat_template`: pairs of a message and its answer, and the message to be answered."""
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        turns = [
            {"role": role, "content": text}
            for pair in demonstrations
            for role, text in zip(("user", "assistant"), pair, strict=True)
        ]
        return [*system, *turns, {"role": "user", "content": query}]

    def message_text(self, message: str, where: str) -> str:
        """A user's message as the template writes it, for instance without white space at its ends.

        Raises:
            TaskError: The template does not write it in the way that it writes other messages.
        """
        text = self._render([], message)
        inner = text[len(self.opening_text) : len(text) - len(self.generation_text)]
        if text != f"{self.opening_text}{inner}{self.generation_text}":
            raise TaskError(
                f"{where}: the chat template of {self._name} writes this text differently from others. Change the "
                "text, or use plain prompts (--chat off)."
            )
        return inner

    def message(self, text: str) -> tuple[int, ...]:
        """Tokens of a message, from `message_text`, between the template's own."""
        if not text:
            return ()
        return self._inside(self._message_places, text)

    def answer(self, text: str) -> tuple[int, ...]:
        """Tokens of an answer without surrounding space, after the generation prompt."""
        return self._inside((self._answer_place,), self._answer_lead + text)

    def head(self, text: str) -> tuple[int, ...]:
        """Tokens of the first words of a message."""
        place = self._message_places[0]
        whole = self._tokens.encode_marked(place.before + text)
        if whole[: len(place.start)] == place.start:
            return whole[len(place.start) :]
        return place.inside_plain(self._tokens, text)

    @property
    def answer_context(self) -> str:
        """The plain text right before an answer, after the last special token."""
        return self._tokens.split_at_specials(self.generation_text)[-1][1] + self._answer_lead

    def verify(self, chats: Iterable[tuple[Sequence[tuple[str, str]], str]]) -> None:
        """Compare the tokens of chats with those of `apply_chat_template`.

        Args:
            chats: Demonstrations, as pairs of a message and an answer, and the query's message.

        Raises:
            ModelError: They differ.
        """
        for demonstrations, query in chats:
            ids = list(self.opening)
            for message, answer in demonstrations:
                ids += [*self._turn(message), *self.answer(answer), *self.separator]
            ids += self._turn(query)
            expected = self._tokenizer.apply_chat_template(
                self.messages(demonstrations, query),
                add_generation_prompt=True,
                tokenize=True,
                return_dict=True,
                **self.arguments,
            )["input_ids"]
            if ids != list(expected):
                raise ModelError(
                    f"the chat template of {self._name} cannot be divided into turns with tokens of their own: a chat "
                    f"with {len(demonstrations)} demonstrations has other tokens as a whole than in parts. {_PLAIN}."
                )

    def _turn(self, message: str) -> tuple[int, ...]:
        return (*self.message(self.message_text(message, "the chat template")), *self.generation_prompt)

    def _render(self, demonstrations: Sequence[tuple[str, str]], query: str, **more: Any) -> str:
        try:
            text = self._tokenizer.apply_chat_template(
                self.messages(demonstrations, query),
                add_generation_prompt=True,
                tokenize=False,
                **(self.arguments | more),
            )
        except Exception as error:
            # A template can raise anything, such as that it supports no system message.
            raise ModelError(
                f"the chat template of {self._name} cannot be applied"
                f"{'' if self.system is None else ' with a system message'} ({plain(first_line(error))}). "
                + (_WITHOUT_SYSTEM if self.system is not None else f"{_PLAIN}.")
            ) from error
        return str(text)

    def _fix_date(self) -> None:
        """Give a fixed date to a template that would insert today's."""
        try:
            template = str(self._tokenizer.get_chat_template())
        except ValueError as error:
            raise ModelError(
                f"the tokenizer of {self._name} has several chat templates and none of them is the default one "
                f"({plain(first_line(error))}). {_PLAIN}, or keep one template in its folder, as chat_template.jinja."
            ) from error
        self.thinks = "<think>" in template
        if "strftime_now" not in template:
            return
        # With the function for the date replaced by one that fails, rendering fails if and only if the date is used.
        dateless = template.replace("strftime_now", "raise_exception")
        for arguments in ({}, {"date_string": FIXED_DATE}):
            try:
                self._render([], _USERS[0], chat_template=dateless, **arguments)
            except ModelError:
                continue
            self.arguments = arguments
            return
        # Without the replacement, to report any other failure.
        self._render([], _USERS[0])
        remedy = " or give a system message (--system), if that replaces the text with the date" * (self.system is None)
        raise ModelError(
            f"the chat template of {self._name} inserts today's date, so runs on different days would have different "
            f"tokens. {_PLAIN}{remedy}."
        )

    def _find_texts(self) -> None:
        """Find the template's own texts by rendering chats with 0, 1 and 2 demonstrations."""
        pieces = []
        for n in range(3):
            demonstrations = list(zip(_USERS[:n], _ANSWERS[:n], strict=True))
            contents = [content for pair in demonstrations for content in pair] + [_USERS[n]]
            text = self._render(demonstrations, _USERS[n])
            if any(text.count(content) != 1 for content in contents):
                raise self._unusable("does not write every message exactly once")
            pieces.append(re.split("|".join(contents), text))
            if re.findall("|".join(contents), text) != contents:
                raise self._unusable("does not write messages in their order")
        if len({each[0] for each in pieces}) > 1:
            if self.system is not None:
                raise ModelError(
                    f"the chat template of {self._name} writes the system message into the last user turn, so a "
                    f"query's tokens would depend on the demonstrations before it. {_WITHOUT_SYSTEM}"
                )
            raise self._unusable("begins chats of different lengths differently")
        self.opening_text = pieces[0][0]
        if len({each[-1] for each in pieces}) > 1:
            raise self._unusable("ends chats of different lengths differently")
        self.generation_text = pieces[0][-1]
        befores = {text for each in pieces for text in each[1:-1:2]}
        separators = {text for each in pieces for text in each[2:-1:2]}
        if len(befores) > 1 or len(separators) > 1:
            raise self._unusable("writes turns differently depending on their place in the chat")
        (before,), (self.separator_text,) = befores, separators
        self._answer_lead = before.removeprefix(self.generation_text)
        if not before.startswith(self.generation_text) or self._answer_lead.strip():
            raise self._unusable(
                f"writes {before!r} before a given answer, but {self.generation_text!r} where the model is to answer"
            )
        if not self.separator_text:
            raise self._unusable("does not separate an answer from the next message")
        if self.system is not None and self.system.strip() not in self.opening_text:
            raise ModelError(f"the chat template of {self._name} ignores the system message. {_WITHOUT_SYSTEM}")

    def _find_tokens(self, examples: Sequence[str]) -> None:
        """Find the tokens of the template's own texts, and the places in which messages and answers are encoded."""
        tokens = self._tokens
        texts = [self.message_text(text, "the chat template") for text in examples]
        # Words that begin and end differently: what all chats have in common are the template's own tokens.
        words = [*_WORDS, *(text for text in texts if text and not tokens.special_names_in(text))]
        until_answer = f"{self.opening_text}{_WORDS[0]}{self.generation_text}"
        answers = [f"{self._answer_lead}{word}" for word in _WORDS]
        later = f"{until_answer}{answers[0]}{self.separator_text}"
        befores = dict.fromkeys(_from_last_special(tokens, text) for text in (self.opening_text, later))
        self._message_places = tuple(_Place.of(tokens, before, self.generation_text, words) for before in befores)
        until_answer = _from_last_special(tokens, until_answer)
        # A query ends with all tokens of the generation prompt, so an answer shares none with it.
        after = _Place.of(tokens, until_answer, self.separator_text, answers)
        self._answer_place = replace(after, start=tokens.encode_marked(until_answer))
        self.opening = _common_start([tokens.encode_marked(self.opening_text + word) for word in words])
        first = self._message_places[0].before
        prompts = [tokens.encode_marked(f"{first}{word}{self.generation_text}")[::-1] for word in words]
        self.generation_prompt = _common_start(prompts)[::-1]
        answered = tokens.encode_marked(until_answer + answers[0])
        whole = _common_start(
            [tokens.encode_marked(f"{until_answer}{answers[0]}{self.separator_text}{word}") for word in words]
        )
        self.separator = whole[len(answered) :]
        exact = [text for text in words if self._exact(self._message_places, text) is not None]
        if whole[: len(answered)] != answered or not self.separator or not self.generation_prompt or not exact:
            raise self._unusable("writes words that the tokenizer joins with those of the messages")
        for ids in (self.opening, self.generation_prompt, self.separator):
            tokens.require_rows(ids, "the chat template")

    def _inside(self, places: "Sequence[_Place]", text: str) -> tuple[int, ...]:
        """Tokens of a text in places in which it has the same tokens; those of plain text if there are none."""
        if not self._tokens.special_names_in(text):
            ids = self._exact(places, text)
            if ids is not None:
                return ids
            self.inexact.add(text)
        return places[0].inside_plain(self._tokens, text)

    def _exact(self, places: "Sequence[_Place]", text: str) -> tuple[int, ...] | None:
        """Tokens of a text, if it has the same in all places and shares none with the template's words."""
        encoded = {place.inside(self._tokens, text) for place in places}
        return encoded.pop() if len(encoded) == 1 else None

    def _unusable(self, what: str) -> ModelError:
        return ModelError(f"the chat template of {self._name} {what}, which is not supported. {_PLAIN}.")


_WITHOUT_SYSTEM = "Leave out --system, and put its text at the beginning of the prompt (--prompt)."


def _from_last_special(tokens: TextTokenizer, text: str) -> str:
    """The end of a text from its last special token on; the whole text if there is none."""
    return "".join(tokens.split_at_specials(text)[-1])


def _to_first_special(tokens: TextTokenizer, text: str) -> str:
    """The beginning of a text up to its first special token, included; the whole text if there is none."""
    pieces = tokens.split_at_specials(text)
    return pieces[0][1] + pieces[1][0] if len(pieces) > 1 else text


def _common_start(sequences: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The tokens with which all sequences begin."""
    columns = list(itertools.takewhile(lambda column: len(set(column)) == 1, zip(*sequences, strict=False)))
    return tuple(column[0] for column in columns)
