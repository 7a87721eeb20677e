"""A user's settings for a task: columns, prompt, label words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from dualform.errors import LabelWordError
from dualform.plain_text import plain
from dualform.tasks.labels import abbreviate, clean_text, find_name

END_OF_SEQUENCE = "eos"
"""Separator that means the model's end-of-sequence token."""

LabelWords = str | Sequence[str] | Mapping[str, str]
_MOST_LISTED = 20


@dataclass(frozen=True)
class TaskOptions:
    """Settings that override those of the source; None keeps the source's."""

    text: str | None = None
    """Column with the text, which the prompt may then refer to as `{text}`."""
    label: str | None = None
    """Column with the label."""
    prompt: str | None = None
    label_words: LabelWords | None = None
    """Words in label order, a mapping from label value to word, `value=word` strings, or one comma-separated text."""
    separator: str | None = None
    """Text between demonstrations; `eos` means the model's end-of-sequence token."""
    choices: str | None = None
    """Column with each row's list of choices, or several columns joined by commas, one for each choice."""
    skip_bad_rows: bool | None = None
    """Leave out unusable rows and count them in a note, instead of raising an error."""
    truncate: bool | None = None
    """Cut texts that exceed the maximum length, instead of raising an error."""
    paper_rows: bool | None = None
    """For a known task, read the rows that the paper's released code reads, if the source has them."""

    def with_defaults(self, defaults: "TaskOptions") -> "TaskOptions":
        """These settings, with those of `defaults` where they are None."""
        own = {field.name: getattr(self, field.name) for field in fields(self)}
        return TaskOptions(**{k: getattr(defaults, k) if value is None else value for k, value in own.items()})


NO_OPTIONS = TaskOptions()
"""No setting overridden."""


def listed(values: Sequence[str]) -> str:
    """The first twenty values, joined by commas, for a message."""
    names = ", ".join(abbreviate(value) for value in values[:_MOST_LISTED])
    return names + (f" and {len(values) - _MOST_LISTED} more" if len(values) > _MOST_LISTED else "")


def values_named(given: LabelWords | None) -> set[str]:
    """Label values that occur in `given`: the keys of a mapping, or the texts before `=`."""
    if isinstance(given, Mapping):
        return {clean_text(str(value)) for value in given}
    items = [] if given is None else [item for item in _items(given) if isinstance(item, str)]
    return {clean_text(item[:place]) for item in items for place, mark in enumerate(item) if mark == "="}


def words_in_order(given: LabelWords, label_names: Sequence[str], task: str) -> tuple[str, ...]:
    """Label words in the order of `label_names`, without surrounding spaces.

    Args:
        given: See `TaskOptions.label_words`. A text such as `0=bad` is read as a pair only if `0` is a label and every
            item is such a pair.
        label_names: The label values in index order.
        task: Name for messages.

    Raises:
        LabelWordError: A value is unknown, has no word or several, only some items name a value, or the numbers of
            words and labels differ.
    """
    known = f"the labels of task {task!r} are {listed(label_names)}"
    words: Sequence[str]
    _require_texts(given)
    if isinstance(given, Mapping):
        words = _order_words([(str(value), word) for value, word in given.items()], label_names, known)
    else:
        words = _items(given)
        pairs = [_pair(item, label_names) for item in words]
        if any(pairs) and not all(pairs):
            named = next(item for item, pair in zip(words, pairs, strict=True) if pair)
            other = next(item for item, pair in zip(words, pairs, strict=True) if not pair)
            raise LabelWordError(
                f"label word {plain(named)!r} names a label and {plain(other)!r} does not; {known}. Give all of them "
                "as value=word, or give only words."
            )
        if all(pairs) and words:
            words = _order_words([pair for pair in pairs if pair], label_names, known)
        elif any("=" in item for item in words):
            unknown = next(item for item in words if "=" in item)
            value, _, word = unknown.partition("=")
            raise LabelWordError(
                f"label word {plain(word.strip())!r} is given for {plain(value.strip())!r}, but {known}. Use those "
                "values. To use a word that contains =, write value=word."
            )
    if len(words) != len(label_names):
        raise LabelWordError(
            f"{len(words)} label words ({listed(words)}) for {len(label_names)} labels; {known}. Give one word for "
            "each label, in this order or as value=word."
        )
    return tuple(clean_text(word) for word in words)


def _require_texts(given: LabelWords) -> None:
    """Raise `LabelWordError` for words that are not texts."""
    for word in given.values() if isinstance(given, Mapping) else [given] if isinstance(given, str) else given:
        if not isinstance(word, str):
            raise LabelWordError(f"label word {abbreviate(word)} is {type(word).__name__}, not text. Put it in quotes.")


def _items(given: str | Sequence[str]) -> list[str]:
    return given.split(",") if isinstance(given, str) else list(given)


def _pair(item: str, label_names: Sequence[str]) -> tuple[str, str] | None:
    """(label, word) if `item` is `label=word`, with the longest matching label where labels contain `=`."""
    for place in reversed([place for place, mark in enumerate(item) if mark == "="]):
        name = find_name(clean_text(item[:place]), label_names)
        if name is not None:
            return name, item[place + 1 :]
    return None


def _order_words(pairs: Sequence[tuple[str, str]], label_names: Sequence[str], known: str) -> list[str]:
    words: dict[str, str] = {}
    for value, word in pairs:
        name = find_name(clean_text(value), label_names)
        if name is None:
            raise LabelWordError(
                f"label word {plain(word)!r} is given for {plain(value)!r}, but {known}. Use those values."
            )
        if name in words:
            raise LabelWordError(
                f"label {plain(name)!r} has two label words, {plain(words[name])!r} and {plain(word)!r}. Give only one."
            )
        words[name] = word
    for name in label_names:
        if name not in words:
            raise LabelWordError(f"label {plain(name)!r} has no label word; {known}. Give a word for each label.")
    return [words[name] for name in label_names]


def unescape(text: str | None) -> str | None:
    r"""Replace the escapes `\n` and `\t`, which shells and YAML's single quotes leave as they are."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")
