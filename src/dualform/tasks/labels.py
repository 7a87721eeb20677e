"""Labels as tables have them, read the same way whatever the format: CSV, JSON, Parquet, a hub data set.

A label is whole numbers or a name. Numbers written with decimals (`1.0`, as pandas writes a column with gaps) are whole
numbers; names are in Unicode's composed form (NFC) without white space around them. What is no label (a fraction, a
list) raises `UnusableError`; what says that there is none is `MISSING`, and `UNLABELLED` where a data set says so on
purpose.
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
    """By accident: an empty cell, or what other tools write for one."""
    UNLABELLED = "unlabelled"
    """On purpose: `-` in SNLI, -1 on the hub."""


class UnusableError(TaskError):
    """A value that cannot be used.

    Args:
        kind: Equal for values that are wrong in the same way.
        message: What is wrong, without the place.
        remedy: A sentence.
    """

    def __init__(self, kind: str, message: str, remedy: str) -> None:
        super().__init__(message)
        self.kind, self.message, self.remedy = kind, message, remedy


MISSING_WORDS = frozenset(
    {"nan", "NaN", "NAN", "-nan", "-NaN", "None", "null", "NULL", "NA", "N/A", "n/a", "#NA", "#N/A", "<NA>", "NaT"}
    | {"\\N", "#N/A N/A", "1.#IND", "-1.#IND", "1.#QNAN", "-1.#QNAN"}
    | {"#VALUE!", "#REF!", "#NAME?", "#NULL!", "#NUM!", "#DIV/0!"}
)
"""Texts that pandas, R, Excel and databases write for a missing value. `none` and `NONE` are names: stance data use
them for a class."""

_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_WHOLE = re.compile(r"-?\d+", re.ASCII)
_SIGNED = re.compile(r"[+-]?\d+", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+(,\d+)+", re.ASCII)
_BRACKETS = {"[": "]", "{": "}", "(": ")"}
_INFINITE = frozenset({"inf", "+inf", "-inf", "infinity", "-infinity"})
# A byte-order mark, zero-width spaces and joiners, a soft hyphen, marks of direction: str.strip keeps them.
# Overrides and isolates of direction are not among them: they change how the name itself is shown.
_INVISIBLE = "\ufeff\u200b\u200c\u200d\u2060\u00ad\u180e\u061c\u200e\u200f"
# What stands around a name where a program or a person quoted it, or ended a sentence with it.
_AROUND = "'\"`\u2018\u2019\u201c\u201d.,;:"
_LONGEST_SHOWN = 60
# Of a value that holds others only the beginning: YAML can make one of a few lines that would fill the memory as text.
_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 3


def shown(value: object) -> str:
    """A value for a message: on one line, cut where it is long."""
    text = plain(value if isinstance(value, str) else _digits(value) if isinstance(value, int) else _BRIEF.repr(value))
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 3] + "..."


def _digits(value: int) -> str:
    # Python refuses to write out integers of thousands of digits.
    return str(value) if value.bit_length() < 1000 else "a number of hundreds of digits"


def clean_text(text: str) -> str:
    """`text` in composed form, without white space or invisible marks at its ends."""
    before = None
    text = unicodedata.normalize("NFC", text)
    while text != before:
        before, text = text, text.strip().strip(_INVISIBLE)
    return text


def read_label(value: Any, names: Iterable[str] = ()) -> str | MissingLabel:
    """One cell of a label column as a label.

    Args:
        value: What a reader found.
        names: Texts that are names even where they look like a missing value or a fraction.

    Returns:
        The label's text, or why there is none.

    Raises:
        UnusableError: It is neither a whole number nor a name.
    """
    if value is None:
        return MissingLabel.MISSING
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 63:
            raise UnusableError("huge", f"label {shown(value)} is too large for a class number", _NUMBERING)
        return str(value)
    if isinstance(value, float | Decimal):
        return MissingLabel.MISSING if math.isnan(value) else _whole(float(value), value)
    if isinstance(value, date | time):
        # As formats write it that have no dates of their own.
        return value.isoformat()
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError:
            raise UnusableError("bytes", f"label {shown(value)} holds bytes that are no text", "Write names.") from None
    if not isinstance(value, str):
        return _refuse(value)
    text = clean_text(value)
    if text in names:
        return text
    if not text or text in MISSING_WORDS:
        return MissingLabel.MISSING
    if (fault := text_fault(text)) is not None:
        raise UnusableError(fault, f"label {shown(text)!r} holds {fault}", "Save the file as UTF-8.")
    # Other control characters are shown for what they are wherever a label is printed.
    if len(text.splitlines()) > 1:
        raise UnusableError(
            "control",
            f"label {shown(text)} holds a line break",
            "Write a label on one line; or name the label column with --label.",
        )
    if _looks_like_a_list(text):
        raise UnusableError(
            "list",
            f"label {shown(text)} is a list, or holds several labels",
            "Give each row one label: a task with several labels a row is not a classification.",
        )
    if _NUMBER.fullmatch(text) and not _WHOLE.fullmatch(text.removeprefix("+")):
        return _whole(float(text), text)
    if _SIGNED.fullmatch(text) and (len(text) > 20 or abs(int(text)) >= 2**63):
        raise UnusableError("huge", f"label {shown(text)} is too large for a class number", _NUMBERING)
    if _WHOLE.fullmatch(text) and int(text) == 0 and text.startswith("-"):
        return text[1:]
    if _DECIMAL_COMMA.fullmatch(text):
        raise UnusableError(
            "fraction", f"label {shown(text)} is a number between classes, or holds several labels", _BINNING
        )
    return text


_NUMBERING = "Use names or 0, 1, 2."
_BINNING = "Use whole numbers or names; divide ratings into classes first."


def _whole(number: float, written: object) -> str:
    if math.isfinite(number) and number.is_integer() and abs(number) < 2**63:
        return str(int(number))
    raise UnusableError("fraction", f"label {shown(str(written))} is a number between classes", _BINNING)


def _refuse(value: Any) -> str:
    kind = "list" if isinstance(value, list | tuple) else "object" if isinstance(value, Mapping) else "other"
    what = {
        "list": "is neither a whole number nor a text but a list",
        "object": "is neither a whole number nor a text but an object with fields",
        "other": f"is neither a whole number nor a text but a {type(value).__name__}",
    }[kind]
    remedies = {"list": "Give each row one label: a task with several labels a row is not a classification."}
    raise UnusableError(kind, f"label {shown(value)} {what}", remedies.get(kind, "Use whole numbers or names."))


def _looks_like_a_list(text: str) -> bool:
    """Whether a label is a list or a mapping written as text, such as `[0, 3]`, `['a' 'b']` or `{"a": 1}`."""
    if len(text) < 2 or _BRACKETS.get(text[0]) != text[-1]:
        return False
    inside = text[1:-1].strip()
    if re.fullmatch(r"[\d\s.,;+-]*", inside) or (inside[0] in "\"'" and inside[-1] in "\"'"):
        return True
    return text[0] != "(" and any(mark in inside for mark in ",:")


def text_fault(text: str) -> str | None:
    """What keeps `text` from being put to a model, in words; None where nothing does."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"half of a surrogate pair ({plain(text[error.start])}), which is no character"
    return None


