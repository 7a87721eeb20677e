"""Sentences about a comparison of momentum attention with vanilla attention.

Two arms are called significantly different only if Student's interval of their paired differences excludes 0.
"""

import math
from collections.abc import Sequence

from dualform.report.numerals import decimal, finite, known, percent, significant
from dualform.report.phrases import (
    compare_intervals,
    difference,
    difference_interval,
    leading_sentences,
    listed,
    plural,
)
from dualform.result import Paired
from dualform.studies.momentum.figures import (
    MOMENTUM,
    added_parameters,
    arm_of,
    at_chance,
    baselines,
    best_momentum,
    between,
    by_model,
    conditions,
    curves_at,
    difference_at,
    exact_kind,
    full_length,
    last_error,
    length_name,
    lowest_arm,
    mean_accuracy,
    nats,
    nats_interval,
    over_tasks,
    perplexity_at,
    perplexity_interval,
    perplexity_text,
    references_at,
    relative,
    relative_interval,
    side,
)
from dualform.studies.momentum.result import (
    MomentumArm,
    MomentumRegression,
    MomentumReport,
    MomentumResult,
    PretrainedMomentum,
)
from dualform.studies.published import MOMENTUM_PERPLEXITY

KINDS: dict[str, str] = {
    "vanilla": "Softmax attention.",
    "momentum": (
        "Softmax attention plus a sum of each head's earlier values, which decays by the factor eta with each token "
        "and does not depend on the query: the paper's addition."
    ),
    "normalised": "The same sum with weights that add up to 1 over a long past.",
    "learned": "The same sum with a learned eta for each head.",
    "convolution": (
        "Instead of the sum, a short learned convolution over the last few values of each head: local averaging, not "
        "momentum."
    ),
    "linear": "Attention without softmax, whose dual form is plain gradient descent.",
    "linear-momentum": "Linear attention plus the paper's sum of values.",
    "heavy-ball": "Linear attention whose dual form is gradient descent with heavy-ball momentum.",
    "nesterov": "Linear attention whose dual form is gradient descent with Nesterov's momentum.",
}
"""Kind of arm -> description, in the order of the page."""

TRUE_DUAL = ("heavy-ball", "nesterov")
"""Kinds whose dual form has the momentum of gradient descent."""

DESCENTS = ("gradient descent", "heavy ball")
"""Exact predictors without and with momentum."""

CHANCE_IN = 20
"""Without any true difference, one of so many comparisons is expected to be significant at the 5 % level."""

VERDICTS = {-1: "better", 1: "worse", 0: "not significantly different", None: "no interval, so no conclusion"}
"""Sign of a difference of losses (0 if its interval contains 0, None without an interval) -> conclusion."""


def headlines(result: MomentumResult) -> list[str]:
    """At most four of the sentences of `momentum_verdict`: momentum, its best arm, averaging, tasks.

    For a run without momentum attention, the first ones on models that were trained without it or on regression.
    """
    report = result.momentum
    if report is None:
        return []
    length = full_length(report)
    best = best_momentum(report, length)
    pretrained = [each for name, records in by_model(report).items() for each in pretrained_sentences(name, records)]
    regression = regression_sentences(report.regression) if report.regression is not None else []
    others = [*averaging_sentences(report), *task_sentences(report)[:1], *pretrained, *dual_sentences(report)]
    return leading_sentences(
        _lead(report, length),
        [] if best is None else _arm(best, length),
        *([sentence] for sentence in (*others, *regression, *_lowest(report, length))),
    )


def notes(result: MomentumResult) -> list[str]:
    """The cautions among the sentences of `momentum_verdict`."""
    report = result.momentum
    if report is None:
        return []
    return [*task_sentences(report)[1:], *caution_sentences(report)]


def momentum_verdict(result: MomentumResult) -> list[str]:
    """Conclusions of the study, most important first.

    Args:
        result: Result of a momentum study. Missing parts are skipped; without any report the list is empty.

    Returns:
        Plain sentences without markup. Escape them before they go into a page.
    """
    report = result.momentum
    if report is None:
        return []
    length = full_length(report)
    sentences = [*_lead(report, length), *_lowest(report, length), *_arms(report, length)]
    sentences += averaging_sentences(report) + dual_sentences(report)
    paragraphs = [
        task_sentences(report),
        regression_sentences(report.regression) if report.regression is not None else [],
        *(pretrained_sentences(model, records) for model, records in by_model(report).items()),
        paper_sentences(report),
        caution_sentences(report),
    ]
    return [*sentences, *(" ".join(each) for each in paragraphs if each)]


