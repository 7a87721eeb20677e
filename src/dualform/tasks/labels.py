"""Read label columns, in the same way for every format: CSV, JSON, Parquet and hub data sets.

A label is a whole number or a name. A whole number may be written with decimals (`1.0`, as pandas writes a column with
gaps). Names are normalized to Unicode's composed form (NFC) and stripped of white space. A value that is not a label,
such as a fraction or a list, raises `UnusableError`. A missing label is `MISSING`, or `UNLABELLED` if the data set left
it out on purpose.
"""

import math
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from enum import Enum
from typing import Any

from dualform.errors import TaskError
from dualform.plain_text import plain


class MissingLabel(Enum):
    """A row without a label."""

    MISSING = "missing"
    """Unintentionally: an empty cell, or what other tools write for one."""
    UNLABELLED = "unlabelled"
    """Intentionally: `-` in SNLI, -1 on the hub."""


class UnusableError(TaskError):
    """A value that cannot be used.

    Args:
        kind: Identifies problems of the same kind, which are reported together.
        message: The problem, without its row.
        remedy: What to do, as a sentence.
    """

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.remedy = kind, message, remedy


MISSING_WORDS = frozenset(
    {"nan", "NaN", "NAN", "-nan", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#NA", "#N/A", "<NA>", "NaT"}
    | {"\\N", "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
    | {"#VALUE!", "#REF!", "#NAME?", "#NULL!", "#NUM!", "#DIV/0!"}
)
"""Texts that pandas, R, Excel and databases write for a missing value. `none` and `NONE` are not among them, because
stance data sets use them as a class."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_SIGNED = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)+", re.ASCII)
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "-infinity"})
# Byte-order mark, zero-width spaces and joiners, soft hyphen, direction marks: str.strip keeps them. Direction
# overrides and isolates are not included, because they change how the name is displayed.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u180e\u061c\u200e\u200f"
# Quotation and punctuation marks that may surround a name.
_AROUND = "'\"`\u2018\u2019\u201c\u201d.,;:"
_LONGEST_SHOWN = 60
# Nested values are abbreviated: a few lines of YAML can describe one whose full text would fill the memory.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3


def abbreviate(value: object) -> str:
    """A value for a message: on one line, and abbreviated if it is long."""
    text = plain(value if isinstance(value, str) else _digits(value) if isinstance(value, int) else _BRIEF.repr(value))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _digits(value: int) -> str:
    # Python refuses to convert integers with thousands of digits to text.
    return str(value) if value.bit_length() < 1000 else "a number of hundreds of digits"


def clean_text(text: str) -> str:
    """`text` in composed form (NFC), without white space or invisible characters at its ends."""
    before = None
    text = unicodedata.normalize("NFC", text)
    while text != before:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text


def read_label(value: Any, names: Iterable[str] = ()) -> str | MissingLabel:
    """The label in one cell of a label column, or `MissingLabel`.

    Args:
        value: Content of the cell.
        names: Texts that are names even if they look like a missing value or a fraction.

    Raises:
        UnusableError: The value is neither a whole number nor a name.
    """
    if value is None:
        return MissingLabel.MISSING
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 63:
            raise UnusableError("huge", f"label {abbreviate(value)} is too large for a class number", _NUMBERING)
        return str(value)
    if isinstance(value, float | Decimal):
        return MissingLabel.MISSING if math.isnan(value) else _whole(float(value), value)
    if isinstance(value, date | time):
        # The form in formats without dates.
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            message = f"label {abbreviate(value)} contains bytes that are not text"
            raise UnusableError("bytes", message, "Write names.") from None
    if not isinstance(value, str):
        return _raise_unusable(value)
    text = clean_text(value)
    if text in names:
        return text
    if not text or text in MISSING_WORDS:
        return MissingLabel.MISSING
    if (fault := text_fault(text)) is not None:
        raise UnusableError(fault, f"label {abbreviate(text)!r} contains {fault}", "Save the file as UTF-8.")
    # Other control characters are allowed: they are escaped wherever a label is printed.
    if len(text.splitlines()) > 1:
        raise UnusableError(
            "control",
            f"label {abbreviate(text)} contains a line break",
            "Write each label on one line, or name the label column with --label.",
        )
    if _looks_like_a_list(text):
        raise UnusableError(
            "list",
            f"label {abbreviate(text)} is a list, or contains several labels",
            _ONE_LABEL,
        )
    if _NUMBER.fullmatch(text) and not _WHOLE.fullmatch(text.removeprefix("+")):
        return _whole(float(text), text)
    if _SIGNED.fullmatch(text) and (len(text) > 20 or abs(int(text)) >= 2**63):
        raise UnusableError("huge", f"label {abbreviate(text)} is too large for a class number", _NUMBERING)
    if _WHOLE.fullmatch(text) and int(text) == 0 and text.startswith("-"):
        return text[1:]
    if _DECIMAL_COMMA.fullmatch(text):
        raise UnusableError(
            "fraction", f"label {abbreviate(text)} is not a whole number, or contains several labels", _BINNING
        )
    return text


_NUMBERING = "Use names, or numbers such as 0, 1, 2."
_BINNING = "Use whole numbers or names; divide ratings into classes first."
_ONE_LABEL = "Give each row one label; tasks with several labels per row are not supported."


def _whole(number: float, written: object) -> str:
    if math.isfinite(number) and number.is_integer() and abs(number) < 2**63:
        return str(int(number))
    raise UnusableError("fraction", f"label {abbreviate(str(written))} is not a whole number", _BINNING)


def _raise_unusable(value: Any) -> str:
    kind = "list" if isinstance(value, list | tuple) else "object" if isinstance(value, Mapping) else "other"
    what = {
        "list": "is neither a whole number nor a text but a list",
        "object": "is neither a whole number nor a text but an object with fields",
        "other": f"is neither a whole number nor a text but a {type(value).__name__}",
    }[kind]
    remedy = _ONE_LABEL if kind == "list" else "Use whole numbers or names."
    raise UnusableError(kind, f"label {abbreviate(value)} {what}", remedy)


def _looks_like_a_list(text: str) -> bool:
    """Whether a label is a list or a mapping written as text, such as `[0, 3]`, `['a' 'b']` or `{"a": 1}`."""
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return False
    inside = text[1:-1].strip()
    if re.fullmatch(r"[\d\s.,;+-]*", inside) or (inside[0] in "\"'" and inside[-1] in "\"'"):
        return True
    return text[0] != "(" and any(mark in inside for mark in ",:")


def text_fault(text: str) -> str | None:
    """Description of what in `text` cannot be encoded as UTF-8; None for a valid text."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair ({plain(text[error.start])}), which is not a character"
    return None


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a column."""

    names: tuple[str, ...]
    """The different labels in index order: whole numbers by size, names in alphabetical order."""
    spelled: Mapping[str, str]
    """Name of each label returned by `read_label`."""
    unlabelled: frozenset[str]
    """Values that mark rows without a label."""
    notes: tuple[str, ...]


def collect_labels(
    counts: Mapping[str, int], column: str, named: bool = False, hidden: Collection[str] = ()
) -> LabelColumn:
    """Determine the labels of a column. The order of `counts` does not matter.

    Args:
        counts: Number of rows of each label returned by `read_label`.
        column: Name of the column, for notes.
        named: Whether the labels are named elsewhere (by a data set's features or by label words), so that -1 and `-`
            mark missing labels only if they are not among those names.
        hidden: Values that make up whole splits, such as the -1 of a hidden test set.

    Raises:
        UnusableError: The column mixes whole numbers and infinity.
    """
    spelled = {label: label for label in counts}
    notes = []
    if len({label.lower() for label in counts} | {"true", "false"}) == 2:
        spelled = {label: label.capitalize() for label in counts}
        if len(set(spelled.values())) < len(counts):
            notes.append(f"Truth values of column {column!r} that differ only in case ({_listed(counts)}) are merged.")
    unlabelled = (
        frozenset() if named else frozenset({*hidden, *_missing_marks(set(counts) - set(hidden), column, notes)})
    )
    usable = set(counts) - unlabelled
    infinite = set() if named else {label for label in usable if label.lower() in _INFINITE}
    if infinite and len(infinite) < len(usable) and all(_WHOLE.fullmatch(label) for label in usable - infinite):
        label = min(infinite)
        raise UnusableError(
            "fraction",
            f"column {column!r} contains whole numbers, but {label!r} in {counts[label]} rows",
            _BINNING,
        )
    names = in_order({spelled[label] for label in counts if label not in unlabelled})
    rows_of: Counter[str] = Counter()
    for label, count in counts.items():
        rows_of[spelled[label]] += count
    notes += _similar_label_notes(names, rows_of, column)
    notes += _possible_mark_notes(names, rows_of, column)
    return LabelColumn(tuple(names), spelled, unlabelled, tuple(notes))


def _similar_label_notes(names: Sequence[str], rows_of: Mapping[str, int], column: str) -> list[str]:
    """Notes on labels that are probably spellings of the same label."""
    loosely: dict[str, list[str]] = {}
    for name in names:
        loosely.setdefault(_without_spelling(name), []).append(name)
    notes = []
    for group in loosely.values():
        if len(group) < 2:
            continue
        described = " and ".join(f"{name!r} ({rows_of[name]} rows)" for name in group)
        by_case = len({"".join(name.casefold().split()) for name in group}) == 1
        how = "case or spaces" if by_case else "spelling"
        notes.append(
            f"Labels {described} of column {column!r} differ only in {how} and count as different classes. If they are "
            "the same class, write them the same way."
        )
    truths = [name for name in names if name.lower() in ("true", "false")]
    numbers = [name for name in names if name in ("0", "1")]
    if truths and numbers:
        notes.append(
            f"Column {column!r} contains truth values ({_listed(truths)}) as well as {_listed(numbers)}, which count "
            "as different classes. If 1 means true, write them the same way."
        )
    return notes


def _without_spelling(name: str) -> str:
    """A label without case, width, white space, invisible characters, quotation marks and leading zeros."""
    folded = unicodedata.normalize("NFKC", name).casefold().replace("\u2212", "-")
    folded = "".join(character for character in folded if unicodedata.category(character) != "Cf")
    folded = folded.strip(_AROUND) or folded
    if _SIGNED.fullmatch(folded) and len(folded) < 20:
        return str(int(folded))
    return "".join(folded.split())


def _possible_mark_notes(names: Sequence[str], rows_of: Mapping[str, int], column: str) -> list[str]:
    """Notes on labels that often mark a missing value."""
    others = {int(name) for name in names if _WHOLE.fullmatch(name)}
    usual = {number for number in others if -10 <= number <= 100}
    marks = {"?", "??"} & set(names) if len(names) > 2 else set()
    if len(others) == len(names) and len(usual) > 1:
        marks |= {name for name in names if int(name) in (-99, -999, -9999, 999, 9999) and int(name) not in usual}
    return [
        f"Label {mark!r} ({rows_of[mark]} rows) of column {column!r} counts as a class. If it marks rows without a "
        "label, remove them."
        for mark in sorted(marks)
    ]


def _missing_marks(labels: set[str], column: str, notes: list[str]) -> set[str]:
    """Values that mark a missing label, judged by the other values of the column."""
    others = labels - {"-"}
    marks = {"-"} if "-" in labels and len(others) >= 2 and "+" not in others else set()
    others = labels - marks - {"-1"}
    if "-1" not in labels or not all(label.isdecimal() and label.isascii() for label in others):
        return marks
    numbers = {int(label) for label in others}
    if numbers <= {0, 1}:
        if numbers == {0, 1}:
            notes.append(
                f"Column {column!r} contains -1, 0 and 1, which are read as three classes. If -1 marks rows without a "
                "label, remove them."
            )
        return marks
    return marks | {"-1"}


def in_order(labels: Iterable[str]) -> list[str]:
    """Sorted labels: by size if all are whole numbers, otherwise alphabetically."""
    labels = list(labels)
    if all(_WHOLE.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def find_name(written: str, names: Sequence[str]) -> str | None:
    """The label in `names` that matches `written`, ignoring spaces, the form `1.0` and the case of true and false."""
    if written in names:
        return written
    try:
        label = read_label(written, names)
    except UnusableError:
        return None
    if isinstance(label, MissingLabel):
        return None
    if label not in names and label.lower() in ("true", "false"):
        label = label.capitalize()
    return label if label in names else None


def _listed(values: Iterable[str]) -> str:
    return ", ".join(sorted(map(abbreviate, values)))
