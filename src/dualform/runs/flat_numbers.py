"""A result as flat names and numbers, which is what a dashboard compares runs by."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from dualform.result import Record, Result
from dualform.sweep_result import SweepResult

LEFT_OUT = frozenset(
    {
        # What was asked, not what was found; trackers get the settings beside the numbers.
        *("config", "environment", "model", "task"),
        # One number a seed, layer, head or label: `result.json` has them, and a table of runs would drown in them.
        *("per_seed", "per_layer", "per_layer_ci95", "per_layer_q", "per_head", "counts", "details", "by_control"),
        *("k_effective_per_seed", "DemonstrationReport.rows", "DemonstrationReport.tokens"),
    }
)
"""Fields that are not told, of whatever record or of the one that is named before the dot."""

_LONGEST = 80


def numbers_of(result: Result) -> dict[str, float]:
    """What a study found, as flat names and numbers.

    A name is the path in `result.json`, such as `accuracy/icl`, with a mean in place of its record. What stands beside
    a mean comes under its own name first: `ci95/accuracy/icl/low`, `n/accuracy/icl`. So no name is the beginning of
    another's path, which trackers that keep a file a name could not hold. Lists are named by what tells their records
    apart: `rate_sweep/0.001/accuracy`. Letters that some tracker refuses become `_`.

    Args:
        result: Any study's.

    Returns:
        Finite numbers, in the result's order; what is None there is left out, and so is what `LEFT_OUT` says.
        `seconds` is the time of the run.
    """
    found = dict(_walk(result, ()))
    seconds = result.environment.get("seconds")
    if isinstance(seconds, int | float):
        found[("seconds",)] = float(seconds)
    return _named(found)


def numbers_of_sweep(sweep: SweepResult) -> dict[str, float]:
    """What a sweep found: how many cells ended how, and each group's accuracy and similarity.

    Args:
        sweep: As in `sweep.json`.

    Returns:
        `cells/finished`, `cells/reused`, `cells/failed`, `cells/pending`, `seconds` where known, and names such as
        `accuracy/GROUP/icl`.
    """
    found: dict[tuple[str, ...], float] = {
        ("cells", status): float(sum(cell.status == status for cell in sweep.cells))
        for status in ("finished", "reused", "failed", "pending")
    }
    if sweep.seconds is not None:
        found[("seconds",)] = sweep.seconds
    for group in sweep.groups:
        if group.result is None:
            continue
        for path, number in _walk(group.result, ()):
            if path[0] in ("accuracy", "similarity"):
                found[(path[0], group.name, *path[1:])] = number
    return _named(found)


def clean(part: str) -> str:
    """One part of a name with letters, digits, `_`, `-`, `.` and spaces alone, at most 80 long, never empty."""
    plain = re.sub(r"[^A-Za-z0-9_.\- ]", "_", part)[:_LONGEST].strip(" ")
    # `.` and `..` would be folders to a tracker that keeps a file a name.
    return plain if plain.strip(".") else "_"


def _named(found: Mapping[tuple[str, ...], float]) -> dict[str, float]:
    names: dict[str, float] = {}
    for path, number in found.items():
        name = whole = "/".join(clean(part) for part in path)
        # Two names of models may differ in nothing but the letters that were taken out.
        again = 2
        while name in names:
            name = f"{whole}-{again}"
            again += 1
        names[name] = number
    return names


def _walk(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], float]]:
    """Every number below `value`, with its path."""
    if isinstance(value, int | float):
        if math.isfinite(value):
            yield path, float(value)
    elif isinstance(value, BaseModel):
        fields = _told(value)
        if "mean" in fields:
            yield from _walk(fields.pop("mean"), path)
            for name, beside in fields.items():
                yield from _walk(beside, (name, *path))
        else:
            for name, part in fields.items():
                yield from _walk(part, (*path, name))
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from _walk(part, (*path, str(key)))
    elif isinstance(value, tuple) and len(value) == 2:
        for end, part in zip(("low", "high"), value, strict=True):
            yield from _walk(part, (*path, end))
    elif isinstance(value, list):
        for place, record in enumerate(value):
            if isinstance(record, Record) and record.named_by is not None:
                yield from _walk(_told(record), (*path, _name(record, place)))


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


def _told(record: BaseModel) -> dict[str, Any]:
    """A record's fields but those that are left out, and those that its name in a list tells."""
    kind = type(record)
    untold = {*LEFT_OUT, *(getattr(kind, "named_by", None) or ())}
    return {name: getattr(record, name) for name in kind.model_fields if not untold & {name, f"{kind.__name__}.{name}"}}