def quoted(arms: Sequence[str]) -> str:
    """Names in quotation marks, as a list."""
    return listed([f"“{name}”" for name in arms])


def averaging_sentences(report: MomentumReport) -> list[str]:
    """Whether momentum is more than local averaging: the best momentum arm compared with a convolution of values."""
    length = full_length(report)
    momentum = best_momentum(report, length)
    sentences = []
    for other in report.arms:
        if other.kind != "convolution" or momentum is None:
            continue
        paired = between(momentum, other, length)
        if paired is None or finite(paired.mean) is None:
            continue
        n_etas = sum(arm.kind == MOMENTUM for arm in report.arms)
        best_of = f", the best of {n_etas} etas," if n_etas > 1 else ""
        verdict = {
            -1: "momentum is significantly better than local averaging",
            1: "local averaging is significantly better than momentum",
            0: VERDICTS[0],
            None: VERDICTS[None],
        }[side(paired)]
        if side(paired) == 0 and side(difference_at(momentum, length)) == -1:
            verdict += ", so the gain of momentum may be due to local averaging alone"
        sentences.append(
            f"Is momentum more than local averaging? “{momentum.name}”{best_of} minus “{other.name}”, a short "
            f"convolution of values: {_measured(paired)}: {verdict}."
        )
    return sentences


def dual_sentences(report: MomentumReport) -> list[str]:
    """Effect of the momentum of gradient descent in linear attention, compared with the paper's sum of values."""
    length = full_length(report)
    duals = [arm for arm in report.arms if arm.kind in TRUE_DUAL and difference_at(arm, length) is not None]
    if not duals:
        return []
    groups: dict[int | None, list[str]] = {}
    for arm in duals:
        groups.setdefault(side(difference_at(arm, length)), []).append(arm.name)
    words = {
        -1: "significantly lowers the loss in {}",
        1: "significantly raises the loss in {}",
        0: "does not change the loss significantly in {}",
    }
    clauses = [words[key].format(quoted(groups[key])) for key in words if key in groups]
    if None in groups:
        clauses.append(f"cannot be judged in {quoted(groups[None])}, without an interval")
    text = f"In linear attention, the momentum of gradient descent {_join_clauses(clauses)}"
    summed = next((arm for arm in report.arms if arm.kind == "linear-momentum"), None)
    best = lowest_arm(duals, length)
    paired = between(best, summed, length) if best is not None and summed is not None else None
    if best is None or summed is None or paired is None:
        return [f"{text}."]
    verdict = {
        -1: "it is significantly better than the paper's sum",
        1: "the paper's sum is significantly better",
        0: VERDICTS[0],
        None: VERDICTS[None],
    }[side(paired)]
    return [f"{text}. “{best.name}” minus “{summed.name}”: {_measured(paired)}: {verdict}."]


def learned_sentences(report: MomentumReport) -> list[str]:
    """Etas that were learned, with the layers of the lowest and the highest."""
    sentences = []
    for arm in report.arms:
        etas = [(eta, layer) for layer, each in enumerate(arm.learned_eta) if (eta := finite(each)) is not None]
        if not etas:
            continue
        (low, low_layer), (high, high_layer) = min(etas), max(etas)
        start = finite(arm.eta)
        name = f"“{arm.name}”" if start is None else f"“{arm.name}”, which started at {start:g},"
        if len(etas) == 1:
            sentences.append(f"{name} learned an eta of {decimal(low)}, mean over heads and seeds.")
        else:
            sentences.append(
                f"{name} learned etas from {decimal(low)} (layer {low_layer}) to {decimal(high)} (layer {high_layer}), "
                "means over heads and seeds."
            )
    return sentences


