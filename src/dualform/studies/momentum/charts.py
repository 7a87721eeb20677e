"""A comparison of momentum attention with vanilla as charts: one function a chart, None where there is nothing to draw.

Arms keep their colours from chart to chart. Differences stand in panels by what is subtracted, the etas of momentum
apart from other arms, because a difference from linear attention says nothing of one from softmax attention.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import altair as alt

from dualform.report.charts.panels import line_at, panel_title, panels
from dualform.report.numerals import finite, known
from dualform.report.palette import MEASURE_COLOUR, SPARE_COLOURS
from dualform.result import Estimate, Paired
from dualform.studies.momentum.figures import (
    MOMENTUM,
    baselines,
    conditions,
    curves_at,
    difference_at,
    exact_kind,
    full_length,
    length_name,
    lengths,
    perplexity_at,
    references_at,
)
from dualform.studies.momentum.result import MomentumArm, MomentumReport, MomentumResult, RegressionCurve, TaskScore

WIDTH, HEIGHT = 250, 190
"""Pixels of a panel."""
NUMBER_GAP = 64
"""Pixels that an axis of numbers takes."""
NAME_GAP = 130
"""Pixels that names take left of a panel."""
ROW = 24
"""Pixels of an arm in a panel of tasks."""

ETA_COLOURS = ("#56B4E9", "#0072B2", "#7F6BB3", "#CC79A7")
"""Of momentum with fixed etas, from the smallest to the largest; those between are mixed."""
KIND_COLOURS = {
    "vanilla": "#8A8F98",
    "normalised": "#009E73",
    "learned": "#E69F00",
    "convolution": "#D55E00",
    "linear": "#8C7A6B",
    "linear-momentum": "#B8942A",
    "heavy-ball": "#B5495B",
    "nesterov": "#6B8E6B",
}
REFERENCES: dict[str, list[int]] = {
    "least squares": [1, 3],
    "ridge": [1, 3],
    "gradient descent": [6, 4],
    "heavy ball": [8, 3, 2, 3],
}
"""Kinds of exact predictors and their dashes."""

FAR_BELOW = 0.1
"""Of the arms' smallest error: exact predictors are not followed below that, where they may reach zero."""

EARLY = 0.1
"""Share of training whose differences are left out: they are large, whatever comes of them."""
LINE_COLOUR = "#9AA3AD"


@dataclass(frozen=True)
class _Group:
    """Arms that are drawn in one panel, all less the same baseline."""

    title: str
    baseline: str
    arms: tuple[MomentumArm, ...]
    by_eta: bool


def arm_colours(report: MomentumReport) -> dict[str, str]:
    """A colour for each arm, by name."""
    etas = sorted({eta for arm in report.arms if arm.kind == MOMENTUM and (eta := finite(arm.eta)) is not None})
    colours = {}
    for arm in report.arms:
        eta = finite(arm.eta)
        if arm.kind == MOMENTUM and eta is not None:
            colours[arm.name] = _mixed(etas.index(eta) / max(1, len(etas) - 1))
        else:
            # Not hash(): it differs from one Python process to the next, and a page must not.
            spare = SPARE_COLOURS[sum(arm.kind.encode()) % len(SPARE_COLOURS)]
            colours[arm.name] = KIND_COLOURS.get(arm.kind, spare)
    return colours


def difference_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Loss less the baseline's at full length: over eta for momentum, by name for other arms; seeds as small dots."""
    report = result.momentum
    if report is None:
        return None
    length = full_length(report)
    drawn = []
    for baseline in baselines(report):
        groups = [
            (group, rows)
            for group in _groups(report)
            if group.baseline == baseline
            and (rows := [row for arm in group.arms if (row := _row(arm, difference_at(arm, length))) is not None])
        ]
        seeds = [_seed_rows(group.arms, length) for group, _ in groups]
        ends = [row[end] for _, rows in groups for row in rows for end in ("low", "high")]
        # One scale for what has one baseline, so that panels can be compared.
        scale = _scale_of([*ends, *(row["mean"] for rows in seeds for row in rows)])
        drawn += [
            _difference_panel(report, group, rows, dots, scale)
            for (group, rows), dots in zip(groups, seeds, strict=True)
        ]
    return panels(drawn, columns=3, gap=NUMBER_GAP, row_gap=130)


