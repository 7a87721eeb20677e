"""What a user may say about a task beyond its name: columns, prompt, label words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from dualform.errors import LabelWordError
from dualform.plain_text import plain
from dualform.tasks.labels import clean_text, find_name, shown

END_OF_SEQUENCE = "eos"
"""The separator that stands for the model's end-of-sequence token."""

LabelWords = str | Sequence[str] | Mapping[str, str]
_MOST_LISTED = 20


@dataclass(frozen=True)
class TaskOptions:
    """Settings that override what a source says; None leaves it as it is."""

    text: str | None = None
    """Column with the text, which a prompt may also call `{text}`."""
    label: str | None = None
    """Column with the label."""
    prompt: str | None = None
    label_words: LabelWords | None = None
    """Words in label order, a mapping from label value to word, `value=word` strings, or one comma-separated text."""
    separator: str | None = None
    """Text between demonstrations; `eos` is the model's end-of-sequence token."""
    choices: str | None = None
    """Column with each row's list of choices, or several columns joined by commas, one a choice."""
    skip_bad_rows: bool | None = None
    """Leave out rows that cannot be used, and count them in a note, instead of refusing the table."""
    truncate: bool | None = None
    """Cut texts that are too long to be read at all."""
    paper_rows: bool | None = None
    """Of a known task, the rows that the paper's released code reads, where the source has them."""

    def over(self, other: "TaskOptions") -> "TaskOptions":
        """These settings, completed by `other`'s where they are None."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        return TaskOptions(**{k: getattr(other, k) if value is None else value for k, value in mine.items()})


NO_OPTIONS = TaskOptions()
"""Everything as the source says."""


def listed(values: Sequence[str]) -> str:
    """Names for a message, the first twenty of many."""
    names = ", ".join(shown(value) for value in values[:_MOST_LISTED])
    return names + (f" and {len(values) - _MOST_LISTED} more" if len(values) > _MOST_LISTED else "")


def values_named(given: LabelWords | None) -> set[str]:
    """Label values that label words name: what stands before `=`, or a mapping's keys."""
    if isinstance(given, Mapping):
        return {clean_text(str(value)) for value in given}
    items = [] if given is None else [item for item in _items(given) if isinstance(item, str)]
    return {clean_text(item[:place]) for item in items for place, mark in enumerate(item) if mark == "="}


def words_in_order(given: LabelWords, label_names: Sequence[str], task: str) -> tuple[str, ...]:
    """One label word for each label, spaces around it removed.

    Args:
        given: As in `TaskOptions.label_words`. Text such as `0=bad` gives a label's word only where `0` is a label and
            every item names one.
        label_names: The label values in index order.
        task: Name for messages.

    Returns:
        The words in index order.

    Raises:
        LabelWordError: A value is unknown, has no word or has two, only some items name a value, or the number of
            words is not that of the labels.
    """
    known = f"the labels of task {task!r} are {listed(label_names)}"
    words: Sequence[str]
    _require_texts(given)
    if isinstance(given, Mapping):
        words = _by_value([(str(value), word) for value, word in given.items()], label_names, known)
    else:
        words = _items(given)
        pairs = [_pair(item, label_names) for item in words]
        if any(pairs) and not all(pairs):
            named = next(item for item, pair in zip(words, pairs, strict=True) if pair)
            other = next(item for item, pair in zip(words, pairs, strict=True) if not pair)
            raise LabelWordError(
                f"label word {plain(named)!r} names a label and {plain(other)!r} does not; {known}. Give all as "
                "value=word, or only words."
            )
        if all(pairs) and words:
            words = _by_value([pair for pair in pairs if pair], label_names, known)
        elif any("=" in item for item in words):
            unknown = next(item for item in words if "=" in item)
            value, _, word = unknown.partition("=")
            raise LabelWordError(
                f"label word {plain(word.strip())!r} is for {plain(value.strip())!r}, but {known}. Use those values; a "
                "word that holds = needs its value before it, as value=word."
            )
    if len(words) != len(label_names):
        raise LabelWordError(
            f"{len(words)} label words ({listed(words)}) for {len(label_names)} labels; {known}. Give one word a "
            "label, in this order or as value=word."
        )
    return tuple(clean_text(word) for word in words)


def _require_texts(given: LabelWords) -> None:
    """Raise `LabelWordError` for words from Python that are no texts."""
    for word in given.values() if isinstance(given, Mapping) else [given] if isinstance(given, str) else given:
        if not isinstance(word, str):
            raise LabelWordError(f"label word {shown(word)} is {type(word).__name__}, not text. Put it in quotes.")


def _items(given: str | Sequence[str]) -> list[str]:
    return given.split(",") if isinstance(given, str) else list(given)


def _pair(item: str, label_names: Sequence[str]) -> tuple[str, str] | None:
    """(label, word) where `item` is `label=word`; the longest label where a label holds `=` itself."""
    for place in reversed([place for place, mark in enumerate(item) if mark == "="]):
        name = find_name(clean_text(item[:place]), label_names)
        if name is not None:
            return name, item[place + 1 :]
    return None


def _by_value(pairs: Sequence[tuple[str, str]], label_names: Sequence[str], known: str) -> list[str]:
    words: dict[str, str] = {}
    for value, word in pairs:
        name = find_name(clean_text(value), label_names)
        if name is None:
            raise LabelWordError(f"label word {plain(word)!r} is for {plain(value)!r}, but {known}. Use those values.")
        if name in words:
            raise LabelWordError(
                f"label {plain(name)!r} has two label words, {plain(words[name])!r} and {plain(word)!r}. Give it one."
            )
        words[name] = word
    for name in label_names:
        if name not in words:
            raise LabelWordError(f"label {plain(name)!r} has no label word; {known}. Give each a word.")
    return [words[name] for name in label_names]


def unescape(text: str | None) -> str | None:
    r"""Line breaks and tabs written as `\n` and `\t`, which is how shells and YAML's single quotes keep them."""
    return None if text is None else text.replace("\\n", "\n").replace("\\t", "\t")
