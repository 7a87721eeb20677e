"""A selection study as one HTML file that needs no network."""

from typing import Any

from dualform.report.measures import in_order, measure_of, score, score_interval
from dualform.report.numerals import MISSING, count, decimal, decimal_interval, finite, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import difference, difference_interval, share, share_interval
from dualform.report.shell import DescribedChart, card, commands_again, facts, render_shell
from dualform.result import Choice, Estimate, Result
from dualform.studies.baseline_words import majority_answer
from dualform.studies.selection import charts as selection_charts
from dualform.studies.selection.words import choice_name, chosen, selection_verdict

CHARTS: dict[str, DescribedChart] = {
    "optimism": (
        selection_charts.optimism_chart,
        "Optimism of each way of choosing for each learner, with its 95 % interval.",
    ),
    "similarity": (
        selection_charts.similarity_by_choice_chart,
        "Each measure of likeness under each way of choosing, with its 95 % interval.",
    ),
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    (
        "choice",
        "A demonstration seed, an order of ICL's demonstrations and FT's learning rate, taken because they scored "
        "best: by ICL's accuracy, by FT's, or by both. “none” takes the first seed and order and the middle rate.",
    ),
    ("on validation, on report", "The queries on which the candidates were scored."),
    ("selected", "Accuracy of what was chosen, on the queries that it was chosen on."),
    ("untouched", "Its accuracy on queries that nothing was chosen on."),
    (
        "optimism",
        "Selected less untouched: what a best score owes to luck, and to the two sets of queries not being equally "
        "hard.",
    ),
    ("tokens searched", "Tokens read forwards in search of the choice; a backward pass counts as two."),
    (
        "95 % interval",
        "Bootstrap over queries; that of an optimism repeats the choice in every resample. Two that overlap are not "
        "told apart here.",
    ),
)


def render_selection(result: Result) -> str:
    """The report of a selection study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    choices = result.selection.choices if result.selection is not None else []
    return render_shell(
        "dualform.studies.selection:page.html.j2",
        result,
        title=_title(result),
        charts=CHARTS,
        styles=["study.css"],
        verdict=selection_verdict(result),
        cards=_cards(result),
        commands=commands_again(result),
        glossary=[*_learners(choices), *GLOSSARY] if choices else [],
        choices=[_choice_row(choice) for choice in choices],
        baselines=[
            {
                "name": name,
                "n": count(each.n),
                "chance": percent(each.chance),
                "answer": majority_answer(result, each),
                "majority": percent(each.majority),
            }
            for name, each in (result.selection.baselines if result.selection is not None else {}).items()
        ],
        similarity=_similarity_table(result),
        model=facts(result.model),
    )


def _title(result: Result) -> str:
    model, task = result.model.get("name"), result.task.get("name")
    return f"dualform: selection{f' for {model}' if model else ''}{f' on {task}' if task else ''}"


def _learners(choices: list[Choice]) -> list[tuple[str, str]]:
    keys = learners_in_order(dict.fromkeys(key for choice in choices for key in choice.scores))
    return [(learner_style(key).title, learner_style(key).meaning) for key in keys]


def _cards(result: Result) -> list[dict[str, str]]:
    """For each learner the largest optimism, and how far the first measure moves."""
    if result.selection is None:
        return []
    cards = []
    choices = result.selection.choices
    for key, title in (("icl", "ICL: largest optimism"), ("ft", "FT: largest optimism")):
        found = [
            (optimism, choice)
            for choice in choices
            if choice.select != "none" and key in choice.scores
            if (optimism := finite(choice.scores[key].optimism.mean)) is not None
        ]
        if found:
            optimism, choice = max(found, key=lambda each: each[0])
            interval = difference_interval(choice.scores[key].optimism.ci95)
            cards.append(card(title, difference(optimism), f"points, {interval}, {choice_name(choice)}"))
    for key in in_order(result.selection.similarity_range)[:2]:
        reach = result.selection.similarity_range[key]
        title = f"{measure_of(key).title}: highest less lowest"
        cards.append(card(title, decimal(reach.mean), decimal_interval(reach.ci95)))
    cards.append(card("untouched queries", count(result.selection.n_untouched), f"{len(choices)} ways of choosing"))
    return cards


def _choice_row(choice: Choice) -> dict[str, Any]:
    return {
        "name": choice_name(choice),
        "chosen": chosen(choice),
        "scores": [
            {
                "learner": learner_style(key).title,
                "colour": learner_style(key).colour,
                "selected": share(score.selected),
                "selected_interval": share_interval(score.selected).replace(MISSING, ""),
                "untouched": share(score.untouched),
                "untouched_interval": share_interval(score.untouched).replace(MISSING, ""),
                "optimism": difference(score.optimism.mean),
                "optimism_interval": difference_interval(score.optimism.ci95),
                "tokens": count(score.tokens),
                "trials": count(score.trials),
            }
            for key in learners_in_order(choice.scores)
            for score in [choice.scores[key]]
        ],
    }


def _similarity_table(result: Result) -> dict[str, Any]:
    """Each measure under each choice, and its range."""
    if result.selection is None:
        return {"titles": [], "rows": []}
    choices, reach = result.selection.choices, result.selection.similarity_range
    keys = in_order(dict.fromkeys(key for choice in choices for key in choice.similarity))
    return {
        "titles": [choice_name(choice) for choice in choices],
        "rows": [
            {
                "title": measure_of(key).title,
                "cells": [
                    _cell(key, each) for each in [*(choice.similarity.get(key) for choice in choices), reach.get(key)]
                ],
            }
            for key in keys
        ],
    }


def _cell(measure: str, estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    return {"mean": score(measure, estimate), "interval": score_interval(measure, estimate).replace(MISSING, "")}
