r"""Writes tables to Parquet, CSV, LaTeX, Markdown and JSON lines.

Parquet and JSON lines keep all values unchanged. In the other formats, which spreadsheets, TeX and browsers interpret,
control characters are written out (see `dualform.plain_text`), the special characters of the format are escaped, and
CSV texts that would be read as formulas get a leading apostrophe.
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
    """Write a table to a file, in the format given by its extension.

    Args:
        table: A table of texts, numbers and booleans.
        path: Path ending in .parquet, .csv, .tex, .md or .jsonl; its folder is created if it does not exist.

    Raises:
        ConfigError: The extension is unknown.
        StorageError: The file cannot be written.
    """
    to_bytes = _WRITERS.get(path.suffix.lower())
    if to_bytes is None:
        raise ConfigError(f"cannot export to {plain(str(path))}: use a file name ending in {', '.join(_WRITERS)}.")
    data = to_bytes(table)
    writable_dir(path.parent, _REMEDY)
    with atomic_write(path, _REMEDY) as temporary:
        temporary.write_bytes(data)


def to_csv(table: pa.Table) -> str:
    """CSV text with all digits of numbers; missing values are empty."""
    target = io.StringIO()
    writer = csv.writer(target, lineterminator="\n")
    writer.writerow([_no_formula(name) for name in table.column_names])
    for row in _rows(table):
        writer.writerow([_no_formula(value) if isinstance(value, str) else _full(value) for value in row])
    return target.getvalue()


def to_jsonl(table: pa.Table) -> str:
    """One JSON object per line, in ASCII."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in records(table))


def to_markdown(table: pa.Table) -> str:
    """A Markdown table with numbers to four digits, aligned right."""
    head = [_markdown(name) for name in table.column_names]
    rule = ["---:" if _is_number(table, name) else "---" for name in table.column_names]
    body = [[_markdown(short(value)) for value in row] for row in _rows(table)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [head, rule, *body])


def to_latex(table: pa.Table) -> str:
    r"""A LaTeX `tabular` with numbers to four digits; it needs the package booktabs."""
    columns = "".join("r" if _is_number(table, name) else "l" for name in table.column_names)
    head = _latex_row(table.column_names)
    body = "".join(_latex_row([short(value) for value in row]) for row in _rows(table))
    return (
        "% needs \\usepackage{booktabs}\n"
        f"\\begin{{tabular}}{{{columns}}}\n\\toprule\n{head}\\midrule\n{body}\\bottomrule\n\\end{{tabular}}\n"
    )


def records(table: pa.Table) -> list[dict[str, Any]]:
    """One dictionary per row; numbers that are not finite are None."""
    return [
        {name: value if _exists(value) else None for name, value in zip(table.column_names, row, strict=True)}
        for row in _rows(table)
    ]


def short(value: Any) -> str:
    """A value as one line without control characters, numbers to four digits; empty if missing."""
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
    text = plain(text)
    return f"'{text}" if text.lstrip().startswith(("=", "+", "-", "@")) else text


def _markdown(text: str) -> str:
    return plain(text).translate(_MARKDOWN)


def _latex_row(cells: list[str]) -> str:
    return " & ".join(plain(cell).translate(_LATEX) for cell in cells) + " \\\\\n"


def _parquet(table: pa.Table) -> bytes:
    target = io.BytesIO()
    pq.write_table(table, target)
    return target.getvalue()


_MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in "\\`*_[]|~$"} | {"<": "&lt;", ">": "&gt;", "&": "&amp;"})
# Brackets and stars are put in braces, because after the end of a row TeX would read them as options of the row.
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
