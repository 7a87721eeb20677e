"""Colours, dashes and shapes of series, and their legends."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dualform.report.palette import MEASURE_COLOUR, learner_style

SHAPES: tuple[str, ...] = ("circle", "triangle-up", "diamond", "square", "triangle-down", "cross")


def learner_scale(keys: Sequence[str]) -> alt.Scale:
    """Colours of a field that holds learners' titles."""
    styles = [learner_style(key) for key in keys]
    return alt.Scale(domain=[style.title for style in styles], range=[style.colour for style in styles])


def learner_colours(keys: Sequence[str], legend: alt.Legend | None) -> alt.Color:
    """Colour by the field `learner`, which holds titles."""
    return alt.Color("learner:N", scale=learner_scale(keys), legend=legend)


def colours(field: str, named: Mapping[str, str], legend: alt.Legend | None = None) -> alt.Color:
    """Colour by a field of names, each with a CSS colour."""
    return alt.Color(f"{field}:N", **_encoded(named, legend))


def shapes(field: str, named: Mapping[str, str], legend: alt.Legend | None = None) -> alt.Shape:
    """Shape by a field of names, each with a shape of Vega's."""
    return alt.Shape(f"{field}:N", **_encoded(named, legend))


def dashes(field: str, named: Mapping[str, Sequence[int]], legend: alt.Legend | None = None) -> alt.StrokeDash:
    """Dashes by a field of names, each with lengths of stroke and gap in pixels."""
    return alt.StrokeDash(f"{field}:N", **_encoded({name: [*each] for name, each in named.items()}, legend))


def legend(columns: int = 3, *, symbol: str = "", below: bool = False, grey: bool = False, **others: Any) -> alt.Legend:
    """A legend in rows above or below a chart.

    Args:
        columns: Names in a row.
        symbol: `circle`, or `stroke` for lines with dashes; without it, what the marks are.
        below: Whether it stands below: on a narrow screen the menu of the chart may cover it above.
        grey: For shapes: their colour, since black vanishes on a dark screen.
        others: Further properties.
    """
    look: dict[str, Any] = {"symbolFillColor": MEASURE_COLOUR, "symbolStrokeColor": MEASURE_COLOUR} if grey else {}
    if symbol:
        # Long enough for dashes to be told from one another.
        look |= {"symbolType": symbol, "symbolSize": 400 if symbol == "stroke" else 100, "symbolStrokeWidth": 2}
    place = {"orient": "bottom" if below else "top", "columns": columns}
    return alt.Legend(**({"title": None, "symbolOpacity": 1} | place | look | others))


def _encoded(named: Mapping[str, Any], legend: alt.Legend | None) -> dict[str, Any]:
    names = [*named]
    return {"sort": names, "scale": alt.Scale(domain=names, range=[*named.values()]), "legend": legend}
