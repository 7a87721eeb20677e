"""Colours of heat maps: of signed numbers, pale at zero with a hue for each sign, and of shares."""

import altair as alt

MISSING_COLOUR = "#6E6E6E"
"""Colour of a cell without a number, which does not occur in the scale."""
DARK_FROM = 0.7
"""Share of the scale's range above which the text on a cell is white."""
SHARES_DARK_FROM = 0.58
"""The same on the scale of `share_colours`."""


def heat_colours(field: str, reach: float, legend: alt.Legend | None = None) -> alt.Color:
    """Colour by a field, on a scale from `-reach` to `reach` that is pale at zero."""
    return alt.Color(f"{field}:Q", scale=alt.Scale(scheme="blueorange", domain=[-reach, reach]), legend=legend)


def share_colours(field: str, legend: alt.Legend | None = None) -> alt.Color:
    """Colour by a field of shares, from pale at 0 to dark at 1."""
    return alt.Color(f"{field}:Q", scale=alt.Scale(scheme="blues", domain=[0, 1]), legend=legend)


def ink_on(value: float, reach: float, dark_from: float = DARK_FROM) -> str:
    """Colour of a text on a cell with this value; white above the share `dark_from` of the scale's range."""
    return "#FFFFFF" if abs(value) > dark_from * reach else "#111111"
