"""A stability study as charts: one function a chart, each None where the result has nothing to draw.

As in `charts`: colours of text and background are the page's, and text from data sets enters as data only.
"""

from collections.abc import Callable, Sequence
from typing import Any

import altair as alt

from dualform.report.charts.panels import (
    WIDE,
    baseline_lines,
    learner_colours,
    learner_scale,
    line_at,
    panel_title,
    panels,
)
from dualform.report.numerals import finite, known
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
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

COMPARED_BY_SIZE = ("icl", "ft")

PART_COLOURS = {"set": "#3A5A94", "order": "#C9B458", "residual": "#8C96A0"}
PART_TITLES = {"set": "set", "order": "order", "residual": "residual (queries)"}
BEFORE, AFTER = "as answered", "calibrated"


def accuracy_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy of every run, with quartiles and median, before and after calibration; chance as a line."""
    title = "accuracy of a run"
    return _runs_chart(result, title, baseline_levels(result), lambda each: each.accuracy, lambda each: each.accuracy)


def majority_runs_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Share of the most frequent answer in every run, drawn alike; a run beyond the line has collapsed."""
    title = "share of the most frequent answer in a run"
    return _runs_chart(
        result,
        title,
        [(COLLAPSED_ABOVE, "collapse")],
        lambda each: each.majority_share,
        lambda each: each.majority_share,
    )


def _top_of_run(run: RunBehaviour) -> float | None:
    return run.majority_share


def _top_of_all(behaviour: Behaviour) -> Spread:
    return behaviour.majority_share


def variance_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Variance of a run's accuracy in points squared, split by set, order and queries; calibrated below, pale."""
    rows = {}
    for name, model in _models(result).items():
        found = [row for key in learners_in_order(model.learners) for row in _variance_rows(key, model.learners[key])]
        if found:
            rows[name] = found
    # One scale for all panels, so that models can be compared.
    reach = max((row["end"] for found in rows.values() for row in found), default=0.0)
    scale = alt.Scale(domain=[0, reach or 1.0], nice=True)
    drawn = [_variance_panel(_heading(result, name), found, scale) for name, found in rows.items()]
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
    scale = alt.Scale(domain=[0, reach or 1.0], nice=True)
    shown = {row["learner"] for found in rows.values() for row in found}
    keys = [key for key in COMPARED_BY_SIZE if learner_style(key).title in shown]
    drawn = [_size_panel(kind, found, keys, scale) for kind, found in rows.items() if found]
    return panels(drawn, columns=2, gap=60, row_gap=ROW_GAP)


def labels_chart(result: StabilityResult) -> alt.TopLevelMixin | None:
    """Accuracy with true, random and flipped labels in the demonstrations, with intervals."""
    found = _models(result)
    chance = chance_level(result)
    rows = {name: _label_rows(model) for name, model in found.items()}
    reach = [value for each in rows.values() for row in each for value in (row["low"], row["high"], row["accuracy"])]
    if not reach:
        return None
    scale, axis = _shares(reach + ([chance] if chance is not None else []), "accuracy")
    rules = labels_in_order(dict.fromkeys(row["labels"] for each in rows.values() for row in each))
    drawn = [
        _labels_panel(_heading(result, name), each, rules, chance, scale, axis, _colours(result))
        for name, each in rows.items()
        if each
    ]
    return panels(drawn, columns=1, gap=LABEL_GAP, row_gap=ROW_GAP)


def _models(result: StabilityResult) -> dict[str, ModelStability]:
    return result.stability.models if result.stability is not None else {}


def _colours(result: StabilityResult) -> alt.Scale:
    """One colour scale for all models: panels share it, and each with learners of its own would mix it up."""
    return learner_scale(
        learners_in_order(dict.fromkeys(key for model in _models(result).values() for key in model.learners))
    )


def _heading(result: StabilityResult, name: str) -> str | None:
    """A panel is headed by its model where there are several."""
    return name if len(_models(result)) > 1 else None


def _shares(values: Sequence[float], title: str) -> tuple[alt.Scale, alt.Axis]:
    """One scale for all panels, so that models can be compared."""
    low, high = min(values), max(values)
    margin = max(0.02, 0.05 * (high - low))
    scale = alt.Scale(domain=[max(0.0, low - margin), min(1.0, high + margin)], zero=False, nice=True)
    return scale, alt.Axis(format=".0%", title=title, tickCount=6, labelOverlap=True)


