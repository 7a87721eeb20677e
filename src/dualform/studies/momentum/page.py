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
    ("arm", "A kind of attention; a model is trained with it for each seed."),
    (
        "baseline",
        "The arm that another is compared with: softmax attention for arms with softmax, linear attention for arms "
        "without.",
    ),
    ("eta", "The factor by which the weight of a past value decreases with each token; between 0 and 1."),
    (
        "perplexity",
        "exp of the mean negative log-probability of a token of text; lower is better.",
    ),
    (
        "nats a token",
        "Mean negative log-probability of a token. A difference of -0.01 means a perplexity lower by 1 %.",
    ),
    ("seed", "Each seed draws new initial weights and a new order of the text, the same for all arms."),
    (
        "95 % interval",
        "For differences and perplexities: Student's, over seeds. It covers other seeds, not other texts or sizes. For "
        "accuracies: bootstrap over seeds and, independently, over queries.",
    ),
    (
        "p",
        "Probability of a difference at least as large if there is none: by the paired t-test, or by flipping the "
        "signs of the seeds' differences, which assumes no normal distribution.",
    ),
)


def render_momentum(result: MomentumResult) -> str:
    """The report of a momentum study as one HTML document, to be written as UTF-8; it needs no network."""
    report = result.momentum
    verdict = momentum_verdict(result)
    full = full_length(report) if report is not None else None
    at = f" at {length_name(full)} tokens" if full is not None else ""
    return render(
        Page(
            title=f"dualform: momentum attention{f', recipe {report.recipe}' if report is not None else ''}",
            about=about_line(result),
            version=result.dualform,
            answer=verdict[0] if verdict else "This result holds no comparison of momentum attention with vanilla.",
            warnings=result.warnings,
            charts=[
                Figure(
                    "difference",
                    difference_chart(result),
                    "Loss of each arm minus its baseline's, with 95 % intervals and one point for each seed, by eta or "
                    "by name.",
                    f"Loss{at} minus the baseline's, nats a token. Large dots: means; bars: 95 % intervals over seeds; "
                    "small dots: seeds; line at 0: the baseline. Panels with the same baseline share a scale.",
                )
            ],
            facts=_facts(report) if report is not None else [],
            sections=[
                findings(verdict),
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
            note="On the test text. All arms of a seed start with the same weights and read the same text in the same "
            "order, so each is compared with its baseline seed by seed. Negative is better: -0.01 nats a token is a "
            "perplexity lower by 1 %.",
            sections=[
                Section(
                    "lengths",
                    "By length of the text",
                    charts=[
                        Figure(
                            "lengths",
                            length_chart(result),
                            "Perplexity of each arm, and its loss minus the baseline's, by length of the text.",
                            "Perplexity, and loss minus the baseline's in nats a token, with 95 % intervals. Scales "
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
                    "Means over seeds: the loss, and the loss minus the baseline's without the first tenth of "
                    "training. "
                    "The line at 0 is the baseline. The panels have different scales.",
                )
            ],
            note=f"One run for each arm and seed, with {count(report.tokens)} tokens in sequences of "
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
            "convolution of values, which is only local averaging, have the same effect? And what is the effect of the "
            "momentum of gradient descent itself, in linear attention, whose dual form is exact?",
        ),
        _tasks(result, report),
        _regression(result, report),
        Section(
            "pretrained",
            "Momentum in models that were trained without it",
            [
                sentence
                for model, records in by_model(report).items()
                for sentence in pretrained_sentences(model, records)
            ],
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
                "Dots: means; bars: 95 % intervals over seeds and queries; dashed: chance level. The "
                "panels have different scales.",
            )
        ],
        tables=[table.tasks_table(result)],
        note=f"{_demonstrations(shots)} The prediction is the answer with the highest mean log-probability a token. "
        "Chance level: always giving the most frequent answer."
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
                "Error in in-context regression by examples in context, one panel for each condition number, with "
                "exact "
                "predictors.",
                "Squared error divided by that of predicting zero, log scale. Bands: 95 % intervals over seeds; "
                "dashed: exact predictors, whose lines end where they fall far below all arms. The panels have "
                "different scales.",
            )
        ],
        tables=[table.regression_table(result)],
        note=f"Small models trained for {plural(regression.steps, 'step')} to predict linear functions in "
        f"{plural(regression.dimension, 'dimension')} from the examples before, {plural(regression.points, 'point')} a "
        "sequence. Gradient descent becomes slower as the condition number grows, and momentum makes it faster. If "
        "momentum attention works like gradient descent with momentum, its error must fall like that of heavy ball "
        "relative to plain descent.",
    )


def _published(result: MomentumResult, report: MomentumReport) -> Section:
    best = best_momentum(report, full_length(report))
    if best is None:
        return Section("published", "")
    own = (
        f"For this run the table shows “{best.name}”, the momentum arm with the lowest perplexity. Text, model and "
        "demonstrations differ from the paper's: compare changes, not levels."
        if table.shares_with_the_paper(result)
        else "This run shares neither length nor task with the paper."
    )
    return Section(
        "published",
        "Compared with the paper",
        paper_sentences(report),
        tables=[table.published_table(result)],
        note="Why Can GPT Learn In-Context? (arXiv:2212.10559) trained two models with 350M parameters, one with "
        "momentum and one without, on 512K tokens a step for 500K steps. This is one run each: no interval, no seed. "
        f"The paper gives neither eta nor code. {own}",
    )


def _facts(report: MomentumReport) -> list[Fact]:
    """Facts at the top of the page: difference of the best eta, perplexities, accuracy on tasks, number of seeds."""
    cards = []
    length = full_length(report)
    best = best_momentum(report, length)
    if best is not None:
        paired = difference_at(best, length)
        if paired is not None:
            ends = f" ({nats_interval(paired.ci95)})" if known(paired.ci95) else ""
            cards.append(Fact(f"{best.name}, nats a token", nats(paired.mean), f"minus {best.baseline}{ends}"))
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


def _demonstrations(shots: Sequence[int]) -> str:
    low, high = min(shots), max(shots)
    return f"Queries after {plural(low, 'demonstration') if low == high else f'{low} to {high} demonstrations'}."
