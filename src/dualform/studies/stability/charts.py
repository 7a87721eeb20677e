"""The charts of a stability study. Each function returns None if the result has nothing to draw."""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers, interval_hints, shares
from dualform.report.charts.colours import SHAPES, colours, learner_colours, learner_scale, legend, shapes
from dualform.report.charts.dots import dot_rows, interval_row
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Plot
from dualform.report.numerals import finite, known
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Estimate
from dualform.studies.baseline_words import COLLAPSED_ABOVE, baseline_levels, chance_level
from dualform.studies.stability.contrast_words import runs_with_true_labels
from dualform.studies.stability.result import (
    Behaviour,
    LearnerStability,
    ModelStability,
    RunBehaviour,
    Spread,
    StabilityResult,
)
from dualform.studies.stability.table import labels_in_order
from dualform.studies.stability.words import variance_shares

LANE_HEIGHT = 30
"""Height in pixels of a row of runs; a learner with calibrated answers has two rows."""
LABEL_GAP = 120
"""Width in pixels of the learners' names left of a panel."""
ROW_GAP = 104
"""Pixels between two panels, for an axis, its title and a heading."""
JITTER = 0.24
"""How far the orders of a set are spread vertically, as a share of the height of a learner's rows."""
FEWEST_FOR_BOX = 4
"""Fewest runs for which quartiles are drawn."""

COMPARED_BY_SIZE = ("icl", "ft")

PART_TITLES = {"set": "set", "order": "order", "residual": "residual (queries)"}
PART_COLOURS = dict(zip(PART_TITLES.values(), ("#3A5A94", "#C9B458", "#8C96A0"), strict=True))
BEFORE, AFTER = "uncalibrated", "calibrated"

_Opacity = TypeVar("_Opacity", alt.Opacity, alt.FillOpacity)


def accuracy_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy of every run, with quartiles and median, before and after calibration; baselines as lines."""
    title = "accuracy of a run"
    return _runs_chart(result, title, baseline_levels(result), lambda each: each.accuracy, lambda each: each.accuracy)


def majority_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Share of the most frequent answer in every run; runs right of the line have collapsed."""
    title = "share of the most frequent answer in a run"
    lines = [(COLLAPSED_ABOVE, "collapse")]
    return _runs_chart(result, title, lines, lambda each: each.majority_share, lambda each: each.majority_share)


def variance_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Variance of accuracy in points squared by set, order and queries; paler bars below for calibrated answers."""
    rows = _by_model(result, _variance_rows)
    # One scale for all panels, so that models can be compared.
    highest = max((row["end"] for model_rows in rows.values() for row in model_rows), default=0.0)
    x = Numbers("start", "variance of accuracy, points squared", domain=(0, highest or 1.0), ticks=6)
    charts = []
    for name, model_rows in rows.items():
        kinds, learners = _kinds(model_rows), _learners(model_rows)
        plot = Plot(
            x,
            Names("learner", learners, room=LABEL_GAP - 6),
            lanes=Names("kind", kinds),
            colour=colours("part", PART_COLOURS, legend()),
            hover=(
                "learner",
                ("kind", "", "answers"),
                ("part", "", "from"),
                ("variance", ".2f", "points squared"),
                ("sd", ".2f", "standard deviation, points"),
                ("share", ".0%", "share"),
            ),
        )
        plot.bars(model_rows, _by_kind(alt.Opacity, (1, 0.55)))
        height = (20 * len(kinds) + 10) * len(learners)
        charts.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(charts, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def size_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Standard deviation of accuracy against the number of parameters, before and after calibration."""
    models = {
        name: (size, model)
        for name, model in _models(result).items()
        if (size := finite(model.model.get("parameters"))) is not None and size > 0
    }
    if len({size for size, _ in models.values()}) < 2:
        return None
    rows = {
        kind: [row for name, (size, model) in models.items() for row in _size_rows(name, size, model, kind)]
        for kind in (BEFORE, AFTER)
    }
    all_rows = [row for kind_rows in rows.values() for row in kind_rows]
    highest = max((row["high"] for row in all_rows), default=0.0)
    y = Numbers("sd", "standard deviation, points", domain=(0, highest or 1.0), ticks=4)
    titles = {row["learner"] for row in all_rows}
    keys = [key for key in COMPARED_BY_SIZE if learner_style(key).title in titles]
    charts = [_size_panel(kind, kind_rows, keys, y) for kind, kind_rows in rows.items() if kind_rows]
    return panels(charts, columns=2, gap=60, row_gap=ROW_GAP)


