"""The charts of a learner as a classifier: confusion matrices and reliability plots."""

from collections.abc import Mapping, Sequence
from typing import Any

import altair as alt

from dualform.report.categories import categories
from dualform.report.charts.axes import Names, Numbers, interval_hints
from dualform.report.charts.colours import legend
from dualform.report.charts.dots import interval_row
from dualform.report.charts.heat import SHARES_DARK_FROM, ink_on, share_colours
from dualform.report.charts.panels import panels
from dualform.report.charts.plot import Plot
from dualform.report.charts.theme import RULE_COLOUR
from dualform.report.numerals import decimal
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Classification, Result
from dualform.studies.comparison.charts import visible

MOST_CLASSES = 100
"""Most classes in a confusion matrix."""
MOST_NUMBERED = 8
"""Most classes of a confusion matrix whose cells have numbers."""
MOST_NAMED = 24
"""Most classes of a confusion matrix whose rows and columns have names."""
MATRIX = 220
"""Width and height of a large confusion matrix in pixels."""
DOT_AREAS = (24, 220)
"""Areas of the smallest and the largest dot of a reliability plot, in square pixels."""


def confusion_chart(result: Result) -> alt.TopLevelMixin | None:
    """For each learner, how often each label was predicted for queries of each label, as a heat map."""
    matrices = {key: each for key, each in _in_order(result).items() if 1 < len(each.labels) <= MOST_CLASSES}
    return panels([_matrix(key, each) for key, each in matrices.items()], columns=3, gap=124, row_gap=130)


def reliability_chart(result: Result) -> alt.TopLevelMixin | None:
    """For each learner, accuracy against confidence in ten bins, next to the diagonal on which the two are equal."""
    plots = {key: each for key, each in _in_order(result).items() if each.reliability}
    largest = max((group.accuracy.n for each in plots.values() for group in each.reliability), default=1)
    return panels([_reliability(key, each, largest) for key, each in plots.items()], columns=3, gap=64, row_gap=84)


def _in_order(result: Result) -> dict[str, Classification]:
    return {key: result.classification[key] for key in learners_in_order(result.classification)}


def _matrix(key: str, scores: Classification) -> alt.LayerChart:
    names = categories([visible(label) for label in scores.labels])
    named: list[str] | None = None if len(names) <= MOST_NAMED else []
    rows = _matrix_rows(learner_style(key).title, names, scores.confusion)
    plot = Plot(
        Names("prediction", names, "prediction", room=90, angle=-40, labelled=named),
        Names("right answer", names, "right answer", room=90, labelled=named),
        hover=("learner", "right answer", "prediction", ("answers", ","), ("share", ".1%", "of the right answer's")),
    )
    bar = legend(below=True, direction="horizontal", gradientLength=140, gradientThickness=8, tickCount=3)
    plot.cells(rows, share_colours("share", bar))
    if len(names) <= MOST_NUMBERED:
        # One layer a colour, because a field of colours would share the scale of the cells.
        for ink in dict.fromkeys(row["ink"] for row in rows):
            plot.texts([row for row in rows if row["ink"] == ink], "percent", color=ink)
    side = max(96, min(MATRIX, 46 * len(names)))
    return plot.chart(width=side, height=side, title=learner_style(key).title, offset=8)


def _matrix_rows(title: str, names: Sequence[str], counts: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """The cells that hold answers; the others stay empty."""
    rows = []
    for right, line in zip(names, counts, strict=True):
        for predicted, n in zip(names, line, strict=True):
            if n:
                share = n / sum(line)
                rows.append(
                    {
                        "learner": title,
                        "right answer": right,
                        "prediction": predicted,
                        "answers": n,
                        "share": share,
                        "percent": f"{100 * share:.0f}%",
                        "ink": ink_on(share, 1.0, SHARES_DARK_FROM),
                    }
                )
    return rows


def _reliability(key: str, scores: Classification, largest: int) -> alt.LayerChart:
    style = learner_style(key)
    ticks = [0, 0.25, 0.5, 0.75, 1]
    plot = Plot(
        Numbers("confidence", "confidence", ".0%", (0, 1), nice=False, ticks=ticks),
        Numbers("accuracy", "accuracy", ".0%", (0, 1), nice=False, ticks=ticks),
        colour=style.colour,
        hover=("learner", ("confidence", ".1%"), ("accuracy", ".1%"), *interval_hints(".1%", "answers")),
    )
    ends: list[Mapping[str, Any]] = [{"confidence": end, "accuracy": end} for end in (0, 1)]
    plot.line(ends, width=1.2, strokeDash=[4, 4], color=RULE_COLOUR)
    rows = []
    for group in scores.reliability:
        row = interval_row(group.accuracy)
        if row is not None and group.confidence is not None:
            names = {"learner": style.title, "confidence": group.confidence}
            rows.append(names | {"accuracy": row.pop("mean"), "answers": row.pop("n")} | row)
    plot.intervals(rows, width=2, opacity=0.45)
    areas = alt.Size("answers:Q", scale=alt.Scale(domain=[0, largest], range=[*DOT_AREAS]), legend=None)
    plot.dots(rows, areas, opacity=0.9)
    return plot.chart(width=190, height=190, title=f"{style.title}, ECE {decimal(scores.ece.mean)}", offset=8)
