"""Charts of similarity and its controls: raw scores, calibrated scores, and scores by learning rate.

As in `charts`, a function returns None if the result has nothing to draw, and text is passed as data only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import altair as alt

from dualform.report.charts.axes import Hint, Names, Numbers
from dualform.report.charts.colours import colours, legend, shapes
from dualform.report.charts.dots import interval_row
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Look, Plot
from dualform.report.measures import KINDS, control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import MISSING, decimal, decimal_interval, finite, percent, percent_interval
from dualform.report.palette import MEASURE_COLOUR, learner_style
from dualform.report.phrases import hundredths, hundredths_interval
from dualform.result import Calibrated, Estimate, Result
from dualform.studies.comparison.charts import learning_rates

SCORE_COLOUR = "#3D7A8A"
"""Colour of this run's scores."""

KIND_SHAPES = {"floors": "triangle-up", "comparisons": "diamond", "ceilings": "square"}
KIND_COLOURS = {"floors": "#B0762F", "comparisons": "#8C6BB1", "ceilings": "#4A90C2"}
"""Colours of the controls by kind; none is the colour of a learner, and the shapes differ too."""

BAND_ROW = 46
"""Pixels of a row: the name of the floor, the score, and the controls below it."""
SCALE_ROW = 34
LEFTMOST, RIGHTMOST = -1.0, 2.0
"""Ends of the calibrated axis; values beyond are marked at its edge."""


def band_chart(result: Result) -> alt.TopLevelMixin | None:
    """Each measure's score with its interval, in the band from its floor to its ceiling, with all controls below it.

    Measures outside [-1, 1] are omitted, because all share one axis.
    """
    keys = [
        key
        for key in in_order(result.similarity)
        if (mean := finite(result.similarity[key].mean)) is not None and -1 <= mean <= 1
    ]
    if not keys:
        return None
    scores = [row for key in keys if (row := _score_row(key, result.similarity[key])) is not None]
    bands = [row for key in keys if (row := _band_row(key, result)) is not None]
    controls = [row for key in keys for row in _control_rows(key, result)]
    ends = [row[end] for row in scores for end in ("low", "high")]
    ends += [row["mean"] for row in controls] + [row[end] for row in bands for end in ("floor", "ceiling")]
    domain = (max(-1.0, min(0.0, *ends) - 0.02), min(1.0, max(ends) + 0.02))
    plot = Plot(
        Numbers("mean", "score", ".1f", domain, nice=False, ticks=6, clamp=True),
        Names("measure", [row["measure"] for row in scores], room=170, ruled=True),
        colour=SCORE_COLOUR,
        hover=("measure", ("score", "", "this run"), ("interval", "", "95 % interval"), ("n", ",")),
    )
    plot.thin()
    if bands:
        hover: list[Hint] = [
            "measure",
            ("control", "", "floor"),
            ("floor_text", "", "score of the floor"),
            ("ceiling_text", "", "ceiling"),
            ("place", "", "calibrated"),
        ]
        plot.bars(bands, start="floor", end="ceiling", hover=hover, height=18, opacity=0.24, color=MEASURE_COLOUR)
        for end in ("floor", "ceiling"):
            plot.ticks(bands, field=end, thickness=2, size=18, color=MEASURE_COLOUR, hover=hover)
        style: Look = {"align": "left", "baseline": "bottom", "dy": -10, "fontSize": 10, "color": MEASURE_COLOUR}
        plot.texts(bands, "control", field="floor", hover=hover, **style)
    if controls:
        kinds = [name for _, name in KINDS if any(row["kind"] == name for row in controls)]
        # Shape and colour encode the same field with the same domain, so that they share one legend.
        key = legend(3, below=True, direction="horizontal", columnPadding=6)
        plot.dots(
            controls,
            shapes("kind", {kind: KIND_SHAPES[kind] for kind in kinds}, key),
            colours("kind", {kind: KIND_COLOURS[kind] for kind in kinds}, key),
            size=42,
            opacity=0.85,
            # Below the score, so that they do not overlap.
            aside=15,
            hover=(
                "measure",
                "control",
                "kind",
                "score",
                ("interval", "", "95 % interval"),
                ("n", ","),
                ("place", "", "calibrated with it as floor"),
            ),
        )
    plot.intervals(scores, width=4)
    plot.dots(scores, size=120)
    return plot.chart(height=BAND_ROW * len(keys))


