"""The charts of advice. Each function returns None if the result has nothing to draw."""

from typing import Any

import altair as alt

from dualform.report.charts.axes import Numbers, interval_hints, shares
from dualform.report.charts.colours import learner_colours, legend
from dualform.report.charts.lines import line_chart
from dualform.report.palette import learner_style, learners_in_order
from dualform.studies.advice.result import Advice, AdvicePoint
from dualform.studies.advice.table import PER_THOUSAND


def learning_curves(advice: Advice) -> alt.TopLevelMixin | None:
    """Accuracy of each learner against the number of labels."""
    rows = [_row(name, point) for name in advice.curves for point in advice.curves[name]]
    if not rows:
        return None
    names = learners_in_order(advice.curves)
    ends = [row[end] for row in rows for end in ("low", "high", "accuracy") if row[end] is not None]
    return line_chart(
        rows,
        Numbers("labels", "labels", log=True, ticks=advice.budgets, format="d", nice=False, padding=12),
        shares("accuracy", "accuracy", ends),
        colour=learner_colours(names, legend(len(names))),
        hover=("learner", ("labels", "d", "labels"), ("accuracy", ".1%"), *interval_hints(".1%")),
        strokes=True,
        dots=60,
        height=320,
    )


def cost_chart(advice: Advice) -> alt.TopLevelMixin | None:
    """Accuracy against the seconds of a thousand queries, a line for each learner over the budgets."""
    rows = [
        _row(name, point) | {"seconds": PER_THOUSAND * point.query_seconds, "adapt": point.adapt_seconds}
        for name in advice.curves
        for point in advice.curves[name]
        if point.query_seconds
    ]
    if not rows:
        return None
    names = learners_in_order(advice.curves)
    ends = [row[end] for row in rows for end in ("low", "high", "accuracy") if row[end] is not None]
    return line_chart(
        rows,
        Numbers("seconds", "seconds for 1000 queries", log=True, padding=12),
        shares("accuracy", "accuracy", ends),
        colour=learner_colours(names, legend(len(names))),
        hover=(
            "learner",
            ("labels", "d", "labels"),
            ("accuracy", ".1%"),
            ("seconds", ".3g", "seconds for 1000 queries"),
            ("adapt", ".3g", "seconds to adapt"),
        ),
        dots=60,
        height=260,
    )


def _row(name: str, point: AdvicePoint) -> dict[str, Any]:
    low, high = point.accuracy.ci95
    return {
        "learner": learner_style(name).title,
        "labels": point.labels,
        "accuracy": point.accuracy.mean,
        "low": low,
        "high": high,
        "n": point.accuracy.n,
    }
