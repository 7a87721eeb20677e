"""Line charts with intervals."""

import math
from collections.abc import Sequence
from typing import Unpack

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers
from dualform.report.charts.plot import Plot, Rows, Size

MOST_DECADES = 8
"""Number of decades on a log axis above which some have no tick."""


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
    """A chart with one line per colour, and a tooltip for each row.

    Args:
        rows: Rows with the fields of both axes, of the colour and the dash; for intervals also `low` and `high`.
        x: The horizontal axis.
        y: The vertical axis.
        colour: Colour of the lines, which separates the series.
        hover: Content of the tooltips.
        dash: Dashes of the lines.
        bands: Whether to draw intervals as bands.
        strokes: Whether to draw intervals as a stroke for each row.
        zero: Whether to draw a line at zero.
        dots: Size of the points, in square pixels; 0 makes them invisible.
        title: Heading of the chart.
        size: See `Plot.chart`.
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
    """Ticks of a log axis, to replace Vega's, which are at 1 to 9 in every decade.

    Args:
        values: The positive values on the axis.
        within: Whether to omit ticks outside the range of the values.

    Returns:
        Powers of ten that enclose the values, also multiplied by 2 and 5 if there are at most two decades; some are
        omitted if there are many decades.
    """
    smallest, largest = min(values), max(values)
    low, high = math.floor(math.log10(smallest)), math.ceil(math.log10(largest))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    every = max(1, math.ceil((high - low) / MOST_DECADES))
    ticks = [step * 10.0**decade for decade in range(low, high + 1, every) for step in steps]
    return [tick for tick in ticks if smallest <= tick <= largest] if within else ticks