def training_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Validation loss by tokens read, and its difference from the baseline's, without the first tenth of training."""
    report = result.momentum
    if report is None:
        return None
    losses = {arm.name: rows for arm in report.arms if (rows := _curve_rows(arm))}
    if not losses:
        return None
    every = [row for rows in losses.values() for row in rows]
    drawn = [_training_panel(report, "validation loss, nats a token", every, "loss", zero=False)]
    begun = EARLY * max(row["tokens"] for row in every)
    for group in _groups(report):
        base = {row["tokens"]: row["loss"] for row in losses.get(group.baseline, [])}
        rows = [
            row | {"difference": row["loss"] - base[row["tokens"]]}
            for arm in group.arms
            for row in losses.get(arm.name, [])
            if row["tokens"] in base and row["tokens"] >= begun
        ]
        if rows:
            drawn.append(_training_panel(report, group.title, rows, "difference", zero=True))
    return panels(drawn, columns=2, gap=NUMBER_GAP, row_gap=84)


def length_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Perplexity by length of the text, and the difference of losses from the baseline's; None with a single length."""
    report = result.momentum
    if report is None:
        return None
    found = [length for length in lengths(report) if any(perplexity_at(arm, length) for arm in report.arms)]
    if len(found) < 2:
        return None
    names = [length_name(length) for length in found]
    rows = [
        row | {"length": length_name(length)}
        for arm in report.arms
        for length in found
        if (row := _row(arm, arm.perplexity.get(length))) is not None
    ]
    drawn = [_perplexity_panel(report, names, rows)]
    for group in _groups(report):
        rows = [
            row | {"length": length_name(length)}
            for arm in group.arms
            for length in found
            if (row := _row(arm, difference_at(arm, length))) is not None
        ]
        if rows:
            drawn.append(_length_panel(report, group, names, rows))
    chart = panels(drawn, columns=2, gap=NUMBER_GAP, row_gap=84)
    # Each panel keeps the width of a length for its own arms.
    return None if chart is None else chart.resolve_scale(xOffset="independent")


def regression_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Error in in-context regression by examples seen, a panel a condition number; exact predictors dashed."""
    report = result.momentum
    if report is None or report.regression is None:
        return None
    regression = report.regression
    by_condition = {}
    for condition in conditions(regression):
        rows = [row for curve in curves_at(regression, condition) for row in _error_rows(curve, curve.arm)]
        floor = FAR_BELOW * min((row["mean"] for row in rows), default=0.0)
        for name, curve in references_at(regression, condition).items():
            rows += [row for row in _error_rows(curve, name, exact=True) if row["mean"] >= floor]
        by_condition[condition] = rows
    shown = {row["arm"] for rows in by_condition.values() for row in rows}
    colours = arm_colours(report)
    arms = list(dict.fromkeys(curve.arm for curve in regression.curves if curve.arm in shown))
    exact = [name for name in regression.references if name in shown]
    look = {name: (colours.get(name, MEASURE_COLOUR), [1, 0]) for name in arms}
    look |= {name: (MEASURE_COLOUR, REFERENCES.get(exact_kind(name), [4, 4])) for name in exact}
    drawn = [
        _regression_panel(f"condition number {condition:g}", rows, look)
        for condition, rows in by_condition.items()
        if rows
    ]
    return panels(drawn, columns=2, gap=NUMBER_GAP, row_gap=84)


def tasks_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Accuracy of every arm on each task, with intervals; what always giving the most frequent answer reaches."""
    report = result.momentum
    if report is None:
        return None
    names = list(dict.fromkeys(score.task for arm in report.arms for score in arm.tasks))
    drawn = []
    for name in names:
        scores = [(arm, score) for arm in report.arms for score in arm.tasks if score.task == name]
        rows = [
            row | {"k": score.k}
            for arm, score in scores
            if (row := _row(arm, score.accuracy, score.difference)) is not None
        ]
        if rows:
            drawn.append(_task_panel(report, name, [score for _, score in scores], rows))
    return panels(drawn, columns=2, gap=NAME_GAP, row_gap=84)


def _groups(report: MomentumReport) -> list[_Group]:
    found = []
    for baseline in baselines(report):
        arms = [arm for arm in report.arms if arm.baseline == baseline]
        by_eta = tuple(arm for arm in arms if arm.kind == MOMENTUM and finite(arm.eta) is not None)
        others = tuple(arm for arm in arms if arm not in by_eta)
        if by_eta:
            found.append(_Group(f"momentum less {baseline}", baseline, by_eta, by_eta=True))
        if others:
            found.append(_Group(f"{'others' if by_eta else 'arms'} less {baseline}", baseline, others, by_eta=False))
    return found


