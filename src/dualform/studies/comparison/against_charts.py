"""Accuracy against what a thousand queries cost, prompting drawn twice: read anew and kept.

None where the result has nothing to draw; text enters as data only.
"""

import math
from typing import Any

import altair as alt

from dualform.report.charts.axes import Numbers, around, interval_hints
from dualform.report.charts.colours import learner_colours, legend
from dualform.report.charts.dots import interval_row
from dualform.report.charts.plot import Plot
from dualform.report.numerals import finite
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
    low, high = around((row[end] for row in rows for end in ("low", "high")), part=0.1)
    plot = Plot(
        Numbers(
            "cost",
            f"floating-point operations of {QUERIES:,} queries",
            "~s",
            log=True,
            nice=False,
            padding=34,
            ticks=6,
            grid=False,
        ),
        Numbers("accuracy", "accuracy", ".0%", (max(0, low), min(1, high)), nice=False),
        colour=learner_colours(list(dict.fromkeys(row["key"] for row in rows)), legend(symbol="circle")),
        hover=(
            "learner",
            ("reading", "", "prompt"),
            ("accuracy", ".1%"),
            *interval_hints(".1%"),
            ("cost", ".3s", f"operations, {QUERIES:,} queries"),
            ("adapt", ".3s", "operations to adapt once"),
        ),
    )
    pair = [(row, shift) for row, shift in zip(rows, shifts, strict=True) if row["reading"]]
    if len(pair) > 1:
        (anew, start), (kept, end) = pair
        joined = [anew | {"cost_kept": kept["cost"]}]
        plot.links(joined, "cost_kept", width=1.2, opacity=0.7, xOffset=start, x2Offset=end)
    for row, shift in zip(rows, shifts, strict=True):
        plot.intervals([row], width=2.5, xOffset=shift)
        plot.dots([row], size=80, shape="circle", filled=row["reading"] != KEPT, strokeWidth=2, aside=shift)
        if row["reading"]:
            words = row | {"words": "kept" if row["reading"] == KEPT else "read anew"}
            plot.texts([words], "words", field="low", baseline="top", dy=5, xOffset=shift)
    return plot.chart(height=HEIGHT)


def _rows(key: str, result: Result) -> list[dict[str, Any]]:
    """The points of one learner: one, or two for a prompt; none without accuracy or cost."""
    row = interval_row(result.accuracy[key])
    if row is None or key not in result.cost:
        return []
    cost = result.cost[key]
    readings = [("", cost.flops)] if key != "icl" else [(ANEW, cost.flops), (KEPT, cost.kept_flops)]
    about = {"key": key, "learner": learner_style(key).title, "adapt": finite(cost.adapt_flops)}
    return [
        about | {"reading": reading, "cost": QUERIES * flops, "accuracy": row["mean"]} | row
        for reading, value in readings
        # A log axis has no place for a cost of nothing.
        if (flops := finite(value)) is not None and flops > 0
    ]


def _shifts(costs: list[float]) -> list[float]:
    """Pixels by which each point stands aside, so that those of nearly equal cost do not hide one another."""
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
