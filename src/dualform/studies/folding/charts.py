"""A folding study as charts: one for each axis that was varied, None where there is nothing to draw.

Ways that have a name stand below one another as dots; ways along a scale are joined by a line. Zero-shot, ICL and FT
are lines to compare with. Text enters as data only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dualform.report.categories import category
from dualform.report.charts.panels import learner_colours, panel_title, panels
from dualform.report.numerals import finite, known
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Estimate
from dualform.studies.folding.result import FoldingResult, FoldPoint
from dualform.studies.folding.words import LOGARITHMIC, axis_name, is_scale, number_of, places, points_on

NAME_GAP = 130
"""Pixels that names take left of a panel."""
NUMBER_GAP = 56
"""Pixels that an axis of numbers takes."""
ROW = 30
CURVE_WIDTH, CURVE_HEIGHT = 220, 160

FOLD = "fold"


@dataclass(frozen=True)
class _Panel:
    """One number of the points, and what it is drawn beside."""

    title: str
    format: str
    read: Callable[[FoldPoint], Estimate | None]
    references: dict[str, Estimate]
    """Learner -> its level, drawn as a dashed line."""
    level: float | None = None
    """Where nothing has changed, drawn as a thin line."""


def axis_chart(result: FoldingResult, axis: str) -> alt.TopLevelMixin | None:
    """Accuracy, agreement with ICL and, where it is known, the ratio of perplexities over one axis.

    Args:
        result: Any result.
        axis: As in `FoldPoint.axis`.

    Returns:
        Small multiples; None without points that have numbers.
    """
    if result.folding is None:
        return None
    points = points_on(result.folding, axis)
    along = is_scale(axis, points)
    drawn = []
    shown = [panel for panel in _panels(result) if any(_has_number(panel.read(point)) for point in points)]
    keys = learners_in_order({FOLD, *(["icl"] if along else []), *(key for panel in shown for key in panel.references)})
    for panel in shown:
        drawn.append(_curve(axis, points, panel, keys) if along else _dots(points, panel, keys))
    if along:
        return panels(drawn, columns=3, gap=NUMBER_GAP, row_gap=84)
    return panels(drawn, columns=2, gap=NAME_GAP, row_gap=74)


def _panels(result: FoldingResult) -> list[_Panel]:
    folding = result.folding
    assert folding is not None
    levels = {"zsl": folding.zero_shot, "icl": folding.icl} | ({"ft": folding.ft} if folding.ft is not None else {})
    agreeing = {key: each.agreement for key, each in result.against_icl.items() if key in ("zsl", "ft")}
    return [
        _Panel("accuracy", ".0%", lambda point: point.accuracy, _with_numbers(levels)),
        _Panel("agreement with ICL", ".0%", lambda point: point.agreement, _with_numbers(agreeing)),
        _Panel("perplexity, folded over base", ".2f", _perplexity, {}, level=1.0),
    ]


def _perplexity(point: FoldPoint) -> Estimate | None:
    ratio = finite(point.perplexity_ratio)
    return None if ratio is None else Estimate(mean=ratio, ci95=(None, None), n=0)


def _with_numbers(levels: dict[str, Estimate]) -> dict[str, Estimate]:
    return {key: each for key, each in levels.items() if _has_number(each)}


def _has_number(estimate: Estimate | None) -> bool:
    return estimate is not None and finite(estimate.mean) is not None


def _row(point: FoldPoint, estimate: Estimate | None, learner: str) -> dict[str, Any] | None:
    mean = finite(estimate.mean) if estimate is not None else None
    if estimate is None or mean is None:
        return None
    # Without an interval the rule shrinks to the dot.
    low, high = known(estimate.ci95) or (mean, mean)
    return {
        "value": category(point.value),
        "learner": learner_style(learner).title,
        "mean": mean,
        "low": low,
        "high": high,
        "n": estimate.n,
        "strength": finite(point.strength),
        "adapt": finite(point.adapt_flops),
        "note": point.note,
    }


def _rows(points: Sequence[FoldPoint], panel: _Panel) -> list[dict[str, Any]]:
    found = [_row(point, panel.read(point), FOLD) for point in points]
    return [row for row in found if row is not None]


def _tooltip(panel: _Panel, rows: Sequence[dict[str, Any]], name: str) -> list[alt.Tooltip]:
    shown = [
        alt.Tooltip("learner:N"),
        alt.Tooltip("value:N", title=name),
        alt.Tooltip("mean:Q", format=_finer(panel.format), title=panel.title),
        alt.Tooltip("low:Q", format=_finer(panel.format), title="95 % from"),
        alt.Tooltip("high:Q", format=_finer(panel.format), title="to"),
    ]
    if any(row["n"] for row in rows):
        shown.append(alt.Tooltip("n:Q", format=","))
    if any(row["strength"] is not None for row in rows):
        shown.append(alt.Tooltip("strength:Q", format=".3~g", title="ridge strength"))
    if any(row["adapt"] is not None for row in rows):
        shown.append(alt.Tooltip("adapt:Q", format=".3s", title="operations to fold"))
    if any(row["note"] for row in rows):
        shown.append(alt.Tooltip("note:N"))
    return shown


def _finer(spec: str) -> str:
    return {".0%": ".1%", ".2f": ".3f"}[spec]


def _legend(keys: Sequence[str]) -> alt.Legend | None:
    return (
        alt.Legend(title=None, orient="top", columns=2, symbolType="circle", symbolOpacity=1) if len(keys) > 1 else None
    )


def _references(panel: _Panel, colour: alt.Color, scale: alt.Scale, axis: alt.Axis, upright: bool) -> list[alt.Chart]:
    """Levels to compare with: dashed in the learner's colour; where nothing has changed, thin and grey."""
    lines = []
    if panel.level is not None:
        base = alt.Chart(alt.Data(values=[{"level": panel.level}])).mark_rule(color="#9AA3AD", strokeWidth=1)
        lines.append(
            base.encode(x=alt.X("level:Q", scale=scale, axis=axis))
            if upright
            else base.encode(y=alt.Y("level:Q", scale=scale, axis=axis))
        )
    for key in learners_in_order(panel.references):
        each = panel.references[key]
        low, high = known(each.ci95) or (None, None)
        row = {"learner": learner_style(key).title, "at": finite(each.mean), "from": low, "to": high, "n": each.n}
        base = alt.Chart(alt.Data(values=[row])).mark_rule(strokeDash=[5, 4], strokeWidth=1.6)
        tooltip = [
            alt.Tooltip("learner:N"),
            alt.Tooltip("at:Q", format=".1%", title=panel.title),
            alt.Tooltip("from:Q", format=".1%", title="95 % from"),
            alt.Tooltip("to:Q", format=".1%"),
            alt.Tooltip("n:Q", format=","),
        ]
        place = (
            {"x": alt.X("at:Q", scale=scale, axis=axis)} if upright else {"y": alt.Y("at:Q", scale=scale, axis=axis)}
        )
        lines.append(base.encode(color=colour, tooltip=tooltip, **place))
    return lines


