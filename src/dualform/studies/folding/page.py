"""A folding study as one HTML file that needs no network."""

from functools import partial
from typing import Any

from dualform.report.numerals import (
    count,
    decimal,
    decimal_interval,
    finite,
    known,
    percent,
    percent_interval,
    scaled,
    significant,
)
from dualform.report.palette import learner_style
from dualform.report.phrases import difference, difference_interval, is_few, is_undefined, share
from dualform.report.shell import DescribedChart, card, commands_again, facts, render_shell
from dualform.result import Composition, Estimate, Folding, FoldPoint, Result, Transfer
from dualform.studies.against_words import recovered_share
from dualform.studies.baseline_words import baseline_rows, baselines_text
from dualform.studies.folding.charts import axis_chart
from dualform.studies.folding.table import reference_levels
from dualform.studies.folding.words import (
    AXES,
    axes_in_order,
    axis_heading,
    axis_name,
    best_point,
    composition_sentences,
    folding_verdict,
    is_scale,
    parts_name,
    perplexity_sentence,
    points_on,
    transfer_sentences,
)

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("demonstration", "A labelled example that every learner may use: in the prompt or as training data."),
    (
        "unlabelled text",
        "An example without its label, on which the fold sees what the prompt changes inside the model.",
    ),
    ("agreement with ICL", "Share of the queries that the folded model answers as ICL does, rightly or wrongly."),
    (
        "recovered",
        "(accuracy - zero-shot's) / (ICL's - zero-shot's): 100 % is all that the prompt gained. It can lie beyond "
        "0 to 100 %, and swings widely where the prompt gained little.",
    ),
    (
        "perplexity",
        "exp of the mean negative log-probability of a token of plain text: low where the model expects what comes. "
        "Folded over base: 1 where folding changed nothing.",
    ),
    (
        "95 % interval",
        "Bootstrap over seeds and, independently, over the queries that all seeds share. Two that overlap are not told "
        "apart here.",
    ),
    ("n", "Numbers that a mean stands on: (seed, query) pairs."),
)


