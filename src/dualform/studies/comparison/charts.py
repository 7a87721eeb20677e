"""The charts of a comparison, one function each; a function returns None if the result has nothing to draw.

The same charts serve the interactive page and figures of papers (`report.charts.saving.save_chart`). Text from data
sets is passed as data only, never as a field name or an expression.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dualform.plain_text import plain
from dualform.report.categories import categories
from dualform.report.charts.axes import Names, Numbers, interval_hints
from dualform.report.charts.colours import colours, learner_colours, legend, shapes
from dualform.report.charts.dots import ROW_HEIGHT, dot_rows, share_chart
from dualform.report.charts.heat import MISSING_COLOUR, heat_colours
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Plot, Size
from dualform.report.charts.theme import RULE_COLOUR
from dualform.report.measures import control_of, in_order, measure_of
from dualform.report.numerals import MISSING, decimal, finite, known
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.result import Result, Similarity, Trial
from dualform.studies.baseline_words import baseline_levels
from dualform.studies.paired_words import LEVEL

PANEL: Size = {"width": 220, "height": 150}
"""Pixels of one small multiple."""
LABELS_SHOWN = 8
"""Most labels with a colour of their own in the chart of predictions; the rest share one."""
OTHER_LABELS = "all others"
TRUE_LABELS = "right answers"
"""Row of the same chart: how often each label is right."""

# Light and dark alternate along the cividis scale, so that neighbours can be distinguished by lightness alone.
LABEL_COLOURS = ("#3A5A94", "#C9B458", "#5D6D8A", "#E7DDA0", "#24406F", "#A59C74", "#7B8795", "#D8D2B8")
LABEL_INKS = ("#FFFFFF", "#111111", "#FFFFFF", "#111111", "#FFFFFF", "#111111", "#111111", "#111111")

MOST_LABELS = 20
"""Most labels in the chart of accuracy by label; with more, only the table is shown."""


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
    return share_chart(
        dot_rows({learner_style(key).title: result.accuracy[key] for key in keys}),
        colour=learner_colours(keys, legend=None),
        title="accuracy on the report split",
        seeds=seeds,
        levels=baseline_levels(result),
    )


def by_label_chart(result: Result) -> alt.TopLevelMixin | None:
    """Accuracy of each learner on the queries of each label, with 95 % intervals."""
    keys = [key for key in learners_in_order(result.accuracy) if result.accuracy[key].per_label]
    labels = list(dict.fromkeys(label for key in keys for label in result.accuracy[key].per_label))
    rows = []
    for label, name in zip(labels, categories([visible(label) for label in labels]), strict=True):
        recalls = {
            learner_style(key).title: result.accuracy[key].per_label[label]
            for key in keys
            if label in result.accuracy[key].per_label
        }
        rows += [row | {"label": name} for row in dot_rows(recalls)]
    if not rows or len(labels) > MOST_LABELS:
        return None
    return share_chart(
        rows,
        row="label",
        colour=learner_colours(keys, legend()),
        title="share of the label's queries answered correctly",
        lanes=Names("learner", [learner_style(key).title for key in keys]),
    )


def prediction_chart(result: Result) -> alt.TopLevelMixin | None:
    """How often each learner predicts each label; a learner that collapsed into one class is a bar of one colour."""
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
    coloured = list(totals)
    if len(totals) > LABELS_SHOWN:
        coloured = sorted(totals, key=lambda label: -totals[label])[: LABELS_SHOWN - 1]
    labels = categories([visible(label) for label in coloured], taken=[OTHER_LABELS])
    chart_names = dict(zip(coloured, labels, strict=True))
    rows = [row for title, counts in bars_of.items() for row in _prediction_rows(title, counts, chart_names)]
    labels += [OTHER_LABELS] if len(coloured) < len(totals) else []
    plot = Plot(
        Numbers("start", "share of predictions", ".0%", domain=(0, 1)),
        Names("learner", list(bars_of)),
        # Colours stand for labels here, not for learners.
        colour=colours("label", dict(zip(labels, LABEL_COLOURS, strict=False)), legend(4, labelLimit=160)),
        hover=("learner", "label", ("share", ".1%"), ("predictions", ",")),
    )
    plot.bars(rows, height=20)
    wide = [row | {"percent": f"{100 * row['share']:.0f}%"} for row in rows if row["share"] >= 0.08]
    plot.texts(wide, "percent", alt.Color("ink:N", scale=None), field="middle")
    return plot.chart(height=ROW_HEIGHT * len(bars_of))


def similarity_by_layer_chart(result: Result) -> alt.TopLevelMixin | None:
    """Each measure over the layers: mean with interval band, mean over layers as a dashed line, floor in grey.

    Filled points are layers above the floor, at a false discovery rate of 5 % over the measure's layers; hollow points
    are not significantly above it. A measure without a floor is compared with the random control.
    """
    keys = [key for key in in_order(result.similarity) if _any_number(result.similarity[key].per_layer)]
    return panels([_layer_panel(key, result) for key in keys], columns=3, gap=52, row_gap=74)


def head_map_chart(result: Result) -> alt.TopLevelMixin | None:
    """Heat maps of layer and head, one for each measure that has values by head, each on its own scale."""
    maps = []
    for key in in_order(result.similarity):
        heads = result.similarity[key].per_head
        if heads and any(_any_number(row) for row in heads):
            maps.append(_head_panel(measure_of(key).title, heads))
    chart = panels(maps, columns=3, gap=52, row_gap=104)
    return None if chart is None else chart.resolve_scale(color="independent")


def trials_chart(result: Result) -> alt.TopLevelMixin | None:
    """Accuracy on the selection split against learning rate (log scale), one line a seed."""
    learner_panels = []
    for learner in learners_in_order(dict.fromkeys(trial.learner for trial in result.trials)):
        # A rate taken over from another seed, or from FT by a control, was not tried and has no point.
        trials = [
            trial
            for trial in result.trials
            if trial.learner == learner and trial.learning_rate > 0 and not _reused(trial)
        ]
        if trials:
            learner_panels.append(_trial_panel(learner, trials))
    return panels(learner_panels, columns=2, gap=70, row_gap=74)


def layer_floor(key: str, result: Result) -> tuple[str, Similarity] | None:
    """The control with which a measure's layers are compared (its floor, else the random one), and its score."""
    floors = [result.calibrated[key].control] if key in result.calibrated else []
    for control in (*floors, "random"):
        score = result.controls.get(control, {}).get(key)
        if score is not None and _any_number(score.per_layer):
            return control, score
    return None


