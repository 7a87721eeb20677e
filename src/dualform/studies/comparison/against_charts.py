"""Accuracy against what a thousand queries cost, prompting drawn twice: read anew and kept.

None where the result has nothing to draw; text enters as data only.
"""

import math
from typing import Any

import altair as alt

from dualform.report.charts.panels import WIDE, learner_colours
from dualform.report.numerals import finite, known
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Result

QUERIES = 1000
"""Queries whose cost is drawn."""

HEIGHT = 250
APART = 9
"""Pixels between learners of nearly equal cost, whose points would lie on one another."""
NEAR = 0.05
"""Costs count as nearly equal when they lie closer than this part of the axis."""

ANEW, KEPT = "prompt read anew", "keys and values kept"


def cost_accuracy_chart(result: Result) -> alt.TopLevelMixin | None:
    """Mean accuracy with 95 % interval against the operations of a thousand queries, on a log axis.

    One point a learner; in-context learning has a second, hollow one for a prompt whose keys and values are kept,
    joined to the first by a thin line. None with fewer than two points.
    """
    rows = [row for key in learners_in_order(result.accuracy) for row in _rows(key, result)]
    if len(rows) < 2:
        return None
    shifts = _shifts([row["cost"] for row in rows])
    keys = list(dict.fromkeys(row["key"] for row in rows))
    ends = [row[end] for row in rows for end in ("low", "high")]
    margin = max(0.02, 0.1 * (max(ends) - min(ends)))
    x_scale = alt.Scale(type="log", nice=False, padding=34)
    x_axis = alt.Axis(
        title=f"floating-point operations of {QUERIES:,} queries",
        format="~s",
        tickCount=6,
        labelOverlap="greedy",
        grid=False,
    )
    y_scale = alt.Scale(domain=[max(0, min(ends) - margin), min(1, max(ends) + margin / 2)], zero=False, nice=False)
    y_axis = alt.Axis(title="accuracy", format=".0%", tickCount=5)
    x = alt.X("cost:Q", scale=x_scale, axis=x_axis)
    colour = learner_colours(
        keys, legend=alt.Legend(title=None, orient="top", columns=3, symbolType="circle", symbolOpacity=1)
    )
    tooltip = [
        alt.Tooltip("learner:N"),
        alt.Tooltip("reading:N", title="prompt"),
        alt.Tooltip("accuracy:Q", format=".1%"),
        alt.Tooltip("low:Q", format=".1%", title="95 % from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("cost:Q", format=".3s", title=f"operations, {QUERIES:,} queries"),
        alt.Tooltip("adapt:Q", format=".3s", title="operations to adapt once"),
        alt.Tooltip("n:Q", format=","),
    ]
    layers: list[alt.Chart] = []
    pair = [(row, shift) for row, shift in zip(rows, shifts, strict=True) if row["reading"]]
    if len(pair) > 1:
        (anew, start), (kept, end) = pair
        joined = alt.Chart(alt.Data(values=[anew | {"cost_kept": kept["cost"]}]))
        layers.append(
            joined.mark_rule(strokeWidth=1.2, opacity=0.7, xOffset=start, x2Offset=end).encode(
                x=x, x2="cost_kept:Q", y=alt.Y("accuracy:Q", scale=y_scale, axis=y_axis), color=colour
            )
        )
    for row, shift in zip(rows, shifts, strict=True):
        base = alt.Chart(alt.Data(values=[row])).encode(x=x, color=colour, tooltip=tooltip)
        y = alt.Y("accuracy:Q", scale=y_scale, axis=y_axis)
        layers.append(
            base.mark_rule(strokeWidth=2.5, strokeCap="round", xOffset=shift).encode(
                y=alt.Y("low:Q", scale=y_scale, axis=y_axis), y2="high:Q"
            )
        )
        solid = row["reading"] != KEPT
        layers.append(
            base.mark_point(shape="circle", filled=solid, size=80, strokeWidth=2, opacity=1, xOffset=shift).encode(y=y)
        )
        if row["reading"]:
            layers.append(
                base.mark_text(fontSize=11, baseline="top", dy=5, xOffset=shift).encode(
                    y=alt.Y("low:Q", scale=y_scale, axis=y_axis), text=alt.value("kept" if not solid else "read anew")
                )
            )
    return alt.layer(*layers).properties(width=WIDE, height=HEIGHT)


def _rows(key: str, result: Result) -> list[dict[str, Any]]:
    """The points of one learner: one, or two for a prompt; none without accuracy or cost."""
    mean = finite(result.accuracy[key].mean)
    if mean is None or key not in result.cost:
        return []
    cost = result.cost[key]
    readings = [("", cost.flops)] if key != "icl" else [(ANEW, cost.flops), (KEPT, cost.kept_flops)]
    # Without an interval the rule shrinks to the dot.
    low, high = known(result.accuracy[key].ci95) or (mean, mean)
    return [
        {
            "key": key,
            "learner": learner_style(key).title,
            "reading": reading,
            "cost": QUERIES * flops,
            "adapt": finite(cost.adapt_flops),
            "accuracy": mean,
            "low": low,
            "high": high,
            "n": result.accuracy[key].n,
        }
        for reading, value in readings
        # A log axis has no place for a cost of nothing.
        if (flops := finite(value)) is not None and flops > 0
    ]


def _shifts(costs: list[float]) -> list[float]:
    """Pixels by which each point stands aside, so that nearly equal costs can be told apart."""
    places = [math.log10(cost) for cost in costs]
    near = NEAR * (max(places) - min(places))
    groups: list[list[int]] = []
    for number in sorted(range(len(places)), key=lambda each: places[each]):
        if groups and places[number] - places[groups[-1][-1]] <= near:
            groups[-1].append(number)
        else:
            groups.append([number])
    shifts = [0.0] * len(costs)
    for group in groups:
        # In the learners' order, whatever the tiny differences of cost.
        for place, number in enumerate(sorted(group)):
            shifts[number] = APART * (place - (len(group) - 1) / 2)
    return shifts
