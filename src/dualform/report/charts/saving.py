"""Save a chart to a file."""

from pathlib import Path
from typing import Literal

import altair as alt

from dualform.errors import ConfigError
from dualform.files import atomic_write
from dualform.report.charts.theme import THEME

Format = Literal["svg", "png", "pdf", "html", "json"]
FORMATS: tuple[Format, ...] = ("svg", "png", "pdf", "html", "json")


def save_chart(chart: alt.TopLevelMixin, path: Path) -> None:
    """Save a chart in the theme of a light page.

    Args:
        chart: The chart.
        path: File to write. Its suffix determines the format: .svg, .pdf, .png, .html (self-contained) or .json
            (Vega-Lite).

    Raises:
        ConfigError: The suffix is none of these.
        StorageError: The file cannot be written.
    """
    kind = next((each for each in FORMATS if path.suffix.lower() == f".{each}"), None)
    if kind is None:
        suffixes = ", ".join(f".{each}" for each in FORMATS)
        raise ConfigError(f"cannot save a chart as {path.name!r}. Use one of the suffixes {suffixes}.")
    with atomic_write(path) as temporary, alt.theme.enable(THEME):
        if kind == "html":
            chart.save(str(temporary), format=kind, inline=True)
        elif kind == "png":
            # Twice the resolution of a screen, for print.
            chart.save(str(temporary), format=kind, engine="vl-convert", ppi=200)
        else:
            chart.save(str(temporary), format=kind, engine="vl-convert")
