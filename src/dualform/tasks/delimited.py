r"""Read CSV and TSV files, detecting the delimiter and the quoting style.

Excel separates cells by semicolons in locales with decimal commas. GLUE's TSV files do not use quoting, so a quotation
mark at the start of a cell is part of the text. MySQL writes `\"` where other programs write `""`. Reading a file in
the wrong style loses rows without an error, so every style is tried and the one that loses the fewest lines is used.
"""

import csv
import io
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from dualform.errors import TaskError
from dualform.files import show_path
from dualform.tasks.labels import UnusableError, abbreviate, clean_text
from dualform.tasks.raw import Row, TableRows, UnreadRow

DELIMITERS = (",", "\t", ";", "|")
_SAMPLE_LINES = 200
_SAMPLE_CHARACTERS = 1 << 20
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}


@dataclass(frozen=True)
class _Style:
    """A quoting style."""

    name: str
    quoting: bool
    escape: str | None = None
    spaced: bool = False


_DOUBLED = _Style("doubled", quoting=True)
_SPACED = _Style("spaced", quoting=True, spaced=True)
_BACKSLASH = _Style("backslash", quoting=True, escape="\\")
_PLAIN = _Style("plain", quoting=False)


@dataclass
class _Record:
    line: int
    """Line on which the record begins, counting from 1."""
    n_lines: int
    cells: list[str]
    fault: str | None = None
    """The parser's error message; None if the record was parsed."""


def read_delimited(text: str, path: Path) -> TableRows:
    """Rows, with their line numbers, of a table whose first line names the columns. Every cell is a text.

    Args:
        text: Content of the file.
        path: The file, for messages and its usual delimiter: a tab for `.tsv`, otherwise a comma.

    Returns:
        The rows; one with too many or too few cells is an `UnreadRow`.

    Raises:
        TaskError: The file is empty, has no column names, or names a column twice.
    """
    notes: list[str] = []
    first_line, text, delimiter = _excel_hint(text)
    usual = "\t" if ".tsv" in path.name.lower() or path.suffix.lower() == ".tab" else ","
    delimiter = delimiter or _find_delimiter(text, usual)
    if delimiter != usual:
        notes.append(f"The columns of {show_path(path)} are separated by {_NAMES.get(delimiter, repr(delimiter))}.")
    with _long_cells(len(text)):
        style, records = _best_reading(text, delimiter, usual)
    if style is _PLAIN and '"' in text:
        notes.append(
            f"Quotation marks in {show_path(path)} are read as ordinary characters: as quoting they would merge "
            "several rows into one."
        )
    if not records:
        raise TaskError(f"{show_path(path)} is empty. Write a line of column names, then one row on each line.")
    header, *rest = records
    names = [clean_text(name) for name in header.cells]
    if len(names) == 1 and (other := _unusual_delimiter(names[0], rest)) is not None:
        raise TaskError(
            f"the columns of {show_path(path)} are separated by {other!r}; supported are "
            f"{', '.join(_NAMES.values())}. Save the file with one of them."
        )
    names = _with_row_names(names, rest, path, notes)
    kept = [place for place, name in enumerate(names) if name]
    _check_names([names[place] for place in kept], path)
    if len(kept) < len(names):
        notes.append(_unnamed_column_note(names, rest, path))
    rows: list[Row] = []
    repeated = [clean_text(cell) for cell in header.cells] if len(kept) > 1 else None
    for record in rest:
        why = _problem(record, len(names), delimiter)
        if why is None and repeated == [clean_text(cell) for cell in record.cells]:
            why = UnusableError(
                "header",
                "the column names are repeated here",
                "When joining files, keep the line of column names of the first one only.",
            )
        rows.append({names[place]: record.cells[place] for place in kept} if why is None else UnreadRow(why))
    return TableRows(rows, [record.line + first_line for record in rest], tuple(notes))


