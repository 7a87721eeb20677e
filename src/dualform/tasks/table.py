"""Read one file of rows: CSV, TSV, JSON, JSON lines, Parquet or Arrow."""

from collections.abc import Callable, Mapping
from pathlib import Path

from dualform.errors import TaskError
from dualform.files import show_path
from dualform.tasks.columnar import read_arrow, read_parquet
from dualform.tasks.decoding import parsing, read_text
from dualform.tasks.delimited import read_delimited
from dualform.tasks.json_rows import read_json, read_json_lines
from dualform.tasks.raw import RawTask, TableRows


def _read_csv(path: Path) -> TableRows:
    format = "TSV" if ".tsv" in path.name.lower() else "CSV"
    text = read_text(path, format)
    with parsing(path, format):
        return read_delimited(text, path)


_READERS: Mapping[str, Callable[[Path], TableRows]] = {
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".json": read_json,
    ".parquet": read_parquet,
    ".arrow": read_arrow,
    ".feather": read_arrow,
}
SUFFIXES = tuple(_READERS)
"""Suffixes of the table formats."""
_PACKED = (".csv.gz", ".tsv.gz", ".jsonl.gz", ".ndjson.gz", ".json.gz")
"""Suffixes of the formats that may be compressed."""
_ADVICE = {
    ".txt": "If it has columns, name it .csv or .tsv.",
    ".xlsx": "Save the sheet as CSV in UTF-8.",
    ".xls": "Save the sheet as CSV in UTF-8.",
    ".ods": "Save the sheet as CSV in UTF-8.",
    ".zip": "Unpack it.",
}
"""Suffix of a format that is not read -> what the user can do, for the error message."""


def table_suffix(path: Path) -> str | None:
    """Suffix that identifies the table format of `path`, such as `.csv` for `a.CSV.gz`; None if it is not a table."""
    name = path.name.lower()
    packed = next((suffix for suffix in _PACKED if name.endswith(suffix)), None)
    if packed is not None:
        return packed.removesuffix(".gz")
    return path.suffix.lower() if path.suffix.lower() in _READERS else None


def read_rows(path: Path) -> TableRows:
    """All rows of one table; a row that could not be parsed is an `UnreadRow`.

    Args:
        path: The file. Its suffix determines the format; a text format may be compressed (`.csv.gz`).

    Raises:
        TaskError: The suffix is unknown, or the file is missing, unreadable, too large or empty.
    """
    suffix = table_suffix(path)
    if suffix is None:
        advice = _ADVICE.get(path.suffix.lower(), "")
        raise TaskError(
            f"{show_path(path)} is not a table that dualform reads: its suffix is {path.suffix[:20] or 'missing'!r}. "
            f"{advice + ' ' if advice else ''}Give one of {', '.join(SUFFIXES)}, a .yaml task or a folder with "
            "dataset.json."
        )
    table = _READERS[suffix](path)
    if not table.rows:
        raise TaskError(f"{show_path(path)} contains no rows. Add at least one row, or leave the file out.")
    return table


def read_table(path: Path) -> RawTask:
    """A task named after the file, with all rows in the train split; `build_task` takes the other splits out of it.

    Raises:
        TaskError: The suffix is unknown, or the file is missing, unreadable, too large or empty.
    """
    table = read_rows(path)
    name = path.name[: -len(".gz")] if path.name.lower().endswith(".gz") else path.name
    return RawTask(
        name=Path(name).stem,
        source=str(path),
        rows={"train": table.rows},
        files={"train": str(path)},
        notes=table.notes,
        lines={} if table.lines is None else {"train": table.lines},
        class_names=table.class_names,
    )