def labels_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy with true, random and flipped demonstration labels, with intervals."""
    rows = _by_model(result, _label_rows)
    all_rows = [row for model_rows in rows.values() for row in model_rows]
    ends = [row[end] for row in all_rows for end in ("low", "high", "accuracy")]
    if not ends:
        return None
    chance = chance_level(result)
    x = shares("accuracy", "accuracy", ends + ([chance] if chance is not None else []))
    rules = labels_in_order(dict.fromkeys(row["labels"] for row in all_rows))
    rule_shapes = {rule: SHAPES[number % len(SHAPES)] for number, rule in enumerate(rules)}
    key = legend(len(rules), grey=True, title="demonstration labels", titleOrient="left")
    charts = []
    for name, model_rows in rows.items():
        learners = _learners(model_rows)
        plot = Plot(
            x,
            Names("learner", learners, room=LABEL_GAP - 6),
            lanes=Names("labels", rules),
            colour=_colours(result),
            hover=("learner", "labels", ("accuracy", ".1%"), *interval_hints(".1%")),
        )
        if chance is not None:
            plot.level(chance, "chance")
        plot.intervals(model_rows)
        plot.dots(model_rows, shapes("labels", rule_shapes, key), size=110)
        height = (20 * len(rules) + 8) * len(learners)
        charts.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(charts, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def _models(result: StabilityResult) -> dict[str, ModelStability]:
    return result.stability.models if result.stability is not None else {}


def _by_model(
    result: StabilityResult, rows_of: Callable[[str, LearnerStability], list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The chart rows of each model that has any."""
    rows = {
        name: [row for key in learners_in_order(model.learners) for row in rows_of(key, model.learners[key])]
        for name, model in _models(result).items()
    }
    return {name: model_rows for name, model_rows in rows.items() if model_rows}


def _learners(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["learner"] for row in rows))


