"""A comparison of momentum attention with vanilla as one HTML file that needs no network."""

from collections.abc import Sequence
from typing import Any

from dualform.report.numerals import (
    MISSING,
    count,
    decimal,
    decimal_interval,
    finite,
    known,
    percent,
    percent_interval,
    significant,
)
from dualform.report.palette import MEASURE_COLOUR
from dualform.report.phrases import difference, difference_interval, plural
from dualform.report.shell import DescribedChart, card, commands_again, facts, render_shell
from dualform.result import Estimate, MomentumArm, MomentumReport, Paired, Result
from dualform.studies.momentum.charts import (
    arm_colours,
    difference_chart,
    length_chart,
    regression_chart,
    tasks_chart,
    training_chart,
)
from dualform.studies.momentum.figures import (
    added_parameters,
    arm_of,
    best_momentum,
    by_model,
    conditions,
    curves_at,
    difference_at,
    full_length,
    last_error,
    length_name,
    lengths,
    mean_accuracy,
    nats,
    nats_interval,
    over_tasks,
    perplexity_interval,
    perplexity_text,
    references_at,
    relative,
    relative_interval,
)
from dualform.studies.momentum.table import eta_text, p_alone
from dualform.studies.momentum.words import (
    KINDS,
    averaging_sentences,
    caution_sentences,
    cost_sentence,
    dual_sentences,
    learned_sentences,
    momentum_verdict,
    paper_sentences,
    pretrained_sentences,
    regression_sentences,
    task_sentences,
)
from dualform.studies.published import BesideMomentum, momentum_beside_the_paper

CHARTS: dict[str, DescribedChart] = {
    "difference": (
        difference_chart,
        "Loss of each arm less its baseline's with 95 % intervals and one point a seed, over eta and by name.",
    ),
    "lengths": (length_chart, "Perplexity of each arm and its difference from the baseline's by length of the text."),
    "training": (
        training_chart,
        "Validation loss of each arm by tokens read, and its difference from the baseline's.",
    ),
    "tasks": (tasks_chart, "Accuracy of each arm on each task with 95 % intervals, and chance level."),
    "regression": (
        regression_chart,
        "Error in in-context regression by examples seen, one panel a condition number, beside exact predictors.",
    ),
}

GLOSSARY: tuple[tuple[str, str], ...] = (
    ("arm", "One way of attending: a model trained with it, once a seed."),
    (
        "baseline",
        "The arm that another is compared with: softmax attention for those with softmax, linear attention for those "
        "without.",
    ),
    ("eta", "The factor by which a value counts less with every token that follows; between 0 and 1."),
    (
        "perplexity",
        "exp of the mean negative log-probability of a token of text: low where the model expects what comes.",
    ),
    (
        "nats a token",
        "That mean negative log-probability. A difference of -0.01 is a perplexity lower by 1 %.",
    ),
    ("seed", "Draws the initial weights and the order of the text anew, the same for all arms."),
    (
        "95 % interval",
        "Of differences and perplexities: Student's, over seeds. It speaks of other seeds, and neither of other text "
        "nor of other sizes. Of accuracies: bootstrap over seeds and, independently, over queries.",
    ),
    (
        "p",
        "How often chance alone gives a difference at least as large: by the paired t-test, or by flipping the signs "
        "of the seeds' differences, which assumes no distribution.",
    ),
)

Cell = dict[str, str]
EMPTY: Cell = {"mean": "", "interval": ""}


