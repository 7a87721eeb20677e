"""What a store holds, as a table: a row a cell, a column for every name that occurs."""

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
    """A row for each cell, in the cells' order.

    Facts are columns under their own names, the identity's entries behind `identity.`; both in dotted names where they
    are nested, such as `accuracy.icl` and `identity.settings.k`. A list is a column of JSON text. A column is of
    integers, numbers or truth values if all its values are, else of text; what a cell does not have is null.

    Returns:
        Columns `key`, the facts, `finished`, `dualform` (its version), `source` (digest of the code that computed the
        cell; a sweep reuses those of its own code alone) and the identity's, the best known facts first.
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
    """As `results_table`, for cells that failed: with `failed` for the time, and what is known of the failure.

    Returns:
        The failure's entries are columns behind `failure.`, such as `failure.message`.
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
    """How many rows of `results_table` were computed by other code than this, so that no sweep reuses them."""
    if "source" not in table.column_names:
        return 0
    return sum(source != source_digest() for source in table.column("source").to_pylist())


def where(table: pa.Table, conditions: Sequence[str]) -> pa.Table:
    """The rows for which all conditions hold.

    Args:
        table: Of results.
        conditions: Such as `model=smollm2-135m`, `task=sst2,cr`, `seed=1..3` (both ends included), `task!=mr`,
            `accuracy.icl>0.7`, `model=smol*` (`*` for any letters), `accuracy.ft=` (no value). A name's last parts are
            enough where only one column ends with them.

    Raises:
        ConfigError: A condition cannot be read, or names no column.
    """
    keep = [True] * table.num_rows
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        if parts is None:
            raise ConfigError(
                f"--where {condition!r} cannot be read: give NAME=VALUE, with =, !=, <, <=, > or >=, "
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
    """Some columns, in the order asked for.

    Args:
        table: Of results.
        names: As in `where`; `accuracy.*` stands for all that begin with `accuracy.`, in the table's order.

    Raises:
        ConfigError: A name that no column has.
    """
    chosen: list[str] = []
    for name in names:
        pattern = _pattern(name) if "*" in name else None
        found = [column for column in table.column_names if pattern.fullmatch(column)] if pattern else []
        chosen += found or [find_column(table, name)]
    return table.select(list(dict.fromkeys(chosen)))


def sort(table: pa.Table, names: Sequence[str]) -> pa.Table:
    """Rows in order of some columns, the first one foremost.

    Args:
        table: Of results.
        names: As in `where`; a `-` before one turns its order round. Empty values come last either way.

    Raises:
        ConfigError: A name that no column has.
    """
    order = list(range(table.num_rows))
    for name in reversed(names):
        values = table.column(find_column(table, name.removeprefix("-"))).to_pylist()
        present = [row for row in order if values[row] is not None]
        # Sorting is stable, so columns sorted earlier still order what this one leaves equal.
        present.sort(key=lambda row: values[row], reverse=name.startswith("-"))
        order = present + [row for row in order if values[row] is None]
    return table.take(pa.array(order, pa.int64()))


def overview(table: pa.Table) -> pa.Table:
    """The columns that a first look needs: what the cells are, `options.*` included, accuracies, how long they took.

    A column that says nothing (empty throughout) is left out, and one that has the same value in all of several rows
    too, unless it is the model or the task.
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
    """The column of this name, or the only one whose last parts it is.

    Raises:
        ConfigError: There is none, or several.
    """
    name = name.strip()
    if name in table.column_names:
        return name
    ending = [column for column in table.column_names if column.endswith(f".{name}")]
    if len(ending) == 1:
        return ending[0]
    if ending:
        listed = ", ".join(plain(column) for column in ending[:5])
        raise ConfigError(f"{name!r} may be any of the columns {listed}: give the whole name.")
    near = difflib.get_close_matches(name, table.column_names, 3) or table.column_names[:12]
    listed = ", ".join(plain(column) for column in near)
    raise ConfigError(f"no column is called {name!r}. There are {listed}; --columns '*' shows all.")


def _source(cell: FinishedCell | FailedCell) -> str:
    """Digest of the code that computed a cell; empty for one that was written before it was kept."""
    source = cell.identity.get("source")
    return source if isinstance(source, str) else ""


def _named(cell: FinishedCell | FailedCell) -> dict[str, Any]:
    # A fact must not pass for what the store itself says of a cell.
    reserved = {*_OWN, "failed"}
    facts = {
        f"facts.{name}" if name in reserved or name.startswith(("identity.", "failure.")) else name: value
        for name, value in _flat(cell.facts).items()
    }
    return {**facts, **_flat(cell.identity, "identity.")}


def _flat(value: dict[str, Any], before: str = "") -> dict[str, Any]:
    """Nested entries under dotted names; without recursion, because a store may hold any depth."""
    flat: dict[str, Any] = {}
    waiting = [(f"{before}{name}", entry) for name, entry in reversed(value.items())]
    while waiting:
        name, entry = waiting.pop()
        if isinstance(entry, dict) and entry:
            waiting += [(f"{name}.{below}", deeper) for below, deeper in reversed(entry.items())]
        else:
            flat[name] = json.dumps(entry) if isinstance(entry, list | dict) else entry
    return flat


def _table(rows: Iterable[dict[str, Any]]) -> pa.Table:
    listed = list(rows)
    names = sorted(dict.fromkeys(name for row in listed for name in row), key=_place)
    columns = {_encodable(name): _column([row.get(name) for row in listed]) for name in names}
    return pa.table(columns or {"key": _column([])})


def _place(name: str) -> tuple[int, int]:
    """Orders columns; those of one place stay as they came."""
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
    """Halves of characters, which JSON can hold and UTF-8 cannot, are written out."""
    return text.encode("utf-8", "backslashreplace").decode()


def _test(kind: pa.DataType, name: str, sign: str, wanted: str) -> Callable[[Any], bool]:
    """What a condition says of a value."""
    if sign == "!=":
        equal = _test(kind, name, "=", wanted)
        return lambda value: not equal(value)
    read = _reader(kind, name)
    if sign in ("=", "=="):
        if not wanted:
            return lambda value: value is None or value == ""
        numeric = bool(pa.types.is_integer(kind) or pa.types.is_floating(kind))
        return _any_of([_alternative(one.strip(), read, numeric) for one in wanted.split(",") if one.strip()])
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
    """Turns a condition's text into a value that a column's own can be compared with."""
    if pa.types.is_boolean(kind):
        words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}

        def truth(text: str) -> bool:
            if text.lower() not in words:
                raise ConfigError(f"column {plain(name)} holds true or false, not {text!r}.")
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
                raise ConfigError(f"column {plain(name)} holds numbers; {text!r} is none.") from None

        return number
    return str
