"""A selection study as charts: one function a chart, each None where the result has nothing to draw."""

from typing import Any

import altair as alt

from dualform.report.charts.panels import WIDE, learner_colours, panel_title, panels, zero_line
from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import finite, known
from dualform.report.palette import MEASURE_COLOUR, learner_style, learners_in_order
from dualform.studies.selection.result import Choice, SelectionResult
from dualform.studies.selection.words import choice_name, chosen

NAME_GAP = 130
"""Pixels that the choices' names take left of a panel."""


def optimism_chart(result: SelectionResult) -> alt.TopLevelMixin | None:
    """Optimism of every choice for each learner, in points with 95 % interval; zero as a line."""
    rows = [row for choice in _choices(result) for row in _optimism_rows(choice)]
    if not rows:
        return None
    shown = {row["learner"] for row in rows}
    keys = learners_in_order(dict.fromkeys(key for choice in _choices(result) for key in choice.scores))
    keys = [key for key in keys if learner_style(key).title in shown]
    titles = [learner_style(key).title for key in keys]
    names = list(dict.fromkeys(row["choice"] for row in rows))
    axis = alt.Axis(title="optimism, points", tickCount=6)
    scale = alt.Scale(zero=True, nice=True)
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("choice:N", sort=names, title=None, axis=alt.Axis(labelLimit=NAME_GAP - 6, grid=False)),
        yOffset=alt.YOffset("learner:N", sort=titles, scale=alt.Scale(domain=titles)),
        color=learner_colours(keys, legend=alt.Legend(title=None, orient="top")),
        tooltip=[
            alt.Tooltip("choice:N", title="chosen by"),
            alt.Tooltip("chosen:N"),
            alt.Tooltip("learner:N"),
            alt.Tooltip("selected:Q", format=".1%", title="where it was chosen"),
            alt.Tooltip("untouched:Q", format=".1%"),
            alt.Tooltip("optimism:Q", format="+.1f", title="optimism, points"),
            alt.Tooltip("low:Q", format="+.1f", title="95 % from"),
            alt.Tooltip("high:Q", format="+.1f", title="to"),
        ],
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round").encode(
        x=alt.X("low:Q", scale=scale, axis=axis), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=100, opacity=1).encode(x=alt.X("optimism:Q", scale=scale, axis=axis))
    height = (20 * len(keys) + 8) * len(names)
    chart = alt.layer(zero_line(), rule, dot).properties(width=WIDE, height=height)
    return panels([chart], columns=1, gap=NAME_GAP, row_gap=0)


def similarity_by_choice_chart(result: SelectionResult) -> alt.TopLevelMixin | None:
    """Each measure of likeness under each choice, with 95 % interval; scales differ."""
    choices = _choices(result)
    drawn = []
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        rows = [row for choice in choices if key in choice.similarity for row in _similarity_rows(choice, key)]
        if rows:
            drawn.append(_similarity_panel(measure_of(key).title, rows))
    return panels(drawn, columns=2, gap=NAME_GAP, row_gap=74)


def _choices(result: SelectionResult) -> list[Choice]:
    return result.selection.choices if result.selection is not None else []


def _optimism_rows(choice: Choice) -> list[dict[str, Any]]:
    rows = []
    for key in learners_in_order(choice.scores):
        score = choice.scores[key]
        optimism = finite(score.optimism.mean)
        if optimism is None:
            continue
        low, high = known(score.optimism.ci95) or (optimism, optimism)
        rows.append(
            {
                "learner": learner_style(key).title,
                "choice": choice_name(choice),
                "chosen": chosen(choice),
                "selected": finite(score.selected.mean),
                "untouched": finite(score.untouched.mean),
                "optimism": 100 * optimism,
                "low": 100 * low,
                "high": 100 * high,
            }
        )
    return rows


def _similarity_rows(choice: Choice, key: str) -> list[dict[str, Any]]:
    estimate = choice.similarity[key]
    mean = finite(estimate.mean)
    if mean is None:
        return []
    low, high = known(estimate.ci95) or (mean, mean)
    name = choice_name(choice)
    return [{"choice": name, "chosen": chosen(choice), "mean": mean, "low": low, "high": high, "n": estimate.n}]


def _similarity_panel(title: str, rows: list[dict[str, Any]]) -> alt.TopLevelMixin:
    names = [row["choice"] for row in rows]
    axis, scale = alt.Axis(tickCount=4), alt.Scale(zero=True, nice=True)
    base = alt.Chart(alt.Data(values=rows)).encode(
        y=alt.Y("choice:N", sort=names, title=None, axis=alt.Axis(labelLimit=NAME_GAP - 6, grid=False)),
        tooltip=[
            alt.Tooltip("choice:N", title="chosen by"),
            alt.Tooltip("chosen:N"),
            alt.Tooltip("mean:Q", format=".3f"),
            alt.Tooltip("low:Q", format=".3f", title="95 % from"),
            alt.Tooltip("high:Q", format=".3f", title="to"),
            alt.Tooltip("n:Q", format=","),
        ],
    )
    rule = base.mark_rule(strokeWidth=3, strokeCap="round", color=MEASURE_COLOUR).encode(
        x=alt.X("low:Q", title=None, axis=axis, scale=scale), x2="high:Q"
    )
    dot = base.mark_point(filled=True, size=90, opacity=1, color=MEASURE_COLOUR).encode(
        x=alt.X("mean:Q", title=None, axis=axis, scale=scale)
    )
    height = 24 * len(set(names))
    return alt.layer(zero_line(), rule, dot).properties(width=240, height=height, title=panel_title(title))
