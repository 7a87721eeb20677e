"""Lines over an axis, one a series, with their intervals as bands."""

import math
from collections.abc import Sequence
from typing import Unpack

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers
from dualform.report.charts.plot import Plot, Rows, Size

MOST_DECADES = 8
"""Decades of a log axis above which some get no tick."""


def line_chart(
    rows: Rows,
    x: Numbers | Names,
    y: Numbers,
    *,
    colour: alt.Color | str,
    hover: Sequence[Hint],
    dash: alt.StrokeDash | None = None,
    bands: bool = False,
    strokes: bool = False,
    zero: bool = False,
    dots: float = 0,
    title: str | None = None,
    **size: Unpack[Size],
) -> alt.LayerChart:
    """Lines with a point under the pointer for each row.

    Args:
        rows: Each with the fields of both axes, of colour and dash; with `low` and `high` for bands.
        x: The axis below.
        y: The axis on the left.
        colour: Of the lines, which it tells apart.
        hover: What is shown for a point under the pointer.
        dash: Dashes of the lines.
        bands: Whether intervals are drawn as bands.
        strokes: Whether they are drawn as a stroke for each row.
        zero: Whether zero is a line.
        dots: Size of the points that are seen, in square pixels; none are without it.
        title: Its heading.
        size: As for `Plot.chart`.
    """
    plot = Plot(x, y, colour=colour, hover=hover)
    if zero:
        plot.thin()
    if bands and (banded := [row for row in rows if row["low"] < row["high"]]):
        plot.bands(banded, opacity=0.15)
    if strokes:
        plot.intervals(rows, width=2, opacity=0.45)
    plot.line(rows, *([] if dash is None else [dash]), width=1.8)
    plot.dots(rows, size=dots or 60, opacity=1 if dots else 0)
    return plot.chart(title=title, **size)


def log_ticks(values: Sequence[float], *, within: bool = False) -> list[float]:
    """Ticks of a log axis: Vega draws a line at each of 1 to 9 in every decade.

    Args:
        values: What lies on the axis, above zero.
        within: Whether ticks beyond the smallest and the largest value are left out.

    Returns:
        Powers of ten from below the smallest to above the largest value, some left out where they are many; with 2 and
        5 of each where they are few.
    """
    smallest, largest = min(values), max(values)
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = max(1, math.ceil((high - low) / MOST_DECADES))
    ticks = [step * 10.0**decade for decade in range(low, high + 1, every) for step in steps]
    return [tick for tick in ticks if smallest <= tick <= largest] if within else ticks
