"""Charts of the laboratory: curves of models over a common axis, exact predictors dashed.

Studies decide what a chart holds, so every case is handled here: any number of curves, missing points, zeros on a log
axis, and curves that are orders of magnitude away from the others.
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
"""Height of a chart in pixels."""

COLOURS = (
    *("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"),
    *("#7F6BB3", "#9C7C1C", "#6B8E6B", "#B5495B", "#8C7A6B", "#3E8E8E"),
)
"""Colours of trained models, in the order in which a study names them; the first six are Okabe and Ito's."""
DASHES = (
    *((4, 4), (1, 3), (8, 3), (8, 3, 2, 3)),
    *((2, 6), (12, 3), (8, 3, 2, 3, 2, 3), (14, 6, 4, 6)),
)
GREYS = (MEASURE_COLOUR, "#9B8467")
"""Colours of exact predictors, in turn; once all dashes are used, each is repeated in the other grey. Both are legible
on white and on black."""

FAR = 1e3
"""A log axis extends at most this factor beyond all models to include exact predictors, whose errors may reach zero."""
LARGEST = 1e300
"""Larger values are not drawn: the range of an axis around them would overflow."""
DOTTED = 16
"""Curves with at most this many points are drawn with dots."""
TICKS = 8
"""Each x gets its own tick if there are at most this many."""


@dataclass(frozen=True)
class CurveStyle:
    """Colour and dash pattern of a curve."""

    colour: str
    dash: tuple[int, ...]


@dataclass(frozen=True)
class _Axis:
    low: float
    high: float
    log: bool

    def holds(self, value: float) -> bool:
        return self.low <= value <= self.high


def curve_styles(charts: Iterable[LabChart]) -> dict[tuple[str, bool], CurveStyle]:
    """The style of each curve of a study, by its name and whether it is a reference; the same in all charts."""
    keys = dict.fromkeys((curve.name, curve.reference) for chart in charts for curve in chart.curves)
    models = [key for key in keys if not key[1]]
    exact = [key for key in keys if key[1]]
    solid = {key: CurveStyle(COLOURS[place % len(COLOURS)], (1, 0)) for place, key in enumerate(models)}
    dashed = [CurveStyle(GREYS[(place + turn) % 2], dash) for turn in range(2) for place, dash in enumerate(DASHES)]
    return solid | {key: dashed[place % len(dashed)] for place, key in enumerate(exact)}