def _row(arm: MomentumArm, found: Estimate | Paired | None, beside: Paired | None = None) -> dict[str, Any] | None:
    """A mean with its interval as data; None without a mean. `beside` is the difference that belongs to it."""
    mean = finite(found.mean) if found is not None else None
    if found is None or mean is None:
        return None
    # Without an interval the rule shrinks to the dot.
    low, high = known(found.ci95) or (mean, mean)
    paired = found if isinstance(found, Paired) else beside
    return {
        "arm": arm.name,
        "eta": finite(arm.eta),
        "mean": mean,
        "low": low,
        "high": high,
        "n": found.n,
        "p": finite(paired.p) if paired is not None else None,
    }


def _seed_rows(arms: Sequence[MomentumArm], length: str | None) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "eta": finite(arm.eta), "seed": seed, "mean": number}
        for arm in arms
        if (found := difference_at(arm, length)) is not None
        for seed, value in found.per_seed.items()
        if (number := finite(value)) is not None
    ]


def _scale_of(values: Sequence[float]) -> alt.Scale:
    low, high = min([0.0, *values]), max([0.0, *values])
    margin = 0.06 * (high - low) or 0.01
    return alt.Scale(domain=[low - margin, high + margin], nice=False, zero=False)


def _colour(report: MomentumReport, legend: alt.Legend | None) -> alt.Color:
    colours = arm_colours(report)
    scale = alt.Scale(domain=list(colours), range=list(colours.values()))
    return alt.Color("arm:N", scale=scale, legend=legend)


def _legend(symbol: str = "circle") -> alt.Legend:
    return alt.Legend(
        title=None,
        orient="top",
        columns=2,
        symbolType=symbol,
        symbolOpacity=1,
        symbolStrokeWidth=2,
        # Long enough for dashes to be told apart.
        symbolSize=400 if symbol == "stroke" else 100,
        labelLimit=150,
    )


def _signed_axis() -> alt.Axis:
    """Differences with their sign, but for zero."""
    return alt.Axis(title=None, tickCount=5, labelExpr="datum.value === 0 ? '0' : format(datum.value, '+~f')")


def _zero(scale: alt.Scale | None, axis: alt.Axis, title: str | None = None) -> alt.Chart:
    """A thin level line at zero."""
    y = (
        alt.Y("zero:Q", axis=axis, title=title)
        if scale is None
        else alt.Y("zero:Q", scale=scale, axis=axis, title=title)
    )
    return alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeWidth=1, color=LINE_COLOUR).encode(y=y)


def _hover(title: str, spec: str, *more: alt.Tooltip) -> list[alt.Tooltip]:
    return [
        alt.Tooltip("arm:N"),
        *more,
        alt.Tooltip("mean:Q", format=spec, title=title),
        alt.Tooltip("low:Q", format=spec, title="95 % from"),
        alt.Tooltip("high:Q", format=spec, title="to"),
        alt.Tooltip("n:Q", format=","),
    ]


def _difference_panel(
    report: MomentumReport, group: _Group, rows: list[dict[str, Any]], seeds: list[dict[str, Any]], scale: alt.Scale
) -> alt.TopLevelMixin:
    axis = _signed_axis()
    if group.by_eta:
        x: alt.X = alt.X(
            "eta:Q",
            scale=alt.Scale(zero=True, nice=True, padding=10),
            axis=alt.Axis(title="eta", values=[row["eta"] for row in rows], format="~g", grid=False, labelOverlap=True),
        )
    else:
        names = [row["arm"] for row in rows]
        x = alt.X(
            "arm:N",
            sort=names,
            scale=alt.Scale(domain=names),
            axis=alt.Axis(title=None, labelAngle=-50, labelLimit=130, grid=False),
        )
    colour = _colour(report, legend=None)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=x,
        color=colour,
        tooltip=_hover("nats a token", "+.4f", alt.Tooltip("p:Q", format=".2~g")),
    )
    layers = [_zero(scale, axis)]
    if group.by_eta and len(rows) > 1:
        line = alt.Chart(alt.Data(values=sorted(rows, key=lambda row: row["eta"]))).encode(x=x)
        layers.append(
            line.mark_line(strokeWidth=1.5, color=LINE_COLOUR).encode(y=alt.Y("mean:Q", scale=scale, axis=axis))
        )
    layers += [
        base.mark_rule(strokeWidth=3, strokeCap="round").encode(
            y=alt.Y("low:Q", scale=scale, axis=axis, title=None), y2="high:Q"
        ),
        base.mark_point(filled=True, size=90, opacity=1).encode(y=alt.Y("mean:Q", scale=scale, axis=axis, title=None)),
    ]
    if seeds:
        layers.append(
            # Beside the interval, so that neither hides the other.
            alt.Chart(alt.Data(values=seeds))
            .mark_point(filled=True, size=22, opacity=0.55, xOffset=9)
            .encode(
                x=x,
                y=alt.Y("mean:Q", scale=scale, axis=axis, title=None),
                color=colour,
                tooltip=[
                    alt.Tooltip("arm:N"),
                    alt.Tooltip("seed:N"),
                    alt.Tooltip("mean:Q", format="+.4f", title="nats a token"),
                ],
            )
        )
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT, title=panel_title(group.title))


