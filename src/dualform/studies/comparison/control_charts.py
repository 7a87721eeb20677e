"""Likeness between its controls as charts: raw scores in their bands, the same on one scale, and over step sizes.

As in `charts`: each is None where the result has nothing to draw, and text enters as data only.
"""

from collections.abc import Sequence
from typing import Any

import altair as alt

from dualform.report.charts.panels import WIDE, panel_title, panels
from dualform.report.measures import KINDS, control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import MISSING, decimal, decimal_interval, finite, known, percent, percent_interval
from dualform.report.palette import MEASURE_COLOUR, learner_style
from dualform.report.phrases import hundredths, hundredths_interval
from dualform.result import Estimate, Result

SCORE_COLOUR = "#3D7A8A"
"""Of what this run scores."""

KIND_MARKS: dict[str, tuple[str, str]] = {
    "floors": ("triangle-up", "#B0762F"),
    "comparisons": ("diamond", "#8C6BB1"),
    "ceilings": ("square", "#4A90C2"),
}
"""Shape and colour of the controls, by kind: no colour of a learner, and told apart without colour."""

BAND_ROW = 46
"""Pixels of a row: the name of the floor above, the score, its controls below."""
SCALE_ROW = 34
LEFTMOST, RIGHTMOST = -1.0, 2.0
"""Ends of the calibrated axis; what lies beyond is marked at its edge."""

PANEL_WIDTH = 220
PANEL_HEIGHT = 140
COLUMNS = 3