@dataclass(frozen=True)
class LabelColumn:
    """The labels of a column, once all of its rows are known."""

    names: tuple[str, ...]
    """Different labels in the order of their numbers: whole numbers by size, names by their characters."""
    spelled: Mapping[str, str]
    """Label as `read_label` gives it -> its name."""
    unlabelled: frozenset[str]
    """Labels that mark rows without one."""
    notes: tuple[str, ...]


def collect_labels(
    counts: Mapping[str, int], column: str, named: bool = False, hidden: Collection[str] = ()
) -> LabelColumn:
    """Decide which labels a column has.

    Args:
        counts: Labels as `read_label` gives them -> in how many rows.
        column: Its name, for notes.
        named: Somebody names the labels (a data set's features, label words for each value), so that -1 and `-` are
            looked for there and nowhere else.
        hidden: Labels that stand only in splits without any other, such as the -1 of a hidden test set.

    Returns:
        The same whatever the order of `counts`.

    Raises:
        UnusableError: Infinity among whole numbers.
    """
    spelled = {label: label for label in counts}
    notes = []
    if len({label.lower() for label in counts} | {"true", "false"}) == 2:
        spelled = {label: label.capitalize() for label in counts}
        if len(set(spelled.values())) < len(counts):
            notes.append(f"Truth values of column {column!r} differ in case only ({_listed(counts)}): read as one.")
    unlabelled = frozenset() if named else frozenset({*hidden, *_marks(set(counts) - set(hidden), column, notes)})
    usable = set(counts) - unlabelled
    infinite = set() if named else {label for label in usable if label.lower() in _INFINITE}
    if infinite and len(infinite) < len(usable) and all(_WHOLE.fullmatch(label) for label in usable - infinite):
        label = min(infinite)
        raise UnusableError(
            "fraction",
            f"column {column!r} holds {label!r} in {counts[label]} rows next to whole numbers, which is none of them",
            _BINNING,
        )
    names = in_order({spelled[label] for label in counts if label not in unlabelled})
    rows_of: Counter[str] = Counter()
    for label, count in counts.items():
        rows_of[spelled[label]] += count
    notes += _about_alike(names, rows_of, column)
    notes += _about_marks(names, rows_of, column)
    return LabelColumn(tuple(names), spelled, unlabelled, tuple(notes))