def task_sentences(report: MomentumReport) -> list[str]:
    """Mean accuracy of each arm compared with its baseline, and the tasks on which all arms are at chance level."""
    scored = [arm for arm in report.arms if arm.tasks]
    if not scored:
        return []
    names = list(dict.fromkeys(score.task for arm in scored for score in arm.tasks))
    subject = f"Mean accuracy over {len(names)} tasks" if len(names) > 1 else f"Accuracy on “{names[0]}”"
    levels = [
        f"{percent(level)} for “{name}”"
        for name in _reference_names(report)
        if (arm := arm_of(report, name)) is not None and (level := mean_accuracy(arm)) is not None
    ]
    groups: dict[int | None, list[str]] = {}
    for arm in scored:
        paired = over_tasks(arm)
        if paired is None or finite(paired.mean) is None:
            continue
        size = f" ({difference(paired.mean)} points, {difference_interval(paired.ci95)})" if side(paired) else ""
        groups.setdefault(side(paired), []).append(f"“{arm.name}”{size}")
    clauses = _clauses(groups, better=1)
    sentences = []
    if levels or clauses:
        baseline = f", compared with {listed(levels)}" if levels else ""
        sentences.append(f"{subject}{baseline}: {'; '.join(clauses)}." if clauses else f"{subject}: {listed(levels)}.")
    return [*sentences, *_at_chance(scored, names)]


def regression_sentences(regression: MomentumRegression) -> list[str]:
    """Errors in in-context regression compared with the baseline, by condition number, then those of exact descent."""
    sentences = []
    for condition in conditions(regression):
        groups: dict[int | None, list[str]] = {}
        for curve in curves_at(regression, condition):
            paired = curve.difference
            if paired is None or finite(paired.mean) is None:
                continue
            size = f" ({relative(paired.mean)}, {relative_interval(paired.ci95)})" if side(paired) else ""
            groups.setdefault(side(paired), []).append(f"“{curve.arm}”{size}")
        clauses = _clauses(groups, better=-1)
        if clauses:
            setting = f"In-context regression, condition number {condition:g}"
            sentences.append(f"{setting}: the error is {'; '.join(clauses)}.")
    return [*sentences, *_speed_up(regression)]


def pretrained_sentences(model: str, records: Sequence[PretrainedMomentum]) -> list[str]:
    """Effect of momentum on a model that was trained without it, before and after a short finetune.

    Args:
        model: Name of the model.
        records: Results of this model, one for each eta.
    """
    name = f"“{model}”, which was trained without it"
    sentences = []
    base = next((number for each in records if (number := finite(each.base)) is not None), None)
    untrained = [
        f"{perplexity_text(each.perplexity)}{_with_eta(each, ' with ')}"
        for each in records
        if finite(each.perplexity) is not None
    ]
    if base is not None and untrained:
        sentences.append(
            f"Adding momentum to {name}, changes its perplexity from {perplexity_text(base)} to {listed(untrained)}."
        )
    tuned = [
        f"{_with_eta(each, 'with ', ' ')}{_measured(each.difference)}: {VERDICTS[side(each.difference)]}"
        for each in records
        if each.difference is not None and finite(each.difference.mean) is not None
    ]
    if tuned:
        finetune = "After the same short finetune" + ("" if sentences else f" of {name}")
        sentences.append(f"{finetune}, loss with momentum minus loss without: {'; '.join(tuned)}.")
    return sentences


def cost_sentence(report: MomentumReport) -> str | None:
    """How much longer a training step takes, and which arms have more parameters; None if neither is known."""
    timed = [(ratio, arm) for arm in report.arms if (ratio := finite(arm.step_ratio)) is not None]
    clauses = []
    if timed:
        low, high = min(timed, key=lambda pair: pair[0]), max(timed, key=lambda pair: pair[0])
        reach = f"{significant(low[0])} times (“{low[1].name}”)"
        if low[1] is not high[1]:
            reach += f" to {significant(high[0])} times (“{high[1].name}”)"
        clauses.append(f"A training step takes {reach} as long as the baseline's")
    grown = [arm.name for arm in report.arms if added_parameters(report, arm)]
    if grown:
        clauses.append(f"{quoted(grown)} {'have' if len(grown) > 1 else 'has'} more parameters than the baseline")
    return f"{'; '.join(clauses)}." if clauses else None


