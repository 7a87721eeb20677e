"""Dot charts: means with intervals, one per row; small dots for seeds, and dashed lines for reference levels."""

from collections.abc import Mapping, Sequence
from typing import Any, Unpack

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, interval_hints, shares
from dualform.report.charts.plot import Plot, Rows, Size
from dualform.report.numerals import finite, known
from dualform.result import Estimate, Paired

ROW_HEIGHT = 36
"""Height of a row in pixels."""
LANE_HEIGHT = 20
"""Height in pixels of each dot in a row with several."""


def interval_row(estimate: Estimate | Paired | None, factor: float = 1.0) -> dict[str, Any] | None:
    """`mean`, `low`, `high` and `n` of an estimate as data for a chart; None without a mean.

    Args:
        estimate: The estimate.
        factor: Factor for conversion of units, such as 100 for shares in points.
    """
    mean = finite(estimate.mean) if estimate is not None else None
    if estimate is None or mean is None:
        return None
    # Without an interval the stroke has length zero.
    low, high = known(estimate.ci95) or (mean, mean)
    return {"mean": factor * mean, "low": factor * low, "high": factor * high, "n": estimate.n}


def dot_rows(named: Mapping[str, Estimate], row: str = "learner", value: str = "accuracy") -> list[dict[str, Any]]:
    """Data for `share_chart`: a row for each estimate that has a mean.

    Args:
        named: Estimates by their name on the axis.
        row: Field for the name.
        value: Field for the mean.
    """
    rows = [(name, interval_row(estimate)) for name, estimate in named.items()]
    return [{row: name, value: each.pop("mean")} | each for name, each in rows if each is not None]


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
    """A chart of dots with intervals, one row per name; with `lanes`, several dots per row.

    Args:
        rows: Rows with the fields of the axes, `low` and `high`.
        names: The axis of names.
        values: The axis of numbers.
        colour: Colour of intervals and dots.
        hover: Content of the tooltips.
        lanes: Names of the dots within a row.
        seeds: Single runs, with the fields of the axes and `seed`.
        levels: Values and names of dashed lines.
        zero: Whether to draw a line at zero.
        title: Heading of the chart.
        size: See `Plot.chart`; by default the height follows from the number of rows.
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
        # Below the interval, so that they do not overlap.
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
    """A dot chart of shares in [0, 1], whose axis covers only the range of the data.

    Args:
        rows: Rows made by `dot_rows`.
        colour: Colour of intervals and dots.
        title: Title of the axis of shares.
        row: Field with the name on the other axis.
        value: Field with the mean.
        value_title: Name of the mean in the tooltips.
        seeds: Single runs, with the fields named by `row` and `value`, and `seed`.
        levels: Values and names of dashed lines.
        lanes: Names of the dots within a row.
        hover: Further content of the tooltips, after name, mean, interval and n.
        size: See `Plot.chart`.
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