def render_folding(result: Result) -> str:
    """The report of a folding study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    folding = result.folding
    axes = axes_in_order(folding) if folding is not None else []
    # Names of our own: an axis that this version does not know may be called anything.
    names = {axis: axis if axis in AXES else f"axis-{number}" for number, axis in enumerate(axes)}
    charts: dict[str, DescribedChart] = {
        names[axis]: (
            partial(axis_chart, axis=axis),
            f"Accuracy and agreement with in-context learning by {axis_name(axis)}, with 95 % intervals.",
        )
        for axis in axes
    }
    return render_shell(
        "dualform.studies.folding:page.html.j2",
        result,
        title=_title(result),
        charts=charts,
        styles=["study.css"],
        verdict=folding_verdict(result),
        cards=_cards(result),
        commands=commands_again(result),
        glossary=[*_learners(result), *GLOSSARY] if folding is not None else [],
        levels=[
            {"style": learner_style(key), "cell": _share(each), "n": count(each.n)}
            for key, each in reference_levels(result).items()
        ],
        baselines=baselines_text(result),
        baseline_rows=[{"name": name, "mean": percent(level)} for name, level in baseline_rows(result)],
        axes=[_axis(folding, axis, names[axis]) for axis in axes] if folding is not None else [],
        plain=perplexity_sentence(folding.perplexity) if folding is not None and folding.perplexity else None,
        transfer=[_transfer_row(each) for each in folding.transfer] if folding is not None else [],
        transfer_sentences=transfer_sentences(folding.transfer) if folding is not None else [],
        compositions=[_composition_rows(each) for each in folding.compositions] if folding is not None else [],
        composition_sentences=composition_sentences(folding.compositions) if folding is not None else [],
        model=facts(result.model),
    )


def _title(result: Result) -> str:
    model, task = result.model.get("name"), result.task.get("name")
    return f"dualform: folding{f' for {model}' if model else ''}{f' on {task}' if task else ''}"


def _learners(result: Result) -> list[tuple[str, str]]:
    return [(learner_style(key).title, learner_style(key).meaning) for key in [*reference_levels(result), "fold"]]


def _cards(result: Result) -> list[dict[str, str]]:
    """The levels, the most accurate method, and what it does to plain text."""
    folding = result.folding
    if folding is None:
        return []
    cards = [
        card(f"{name} accuracy", percent(each.mean), percent_interval(each.ci95))
        for name, each in (("zero-shot", folding.zero_shot), ("ICL", folding.icl))
    ]
    axis = next(iter(axes_in_order(folding)), None)
    best = best_point(points_on(folding, axis)) if axis is not None else None
    if axis is not None and best is not None:
        cards.append(card("best fold's accuracy", percent(best.accuracy.mean), f"{axis_name(axis)} {best.value}"))
        cards.append(card("it answers as ICL", percent(best.agreement.mean), percent_interval(best.agreement.ci95)))
    if folding.perplexity is not None:
        ratio = folding.perplexity.ratio
        cards.append(card("perplexity, folded over base", decimal(ratio.mean), decimal_interval(ratio.ci95)))
    return cards


def _share(estimate: Estimate | None) -> dict[str, str]:
    if estimate is None:
        return {"mean": "", "interval": ""}
    return {
        "mean": share(estimate),
        "interval": percent_interval(estimate.ci95) if known(estimate.ci95) and not is_few(estimate) else "",
    }


def _recovered(point: FoldPoint) -> dict[str, str]:
    shown = known(point.recovered.ci95) and not is_undefined(point.recovered)
    interval = percent_interval(point.recovered.ci95) if shown else ""
    return {"mean": recovered_share(point), "interval": interval}


def _plain(text: str) -> dict[str, str]:
    return {"mean": text, "interval": ""}


def _axis(folding: Folding, axis: str, name: str) -> dict[str, Any]:
    """One axis: heading, chart's name, and a table with the columns in which something is known."""
    points = points_on(folding, axis)
    columns = [
        ("accuracy", [_share(point.accuracy) for point in points]),
        *([("ICL", [_share(point.icl) for point in points])] if _icl_varies(folding, points) else []),
        ("agreement<br>with ICL", [_share(point.agreement) for point in points]),
        ("recovered", [_recovered(point) for point in points]),
    ]
    for title, read in (
        ("ridge<br>strength", _strength),
        ("to fold,<br>TFLOP", _adapt),
        ("tokens<br>a query", _tokens),
        ("perplexity<br>ratio", _ratio),
    ):
        cells = [read(point) for point in points]
        if any(cells):
            columns.append((title, [_plain(text) for text in cells]))
    return {
        "name": name,
        "heading": axis_heading(axis),
        "column": axis_name(axis),
        "joined": is_scale(axis, points),
        # Each heading in lines: they are ours, and the template writes the break.
        "titles": [title.split("<br>") for title, _ in columns],
        "rows": [
            {"value": point.value, "note": point.note, "cells": [cells[number] for _, cells in columns]}
            for number, point in enumerate(points)
        ],
        "stands_on": _n(points),
    }


def _icl_varies(folding: Folding, points: list[FoldPoint]) -> bool:
    """Whether ICL stands anywhere but at the study's own level, which has a table of its own."""
    return any(point.icl != folding.icl for point in points)


def _strength(point: FoldPoint) -> str:
    return significant(point.strength) if finite(point.strength) is not None else ""


def _adapt(point: FoldPoint) -> str:
    return significant(scaled(point.adapt_flops, 1e-12)) if finite(point.adapt_flops) is not None else ""


def _tokens(point: FoldPoint) -> str:
    return count(point.query_tokens) if finite(point.query_tokens) is not None else ""


def _ratio(point: FoldPoint) -> str:
    return decimal(point.perplexity_ratio) if finite(point.perplexity_ratio) is not None else ""


def _n(points: list[FoldPoint]) -> str:
    n = [point.accuracy.n for point in points]
    return count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def _transfer_row(each: Transfer) -> dict[str, Any]:
    return {
        "task": each.task,
        "zero_shot": _share(each.zero_shot),
        "folded": _share(each.folded),
        "difference": difference(each.difference.mean),
        "interval": difference_interval(each.difference.ci95),
    }


def _composition_rows(each: Composition) -> dict[str, Any]:
    return {
        "name": parts_name(each),
        "tasks": [
            {"task": task, "sum": _share(found), "alone": _share(each.alone.get(task))}
            for task, found in each.accuracy.items()
        ],
    }
