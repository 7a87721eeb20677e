"""The laboratory as one HTML file that needs no network."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import altair as alt

from dualform.report.numerals import MISSING, count, known
from dualform.report.phrases import capital
from dualform.report.shell import DescribedChart, card, commands_again, render_shell
from dualform.result import Claim, Estimate, LabChart, LabStudy, LabTable, Result
from dualform.studies.laboratory.charts import Look, described, lab_chart, looks, remarks
from dualform.studies.laboratory.words import (
    Count,
    as_it_should,
    count_sentence,
    counted,
    laboratory_verdict,
    mark,
    number,
    number_interval,
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("claim", "What theory, or a paper, says must be found here, with the tolerance that was set beforehand."),
    (
        "must fail",
        "A case made so that the claim is false: a wrong rate, softmax, permuted labels. If it held there too, the "
        "measure could not tell the claim from its opposite.",
    ),
    (
        "could not be measured",
        "The number does not exist, in one seed at least: that speaks neither for the claim nor against it, and a "
        "case that must fail has not failed by it.",
    ),
    (
        "exact predictor",
        "Computed from the examples by a formula, not trained: nearest neighbours, gradient descent, least squares, "
        "ridge regression, Bayes. Trained models are read beside them.",
    ),
    (
        "GD, GD++",
        "Steps of gradient descent on the examples in context; GD++ transforms the inputs between them, which is what "
        "a second layer can do.",
    ),
    ("OLS, ridge, Bayes", "Least squares; least squares with a penalty on the weights; the best that can be known."),
    (
        "SPD, ILWD",
        "Squared difference of two predictors' predictions, and of the linear weights that their predictions imply; 0 "
        "where they are the same.",
    ),
    ("seed", "Draws initial weights and tasks anew."),
    (
        "95 % interval",
        "Student's, over seeds. A number without one is exact, or of a single seed. It speaks of other seeds, and not "
        "of other sizes.",
    ),
    ("n", "Seeds behind a number; 1 for one without chance."),
)

Cell = dict[str, str]


def render_regression(result: Result) -> str:
    """The report of the laboratory as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; studies that were not run are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    ids = _ids(studies)
    charts: dict[str, DescribedChart] = {}
    sections = []
    for name, study in zip(ids, studies, strict=True):
        styles = looks(study.charts)
        drawn = {_chart_name(name, place): each for place, each in enumerate(study.charts)}
        charts |= {key: (_drawer(each, styles), described(each)) for key, each in drawn.items()}
        sections.append(_section(name, study))
    return render_shell(
        "dualform.studies.laboratory:page.html.j2",
        result,
        title="dualform: the laboratory",
        charts=charts,
        styles=["study.css", "dualform.studies.laboratory:page.css"],
        verdict=laboratory_verdict(result),
        cards=_cards(result, counted(claim for study in studies for claim in study.claims)) if studies else [],
        commands=commands_again(result),
        glossary=GLOSSARY if studies else (),
        studies=sections,
    )


def _drawer(chart: LabChart, styles: dict[tuple[str, bool], Look]) -> Callable[[Result], alt.TopLevelMixin | None]:
    draw = partial(lab_chart, chart, styles)
    return lambda result: draw()


def _ids(studies: Sequence[LabStudy]) -> list[str]:
    """A name for each study that may stand in a link: its own where that is a plain word of its own."""
    plain = [study.name if re.fullmatch(r"[a-z]+", study.name) else "" for study in studies]
    return [
        name if name and plain.count(name) == 1 and name not in TAKEN else f"study-{place}"
        for place, name in enumerate(plain, 1)
    ]


TAKEN = frozenset({"verdict", "warnings", "run", "prompt", "config", "glossary"})
"""Names that the page gives to other parts."""


def _chart_name(study: str, place: int) -> str:
    return f"{study}-{place}"


def _cards(result: Result, claims: Count) -> list[dict[str, str]]:
    """What a reader looks for first: how many claims hold, whether they could have failed, how much stands behind."""
    cards = []
    if claims.claims:
        cards.append(card("claims that hold", f"{claims.hold} of {claims.claims}", ""))
    if claims.must_fail:
        cards.append(card("cases that must fail, and do", f"{claims.fail} of {claims.must_fail}", ""))
    seeds = result.config.get("seeds")
    if isinstance(seeds, list):
        cards.append(card("seeds", count(len(seeds)), ""))
    for name, meaning in (("dimension", "dimension of inputs"), ("points", "examples in context")):
        if isinstance(result.config.get(name), int):
            # A study may take fewer, which its notes then say.
            cards.append(card(meaning, count(result.config[name]), "asked for"))
    return cards


def _section(name: str, study: LabStudy) -> dict[str, Any]:
    return {
        "id": name,
        "title": capital(study.name),
        "question": study.question,
        "answer": study.answer,
        "count": count_sentence(counted(study.claims)),
        "claims": [_claim(claim) for claim in study.claims],
        "charts": [
            {"name": _chart_name(name, place), "title": each.title, "caption": _caption(each)}
            for place, each in enumerate(study.charts)
        ],
        "tables": [_table(each) for each in study.tables],
        "notes": study.notes,
    }


def _claim(claim: Claim) -> dict[str, Any]:
    return {
        "says": claim.says,
        "expected": claim.expected,
        "found": _cell(claim.found),
        "n": count(claim.found.n),
        "mark": mark(claim),
        "right": as_it_should(claim),
        "source": claim.source,
    }


def _caption(chart: LabChart) -> str:
    scales = [axis for axis, log in ((chart.x, chart.log_x), (chart.y, chart.log_y)) if log]
    log = [f"Log scale: {', '.join(scales)}."] if scales else []
    return " ".join([*log, *remarks(chart), *([chart.note] if chart.note else [])])


def _table(table: LabTable) -> dict[str, Any]:
    return {
        "title": table.title,
        "columns": table.columns,
        "rows": [{"name": row.name, "cells": [_cell(each) for each in row.cells]} for row in table.rows],
        "note": table.note,
    }


def _cell(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return {"mean": MISSING, "interval": ""}
    interval = number_interval(estimate.ci95) if known(estimate.ci95) else ""
    return {"mean": number(estimate.mean), "interval": interval}