def band_chart(result: Result) -> alt.TopLevelMixin | None:
    """Each measure's score with its interval, in the band from its floor to its ceiling, all controls below it.

    Measures that can lie outside [-1, 1] are left to the table: one axis serves all.
    """
    keys = [
        key
        for key in in_order(result.similarity)
        if (mean := finite(result.similarity[key].mean)) is not None and -1 <= mean <= 1
    ]
    if not keys:
        return None
    scores = [_score_row(key, result.similarity[key]) for key in keys]
    bands = [row for key in keys if (row := _band_row(key, result)) is not None]
    controls = [row for key in keys for row in _control_rows(key, result)]
    ends = [row[end] for row in scores for end in ("low", "high")]
    ends += [row["mean"] for row in controls] + [row[end] for row in bands for end in ("floor", "ceiling")]
    scale = alt.Scale(domain=[max(-1.0, min(0.0, *ends) - 0.02), min(1.0, max(ends) + 0.02)], nice=False, clamp=True)
    axis = alt.Axis(title="score", tickCount=6, format=".1f")
    y = alt.Y(
        "measure:N",
        sort=[row["measure"] for row in scores],
        title=None,
        axis=alt.Axis(labelLimit=170, grid=True, tickBand="extent", ticks=False),
    )

    zero = alt.Chart(alt.Data(values=[{"zero": 0}])).mark_rule(strokeWidth=1, color="#9AA3AD")
    layers = [zero.encode(x=alt.X("zero:Q", scale=scale, axis=axis))]
    if bands:
        layers += _bands(bands, y, scale, axis)
    if controls:
        layers.append(_control_marks(controls, y, scale, axis))
    base = alt.Chart(alt.Data(values=scores)).encode(
        y=y,
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("score:N", title="this run"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    rule = base.mark_rule(strokeWidth=4, strokeCap="round", color=SCORE_COLOUR)
    dot = base.mark_point(filled=True, size=120, opacity=1, color=SCORE_COLOUR)
    layers.append(rule.encode(x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"))
    layers.append(dot.encode(x=alt.X("mean:Q", scale=scale, axis=axis)))
    return alt.layer(*layers).properties(width=WIDE, height=BAND_ROW * len(keys))


def calibrated_chart(result: Result, only: Sequence[str] | None = None) -> alt.TopLevelMixin | None:
    """Each measure's place between its floor, 0, and its ceiling, 1, on one axis that is cut at -1 and 2.

    Args:
        result: Of a comparison.
        only: The measures that are drawn; all without it.
    """
    keys = [
        key
        for key in in_order(result.calibrated if only is None else only)
        if key in result.similarity and finite(result.calibrated[key].mean) is not None
    ]
    if not keys:
        return None
    raw = {key: known(result.calibrated[key].ci95) or (result.calibrated[key].mean,) * 2 for key in keys}
    found = [float(end) for pair in raw.values() for end in pair if end is not None]
    found += [float(result.calibrated[key].mean or 0.0) for key in keys]
    left, right = max(LEFTMOST, min(-0.15, *found) - 0.05), min(RIGHTMOST, max(1.15, *found) + 0.05)
    rows = [_scale_row(key, result, left, right) for key in keys]
    scale = alt.Scale(domain=[left, right], nice=False, clamp=True)
    axis = alt.Axis(title="place between floor and ceiling", tickCount=7, format=".1f")
    y = alt.Y("measure:N", sort=[row["measure"] for row in rows], title=None, axis=alt.Axis(labelLimit=170))
    x = alt.X("shown:Q", scale=scale, axis=axis)

    lines = [part for at, name in ((0, "floor"), (1, "ceiling")) for part in _named_line(at, name, scale, axis)]
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=y,
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("place:N", title="place between floor and ceiling"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("floor:N"),
            alt.Tooltip("ceiling:N"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round", color=SCORE_COLOUR).encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    dot = base.transform_filter("datum.inside").mark_point(filled=True, size=110, opacity=1, color=SCORE_COLOUR)
    layers = [*lines, rule, dot.encode(x=x)]
    for side, shape, at in (("beyond_left", "triangle-left", left), ("beyond_right", "triangle-right", right)):
        if any(row[side] for row in rows):
            edge = base.transform_filter(f"datum.{side}").transform_calculate(edge=str(at))
            mark = edge.mark_point(filled=True, shape=shape, size=90, opacity=1, color=SCORE_COLOUR)
            layers.append(mark.encode(x=alt.X("edge:Q", scale=scale, axis=axis)))
    return alt.layer(*layers).properties(width=WIDE, height=SCALE_ROW * len(rows))


def sweep_chart(result: Result) -> alt.TopLevelMixin | None:
    """FT's accuracy, the length of its change and each measure against the learning rate, one panel each."""
    points = sorted(
        (point for point in result.rate_sweep if point.learning_rate > 0), key=lambda point: point.learning_rate
    )
    if not points:
        return None
    measures = in_order(dict.fromkeys(key for point in points for key in point.similarity))
    chosen = sorted({trial.learning_rate for trial in result.trials if trial.learner == "ft" and trial.chosen})
    rates = [point.learning_rate for point in points]
    named: list[tuple[str, list[Estimate | None], str, bool]] = [
        ("accuracy of finetuning", [point.accuracy for point in points], learner_style("ft").colour, True),
        ("length of FT's change / ICL's", [point.update_norm for point in points], learner_style("ft").colour, False),
    ]
    named += [
        (measure_of(key).title, [point.similarity.get(key) for point in points], MEASURE_COLOUR, False)
        for key in measures
    ]
    drawn = [
        _sweep_panel(title, rates, estimates, chosen, colour=colour, share=share)
        for title, estimates, colour, share in named
        if any(each is not None and finite(each.mean) is not None for each in estimates)
    ]
    return panels(drawn, columns=COLUMNS, gap=56, row_gap=84)


def _score_row(key: str, estimate: Estimate) -> dict[str, Any]:
    mean = finite(estimate.mean)
    # Without an interval the rule shrinks to the dot.
    low, high = known(estimate.ci95) or (mean, mean)
    return {
        "measure": measure_of(key).title,
        "mean": mean,
        "low": low,
        "high": high,
        "score": decimal(mean),
        "interval": decimal_interval(estimate.ci95),
        "n": estimate.n,
    }


def _band_row(key: str, result: Result) -> dict[str, Any] | None:
    """From floor to ceiling; None where there is no room between them."""
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
    """Every control of one measure; the chance level stands among them where the measure has one."""
    found: dict[str, Estimate] = {
        control: result.controls[control][key] for control in result.controls if key in result.controls[control]
    }
    chance = finite(result.similarity[key].details.get("chance"))
    if chance is not None:
        found["chance"] = Estimate(mean=chance, ci95=(None, None), n=result.similarity[key].n)
    place = result.calibrated.get(key)
    kinds = dict(KINDS)
    rows = []
    for control in controls_in_order(found):
        each = found[control]
        if finite(each.mean) is None:
            continue
        if place is not None and place.control == control:
            own: Estimate | None = place
        else:
            own = place.by_control.get(control) if place is not None else None
        rows.append(
            {
                "measure": measure_of(key).title,
                "control": control_of(control).title,
                "kind": kinds[control_of(control).kind],
                "mean": finite(each.mean),
                "score": decimal(each.mean),
                "interval": decimal_interval(each.ci95),
                "n": each.n,
                "place": MISSING if own is None else f"{hundredths(own.mean)} ({hundredths_interval(own.ci95)})",
            }
        )
    return rows


def _bands(rows: list[dict[str, Any]], y: alt.Y, scale: alt.Scale, axis: alt.Axis) -> list[alt.Chart]:
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=y,
        tooltip=[
            alt.Tooltip("measure:N"),
            alt.Tooltip("control:N", title="floor"),
            alt.Tooltip("floor_text:N", title="it scores"),
            alt.Tooltip("ceiling_text:N", title="ceiling"),
            alt.Tooltip("place:N", title="place between them"),
        ],
    )
    at_floor = alt.X("floor:Q", scale=scale, axis=axis)
    band = base.mark_bar(height=18, opacity=0.24, color=MEASURE_COLOUR).encode(x=at_floor, x2="ceiling:Q")
    end = base.mark_tick(thickness=2, size=18, color=MEASURE_COLOUR)
    name = base.mark_text(align="left", baseline="bottom", dy=-10, fontSize=10, color=MEASURE_COLOUR).encode(
        x=at_floor, text="control:N"
    )
    return [band, end.encode(x=at_floor), end.encode(x=alt.X("ceiling:Q", scale=scale, axis=axis)), name]


def _control_marks(rows: list[dict[str, Any]], y: alt.Y, scale: alt.Scale, axis: alt.Axis) -> alt.Chart:
    kinds = [name for _, name in KINDS if any(row["kind"] == name for row in rows)]
    # Below: on a narrow screen the menu of the chart would cover it above.
    legend = alt.Legend(title=None, orient="bottom", direction="horizontal", columnPadding=6, symbolOpacity=1)
    # One field, one title, one domain: both encodings share a legend.
    shape = alt.Scale(domain=kinds, range=[KIND_MARKS[kind][0] for kind in kinds])
    colour = alt.Scale(domain=kinds, range=[KIND_MARKS[kind][1] for kind in kinds])
    return (
        alt.Chart(alt.Data(values=rows))
        # Below the score, so that neither hides the other.
        .mark_point(filled=True, size=42, opacity=0.85, yOffset=15)
        .encode(
            x=alt.X("mean:Q", scale=scale, axis=axis),
            y=y,
            shape=alt.Shape("kind:N", scale=shape, legend=legend),
            color=alt.Color("kind:N", scale=colour, legend=legend),
            tooltip=[
                alt.Tooltip("measure:N"),
                alt.Tooltip("control:N"),
                alt.Tooltip("kind:N"),
                alt.Tooltip("score:N"),
                alt.Tooltip("interval:N", title="95 % interval"),
                alt.Tooltip("n:Q", format=","),
                alt.Tooltip("place:N", title="this run, were it the floor"),
            ],
        )
    )


def _scale_row(key: str, result: Result, left: float, right: float) -> dict[str, Any]:
    place = result.calibrated[key]
    mean = float(place.mean or 0.0)
    low, high = known(place.ci95) or (mean, mean)
    return {
        "measure": measure_of(key).title,
        "shown": min(max(mean, left), right),
        "low": min(max(low, left), right),
        "high": min(max(high, left), right),
        "inside": left <= mean <= right,
        "beyond_left": low < left,
        "beyond_right": high > right,
        "place": hundredths(mean),
        "interval": hundredths_interval(place.ci95),
        "floor": f"{control_of(place.control).title}, {decimal(place.floor)}",
        "ceiling": decimal(place.ceiling),
        "n": place.n,
    }


def _named_line(at: float, name: str, scale: alt.Scale, axis: alt.Axis) -> list[alt.Chart]:
    base = alt.Chart(alt.Data(values=[{"at": at}])).encode(x=alt.X("at:Q", scale=scale, axis=axis))
    line = base.mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR, strokeWidth=1.5)
    text = base.mark_text(align="center", baseline="bottom", color=MEASURE_COLOUR, fontSize=11)
    return [line, text.encode(y=alt.value(-4), text=alt.value(name))]


def _sweep_panel(
    title: str,
    rates: Sequence[float],
    estimates: Sequence[Estimate | None],
    chosen: Sequence[float],
    *,
    colour: str,
    share: bool,
) -> alt.TopLevelMixin:
    rows = []
    for rate, estimate in zip(rates, estimates, strict=True):
        mean = None if estimate is None else finite(estimate.mean)
        if estimate is None or mean is None:
            continue
        low, high = known(estimate.ci95) or (mean, mean)
        rows.append(
            {
                "what": title,
                "rate": rate,
                "mean": mean,
                "low": low,
                "high": high,
                "value": percent(mean) if share else decimal(mean),
                "interval": percent_interval(estimate.ci95) if share else decimal_interval(estimate.ci95),
                "n": estimate.n,
            }
        )
    x_scale = alt.Scale(type="log", nice=False, padding=10)
    x_axis = alt.Axis(format="~e", tickCount=4, grid=False, labelOverlap=True)
    x = alt.X("rate:Q", scale=x_scale, axis=x_axis, title="learning rate")
    scale, axis = alt.Scale(zero=not share, nice=True), alt.Axis(tickCount=4, format=".0%" if share else "~g")
    base = alt.Chart(alt.Data(values=rows)).encode(
        x=x,
        tooltip=[
            alt.Tooltip("what:N"),
            alt.Tooltip("rate:Q", format=".3~e", title="learning rate"),
            alt.Tooltip("value:N", title="mean"),
            alt.Tooltip("interval:N", title="95 % interval"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    ends = alt.Y("low:Q", title=None, scale=scale, axis=axis)
    y = alt.Y("mean:Q", title=None, scale=scale, axis=axis)
    layers = [
        base.mark_area(opacity=0.18, color=colour).encode(y=ends, y2="high:Q"),
        base.mark_rule(strokeWidth=1.5, color=colour).encode(y=ends, y2="high:Q"),
        base.mark_line(strokeWidth=1.8, color=colour).encode(y=y),
        base.mark_point(filled=True, size=46, opacity=1, color=colour).encode(y=y),
    ]
    within = [{"chosen": rate} for rate in chosen if rates[0] <= rate <= rates[-1]]
    if within:
        line = alt.Chart(alt.Data(values=within)).mark_rule(strokeDash=[4, 4], color=MEASURE_COLOUR)
        layers.insert(0, line.encode(x=alt.X("chosen:Q", scale=x_scale, axis=x_axis, title="learning rate")))
    return alt.layer(*layers).properties(width=PANEL_WIDTH, height=PANEL_HEIGHT, title=panel_title(title))
