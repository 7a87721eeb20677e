"""Colours, dashes and shapes of series, and their legends."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict, TypeVar, Unpack

import altair as alt

from dualform.report.palette import MEASURE_COLOUR, learner_style

SHAPES: tuple[str, ...] = ("circle", "triangle-up", "diamond", "square", "triangle-down", "cross")


_Encoding = TypeVar("_Encoding", alt.Color, alt.Shape, alt.StrokeDash)


class LegendLook(TypedDict, total=False):
    """Further properties of a legend, with their names in Vega-Lite."""

    titleOrient: Literal["left", "top"]
    direction: Literal["horizontal", "vertical"]
    columnPadding: float
    labelLimit: float
    gradientLength: float
    gradientThickness: float
    tickCount: int


def learner_scale(keys: Sequence[str]) -> alt.Scale:
    """Colour scale for a field of learners' titles."""
    styles = [learner_style(key) for key in keys]
    return alt.Scale(domain=[style.title for style in styles], range=[style.colour for style in styles])


def learner_colours(keys: Sequence[str], legend: alt.Legend | None) -> alt.Color:
    """Colour by the field `learner`, which contains titles."""
    return alt.Color("learner:N", scale=learner_scale(keys), legend=legend)


def colours(field: str, named: Mapping[str, str], legend: alt.Legend | None = None) -> alt.Color:
    """Colour by a field of names, with a CSS colour for each."""
    return _encode(alt.Color, field, named, legend)


def shapes(field: str, named: Mapping[str, str], legend: alt.Legend | None = None) -> alt.Shape:
    """Shape by a field of names, with a Vega shape for each."""
    return _encode(alt.Shape, field, named, legend)


def dashes(field: str, named: Mapping[str, Sequence[int]], legend: alt.Legend | None = None) -> alt.StrokeDash:
    """Dashes by a field of names, with lengths of stroke and gap in pixels for each."""
    return _encode(alt.StrokeDash, field, {name: [*each] for name, each in named.items()}, legend)


def legend(
    columns: int = 3,
    *,
    symbol: Literal["", "circle", "stroke"] = "",
    below: bool = False,
    grey: bool = False,
    title: str | None = None,
    **look: Unpack[LegendLook],
) -> alt.Legend:
    """A legend above or below a chart.

    Args:
        columns: Number of names in a row.
        symbol: `circle`, or `stroke` for dashed lines; by default the shape of the marks.
        below: Whether to place the legend below the chart, where the menu of the chart cannot cover it.
        grey: Whether to draw the symbols in grey, because black shapes are invisible on a dark screen.
        title: Heading of the legend.
        look: Further properties.
    """
    # Strokes must be long enough to distinguish dashes.
    size = 400 if symbol == "stroke" else 100
    return alt.Legend(
        title=title,
        orient="bottom" if below else "top",
        columns=columns,
        symbolOpacity=1,
        symbolFillColor=MEASURE_COLOUR if grey else alt.Undefined,
        symbolStrokeColor=MEASURE_COLOUR if grey else alt.Undefined,
        symbolType=symbol or alt.Undefined,
        symbolSize=size if symbol else alt.Undefined,
        symbolStrokeWidth=2 if symbol else alt.Undefined,
        **look,
    )


def _encode(channel: type[_Encoding], field: str, named: Mapping[str, Any], legend: alt.Legend | None) -> _Encoding:
    names = [*named]
    return channel(f"{field}:N", sort=names, scale=alt.Scale(domain=names, range=[*named.values()]), legend=legend)
