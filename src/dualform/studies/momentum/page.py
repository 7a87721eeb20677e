"""A comparison of momentum attention with vanilla as one HTML file that needs no network."""

from collections.abc import Sequence

from dualform.report.numerals import count, finite, known, significant
from dualform.report.page import Fact, Page, about_line, commands_again, facts_section, findings, render, run_section
from dualform.report.phrases import difference, difference_interval, plural
from dualform.report.section import Figure, Section
from dualform.studies.momentum import table
from dualform.studies.momentum.charts import (
    difference_chart,
    length_chart,
    regression_chart,
    tasks_chart,
    training_chart,
)
from dualform.studies.momentum.figures import (
    arm_of,
    best_momentum,
    by_model,
    difference_at,
    full_length,
    length_name,
    nats,
    nats_interval,
    over_tasks,
    perplexity_interval,
    perplexity_text,
)
from dualform.studies.momentum.result import MomentumReport, MomentumResult
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


def render_momentum(result: MomentumResult) -> str:
    """The report of a momentum study as one HTML document, ready to be written as UTF-8.

    Args:
        result: The result; sections without data are left out.

    Returns:
        The whole page, readable offline and printable.
    """
    report = result.momentum
    said = momentum_verdict(result)
    full = full_length(report) if report is not None else None
    at = f" at {length_name(full)} tokens" if full is not None else ""
    return render(
        Page(
            title=f"dualform: momentum attention{f', recipe {report.recipe}' if report is not None else ''}",
            about=about_line(result),
            version=result.dualform,
            answer=said[0] if said else "This result holds no comparison of momentum attention with vanilla.",
            warnings=result.warnings,
            charts=[
                Figure(
                    "difference",
                    difference_chart(result),
                    "Loss of each arm less its baseline's with 95 % intervals and one point a seed, over eta and by "
                    "name.",
                    f"Loss{at} less the baseline's, nats a token: large dots are means, bars 95 % intervals over "
                    "seeds, small dots seeds, the line at 0 the baseline. Panels with the same baseline share a scale.",
                )
            ],
            facts=_facts(report) if report is not None else [],
            sections=[
                findings(said),
                *(_sections(result, report) if report is not None else []),
                run_section(result, commands_again(result), [facts_section("model", "Model", result.model)]),
            ],
            glossary=[*_kinds(report), *GLOSSARY] if report is not None else [],
        )
    )


def _sections(result: MomentumResult, report: MomentumReport) -> list[Section]:
    return [
        Section(
            "perplexity",
            "Perplexity",
            caution_sentences(report) if table.difference_table(result) or table.perplexity_table(result) else [],
            tables=[table.difference_table(result)],
            note="On the test text. The arms of a seed began with the same weights and read the same text in the same "
            "order, so each is compared with its baseline seed by seed. Negative is better: -0.01 nats a token is 1 % "
            "of perplexity less.",
            sections=[
                Section(
                    "lengths",
                    "By length of the text",
                    charts=[
                        Figure(
                            "lengths",
                            length_chart(result),
                            "Perplexity of each arm and its difference from the baseline's by length of the text.",
                            "Perplexity, and loss less the baseline's in nats a token with 95 % intervals. Scales "
                            "differ.",
                        )
                    ],
                    tables=[table.perplexity_table(result)] if any(arm.perplexity for arm in report.arms) else [],
                    detail=False,
                )
            ],
        ),
        Section(
            "training",
            "Training",
            charts=[
                Figure(
                    "training",
                    training_chart(result),
                    "Validation loss of each arm by tokens read, and its difference from the baseline's.",
                    "Mean over seeds. The loss itself, then less the baseline's, without the first tenth of training; "
                    "the line at 0 is the baseline. Scales differ.",
                )
            ],
            note=f"One run for each arm and seed, of {count(report.tokens)} tokens in sequences of "
            f"{count(report.length)}.",
        ),
        Section(
            "controls",
            "Is it momentum?",
            [
                *averaging_sentences(report),
                *dual_sentences(report),
                *(learned_sentences(report) if table.learned_table(result) else []),
            ],
            tables=[table.learned_table(result)],
            note="The paper adds a decaying sum of values and calls it momentum. Two questions: does a short "
            "convolution of values, which nobody would call so, do as much? And what does the momentum of gradient "
            "descent itself do, where attention is linear and its dual form exact?",
        ),
        _tasks(result, report),
        _regression(result, report),
        Section(
            "pretrained",
            "Put into models that were trained without",
            [sentence for model, tried in by_model(report).items() for sentence in pretrained_sentences(model, tried)],
            tables=[table.pretrained_table(result)],
        ),
        _published(result, report),
        Section(
            "cost",
            "What it costs",
            [sentence] if (sentence := cost_sentence(report)) else [],
            tables=[table.cost_table(result)],
        ),
    ]


