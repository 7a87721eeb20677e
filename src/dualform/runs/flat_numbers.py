"""Flattens a result to names and numbers, as dashboards need them."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from dualform.result import Record, Result
from dualform.sweep_result import SweepResult

LEFT_OUT = frozenset(
    {
        # Settings and environment, which trackers receive separately.
        *("config", "environment", "model", "task"),
        # Fields with a number for each seed, layer, head or label are too many for a table of runs.
        *("per_seed", "per_layer", "per_layer_ci95", "per_layer_q", "per_head", "counts", "details", "by_control"),
        *("k_effective_per_seed", "DemonstrationReport.rows", "DemonstrationReport.tokens", "Classification.per_class"),
    }
)
"""Fields that are left out, in all records or in the record that is named before the dot."""

_LONGEST = 80


def numbers_of(result: Result) -> dict[str, float]:
    """The numbers of a study's result under flat names.

    A name is the path in `result.json`, such as `accuracy/icl`, where the mean stands for its record. The other fields
    of the record come first in their names: `ci95/accuracy/icl/low`, `n/accuracy/icl`. Thus no name is a prefix of
    another's path, which trackers that store each name as a file require. Records in lists are named by the fields
    that identify them: `rate_sweep/0.001/accuracy`. Characters that some tracker rejects become `_`.

    Args:
        result: Result of any study.

    Returns:
        All finite numbers in the order of the result, without the fields in `LEFT_OUT`. `seconds` is the run time.
    """
    numbers = dict(_numbers_in(result, ()))
    seconds = result.environment.get("seconds")
    if isinstance(seconds, int | float):
        numbers[("seconds",)] = float(seconds)
    return _join_names(numbers)


def numbers_of_sweep(sweep: SweepResult) -> dict[str, float]:
    """The numbers of a sweep under flat names: cells by status, and the accuracy and similarity of each group.

    Args:
        sweep: The sweep, as in `sweep.json`.

    Returns:
        `cells/finished`, `cells/reused`, `cells/failed`, `cells/pending`, `seconds` if known, and names such as
        `accuracy/GROUP/icl`.
    """
    numbers: dict[tuple[str, ...], float] = {
        ("cells", status): float(sum(cell.status == status for cell in sweep.cells))
        for status in ("finished", "reused", "failed", "pending")
    }
    if sweep.seconds is not None:
        numbers[("seconds",)] = sweep.seconds
    for group in sweep.groups:
        if group.result is None:
            continue
        for path, number in _numbers_in(group.result, ()):
            if path[0] in ("accuracy", "similarity"):
                numbers[(path[0], group.name, *path[1:])] = number
    return _join_names(numbers)


def clean(part: str) -> str:
    """One part of a name, reduced to at most 80 letters, digits, `_`, `-`, `.` and spaces; never empty."""
    text = re.sub(r"[^A-Za-z0-9_.\- ]", "_", part)[:_LONGEST].strip(" ")
    # `.` and `..` would be folders for trackers that store each name as a file.
    return text if text.strip(".") else "_"


def _join_names(numbers: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    names: dict[str, float] = {}
    for path, number in numbers.items():
        name = base = "/".join(clean(part) for part in path)
        # Names that differ only in replaced characters are numbered.
        count = 2
        while name in names:
            name = f"{base}-{count}"
            count += 1
        names[name] = number
    return names


def _numbers_in(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number below `value`, with its path."""
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, BaseModel):
        fields = _included_fields(value)
        if "mean" in fields:
            yield from _numbers_in(fields.pop("mean"), path)
            for name, part in fields.items():
                yield from _numbers_in(part, (name, *path))
        else:
            for name, part in fields.items():
                yield from _numbers_in(part, (*path, name))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _numbers_in(part, (*path, str(key)))
    elif isinstance(value, tuple) and len(value) == 2:
        for end, part in zip(("low", "high"), value, strict=True):
            yield from _numbers_in(part, (*path, end))
    elif isinstance(value, list):
        for place, record in enumerate(value):
            if isinstance(record, Record) and record.named_by is not None:
                yield from _numbers_in(_included_fields(record), (*path, _name(record, place)))


def _name(record: Record, place: int) -> str:
    parts: list[str] = []
    for field in record.named_by or ():
        value = getattr(record, field)
        if isinstance(value, bool):
            parts += [field] if value else []
        elif isinstance(value, float):
            parts.append(f"{value:g}")
        else:
            parts += value if isinstance(value, list) else [str(value)]
    return "-".join(parts) or f"{place + 1:02d}"


def _included_fields(record: BaseModel) -> dict[str, Any]:
    """A record's fields without those in `LEFT_OUT` and those in its name in a list."""
    kind = type(record)
    left_out = {*LEFT_OUT, *(getattr(kind, "named_by", None) or ())}
    names = [name for name in kind.model_fields if not left_out & {name, f"{kind.__name__}.{name}"}]
    return {name: getattr(record, name) for name in names}
