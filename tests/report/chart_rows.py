"""The data rows that a chart holds."""

from typing import Any


def values(spec: Any) -> list[dict]:
    """All data rows of a Vega-Lite specification, wherever they lie."""
    if isinstance(spec, dict):
        own = spec["values"] if isinstance(spec.get("values"), list) and spec["values"] else []
        # On a page layers refer to their rows by name.
        shared = [row for each in spec.get("datasets", {}).values() for row in each]
        rows = shared + [row for row in own if isinstance(row, dict)]
        return rows + [row for key, part in spec.items() if key not in ("values", "datasets") for row in values(part)]
    return [row for part in spec for row in values(part)] if isinstance(spec, list) else []


def drawn(chart) -> list[dict]:
    """All data rows of a chart that must be there."""
    assert chart is not None
    return values(chart.to_dict())


def held(chart, field: str) -> list[dict]:
    """The rows that have a field, each once: layers of a chart repeat them."""
    rows = [row for row in drawn(chart) if field in row]
    return [row for number, row in enumerate(rows) if row not in rows[:number]]