def trained_name(key: str) -> str:
    """Title of a learner, or of a control with a learning rate of its own."""
    return control_of(key).title if learner_style(key).title == key else learner_style(key).title


def _reused(trial: Trial) -> bool:
    """Whether the rate was chosen elsewhere: the training finished and was not scored."""
    return trial.status == "finished" and finite(trial.validation_accuracy) is None


def _prediction_rows(title: str, counts: Mapping[str, int], chart_names: Mapping[str, str]) -> list[dict[str, Any]]:
    """The segments of one bar; `chart_names` maps each label with a colour of its own to its name in the chart."""
    total = sum(counts.values())
    segments = [(name, counts.get(label, 0)) for label, name in chart_names.items()]
    rest = total - sum(predicted for _, predicted in segments)
    if rest:
        segments.append((OTHER_LABELS, rest))
    rows = []
    start = 0.0
    for (label, predicted), ink in zip(segments, LABEL_INKS, strict=False):
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


def visible(label: str) -> str:
    """A label word in charts, without the space it begins with and without characters that could break an SVG."""
    return plain(label.strip()) or repr(label)


def _any_number(values: Sequence[Any] | None) -> bool:
    return values is not None and any(finite(value) is not None for value in values)


def _layer_panel(key: str, result: Result) -> alt.LayerChart:
    similarity, floor = result.similarity[key], layer_floor(key, result)
    rows = _layer_rows(measure_of(key).title, similarity, floor)
    tested = [row for row in rows if row["above"] is not None]
    floor_hover = (("floor", "", control_of(floor[0]).title),) if floor is not None else ()
    plot = Plot(
        Numbers("layer", "layer", "d", nice=False, padding=6, ticks=6, grid=False),
        Numbers("mean", zero=True, ticks=4),
        hover=(
            "measure",
            ("layer", "d"),
            ("mean", ".3f"),
            *interval_hints(".3f"),
            ("overall", ".3f", "all layers"),
            *floor_hover,
            *((("q", "", "q, above that control"),) if tested else ()),
        ),
    )
    plot.thin()
    plot.bands(rows, opacity=0.22)
    plot.line(rows)
    if (overall := finite(similarity.mean)) is not None:
        plot.thin(overall, strokeDash=[5, 4], color=MEASURE_COLOUR)
    if floor is not None:
        floor_rows = [{"layer": layer, "mean": finite(value)} for layer, value in enumerate(floor[1].per_layer or [])]
        plot.line(floor_rows, width=1.5, strokeDash=[2, 2], color=RULE_COLOUR)
    for above in (True, False):
        # Filter here and not in the chart, because Vega warns about empty layers.
        if layer_rows := [row for row in tested if row["above"] is above]:
            plot.dots(layer_rows, size=26, filled=above, strokeWidth=1.2)
    # Invisible larger dots make the points easier to hover over.
    plot.dots(rows, size=80, opacity=0)
    return plot.chart(**PANEL, title=measure_of(key).title, offset=8)


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