def calibrated_chart(result: Result, only: Sequence[str] | None = None) -> alt.TopLevelMixin | None:
    """Each measure on the scale from its floor, 0, to its ceiling, 1; the axis is cut at -1 and 2.

    Args:
        result: Result of a comparison.
        only: The measures to draw; None draws all.
    """
    places = {
        key: row
        for key in in_order(result.calibrated if only is None else only)
        if key in result.similarity and (row := interval_row(result.calibrated[key])) is not None
    }
    if not places:
        return None
    domain = place_axis(row[end] for row in places.values() for end in ("mean", "low", "high"))
    rows = [_scale_row(key, row, result.calibrated[key], domain) for key, row in places.items()]
    plot = Plot(
        Numbers("shown", "place between floor and ceiling", ".1f", domain, nice=False, ticks=7, clamp=True),
        Names("measure", [row["measure"] for row in rows], room=170),
        colour=SCORE_COLOUR,
        hover=(
            "measure",
            ("place", "", "place between floor and ceiling"),
            ("interval", "", "95 % interval"),
            "floor",
            "ceiling",
            ("n", ","),
        ),
    )
    plot.level(0, "floor", ".1f")
    plot.level(1, "ceiling", ".1f")
    plot.intervals(rows)
    if inside := [row for row in rows if row["inside"]]:
        plot.dots(inside, size=110)
    for side, at in zip(("left", "right"), domain, strict=True):
        if beyond := [row | {"shown": at} for row in rows if row[f"beyond_{side}"]]:
            plot.dots(beyond, size=90, shape=f"triangle-{side}")
    return plot.chart(height=SCALE_ROW * len(rows))


def place_axis(values: Iterable[float]) -> tuple[float, float]:
    """Ends of an axis of calibrated values: it always includes 0 and 1 and never exceeds -1 and 2."""
    ends = [*values]
    return max(LEFTMOST, min(-0.15, *ends) - 0.05), min(RIGHTMOST, max(1.15, *ends) + 0.05)


def sweep_chart(result: Result) -> alt.TopLevelMixin | None:
    """FT's accuracy, the length of its update and each measure against the learning rate, one panel each."""
    points = sorted(
        (point for point in result.rate_sweep if point.learning_rate > 0), key=lambda point: point.learning_rate
    )
    if not points:
        return None
    measures = in_order(dict.fromkeys(key for point in points for key in point.similarity))
    chosen = sorted({trial.learning_rate for trial in result.trials if trial.learner == "ft" and trial.chosen})
    rates = [point.learning_rate for point in points]
    curves: list[tuple[str, list[Estimate | None], str, bool]] = [
        ("accuracy of finetuning", [point.accuracy for point in points], learner_style("ft").colour, True),
        ("length of FT's update / ICL's", [point.update_norm for point in points], learner_style("ft").colour, False),
    ]
    curves += [
        (measure_of(key).title, [point.similarity.get(key) for point in points], MEASURE_COLOUR, False)
        for key in measures
    ]
    sweep_panels = [
        panel
        for title, estimates, colour, share in curves
        if (panel := _sweep_panel(title, rates, estimates, chosen, colour=colour, share=share)) is not None
    ]
    return panels(sweep_panels, columns=3, gap=56, row_gap=84)


def _score_row(key: str, estimate: Estimate) -> dict[str, Any] | None:
    row = interval_row(estimate)
    text = {"score": decimal(estimate.mean), "interval": decimal_interval(estimate.ci95)}
    return None if row is None else {"measure": measure_of(key).title} | row | text


