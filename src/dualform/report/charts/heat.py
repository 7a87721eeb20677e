"""Colours of heat maps of signed numbers: pale at zero, with a hue for each sign."""

import altair as alt

MISSING_COLOUR = "#6E6E6E"
"""Colour of a cell without a number, which does not occur in the scale."""
DARK_FROM = 0.7
"""Share of the scale's range above which the text on a cell is white."""


def heat_colours(field: str, reach: float, legend: alt.Legend | None = None) -> alt.Color:
    """Colour by a field, on a scale from `-reach` to `reach` that is pale at zero."""
    return alt.Color(f"{field}:Q", scale=alt.Scale(scheme="blueorange", domain=[-reach, reach]), legend=legend)


def ink_on(value: float, reach: float) -> str:
    """Colour of a text on a cell with this value."""
    return "#FFFFFF" if abs(value) > DARK_FROM * reach else "#111111"
