"""A result as charts: one function a chart, each None where the result has nothing to draw.

One definition serves the interactive page and the figure in a paper (`report.charts.saving.save_chart`). Sizes, not
colours of text and background, are set here; the page sets those to suit a light or a dark screen. Text from data sets
enters as data only, never as a field name or an expression.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dualform.plain_text import plain
from dualform.report.categories import categories
from dualform.report.charts.dots import ROW_HEIGHT, dot_chart, dot_rows
from dualform.report.charts.panels import WIDE, learner_colours, panel_title, panels
from dualform.report.measures import control_of, in_order, measure_of
from dualform.report.numerals import MISSING, decimal, finite, known
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.result import Result, Similarity, Trial
from dualform.studies.baseline_words import baseline_levels
from dualform.studies.paired_words import LEVEL

PANEL_WIDTH = 220
PANEL_HEIGHT = 150
"""Pixels of one small multiple."""
COLUMNS = 3
LABELS_SHOWN = 8
"""Labels told apart in the chart of predictions; the rest are drawn as one."""
OTHER_LABELS = "all others"
TRUE_LABELS = "right answers"
"""Row of the same chart: how often each label is the right one."""

MISSING_COLOUR = "#6E6E6E"
"""Of a cell without a number: darker than the pale middle of the scale, and no colour of it."""

MOST_LABELS = 20
"""Labels of the chart of accuracy by label; with more there is only the table."""


def accuracy_chart(result: Result) -> alt.TopLevelMixin | None:
    """Mean accuracy with 95 % interval for each learner, seeds as small points; chance and majority as lines."""
    keys = [key for key in learners_in_order(result.accuracy) if finite(result.accuracy[key].mean) is not None]
    if not keys:
        return None
    seeds = [
        {"learner": learner_style(key).title, "seed": seed, "accuracy": finite(value)}
        for key in keys
        for seed, value in result.accuracy[key].per_seed.items()
        if finite(value) is not None
    ]
    return dot_chart(
        dot_rows({learner_style(key).title: result.accuracy[key] for key in keys}),
        colour=learner_colours(keys, legend=None),
        axis_title="accuracy on the report split",
        seeds=seeds,
        levels=baseline_levels(result),
    )


def by_label_chart(result: Result) -> alt.TopLevelMixin | None:
    """Accuracy on the queries of each label with its 95 % interval, the learners below one another."""
    keys = [key for key in learners_in_order(result.accuracy) if result.accuracy[key].per_label]
    labels = list(dict.fromkeys(label for key in keys for label in result.accuracy[key].per_label))
    rows = []
    for label, name in zip(labels, categories([_visible(label) for label in labels]), strict=True):
        there = {key: result.accuracy[key].per_label[label] for key in keys if label in result.accuracy[key].per_label}
        rows += [row | {"label": name} for row in dot_rows({learner_style(key).title: there[key] for key in there})]
    # A label more would take no more than a row's height; beyond some twenty the table serves better.
    if not rows or len(labels) > MOST_LABELS:
        return None
    return dot_chart(
        rows,
        row="label",
        colour=learner_colours(keys, legend=alt.Legend(title=None, orient="top", columns=3, symbolOpacity=1)),
        axis_title="share of the label's queries answered correctly",
        offsets=[learner_style(key).title for key in keys],
        row_height=14 * len(keys) + 12,
    )


def prediction_chart(result: Result) -> alt.TopLevelMixin | None:
    """How often each learner answers each label, and how often it is right: a collapse is a bar of one colour."""
    bars_of: dict[str, Mapping[str, int]] = {
        learner_style(key).title: result.predictions[key].counts
        for key in learners_in_order(result.predictions)
        if sum(result.predictions[key].counts.values())
    }
    if not bars_of:
        return None
    true = result.baselines.label_counts if result.baselines is not None else {}
    if sum(true.values()):
        bars_of = {TRUE_LABELS: true, **bars_of}
    totals: dict[str, int] = {}
    for counts in bars_of.values():
        for label, n in counts.items():
            totals[label] = totals.get(label, 0) + n
    shown = list(totals)
    if len(totals) > LABELS_SHOWN:
        shown = sorted(totals, key=lambda label: -totals[label])[: LABELS_SHOWN - 1]
    labels = categories([_visible(label) for label in shown], taken=[OTHER_LABELS])
    named = dict(zip(shown, labels, strict=True))
    rows = [row for title, counts in bars_of.items() for row in _prediction_rows(title, counts, named)]
    labels += [OTHER_LABELS] if len(shown) < len(totals) else []

    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("learner:N", sort=list(bars_of), title=None, axis=alt.Axis(labelLimit=200))
    )
    axis = alt.Axis(format=".0%", title="share of predictions", tickCount=5)
    bars = base.mark_bar(height=20).encode(
        x=alt.X("start:Q", axis=axis, scale=alt.Scale(domain=[0, 1])),
        x2="end:Q",
        color=alt.Color(
            "label:N",
            sort=labels,
            # Not the learners' colours: here a colour is a label.
            scale=alt.Scale(domain=labels, range=_label_colours(len(labels))),
            legend=alt.Legend(title=None, orient="top", columns=4, labelLimit=160),
        ),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("label:N"),
            alt.Tooltip("share:Q", format=".1%"),
            alt.Tooltip("predictions:Q", format=","),
        ],
    )
    text = (
        base.transform_filter("datum.share >= 0.08")
        .mark_text(fontSize=11)
        .encode(x="middle:Q", text=alt.Text("share:Q", format=".0%"), color=alt.Color("ink:N", scale=None))
    )
    return alt.layer(bars, text).properties(width=WIDE, height=ROW_HEIGHT * len(bars_of))


def similarity_by_layer_chart(result: Result) -> alt.TopLevelMixin | None:
    """Each measure over the layers: mean, interval band, overall mean as a dashed line, its floor in grey.

    Filled points are layers above the floor, hollow ones those not told apart from it, false discoveries over the
    measure's layers accounted for. Without a floor of its own a measure stands beside the random control.
    """
    keys = [key for key in in_order(result.similarity) if _any_number(result.similarity[key].per_layer)]
    return _small_multiples([_layer_panel(number, key, result) for number, key in enumerate(keys)])


def head_map_chart(result: Result) -> alt.TopLevelMixin | None:
    """Heat map of layer and head, one map for each measure that has heads, each on its own scale."""
    panels = []
    for key in in_order(result.similarity):
        heads = result.similarity[key].per_head
        if heads and any(_any_number(row) for row in heads):
            panels.append(_head_panel(measure_of(key).title, heads))
    chart = _small_multiples(panels, row_gap=104)
    return None if chart is None else chart.resolve_scale(color="independent")


def trials_chart(result: Result) -> alt.TopLevelMixin | None:
    """Learning rate (log scale) against accuracy on the selection split, one line a seed; dropped rates crossed."""
    learners = learners_in_order(dict.fromkeys(trial.learner for trial in result.trials))
    panels = []
    for learner in learners:
        # A seed that took the rate of another, or a control that took FT's, tried nothing: no point for it.
        trials = [
            trial
            for trial in result.trials
            if trial.learner == learner and trial.learning_rate > 0 and not _reused(trial)
        ]
        if trials:
            panels.append(_trial_panel(learner, trials))
    return _small_multiples(panels, columns=2, gap=70)


def _reused(trial: Trial) -> bool:
    """Whether a seed trained at a rate chosen elsewhere: it finished, and was not scored."""
    return trial.status == "finished" and finite(trial.validation_accuracy) is None


def trained_name(key: str) -> str:
    """What was trained under `key`: a learner, or a control with a learning rate of its own."""
    return control_of(key).title if learner_style(key).title == key else learner_style(key).title


def _prediction_rows(title: str, counts: Mapping[str, int], named: Mapping[str, str]) -> list[dict[str, Any]]:
    """One bar, piece by piece; `named` are the labels told apart, each with its name in the chart."""
    total = sum(counts.values())
    pieces = [(name, counts.get(label, 0)) for label, name in named.items()]
    rest = total - sum(predicted for _, predicted in pieces)
    if rest:
        pieces.append((OTHER_LABELS, rest))
    rows = []
    start = 0.0
    inks = _label_inks(len(pieces))
    for (label, predicted), ink in zip(pieces, inks, strict=True):
        share = predicted / total
        rows.append(
            {
                "learner": title,
                "label": label,
                "predictions": predicted,
                "share": share,
                "start": start,
                "middle": start + share / 2,
                "end": start + share,
                "ink": ink,
            }
        )
        start += share
    return rows


def _visible(label: str) -> str:
    """Label words begin with a space; in a legend that space says nothing. Nor may a word end or steer an SVG."""
    return plain(label.strip()) or repr(label)


# Light and dark alternate along the cividis scale, so that neighbours differ in lightness and need no hue.
_LABEL_COLOURS = ("#3A5A94", "#C9B458", "#5D6D8A", "#E7DDA0", "#24406F", "#A59C74", "#7B8795", "#D8D2B8")
_LABEL_INKS = ("#FFFFFF", "#111111", "#FFFFFF", "#111111", "#FFFFFF", "#111111", "#111111", "#111111")


def _label_colours(n: int) -> list[str]:
    return list(_LABEL_COLOURS[:n])


def _label_inks(n: int) -> list[str]:
    return list(_LABEL_INKS[:n])


def _any_number(values: Sequence[Any] | None) -> bool:
    return values is not None and any(finite(value) is not None for value in values)


def _small_multiples(
    charts: list[alt.TopLevelMixin], columns: int = COLUMNS, gap: int = 52, row_gap: int = 74
) -> alt.TopLevelMixin | None:
    return panels(charts, columns=columns, gap=gap, row_gap=row_gap)


def layer_floor(key: str, result: Result) -> tuple[str, Similarity] | None:
    """The control with which a measure's layers are compared, and what it scores: its floor, else the random one."""
    named = [result.calibrated[key].control] if key in result.calibrated else []
    for control in (*named, "random"):
        found = result.controls.get(control, {}).get(key)
        if found is not None and _any_number(found.per_layer):
            return control, found
    return None


