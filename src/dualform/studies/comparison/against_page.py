"""The section of a comparison's page that asks: prompt, finetune or fold?"""

from typing import Any

from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import (
    MISSING,
    decimal,
    decimal_interval,
    finite,
    known,
    percent_interval,
    scaled,
    significant,
)
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import is_few, is_undefined, share
from dualform.result import Against, Estimate, FoldReport, Result
from dualform.studies.against_words import (
    break_even,
    choice_heading,
    choice_sentences,
    fold_sentences,
    recovered_share,
)
from dualform.studies.comparison.against_charts import QUERIES

_SHORT = {"icl": "ICL", "ft": "FT"}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("agreement with ICL", "Share of the queries that a learner answers as ICL does, rightly or wrongly."),
    (
        "recovered",
        "(accuracy - zero-shot's) / (ICL's - zero-shot's): 100 % is all that the prompt gained. It swings widely where "
        "the prompt gained little, and is undefined outside 0 to 150 %.",
    ),
    (
        "cheaper after",
        "Queries after which adapting once and asking has taken fewer operations than prompting; “never” where a "
        "query costs no less than a prompted one.",
    ),
    (
        "read anew, kept",
        "A prompt's demonstrations can be read again with every query, or once, their keys and values kept in memory: "
        "a query then reads its own tokens alone and attends to what is kept.",
    ),
)


def against_section(result: Result) -> dict[str, Any]:
    """What the template shows: heading, sentences, a row a learner, and how the prompt was folded."""
    return {
        "heading": choice_heading(result),
        "sentences": choice_sentences(result),
        "queries": f"{QUERIES:,}",
        "rows": _rows(result) if result.against_icl else [],
        "fold": _fold(result.fold) if result.fold is not None else None,
    }


def _rows(result: Result) -> list[dict[str, Any]]:
    rows = []
    for key in learners_in_order(dict.fromkeys(["icl"] * ("icl" in result.accuracy) + [*result.against_icl])):
        against, cost, accuracy = result.against_icl.get(key), result.cost.get(key), result.accuracy.get(key)
        kept = scaled(cost.kept_flops, QUERIES * 1e-12) if cost is not None and key == "icl" else None
        rows.append(
            {
                "style": learner_style(key),
                "accuracy": _share(accuracy),
                "agreement": _share(against.agreement if against else None),
                "recovered": _recovered(against) if against else _share(None),
                "adapt": significant(scaled(cost.adapt_flops, 1e-12)) if cost else MISSING,
                "queries": significant(scaled(cost.flops, QUERIES * 1e-12)) if cost else MISSING,
                "kept": f"kept: {significant(kept)}" if kept is not None else "",
                "break_even": break_even(result, key, kept=False) if against else "",
                "break_even_kept": break_even(result, key, kept=True) if against else "",
            }
        )
    return rows


def _share(estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    interval = "" if is_few(estimate) or not known(estimate.ci95) else percent_interval(estimate.ci95)
    return {"mean": share(estimate), "interval": interval}


def _recovered(against: Against) -> dict[str, str]:
    shown = known(against.recovered.ci95) and not is_undefined(against.recovered)
    interval = percent_interval(against.recovered.ci95) if shown else ""
    return {"mean": recovered_share(against), "interval": interval}


def _fold(fold: FoldReport) -> dict[str, Any]:
    """How it was folded, and each measure of its update's likeness to the others'."""
    beside = learners_in_order(fold.similarity)
    keys = in_order(dict.fromkeys(key for other in beside for key in fold.similarity[other]))
    return {
        "sentences": fold_sentences(fold),
        "titles": [f"to {_SHORT.get(other, learner_style(other).title)}" for other in beside],
        "rows": [
            {
                "title": measure_of(key).title,
                "cells": [_score(fold.similarity[other].get(key)) for other in beside],
            }
            for key in keys
            if any(_has_number(fold.similarity[other].get(key)) for other in beside)
        ],
    }


def _has_number(estimate: Estimate | None) -> bool:
    return estimate is not None and finite(estimate.mean) is not None


def _score(estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    interval = decimal_interval(estimate.ci95) if known(estimate.ci95) else ""
    return {"mean": decimal(estimate.mean), "interval": interval}
