"""Charts of a comparison of momentum attention with vanilla; each function returns None if there is nothing to draw.

Arms have the same colour in all charts. Differences from different baselines are drawn in separate panels, because they
cannot be compared with each other; momentum with its etas has a panel of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, around, interval_hints
from dualform.report.charts.colours import colours, dashes, legend
from dualform.report.charts.dots import dot_chart, interval_row
from dualform.report.charts.lines import line_chart, log_ticks
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Plot, Size
from dualform.report.charts.theme import RULE_COLOUR
from dualform.report.numerals import finite
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
from dualform.studies.momentum.result import MomentumArm, MomentumReport, MomentumResult, RegressionCurve

NUMBER_GAP = 64
"""Width of an axis of numbers in pixels."""
NAME_GAP = 130
"""Width of the names left of a panel in pixels."""
ROW = 24
"""Height of an arm in a panel of tasks in pixels."""
CURVES: Size = {"width": 340, "height": 190}
"""Size of a panel of curves in pixels."""

ETA_COLOURS = ("#56B4E9", "#0072B2", "#7F6BB3", "#CC79A7")
"""Colours of momentum arms from the smallest to the largest eta; those between are interpolated."""
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
"""Dash patterns of exact predictors."""

FAR_BELOW = 0.1
"""Errors of exact predictors, which may reach zero, are not drawn below this share of the arms' smallest error."""

EARLY = 0.1
"""Differences in this first share of training are not drawn: they are large for all arms."""

NATS = "nats a token"
"""Unit of a loss."""

SIGNED = "datum.value === 0 ? '0' : format(datum.value, '+~f')"
"""Vega expression that formats differences with their sign, except for zero."""


@dataclass(frozen=True)
class _Group:
    """Arms that are drawn in one panel as differences from the same baseline."""

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
            colours[arm.name] = _interpolated_colour(etas.index(eta) / max(1, len(etas) - 1))
        else:
            # Not hash(), which differs between Python processes.
            spare = SPARE_COLOURS[sum(arm.kind.encode()) % len(SPARE_COLOURS)]
            colours[arm.name] = KIND_COLOURS.get(arm.kind, spare)
    return colours


def difference_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Loss minus the baseline's at full length, by eta for momentum and by name for other arms."""
    report = result.momentum
    if report is None:
        return None
    length = full_length(report)
    charts = []
    for baseline in baselines(report):
        groups = [
            (group, rows)
            for group in _groups(report)
            if group.baseline == baseline
            and (rows := [row for arm in group.arms if (row := _row(arm, difference_at(arm, length))) is not None])
        ]
        seeds = [_seed_rows(group.arms, length) for group, _ in groups]
        ends = [row[end] for _, rows in groups for row in rows for end in ("low", "high")]
        ends += [row["mean"] for rows in seeds for row in rows]
        # Panels with the same baseline share a scale, so that they can be compared.
        domain = around([0.0, *ends], least=0.001, part=0.06)
        y = Numbers("mean", NATS, domain=domain, nice=False, labels=SIGNED)
        charts += [
            _difference_panel(report, group, rows, dots, y) for (group, rows), dots in zip(groups, seeds, strict=True)
        ]
    return panels(charts, columns=3, gap=NUMBER_GAP, row_gap=130)


def training_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Validation loss by tokens read, and its difference from the baseline's, without the first tenth of training."""
    report = result.momentum
    if report is None:
        return None
    losses = {arm.name: rows for arm in report.arms if (rows := _curve_rows(arm))}
    if not losses:
        return None
    every = [row for rows in losses.values() for row in rows]
    x = Numbers("tokens", "tokens read", "~s", nice=False, ticks=4, grid=False)
    colour = _colour(report, _legend("stroke"))
    hover: list[Hint] = ["arm", ("tokens", ","), ("loss", ".4f", NATS)]
    title = "validation loss, nats a token"
    charts = [line_chart(every, x, Numbers("loss"), colour=colour, hover=hover, title=title, **CURVES)]
    first = EARLY * max(row["tokens"] for row in every)
    for group in _groups(report):
        base = {row["tokens"]: row["loss"] for row in losses.get(group.baseline, [])}
        rows = [
            row | {"difference": row["loss"] - base[row["tokens"]]}
            for arm in group.arms
            for row in losses.get(arm.name, [])
            if row["tokens"] in base and row["tokens"] >= first
        ]
        if rows:
            y, more = Numbers("difference", NATS, labels=SIGNED), ("difference", "+.4f")
            style: dict[str, Any] = {"colour": colour, "hover": [*hover, more], "zero": True, "title": group.title}
            charts.append(line_chart(rows, x, y, **style, **CURVES))
    return panels(charts, columns=2, gap=NUMBER_GAP, row_gap=84)


