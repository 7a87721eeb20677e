"""A chart as a file: for a paper, for a browser, or as data."""

from pathlib import Path
from typing import Literal

import altair as alt

from dualform.errors import ConfigError
from dualform.files import atomic_write
from dualform.report.charts.theme import THEME

Format = Literal["svg", "png", "pdf", "html", "json"]
FORMATS: tuple[Format, ...] = ("svg", "png", "pdf", "html", "json")


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Write a chart to `path`, whose ending says how: .svg, .pdf or .png for a paper, .html, or .json (Vega-Lite).

    It looks as on a page with a light background. The HTML file holds all it needs and works offline.

    Raises:
        ConfigError: The ending is none of these.
        StorageError: The file cannot be written.
    """
    kind = next((each for each in FORMATS if path.suffix.lower() == f".{each}"), None)
    if kind is None:
        endings = ", ".join(f".{each}" for each in FORMATS)
        raise ConfigError(f"cannot save a chart as {path.name!r}: its ending must be one of {endings}.")
    with atomic_write(path) as temporary, alt.theme.enable(THEME):
        if kind == "html":
            chart.save(str(temporary), format=kind, inline=True)
        elif kind == "png":
            # Twice the resolution of a screen, for print.
            chart.save(str(temporary), format=kind, engine="vl-convert", ppi=200)
        else:
            chart.save(str(temporary), format=kind, engine="vl-convert")