def _titled(title: str | None) -> dict[str, Any]:
    return {} if title is None else {"title": panel_title(title)}


def _runs_chart(
    result: StabilityResult,
    title: str,
    lines: Sequence[tuple[float, str]],
    of_run: Callable[[RunBehaviour], float | None],
    of_all: Callable[[Behaviour], Spread],
) -> alt.TopLevelMixin | None:
    dots: dict[str, list[dict[str, Any]]] = {}
    for name, model in _models(result).items():
        rows = [row for key in learners_in_order(model.learners) for row in _run_rows(key, model.learners[key], of_run)]
        if rows:
            dots[name] = rows
    values = [row["share"] for rows in dots.values() for row in rows]
    if not values:
        return None
    scale, axis = _shares(values + [level for level, _ in lines], title)
    drawn = []
    for name, rows in dots.items():
        learners = _models(result)[name].learners
        boxes = [row for key in learners_in_order(learners) for row in _box_rows(key, learners[key], of_all)]
        drawn.append(_runs_panel(_heading(result, name), rows, boxes, lines, scale, axis, _colours(result)))
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
    for kind, behaviour in ((BEFORE, learner.plain), (AFTER, learner.calibrated)):
        spread = of_all(behaviour) if behaviour is not None else None
        box = known((spread.q25, spread.q75)) if spread is not None else None
        # Quartiles of two or three runs would look like knowledge.
        if spread is None or box is None or finite(spread.median) is None or spread.n < 4:
            continue
        rows.append(
            {
                "learner": learner_style(key).title,
                "place": _lane(learner, kind),
                "kind": kind,
                "q25": box[0],
                "median": finite(spread.median),
                "q75": box[1],
                "mean": finite(spread.mean),
                "sd": finite(spread.sd),
                "n": spread.n,
            }
        )
    return rows


def _runs_panel(
    title: str | None,
    dots: list[dict[str, Any]],
    boxes: list[dict[str, Any]],
    lines: Sequence[tuple[float, str]],
    scale: alt.Scale,
    axis: alt.Axis,
    colours: alt.Scale,
) -> alt.TopLevelMixin:
    titles = list(dict.fromkeys(row["learner"] for row in dots))
    y = alt.Y("learner:N", sort=titles, title=None, axis=alt.Axis(labelLimit=LABEL_GAP - 6, grid=False))
    offset = alt.YOffset("place:Q", scale=alt.Scale(domain=[0, 1], nice=False, zero=False))
    kinds = [kind for kind in (BEFORE, AFTER) if any(row["kind"] == kind for row in dots)]
    points = (
        alt.Chart(alt.Data(values=dots))
        .mark_point(size=24, strokeWidth=1.2)
        .encode(
            x=alt.X("share:Q", scale=scale, axis=axis),
            y=y,
            yOffset=offset,
            color=alt.Color("learner:N", scale=colours, legend=None),
            # Filled as answered, open when calibrated: told apart without colour.
            fillOpacity=alt.FillOpacity("kind:O", scale=alt.Scale(domain=[BEFORE, AFTER], range=[0.5, 0]), legend=None),
            fill=alt.Fill("learner:N", scale=colours, legend=None),
            strokeOpacity=alt.value(0.9),
            tooltip=[
                alt.Tooltip("learner:N"),
                alt.Tooltip("kind:N", title="answers"),
                alt.Tooltip("seed:N", title="set (seed)"),
                alt.Tooltip("order:N"),
                alt.Tooltip("accuracy:Q", format=".1%"),
                alt.Tooltip("top:Q", format=".1%", title="most frequent answer"),
                alt.Tooltip("answer:N", title="which"),
            ],
        )
    )
    layers = [points]
    if boxes:
        base = alt.Chart(alt.Data(values=boxes)).encode(
            y=y,
            yOffset=offset,
            color=alt.Color("learner:N", scale=colours, legend=None),
            tooltip=[
                alt.Tooltip("learner:N"),
                alt.Tooltip("kind:N", title="answers"),
                alt.Tooltip("mean:Q", format=".1%"),
                alt.Tooltip("sd:Q", format=".1%", title="standard deviation"),
                alt.Tooltip("q25:Q", format=".1%", title="first quarter below"),
                alt.Tooltip("median:Q", format=".1%"),
                alt.Tooltip("q75:Q", format=".1%", title="last quarter above"),
                alt.Tooltip("n:Q", format=",", title="runs"),
            ],
        )
        box = base.mark_rule(strokeWidth=LANE_HEIGHT - 12, opacity=0.22).encode(
            x=alt.X("q25:Q", scale=scale, axis=axis), x2="q75:Q"
        )
        median = base.mark_tick(orient="vertical", size=LANE_HEIGHT - 8, thickness=3, opacity=1).encode(
            x=alt.X("median:Q", scale=scale, axis=axis)
        )
        layers = [box, points, median]
    layers = baseline_lines(lines, scale, axis) + layers
    height = LANE_HEIGHT * len(kinds) * len(titles) + 6
    return alt.layer(*layers).properties(width=WIDE, height=height, **_titled(title))


