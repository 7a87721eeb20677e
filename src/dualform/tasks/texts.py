"""Read unlabelled texts from a file, such as those on which folding is calibrated."""

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
"""Placeholder for the label of an unlabelled text. It must never be used as a label."""


def unlabelled_texts(path: Path, task: Task) -> tuple[Example, ...]:
    """Texts of a file as examples with the label `NO_LABEL`. Empty lines are left out.

    Args:
        path: A `.txt` file with one text per line (for a prompt with one field), or a table (CSV, TSV, JSON lines,
            Parquet) with a column for each field of the prompt; other columns are ignored.
        task: The task whose prompt the texts are for.

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
                f"{path} has no column {missing[0]!r}, which the prompt of task {task.name} uses. Its columns are: "
                f"{listed(list(map(str, rows[0])))}."
            )
        texts = [{name: str(row.get(name) or "").strip() for name in fields} for row in rows]
        return tuple(_example(row, i) for i, row in enumerate(texts) if any(row.values()))
    lines = read_lines(path)
    if len(fields) > 1:
        raise TaskError(
            f"{path} has one text per line, but the prompt of task {task.name} uses {len(fields)} fields "
            f"({', '.join(fields)}). Give a table with these columns ({', '.join(SUFFIXES)})."
        )
    return tuple(_example({fields[0]: line}, i) for i, line in enumerate(lines))


def read_lines(path: Path) -> tuple[str, ...]:
    """The non-empty lines of a text file, without surrounding white space.

    Raises:
        TaskError: The file is missing, not a regular file, too large, not UTF-8 text, or empty.
    """
    text = read_text(path, "text")
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if not lines:
        raise TaskError(f"{show_path(path)} contains no text. Write one text on each line.")
    if len(longest := max(lines, key=len)) > LONGEST_TEXT:
        raise TaskError(
            f"{show_path(path)} has a line of {len(longest):,} characters; the maximum is {LONGEST_TEXT:,}. Write one "
            "text on each line."
        )
    return lines


def _example(fields: Mapping[str, str], row: int) -> Example:
    return Example(fields=fields, label=NO_LABEL, row=row)