def paper_sentences(report: MomentumReport) -> list[str]:
    """The paper's difference, and whether this run's interval contains it; empty without a momentum arm."""
    length = full_length(report)
    arm = best_momentum(report, length)
    if arm is None:
        return []
    vanilla, momentum = MOMENTUM_PERPLEXITY["1024"]
    published = math.log(momentum / vanilla)
    text = (
        "The paper's models with 350M parameters, one run each and therefore without an interval, differ by "
        f"{nats(published)} nats a token at 1,024 tokens (perplexity {vanilla:.2f} and {momentum:.2f})"
    )
    paired = difference_at(arm, length)
    ends = known(paired.ci95) if paired is not None else None
    if ends is None:
        return [f"{text}."]
    places = {
        0: "contains this difference",
        1: "lies above it, a smaller gain or none",
        -1: "lies below it, a larger gain",
    }
    place = (
        "lies above 0, a loss" if side(paired) == 1 else places[compare_intervals(ends, (published, published)) or 0]
    )
    text += f"; the interval of “{arm.name}” here, for another model and other text, {place}"
    if side(paired) == 0 and (ends[1] - ends[0]) / 2 > abs(published):
        text += ", but is too wide to detect so small a difference"
    return [f"{text}."]


def caution_sentences(report: MomentumReport) -> list[str]:
    """Cautions about the p-values: number of comparisons, number of seeds, assumptions."""
    length = full_length(report)
    differences = [paired for arm in report.arms if (paired := difference_at(arm, length)) is not None]
    sentences = []
    if len(differences) > 1:
        sentences.append(
            f"The {len(differences)} comparisons are not corrected for multiplicity: without any true difference, each "
            f"has one chance in {CHANCE_IN} of being called significant."
        )
    seeds = sorted({paired.n for paired in differences if paired.n > 1})
    if seeds:
        least = f"{2 / 2 ** seeds[0]:.3g}"
        sentences.append(
            "Intervals and p are Student's, over seeds only, and assume normally distributed differences; a sign-flip "
            f"test, which does not, cannot give p below {least} with {plural(seeds[0], 'seed')}."
        )
    return sentences


def _lead(report: MomentumReport, length: str | None) -> list[str]:
    """Whether the paper's momentum is better than its baseline, and with which etas."""
    arms = [arm for arm in report.arms if arm.kind == MOMENTUM]
    groups: dict[int | None, list[str]] = {}
    for arm in arms:
        if difference_at(arm, length) is not None:
            eta = finite(arm.eta)
            groups.setdefault(side(difference_at(arm, length)), []).append(arm.name if eta is None else f"{eta:g}")
    if not groups or length is None:
        return []
    base = arms[0].baseline or "its baseline"
    words = {
        -1: ("is significantly better than", "with eta"),
        0: ("is not significantly different from", "with eta"),
        1: ("is significantly worse than", "with eta"),
        None: ("cannot be compared with", "(no interval) with eta"),
    }
    clauses: list[str] = []
    for key, (verb, condition) in words.items():
        if key in groups:
            # The first clause names the baseline.
            other = base if not clauses else "it"
            clauses.append(f"{verb} {other} {condition} {listed(groups[key])}")
    return [f"On text of {length_name(length)} tokens, momentum attention {_join_clauses(clauses)}."]


def _arms(report: MomentumReport, length: str | None) -> list[str]:
    """Each arm compared with its baseline."""
    return [sentence for arm in report.arms for sentence in _arm(arm, length)]


def _arm(arm: MomentumArm, length: str | None) -> list[str]:
    """One arm compared with its baseline; empty for an arm without one."""
    if arm.baseline is None:
        return []
    paired = difference_at(arm, length)
    if paired is None:
        return [f"“{arm.name}” could not be compared with “{arm.baseline}”: a loss is missing."]
    return [f"“{arm.name}” minus “{arm.baseline}”: {_measured(paired)}: {VERDICTS[side(paired)]}."]


