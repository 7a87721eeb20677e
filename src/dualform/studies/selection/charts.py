"""The charts of a selection study. Each function returns None if the result has nothing to draw."""

from typing import Any

import altair as alt

from dualform.report.charts.axes import Names, Numbers, interval_hints
from dualform.report.charts.colours import learner_colours, legend
from dualform.report.charts.dots import dot_chart, interval_row
from dualform.report.charts.panels import panels
from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import finite
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.studies.selection.result import Choice, SelectionResult
from dualform.studies.selection.words import choice_name, chosen_trial

NAME_GAP = 130
"""Width in pixels of the choices' names left of a panel."""


def optimism_chart(result: SelectionResult) -> alt.TopLevelMixin | None:
    """Optimism of every choice for each learner, in points with 95 % intervals, and a line at zero."""
    rows = [row for choice in _choices(result) for row in _optimism_rows(choice)]
    if not rows:
        return None
    titles = {row["learner"] for row in rows}
    keys = learners_in_order(dict.fromkeys(key for choice in _choices(result) for key in choice.scores))
    keys = [key for key in keys if learner_style(key).title in titles]
    chart = dot_chart(
        rows,
        names=_names(rows),
        values=Numbers("optimism", "optimism, points", zero=True, ticks=6),
        lanes=Names("learner", [learner_style(key).title for key in keys]),
        colour=learner_colours(keys, legend()),
        hover=(
            ("choice", "", "chosen by"),
            "chosen",
            "learner",
            ("selected", ".1%", "on selecting queries"),
            ("untouched", ".1%", "on untouched queries"),
            ("optimism", "+.1f", "optimism, points"),
            *interval_hints("+.1f")[:2],
        ),
        zero=True,
    )
    return panels([chart], columns=1, gap=NAME_GAP, row_gap=0)


def similarity_by_choice_chart(result: SelectionResult) -> alt.TopLevelMixin | None:
    """Each similarity measure for each choice, with 95 % intervals; scales differ."""
    choices = _choices(result)
    charts = []
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        rows = [_choice_fields(choice) | row for choice in choices if (row := interval_row(choice.similarity.get(key)))]
        if rows:
            chart = dot_chart(
                rows,
                names=_names(rows),
                values=Numbers("mean", zero=True, ticks=4),
                colour=MEASURE_COLOUR,
                hover=(("choice", "", "chosen by"), "chosen", ("mean", ".3f"), *interval_hints(".3f")),
                zero=True,
                width=240,
                height=24 * len({row["choice"] for row in rows}),
                title=measure_of(key).title,
            )
            charts.append(chart)
    return panels(charts, columns=2, gap=NAME_GAP, row_gap=74)


def _choices(result: SelectionResult) -> list[Choice]:
    return result.selection.choices if result.selection is not None else []


def _names(rows: list[dict[str, Any]]) -> Names:
    return Names("choice", list(dict.fromkeys(row["choice"] for row in rows)), room=NAME_GAP - 6)


def _choice_fields(choice: Choice) -> dict[str, Any]:
    return {"choice": choice_name(choice), "chosen": chosen_trial(choice)}


def _optimism_rows(choice: Choice) -> list[dict[str, Any]]:
    rows = []
    for key in learners_in_order(choice.scores):
        score = choice.scores[key]
        if row := interval_row(score.optimism, 100):
            shares = {"selected": finite(score.selected.mean), "untouched": finite(score.untouched.mean)}
            optimism = {"learner": learner_style(key).title, "optimism": row["mean"]}
            rows.append(_choice_fields(choice) | optimism | shares | row)
    return rows