def _about_alike(names: Sequence[str], rows_of: Mapping[str, int], column: str) -> list[str]:
    """Notes on labels that are probably one, written in several ways."""
    loosely: dict[str, list[str]] = {}
    for name in names:
        loosely.setdefault(_without_spelling(name), []).append(name)
    notes = []
    for group in loosely.values():
        if len(group) < 2:
            continue
        described = " and ".join(f"{name!r} ({rows_of[name]} rows)" for name in group)
        by_case = len({"".join(name.casefold().split()) for name in group}) == 1
        how = "case or spaces" if by_case else "how they are written"
        notes.append(
            f"Labels {described} of column {column!r} differ only in {how}, and count as different classes. Write them "
            "alike if they are one."
        )
    truths = [name for name in names if name.lower() in ("true", "false")]
    numbers = [name for name in names if name in ("0", "1")]
    if truths and numbers:
        notes.append(
            f"Column {column!r} holds truth values ({_listed(truths)}) next to {_listed(numbers)}, which count as "
            "different classes. Write them alike if 1 means true."
        )
    return notes


def _without_spelling(name: str) -> str:
    """A label without case, width, white space, invisible characters, quotation marks and leading zeros."""
    folded = unicodedata.normalize("NFKC", name).casefold().replace("\u2212", "-")
    folded = "".join(one for one in folded if unicodedata.category(one) != "Cf")
    folded = folded.strip(_AROUND) or folded
    if _SIGNED.fullmatch(folded) and len(folded) < 20:
        return str(int(folded))
    return "".join(folded.split())


def _about_marks(names: Sequence[str], rows_of: Mapping[str, int], column: str) -> list[str]:
    """Notes on labels that often mark a missing value, but need not."""
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


def _marks(labels: set[str], column: str, notes: list[str]) -> set[str]:
    """Labels that stand for a missing one, by what the others are."""
    others = labels - {"-"}
    marks = {"-"} if "-" in labels and len(others) >= 2 and "+" not in others else set()
    others = labels - marks - {"-1"}
    if "-1" not in labels or not all(label.isdecimal() and label.isascii() for label in others):
        return marks
    numbers = {int(label) for label in others}
    if numbers <= {0, 1}:
        if numbers == {0, 1}:
            notes.append(
                f"Column {column!r} holds -1, 0 and 1: read as three classes. If -1 marks rows without a label, remove "
                "them."
            )
        return marks
    return marks | {"-1"}


def in_order(labels: Iterable[str]) -> list[str]:
    """Labels in the order of their numbers: whole numbers by size if all are, else by their characters."""
    labels = list(labels)
    if all(_WHOLE.fullmatch(label) for label in labels):
        return sorted(labels, key=lambda label: (int(label), label))
    return sorted(labels)


def find_name(written: str, names: Sequence[str]) -> str | None:
    """The label among `names` that somebody means by `written`: spaces, `1.0` and the case of true and false aside."""
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
    return ", ".join(sorted(map(shown, values)))
