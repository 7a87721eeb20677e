"""A sweep as charts: one function a chart, each None where the sweep has nothing to draw.

As in `charts`: colours of text and background are the page's, and text from data sets enters as data only. A chart with
more rows than a reader can follow is left out; the tables hold everything.
"""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from dualform.report.categories import category
from dualform.report.charts.panels import WIDE, learner_colours, line_at, panel_title, panels
from dualform.report.measures import measure_of
from dualform.report.numerals import finite, known
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.report.phrases import hundredths, hundredths_interval
from dualform.result import Estimate, Result
from dualform.runs.sweep_words import (
    SHARE,
    accuracy_of,
    axes_of,
    compared,
    difference_of,
    group_name,
    is_numeric,
    judged_measures,
    learners_of,
    over_tasks,
    slices,
)
from dualform.studies.baseline_words import COLLAPSED_ABOVE
from dualform.sweep_result import SweepGroup, SweepResult

MOST_GROUPS = 120
"""Groups above which charts with a row a group are left out."""
MOST_SLICES = 8
"""Models (with their options) above which a chart that gives each a colour is left out."""
MOST_SEED_DOTS = 3000

LANE = 11
"""Pixels of one learner's row within a task's."""
LABEL_GAP = 100
"""Pixels that the tasks' names take left of a panel."""
ROW_GAP = 96
"""Pixels between two panels: an axis, its title and a heading."""
CELL = 30
"""Pixels of a row of the heat map."""

LEFTMOST, RIGHTMOST = -1.0, 2.0
"""Ends of the calibrated axis; what lies beyond is drawn at its edge."""

SLICE_COLOURS: tuple[str, ...] = (
    "#4E7AC7",
    "#B8863B",
    "#2E9C8F",
    "#8C6BB1",
    "#5E8C61",
    "#A05A6B",
    "#7B8795",
    "#9C7C1C",
)
"""Of models: no colour of a learner."""
SLICE_SHAPES: tuple[str, ...] = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross")

Found = list[tuple[SweepGroup, Result]]


def accuracy_by_task_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Mean accuracy with its interval of each learner on each task, one panel a model; small dots are seeds."""
    return _lanes_chart(sweep, "accuracy", _accuracy_rows, line=None)


def majority_share_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Share of each learner's most frequent answer on each task, one panel a model; beyond the line is a collapse."""
    return _lanes_chart(sweep, "share of the most frequent answer", _majority_rows, line=(COLLAPSED_ABOVE, "collapse"))


def gain_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Heat map of model and task: accuracy less zero-shot's in points, one map a learner, all on one scale."""
    found = compared(sweep)
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in learners_of(found):
        own = [row for group, result in found if (row := _gain_row(key, group, result)) is not None]
        if key != "zsl" and own:
            rows[key] = own
    if not rows:
        return None
    reach = max(abs(row["gain"]) for own in rows.values() for row in own) or 1.0
    tasks, names = _tasks(found), _names(found)
    for own in rows.values():
        for row in own:
            # The middle of the scale is pale, its ends are dark.
            row["ink"] = "#FFFFFF" if abs(row["gain"]) > 0.7 * reach else "#111111"
    drawn = [_gain_panel(key, own, tasks, names, reach) for key, own in rows.items()]
    # Names of models stand slanted below a panel and take some room.
    return panels(drawn, columns=3, gap=74, row_gap=150)


def likeness_by_task_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Each measure's place between floor, 0, and ceiling, 1, by task and model; one panel a measure."""
    found = compared(sweep)
    names = _names(found)
    if len(found) > MOST_GROUPS or len(names) > MOST_SLICES:
        return None
    rows: dict[str, list[dict[str, Any]]] = {}
    for key in judged_measures(found):
        own = [row for group, result in found if (row := _place_row(key, group, result)) is not None]
        if own:
            rows[key] = own
    if not rows:
        return None
    ends = [row[end] for own in rows.values() for row in own for end in ("low", "high")]
    left, right = max(LEFTMOST, min(-0.15, *ends) - 0.05), min(RIGHTMOST, max(1.15, *ends) + 0.05)
    shown = [name for name in names if any(row["model"] == name for own in rows.values() for row in own)]
    tasks = [task for task in _tasks(found) if any(row["task"] == task for own in rows.values() for row in own)]
    drawn = [_place_panel(measure_of(key).title, own, tasks, shown, left, right) for key, own in rows.items()]
    return panels(drawn, columns=2, gap=LABEL_GAP, row_gap=ROW_GAP)