def length_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Perplexity by length of the text, and the difference of losses from the baseline's; None with a single length."""
    report = result.momentum
    if report is None:
        return None
    measured = [length for length in lengths(report) if any(perplexity_at(arm, length) for arm in report.arms)]
    if len(measured) < 2:
        return None
    x = Names("length", [length_name(length) for length in measured], "tokens of text")
    colour, text = _colour(report, _legend()), ("length", "", "tokens of text")

    def rows_of(arms: Sequence[MomentumArm], read: Any) -> list[dict[str, Any]]:
        return [
            row | {"length": length_name(length)}
            for arm in arms
            for length in measured
            if (row := _row(arm, read(arm, length))) is not None
        ]

    rows = rows_of(report.arms, lambda arm, length: arm.perplexity.get(length))
    charts = [
        line_chart(
            rows,
            x,
            Numbers("mean"),
            colour=colour,
            hover=["arm", text, ("mean", ".2f", "perplexity"), *interval_hints(".2f")],
            dots=36,
            title="perplexity",
            **CURVES,
        )
    ]
    for group in _groups(report):
        if rows := rows_of(group.arms, difference_at):
            plot = Plot(
                x,
                Numbers("mean", NATS, labels=SIGNED, zero=True),
                lanes=Names("arm", list(dict.fromkeys(row["arm"] for row in rows))),
                colour=colour,
                hover=["arm", text, ("mean", "+.4f", NATS), *interval_hints("+.4f")],
            )
            plot.thin()
            plot.intervals(rows, width=2.5)
            plot.dots(rows, size=60)
            charts.append(plot.chart(**CURVES, title=group.title))
    chart = panels(charts, columns=2, gap=NUMBER_GAP, row_gap=84)
    # Each panel divides the width of a length among its own arms only.
    return None if chart is None else chart.resolve_scale(xOffset="independent")