def _lowest(report: MomentumReport, length: str | None) -> list[str]:
    """The arm with the lowest perplexity, and the arms from which it is not significantly different."""
    measured = [arm for arm in report.arms if perplexity_at(arm, length) is not None]
    best = lowest_arm(measured, length)
    if best is None or len(measured) < 2 or length is None:
        return []
    estimate = best.perplexity[length]
    ends = f" (95% CI {perplexity_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    text = f"“{best.name}” has the lowest perplexity of {len(measured)} arms: {perplexity_text(estimate.mean)}{ends}"
    level, unsure = [], []
    for arm in measured:
        if arm is best:
            continue
        paired = between(best, arm, length)
        # Arms with different baselines are not paired: their own intervals of perplexity are compared.
        place = side(paired) if paired is not None else compare_intervals(estimate.ci95, arm.perplexity[length].ci95)
        if place is None:
            unsure.append(arm.name)
        elif place != -1:
            level.append(arm.name)
    if level:
        text += f"; it is not significantly different from {quoted(level)}"
    if unsure:
        text += f"; without an interval it cannot be compared with {quoted(unsure)}"
    if not level and not unsure:
        text += "; it is significantly below all others"
    return [f"{text}. It was chosen as the lowest on this test text, so its perplexity is biased downwards."]


def _at_chance(scored: Sequence[MomentumArm], names: Sequence[str]) -> list[str]:
    """Tasks on which no arm is significantly better than always giving the most frequent answer."""
    at_level = [
        name for name in names if all(at_chance(score) for arm in scored for score in arm.tasks if score.task == name)
    ]
    if not at_level:
        return []
    every = len(at_level) == len(names) and len(names) > 1
    subject = "On no task is any arm" if every else f"On {quoted(at_level)} no arm is"
    return [
        f"{subject} significantly above chance level (always giving the most frequent answer), so the "
        "differences are not evidence about in-context learning."
    ]


def _speed_up(regression: MomentumRegression) -> list[str]:
    """Errors of exact gradient descent without and with heavy-ball momentum: the possible gain."""
    clauses = []
    for condition in conditions(regression):
        by_kind = {exact_kind(name): curve for name, curve in references_at(regression, condition).items()}
        ends = [last_error(by_kind[kind]) if kind in by_kind else None for kind in DESCENTS]
        plain, heavy = (finite(each.mean) if each is not None else None for each in ends)
        if plain is not None and heavy is not None:
            clauses.append(f"from {decimal(plain)} to {decimal(heavy)} at condition number {condition:g}")
    if not clauses:
        return []
    examples = plural(max(regression.points - 1, 0), "example")
    return [
        f"For comparison, after {examples} momentum changes the error of exact gradient descent with the same number "
        f"of steps {listed(clauses)}."
    ]


def _with_eta(each: PretrainedMomentum, before: str, after: str = "") -> str:
    """`eta 0.1` between `before` and `after`; empty if eta is missing."""
    eta = finite(each.eta)
    return "" if eta is None else f"{before}eta {eta:g}{after}"


def _reference_names(report: MomentumReport) -> list[str]:
    """Names of the baselines and of arms without one."""
    return list(dict.fromkeys([*(arm.name for arm in report.arms if arm.baseline is None), *baselines(report)]))


def _measured(paired: Paired) -> str:
    """`-0.0123 nats a token (95% CI -0.0150 to -0.0096), -1.2 % of perplexity (-1.5 to -1.0 %), 5 seeds`."""
    mean, change, seeds = nats(paired.mean), relative(paired.mean), plural(paired.n, "seed")
    if known(paired.ci95) is None:
        return f"{mean} nats a token, {change} of perplexity, {seeds}"
    return (
        f"{mean} nats a token (95% CI {nats_interval(paired.ci95)}), {change} of perplexity "
        f"({relative_interval(paired.ci95)}), {seeds}"
    )


def _clauses(groups: dict[int | None, list[str]], better: int) -> list[str]:
    """`significantly below the baseline for “a” (...)`, group by group, the `better` side first."""
    words = {
        1: "significantly above the baseline",
        -1: "significantly below the baseline",
        0: "not significantly different from the baseline",
    }
    clauses = [f"{words[key]} for {listed(groups[key])}" for key in (better, -better, 0) if key in groups]
    if None in groups:
        clauses.append(f"without an interval, so no conclusion, for {listed(groups[None])}")
    return clauses


def _join_clauses(clauses: Sequence[str]) -> str:
    """Clauses that contain lists themselves, joined as `a, b, and c`."""
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