def _head_panel(title: str, heads: Sequence[Sequence[Any]]) -> alt.LayerChart:
    rows: list[dict[str, Any]] = [
        {"measure": title, "layer": layer, "head": head, "mean": finite(value)}
        for layer, values in enumerate(heads)
        for head, value in enumerate(values)
    ]
    reach = max((abs(row["mean"]) for row in rows if row["mean"] is not None), default=0.0) or 1.0
    layers, n_heads = len(heads), max(len(values) for values in heads)
    plot = Plot(
        _counted("head", n_heads, 8),
        _counted("layer", layers, 10),
        hover=("measure", "layer", "head", ("mean", ".3f")),
    )
    bar = legend(below=True, direction="horizontal", gradientLength=140, gradientThickness=8, tickCount=3)
    plot.cells([row for row in rows if row["mean"] is not None], heat_colours("mean", reach, bar))
    # Missing numbers need a chart layer of their own; otherwise Vega-Lite draws them as zero.
    if missing := [row for row in rows if row["mean"] is None]:
        plot.cells(missing, color=MISSING_COLOUR)
    return plot.chart(width=PANEL["width"], height=min(360, max(120, 9 * layers)), title=title, offset=8)


def _counted(field: str, n: int, most: int) -> Names:
    """An axis of the numbers from 0 to `n - 1`, with about `most` labels."""
    numbers = list(range(n))
    return Names(field, numbers, field, labelled=numbers[:: max(1, n // most)])


def _trial_panel(learner: str, trials: Sequence[Trial]) -> alt.LayerChart:
    accuracies = [value for trial in trials if (value := finite(trial.validation_accuracy)) is not None]
    # Diverged and skipped rates have no accuracy; they are drawn below all others.
    bottom = max(0.0, min(accuracies, default=0.5) - 0.05)
    rows: list[dict[str, Any]] = [
        {
            "learner": trained_name(learner),
            "seed": str(trial.seed),
            "learning_rate": trial.learning_rate,
            "accuracy": finite(trial.validation_accuracy),
            "shown": bottom if finite(trial.validation_accuracy) is None else finite(trial.validation_accuracy),
            "log_probability": finite(trial.validation_log_probability),
            "first_loss": finite(trial.first_loss),
            "last_loss": finite(trial.last_loss),
            "status": "chosen" if trial.chosen else trial.status,
        }
        for trial in trials
    ]
    known_statuses = {"chosen": "circle", "finished": "circle", "diverged": "cross", "skipped": "triangle-down"}
    statuses = known_statuses | {trial.status: "square" for trial in trials if trial.status not in known_statuses}
    plot = Plot(
        learning_rates("learning_rate"),
        Numbers("shown", "selection accuracy", ".0%", ticks=4),
        colour=learner_style(learner).colour,
        hover=(
            "learner",
            "seed",
            ("learning_rate", ".3~e", "learning rate"),
            ("accuracy", ".1%", "selection accuracy"),
            ("log_probability", ".3f", "mean log-probability"),
            ("first_loss", ".3f", "first loss"),
            ("last_loss", ".3f", "last loss"),
            "status",
        ),
    )
    if scored := [row for row in rows if row["accuracy"] is not None]:
        plot.line(scored, alt.Detail("seed:N"), width=1.2, opacity=0.45)
    # Chosen, diverged and skipped rates are drawn larger than the others.
    for finished, size in ((True, 36), (False, 120)):
        if dots := [row for row in rows if (row["status"] == "finished") == finished]:
            plot.dots(dots, shapes("status", statuses), size=size, opacity=0.9)
    return plot.chart(width=PANEL["width"] + 60, height=PANEL["height"], title=trained_name(learner), offset=8)


def learning_rates(field: str) -> Numbers:
    """A log axis of learning rates."""
    return Numbers(field, "learning rate", "~e", log=True, nice=False, padding=10, ticks=4, grid=False)
