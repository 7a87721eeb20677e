"""The cells of a store as a table, with one row per cell and one column per fact."""

import difflib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from dualform.errors import ConfigError
from dualform.plain_text import plain
from dualform.runs.cell_store import FailedCell, FinishedCell
from dualform.source_digest import source_digest

_OWN = ("key", "finished", "dualform", "source")
_FIRST = ("study", "model", "task", "seed", "k", "learners", "group", "sweep")
_CONDITION = re.compile(r"\s*(?P<name>[^=!<>]+?)\s*(?P<sign>!=|<=|>=|==|=|<|>)(?P<wanted>.*)", re.DOTALL)
_RANGE = re.compile(r"\s*(\S+?)\.\.(\S+?)\s*")


def results_table(cells: Iterable[FinishedCell]) -> pa.Table:
    """One row for each cell, in the order of the cells.

    Columns are named after facts, or after entries of the identity with the prefix `identity.`. Nested entries have
    dotted names, such as `accuracy.icl` and `identity.settings.k`. Lists are stored as JSON text. A column holds
    integers, numbers or booleans if all its values are of that type, and otherwise text; missing values are null.

    Returns:
        The columns `key`, the facts, `finished`, `dualform` (its version), `source` (digest of the code that computed
        the cell; a sweep reuses only cells of its own code) and those of the identity, with the most used facts first.
    """
    return _table(
        {
            "key": cell.digest,
            **_named(cell),
            "finished": cell.finished,
            "dualform": cell.version,
            "source": _source(cell),
        }
        for cell in cells
    )


def failures_table(cells: Iterable[FailedCell]) -> pa.Table:
    """One row for each failed cell, as in `results_table`.

    Returns:
        As for `results_table`, with the time in `failed` and the entries of the failure in columns such as
        `failure.message`.
    """
    return _table(
        {
            "key": cell.digest,
            **_named(cell),
            **_flat(cell.failure, "failure."),
            "failed": cell.failed,
            "dualform": cell.version,
            "source": _source(cell),
        }
        for cell in cells
    )


def of_other_source(table: pa.Table) -> int:
    """The number of rows of `results_table` that were computed by other code, which sweeps do not reuse."""
    if "source" not in table.column_names:
        return 0
    return sum(source != source_digest() for source in table.column("source").to_pylist())


def where(table: pa.Table, conditions: Sequence[str]) -> pa.Table:
    """The rows that satisfy all conditions.

    Args:
        table: A table of results.
        conditions: Conditions such as `model=smollm2-135m`, `task=sst2,cr`, `seed=1..3` (both ends included),
            `task!=mr`, `accuracy.icl>0.7`, `model=smol*` (`*` for any letters), `accuracy.ft=` (no value). The last
            parts of a column's name suffice if they are unique.

    Raises:
        ConfigError: A condition has invalid syntax, or names an unknown column.
    """
    keep = [True] * table.num_rows
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise ConfigError(
                f"--where {condition!r} is not a condition: give NAME=VALUE, with =, !=, <, <=, > or >=, "
                "such as task=sst2 or 'accuracy.icl>0.7'."
            )
        if not table.num_rows:
            continue
        name = find_column(table, parts["name"])
        holds = _test(table.schema.field(name).type, name, parts["sign"], parts["wanted"].strip())
        values = table.column(name).to_pylist()
        keep = [kept and holds(value) for kept, value in zip(keep, values, strict=True)]
    return table.filter(pa.array(keep, pa.bool_()))


