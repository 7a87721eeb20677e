"""Small multiples: panels next to and below one another, each with its heading."""

from collections.abc import Sequence

import altair as alt

WIDE = 560
"""Pixels of a panel that has a row to itself."""


def panels(charts: Sequence[alt.LayerChart], *, columns: int, gap: int, row_gap: int) -> alt.ConcatChart | None:
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
    return alt.TitleParams(text, anchor="start", frame="group", offset=offset, limit=420)