def _curve_rows(arm: MomentumArm) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "tokens": point.tokens, "loss": loss}
        for point in arm.curve
        if (loss := finite(point.loss)) is not None
    ]


def _training_panel(
    report: MomentumReport, title: str, rows: list[dict[str, Any]], field: str, *, zero: bool
) -> alt.TopLevelMixin:
    axis = _signed_axis() if zero else alt.Axis(title=None, tickCount=5)
    x = alt.X(
        "tokens:Q",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(title="tokens read", tickCount=4, format="~s", grid=False, labelOverlap=True),
    )
    y = alt.Y(f"{field}:Q", scale=alt.Scale(zero=False, nice=True), axis=axis, title=None)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y, color=_colour(report, _legend("stroke")))
    tooltip = [
        alt.Tooltip("arm:N"),
        alt.Tooltip("tokens:Q", format=","),
        alt.Tooltip("loss:Q", format=".4f", title="nats a token"),
        *([alt.Tooltip("difference:Q", format="+.4f")] if zero else []),
    ]
    layers = [base.mark_line(strokeWidth=1.8), base.mark_point(filled=True, size=40, opacity=0).encode(tooltip=tooltip)]
    if zero:
        layers.insert(0, _zero(None, axis))
    return alt.layer(*layers).properties(width=WIDTH + 90, height=HEIGHT, title=panel_title(title))


def _lengths_axis(names: Sequence[str]) -> alt.X:
    return alt.X(
        "length:O",
        sort=list(names),
        scale=alt.Scale(domain=list(names)),
        axis=alt.Axis(title="tokens of text", labelAngle=0, grid=False),
    )


def _perplexity_panel(report: MomentumReport, names: Sequence[str], rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    axis = alt.Axis(title=None, tickCount=5)
    y = alt.Y("mean:Q", scale=alt.Scale(zero=False, nice=True), axis=axis, title=None)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_lengths_axis(names),
        y=y,
        color=_colour(report, _legend()),
        tooltip=_hover("perplexity", ".2f", alt.Tooltip("length:N", title="tokens of text")),
    )
    layers = [base.mark_line(strokeWidth=1.5, opacity=0.8), base.mark_point(filled=True, size=36, opacity=1)]
    return alt.layer(*layers).properties(width=WIDTH + 90, height=HEIGHT, title=panel_title("perplexity"))


def _length_panel(
    report: MomentumReport, group: _Group, names: Sequence[str], rows: list[dict[str, Any]]
) -> alt.TopLevelMixin:
    axis = _signed_axis()
    scale = alt.Scale(zero=True, nice=True)
    shown = list(dict.fromkeys(row["arm"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=_lengths_axis(names),
        xOffset=alt.XOffset("arm:N", sort=shown, scale=alt.Scale(domain=shown)),
        color=_colour(report, _legend()),
        tooltip=_hover("nats a token", "+.4f", alt.Tooltip("length:N", title="tokens of text")),
    )
    rule = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
        y=alt.Y("low:Q", scale=scale, axis=axis, title=None), y2="high:Q"
    )
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(y=alt.Y("mean:Q", scale=scale, axis=axis, title=None))
    return alt.layer(_zero(scale, axis), rule, dot).properties(
        width=WIDTH + 90, height=HEIGHT, title=panel_title(group.title)
    )


def _error_rows(curve: RegressionCurve, name: str, *, exact: bool = False) -> list[dict[str, Any]]:
    """Points with a place on a log scale."""
    rows = []
    for seen, estimate in enumerate(curve.loss):
        mean = finite(estimate.mean)
        if mean is None or mean <= 0:
            continue
        low, high = known(estimate.ci95) or (mean, mean)
        banded = low > 0 and not exact
        rows.append(
            {
                "arm": name,
                "seen": seen,
                "mean": mean,
                "low": low if banded else mean,
                "high": high if banded else mean,
                "n": estimate.n,
            }
        )
    return rows


def _log_ticks(values: Sequence[float]) -> list[float]:
    """Powers of ten from below the smallest to above the largest value; with 2 and 5 of each where they are few."""
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))
    steps = (1, 2, 5) if high - low <= 2 else (1,)
    return [step * 10.0**decade for decade in range(low, high + 1) for step in steps]


