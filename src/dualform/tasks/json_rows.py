"""Read rows from JSON: one object per line, or one document as written by pandas, R and the hub."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.files import show_path
from dualform.plain_text import plain
from dualform.tasks.decoding import parsing, read_text
from dualform.tasks.labels import UnusableError, abbreviate
from dualform.tasks.raw import Row, TableRows, UnreadRow

_SHAPES = "Give one object per line, a list of objects, or an object of columns that are lists of equal length."


def read_json_lines(path: Path) -> TableRows:
    """Rows of a file with one JSON object per line, or of a single JSON document.

    Returns:
        The rows; a line that is not an object is an `UnreadRow`.

    Raises:
        TaskError: The file is missing or not UTF-8.
    """
    text = read_text(path, "JSON lines")
    if _begins(text) == "[" and not _is_list_a_line(text):
        return _read_document(text, path)
    return _read_lines(text)


def read_json(path: Path) -> TableRows:
    """Rows of a JSON document: a list of objects, columns, a form of pandas' `to_json`, or one object per line.

    Raises:
        TaskError: The file is missing, not UTF-8, not JSON, or none of these forms.
    """
    text = read_text(path, "JSON")
    return _read_lines(text) if _is_object_a_line(text) else _read_document(text, path)


def _begins(text: str) -> str:
    return text.lstrip("\ufeff \t\r\n")[:1]


def _content(text: str) -> list[str]:
    """The first two non-empty lines."""
    lines: list[str] = []
    for _, line in _lines(text):
        if line.strip():
            lines.append(line)
            if len(lines) == 2:
                break
    return lines


def _is_object_a_line(text: str) -> bool:
    lines = _content(text)
    return len(lines) == 2 and all(_is_whole(line, dict) for line in lines)


def _is_list_a_line(text: str) -> bool:
    """Whether each line is a list, which is not a row; reading it by lines reports each with its line number."""
    lines = _content(text)
    return len(lines) == 2 and all(_is_whole(line, list) for line in lines)


def _is_whole(line: str, kind: type) -> bool:
    try:
        return isinstance(json.loads(line), kind)
    except (ValueError, RecursionError):
        return False


def _lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Pairs (number, line). Unlike str.splitlines, it does not split at U+2028 or \x85, which texts may contain."""
    ends = "\r" if "\n" not in text else "\n"
    return enumerate(text.split(ends), start=1)


def _read_lines(text: str) -> TableRows:
    if (table := _read_sequence(text)) is not None:
        return table
    rows: list[Row] = []
    numbers = []
    for number, line in _lines(text):
        if not line.strip("\ufeff \t\r\n"):
            continue
        numbers.append(number)
        rows.append(_row_of(lambda line=line: _loads(line), line))  # type: ignore[misc]
    return TableRows(rows, numbers)


def _read_sequence(text: str) -> TableRows | None:
    """Rows of consecutive objects that span several lines, as from a pretty printer; None for any other text."""
    if _begins(text) != "{" or _is_whole(_content(text)[0], dict):
        return None
    text = text.removeprefix("\ufeff")
    rows: list[Row] = []
    lines: list[int] = []
    end, line, counted = 0, 1, 0
    while (start := _skip(text, end)) < len(text):
        try:
            value, end = _DECODER.raw_decode(text, start)
        except (ValueError, RecursionError):
            return None
        line += text.count("\n", counted, start)
        counted = start
        rows.append(_row_of(lambda value=value: value, text[start:end]))  # type: ignore[misc]
        lines.append(line)
    return TableRows(rows, lines)


def _row_of(parse: Callable[[], Any], text: str) -> Row:
    start = plain(text.strip()[:60])
    try:
        row = parse()
    except json.JSONDecodeError as error:
        cause, remedy = _why_not_json(text, error)
        return UnreadRow(UnusableError(f"json {cause}", f"not JSON ({cause}): {start!r}", remedy))
    except RecursionError:
        return UnreadRow(UnusableError("deep", f"nested too deeply: {start!r}", "Flatten it."))
    except ValueError as error:
        # For example a number with thousands of digits, or a repeated field.
        return UnreadRow(UnusableError("value", f"not usable JSON ({_one_line(error)})", "Correct it."))
    if not isinstance(row, dict):
        message = f"expected a JSON object, found {start!r}"
        return UnreadRow(UnusableError("shape", message, "Write one object per line."))
    return row


def _why_not_json(text: str, error: json.JSONDecodeError) -> tuple[str, str]:
    """(what is wrong, what to do)."""
    text = text.strip("\ufeff \t\r\n")
    if text.endswith("},"):
        return "a comma follows the object", "Remove the comma at the end of each line."
    before, after = text[: error.pos].rstrip(), text[error.pos :].lstrip()
    # The position of this error differs between versions of Python.
    if (before.endswith(",") and after[:1] in ("}", "]")) or re.match(r",\s*[}\]]", after):
        return "a comma precedes a closing bracket", "Remove that comma."
    if re.match(r"\{\s*'", text):
        return "single quotes", "Write texts in double quotes, with json.dumps(row) instead of str(row)."
    return error.msg, "Correct it."


def _one_line(error: Exception) -> str:
    return plain(str(error).split(";")[0].split("\n")[0])[:100]


