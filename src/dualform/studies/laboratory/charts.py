"""Charts of the laboratory: curves of models over a common axis, exact predictors dashed.

What these charts hold is up to the studies, so nothing is taken for granted here: curves may be any number, have
holes, reach zero on a log axis or lie magnitudes beyond the others.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dualform.report.charts.axes import Numbers, interval_hints
from dualform.report.charts.colours import colours, dashes, legend
from dualform.report.charts.lines import log_ticks
from dualform.report.charts.plot import Plot
from dualform.report.numerals import finite, known
from dualform.report.palette import MEASURE_COLOUR
from dualform.report.phrases import capital, listed, plural
from dualform.studies.laboratory.result import LabChart

HEIGHT = 230
"""Pixels."""

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7F6BB3", "#9C7C1C", "#6B8E6B", "#B5495B", "#8C7A6B", "#3E8E8E"),
)
"""Of trained models, in the order in which a study names them; the first six are those of Okabe and Ito."""
DASHES = (
    *((4, 4), (1, 3), (8, 3), (8, 3, 2, 3)),
    *((2, 6), (12, 3), (8, 3, 2, 3, 2, 3), (14, 6, 4, 6)),
)
GREYS = (MEASURE_COLOUR, "#9B8467")
"""Of exact predictors, in turns; once all dashes are taken, each comes in the other grey. Both are legible on white
and on black."""

FAR = 1e3
"""On a log axis exact predictors are followed no farther than this factor beyond all models; they may reach zero."""
LARGEST = 1e300
"""What is larger cannot be drawn: the axis around it would have no end."""
DOTTED = 16
"""Curves of so many points or fewer have dots."""
TICKS = 8
"""Most places at which points lie that get a tick each."""


@dataclass(frozen=True)
class CurveStyle:
    """How a curve is drawn."""

    colour: str
    dash: tuple[int, ...]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def looks(charts: Iterable[LabChart]) -> dict[tuple[str, bool], CurveStyle]:
    """The look of each curve of a study, by its name and whether it is a reference: the same in all charts."""
    keys = dict.fromkeys((curve.name, curve.reference) for chart in charts for curve in chart.curves)
    models = [key for key in keys if not key[1]]
    exact = [key for key in keys if key[1]]
    found = {key: CurveStyle(COLOURS[place % len(COLOURS)], (1, 0)) for place, key in enumerate(models)}
    dashed = [CurveStyle(GREYS[(place + turn) % 2], dash) for turn in range(2) for place, dash in enumerate(DASHES)]
    return found | {key: dashed[place % len(dashed)] for place, key in enumerate(exact)}


def lab_chart(chart: LabChart, styles: dict[tuple[str, bool], CurveStyle]) -> alt.TopLevelMixin | None:
    """Curves with their intervals as bands; None where no point has a place on the axes.

    Args:
        chart: What is to be drawn.
        styles: See `looks`.
    """
    rows = _rows(chart)
    shown = [row for row in rows if row["mean"] is not None]
    if not shown:
        return None
    places = sorted({row["x"] for row in shown})
    across = _across(places, chart.log_x)
    up = _up(chart, rows)
    names = list(dict.fromkeys(row["curve"] for row in shown))
    look = {row["curve"]: styles[chart.curves[row["line"]].name, row["reference"]] for row in shown}
    # Side by side where they fit on a phone.
    columns = 2 if max(map(len, names)) <= 22 else 1
    key = legend(columns, symbol="stroke", labelLimit=300 // columns)
    plot = Plot(
        # Room for half a dot at either end.
        _numbers("x", chart.x, across, places=places, padding=6, grid=False),
        _numbers("mean", None, up),
        colour=colours("curve", {name: look[name].colour for name in names}, key),
        hover=("curve", ("x", ".4~g", chart.x), ("mean", ".4~g", chart.y), *interval_hints(".4~g")),
        detail="line",
    )
    if any(row["low"] < row["high"] for row in shown):
        plot.bands([_banded(row, up) for row in rows], opacity=0.15, clip=True)
    plot.line(rows, dashes("curve", {name: look[name].dash for name in names}, key), width=1.8, clip=True)
    plot.dots(_dots(shown), alt.Opacity("dot:Q", scale=None), size=34, clip=True)
    return plot.chart(height=HEIGHT, title=chart.y, offset=8)


def described(chart: LabChart) -> str:
    """The chart in a sentence, for those who cannot see it."""
    names = list(dict.fromkeys(_labels(chart)))
    return f"{chart.title}: {chart.y} over {chart.x}{f', for {listed(names)}' if names else ''}."


def remarks(chart: LabChart) -> list[str]:
    """What the chart does not show, in sentences."""
    rows = _rows(chart)
    counts = Counter(row["lost"] for row in rows)
    sentences = [
        f"{plural(counts[why], 'point')} {one if counts[why] == 1 else many} {rest}."
        for why, (one, many, rest) in _LOST.items()
        if counts[why]
    ]
    if any(row["mean"] is not None for row in rows):
        up = _up(chart, rows)
        leaving = list(
            dict.fromkeys(row["curve"] for row in rows if row["mean"] is not None and not up.holds(row["mean"]))
        )
        if leaving:
            leave = "leaves the chart where it is" if len(leaving) == 1 else "leave the chart where they are"
            sentences.append(f"{capital(listed(leaving))} {leave} more than {FAR:,.0f} times off all models.")
    return sentences


_LOST = {
    "none": ("has", "have", "no number"),
    "below": ("has", "have", "no place on a log axis: zero or below"),
    "small": ("is", "are", f"too close to zero for a log axis: below {1 / LARGEST:.0e}"),
    "large": ("is", "are", f"too large for the axis: beyond {LARGEST:.0e}"),
}
"""Why a point is not in the chart, with what is said of one such point and of several."""


def _rows(chart: LabChart) -> list[dict[str, Any]]:
    """All points; `mean` is None where there is none, which breaks the line, or where it has no place.

    `lost` says why, as a key of `_LOST`; it is empty for a point that is drawn.
    """
    rows = []
    for place, (curve, label) in enumerate(zip(chart.curves, _labels(chart), strict=True)):
        for at, estimate in zip(curve.x, curve.y, strict=True):
            aside, upright = _unplaced(at, chart.log_x), _unplaced(estimate.mean, chart.log_y)
            why = upright or aside
            x = None if aside else finite(at)
            mean = None if why else finite(estimate.mean)
            ends = known(estimate.ci95)
            low, high = ends if ends is not None and mean is not None else (mean, mean)
            rows.append(
                {"curve": label, "reference": curve.reference, "line": place, "x": x, "mean": mean}
                | {"low": low, "high": high, "n": estimate.n, "lost": why}
            )
    return rows


def _labels(chart: LabChart) -> list[str]:
    """What each curve is called in the chart: a model and an exact predictor of one name have two."""
    models = {curve.name for curve in chart.curves if not curve.reference}
    labels = []
    for curve in chart.curves:
        label = curve.name
        while curve.reference and label in models:
            label += " (exact)"
        labels.append(label)
    return labels


def _unplaced(value: float | None, log: bool) -> str:
    """Why a number has no place on an axis, as a key of `_LOST`; empty if it has one."""
    number = finite(value)
    if number is None:
        return "none"
    if log and number <= 0:
        return "below"
    if log and number < 1 / LARGEST:
        return "small"
    return "large" if abs(number) > LARGEST else ""


def _across(values: Sequence[float], log: bool) -> _Axis:
    low, high = min(values), max(values)
    if low < high:
        return _Axis(low, high, log)
    return _Axis(low / 2, high * 2, log) if log else _Axis(low - 1, high + 1, log)


def _up(chart: LabChart, rows: Sequence[dict[str, Any]]) -> _Axis:
    """The upright axis: all means, and as much of bands and of far exact predictors as leaves the means readable."""
    shown = [row for row in rows if row["mean"] is not None]
    own = [row["mean"] for row in shown if not row["reference"]] or [row["mean"] for row in shown]
    exact = [row["mean"] for row in shown if row["reference"]]
    bands = [end for row in shown for end in (row["low"], row["high"])]
    low, high = min(own), max(own)
    if chart.log_y:
        near = [mean for mean in exact if low / FAR <= mean <= high * FAR]
        near += [end for end in bands if low / 3 <= end <= high * 3]
        low, high = min([low, *near]), max([high, *near])
        return _Axis(max(low / 1.2, 1 / LARGEST), min(high * 1.2, LARGEST), log=True)
    low, high = min([low, *exact]), max([high, *exact])
    span = high - low or abs(high) or 1.0
    near = [end for end in bands if low - span / 2 <= end <= high + span / 2]
    low, high = min([low, *near]), max([high, *near])
    margin = 0.05 * ((high - low) or span)
    # Zero is shown where it is near, and nothing below it where nothing lies there.
    bottom = 0.0 if 0 <= low <= 0.5 * high else low - margin
    return _Axis(bottom, 0.0 if low < high == 0 else high + margin, log=False)


def _banded(row: dict[str, Any], up: _Axis) -> dict[str, Any]:
    """A band that ends at the chart's edge: on a log axis an end below zero has no place at all."""
    if row["mean"] is None:
        return row
    return row | {end: min(max(row[end], up.low), up.high) for end in ("low", "high")}


def _dots(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points to be pointed at; those of long curves and of exact predictors' lines cannot be seen."""
    sizes = Counter(row["line"] for row in rows)
    most = {True: 1, False: DOTTED}
    return [row | {"dot": float(sizes[row["line"]] <= most[row["reference"]])} for row in rows]


def _numbers(field: str, title: str | None, axis: _Axis, *, places: Sequence[float] = (), **others: Any) -> Numbers:
    ticks: int | Sequence[float] = 5
    if 0 < len(places) <= TICKS:
        ticks = places
    elif axis.log:
        ticks = log_ticks((axis.low, axis.high), within=True)
    domain = (axis.low, axis.high)
    return Numbers(field, title, domain=domain, log=axis.log, nice=False, ticks=ticks, labels=_NUMBER, **others)


_NUMBER = (
    "datum.value !== 0 && (abs(datum.value) >= 1e5 || abs(datum.value) < 1e-3)"
    " ? format(datum.value, '.2~e') : format(datum.value, ',~f')"
)
