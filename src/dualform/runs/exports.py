r"""A table as a file that others read: Parquet, CSV, LaTeX, Markdown, JSON lines.

Parquet and JSON lines keep every value as it is. The others are read by spreadsheets, TeX and browsers, which obey
what they read: there, characters that steer are written out (see `dualform.plain_text`), each format's own signs are
escaped, and in CSV a text that begins as a formula would gets an apostrophe before it.
"""

import csv
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dualform.errors import ConfigError
from dualform.files import atomic_write, writable_dir
from dualform.plain_text import plain

_REMEDY = "Free some space or choose another file with --to."


def export(table: pa.Table, path: Path) -> None:
    """Write a table in the format that the path's ending names.

    Args:
        table: Of text, numbers and truth values.
        path: Ends in .parquet, .csv, .tex, .md or .jsonl; the folder is made if need be.

    Raises:
        ConfigError: Another ending.
        StorageError: The file cannot be written.
    """
    to_bytes = _WRITERS.get(path.suffix.lower())
    if to_bytes is None:
        raise ConfigError(f"cannot export to {plain(str(path))}: give a file that ends in {', '.join(_WRITERS)}.")
    data = to_bytes(table)
    writable_dir(path.parent, _REMEDY)
    with atomic_write(path, _REMEDY) as temporary:
        temporary.write_bytes(data)


def to_csv(table: pa.Table) -> str:
    """Comma-separated text, numbers in full, empty where there is none."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([_no_formula(name) for name in table.column_names])
    for row in _rows(table):
        writer.writerow([_no_formula(value) if isinstance(value, str) else _full(value) for value in row])
    return target.getvalue()


def to_jsonl(table: pa.Table) -> str:
    """A JSON object a line, in ASCII."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in records(table))


def to_markdown(table: pa.Table) -> str:
    """A pipe table, numbers to four digits and aligned to the right."""
    head = [_markdown(name) for name in table.column_names]
    rule = ["---:" if _is_number(table, name) else "---" for name in table.column_names]
    body = [[_markdown(short(value)) for value in row] for row in _rows(table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *body])


def to_latex(table: pa.Table) -> str:
    r"""A `tabular` that needs the package booktabs, numbers to four digits."""
    columns = "".join("r" if _is_number(table, name) else "l" for name in table.column_names)
    head = _latex_row(table.column_names)
    body = "".join(_latex_row([short(value) for value in row]) for row in _rows(table))
    return (
        "% needs \\usepackage{booktabs}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def records(table: pa.Table) -> list[dict[str, Any]]:
    """A dictionary a row; numbers that are not finite are None, as in all of our JSON."""
    return [
        {name: value if _exists(value) else None for name, value in zip(table.column_names, row, strict=True)}
        for row in _rows(table)
    ]


def short(value: Any) -> str:
    """A value for people: one harmless line, numbers to four digits, empty where there is none."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if _exists(value) else ""
    return "" if value is None else plain(str(value))


def _rows(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


def _exists(value: Any) -> bool:
    return not isinstance(value, float) or math.isfinite(value)


def _is_number(table: pa.Table, name: str) -> bool:
    kind = table.schema.field(name).type
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))


def _full(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "" if value is None or not _exists(value) else repr(value)


def _no_formula(text: str) -> str:
    shown = plain(text)
    return f"'{shown}" if shown.lstrip().startswith(("=", "+", "-", "@")) else shown


def _markdown(text: str) -> str:
    return plain(text).translate(_MARKDOWN)


def _latex_row(cells: list[str]) -> str:
    return " & ".join(plain(cell).translate(_LATEX) for cell in cells) + " \\\\\n"


def _parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
# Brackets and stars in braces: behind the end of a row, TeX would take them for the row's options.
_LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "&%$#_{}"}
    | {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"\textless{}",
        ">": r"\textgreater{}",
        "|": r"\textbar{}",
        '"': "''",
        "[": "{[}",
        "]": "{]}",
        "*": "{*}",
    }
)
_WRITERS: dict[str, Callable[[pa.Table], bytes]] = {
    ".parquet": _parquet,
    ".csv": lambda table: to_csv(table).encode(),
    ".tex": lambda table: to_latex(table).encode(),
    ".md": lambda table: to_markdown(table).encode(),
    ".jsonl": lambda table: to_jsonl(table).encode(),
}
