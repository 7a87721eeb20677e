"""Small multiples: panels in rows and columns, each with a heading."""

from collections.abc import Sequence

import altair as alt

WIDE = 560
"""Width in pixels of a panel that is alone in its row."""


def panels(charts: Sequence[alt.LayerChart], *, columns: int, gap: int, row_gap: int) -> alt.ConcatChart | None:
    """Charts as small multiples, each with its own scales; None without charts.

    Args:
        charts: The panels.
        columns: Maximum number of panels in a row.
        gap: Space to the left of each panel, in pixels, which must hold the labels of its axis.
        row_gap: Space between two rows, in pixels, which must hold an axis and a title.
    """
    if not charts:
        return None
    # "flush" aligns the plots regardless of the width of their axis labels, which the spacing then has to hold.
    spacing = {"column": gap, "row": row_gap}
    return alt.concat(*charts, columns=min(columns, len(charts)), spacing=spacing, bounds="flush")


def panel_title(text: str, offset: int = 20) -> alt.TitleParams:
    """Heading of a panel; the default offset, in pixels, leaves room for the name of a line below it."""
    return alt.TitleParams(text, anchor="start", frame="group", offset=offset, limit=420)