def _variance_rows(key: str, learner: LearnerStability) -> list[dict[str, Any]]:
    rows = []
    for kind, behaviour in ((BEFORE, learner.plain), (AFTER, learner.calibrated)):
        split = behaviour.variance if behaviour is not None else None
        shares = variance_shares(split)
        total = finite(split.total) if split is not None else None
        if total is None:
            continue
        start = 0.0
        for part, share in shares.items():
            width = share * total * 1e4
            rows.append(
                {
                    "learner": learner_style(key).title,
                    "kind": kind,
                    "part": PART_TITLES[part],
                    "share": share,
                    "start": start,
                    "end": start + width,
                    "variance": width,
                    "sd": (width if width > 0 else 0.0) ** 0.5,
                }
            )
            start += width
    return rows


def _variance_panel(title: str | None, rows: list[dict[str, Any]], scale: alt.Scale) -> alt.TopLevelMixin:
    kinds = [kind for kind in (BEFORE, AFTER) if any(row["kind"] == kind for row in rows)]
    learners = list(dict.fromkeys(row["learner"] for row in rows))
    chart = (
        alt.Chart(alt.Data(values=rows))
        .mark_bar()
        .encode(
            y=alt.Y("learner:N", sort=learners, title=None, axis=alt.Axis(labelLimit=LABEL_GAP - 6)),
            yOffset=alt.YOffset("kind:N", sort=kinds, scale=alt.Scale(domain=kinds, paddingInner=0.15)),
            x=alt.X("start:Q", scale=scale, axis=alt.Axis(title="variance of accuracy, points squared", tickCount=6)),
            x2="end:Q",
            opacity=alt.Opacity("kind:O", scale=alt.Scale(domain=[BEFORE, AFTER], range=[1, 0.55]), legend=None),
            color=alt.Color(
                "part:N",
                sort=list(PART_TITLES.values()),
                scale=alt.Scale(domain=list(PART_TITLES.values()), range=list(PART_COLOURS.values())),
                legend=alt.Legend(title=None, orient="top", columns=3),
            ),
            tooltip=[
                alt.Tooltip("learner:N"),
                alt.Tooltip("kind:N", title="answers"),
                alt.Tooltip("part:N", title="from"),
                alt.Tooltip("variance:Q", format=".2f", title="points squared"),
                alt.Tooltip("sd:Q", format=".2f", title="as a deviation, points"),
                alt.Tooltip("share:Q", format=".0%", title="share"),
            ],
        )
    )
    height = (20 * len(kinds) + 10) * len(learners)
    return chart.properties(width=WIDE, height=height, **_titled(title))


def _size_rows(name: str, size: float, model: ModelStability, kind: str) -> list[dict[str, Any]]:
    rows = []
    for key in COMPARED_BY_SIZE:
        learner = model.learners.get(key)
        behaviour = None if learner is None else learner.plain if kind == BEFORE else learner.calibrated
        sd = finite(behaviour.accuracy.sd) if behaviour is not None else None
        if behaviour is None or sd is None:
            continue
        low, high = known(behaviour.accuracy.sd_ci95) or (sd, sd)
        rows.append(
            {
                "learner": learner_style(key).title,
                "model": name,
                "parameters": size,
                "sd": 100 * sd,
                "low": 100 * low,
                "high": 100 * high,
                "n": behaviour.accuracy.n,
            }
        )
    return rows


