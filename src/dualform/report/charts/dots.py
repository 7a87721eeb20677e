"""Means as dots with their intervals, one row each; seeds as small dots below them, levels to compare with as lines."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, interval_hints, shares
from dualform.report.charts.plot import Plot, Rows, Size
from dualform.report.numerals import finite, known
from dualform.result import Estimate, Paired

ROW_HEIGHT = 36
"""Pixels of a row."""
LANE_HEIGHT = 20
"""Pixels of a dot that shares its row with others."""


def interval_row(estimate: Estimate | Paired | None, factor: float = 1.0) -> dict[str, Any] | None:
    """`mean`, `low`, `high` and `n` of an estimate as data of a chart; None without a mean.

    Args:
        estimate: The estimate.
        factor: For units: 100 for shares in points.
    """
    mean = finite(estimate.mean) if estimate is not None else None
    if estimate is None or mean is None:
        return None
    # Without an interval the stroke shrinks to the dot.
    low, high = known(estimate.ci95) or (mean, mean)
    return {"mean": factor * mean, "low": factor * low, "high": factor * high, "n": estimate.n}


def dot_rows(named: Mapping[str, Estimate], row: str = "learner", value: str = "accuracy") -> list[dict[str, Any]]:
    """The data of `share_chart`: a row for each estimate that has a mean.

    Args:
        named: Estimates by what stands on the axis.
        row: Field that holds the name.
        value: Field that holds the mean.
    """
    found = [(name, interval_row(estimate)) for name, estimate in named.items()]
    return [{row: name, value: each.pop("mean")} | each for name, each in found if each is not None]


def dot_chart(
    rows: Rows,
    *,
    names: Names,
    values: Numbers,
    colour: alt.Color | str,
    hover: Sequence[Hint],
    lanes: Names | None = None,
    seeds: Rows = (),
    levels: Sequence[tuple[float, str]] = (),
    zero: bool = False,
    title: str | None = None,
    **size: Unpack[Size],
) -> alt.LayerChart:
    """Dots with intervals along an axis of numbers, a row a name; with `lanes`, several dots a row.

    Args:
        rows: Each with the fields of the axes, `low` and `high`.
        names: The rows.
        values: The axis of numbers.
        colour: Of intervals and dots.
        hover: What is shown for a dot under the pointer.
        lanes: Names that stand side by side within a row.
        seeds: Single runs, with the same fields but an interval, and `seed`.
        levels: Values drawn as dashed lines, each with its name.
        zero: Whether zero is a line.
        title: Its heading.
        size: As for `Plot.chart`; by default so high that rows have room.
    """
    plot = Plot(values, names, colour=colour, hover=hover, lanes=lanes)
    for level, name in levels:
        plot.level(level, name)
    if zero:
        plot.thin()
    plot.intervals(rows)
    plot.dots(rows, size=70 if lanes else 130)
    if seeds:
        hints = (names.field, "seed", (values.field, values.format or ".3f"))
        # Below the interval, so that neither hides the other.
        plot.dots(seeds, size=26, opacity=0.55, hover=hints, aside=11)
    row = LANE_HEIGHT * len(lanes.names) + 8 if lanes else ROW_HEIGHT
    usual: Size = {"height": row * len(names.names) + 10}
    return plot.chart(title=title, **(usual | size))


def share_chart(
    rows: Rows,
    *,
    colour: alt.Color | str,
    title: str,
    row: str = "learner",
    value: str = "accuracy",
    value_title: str = "mean accuracy",
    seeds: Rows = (),
    levels: Sequence[tuple[float, str]] = (),
    lanes: Names | None = None,
    hover: Sequence[Hint] = (),
    **size: Unpack[Size],
) -> alt.LayerChart:
    """Shares in [0, 1] as dots with intervals, on an axis around them.

    Args:
        rows: As `dot_rows` makes them.
        colour: Of intervals and dots.
        title: Of the axis of shares.
        row: Field with the name on the other axis.
        value: Field with the mean.
        value_title: Its name under the pointer.
        seeds: Single runs, with the fields `row`, `value` and `seed`.
        levels: Values drawn as dashed lines, each with its name.
        lanes: Names that stand side by side within a row.
        hover: What is shown beyond name, mean, interval and n.
        size: As for `Plot.chart`.
    """
    ends = [float(each[end]) for each in rows for end in ("low", "high")]
    axis = shares(value, title, ends + [float(each[value]) for each in seeds] + [level for level, _ in levels])
    first: tuple[Hint, ...] = (row,) if lanes is None else (row, lanes.field)
    return dot_chart(
        rows,
        names=Names(row, list(dict.fromkeys(str(each[row]) for each in rows))),
        values=axis,
        colour=colour,
        hover=(*first, (value, ".1%", value_title), *interval_hints(".1%"), *hover),
        lanes=lanes,
        seeds=[dict(each) for each in seeds],
        levels=levels,
        **size,
    )