def select(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """The named columns, in the order of the names.

    Args:
        table: A table of results.
        names: Names as in `where`; `accuracy.*` stands for all columns that begin with `accuracy.`.

    Raises:
        ConfigError: A name is unknown.
    """
    selected: list[str] = []
    for name in names:
        pattern = _pattern(name) if "*" in name else None
        matches = [column for column in table.column_names if pattern.fullmatch(column)] if pattern else []
        selected += matches or [find_column(table, name)]
    return table.select(list(dict.fromkeys(selected)))


def sort(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Rows sorted by columns, the first of which has priority.

    Args:
        table: A table of results.
        names: Names as in `where`; a `-` before a name sorts in descending order. Empty values always come last.

    Raises:
        ConfigError: A name is unknown.
    """
    order = list(range(table.num_rows))
    for name in reversed(names):
        values = table.column(find_column(table, name.removeprefix("-"))).to_pylist()
        present = [row for row in order if values[row] is not None]
        # Sorting is stable, so rows that are equal in this column keep their order by the other columns.
        present.sort(key=lambda row: values[row], reverse=name.startswith("-"))
        order = present + [row for row in order if values[row] is None]
    return table.take(pa.array(order, pa.int64()))


def overview(table: pa.Table) -> pa.Table:
    """The columns for an overview: model, task, seed, options, accuracies, failures and seconds.

    Empty columns are left out. Columns with the same value in all of several rows are left out too, except for model,
    task, accuracies and failures.
    """
    names = [name for name in _FIRST if name in table.column_names and name != "learners"]
    names += [name for name in table.column_names if name.startswith("options.")]
    names += [name for name in table.column_names if name.startswith("accuracy.")]
    names += [name for name in ("failure.message", "failure.attempts", "seconds") if name in table.column_names]
    kept = []
    for name in names:
        values = set(table.column(name).to_pylist())
        constant = table.num_rows > 1 and len(values) == 1 and not name.startswith(("accuracy.", "failure."))
        if values - {None} and (not constant or name in ("model", "task")):
            kept.append(name)
    return table.select(kept or table.column_names[:1])


def find_column(table: pa.Table, name: str) -> str:
    """The column with this name, or the only column whose name ends with it.

    Raises:
        ConfigError: There is no such column, or there are several.
    """
    name = name.strip()
    if name in table.column_names:
        return name
    ending = [column for column in table.column_names if column.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        listed = ", ".join(plain(column) for column in ending[:5])
        raise ConfigError(f"{name!r} matches several columns, {listed}: give the full name.")
    near = difflib.get_close_matches(name, table.column_names, 3) or table.column_names[:12]
    listed = ", ".join(plain(column) for column in near)
    raise ConfigError(f"no column is called {name!r}. Columns include {listed}; --columns '*' shows all.")


def _source(cell: FinishedCell | FailedCell) -> str:
    """Digest of the code that computed a cell; empty for cells of early versions, which did not store it."""
    source = cell.identity.get("source")
    return source if isinstance(source, str) else ""


def _named(cell: FinishedCell | FailedCell) -> dict[str, Any]:
    # A fact must not be mistaken for a column that the store itself defines.
    reserved = {*_OWN, "failed"}
    facts = {
        f"facts.{name}" if name in reserved or name.startswith(("identity.", "failure.")) else name: value
        for name, value in _flat(cell.facts).items()
    }
    return {**facts, **_flat(cell.identity, "identity.")}


def _flat(value: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested entries under dotted names; without recursion, because entries can be nested to any depth."""
    flat: dict[str, Any] = {}
    remaining = [(f"{prefix}{name}", entry) for name, entry in reversed(value.items())]
    while remaining:
        name, entry = remaining.pop()
        if isinstance(entry, dict) and entry:
            remaining += [(f"{name}.{key}", nested) for key, nested in reversed(entry.items())]
        else:
            flat[name] = json.dumps(entry) if isinstance(entry, list | dict) else entry
    return flat


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    listed = list(rows)
    names = sorted(dict.fromkeys(name for row in listed for name in row), key=_column_order)
    columns = {_encodable(name): _column([row.get(name) for row in listed]) for name in names}
    return pa.table(columns or {"key": _column([])})


def _column_order(name: str) -> tuple[int, int]:
    """Sort key of columns; columns with equal keys keep their order."""
    if name == "key":
        return 0, 0
    if name in _FIRST:
        return 1, _FIRST.index(name)
    if name.startswith("accuracy."):
        return 2, 0
    if name.startswith("identity."):
        return 5, 0
    return (4, 0) if name in ("finished", "failed", "dualform", "source") else (3, 0)


def _column(values: list[Any]) -> pa.Array:
    kinds = {type(value) for value in values} - {type(None)}
    try:
        if kinds == {bool}:
            return pa.array(values, pa.bool_())
        if kinds == {int}:
            return pa.array(values, pa.int64())
        if kinds and kinds <= {int, float}:
            return pa.array([None if value is None else float(value) for value in values], pa.float64())
    except OverflowError:
        pass
    texts = [value if isinstance(value, str | None) else json.dumps(value) for value in values]
    return pa.array([None if text is None else _encodable(text) for text in texts], pa.string())


def _encodable(text: str) -> str:
    """Escape unpaired surrogates, which JSON can hold but UTF-8 cannot."""
    return text.encode("utf-8", "backslashreplace").decode()


def _test(kind: pa.DataType, name: str, sign: str, wanted: str) -> Callable[[Any], bool]:
    """A function that tells whether a value satisfies a condition."""
    if sign == "!=":
        equal = _test(kind, name, "=", wanted)
        return lambda value: not equal(value)
    read = _reader(kind, name)
    if sign in ("=", "=="):
        if not wanted:
            return lambda value: value is None or value == ""
        numeric = bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
        return _any_of([_alternative(text.strip(), read, numeric) for text in wanted.split(",") if text.strip()])
    bound = read(wanted)
    compare: dict[str, Callable[[Any], bool]] = {
        "<": lambda value: bool(value < bound),
        "<=": lambda value: bool(value <= bound),
        ">": lambda value: bool(value > bound),
        ">=": lambda value: bool(value >= bound),
    }
    return lambda value: value is not None and compare[sign](value)


def _any_of(tests: list[Callable[[Any], bool]]) -> Callable[[Any], bool]:
    return lambda value: value is not None and any(test(value) for test in tests)


def _alternative(wanted: str, read: Callable[[str], Any], numeric: bool) -> Callable[[Any], bool]:
    span = _RANGE.fullmatch(wanted) if numeric else None
    if span is not None:
        low, high = read(span[1]), read(span[2])
        return lambda value: bool(low <= value <= high)
    if "*" in wanted:
        pattern = _pattern(wanted)
        return lambda value: pattern.fullmatch(str(value)) is not None
    exact = read(wanted)
    return lambda value: bool(value == exact)


def _pattern(text: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in text.split("*")), re.DOTALL)


def _reader(kind: pa.DataType, name: str) -> Callable[[str], Any]:
    """A function that converts a condition's text to the type of a column."""
    if pa.types.is_boolean(kind):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

        def truth(text: str) -> bool:
            if text.lower() not in words:
                raise ConfigError(f"column {plain(name)} holds booleans: compare it with true or false, not {text!r}.")
            return words[text.lower()]

        return truth
    if pa.types.is_integer(kind) or pa.types.is_floating(kind):

        def number(text: str) -> float | int:
            try:
                return int(text)
            except ValueError:
                pass
            try:
                return float(text)
            except ValueError:
                raise ConfigError(f"column {plain(name)} holds numbers, but {text!r} is not a number.") from None

        return number
    return str