def _tasks(result: MomentumResult, report: MomentumReport) -> Section:
    shots = [score.k for arm in report.arms for score in arm.tasks]
    return Section(
        "tasks",
        "Tasks in context",
        task_sentences(report) if shots else [],
        charts=[
            Figure(
                "tasks",
                tasks_chart(result),
                "Accuracy of each arm on each task with 95 % intervals, and chance level.",
                "Dots are means, bars 95 % intervals over seeds and queries; dashed, chance level. Scales differ.",
            )
        ],
        tables=[table.tasks_table(result)],
        note=f"{_shown(shots)} The answer with the highest mean log-probability a token is taken. Chance level: always "
        "giving the most frequent answer."
        if shots
        else "",
    )


def _regression(result: MomentumResult, report: MomentumReport) -> Section:
    regression = report.regression
    if regression is None or not regression.curves:
        return Section("regression", "")
    return Section(
        "regression",
        "In-context regression",
        regression_sentences(regression),
        charts=[
            Figure(
                "regression",
                regression_chart(result),
                "Error in in-context regression by examples seen, one panel a condition number, next to exact "
                "predictors.",
                "Squared error over that of predicting zero, log scale, by examples seen; bands are 95 % intervals "
                "over seeds. Dashed: exact predictors; a line ends where it falls far below all arms. Scales differ.",
            )
        ],
        tables=[table.regression_table(result)],
        note=f"Small models trained for {plural(regression.steps, 'step')} to predict linear functions of "
        f"{plural(regression.dimension, 'dimension')} from the examples before, {plural(regression.points, 'point')} a "
        "sequence. Gradient descent slows down as the condition number grows, and momentum speeds it up at each: if "
        "attention gains by momentum as gradient descent does, its error must fall as that of heavy ball does compared "
        "with plain descent.",
    )


def _published(result: MomentumResult, report: MomentumReport) -> Section:
    best = best_momentum(report, full_length(report))
    if best is None:
        return Section("published", "")
    own = (
        f"Of this run's momentum the table shows “{best.name}”, the lowest in perplexity. Text, model and "
        "demonstrations are others: compare changes, never levels."
        if table.shares_with_the_paper(result)
        else "This run shares neither length nor task with it."
    )
    return Section(
        "published",
        "Compared with the paper",
        paper_sentences(report),
        tables=[table.published_table(result)],
        note="Why Can GPT Learn In-Context? (arXiv:2212.10559) trained two models of 350M parameters, on 512K tokens a "
        "step for 500K steps, one with momentum and one without. That is one run each: no interval, no seed, and it "
        f"gives neither eta nor code. {own}",
    )


def _facts(report: MomentumReport) -> list[Fact]:
    """What a reader looks for first: the best eta's difference, both perplexities, tasks, how much stands behind it."""
    cards = []
    length = full_length(report)
    best = best_momentum(report, length)
    if best is not None:
        found = difference_at(best, length)
        if found is not None:
            ends = f" ({nats_interval(found.ci95)})" if known(found.ci95) else ""
            cards.append(Fact(f"{best.name}, nats a token", nats(found.mean), f"less {best.baseline}{ends}"))
        for arm in (best, arm_of(report, best.baseline)):
            estimate = arm.perplexity.get(length or "") if arm is not None else None
            if arm is not None and estimate is not None:
                ends = perplexity_interval(estimate.ci95) if known(estimate.ci95) else ""
                cards.append(Fact(f"perplexity, {arm.name}", perplexity_text(estimate.mean), ends))
        scored = over_tasks(best)
        if scored is not None and finite(scored.mean) is not None:
            ends = f", {difference_interval(scored.ci95)}" if known(scored.ci95) else ""
            cards.append(Fact("points of accuracy in context", difference(scored.mean), f"{best.name}{ends}"))
    seeds = {each.n for arm in report.arms for each in arm.difference.values()}
    if seeds:
        name = str(min(seeds)) if len(seeds) == 1 else f"{min(seeds)} to {max(seeds)}"
        cards.append(Fact("seeds", name, f"{significant(report.tokens / 1e6)} million tokens each"))
    return cards


def _kinds(report: MomentumReport) -> list[tuple[str, str]]:
    used = {arm.kind for arm in report.arms}
    return [(kind, meaning) for kind, meaning in KINDS.items() if kind in used]


def _shown(shots: Sequence[int]) -> str:
    low, high = min(shots), max(shots)
    return f"Queries behind {plural(low, 'demonstration') if low == high else f'{low} to {high} demonstrations'}."
