"""Rows as a reader found them, and how what is wrong with them is reported: all of it in one message."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualform.files import show_path
from dualform.tasks.labels import UnusableError
from dualform.tasks.options import NO_OPTIONS, TaskOptions
from dualform.tasks.prompts import Wording

Row = Mapping[str, Any]

_MOST_KINDS = 6
"""Kinds of problems that a message lists."""
_MOST_PLACES = 6
"""Rows that it names for each kind."""


class UnreadRow(dict[str, Any]):
    """An empty row in place of one that the reader could not read.

    Args:
        why: What is wrong with it.
    """

    def __init__(self, why: UnusableError) -> None:
        super().__init__()
        self.why = why


@dataclass(frozen=True)
class TableRows:
    """Rows of one file."""

    rows: Sequence[Row]
    lines: Sequence[int] | None = None
    """Line on which each row begins, as an editor counts them, from 1; None for a format without lines."""
    notes: tuple[str, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> names of its numbers, where the file says so."""


@dataclass(frozen=True)
class RawTask:
    """Rows as a reader found them, before prompt and label words."""

    name: str
    source: str
    """Where they come from, for people."""
    rows: Mapping[str, Sequence[Row]] = field(repr=False)
    """Rows of each split: `train`, `validation`, `test` or some of them."""
    files: Mapping[str, str]
    """What messages call each split: its file's path."""
    columns: TaskOptions = NO_OPTIONS
    """Columns that the source is known to use; `text`, `label` and `choices` where None."""
    label_names: tuple[str, ...] | None = None
    """Names of integer labels; None when the values of the label column are to be collected."""
    wording: Wording | None = None
    """Prompt and label words of a task that dualform knows."""
    notes: tuple[str, ...] = ()
    lines: Mapping[str, Sequence[int]] = field(default_factory=dict, repr=False)
    """Split -> line on which each of its rows begins, counting from 1; for splits whose files have lines."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Column -> names of its numbers, where a file's schema says so."""


class RowProblems:
    """Gathers what is wrong with the rows of a task."""

    def __init__(self, raw: RawTask) -> None:
        self._raw = raw
        self._found: dict[tuple[str, str], list[tuple[int, UnusableError]]] = {}
        self._rows: set[tuple[str, int]] = set()

    def add(self, split: str, number: int, why: UnusableError) -> None:
        """Note that row `number` of `split`, counting from 0, cannot be used."""
        self._found.setdefault((split, why.kind), []).append((number, why))
        self._rows.add((split, number))

    def __len__(self) -> int:
        return len(self._rows)

    def count(self, split: str) -> int:
        """How many rows of `split` cannot be used."""
        return sum(where == split for where, _ in self._rows)

    def message(self, remedy: str = "") -> str:
        """All problems as one line, the first few of each kind with their places.

        Args:
            remedy: What else can be done; ends the message.
        """
        total = sum(map(len, self._raw.rows.values()))
        begin = f"{len(self)} of {total} rows cannot be used: " if len(self) > 1 else ""
        remedies = dict.fromkeys(found[0][1].remedy for found in self._found.values())
        return " ".join([f"{begin}{self.listing()}.", *list(remedies)[:_MOST_KINDS], remedy]).rstrip()

    def listing(self) -> str:
        """The problems with their places, without remedies."""
        parts = []
        for (split, _), found in list(self._found.items())[:_MOST_KINDS]:
            first, *others = found
            part = f"{show_path(self._raw.files[split])}, {self._place(split, [first[0]])}: {first[1].message}"
            parts.append(part + (f" (likewise {self._place(split, [n for n, _ in others])})" if others else ""))
        more = sum(len(found) for found in list(self._found.values())[_MOST_KINDS:])
        return "; ".join(parts) + (f"; and {more} more" if more else "")

    def _place(self, split: str, numbers: Sequence[int]) -> str:
        lines = self._raw.lines.get(split)
        what = "row" if lines is None else "line"
        places = [str(number if lines is None else lines[number]) for number in numbers]
        listed = ", ".join(places[:_MOST_PLACES])
        if len(places) > _MOST_PLACES:
            listed += f" and {len(places) - _MOST_PLACES} more"
        return f"{what}{'s' if len(places) > 1 else ''} {listed}" + (" (counting from 0)" if lines is None else "")
