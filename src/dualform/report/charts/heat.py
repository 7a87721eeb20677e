"""Heat maps of signed numbers: pale where they are zero, the sign as a hue."""

import altair as alt

MISSING_COLOUR = "#6E6E6E"
"""Of a cell without a number: darker than the pale middle of the scale, and no colour of it."""
DARK_FROM = 0.7
"""Share of the scale's reach from which a cell is so dark that the text on it is white."""


def heat_colours(field: str, reach: float, legend: alt.Legend | None = None) -> alt.Color:
    """Colours from `-reach` to `reach`: symmetric, so that the pale middle is zero and the sign is seen."""
    return alt.Color(f"{field}:Q", scale=alt.Scale(scheme="blueorange", domain=[-reach, reach]), legend=legend)


def ink_on(value: float, reach: float) -> str:
    """Colour of a text that stands on a cell."""
    return "#FFFFFF" if abs(value) > DARK_FROM * reach else "#111111"
