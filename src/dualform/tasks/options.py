"""What a user may say about a task beyond its name: columns, prompt, label words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from dualform.errors import LabelWordError

END_OF_SEQUENCE = "eos"
"""The separator that stands for the model's end-of-sequence token."""

LabelWords = str | Sequence[str] | Mapping[str, str]


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

    def over(self, other: "TaskOptions") -> "TaskOptions":
        """These settings, completed by `other`'s where they are None."""
        mine = {field.name: getattr(self, field.name) for field in fields(self)}
        return TaskOptions(**{k: getattr(other, k) if value is None else value for k, value in mine.items()})


NO_OPTIONS = TaskOptions()
"""Everything as the source says."""


def words_in_order(given: LabelWords, label_names: Sequence[str], task: str) -> tuple[str, ...]:
    """One label word for each label, spaces around it removed.

    Args:
        given: As in `TaskOptions.label_words`.
        label_names: The label values in index order.
        task: Name for messages.

    Returns:
        The words in index order.

    Raises:
        LabelWordError: A value is unknown or has no word, or the number of words is not that of the labels.
    """
    words = given.split(",") if isinstance(given, str) else given
    if not isinstance(words, Mapping) and words and all("=" in word for word in words):
        pairs = [word.rsplit("=", 1) for word in words]
        words = {value.strip(): word for value, word in pairs}
    known = f"the labels of task {task!r} are {', '.join(label_names)}"
    if isinstance(words, Mapping):
        for value in words:
            if value not in label_names:
                raise LabelWordError(f"label word {words[value]!r} is for {value!r}, but {known}. Use those values.")
        for value in label_names:
            if value not in words:
                raise LabelWordError(f"label {value!r} has no label word; {known}. Give each a word.")
        words = [words[value] for value in label_names]
    if len(words) != len(label_names):
        raise LabelWordError(
            f"{len(words)} label words ({', '.join(words)}) for {len(label_names)} labels; {known}. Give one word a "
            "label, in this order or as value=word."
        )
    return tuple(word.strip() for word in words)