def _size_panel(kind: str, rows: list[dict[str, Any]], keys: Sequence[str], y_scale: alt.Scale) -> alt.TopLevelMixin:
    sizes = sorted({row["parameters"] for row in rows})
    x_axis = alt.Axis(
        values=sizes,
        # The field calls 10^9 parameters a billion, d3 calls them giga.
        labelExpr="replace(format(datum.value, '.3~s'), 'G', 'B')",
        labelOverlap=True,
        grid=False,
        title="parameters",
    )
    x_scale = alt.Scale(type="log", nice=False, padding=24)
    y_axis = alt.Axis(title="standard deviation, points", tickCount=4)
    legend = alt.Legend(title=None, orient="top")
    tooltip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("learner:N"),
        alt.Tooltip("parameters:Q", format=","),
        alt.Tooltip("sd:Q", format=".2f", title="standard deviation, points"),
        alt.Tooltip("low:Q", format=".2f", title="95 % from"),
        alt.Tooltip("high:Q", format=".2f", title="to"),
        alt.Tooltip("n:Q", format=",", title="runs"),
    ]
    layers = []
    for number, key in enumerate(keys):
        own = [row for row in rows if row["learner"] == learner_style(key).title]
        if not own:
            continue
        # Side by side, so that no interval hides another.
        aside = 5 * (number - (len(keys) - 1) / 2)
        base = alt.Chart(alt.Data(values=own)).encode(
            x=alt.X("parameters:Q", scale=x_scale, axis=x_axis), color=learner_colours(keys, legend=legend)
        )
        y = alt.Y("sd:Q", scale=y_scale, axis=y_axis)
        layers += [
            base.mark_line(strokeWidth=1.2, opacity=0.5, xOffset=aside).encode(y=y),
            base.mark_rule(strokeWidth=3, strokeCap="round", xOffset=aside).encode(
                y=alt.Y("low:Q", scale=y_scale, axis=y_axis), y2="high:Q", tooltip=tooltip
            ),
            base.mark_point(filled=True, size=80, opacity=1, xOffset=aside).encode(y=y, tooltip=tooltip),
        ]
    return alt.layer(*layers).properties(width=300, height=180, title=panel_title(kind))


def _label_rows(model: ModelStability) -> list[dict[str, Any]]:
    rows = []
    for key in learners_in_order(model.learners):
        labels = model.learners[key].labels
        for rule in labels_in_order(labels):
            mean = finite(labels[rule].mean)
            if mean is None:
                continue
            low, high = known(labels[rule].ci95) or (mean, mean)
            rows.append(
                {
                    "learner": learner_style(key).title,
                    "labels": rule,
                    "accuracy": mean,
                    "low": low,
                    "high": high,
                    "n": labels[rule].n,
                }
            )
    return rows


def _labels_panel(
    title: str | None,
    rows: list[dict[str, Any]],
    rules: Sequence[str],
    chance: float | None,
    scale: alt.Scale,
    axis: alt.Axis,
    colours: alt.Scale,
) -> alt.TopLevelMixin:
    learners = list(dict.fromkeys(row["learner"] for row in rows))
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y(
            "learner:N",
            sort=learners,
            title=None,
            axis=alt.Axis(labelLimit=LABEL_GAP - 6, grid=False),
        ),
        yOffset=alt.YOffset("labels:N", sort=list(rules), scale=alt.Scale(domain=list(rules))),
        color=alt.Color("learner:N", scale=colours, legend=None),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("labels:N"),
            alt.Tooltip("accuracy:Q", format=".1%"),
            alt.Tooltip("low:Q", format=".1%", title="95 % from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    shapes = ["circle", "triangle-up", "diamond", "square", "cross"]
    dot = base.mark_point(filled=True, size=110, opacity=1).encode(
        x=alt.X("accuracy:Q", scale=scale, axis=axis),
        shape=alt.Shape(
            "labels:N",
            sort=list(rules),
            scale=alt.Scale(domain=list(rules), range=[shapes[place % len(shapes)] for place in range(len(rules))]),
            legend=alt.Legend(
                title="labels shown",
                orient="top",
                titleOrient="left",
                # Black, the default, vanishes on a dark screen.
                symbolFillColor=MEASURE_COLOUR,
                symbolStrokeColor=MEASURE_COLOUR,
            ),
        ),
    )
    layers = [rule, dot]
    if chance is not None:
        layers = line_at(chance, "chance", scale, axis) + layers
    height = (20 * len(rules) + 8) * len(learners)
    return alt.layer(*layers).properties(width=WIDE, height=height, **_titled(title))
