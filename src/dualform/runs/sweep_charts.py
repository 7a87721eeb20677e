"""The charts of a sweep. Each function returns None where there is nothing to draw.

Text from data sets enters as data only. A chart that would have too many rows to read is left out; the tables hold
all numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from dualform.report.categories import category
from dualform.report.charts.axes import Hint, Names, Numbers, around, interval_hints, shares
from dualform.report.charts.colours import SHAPES, colours, learner_colours, legend, shapes
from dualform.report.charts.dots import interval_row
from dualform.report.charts.heat import heat_colours, ink_on
from dualform.report.charts.lines import line_chart
from dualform.report.charts.panels import WIDE, panels
from dualform.report.charts.plot import Plot
from dualform.report.measures import measure_of
from dualform.report.numerals import MISSING, finite, percent_interval
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.report.phrases import hundredths, hundredths_interval
from dualform.result import Estimate, Result
from dualform.runs.sweep_words import (
    SHARE_RANGE,
    accuracy_of,
    comparison_results,
    difference_of,
    group_by_model,
    group_name,
    is_numeric,
    judged_measures,
    learners_of,
    mean_over_tasks,
    varied_axes,
)
from dualform.studies.baseline_words import COLLAPSED_ABOVE
from dualform.studies.comparison.control_charts import LEFTMOST, RIGHTMOST, place_axis
from dualform.sweep_result import SweepGroup, SweepResult

MOST_GROUPS = 120
"""Most groups for which charts with one row per group are drawn."""
MOST_MODELS = 8
"""Most models (with their options) for which charts with one colour per model are drawn."""
MOST_SEED_DOTS = 3000

LANE = 11
"""Height in pixels of one learner's row within a task."""
LABEL_GAP = 100
"""Width in pixels of the tasks' names left of a panel."""
ROW_GAP = 96
"""Pixels between two rows of panels, which hold an axis, its title and a heading."""
CELL = 30
"""Height in pixels of a row of the heat map."""

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
"""Colours of models, none of which is the colour of a learner."""

GroupResults = list[tuple[SweepGroup, Result]]


def accuracy_by_task_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Mean accuracy of each learner on each task with its interval, one panel per model; small dots are seeds."""
    return _lanes_chart(sweep, "accuracy", _accuracy_rows, line=None)


def majority_share_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Share of each learner's most frequent answer on each task, one panel per model; beyond the line is a collapse."""
    return _lanes_chart(sweep, "share of the most frequent answer", _majority_rows, line=(COLLAPSED_ABOVE, "collapse"))