def cost_by_model_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Mean accuracy over tasks against the operations of one query, one point a learner and model; tasks all share."""
    found = compared(sweep)
    by_slice = slices(found)
    if len(by_slice) > MOST_SLICES:
        return None
    rows = [row for name, own in by_slice.items() for row in _cost_rows(name, own)]
    if len(rows) < 2:
        return None
    keys = learners_in_order(dict.fromkeys(row["key"] for row in rows))
    names = [name for name in map(category, by_slice) if any(row["model"] == name for row in rows)]
    shares = [row["accuracy"] for row in rows]
    margin = max(0.02, 0.1 * (max(shares) - min(shares)))
    colour = learner_colours(keys, legend=_legend(columns=2))
    y_scale = alt.Scale(domain=[max(0, min(shares) - margin), min(1, max(shares) + margin)], zero=False, nice=False)
    # Grey, because black symbols cannot be seen on a dark page; below, because two legends are too wide for a phone.
    grey = {"symbolFillColor": MEASURE_COLOUR, "symbolStrokeColor": MEASURE_COLOUR}
    shape_legend = alt.Legend(title=None, orient="bottom", columns=1, labelLimit=300, **grey)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "flops:Q",
            scale=alt.Scale(type="log", nice=False, padding=24),
            axis=alt.Axis(title="floating-point operations of a query, nothing shared", format="~s", tickCount=6),
        ),
        y=alt.Y(
            "accuracy:Q", scale=y_scale, axis=alt.Axis(title="mean accuracy over tasks", format=".0%", tickCount=5)
        ),
        color=colour,
        shape=alt.Shape(
            "model:N",
            scale=alt.Scale(domain=names, range=_shapes(len(names))),
            legend=shape_legend if len(names) > 1 else None,
        ),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("model:N"),
            alt.Tooltip("accuracy:Q", format=".1%", title="mean accuracy"),
            alt.Tooltip("flops:Q", format=".3s", title="operations a query"),
            alt.Tooltip("tasks:Q", title="tasks"),
        ],
    )
    return base.mark_point(filled=True, size=110, opacity=0.9).properties(width=WIDE, height=260)


def option_chart(sweep: SweepResult, axis: str) -> alt.TopLevelMixin | None:
    """Accuracy against an axis of the grid that holds numbers: one panel for all else alike, one line a learner."""
    found = compared(sweep)
    return _axis_chart(axis, found) if is_numeric(axes_of(found).get(axis, [None])) else None


def slice_colour(number: int) -> str:
    """Of the model in that place of the sweep."""
    return SLICE_COLOURS[number % len(SLICE_COLOURS)]


def _lanes_chart(
    sweep: SweepResult,
    title: str,
    rows_of: Callable[[SweepGroup, Result], tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    line: tuple[float, str] | None,
) -> alt.TopLevelMixin | None:
    """Panels by model; in each a row a task, and in that a lane a learner."""
    found = compared(sweep)
    if len(found) > MOST_GROUPS:
        return None
    by_slice = {}
    for name, own in slices(found).items():
        both = [rows_of(group, result) for group, result in own]
        marks, seeds = [row for each, _ in both for row in each], [row for _, each in both for row in each]
        if marks:
            by_slice[name] = (marks, seeds)
    if not by_slice:
        return None
    if sum(len(seeds) for _, seeds in by_slice.values()) > MOST_SEED_DOTS:
        by_slice = {name: (marks, []) for name, (marks, _) in by_slice.items()}
    ends = [row[end] for marks, _ in by_slice.values() for row in marks for end in ("low", "high")]
    ends += [row["share"] for _, seeds in by_slice.values() for row in seeds] + ([line[0]] if line else [])
    margin = max(0.02, 0.04 * (max(ends) - min(ends)))
    # One scale for all panels, so that models can be compared.
    scale = alt.Scale(domain=[max(0.0, min(ends) - margin), min(1.0, max(ends) + margin)], zero=False, nice=True)
    axis = alt.Axis(format=".0%", title=title, tickCount=6, labelOverlap=True)
    keys = [
        key for key in learners_of(found) if any(row["key"] == key for marks, _ in by_slice.values() for row in marks)
    ]
    # The same rows in all panels, so that they can be read across.
    tasks = _tasks(found)
    drawn = [
        _lanes_panel(name if len(by_slice) > 1 else None, marks, seeds, tasks, keys, scale, axis, line)
        for name, (marks, seeds) in by_slice.items()
    ]
    return panels(drawn, columns=2, gap=LABEL_GAP, row_gap=ROW_GAP)


def _lanes_panel(
    title: str | None,
    marks: list[dict[str, Any]],
    seeds: list[dict[str, Any]],
    tasks: Sequence[str],
    keys: Sequence[str],
    scale: alt.Scale,
    axis: alt.Axis,
    line: tuple[float, str] | None,
) -> alt.TopLevelMixin:
    y = _task_rows(tasks)
    titles = [learner_style(key).title for key in keys]
    lane = alt.YOffset("learner:N", sort=titles, scale=alt.Scale(domain=titles, paddingOuter=0.7))
    colour = learner_colours(keys, legend=_legend(columns=2))
    base = alt.Chart(alt.Data(values=marks)).encode(
        y=y,
        yOffset=lane,
        color=colour,
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("group:N", title="group"),
            alt.Tooltip("share:Q", format=".1%", title=axis.title),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("answer:N", title="most frequent answer"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    layers: list[alt.Chart] = line_at(*line, scale, axis) if line is not None else []
    if seeds:
        layers.append(
            alt.Chart(alt.Data(values=seeds))
            .mark_point(filled=True, size=16, opacity=0.9)
            .encode(
                x=alt.X("share:Q", scale=scale, axis=axis),
                y=y,
                yOffset=lane,
                color=colour,
                tooltip=[
                    alt.Tooltip("learner:N"),
                    alt.Tooltip("group:N", title="group"),
                    alt.Tooltip("seed:N"),
                    alt.Tooltip("share:Q", format=".1%", title=axis.title),
                ],
            )
        )
    if any(row["low"] < row["high"] for row in marks):
        # Pale and below, so that the seeds on it are seen.
        rule = base.mark_rule(strokeWidth=3, strokeCap="round", opacity=0.4)
        layers.insert(0, rule.encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"))
    layers.append(base.mark_point(filled=True, size=55, opacity=1).encode(x=alt.X("share:Q", scale=scale, axis=axis)))
    height = (LANE * len(keys) + 10) * len(tasks)
    named = {} if title is None else {"title": panel_title(title)}
    return alt.layer(*layers).properties(width=WIDE // 2, height=height, **named)


def _accuracy_rows(group: SweepGroup, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    marks, seeds = [], []
    for key in learners_in_order(result.accuracy):
        accuracy, mean = result.accuracy[key], accuracy_of(key)(result)
        if mean is None:
            continue
        marks.append(_mark(key, group, result, mean, accuracy.ci95, accuracy.n))
        for seed, each in accuracy.per_seed.items():
            value = finite(each)
            if value is not None and len(accuracy.per_seed) > 1:
                seeds.append(_about(key, group) | {"seed": seed, "share": value})
    return marks, seeds


def _majority_rows(group: SweepGroup, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    marks = []
    for key in learners_in_order(result.predictions):
        predictions = result.predictions[key]
        share = finite(predictions.majority_share)
        if share is not None:
            marks.append(_mark(key, group, result, share, (None, None), sum(predictions.counts.values())))
    return marks, []


def _about(key: str, group: SweepGroup) -> dict[str, Any]:
    return {
        "key": key,
        "learner": learner_style(key).title,
        "task": category(group.task or ""),
        "group": group_name(group),
    }


def _mark(
    key: str, group: SweepGroup, result: Result, share: float, interval: tuple[float | None, float | None], n: int
) -> dict[str, Any]:
    ends = known(interval)
    predictions = result.predictions.get(key)
    return _about(key, group) | {
        "share": share,
        # Without an interval the rule shrinks to the dot.
        "low": ends[0] if ends else share,
        "high": ends[1] if ends else share,
        "interval": f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %" if ends else "",
        "answer": ((predictions.majority_label or "") if predictions else "").strip(),
        "n": n,
    }


def _gain_row(key: str, group: SweepGroup, result: Result) -> dict[str, Any] | None:
    gain = difference_of(key, "zsl")(result)
    if gain is None:
        return None
    return _about(key, group) | {
        "model": category(next(iter(slices([(group, result)])))),
        "gain": 100 * gain,
        "accuracy": accuracy_of(key)(result),
    }


def _gain_panel(
    key: str, rows: list[dict[str, Any]], tasks: Sequence[str], names: Sequence[str], reach: float
) -> alt.TopLevelMixin:
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "model:N",
            sort=list(names),
            title=None,
            scale=alt.Scale(domain=list(names)),
            axis=alt.Axis(labelAngle=-35, labelLimit=130, ticks=False),
        ),
        y=alt.Y(
            "task:N",
            sort=list(tasks),
            title=None,
            scale=alt.Scale(domain=list(tasks)),
            axis=alt.Axis(labelLimit=70, ticks=False),
        ),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("group:N"),
            alt.Tooltip("gain:Q", format="+.1f", title="less zero-shot, points"),
            alt.Tooltip("accuracy:Q", format=".1%"),
        ],
    )
    cells = base.mark_rect().encode(
        color=alt.Color(
            "gain:Q",
            # Symmetric, so that the pale middle is zero and the sign is seen.
            scale=alt.Scale(scheme="blueorange", domain=[-reach, reach]),
            legend=None,
        )
    )
    layers = [cells]
    # With more columns the numbers would run into one another. A layer for each ink: the colour scale is the cells'.
    for ink in dict.fromkeys(row["ink"] for row in rows if len(names) <= MOST_SLICES):
        layers.append(
            base.transform_filter(f"datum.ink == '{ink}'")
            .mark_text(fontSize=11, color=ink)
            .encode(text=alt.Text("gain:Q", format="+.1f"))
        )
    height = CELL * len(tasks)
    return alt.layer(*layers).properties(width=190, height=height, title=panel_title(learner_style(key).title))


def _place_row(key: str, group: SweepGroup, result: Result) -> dict[str, Any] | None:
    place = result.calibrated.get(key)
    mean = finite(place.mean) if place is not None else None
    if place is None or mean is None:
        return None
    low, high = known(place.ci95) or (mean, mean)

    def shown(value: float) -> float:
        return min(RIGHTMOST, max(LEFTMOST, value))

    return {
        "measure": measure_of(key).title,
        "task": category(group.task or ""),
        "model": category(next(iter(slices([(group, result)])))),
        "group": group_name(group),
        "mean": shown(mean),
        "low": shown(low),
        "high": shown(high),
        "place": hundredths(mean),
        "interval": hundredths_interval(place.ci95),
        "score": finite(place.score),
        "floor": finite(place.floor),
        "ceiling": finite(place.ceiling),
        "n": place.n,
    }


def _task_rows(tasks: Sequence[str]) -> alt.Y:
    """A row a task, ruled off from the next."""
    return alt.Y(
        "task:N",
        sort=list(tasks),
        title=None,
        axis=alt.Axis(labelLimit=LABEL_GAP - 8, ticks=False, grid=True, tickBand="extent"),
        scale=alt.Scale(domain=list(tasks), paddingInner=0, paddingOuter=0),
    )


def _place_panel(
    title: str, rows: list[dict[str, Any]], tasks: Sequence[str], names: Sequence[str], left: float, right: float
) -> alt.TopLevelMixin:
    scale = alt.Scale(domain=[left, right], nice=False, clamp=True)
    axis = alt.Axis(title="0: floor, 1: ceiling", tickCount=5, format=".1f")
    y = _task_rows(tasks)
    lane = alt.YOffset("model:N", sort=list(names), scale=alt.Scale(domain=list(names), paddingOuter=0.7))
    range_ = [slice_colour(number) for number in range(len(names))]
    legend = _legend(columns=1) if len(names) > 1 else None
    colour = alt.Color("model:N", scale=alt.Scale(domain=list(names), range=range_), legend=legend)
    shape = alt.Shape("model:N", scale=alt.Scale(domain=list(names), range=_shapes(len(names))), legend=legend)
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=y,
        yOffset=lane,
        color=colour,
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("group:N"),
            alt.Tooltip("place:N", title="place between floor and ceiling"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("score:Q", format=".3f"),
            alt.Tooltip("floor:Q", format=".3f"),
            alt.Tooltip("ceiling:Q", format=".3f"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    ends = alt.Chart(alt.Data(values=[{"at": 0}, {"at": 1}])).mark_rule(
        strokeDash=[4, 4], color=MEASURE_COLOUR, strokeWidth=1.5
    )
    rule = base.mark_rule(strokeWidth=2.5, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=60, opacity=1).encode(
        x=alt.X("mean:Q", scale=scale, axis=axis), shape=shape
    )
    height = (LANE * len(names) + 12) * len(tasks)
    return alt.layer(ends.encode(x=alt.X("at:Q", scale=scale, axis=axis)), rule, dot).properties(
        width=WIDE // 2, height=height, title=panel_title(title)
    )


def _cost_rows(name: str, own: Found) -> list[dict[str, Any]]:
    """Means over the tasks on which a learner has both accuracy and cost."""
    rows = []
    for key in learners_of(own):
        there = [(group, result) for group, result in own if key in result.cost]
        flops = over_tasks(there, lambda result, key=key: finite(result.cost[key].flops))  # type: ignore[misc]
        accuracy = over_tasks(there, accuracy_of(key), SHARE)
        if flops is not None and accuracy is not None and flops.mean > 0:
            rows.append(
                {
                    "key": key,
                    "learner": learner_style(key).title,
                    "model": category(name),
                    "flops": flops.mean,
                    "accuracy": accuracy.mean,
                    "tasks": accuracy.n,
                }
            )
    return rows


def _axis_chart(axis: str, found: Found) -> alt.TopLevelMixin | None:
    """Accuracy against one axis; everything else alike in a panel."""
    by_panel: dict[str, Found] = {}
    for group, result in found:
        if axis in group.options:
            rest = {name: value for name, value in group.options.items() if name != axis}
            by_panel.setdefault(group_name(group.model_copy(update={"options": rest})), []).append((group, result))
    by_panel = {name: own for name, own in by_panel.items() if len({str(g.options[axis]) for g, _ in own}) > 1}
    if not by_panel or len(by_panel) > 24:
        return None
    rows = {
        name: [
            row
            for group, result in own
            for key in learners_in_order(result.accuracy)
            if (row := _axis_row(axis, key, group, result.accuracy[key])) is not None
        ]
        for name, own in by_panel.items()
    }
    keys = learners_in_order(dict.fromkeys(row["key"] for own in rows.values() for row in own))
    at = sorted({row["at"] for own in rows.values() for row in own})
    # Steps by factors (4, 8, 16) are told apart on a log axis alone.
    log = at[0] > 0 and at[-1] / at[0] >= 8 and len(at) > 2
    ends = [row[end] for own in rows.values() for row in own for end in ("low", "high")]
    if not ends:
        return None
    y_scale = alt.Scale(domain=[max(0.0, min(ends) - 0.02), min(1.0, max(ends) + 0.02)], zero=False, nice=True)
    x_scale = alt.Scale(nice=False, padding=14, **({"type": "log"} if log else {"type": "linear", "zero": False}))
    drawn = [_axis_panel(axis, name, own, keys, at, x_scale, y_scale) for name, own in rows.items() if own]
    return panels(drawn, columns=2, gap=64, row_gap=ROW_GAP)


def _axis_row(axis: str, key: str, group: SweepGroup, accuracy: Estimate) -> dict[str, Any] | None:
    mean, at = finite(accuracy.mean), finite(group.options[axis])
    if mean is None or at is None:
        return None
    low, high = known(accuracy.ci95) or (mean, mean)
    return _about(key, group) | {"at": at, "accuracy": mean, "low": low, "high": high, "n": accuracy.n}


def _axis_panel(
    axis: str,
    title: str,
    rows: list[dict[str, Any]],
    keys: Sequence[str],
    at: Sequence[float],
    x_scale: alt.Scale,
    y_scale: alt.Scale,
) -> alt.TopLevelMixin:
    x_axis = alt.Axis(title=axis, values=list(at), format="~g", grid=False, labelOverlap=True)
    y_axis = alt.Axis(title="accuracy", format=".0%", tickCount=5)
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X("at:Q", scale=x_scale, axis=x_axis),
        color=learner_colours(keys, legend=_legend(columns=2)),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("group:N"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="95 % from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    y = alt.Y("accuracy:Q", scale=y_scale, axis=y_axis)
    rule = base.mark_rule(strokeWidth=2, opacity=0.45).encode(
        y=alt.Y("low:Q", scale=y_scale, axis=y_axis), y2=alt.Y2("high:Q")
    )
    return alt.layer(
        rule,
        base.mark_line(strokeWidth=2).encode(y=y),
        base.mark_point(filled=True, size=60, opacity=1).encode(y=y),
    ).properties(width=WIDE // 2, height=190, title=panel_title(title))


def _tasks(found: Found) -> list[str]:
    return list(dict.fromkeys(category(group.task or "") for group, _ in found))


def _names(found: Found) -> list[str]:
    """Models with their options, as categories."""
    return [category(name) for name in slices(found)]


def _shapes(n: int) -> list[str]:
    return [SLICE_SHAPES[number % len(SLICE_SHAPES)] for number in range(n)]


def _legend(columns: int) -> alt.Legend:
    return alt.Legend(title=None, orient="top", columns=columns, symbolOpacity=1, labelLimit=300)