def _kinds(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [kind for kind in (BEFORE, AFTER) if any(row["kind"] == kind for row in rows)]


def _colours(result: StabilityResult) -> alt.Color:
    """One colour scale for all models, since their panels share it."""
    return learner_colours(_keys(result), legend=None)


def _keys(result: StabilityResult) -> list[str]:
    return learners_in_order(dict.fromkeys(key for model in _models(result).values() for key in model.learners))


def _by_kind(channel: type[_Opacity], values: tuple[float, float]) -> _Opacity:
    """Tells uncalibrated from calibrated answers by opacity."""
    return channel("kind:O", scale=alt.Scale(domain=[BEFORE, AFTER], range=list(values)), legend=None)


def _heading(result: StabilityResult, name: str) -> str | None:
    """The model's name if there are several."""
    return name if len(_models(result)) > 1 else None


def _answers(learner: LearnerStability) -> list[tuple[str, Behaviour]]:
    kinds = ((BEFORE, learner.plain), (AFTER, learner.calibrated))
    return [(kind, behaviour) for kind, behaviour in kinds if behaviour is not None]


def _runs_chart(
    result: StabilityResult,
    title: str,
    lines: Sequence[tuple[float, str]],
    value_of: Callable[[RunBehaviour], float | None],
    spread_of: Callable[[Behaviour], Spread],
) -> alt.TopLevelMixin | None:
    dots = _by_model(result, lambda key, learner: _run_rows(key, learner, value_of))
    boxes = _by_model(result, lambda key, learner: _box_rows(key, learner, spread_of))
    values = [row["share"] for rows in dots.values() for row in rows]
    if not values:
        return None
    # One scale for all panels, so that models can be compared.
    x = shares("share", title, values + [level for level, _ in lines])
    charts = []
    for name, rows in dots.items():
        titles = _learners(rows)
        plot = Plot(
            x,
            Names("learner", titles, room=LABEL_GAP - 6),
            lanes=Numbers("place"),
            colour=_colours(result),
            hover=(
                "learner",
                ("kind", "", "answers"),
                ("seed", "", "set (seed)"),
                "order",
                ("accuracy", ".1%"),
                ("top", ".1%", "most frequent answer"),
                ("answer", "", "that answer"),
            ),
        )
        for level, line in lines:
            plot.level(level, line)
        box_hover: list[Hint] = [
            "learner",
            ("kind", "", "answers"),
            ("mean", ".1%"),
            ("sd", ".1%", "standard deviation"),
            ("q25", ".1%", "first quartile"),
            ("median", ".1%"),
            ("q75", ".1%", "third quartile"),
            ("n", ",", "runs"),
        ]
        if name in boxes:
            plot.intervals(
                boxes[name],
                low="q25",
                high="q75",
                width=LANE_HEIGHT - 12,
                hover=box_hover,
                opacity=0.22,
                strokeCap="butt",
            )
        # Filled dots are uncalibrated, open dots calibrated.
        fill = alt.Fill("learner:N", scale=learner_scale(_keys(result)), legend=None)
        opacity = _by_kind(alt.FillOpacity, (0.5, 0))
        plot.dots(rows, fill, opacity, size=24, filled=False, strokeWidth=1.2, strokeOpacity=0.9)
        if name in boxes:
            plot.ticks(boxes[name], field="median", hover=box_hover, size=LANE_HEIGHT - 8, thickness=3, opacity=1)
        height = LANE_HEIGHT * len(_kinds(rows)) * len(titles) + 6
        charts.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(charts, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def _lane(learner: LearnerStability, kind: str) -> float:
    """Vertical middle of a row of runs within a learner's rows, 0 at the top and 1 at the bottom."""
    if learner.calibrated is None:
        return 0.5
    return 0.25 if kind == BEFORE else 0.75


def _run_rows(
    key: str, learner: LearnerStability, value_of: Callable[[RunBehaviour], float | None]
) -> list[dict[str, Any]]:
    rows = []
    runs = runs_with_true_labels(learner)
    orders = sorted({run.order for run in runs})
    for run in runs:
        place = orders.index(run.order) / (len(orders) - 1) - 0.5 if len(orders) > 1 else 0.0
        for kind, behaviour in ((BEFORE, run.plain), (AFTER, run.calibrated)):
            share = finite(value_of(behaviour)) if behaviour is not None else None
            if behaviour is None or share is None:
                continue
            rows.append(
                {
                    "learner": learner_style(key).title,
                    "kind": kind,
                    "place": _lane(learner, kind) + JITTER * place,
                    "share": share,
                    "seed": str(run.seed),
                    "order": str(run.order),
                    "accuracy": finite(behaviour.accuracy),
                    "top": finite(behaviour.majority_share),
                    "answer": (behaviour.majority_label or "").strip(),
                }
            )
    return rows


def _box_rows(key: str, learner: LearnerStability, spread_of: Callable[[Behaviour], Spread]) -> list[dict[str, Any]]:
    rows = []
    for kind, behaviour in _answers(learner):
        spread = spread_of(behaviour)
        box, median = known((spread.q25, spread.q75)), finite(spread.median)
        if box is not None and median is not None and spread.n >= FEWEST_FOR_BOX:
            about = {"learner": learner_style(key).title, "kind": kind, "place": _lane(learner, kind)}
            quartiles = {"q25": box[0], "median": median, "q75": box[1]}
            rows.append(about | quartiles | {"mean": finite(spread.mean), "sd": finite(spread.sd), "n": spread.n})
    return rows


def _variance_rows(key: str, learner: LearnerStability) -> list[dict[str, Any]]:
    rows = []
    for kind, behaviour in _answers(learner):
        total = finite(behaviour.variance.total) if behaviour.variance is not None else None
        if total is None:
            continue
        start = 0.0
        for part, share in variance_shares(behaviour.variance).items():
            width = share * total * 1e4
            about = {"learner": learner_style(key).title, "kind": kind, "part": PART_TITLES[part], "share": share}
            rows.append(about | {"start": start, "end": start + width, "variance": width, "sd": max(width, 0.0) ** 0.5})
            start += width
    return rows


def _size_rows(name: str, size: float, model: ModelStability, kind: str) -> list[dict[str, Any]]:
    rows = []
    for key in COMPARED_BY_SIZE:
        behaviour = dict(_answers(model.learners[key])).get(kind) if key in model.learners else None
        spread = behaviour.accuracy if behaviour is not None else None
        row = spread and interval_row(Estimate(mean=spread.sd, ci95=spread.sd_ci95, n=spread.n), 100)
        if row:
            about = {"learner": learner_style(key).title, "model": name, "parameters": size, "sd": row["mean"]}
            rows.append(about | row)
    return rows


def _size_panel(kind: str, rows: list[dict[str, Any]], keys: Sequence[str], y: Numbers) -> alt.LayerChart:
    x = Numbers(
        "parameters",
        "parameters",
        log=True,
        nice=False,
        padding=24,
        ticks=sorted({row["parameters"] for row in rows}),
        grid=False,
        # d3 abbreviates 10^9 as G; B for billion is usual for parameters.
        labels="replace(format(datum.value, '.3~s'), 'G', 'B')",
    )
    hover: list[Hint] = [
        "model",
        "learner",
        ("parameters", ","),
        ("sd", ".2f", "standard deviation, points"),
        *interval_hints(".2f", "runs"),
    ]
    plot = Plot(x, y, colour=learner_colours(keys, legend()), hover=hover)
    for number, key in enumerate(keys):
        # Shifted sideways, so that no interval hides another.
        aside = 5 * (number - (len(keys) - 1) / 2)
        if own := [row for row in rows if row["learner"] == learner_style(key).title]:
            plot.line(own, width=1.2, opacity=0.5, xOffset=aside)
            plot.intervals(own, xOffset=aside)
            plot.dots(own, size=80, aside=aside)
    return plot.chart(width=300, height=180, title=kind)


def _label_rows(key: str, learner: LearnerStability) -> list[dict[str, Any]]:
    accuracies = {rule: learner.labels[rule] for rule in labels_in_order(learner.labels)}
    return [{"learner": learner_style(key).title} | row for row in dot_rows(accuracies, row="labels")]