def _excel_hint(text: str) -> tuple[int, str, str | None]:
    """(number of lines before the table, the table, its delimiter), using Excel's first line `sep=;` if present."""
    line, newline, rest = text.partition("\n")
    hint = line.strip().strip('"')
    if newline and len(hint) == 5 and hint.lower().startswith("sep="):
        return 1, rest, hint[4]
    if newline and line.lower().startswith("sep=\t"):
        return 1, rest, "\t"
    return 0, text, None


def _find_delimiter(text: str, usual: str) -> str:
    """The delimiter for which most lines have as many cells as the first."""
    lines = [line for line in io.StringIO(text[:_SAMPLE_CHARACTERS], newline="") if line.strip()][:_SAMPLE_LINES]
    best, best_score = usual, (0.0, False, 0)
    with _long_cells(_SAMPLE_CHARACTERS):
        for delimiter in DELIMITERS:
            counts = [len(cells) for cells in csv.reader(lines, delimiter=delimiter)]
            if not counts or counts[0] < 2:
                continue
            agree = sum(count == counts[0] for count in counts) / len(counts)
            score = (round(agree, 1), delimiter == usual, counts[0])
            if score > best_score:
                best, best_score = delimiter, score
    return best


def _best_reading(text: str, delimiter: str, usual: str) -> tuple[_Style, list[_Record]]:
    """The style that loses the fewest lines, and its records."""
    if '"' not in text:
        return _PLAIN, _parse(text, delimiter, _PLAIN)
    doubled, plain = _parse(text, delimiter, _DOUBLED), _parse(text, delimiter, _PLAIN)
    lost, lost_plain = _lost_lines(doubled), _lost_lines(plain)
    if lost == 0:
        swallowed = any(record.n_lines > 1 for record in doubled)
        # If every line would be a whole row without quoting, a cell with line breaks is several merged rows.
        if lost_plain == 0 and (swallowed or (usual == "\t" and not _is_quoted(text, delimiter))):
            return _PLAIN, plain
        return _DOUBLED, doubled
    tried = [(lost, _DOUBLED, doubled)]
    if '\\"' in text:
        backslash = _parse(text, delimiter, _BACKSLASH)
        tried.append((_lost_lines(backslash), _BACKSLASH, backslash))
    if f'{delimiter} "' in text:
        spaced = _parse(text, delimiter, _SPACED)
        tried.append((_lost_lines(spaced), _SPACED, spaced))
    tried.append((lost_plain, _PLAIN, plain))
    _, style, records = min(tried, key=lambda attempt: attempt[0])
    return style, records


def _parse(text: str, delimiter: str, style: _Style) -> list[_Record]:
    # newline="" preserves line breaks within cells and lets a lone \r end a line.
    reader = csv.reader(
        io.StringIO(text, newline=""),
        delimiter=delimiter,
        quoting=csv.QUOTE_MINIMAL if style.quoting else csv.QUOTE_NONE,
        escapechar=style.escape,
        skipinitialspace=style.spaced,
        strict=style.quoting,
    )
    records: list[_Record] = []
    while True:
        line = reader.line_num + 1
        fault = None
        try:
            cells = next(reader)
        except StopIteration:
            return records
        except csv.Error as error:
            cells, fault = [], str(error)
        if fault is not None or any(cell.strip() for cell in cells):
            records.append(_Record(line, max(1, reader.line_num - line + 1), cells, fault))


def _lost_lines(records: Sequence[_Record]) -> int:
    """Number of lines in records that do not have as many cells as the first."""
    n = len(records[0].cells) if records else 0
    return sum(record.n_lines for record in records if record.fault is not None or not _fits(record.cells, n))


def _fits(cells: Sequence[str], n: int) -> bool:
    return len(cells) == n or (len(cells) > n and not any(cell.strip() for cell in cells[n:]))