def render_momentum(result: Result) -> str:
    """The report of a momentum study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    report = result.momentum
    found = _sections(report) if report is not None else dict.fromkeys(SECTIONS)
    return render_shell(
        "dualform.studies.momentum:page.html.j2",
        result,
        title=f"dualform: momentum attention{f', recipe {report.recipe}' if report is not None else ''}",
        charts=CHARTS,
        styles=["study.css"],
        verdict=momentum_verdict(result),
        cards=_cards(report) if report is not None else [],
        commands=commands_again(result),
        glossary=[*_kinds(report), *GLOSSARY] if report is not None else [],
        model=facts(result.model),
        **found,
    )


SECTIONS = (
    "full",
    "differences",
    "cautions",
    "length_names",
    "perplexities",
    "trained",
    "averaging",
    "dual",
    "learned",
    "tasks",
    "regression",
    "pretrained",
    "published",
    "costs",
    "cost_sentence",
)
"""What the template names."""


def _sections(report: MomentumReport) -> dict[str, Any]:
    length = full_length(report)
    return {
        "full": f" at {length_name(length)} tokens" if length is not None else "",
        "differences": [_difference_row(report, arm) for arm in report.arms if arm.baseline is not None],
        "cautions": caution_sentences(report),
        "length_names": [length_name(each) for each in lengths(report)],
        "perplexities": _perplexity_rows(report),
        "trained": (
            f"One run for each arm and seed, of {count(report.tokens)} tokens in sequences of {count(report.length)}."
        ),
        "averaging": averaging_sentences(report),
        "dual": dual_sentences(report),
        "learned": _learned(report),
        "tasks": _tasks(report),
        "regression": _regression(report),
        "pretrained": _pretrained(report),
        "published": _published(report),
        "costs": [_cost_row(report, arm) for arm in report.arms],
        "cost_sentence": cost_sentence(report),
    }


def _cards(report: MomentumReport) -> list[dict[str, str]]:
    """What a reader looks for first: the best eta's difference, both perplexities, tasks, how much stands behind it."""
    cards = []
    length = full_length(report)
    best = best_momentum(report, length)
    if best is not None:
        found = difference_at(best, length)
        if found is not None:
            ends = f" ({nats_interval(found.ci95)})" if known(found.ci95) else ""
            cards.append(card(f"{best.name}, nats a token", nats(found.mean), f"less {best.baseline}{ends}"))
        for arm in (best, arm_of(report, best.baseline)):
            estimate = arm.perplexity.get(length or "") if arm is not None else None
            if arm is not None and estimate is not None:
                ends = perplexity_interval(estimate.ci95) if known(estimate.ci95) else ""
                cards.append(card(f"perplexity, {arm.name}", perplexity_text(estimate.mean), ends))
        scored = over_tasks(best)
        if scored is not None and finite(scored.mean) is not None:
            ends = f", {difference_interval(scored.ci95)}" if known(scored.ci95) else ""
            cards.append(card("points of accuracy in context", difference(scored.mean), f"{best.name}{ends}"))
    seeds = {each.n for arm in report.arms for each in arm.difference.values()}
    if seeds:
        name = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        cards.append(card("seeds", name, f"{significant(report.tokens / 1e6)} million tokens each"))
    return cards


def _kinds(report: MomentumReport) -> list[tuple[str, str]]:
    used = {arm.kind for arm in report.arms}
    return [(kind, meaning) for kind, meaning in KINDS.items() if kind in used]


def _name(report: MomentumReport, arm: MomentumArm, beside: str | None = None) -> dict[str, Any]:
    return {"name": arm.name, "colour": arm_colours(report)[arm.name], "beside": beside}


def _difference_row(report: MomentumReport, arm: MomentumArm) -> dict[str, Any]:
    found = difference_at(arm, full_length(report))
    return _name(report, arm, arm.baseline) | {
        "nats": _nats(found),
        "change": _change(found),
        "p": p_alone(found.p) if found is not None else MISSING,
        "p_signs": p_alone(found.p_signs) if found is not None else MISSING,
        "n": count(found.n) if found is not None else MISSING,
    }


def _nats(found: Paired | None) -> Cell:
    if found is None:
        return {"mean": MISSING, "interval": ""}
    return {"mean": nats(found.mean), "interval": nats_interval(found.ci95) if known(found.ci95) else ""}


def _change(found: Paired | None) -> Cell:
    if found is None:
        return {"mean": MISSING, "interval": ""}
    return {"mean": relative(found.mean), "interval": relative_interval(found.ci95) if known(found.ci95) else ""}


