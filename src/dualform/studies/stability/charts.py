"""A stability study as charts: one function a chart, each None where the result has nothing to draw.

Text from data sets enters as data only.
"""

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
"""Pixels of a row of runs; a learner has one, or two where its answers were calibrated too."""
LABEL_GAP = 120
"""Pixels that the learners' names take left of a panel."""
ROW_GAP = 104
"""Pixels between two panels: an axis, its title and a heading."""
JITTER = 0.24
"""How far the orders of a set are spread over a lane, as a share of a learner's rows."""
FEWEST_FOR_BOX = 4
"""Quartiles of two or three runs would look like knowledge."""

COMPARED_BY_SIZE = ("icl", "ft")

PART_TITLES = {"set": "set", "order": "order", "residual": "residual (queries)"}
PART_COLOURS = dict(zip(PART_TITLES.values(), ("#3A5A94", "#C9B458", "#8C96A0"), strict=True))
BEFORE, AFTER = "as answered", "calibrated"

_Opacity = TypeVar("_Opacity", alt.Opacity, alt.FillOpacity)


def accuracy_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy of every run, with quartiles and median, before and after calibration; chance as a line."""
    title = "accuracy of a run"
    return _runs_chart(result, title, baseline_levels(result), lambda each: each.accuracy, lambda each: each.accuracy)


def majority_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Share of the most frequent answer in every run, drawn alike; a run beyond the line has collapsed."""
    title = "share of the most frequent answer in a run"
    lines = [(COLLAPSED_ABOVE, "collapse")]
    return _runs_chart(result, title, lines, lambda each: each.majority_share, lambda each: each.majority_share)


