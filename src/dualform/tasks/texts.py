"""Unlabelled texts from a file: what folding is calibrated on, and plain prose."""

from collections.abc import Mapping
from pathlib import Path

from dualform.errors import TaskError
from dualform.files import show_path
from dualform.tasks.build import LONGEST_TEXT
from dualform.tasks.decoding import read_text
from dualform.tasks.options import listed
from dualform.tasks.raw import RowProblems, UnreadRow
from dualform.tasks.table import SUFFIXES, read_table, table_suffix
from dualform.tasks.task import Example, Task

NO_LABEL = 0
"""Stands where an example of an unlabelled text has its label. Nothing may read it."""


def unlabelled_texts(path: Path, task: Task) -> tuple[Example, ...]:
    """Texts of a task without their labels.

    Args:
        path: `.txt` with one text a line (for a prompt with one field), or a table (CSV, TSV, JSON lines, Parquet)
            with the prompt's fields as columns; other columns are not looked at.
        task: Whose prompt will show them.

    Returns:
        An example for each; empty lines are left out. Labels are `NO_LABEL`.

    Raises:
        TaskError: The file is missing, unreadable or empty, or lacks a field of the prompt.
    """
    fields = task.template.fields
    if table_suffix(path) is not None:
        raw = read_table(path)
        problems = RowProblems(raw)
        for number, row in enumerate(raw.rows["train"]):
            if isinstance(row, UnreadRow):
                problems.add("train", number, row.why)
        if len(problems):
            raise TaskError(problems.message())
        rows = [row for row in raw.rows["train"] if not isinstance(row, UnreadRow)]
        missing = [name for name in fields if name not in rows[0]]
        if missing:
            raise TaskError(
                f"{path} has no column {missing[0]!r}, which the prompt of task {task.name} shows; its columns: "
                f"{listed(list(map(str, rows[0])))}."
            )
        shown = [{name: str(row.get(name) or "").strip() for name in fields} for row in rows]
        return tuple(_example(row, i) for i, row in enumerate(shown) if any(row.values()))
    lines = read_lines(path)
    if len(fields) > 1:
        raise TaskError(
            f"{path} holds a text a line, but the prompt of task {task.name} shows {len(fields)} fields "
            f"({', '.join(fields)}). Give a table with these columns ({', '.join(SUFFIXES)})."
        )
    return tuple(_example({fields[0]: line}, i) for i, line in enumerate(lines))


def read_lines(path: Path) -> tuple[str, ...]:
    """The lines of a text file that are not empty, white space at their ends left out.

    Raises:
        TaskError: The file is missing, not a regular file, too large, not UTF-8 text, or holds nothing.
    """
    text = read_text(path, "text")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise TaskError(f"{show_path(path)} holds no text. Write one text a line.")
    if len(longest := max(lines, key=len)) > LONGEST_TEXT:
        raise TaskError(
            f"{show_path(path)} has a line of {len(longest):,} characters; at most {LONGEST_TEXT:,} are read. Write "
            "one text a line."
        )
    return lines


def _example(fields: Mapping[str, str], row: int) -> Example:
    return Example(fields=fields, label=NO_LABEL, row=row)