def lab_chart(chart: LabChart, styles: dict[tuple[str, bool], CurveStyle]) -> alt.TopLevelMixin | None:
    """Curves with their intervals as bands; None if no point can be drawn.

    Args:
        chart: Curves and the titles of the axes.
        styles: Style of each curve, from `curve_styles`.
    """
    rows = _rows(chart)
    visible = [row for row in rows if row["mean"] is not None]
    if not visible:
        return None
    places = sorted({row["x"] for row in visible})
    x_axis = _x_axis(places, chart.log_x)
    y_axis = _y_axis(chart, rows)
    names = list(dict.fromkeys(row["curve"] for row in visible))
    style = {row["curve"]: styles[chart.curves[row["line"]].name, row["reference"]] for row in visible}
    # Two columns where the names fit on a phone.
    columns = 2 if max(map(len, names)) <= 22 else 1
    key = legend(columns, symbol="stroke", labelLimit=300 // columns)
    plot = Plot(
        # The padding leaves room for half a dot at either end.
        _numbers("x", chart.x, x_axis, places=places, padding=6, grid=False),
        _numbers("mean", None, y_axis),
        colour=colours("curve", {name: style[name].colour for name in names}, key),
        hover=("curve", ("x", ".4~g", chart.x), ("mean", ".4~g", chart.y), *interval_hints(".4~g")),
        detail="line",
    )
    if any(row["low"] < row["high"] for row in visible):
        plot.bands([_clip_band(row, y_axis) for row in rows], opacity=0.15, clip=True)
    plot.line(rows, dashes("curve", {name: style[name].dash for name in names}, key), width=1.8, clip=True)
    plot.dots(_dots(visible), alt.Opacity("dot:Q", scale=None), size=34, clip=True)
    return plot.chart(height=HEIGHT, title=chart.y, offset=8)


def describe_chart(chart: LabChart) -> str:
    """The chart described in one sentence, for screen readers."""
    names = list(dict.fromkeys(_labels(chart)))
    return f"{chart.title}: {chart.y} over {chart.x}{f', for {listed(names)}' if names else ''}."


def remarks(chart: LabChart) -> list[str]:
    """Sentences about the points that the chart does not show."""
    rows = _rows(chart)
    counts = Counter(row["omitted"] for row in rows)
    sentences = [
        f"{plural(counts[reason], 'point')} {singular if counts[reason] == 1 else several} {rest}."
        for reason, (singular, several, rest) in _OMITTED.items()
        if counts[reason]
    ]
    if any(row["mean"] is not None for row in rows):
        y_axis = _y_axis(chart, rows)
        leaving = list(
            dict.fromkeys(row["curve"] for row in rows if row["mean"] is not None and not y_axis.holds(row["mean"]))
        )
        if leaving:
            leave = "leaves the chart where it is" if len(leaving) == 1 else "leave the chart where they are"
            sentences.append(f"{capital(listed(leaving))} {leave} more than {FAR:,.0f} times away from all models.")
    return sentences


_OMITTED = {
    "none": ("has", "have", "no number"),
    "below": ("is", "are", "zero or negative, and cannot be drawn on a log axis"),
    "small": ("is", "are", f"too close to zero for a log axis: below {1 / LARGEST:.0e}"),
    "large": ("is", "are", f"too large for the axis: beyond {LARGEST:.0e}"),
}
"""Why a point is not drawn -> verb for one point, verb for several, and the rest of the sentence."""


def _rows(chart: LabChart) -> list[dict[str, Any]]:
    """One row a point; `mean` is None, which breaks the line, where it is missing or cannot be drawn.

    `omitted` is the reason, a key of `_OMITTED`; it is empty for a point that is drawn.
    """
    rows = []
    for place, (curve, label) in enumerate(zip(chart.curves, _labels(chart), strict=True)):
        for at, estimate in zip(curve.x, curve.y, strict=True):
            no_x = _reason_omitted(at, chart.log_x)
            reason = _reason_omitted(estimate.mean, chart.log_y) or no_x
            x = None if no_x else finite(at)
            mean = None if reason else finite(estimate.mean)
            ends = known(estimate.ci95)
            low, high = ends if ends is not None and mean is not None else (mean, mean)
            rows.append(
                {"curve": label, "reference": curve.reference, "line": place, "x": x, "mean": mean}
                | {"low": low, "high": high, "n": estimate.n, "omitted": reason}
            )
    return rows


def _labels(chart: LabChart) -> list[str]:
    """Each curve's label; an exact predictor with the same name as a model gets `(exact)` after it."""
    models = {curve.name for curve in chart.curves if not curve.reference}
    labels = []
    for curve in chart.curves:
        label = curve.name
        while curve.reference and label in models:
            label += " (exact)"
        labels.append(label)
    return labels


def _reason_omitted(value: float | None, log: bool) -> str:
    """Why a number cannot be drawn on an axis, as a key of `_OMITTED`; empty if it can."""
    number = finite(value)
    if number is None:
        return "none"
    if log and number <= 0:
        return "below"
    if log and number < 1 / LARGEST:
        return "small"
    return "large" if abs(number) > LARGEST else ""


def _x_axis(values: Sequence[float], log: bool) -> _Axis:
    low, high = min(values), max(values)
    if low < high:
        return _Axis(low, high, log)
    return _Axis(low / 2, high * 2, log) if log else _Axis(low - 1, high + 1, log)


def _y_axis(chart: LabChart, rows: Sequence[dict[str, Any]]) -> _Axis:
    """The y axis: all models' means, and bands and distant exact predictors as far as the means stay readable."""
    visible = [row for row in rows if row["mean"] is not None]
    own = [row["mean"] for row in visible if not row["reference"]] or [row["mean"] for row in visible]
    exact = [row["mean"] for row in visible if row["reference"]]
    bands = [end for row in visible for end in (row["low"], row["high"])]
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
    # The axis begins at zero if all values are positive and zero is near, and ends at zero if it is the largest value.
    bottom = 0.0 if 0 <= low <= 0.5 * high else low - margin
    return _Axis(bottom, 0.0 if low < high == 0 else high + margin, log=False)


def _clip_band(row: dict[str, Any], axis: _Axis) -> dict[str, Any]:
    """A band clipped to the axis: on a log axis an end below zero could not be drawn."""
    if row["mean"] is None:
        return row
    return row | {end: min(max(row[end], axis.low), axis.high) for end in ("low", "high")}


def _dots(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Points that show their values on hover; `dot` is 0, invisible, for long curves and exact predictors' lines."""
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