def _is_quoted(text: str, delimiter: str) -> bool:
    """Whether quotation marks enclose cells.

    Programs quote the cells that need it (with a comma or a doubled quotation mark), or all cells of a column.
    """
    rows = [line.rstrip("\r\n").split(delimiter) for line in io.StringIO(text[:_SAMPLE_CHARACTERS], newline="")]
    enclosed = [[len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in row] for row in rows if any(row)]
    for row, marks in zip((row for row in rows if any(row)), enclosed, strict=True):
        for cell, mark in zip(row, marks, strict=True):
            if mark and ('""' in cell[1:-1] or "," in cell):
                return True
    width = len(enclosed[0]) if enclosed else 0
    return any(all(len(marks) > place and marks[place] for marks in enclosed[1:]) for place in range(width))


def _unusual_delimiter(header: str, rest: Sequence[_Record]) -> str | None:
    """A common separator outside `DELIMITERS` that occurs equally often in every line; None if there is none."""
    lines = [record.cells[0] for record in rest[:_SAMPLE_LINES] if len(record.cells) == 1]
    if len(lines) < len(rest[:_SAMPLE_LINES]) or not lines:
        return None
    for mark in ("::", "^", "~", "\x01", "\x1f", ":", "    ", "  "):
        count = header.count(mark)
        if count and all(line.count(mark) == count for line in lines):
            return mark
    return None


def _with_row_names(names: list[str], rest: Sequence[_Record], path: Path, notes: list[str]) -> list[str]:
    """Add an empty name for the column of row names, which R writes without a heading."""
    widths = Counter(len(record.cells) for record in rest)
    different = len({record.cells[0] for record in rest if record.cells}) == len(rest)
    if different and set(widths) == {len(names) + 1} and all(record.cells[-1].strip() for record in rest):
        notes.append(
            f"The first line of {show_path(path)} names one column fewer than its rows have: the first column is "
            "assumed to hold row names and left out."
        )
        return ["", *names]
    return names


def _check_names(names: Sequence[str], path: Path) -> None:
    if not names:
        raise TaskError(f"{show_path(path)} has no column names in its first line. Name the columns there.")
    for name, count in Counter(names).items():
        if count > 1:
            raise TaskError(
                f"{show_path(path)} has {count} columns named {abbreviate(name)!r}. Give each column a different name."
            )


def _unnamed_column_note(names: Sequence[str], rest: Sequence[_Record], path: Path) -> str:
    unnamed = [place for place, name in enumerate(names) if not name]
    filled = sum(any(place < len(record.cells) and record.cells[place].strip() for place in unnamed) for record in rest)
    what, verb, them = ("Column", "is", "it") if len(unnamed) == 1 else (f"{len(unnamed)} columns", "are", "them")
    held = f"; {filled} of {len(rest)} rows have a value in {them}" if filled else ""
    return f"{what} of {show_path(path)} without a name {verb} left out{held}."


def _problem(record: _Record, n: int, delimiter: str) -> UnusableError | None:
    if record.fault is not None:
        cause = "an opening quotation mark is never closed"
        if "unexpected end" not in record.fault:
            cause = "text follows a closing quotation mark"
        return UnusableError(
            "quote",
            f"{cause} ({record.n_lines} lines)" if record.n_lines > 1 else cause,
            'Write a quotation mark inside a quoted cell as "".',
        )
    if _fits(record.cells, n):
        return None
    return UnusableError(
        "cells" if len(record.cells) > n else "few cells",
        f"{len(record.cells)} cells where the first line names {n} columns",
        f"Put cells that contain {_NAMES.get(delimiter, repr(delimiter))} or line breaks in quotation marks.",
    )


@contextmanager
def _long_cells(length: int) -> Iterator[None]:
    """Temporarily raise the `csv` module's limit on cell length, which applies to the whole process."""
    before = csv.field_size_limit(min(length + 1, sys.maxsize))
    try:
        yield
    finally:
        csv.field_size_limit(before)