def _regression_panel(
    title: str, rows: list[dict[str, Any]], look: dict[str, tuple[str, list[int]]]
) -> alt.TopLevelMixin:
    x = alt.X(
        "seen:Q",
        scale=alt.Scale(zero=False, nice=False),
        axis=alt.Axis(title="examples seen", tickMinStep=1, tickCount=6, format="d", grid=False),
    )
    scale = alt.Scale(type="log", nice=True)
    # Ticks of our own: Vega draws a line at each of 1 to 9 in every decade.
    axis = alt.Axis(title=None, values=_log_ticks([row["mean"] for row in rows]), format="~g")
    colour = alt.Color(
        "arm:N",
        scale=alt.Scale(domain=list(look), range=[ink for ink, _ in look.values()]),
        legend=_legend("stroke"),
    )
    dash = alt.StrokeDash(
        "arm:N",
        scale=alt.Scale(domain=list(look), range=[dashes for _, dashes in look.values()]),
        legend=_legend("stroke"),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, color=colour)
    banded = [row for row in rows if row["low"] < row["high"]]
    y = alt.Y("mean:Q", scale=scale, axis=axis, title=None)
    layers = []
    if banded:
        layers.append(
            alt.Chart(alt.Data(values=banded))
            .mark_area(opacity=0.15)
            .encode(x=x, color=colour, y=alt.Y("low:Q", scale=scale, axis=axis, title=None), y2="high:Q")
        )
    layers += [
        base.mark_line(strokeWidth=1.8).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=40, opacity=0).encode(
            y=y, tooltip=_hover("error", ".3~g", alt.Tooltip("seen:Q", title="examples seen"))
        ),
    ]
    return alt.layer(*layers).properties(width=WIDTH + 90, height=HEIGHT, title=panel_title(title))


def _task_panel(
    report: MomentumReport, task: str, scores: Sequence[TaskScore], rows: list[dict[str, Any]]
) -> alt.TopLevelMixin:
    names = [arm.name for arm in report.arms if arm.tasks]
    chances = {chance for score in scores if (chance := finite(score.chance)) is not None}
    axis = alt.Axis(title=None, tickCount=4, format=".0%", labelOverlap="greedy")
    scale = alt.Scale(zero=False, nice=True, padding=6)
    base = alt.Chart(alt.Data(values=rows)).encode(
        # All arms in every panel, so that rows stay level with those beside them.
        y=alt.Y(
            "arm:N",
            sort=names,
            scale=alt.Scale(domain=names),
            title=None,
            axis=alt.Axis(labelLimit=NAME_GAP - 6, grid=False),
        ),
        color=_colour(report, legend=None),
        tooltip=_hover("accuracy", ".1%", alt.Tooltip("k:Q", title="demonstrations")),
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=axis, title=None), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=80, opacity=1).encode(x=alt.X("mean:Q", scale=scale, axis=axis, title=None))
    marks = [mark for chance in sorted(chances) for mark in line_at(chance, "chance", scale, axis)]
    return alt.layer(*marks, rule, dot).properties(width=250, height=ROW * len(names), title=panel_title(task))


def _mixed(place: float) -> str:
    """A colour between those of `ETA_COLOURS`, `place` in [0, 1]."""
    position = place * (len(ETA_COLOURS) - 1)
    left = min(int(position), len(ETA_COLOURS) - 2)
    one, two = ([int(ETA_COLOURS[left + step][at : at + 2], 16) for at in (1, 3, 5)] for step in (0, 1))
    share = position - left
    return "#" + "".join(f"{round(a + share * (b - a)):02X}" for a, b in zip(one, two, strict=True))