def _band_row(key: str, result: Result) -> dict[str, Any] | None:
    """The band from floor to ceiling; None unless the ceiling is above the floor."""
    place = result.calibrated.get(key)
    floor, ceiling = (finite(place.floor), finite(place.ceiling)) if place else (None, None)
    if place is None or floor is None or ceiling is None or ceiling <= floor:
        return None
    return {
        "measure": measure_of(key).title,
        "floor": floor,
        "ceiling": ceiling,
        "control": control_of(place.control).title,
        "floor_text": decimal(floor),
        "ceiling_text": decimal(ceiling),
        "place": f"{hundredths(place.mean)} ({hundredths_interval(place.ci95)})",
    }


def _control_rows(key: str, result: Result) -> list[dict[str, Any]]:
    """All controls of one measure, and its chance level if it has one."""
    controls: dict[str, Estimate] = {
        control: result.controls[control][key] for control in result.controls if key in result.controls[control]
    }
    chance = finite(result.similarity[key].details.get("chance"))
    if chance is not None:
        controls["chance"] = Estimate(mean=chance, ci95=(None, None), n=result.similarity[key].n)
    place = result.calibrated.get(key)
    kinds = dict(KINDS)
    rows = []
    for control in controls_in_order(controls):
        score = controls[control]
        if finite(score.mean) is None:
            continue
        if place is not None and place.control == control:
            as_floor: Estimate | None = place
        else:
            as_floor = place.by_control.get(control) if place is not None else None
        calibrated = (
            MISSING if as_floor is None else f"{hundredths(as_floor.mean)} ({hundredths_interval(as_floor.ci95)})"
        )
        rows.append(
            {
                "measure": measure_of(key).title,
                "control": control_of(control).title,
                "kind": kinds[control_of(control).kind],
                "mean": finite(score.mean),
                "score": decimal(score.mean),
                "interval": decimal_interval(score.ci95),
                "n": score.n,
                "place": calibrated,
            }
        )
    return rows


def _scale_row(key: str, place: dict[str, Any], calibrated: Calibrated, domain: tuple[float, float]) -> dict[str, Any]:
    left, right = domain
    clipped = {name: min(max(place[name], left), right) for name in ("mean", "low", "high")}
    return {
        "measure": measure_of(key).title,
        "shown": clipped.pop("mean"),
        **clipped,
        "inside": left <= place["mean"] <= right,
        "beyond_left": place["low"] < left,
        "beyond_right": place["high"] > right,
        "place": hundredths(place["mean"]),
        "interval": hundredths_interval(calibrated.ci95),
        "floor": f"{control_of(calibrated.control).title}, {decimal(calibrated.floor)}",
        "ceiling": decimal(calibrated.ceiling),
        "n": calibrated.n,
    }


def _sweep_panel(
    title: str,
    rates: Sequence[float],
    estimates: Sequence[Estimate | None],
    chosen: Sequence[float],
    *,
    colour: str,
    share: bool,
) -> alt.LayerChart | None:
    number, interval = (percent, percent_interval) if share else (decimal, decimal_interval)
    rows = [
        {"what": title, "rate": rate, "value": number(row["mean"]), "interval": interval(estimate.ci95)} | row
        for rate, estimate in zip(rates, estimates, strict=True)
        if estimate is not None and (row := interval_row(estimate)) is not None
    ]
    if not rows:
        return None
    plot = Plot(
        learning_rates("rate"),
        Numbers("mean", format=".0%" if share else "~g", zero=not share, ticks=4),
        colour=colour,
        hover=(
            "what",
            ("rate", ".3~e", "learning rate"),
            ("value", "", "mean"),
            ("interval", "", "95 % interval"),
            ("n", ","),
        ),
    )
    if within := [rate for rate in chosen if rates[0] <= rate <= rates[-1]]:
        plot.across(within)
    plot.bands(rows)
    plot.intervals(rows, width=1.5)
    plot.line(rows)
    plot.dots(rows, size=46)
    return plot.chart(width=220, height=140, title=title)