def _layer_panel(number: int, key: str, result: Result) -> alt.TopLevelMixin:
    similarity, title = result.similarity[key], measure_of(key).title
    floor = layer_floor(key, result)
    rows = _layer_rows(title, similarity, floor)
    x = alt.X(
        "layer:Q",
        axis=alt.Axis(tickMinStep=1, tickCount=6, format="d", grid=False),
        scale=alt.Scale(nice=False, zero=False, padding=6),
        title="layer",
    )
    scale = alt.Scale(zero=True, nice=True)
    y_axis = alt.Axis(tickCount=4)
    y = alt.Y("mean:Q", title=None, scale=scale, axis=y_axis)
    base = alt.Chart(alt.Data(values=rows)).encode(x=x)
    # A number in its name: altair would merge the equal selections of two panels, with a warning.
    hover = alt.selection_point(name=f"hover_{number}", nearest=True, on="pointerover", fields=["layer"], empty=False)
    tooltip = [
        alt.Tooltip("measure:N"),
        alt.Tooltip("layer:Q"),
        alt.Tooltip("mean:Q", format=".3f"),
        alt.Tooltip("low:Q", format=".3f", title="95 % from"),
        alt.Tooltip("high:Q", format=".3f", title="to"),
        alt.Tooltip("n:Q", format=","),
        alt.Tooltip("overall:Q", format=".3f", title="all layers"),
    ]
    if floor is not None:
        tooltip.append(alt.Tooltip("floor:N", title=control_of(floor[0]).title))
    tested = [row for row in rows if row["above"] is not None]
    if tested:
        tooltip.append(alt.Tooltip("q:N", title="q, above that control"))
    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeWidth=1, color="#9AA3AD").encode(y="zero:Q")
    band = base.mark_area(opacity=0.22, color=MEASURE_COLOUR).encode(
        y=alt.Y("low:Q", title=None, scale=scale, axis=y_axis), y2="high:Q"
    )
    line = base.mark_line(strokeWidth=2, color=MEASURE_COLOUR).encode(y=y)
    points = (
        base.mark_point(filled=True, size=60, color=MEASURE_COLOUR)
        .encode(y=y, opacity=alt.condition(hover, alt.value(1), alt.value(0)), tooltip=tooltip)
        .add_params(hover)
    )
    # Vega warns in the console of a band without a single number.
    layers = [zero, band, line] if _any_number([row["low"] for row in rows]) else [zero, line]
    if finite(similarity.mean) is not None:
        overall = alt.Chart(alt.Data(values=[{"overall": finite(similarity.mean)}]))
        layers.append(overall.mark_rule(strokeDash=[5, 4], color=MEASURE_COLOUR).encode(y="overall:Q"))
    if floor is not None:
        beside = [{"layer": layer, "mean": finite(value)} for layer, value in enumerate(floor[1].per_layer or [])]
        if any(row["mean"] is not None for row in beside):
            layers.append(
                alt.Chart(alt.Data(values=beside))
                .mark_line(strokeWidth=1.5, strokeDash=[2, 2], color="#A0A7AF")
                .encode(x=x, y=y)
            )
    for above in (True, False):
        # Sorted here and not by the chart: Vega warns of a layer in which nothing is left.
        some = [row for row in tested if row["above"] is above]
        if some:
            layers.append(
                alt.Chart(alt.Data(values=some))
                .mark_point(filled=above, size=26, strokeWidth=1.2, opacity=1, color=MEASURE_COLOUR)
                .encode(x=x, y=y)
            )
    layers.append(points)
    return alt.layer(*layers).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT, title=panel_title(title, offset=8))


