"""Rows as read from a source, and the collection of all their problems in one message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualform.files import show_path
from dualform.tasks.labels import UnusableError
from dualform.tasks.options import NO_OPTIONS, TaskOptions
from dualform.tasks.prompts import Wording

Row = Mapping[str, Any]

_MOST_KINDS = 6
"""Maximum number of kinds of problems in a message."""
_MOST_PLACES = 6
"""Maximum number of rows named for each kind."""


class UnreadRow(dict[str, Any]):
    """An empty row in place of one that could not be read.

    Args:
        why: The problem.
    """

    def __init__(self, why: UnusableError) -> None:
        super().__init__()
        self.why = why


@dataclass(frozen=True)
class TableRows:
    """Rows of one file."""

    rows: Sequence[Row]
    lines: Sequence[int] | None = None
    """Line on which each row begins, counting from 1; None for a format without lines."""
    notes: tuple[str, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names by column, for columns of class indices, where the file declares them."""


@dataclass(frozen=True)
class RawTask:
    """The rows of a task as read from its source, before a prompt and label words are added."""

    name: str
    source: str
    """Where the rows come from, as text for reports."""
    rows: Mapping[str, Sequence[Row]] = field(repr=False)
    """Rows by split: `train`, `validation`, `test` or some of them."""
    files: Mapping[str, str]
    """Name of each split for messages: the path of its file."""
    columns: TaskOptions = NO_OPTIONS
    """Names of the source's columns; the defaults `text`, `label` and `choices` where None."""
    label_names: tuple[str, ...] | None = None
    """Names of integer labels; None to collect the values of the label column instead."""
    wording: Wording | None = None
    """Prompt and label words of a known task."""
    notes: tuple[str, ...] = ()
    lines: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    """Line on which each row begins, counting from 1, by split; only for formats with lines."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Class names by column, for columns of class indices, where the files declare them."""


class RowProblems:
    """Collects the problems of a task's rows."""

    def __init__(self, raw: RawTask) -> None:
        self._raw = raw
        self._problems: dict[tuple[str, str], list[tuple[int, UnusableError]]] = {}
        self._rows: set[tuple[str, int]] = set()

    def add(self, split: str, number: int, why: UnusableError) -> None:
        """Record that row `number` of `split`, counting from 0, cannot be used."""
        self._problems.setdefault((split, why.kind), []).append((number, why))
        self._rows.add((split, number))

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, split: str) -> int:
        """Number of unusable rows in `split`."""
        return sum(where == split for where, _ in self._rows)

    def message(self, remedy: str = "") -> str:
        """All problems and what to do about them, on one line, with the first few rows of each kind.

        Args:
            remedy: A last sentence.
        """
        total = sum(map(len, self._raw.rows.values()))
        begin = f"{len(self)} of {total} rows cannot be used: " if len(self) > 1 else ""
        remedies = dict.fromkeys(problems[0][1].remedy for problems in self._problems.values())
        return " ".join([f"{begin}{self.listing()}.", *list(remedies)[:_MOST_KINDS], remedy]).rstrip()

    def listing(self) -> str:
        """The problems and their rows, without what to do about them."""
        parts = []
        for (split, _), problems in list(self._problems.items())[:_MOST_KINDS]:
            first, *others = problems
            part = f"{show_path(self._raw.files[split])}, {self._place(split, [first[0]])}: {first[1].message}"
            parts.append(part + (f" (also {self._place(split, [n for n, _ in others])})" if others else ""))
        more = sum(len(problems) for problems in list(self._problems.values())[_MOST_KINDS:])
        return "; ".join(parts) + (f"; and {more} more" if more else "")

    def _place(self, split: str, numbers: Sequence[int]) -> str:
        lines = self._raw.lines.get(split)
        what = "row" if lines is None else "line"
        places = [str(number if lines is None else lines[number]) for number in numbers]
        listed = ", ".join(places[:_MOST_PLACES])
        if len(places) > _MOST_PLACES:
            listed += f" and {len(places) - _MOST_PLACES} more"
        return f"{what}{'s' if len(places) > 1 else ''} {listed}" + (" (counting from 0)" if lines is None else "")