def regression_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Error in in-context regression by examples in context, one panel for each condition number."""
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
    names = {row["arm"] for rows in by_condition.values() for row in rows}
    own_colours = arm_colours(report)
    arms = list(dict.fromkeys(curve.arm for curve in regression.curves if curve.arm in names))
    exact = [name for name in regression.references if name in names]
    styles = {name: (own_colours.get(name, MEASURE_COLOUR), [1, 0]) for name in arms}
    styles |= {name: (MEASURE_COLOUR, REFERENCES.get(exact_kind(name), [4, 4])) for name in exact}
    colour = colours("arm", {name: each for name, (each, _) in styles.items()}, _legend("stroke"))
    dash = dashes("arm", {name: each for name, (_, each) in styles.items()}, _legend("stroke"))
    x = Numbers("seen", "examples in context", "d", nice=False, ticks=6, grid=False)
    charts = [
        line_chart(
            rows,
            x,
            Numbers("mean", "error", "~g", log=True, ticks=log_ticks([row["mean"] for row in rows])),
            colour=colour,
            dash=dash,
            bands=True,
            hover=["arm", ("seen", "d", "examples in context"), ("mean", ".3~g", "error"), *interval_hints(".3~g")],
            title=f"condition number {condition:g}",
            **CURVES,
        )
        for condition, rows in by_condition.items()
        if rows
    ]
    return panels(charts, columns=2, gap=NUMBER_GAP, row_gap=84)


def tasks_chart(result: MomentumResult) -> alt.TopLevelMixin | None:
    """Accuracy of every arm on each task with intervals, and the level of always giving the most frequent answer."""
    report = result.momentum
    if report is None:
        return None
    # All arms in every panel, so that rows of neighbouring panels align.
    names = [arm.name for arm in report.arms if arm.tasks]
    charts = []
    for name in dict.fromkeys(score.task for arm in report.arms for score in arm.tasks):
        scores = [(arm, score) for arm in report.arms for score in arm.tasks if score.task == name]
        rows = [
            row | {"k": score.k}
            for arm, score in scores
            if (row := _row(arm, score.accuracy, score.difference)) is not None
        ]
        chances = {chance for _, score in scores if (chance := finite(score.chance)) is not None}
        if rows:
            chart = dot_chart(
                rows,
                names=Names("arm", names, room=NAME_GAP - 6),
                values=Numbers("mean", "accuracy", ".0%", ticks=4, padding=6),
                colour=_colour(report, None),
                hover=["arm", ("k", "d", "demonstrations"), ("mean", ".1%", "accuracy"), *interval_hints(".1%")],
                levels=[(chance, "chance") for chance in sorted(chances)],
                width=250,
                height=ROW * len(names),
                title=name,
            )
            charts.append(chart)
    return panels(charts, columns=2, gap=NAME_GAP, row_gap=84)


def _groups(report: MomentumReport) -> list[_Group]:
    groups = []
    for baseline in baselines(report):
        arms = [arm for arm in report.arms if arm.baseline == baseline]
        by_eta = tuple(arm for arm in arms if arm.kind == MOMENTUM and finite(arm.eta) is not None)
        others = tuple(arm for arm in arms if arm not in by_eta)
        if by_eta:
            groups.append(_Group(f"momentum minus {baseline}", baseline, by_eta, by_eta=True))
        if others:
            groups.append(_Group(f"{'others' if by_eta else 'arms'} minus {baseline}", baseline, others, by_eta=False))
    return groups


def _row(
    arm: MomentumArm, estimate: Estimate | Paired | None, difference: Paired | None = None
) -> dict[str, Any] | None:
    """A mean with its interval and the p of its difference from the baseline; None without a mean."""
    row = interval_row(estimate)
    if row is None:
        return None
    paired = estimate if isinstance(estimate, Paired) else difference
    return {"arm": arm.name, "eta": finite(arm.eta), "p": finite(paired.p) if paired is not None else None} | row


def _seed_rows(arms: Sequence[MomentumArm], length: str | None) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "eta": finite(arm.eta), "seed": seed, "mean": number}
        for arm in arms
        if (paired := difference_at(arm, length)) is not None
        for seed, value in paired.per_seed.items()
        if (number := finite(value)) is not None
    ]


def _curve_rows(arm: MomentumArm) -> list[dict[str, Any]]:
    return [
        {"arm": arm.name, "tokens": point.tokens, "loss": loss}
        for point in arm.curve
        if (loss := finite(point.loss)) is not None
    ]


def _colour(report: MomentumReport, legend: alt.Legend | None) -> alt.Color:
    return colours("arm", arm_colours(report), legend)


def _legend(symbol: Literal["circle", "stroke"] = "circle") -> alt.Legend:
    return legend(2, symbol=symbol, labelLimit=150)


def _difference_panel(
    report: MomentumReport, group: _Group, rows: list[dict[str, Any]], seeds: list[dict[str, Any]], y: Numbers
) -> alt.LayerChart:
    x: Names | Numbers
    if group.by_eta:
        x = Numbers("eta", "eta", "~g", zero=True, padding=10, ticks=[row["eta"] for row in rows], grid=False)
    else:
        x = Names("arm", [row["arm"] for row in rows], angle=-50, room=130)
    hover: list[Hint] = ["arm", ("p", ".2~g"), ("mean", "+.4f", NATS), *interval_hints("+.4f")]
    plot = Plot(x, y, colour=_colour(report, None), hover=hover)
    plot.thin()
    if group.by_eta and len(rows) > 1:
        plot.line(sorted(rows, key=lambda row: row["eta"]), width=1.5, color=RULE_COLOUR)
    plot.intervals(rows)
    plot.dots(rows, size=90)
    if seeds:
        # Next to the interval, so that neither hides the other.
        plot.dots(seeds, size=22, opacity=0.55, aside=9, hover=["arm", "seed", ("mean", "+.4f", NATS)])
    return plot.chart(width=250, height=190, title=group.title)


def _error_rows(curve: RegressionCurve, name: str, *, exact: bool = False) -> list[dict[str, Any]]:
    """Points that can be drawn on a log scale."""
    rows = []
    for seen, estimate in enumerate(curve.loss):
        row = interval_row(estimate)
        if row is not None and row["mean"] > 0:
            banded = row["low"] > 0 and not exact
            ends = {} if banded else {"low": row["mean"], "high": row["mean"]}
            rows.append({"arm": name, "seen": seen} | row | ends)
    return rows


def _interpolated_colour(place: float) -> str:
    """The colour at `place` in [0, 1] along `ETA_COLOURS`."""
    position = place * (len(ETA_COLOURS) - 1)
    left = min(int(position), len(ETA_COLOURS) - 2)
    start, end = ([int(ETA_COLOURS[left + step][at : at + 2], 16) for at in (1, 3, 5)] for step in (0, 1))
    share = position - left
    return "#" + "".join(f"{round(a + share * (b - a)):02X}" for a, b in zip(start, end, strict=True))
