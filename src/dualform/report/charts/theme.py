"""The theme of all charts: fonts, sizes and colours, on a light background and on a page.

The theme is registered with altair as `dualform` and applied when a chart is saved or placed on a page. Importing this
module does not change altair's settings. In a notebook, `altair.theme.enable("dualform")` applies it to other charts.
"""

from dataclasses import dataclass

import altair as alt

FONT = 'system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif'

RULE_COLOUR = "#8F98A2"
"""Colour of thin lines, such as the one at zero; visible on white and on black."""


@dataclass(frozen=True)
class Inks:
    """Colours and font of everything but the data."""

    text: str
    soft: str
    line: str
    font: str = FONT


LIGHT = Inks("#1c2024", "#5b646e", "#dfe3e7")
OF_PAGE = Inks("var(--text)", "var(--soft)", "var(--line)", "var(--font)")
"""Variables of the page's style sheet, so that a picture adapts to the reader's colour scheme."""


def config(inks: Inks = LIGHT, background: str = "transparent") -> alt.theme.ConfigKwds:
    """The `config` of a Vega-Lite specification.

    Args:
        inks: Colours of text and lines.
        background: CSS colour behind the chart.
    """
    return {
        "background": background,
        "font": inks.font,
        "title": {"color": inks.text, "fontSize": 12, "fontWeight": "bold"},
        "axis": {
            "labelColor": inks.soft,
            "titleColor": inks.soft,
            "gridColor": inks.line,
            "domainColor": inks.line,
            "tickColor": inks.line,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
        },
        "legend": {
            "labelColor": inks.soft,
            "titleColor": inks.soft,
            "labelFontSize": 11,
            "titleFontSize": 11.5,
            "titleFontWeight": "normal",
        },
        "text": {"fontSize": 11},
        "view": {"stroke": None},
    }


THEME = "dualform"
"""Name of the theme in altair."""


def theme() -> alt.theme.ThemeConfig:
    """The theme with a white background, for altair."""
    return {"config": config(LIGHT, "white")}


alt.theme.register(THEME, enable=False)(theme)