def gain_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Heat maps of model and task: accuracy minus zero-shot accuracy in points, one map per learner, on one scale."""
    results = comparison_results(sweep)
    rows = {
        key: [row for group, result in results if (row := _gain_row(key, group, result)) is not None]
        for key in learners_of(results)
        if key != "zsl"
    }
    rows = {key: panel_rows for key, panel_rows in rows.items() if panel_rows}
    if not rows:
        return None
    reach = max(abs(row["gain"]) for panel_rows in rows.values() for row in panel_rows) or 1.0
    tasks, names = _tasks(results), _names(results)
    drawn = []
    for key, panel_rows in rows.items():
        plot = Plot(
            Names("model", names, angle=-35, room=130),
            Names("task", tasks, room=70),
            hover=("learner", "group", ("gain", "+.1f", "minus zero-shot, points"), ("accuracy", ".1%")),
        )
        plot.cells(panel_rows, heat_colours("gain", reach))
        # With more columns the numbers would overlap.
        labelled = [row | {"words": f"{row['gain']:+.1f}", "ink": ink_on(row["gain"], reach)} for row in panel_rows]
        # One layer for each text colour, because the colour scale is that of the cells.
        for ink in dict.fromkeys(row["ink"] for row in labelled if len(names) <= MOST_MODELS):
            plot.texts([row for row in labelled if row["ink"] == ink], "words", color=ink)
        drawn.append(plot.chart(width=190, height=CELL * len(tasks), title=learner_style(key).title))
    # The slanted names of models below each panel need space.
    return panels(drawn, columns=3, gap=74, row_gap=150)


def similarity_by_task_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Each measure by task and model, scaled to 0 at its floor and 1 at its ceiling; one panel per measure."""
    results = comparison_results(sweep)
    names = _names(results)
    if len(results) > MOST_GROUPS or len(names) > MOST_MODELS:
        return None
    rows = {
        key: [row for group, result in results if (row := _place_row(key, group, result)) is not None]
        for key in judged_measures(results)
    }
    rows = {key: panel_rows for key, panel_rows in rows.items() if panel_rows}
    if not rows:
        return None
    every = [row for panel_rows in rows.values() for row in panel_rows]
    domain = place_axis(row[end] for row in every for end in ("low", "high"))
    names = [name for name in names if any(row["model"] == name for row in every)]
    tasks = [task for task in _tasks(results) if any(row["task"] == task for row in every)]
    key = legend(1, labelLimit=300) if len(names) > 1 else None
    drawn = []
    for measure, panel_rows in rows.items():
        plot = Plot(
            Numbers("mean", "0: floor, 1: ceiling", ".1f", domain, nice=False, clamp=True),
            _task_rows(tasks),
            lanes=Names("model", names),
            colour=colours("model", {name: slice_colour(number) for number, name in enumerate(names)}, key),
            hover=(
                "measure",
                "group",
                ("place", "", "calibrated"),
                ("interval", "", "95 % interval"),
                ("score", ".3f"),
                ("floor", ".3f"),
                ("ceiling", ".3f"),
                ("n", ","),
            ),
        )
        for end in (0, 1):
            plot.thin(end, strokeDash=[4, 4], color=MEASURE_COLOUR, strokeWidth=1.5)
        plot.intervals(panel_rows, width=2.5)
        plot.dots(panel_rows, shapes("model", _shapes(names), key), size=60)
        height = (LANE * len(names) + 12) * len(tasks)
        drawn.append(plot.chart(width=WIDE // 2, height=height, title=measure_of(measure).title))
    return panels(drawn, columns=2, gap=LABEL_GAP, row_gap=ROW_GAP)


def cost_by_model_chart(sweep: SweepResult) -> alt.TopLevelMixin | None:
    """Mean accuracy over tasks against the operations per query, one point for each learner and model."""
    results = comparison_results(sweep)
    by_model = group_by_model(results)
    if len(by_model) > MOST_MODELS:
        return None
    rows = [row for name, model_results in by_model.items() for row in _cost_rows(name, model_results)]
    if len(rows) < 2:
        return None
    names = [name for name in map(category, by_model) if any(row["model"] == name for row in rows)]
    low, high = around((row["accuracy"] for row in rows), part=0.1)
    title = "floating-point operations per query, processed on its own"
    plot = Plot(
        Numbers("flops", title, "~s", log=True, nice=False, padding=24, ticks=6),
        Numbers("accuracy", "mean accuracy over tasks", ".0%", (max(0, low), min(1, high)), nice=False),
        colour=_colour([row["key"] for row in rows]),
        hover=(
            "learner",
            "model",
            ("accuracy", ".1%", "mean accuracy"),
            ("flops", ".3s", "operations per query"),
            ("tasks", "d", "tasks"),
        ),
    )
    # Below the chart, because two legends side by side are too wide for a phone.
    key = legend(1, below=True, grey=True, labelLimit=300) if len(names) > 1 else None
    plot.dots(rows, shapes("model", _shapes(names), key), size=110, opacity=0.9)
    return plot.chart(height=260)


def option_chart(sweep: SweepResult, axis: str) -> alt.TopLevelMixin | None:
    """Accuracy against a numeric axis of the grid, one line per learner; within a panel only that axis differs."""
    results = comparison_results(sweep)
    return _axis_chart(axis, results) if is_numeric(varied_axes(results).get(axis, [None])) else None


def slice_colour(number: int) -> str:
    """The colour of the model at this position in the sweep."""
    return SLICE_COLOURS[number % len(SLICE_COLOURS)]


def _lanes_chart(
    sweep: SweepResult,
    title: str,
    rows_of: Callable[[SweepGroup, Result], tuple[list[dict[str, Any]], list[dict[str, Any]]]],
    line: tuple[float, str] | None,
) -> alt.TopLevelMixin | None:
    """One panel per model, in it one row per task, and in each row one lane per learner."""
    results = comparison_results(sweep)
    if len(results) > MOST_GROUPS:
        return None
    by_model = {}
    for name, model_results in group_by_model(results).items():
        both = [rows_of(group, result) for group, result in model_results]
        marks, seeds = [row for each, _ in both for row in each], [row for _, each in both for row in each]
        if marks:
            by_model[name] = (marks, seeds)
    if not by_model:
        return None
    if sum(len(seeds) for _, seeds in by_model.values()) > MOST_SEED_DOTS:
        by_model = {name: (marks, []) for name, (marks, _) in by_model.items()}
    ends = [row[end] for marks, _ in by_model.values() for row in marks for end in ("low", "high")]
    ends += [row["share"] for _, seeds in by_model.values() for row in seeds] + ([line[0]] if line else [])
    keys = [
        key for key in learners_of(results) if any(row["key"] == key for marks, _ in by_model.values() for row in marks)
    ]
    # All panels have the same rows and one scale, so that models can be compared.
    tasks, axis = _tasks(results), shares("share", title, ends)
    drawn = []
    for name, (marks, seeds) in by_model.items():
        share: Hint = ("share", ".1%", title)
        more: list[Hint] = [("interval", "", "95 % interval"), ("answer", "", "most frequent answer"), ("n", ",")]
        plot = Plot(
            axis,
            _task_rows(tasks),
            lanes=Names("learner", [learner_style(key).title for key in keys]),
            colour=_colour(keys),
            hover=["learner", "group", share, *more],
        )
        if any(row["low"] < row["high"] for row in marks):
            # Pale and drawn first, so that the seeds on top remain visible.
            plot.intervals(marks, opacity=0.4)
        if line is not None:
            plot.level(*line)
        if seeds:
            plot.dots(seeds, size=16, opacity=0.9, hover=["learner", "group", "seed", share])
        plot.dots(marks, size=55)
        height = (LANE * len(keys) + 10) * len(tasks)
        drawn.append(plot.chart(width=WIDE // 2, height=height, title=name if len(by_model) > 1 else None))
    return panels(drawn, columns=2, gap=LABEL_GAP, row_gap=ROW_GAP)


def _accuracy_rows(group: SweepGroup, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    marks, seeds = [], []
    for key in learners_in_order(result.accuracy):
        accuracy, mean = result.accuracy[key], accuracy_of(key)(result)
        if mean is None:
            continue
        marks.append(_mark(key, group, result, accuracy.model_copy(update={"mean": mean})))
        for seed, each in accuracy.per_seed.items():
            value = finite(each)
            if value is not None and len(accuracy.per_seed) > 1:
                seeds.append(_about(key, group) | {"seed": seed, "share": value})
    return marks, seeds


def _majority_rows(group: SweepGroup, result: Result) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    marks = []
    for key in learners_in_order(result.predictions):
        predictions = result.predictions[key]
        share = Estimate(mean=predictions.majority_share, ci95=(None, None), n=sum(predictions.counts.values()))
        if finite(share.mean) is not None:
            marks.append(_mark(key, group, result, share))
    return marks, []


def _about(key: str, group: SweepGroup) -> dict[str, Any]:
    return {
        "key": key,
        "learner": learner_style(key).title,
        "task": category(group.task or ""),
        "group": group_name(group),
    }


def _mark(key: str, group: SweepGroup, result: Result, estimate: Estimate) -> dict[str, Any]:
    row = interval_row(estimate) or {}
    predictions = result.predictions.get(key)
    interval = percent_interval(estimate.ci95)
    return (
        _about(key, group)
        | {"share": row.pop("mean")}
        | row
        | {
            "interval": "" if interval == MISSING else interval,
            "answer": ((predictions.majority_label or "") if predictions else "").strip(),
        }
    )


def _gain_row(key: str, group: SweepGroup, result: Result) -> dict[str, Any] | None:
    gain = difference_of(key, "zsl")(result)
    if gain is None:
        return None
    return _about(key, group) | {
        "model": category(next(iter(group_by_model([(group, result)])))),
        "gain": 100 * gain,
        "accuracy": accuracy_of(key)(result),
    }


def _place_row(key: str, group: SweepGroup, result: Result) -> dict[str, Any] | None:
    calibrated = result.calibrated.get(key)
    row = interval_row(calibrated)
    if calibrated is None or row is None:
        return None
    clipped = {end: min(RIGHTMOST, max(LEFTMOST, row[end])) for end in ("mean", "low", "high")}
    return {
        "measure": measure_of(key).title,
        "task": category(group.task or ""),
        "model": category(next(iter(group_by_model([(group, result)])))),
        "group": group_name(group),
        **clipped,
        "place": hundredths(row["mean"]),
        "interval": hundredths_interval(calibrated.ci95),
        "score": finite(calibrated.score),
        "floor": finite(calibrated.floor),
        "ceiling": finite(calibrated.ceiling),
        "n": calibrated.n,
    }


def _task_rows(tasks: Sequence[str]) -> Names:
    return Names("task", tasks, room=LABEL_GAP - 8, ruled=True)


def _cost_rows(name: str, model_results: GroupResults) -> list[dict[str, Any]]:
    """Means of each learner over the tasks for which its accuracy and cost are known."""
    rows = []
    for key in learners_of(model_results):
        with_cost = [(group, result) for group, result in model_results if key in result.cost]
        flops = mean_over_tasks(with_cost, lambda result, key=key: finite(result.cost[key].flops))  # type: ignore[misc]
        accuracy = mean_over_tasks(with_cost, accuracy_of(key), SHARE_RANGE)
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


def _axis_chart(axis: str, results: GroupResults) -> alt.TopLevelMixin | None:
    """Accuracy against one axis, one panel for each model, task and setting of the other options."""
    by_panel: dict[str, GroupResults] = {}
    for group, result in results:
        if axis in group.options:
            rest = {name: value for name, value in group.options.items() if name != axis}
            by_panel.setdefault(group_name(group.model_copy(update={"options": rest})), []).append((group, result))
    by_panel = {name: panel for name, panel in by_panel.items() if len({str(g.options[axis]) for g, _ in panel}) > 1}
    if not by_panel or len(by_panel) > 24:
        return None
    rows = {
        name: [
            row
            for group, result in panel
            for key in learners_in_order(result.accuracy)
            if (row := _axis_row(axis, key, group, result.accuracy[key])) is not None
        ]
        for name, panel in by_panel.items()
    }
    keys = learners_in_order(dict.fromkeys(row["key"] for panel_rows in rows.values() for row in panel_rows))
    values = sorted({row["at"] for panel_rows in rows.values() for row in panel_rows})
    # Geometric steps (4, 8, 16) are evenly spaced only on a log axis.
    log = values[0] > 0 and values[-1] / values[0] >= 8 and len(values) > 2
    ends = [row[end] for panel_rows in rows.values() for row in panel_rows for end in ("low", "high")]
    if not ends:
        return None
    low, high = around(ends, part=0)
    x = Numbers("at", axis, "~g", log=log, nice=False, padding=14, ticks=values, grid=False)
    drawn = [
        line_chart(
            panel_rows,
            x,
            Numbers("accuracy", "accuracy", ".0%", (max(0.0, low), min(1.0, high))),
            colour=_colour(keys),
            hover=("learner", "group", ("accuracy", ".1%"), *interval_hints(".1%")),
            strokes=True,
            dots=60,
            width=WIDE // 2,
            height=190,
            title=name,
        )
        for name, panel_rows in rows.items()
        if panel_rows
    ]
    return panels(drawn, columns=2, gap=64, row_gap=ROW_GAP)


def _axis_row(axis: str, key: str, group: SweepGroup, accuracy: Estimate) -> dict[str, Any] | None:
    row, at = interval_row(accuracy), finite(group.options[axis])
    return None if row is None or at is None else _about(key, group) | {"at": at, "accuracy": row["mean"]} | row


def _tasks(results: GroupResults) -> list[str]:
    return list(dict.fromkeys(category(group.task or "") for group, _ in results))


def _names(results: GroupResults) -> list[str]:
    """Models with their options, as categories."""
    return [category(name) for name in group_by_model(results)]


def _shapes(names: Sequence[str]) -> dict[str, str]:
    return {name: SHAPES[number % len(SHAPES)] for number, name in enumerate(names)}


def _colour(keys: Sequence[str]) -> alt.Color:
    return learner_colours(learners_in_order(dict.fromkeys(keys)), legend(2, labelLimit=300))
