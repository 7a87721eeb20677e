"""Pieces of charts that several reports share: panels below or beside one another, a line to compare with."""

from collections.abc import Sequence

import altair as alt

from dualform.report.palette import MEASURE_COLOUR, learner_style

WIDE = 560
"""Pixels of a panel that has a row to itself."""


def panels(charts: Sequence[alt.TopLevelMixin], *, columns: int, gap: int, row_gap: int) -> alt.TopLevelMixin | None:
    """Charts as small multiples, each with its own scales; None without charts.

    Args:
        charts: The panels.
        columns: How many stand side by side where the page is wide enough.
        gap: Pixels left of each panel, which must hold the labels of its axis.
        row_gap: Pixels between two rows, which must hold an axis and a title.
    """
    if not charts:
        return None
    # "flush" lines the plots up whatever the width of their axis labels; the spacing then has to hold those.
    spacing = {"column": gap, "row": row_gap}
    return alt.concat(*charts, columns=min(columns, len(charts)), spacing=spacing, bounds="flush")


def panel_title(text: str, offset: int = 20) -> alt.TitleParams:
    """A panel's heading; the usual offset, in pixels, leaves room for the name of a line below it."""
    return alt.TitleParams(
        text, anchor="start", frame="group", fontSize=12, fontWeight="bold", offset=offset, limit=420
    )


NAME_HEIGHT = 12
"""Pixels from the name of one line to that of the next above it."""


def baseline_lines(levels: Sequence[tuple[float, str]], scale: alt.Scale, axis: alt.Axis) -> list[alt.Chart]:
    """A line for each baseline of accuracy, their names above one another so that close ones can be read."""
    return [
        layer
        for number, (value, name) in enumerate(levels)
        for layer in line_at(value, name, scale, axis, above=4 + number * NAME_HEIGHT)
    ]


def line_at(value: float, name: str, scale: alt.Scale, axis: alt.Axis, above: int = 4) -> list[alt.Chart]:
    """A dashed vertical line with its name above, so many pixels from the plot."""
    base = alt.Chart(alt.Data(values=[{"at": value}])).encode(x=alt.X("at:Q", scale=scale, axis=axis))
    line = base.mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR, strokeWidth=1.5)
    text = base.mark_text(align="center", baseline="bottom", color=MEASURE_COLOUR, fontSize=11).encode(
        y=alt.value(-above), text=alt.value(name)
    )
    return [line.encode(tooltip=alt.Tooltip("at:Q", format=".1%", title=name)), text]


def zero_line() -> alt.Chart:
    """A thin vertical line at zero."""
    return alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeWidth=1, color="#9AA3AD").encode(x=alt.X("zero:Q"))


def learner_scale(keys: Sequence[str]) -> alt.Scale:
    """Colours of a field that holds learners' titles."""
    styles = [learner_style(key) for key in keys]
    return alt.Scale(domain=[style.title for style in styles], range=[style.colour for style in styles])


def learner_colours(keys: Sequence[str], legend: alt.Legend | None) -> alt.Color:
    """Colour by the field `learner`, which holds titles."""
    return alt.Color("learner:N", scale=learner_scale(keys), legend=legend)