def _perplexity(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return {"mean": MISSING, "interval": ""}
    interval = perplexity_interval(estimate.ci95) if known(estimate.ci95) else ""
    return {"mean": perplexity_text(estimate.mean), "interval": interval}


def _share(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return {"mean": MISSING, "interval": ""}
    return {
        "mean": percent(estimate.mean),
        "interval": percent_interval(estimate.ci95) if known(estimate.ci95) else "",
    }


def _perplexity_rows(report: MomentumReport) -> list[dict[str, Any]]:
    if not any(arm.perplexity for arm in report.arms):
        return []
    return [
        _name(report, arm) | {"cells": [_perplexity(arm.perplexity.get(length)) for length in lengths(report)]}
        for arm in report.arms
    ]


def _learned(report: MomentumReport) -> dict[str, Any] | None:
    arms = [arm for arm in report.arms if arm.learned_eta]
    if not arms:
        return None
    layers = max(len(arm.learned_eta) for arm in arms)
    return {
        "sentences": learned_sentences(report),
        "layers": list(range(layers)),
        "rows": [
            _name(report, arm)
            | {
                "cells": [
                    decimal(arm.learned_eta[layer]) if layer < len(arm.learned_eta) else MISSING
                    for layer in range(layers)
                ]
            }
            for arm in arms
        ],
    }


def _tasks(report: MomentumReport) -> dict[str, Any] | None:
    names = list(dict.fromkeys(score.task for arm in report.arms for score in arm.tasks))
    rows: list[dict[str, Any]] = []
    chances: dict[str, float | None] = {}
    shots: list[int] = []
    for arm in report.arms:
        scores = {score.task: score for score in arm.tasks}
        if not scores:
            continue
        chances |= {name: score.chance for name, score in scores.items() if finite(score.chance) is not None}
        shots += [score.k for score in scores.values()]
        found = over_tasks(arm)
        rows.append(
            _name(report, arm)
            | {
                "cells": [_share(scores[name].accuracy if name in scores else None) for name in names],
                "mean": percent(mean_accuracy(arm)),
                "difference": _points(found),
                "p": p_alone(found.p) if found is not None else "",
            }
        )
    if not rows:
        return None
    return {
        "names": names,
        "rows": rows,
        "chances": [percent(chances.get(name)) for name in names],
        "sentences": task_sentences(report),
        "shown": _shown(shots),
    }


def _shown(shots: Sequence[int]) -> str:
    low, high = min(shots), max(shots)
    return f"Queries behind {plural(low, 'demonstration') if low == high else f'{low} to {high} demonstrations'}."


def _points(found: Paired | None) -> Cell:
    if found is None:
        return EMPTY
    return {
        "mean": difference(found.mean),
        "interval": difference_interval(found.ci95) if known(found.ci95) else "",
    }


def _regression(report: MomentumReport) -> dict[str, Any] | None:
    regression = report.regression
    if regression is None or not regression.curves:
        return None
    colours = arm_colours(report)
    blocks = []
    for condition in conditions(regression):
        rows = [
            {
                "name": curve.arm,
                "colour": colours.get(curve.arm, MEASURE_COLOUR),
                "last": _error(last_error(curve)),
                "change": _change(curve.difference) if curve.difference is not None else EMPTY,
                "p": p_alone(curve.difference.p) if curve.difference is not None else "",
            }
            for curve in curves_at(regression, condition)
        ]
        rows += [
            {
                "name": f"{name} (exact)",
                "colour": MEASURE_COLOUR,
                "last": _error(last_error(curve)),
                "change": EMPTY,
                "p": "",
            }
            for name, curve in references_at(regression, condition).items()
        ]
        blocks.append({"condition": f"{condition:g}", "rows": rows})
    return {
        "setup": (
            f"Small models trained for {plural(regression.steps, 'step')} to predict linear functions of "
            f"{plural(regression.dimension, 'dimension')} from the examples before, "
            f"{plural(regression.points, 'point')} a sequence."
        ),
        "sentences": regression_sentences(regression),
        "blocks": blocks,
    }


def _error(estimate: Estimate | None) -> Cell:
    if estimate is None:
        return {"mean": MISSING, "interval": ""}
    return {
        "mean": decimal(estimate.mean),
        "interval": decimal_interval(estimate.ci95) if known(estimate.ci95) else "",
    }


def _pretrained(report: MomentumReport) -> dict[str, Any] | None:
    if not report.pretrained:
        return None
    return {
        "sentences": [
            sentence for model, tried in by_model(report).items() for sentence in pretrained_sentences(model, tried)
        ],
        "rows": [
            {
                "name": each.model,
                "eta": eta_text(each.eta),
                "base": perplexity_text(each.base),
                "perplexity": perplexity_text(each.perplexity),
                "base_tuned": _perplexity(each.base_tuned),
                "tuned": _perplexity(each.tuned),
                "difference": _nats(each.difference),
                "p": p_alone(each.difference.p) if each.difference is not None else MISSING,
            }
            for each in report.pretrained
        ],
    }


def _published(report: MomentumReport) -> dict[str, Any] | None:
    best = best_momentum(report, full_length(report))
    if best is None:
        return None
    vanilla = arm_of(report, best.baseline)
    rows = momentum_beside_the_paper(vanilla, best)
    own = any(each is not None for row in rows for each in row.run)
    return {
        "own": own,
        "note": (
            f"Of this run's momentum the table shows “{best.name}”, the lowest in perplexity. Text, model and "
            "demonstrations are others: compare changes, never levels."
            if own
            else "This run shares neither length nor task with it."
        ),
        "names": [vanilla.name if vanilla is not None else MISSING, best.name],
        "sentences": paper_sentences(report),
        "rows": [_published_row(row) for row in rows],
    }


def _published_row(row: BesideMomentum) -> dict[str, Any]:
    without, with_it = row.published
    if row.share:
        texts, change = [percent(each) for each in row.published], f"{difference(with_it - without)} points"
    else:
        texts = [perplexity_text(each) for each in row.published]
        change = f"{100 * (with_it / without - 1):+.2f} %"
    cells = [EMPTY if each is None else _share(each) if row.share else _perplexity(each) for each in row.run]
    return {"title": row.title, "published": texts, "change": change, "run": cells}


def _cost_row(report: MomentumReport, arm: MomentumArm) -> dict[str, Any]:
    more = added_parameters(report, arm)
    return _name(report, arm) | {
        "eta": eta_text(arm.eta),
        "parameters": count(arm.parameters),
        "more": "" if more is None else count(more),
        "step": "" if arm.baseline is None else significant(arm.step_ratio),
    }
