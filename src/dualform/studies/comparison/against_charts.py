"""The chart of accuracy against the cost of a thousand queries."""

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
"""Number of queries whose cost is drawn."""

HEIGHT = 250
SPACING = 9
"""Pixels between learners of nearly equal cost, whose points would otherwise overlap."""
NEAR = 0.05
"""Costs closer than this share of the axis are nearly equal."""

REREAD, CACHED = "prompt re-read", "keys and values cached"


def cost_accuracy_chart(result: Result) -> alt.TopLevelMixin | None:
    """Mean accuracy with 95 % interval against the operations of a thousand queries, on a log axis.

    In-context learning has two points joined by a line: one for a prompt that is re-read with every query, and a hollow
    one for a prompt whose keys and values are cached. None with fewer than two points.
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
        (reread, start), (cached, end) = pair
        plot.links(
            [reread | {"cost_cached": cached["cost"]}],
            "cost_cached",
            width=1.2,
            opacity=0.7,
            xOffset=start,
            x2Offset=end,
        )
    for row, shift in zip(rows, shifts, strict=True):
        plot.intervals([row], width=2.5, xOffset=shift)
        plot.dots([row], size=80, shape="circle", filled=row["reading"] != CACHED, strokeWidth=2, aside=shift)
        if row["reading"]:
            label = row | {"label": "cached" if row["reading"] == CACHED else "re-read"}
            plot.texts([label], "label", field="low", baseline="top", dy=5, xOffset=shift)
    return plot.chart(height=HEIGHT)


def _rows(key: str, result: Result) -> list[dict[str, Any]]:
    """The points of one learner: two for ICL, one for others, none without accuracy or cost."""
    row = interval_row(result.accuracy[key])
    if row is None or key not in result.cost:
        return []
    cost = result.cost[key]
    readings = [("", cost.flops)] if key != "icl" else [(REREAD, cost.flops), (CACHED, cost.kept_flops)]
    common = {"key": key, "learner": learner_style(key).title, "adapt": finite(cost.adapt_flops)}
    return [
        common | {"reading": reading, "cost": QUERIES * flops, "accuracy": row["mean"]} | row
        for reading, value in readings
        # A log axis cannot show zero.
        if (flops := finite(value)) is not None and flops > 0
    ]


def _shifts(costs: list[float]) -> list[float]:
    """Horizontal shift of each point in pixels, so that points of nearly equal cost do not overlap."""
    logs = [math.log10(cost) for cost in costs]
    near = NEAR * (max(logs) - min(logs))
    groups: list[list[int]] = []
    for index in sorted(range(len(logs)), key=lambda index: logs[index]):
        if groups and logs[index] - logs[groups[-1][-1]] <= near:
            groups[-1].append(index)
        else:
            groups.append([index])
    shifts = [0.0] * len(costs)
    for group in groups:
        # Within a group the learners keep their usual order.
        for place, index in enumerate(sorted(group)):
            shifts[index] = SPACING * (place - (len(group) - 1) / 2)
    return shifts