def _layer_rows(title: str, similarity: Similarity, floor: tuple[str, Similarity] | None) -> list[dict[str, Any]]:
    intervals, qs = similarity.per_layer_ci95 or [], similarity.per_layer_q or []
    floors = (floor[1].per_layer if floor else None) or []
    rows = []
    for layer, value in enumerate(similarity.per_layer or []):
        low, high = (known(intervals[layer]) if layer < len(intervals) else None) or (None, None)
        mean, q = finite(value), finite(qs[layer]) if layer < len(qs) else None
        rows.append(
            {
                "measure": title,
                "layer": layer,
                "mean": mean,
                "low": low,
                "high": high,
                "n": similarity.n,
                "overall": finite(similarity.mean),
                "floor": decimal(floors[layer]) if layer < len(floors) else MISSING,
                "q": decimal(q),
                "above": None if q is None or mean is None else q < LEVEL,
            }
        )
    return rows


def _head_panel(title: str, heads: Sequence[Sequence[Any]]) -> alt.TopLevelMixin:
    rows = [
        {"measure": title, "layer": layer, "head": head, "mean": finite(value)}
        for layer, values in enumerate(heads)
        for head, value in enumerate(values)
    ]
    found = [abs(number) for values in heads for value in values if (number := finite(value)) is not None]
    reach = max(found, default=0.0) or 1.0
    layers = len(heads)
    every = max(1, layers // 10)
    n_heads = max(len(values) for values in heads)
    colour = alt.Color(
        "mean:Q",
        # Symmetric, so that the pale middle is zero and the sign is seen.
        scale=alt.Scale(scheme="blueorange", domain=[-reach, reach]),
        legend=alt.Legend(
            title=None, orient="bottom", gradientLength=140, gradientThickness=8, tickCount=3, direction="horizontal"
        ),
    )
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=alt.X(
            "head:O",
            title="head",
            axis=alt.Axis(values=list(range(0, n_heads, max(1, n_heads // 8))), labelAngle=0, ticks=False),
        ),
        y=alt.Y("layer:O", title="layer", axis=alt.Axis(values=list(range(0, layers, every)), ticks=False)),
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("layer:O"),
            alt.Tooltip("head:O"),
            alt.Tooltip("mean:Q", format=".3f"),
        ],
    )
    cells = base.transform_filter("isValid(datum.mean)").mark_rect().encode(color=colour)
    # A layer of their own: within one layer Vega-Lite draws a missing number as zero.
    missing = base.transform_filter("!isValid(datum.mean)").mark_rect(color=MISSING_COLOUR)
    size = {"width": PANEL_WIDTH, "height": min(360, max(120, 9 * layers))}
    return alt.layer(cells, missing).properties(**size, title=panel_title(title, offset=8))


def _trial_panel(learner: str, trials: Sequence[Trial]) -> alt.TopLevelMixin:
    found = [value for trial in trials if (value := finite(trial.validation_accuracy)) is not None]
    # Dropped rates have no accuracy; they stand below all that have one.
    floor = max(0.0, min(found, default=0.5) - 0.05)
    rows = [
        {
            "learner": trained_name(learner),
            "seed": str(trial.seed),
            "learning_rate": trial.learning_rate,
            "accuracy": finite(trial.validation_accuracy),
            "shown": floor if finite(trial.validation_accuracy) is None else finite(trial.validation_accuracy),
            "log_probability": finite(trial.validation_log_probability),
            "first_loss": finite(trial.first_loss),
            "last_loss": finite(trial.last_loss),
            "status": "chosen" if trial.chosen else trial.status,
        }
        for trial in trials
    ]
    statuses = ["chosen", "finished", "diverged", "skipped"]
    statuses += sorted({trial.status for trial in trials} - set(statuses))
    shapes = (["circle", "circle", "cross", "triangle-down"] + ["square"] * len(statuses))[: len(statuses)]
    colour = learner_style(learner).colour
    x = alt.X(
        "learning_rate:Q",
        scale=alt.Scale(type="log", nice=False, padding=8),
        axis=alt.Axis(format="~e", tickCount=4, grid=False, labelOverlap=True),
        title="learning rate",
    )
    y_axis = alt.Axis(format=".0%", tickCount=4)
    y = alt.Y("shown:Q", title="selection accuracy", axis=y_axis, scale=alt.Scale(zero=False, nice=True))
    base = alt.Chart(alt.Data(values=rows)).encode(x=x, y=y)
    line = (
        base.transform_filter("isValid(datum.accuracy)")
        .mark_line(strokeWidth=1.2, opacity=0.45, color=colour)
        .encode(detail="seed:N")
    )
    points = base.mark_point(filled=True, color=colour, opacity=0.9).encode(
        shape=alt.Shape(
            "status:N",
            scale=alt.Scale(domain=statuses, range=shapes),
            legend=None,
        ),
        # The chosen ones stand out, and a cross needs room to be read as one.
        size=alt.condition("datum.status === 'finished'", alt.value(36), alt.value(120)),
        tooltip=[
            alt.Tooltip("learner:N"),
            alt.Tooltip("seed:N"),
            alt.Tooltip("learning_rate:Q", format=".3~e", title="learning rate"),
            alt.Tooltip("accuracy:Q", format=".1%", title="selection accuracy"),
            alt.Tooltip("log_probability:Q", format=".3f", title="mean log-probability"),
            alt.Tooltip("first_loss:Q", format=".3f", title="first loss"),
            alt.Tooltip("last_loss:Q", format=".3f", title="last loss"),
            alt.Tooltip("status:N"),
        ],
    )
    title = trained_name(learner)
    return alt.layer(line, points).properties(
        width=PANEL_WIDTH + 60, height=PANEL_HEIGHT, title=panel_title(title, offset=8)
    )