def _pairs(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the field {plain(twice[:60])!r} occurs twice")
    return fields


_DECODER = json.JSONDecoder(object_pairs_hook=_pairs)


def _loads(text: str) -> Any:
    return _DECODER.decode(text.strip("\ufeff \t\r\n"))


def _read_document(text: str, path: Path) -> TableRows:
    text = text.removeprefix("\ufeff")
    if _begins(text) == "[":
        return _read_list(text, path)
    with parsing(path, "JSON"):
        try:
            document = _loads(text)
        except json.JSONDecodeError as error:
            raise TaskError(f"{show_path(path)}, line {error.lineno}: not JSON ({error.msg}). Correct it.") from None
    return _table_of(document, path)


def _read_list(text: str, path: Path) -> TableRows:
    """Rows of a list, parsed one by one to know the line of each."""
    rows: list[Row] = []
    lines: list[int] = []
    end, line, counted = text.index("[") + 1, 1, 0
    while True:
        start = _skip(text, end)
        if text[start : start + 1] == "]" and not rows:
            return TableRows(rows, lines)
        line += text.count("\n", counted, start)
        counted = start
        with parsing(path, "JSON"):
            try:
                value, end = _DECODER.raw_decode(text, start)
            except json.JSONDecodeError as error:
                raise TaskError(
                    f"{show_path(path)}, line {error.lineno}: not JSON ({error.msg}). Correct it."
                ) from None
        rows.append(_row_of(lambda value=value: value, text[start:end]))  # type: ignore[misc]
        lines.append(line)
        end = _skip(text, end)
        mark = text[end : end + 1]
        if mark == "]":
            if text[end + 1 :].strip():
                where = line + text.count("\n", counted, end)
                raise TaskError(f"{show_path(path)}, line {where}: text follows the end of the list. Remove it.")
            return TableRows(rows, lines)
        if mark != ",":
            where = line + text.count("\n", counted, end)
            what = "the file ends within the list" if not mark else "a comma is missing between two rows"
            raise TaskError(f"{show_path(path)}, line {where}: not JSON ({what}). Correct it.")
        end += 1
        after = _skip(text, end)
        if text[after : after + 1] == "]":
            where = line + text.count("\n", counted, after)
            raise TaskError(
                f"{show_path(path)}, line {where}: not JSON (a comma precedes the end of the list). Remove it."
            )


def _skip(text: str, place: int) -> int:
    while place < len(text) and text[place] in " \t\r\n":
        place += 1
    return place


def _table_of(document: Any, path: Path) -> TableRows:
    """Rows of a document: columns, pandas' `split` and `table` forms, or rows under a key such as `data`."""
    if isinstance(document, dict):
        if isinstance(document.get("columns"), list) and isinstance(document.get("data"), list):
            return TableRows(_of_split(document["columns"], document["data"], path))
        for key in ("data", "rows", "examples"):
            value = document.get(key)
            if isinstance(value, list) and any(isinstance(row, dict) for row in value):
                return TableRows(
                    [row if isinstance(row, dict) else _row_of(lambda row=row: row, abbreviate(row)) for row in value]  # type: ignore[misc]
                )
        if len(document) > 1 and all(
            isinstance(rows, list) and rows and isinstance(rows[0], dict) for rows in document.values()
        ):
            names = ", ".join(plain(name[:40]) for name in list(document)[:8])
            raise TaskError(
                f"{show_path(path)} contains several tables ({names}). Write each to a separate file, such as "
                "train.json and test.json, in a folder with a dataset.json that contains {}."
            )
        values = list(document.values())
        if values and all(isinstance(value, list) for value in values):
            return TableRows(_of_columns(document, path))
        if values and all(isinstance(value, dict) for value in values):
            return TableRows(_of_indexed(document))
        if values and not any(isinstance(value, list | dict) for value in values):
            return TableRows([document])
    raise TaskError(f"{show_path(path)} is JSON but not a table. {_SHAPES}")


def _of_split(columns: Sequence[Any], data: Sequence[Any], path: Path) -> list[Row]:
    names = [str(name) for name in columns]
    if len(set(names)) < len(names) or not all(isinstance(row, list) and len(row) == len(names) for row in data):
        raise TaskError(f"{show_path(path)} has `columns` and `data` that do not match. {_SHAPES}")
    return [dict(zip(names, row, strict=True)) for row in data]


def _of_columns(document: Mapping[str, Sequence[Any]], path: Path) -> list[Row]:
    lengths = {name: len(values) for name, values in document.items()}
    if len(set(lengths.values())) > 1:
        lengths_text = ", ".join(f"{plain(name[:40])} {length}" for name, length in list(lengths.items())[:8])
        raise TaskError(f"{show_path(path)} has columns of different lengths ({lengths_text}). {_SHAPES}")
    return [dict(zip(document, row, strict=True)) for row in zip(*document.values(), strict=True)]


def _of_indexed(document: Mapping[str, Mapping[str, Any]]) -> list[Row]:
    """Rows of pandas' default form, columns of values by index, or of rows by index (`orient="index"`)."""
    keys = dict.fromkeys(key for values in document.values() for key in values)
    if all(key.isdecimal() for key in keys) and not all(name.isdecimal() for name in document):
        return [{name: values.get(key) for name, values in document.items()} for key in keys]
    return [dict(values) for values in document.values()]