def _dots(points: Sequence[FoldPoint], panel: _Panel, keys: Sequence[str]) -> alt.TopLevelMixin:
    rows = _rows(points, panel)
    names = list(dict.fromkeys(category(point.value) for point in points))
    axis = alt.Axis(title=None, tickCount=4, format=panel.format, labelOverlap="greedy")
    scale = alt.Scale(zero=False, nice=True, padding=6)
    colour = learner_colours(keys, legend=_legend(keys))
    base = alt.Chart(alt.Data(values=rows)).encode(
        # All names in every panel, so that rows stay level with those beside them.
        y=alt.Y(
            "value:N",
            sort=names,
            scale=alt.Scale(domain=names),
            title=None,
            axis=alt.Axis(labelLimit=NAME_GAP - 6, grid=False),
        ),
        color=colour,
        tooltip=_tooltip(panel, rows, "fold"),
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=None), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=100, opacity=1).encode(
        x=alt.X("mean:Q", scale=scale, axis=axis, title=None)
    )
    layers = [*_references(panel, colour, scale, axis, upright=True), rule, dot]
    return alt.layer(*layers).properties(width=240, height=ROW * len(names), title=panel_title(panel.title))


def _curve(axis: str, points: Sequence[FoldPoint], panel: _Panel, keys: Sequence[str]) -> alt.TopLevelMixin:
    where = places(axis, points)
    rows = _rows(points, panel)
    beside = [row for point in points if (row := _row(point, point.icl, "icl")) is not None]
    of_icl = panel.title == "accuracy"
    x: alt.X
    if where is None:
        names = list(dict.fromkeys(category(point.value) for point in points))
        x = alt.X(
            "value:O", sort=names, scale=alt.Scale(domain=names), axis=alt.Axis(title=axis_name(axis), labelAngle=0)
        )
    else:
        ticks = sorted({place for point, place in zip(points, where, strict=True) if number_of(point) is not None})
        at = dict(zip((category(point.value) for point in points), where, strict=True))
        for row in [*rows, *beside]:
            row["place"] = at[row["value"]]
        log = axis in LOGARITHMIC and min(where) > 0
        x = alt.X(
            "place:Q",
            scale=alt.Scale(nice=False, padding=12, **({"type": "log"} if log else {"type": "linear", "zero": False})),
            axis=alt.Axis(title=axis_name(axis), values=ticks, format="~g", labelOverlap="greedy", grid=False),
        )
    y_axis = alt.Axis(title=None, tickCount=4, format=panel.format)
    scale = alt.Scale(zero=False, nice=True)
    y = alt.Y("mean:Q", scale=scale, axis=y_axis, title=None)
    colour = learner_colours(keys, legend=_legend(keys))
    tooltip = _tooltip(panel, rows, axis_name(axis))
    references = {key: each for key, each in panel.references.items() if not (of_icl and key == "icl")}
    layers = _references(
        _Panel(panel.title, panel.format, panel.read, references, panel.level), colour, scale, y_axis, upright=False
    )
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=colour, tooltip=tooltip)
    in_digits = {point.value for point in points if number_of(point) is not None}
    numbered = [row for row in rows if row["value"] in in_digits]
    named = [row for row in rows if row["value"] not in in_digits]
    if of_icl and beside:
        other = alt.Chart(alt.Data(values=beside)).encode(x=x, y=y, color=colour, tooltip=tooltip)
        layers += [
            other.mark_line(strokeWidth=1.6, strokeDash=[2, 2]),
            other.mark_point(filled=True, size=26, opacity=1),
        ]
    if numbered:
        joined = alt.Chart(alt.Data(values=numbered)).encode(x=x, y=y, color=colour, tooltip=tooltip)
        layers += [joined.mark_line(strokeWidth=2), joined.mark_point(filled=True, size=70, opacity=1)]
    if named:
        # What is chosen by a rule stands beside the line and not in it.
        apart = alt.Chart(alt.Data(values=named)).encode(x=x, color=colour, tooltip=tooltip)
        layers.append(apart.mark_point(shape="diamond", filled=True, size=110, opacity=1).encode(y=y))
        if where is not None:
            text = apart.mark_text(fontSize=11, baseline="bottom", dy=-4, limit=120)
            layers.append(text.encode(y=alt.Y("high:Q", scale=scale, axis=y_axis, title=None), text="value:N"))
    layers.append(
        base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
            y=alt.Y("low:Q", scale=scale, axis=y_axis, title=None), y2="high:Q"
        )
    )
    return alt.layer(*layers).properties(width=CURVE_WIDTH, height=CURVE_HEIGHT, title=panel_title(panel.title))
