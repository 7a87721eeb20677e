"""One file of rows: CSV, TSV, JSON lines or Parquet."""

from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.tasks.build import RawTask, Row
from dualform.tasks.directory import read_json_lines

SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
LARGEST_BLOCK = 1 << 26
"""Bytes that are read at a time, and the longest row of a CSV."""


def read_table(path: Path) -> RawTask:
    """Rows of one table, all of them train: a report and a selection split are held out later.

    Args:
        path: The file; its suffix says what it is. CSV and TSV begin with a line of column names, and every cell
            is text.

    Returns:
        The rows under the file's name without its suffix.

    Raises:
        TaskError: The suffix is unknown, or the file is missing, unreadable or empty.
    """
    if not path.is_file():
        raise TaskError(f"{path} is not there. Check the path.")
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise TaskError(
            f"{path} is no table that dualform reads: its suffix is {path.suffix or 'missing'!r}. Give one of "
            f"{', '.join(SUFFIXES)}, a .yaml task or a folder with dataset.json."
        )
    rows = read_json_lines(path) if suffix == ".jsonl" else _read_arrow(path, suffix)
    if not rows:
        raise TaskError(f"{path} holds no rows.")
    return RawTask(name=path.stem, source=str(path), rows={"train": rows}, files={"train": str(path)})


def _read_arrow(path: Path, suffix: str) -> list[Row]:
    import pyarrow

    try:
        table = _parquet_table(path) if suffix == ".parquet" else _text_table(path, "\t" if suffix == ".tsv" else ",")
    except (pyarrow.ArrowInvalid, pyarrow.ArrowException) as error:
        raise TaskError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    names = table.column_names
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        raise TaskError(f"{path} has the column {repeated[0]!r} {names.count(repeated[0])} times. Rename one.")
    rows: list[Row] = table.to_pylist()
    return rows


def _parquet_table(path: Path) -> Any:
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path)


def _text_table(path: Path, delimiter: str) -> Any:
    import pyarrow
    import pyarrow.csv

    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    # A row must lie within a block, and a single text may be longer than the megabyte that a block has otherwise.
    read = pyarrow.csv.ReadOptions(block_size=max(1 << 20, min(path.stat().st_size + 1, LARGEST_BLOCK)))
    with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    # As text throughout: guessed types would turn "007" into 7 and "true" into True.
    convert = pyarrow.csv.ConvertOptions(column_types=dict.fromkeys(names, pyarrow.string()))
    return pyarrow.csv.read_csv(path, read_options=read, parse_options=parse, convert_options=convert)