def variance_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Variance of a run's accuracy in points squared, split by set, order and queries; calibrated below, pale."""
    rows = _by_model(result, _variance_rows)
    # One scale for all panels, so that models can be compared.
    reach = max((row["end"] for found in rows.values() for row in found), default=0.0)
    x = Numbers("start", "variance of accuracy, points squared", domain=(0, reach or 1.0), ticks=6)
    drawn = []
    for name, found in rows.items():
        kinds, learners = _kinds(found), _learners(found)
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
                ("sd", ".2f", "as a deviation, points"),
                ("share", ".0%", "share"),
            ),
        )
        plot.bars(found, _by_kind(alt.Opacity, (1, 0.55)))
        height = (20 * len(kinds) + 10) * len(learners)
        drawn.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(drawn, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


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
    reach = max((row["high"] for found in rows.values() for row in found), default=0.0)
    y = Numbers("sd", "standard deviation, points", domain=(0, reach or 1.0), ticks=4)
    shown = {row["learner"] for found in rows.values() for row in found}
    keys = [key for key in COMPARED_BY_SIZE if learner_style(key).title in shown]
    drawn = [_size_panel(kind, found, keys, y) for kind, found in rows.items() if found]
    return panels(drawn, columns=2, gap=60, row_gap=ROW_GAP)


def labels_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy with true, random and flipped labels in the demonstrations, with intervals."""
    rows = _by_model(result, _label_rows)
    ends = [row[end] for found in rows.values() for row in found for end in ("low", "high", "accuracy")]
    if not ends:
        return None
    chance = chance_level(result)
    x = shares("accuracy", "accuracy", ends + ([chance] if chance is not None else []))
    rules = labels_in_order(dict.fromkeys(row["labels"] for found in rows.values() for row in found))
    named = {rule: SHAPES[place % len(SHAPES)] for place, rule in enumerate(rules)}
    key = legend(len(rules), grey=True, title="labels shown", titleOrient="left")
    drawn = []
    for name, found in rows.items():
        learners = _learners(found)
        plot = Plot(
            x,
            Names("learner", learners, room=LABEL_GAP - 6),
            lanes=Names("labels", rules),
            colour=_colours(result),
            hover=("learner", "labels", ("accuracy", ".1%"), *interval_hints(".1%")),
        )
        if chance is not None:
            plot.level(chance, "chance")
        plot.intervals(found)
        plot.dots(found, shapes("labels", named, key), size=110)
        height = (20 * len(rules) + 8) * len(learners)
        drawn.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(drawn, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def _models(result: StabilityResult) -> dict[str, ModelStability]:
    return result.stability.models if result.stability is not None else {}


def _by_model(
    result: StabilityResult, rows_of: Callable[[str, LearnerStability], list[dict[str, Any]]]
) -> dict[str, list[dict[str, Any]]]:
    """The rows of all learners of each model that has any."""
    found = {
        name: [row for key in learners_in_order(model.learners) for row in rows_of(key, model.learners[key])]
        for name, model in _models(result).items()
    }
    return {name: rows for name, rows in found.items() if rows}


def _learners(rows: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(row["learner"] for row in rows))


def _kinds(rows: Sequence[dict[str, Any]]) -> list[str]:
    return [kind for kind in (BEFORE, AFTER) if any(row["kind"] == kind for row in rows)]


def _colours(result: StabilityResult) -> alt.Color:
    """One colour scale for all models: panels share it, and each with learners of its own would mix it up."""
    return learner_colours(_keys(result), legend=None)


def _keys(result: StabilityResult) -> list[str]:
    return learners_in_order(dict.fromkeys(key for model in _models(result).values() for key in model.learners))


def _by_kind(channel: type[_Opacity], values: tuple[float, float]) -> _Opacity:
    """As answered and calibrated, distinguished without colour."""
    return channel("kind:O", scale=alt.Scale(domain=[BEFORE, AFTER], range=list(values)), legend=None)


def _heading(result: StabilityResult, name: str) -> str | None:
    """A panel is headed by its model where there are several."""
    return name if len(_models(result)) > 1 else None


def _answers(learner: LearnerStability) -> list[tuple[str, Behaviour]]:
    both = ((BEFORE, learner.plain), (AFTER, learner.calibrated))
    return [(kind, behaviour) for kind, behaviour in both if behaviour is not None]


def _runs_chart(
    result: StabilityResult,
    title: str,
    lines: Sequence[tuple[float, str]],
    of_run: Callable[[RunBehaviour], float | None],
    of_all: Callable[[Behaviour], Spread],
) -> alt.TopLevelMixin | None:
    dots = _by_model(result, lambda key, learner: _run_rows(key, learner, of_run))
    boxes = _by_model(result, lambda key, learner: _box_rows(key, learner, of_all))
    values = [row["share"] for rows in dots.values() for row in rows]
    if not values:
        return None
    # One scale for all panels, so that models can be compared.
    x = shares("share", title, values + [level for level, _ in lines])
    drawn = []
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
                ("answer", "", "which"),
            ),
        )
        for level, line in lines:
            plot.level(level, line)
        of_box: list[Hint] = [
            "learner",
            ("kind", "", "answers"),
            ("mean", ".1%"),
            ("sd", ".1%", "standard deviation"),
            ("q25", ".1%", "first quarter below"),
            ("median", ".1%"),
            ("q75", ".1%", "last quarter above"),
            ("n", ",", "runs"),
        ]
        if name in boxes:
            plot.intervals(
                boxes[name],
                low="q25",
                high="q75",
                width=LANE_HEIGHT - 12,
                hover=of_box,
                opacity=0.22,
                strokeCap="butt",
            )
        # Filled as answered, open when calibrated.
        fill = alt.Fill("learner:N", scale=learner_scale(_keys(result)), legend=None)
        opacity = _by_kind(alt.FillOpacity, (0.5, 0))
        plot.dots(rows, fill, opacity, size=24, filled=False, strokeWidth=1.2, strokeOpacity=0.9)
        if name in boxes:
            plot.ticks(boxes[name], field="median", hover=of_box, size=LANE_HEIGHT - 8, thickness=3, opacity=1)
        height = LANE_HEIGHT * len(_kinds(rows)) * len(titles) + 6
        drawn.append(plot.chart(height=height, title=_heading(result, name)))
    return panels(drawn, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def _lane(learner: LearnerStability, kind: str) -> float:
    """Middle of a row of runs within a learner's rows, 0 at the top and 1 at the bottom."""
    if learner.calibrated is None:
        return 0.5
    return 0.25 if kind == BEFORE else 0.75


def _run_rows(
    key: str, learner: LearnerStability, of_run: Callable[[RunBehaviour], float | None]
) -> list[dict[str, Any]]:
    rows = []
    runs = runs_with_true_labels(learner)
    orders = sorted({run.order for run in runs})
    for run in runs:
        place = orders.index(run.order) / (len(orders) - 1) - 0.5 if len(orders) > 1 else 0.0
        for kind, behaviour in ((BEFORE, run.plain), (AFTER, run.calibrated)):
            share = finite(of_run(behaviour)) if behaviour is not None else None
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


def _box_rows(key: str, learner: LearnerStability, of_all: Callable[[Behaviour], Spread]) -> list[dict[str, Any]]:
    rows = []
    for kind, behaviour in _answers(learner):
        spread = of_all(behaviour)
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
        found = spread and interval_row(Estimate(mean=spread.sd, ci95=spread.sd_ci95, n=spread.n), 100)
        if found:
            rows.append(
                {"learner": learner_style(key).title, "model": name, "parameters": size, "sd": found["mean"]} | found
            )
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
        # The field calls 10^9 parameters a billion, d3 calls them giga.
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
        # Side by side, so that no interval hides another.
        aside = 5 * (number - (len(keys) - 1) / 2)
        if own := [row for row in rows if row["learner"] == learner_style(key).title]:
            plot.line(own, width=1.2, opacity=0.5, xOffset=aside)
            plot.intervals(own, xOffset=aside)
            plot.dots(own, size=80, aside=aside)
    return plot.chart(width=300, height=180, title=kind)


def _label_rows(key: str, learner: LearnerStability) -> list[dict[str, Any]]:
    named = {rule: learner.labels[rule] for rule in labels_in_order(learner.labels)}
    return [{"learner": learner_style(key).title} | row for row in dot_rows(named, row="labels")]
