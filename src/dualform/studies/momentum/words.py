"""What a comparison of momentum attention with vanilla says in plain sentences, and no more than its intervals allow.

Two arms are distinguished only where Student's interval of their difference, seed by seed, does not hold 0.
"""

import math
from collections.abc import Sequence

from dualform.report.numerals import decimal, finite, known, percent, significant
from dualform.report.phrases import apart, difference, difference_interval, listed, plural
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
    "vanilla": "Softmax attention as it is.",
    "momentum": (
        "Softmax attention, plus a sum of each head's earlier values that decays by the factor eta a token, "
        "whatever the query: what the paper adds."
    ),
    "normalised": "That sum with weights that add up to 1 over a long past.",
    "learned": "That sum with an eta for each head, which is trained.",
    "convolution": (
        "In the sum's place a short convolution over the last few values of each head, its weights trained: local "
        "averaging, which nobody would call momentum."
    ),
    "linear": "Attention without softmax, whose dual form is plain gradient descent.",
    "linear-momentum": "Linear attention, plus the paper's sum of values.",
    "heavy-ball": "Linear attention whose dual form is gradient descent with heavy-ball momentum.",
    "nesterov": "Linear attention whose dual form is gradient descent with Nesterov's momentum.",
}
"""Kind of arm -> what it is; in the order of the page."""

TRUE_DUAL = ("heavy-ball", "nesterov")
"""Kinds with the momentum that gradient descent really has."""

DESCENTS = ("gradient descent", "heavy ball")
"""Kinds of exact predictors without momentum and with it."""

BASELINES = "its baseline's"
"""What an accuracy or an error is compared with."""

CHANCE_IN = 20
"""Of so many comparisons without a difference, one is expected to look shown at the 5 % level."""


def momentum_verdict(result: MomentumResult) -> list[str]:
    """What the study found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup; escape them before they go into a page. Empty without a momentum study.
    """
    report = result.momentum
    if report is None:
        return []
    length = full_length(report)
    sentences = [*_lead(report, length), *_lowest(report, length), *_arms(report, length)]
    sentences += averaging_sentences(report) + dual_sentences(report)
    together = [
        task_sentences(report),
        regression_sentences(report.regression) if report.regression is not None else [],
        *(pretrained_sentences(model, tried) for model, tried in by_model(report).items()),
        paper_sentences(report),
        caution_sentences(report),
    ]
    return [*sentences, *(" ".join(each) for each in together if each)]


def quoted(arms: Sequence[str]) -> str:
    """Names in quotation marks, as a list."""
    return listed([f"“{name}”" for name in arms])


def averaging_sentences(report: MomentumReport) -> list[str]:
    """Is momentum more than local averaging? Momentum compared with a convolution of the values, seed by seed."""
    length = full_length(report)
    momentum = best_momentum(report, length)
    sentences = []
    for other in report.arms:
        if other.kind != "convolution" or momentum is None:
            continue
        found = between(momentum, other, length)
        if found is None or finite(found.mean) is None:
            continue
        tried = sum(arm.kind == MOMENTUM for arm in report.arms)
        picked = f", the best of {tried} etas," if tried > 1 else ""
        question = f"Is it just local averaging? “{momentum.name}”{picked} less “{other.name}”, a short convolution"
        verdict = {
            -1: "momentum does better than averaging over a few tokens",
            1: "averaging over a few tokens does better than momentum",
            0: "the two are not distinguished",
            None: "no interval, so no conclusion",
        }[side(found)]
        if side(found) == 0 and side(difference_at(momentum, length)) == -1:
            verdict += ", so that local averaging may be all that momentum is"
        sentences.append(f"{question} of values: {_measured(found)}: {verdict}.")
    return sentences


def dual_sentences(report: MomentumReport) -> list[str]:
    """What gradient descent's own momentum does in linear attention, compared with the paper's sum of values."""
    length = full_length(report)
    duals = [arm for arm in report.arms if arm.kind in TRUE_DUAL and difference_at(arm, length) is not None]
    if not duals:
        return []
    groups: dict[int | None, list[str]] = {}
    for arm in duals:
        groups.setdefault(side(difference_at(arm, length)), []).append(arm.name)
    words = {-1: "helps as {}", 1: "does harm as {}", 0: "is not shown to change anything as {}"}
    clauses = [words[key].format(quoted(groups[key])) for key in words if key in groups]
    if None in groups:
        clauses.append(f"cannot be judged, without an interval, as {quoted(groups[None])}")
    said = f"In linear attention the momentum that gradient descent really has {_joined(clauses)}"
    summed = next((arm for arm in report.arms if arm.kind == "linear-momentum"), None)
    best = lowest_arm(duals, length)
    found = between(best, summed, length) if best is not None and summed is not None else None
    if best is None or summed is None or found is None:
        return [f"{said}."]
    verdict = {
        -1: "it does better than the paper's sum there",
        1: "the paper's sum does better there",
        0: "the two are not distinguished",
        None: "no interval, so no conclusion",
    }[side(found)]
    return [f"{said}. “{best.name}” less “{summed.name}”: {_measured(found)}: {verdict}."]


def learned_sentences(report: MomentumReport) -> list[str]:
    """Where learned decays have gone."""
    sentences = []
    for arm in report.arms:
        found = [(value, layer) for layer, each in enumerate(arm.learned_eta) if (value := finite(each)) is not None]
        if not found:
            continue
        (low, low_layer), (high, high_layer) = min(found), max(found)
        start = finite(arm.eta)
        name = f"“{arm.name}”" if start is None else f"“{arm.name}”, which began at {start:g},"
        if len(found) == 1:
            sentences.append(f"{name} has learned an eta of {decimal(low)}, mean over heads and seeds.")
        else:
            sentences.append(
                f"{name} has learned etas between {decimal(low)} (layer {low_layer}) and {decimal(high)} (layer "
                f"{high_layer}), means over heads and seeds."
            )
    return sentences


def task_sentences(report: MomentumReport) -> list[str]:
    """Who answers more tasks' queries rightly than its baseline, on average; and where all are at chance level."""
    scored = [arm for arm in report.arms if arm.tasks]
    if not scored:
        return []
    names = list(dict.fromkeys(score.task for arm in scored for score in arm.tasks))
    what = f"Mean accuracy over {len(names)} tasks" if len(names) > 1 else f"Accuracy on “{names[0]}”"
    levels = [
        f"{percent(level)} of “{name}”"
        for name in _reference_names(report)
        if (arm := arm_of(report, name)) is not None and (level := mean_accuracy(arm)) is not None
    ]
    groups: dict[int | None, list[str]] = {}
    for arm in scored:
        found = over_tasks(arm)
        if found is None or finite(found.mean) is None:
            continue
        verdict = f" ({difference(found.mean)} points, {difference_interval(found.ci95)})" if side(found) else ""
        groups.setdefault(side(found), []).append(f"“{arm.name}”{verdict}")
    clauses = _clauses(groups, better=1)
    sentences = []
    if levels or clauses:
        baseline = f", against {listed(levels)}" if levels else ""
        sentences.append(f"{what}{baseline}: {'; '.join(clauses)}." if clauses else f"{what}: {listed(levels)}.")
    return [*sentences, *_at_chance(scored, names)]


def regression_sentences(regression: MomentumRegression) -> list[str]:
    """Whose error in in-context regression is below its baseline's, by condition number; last, what it could be."""
    sentences = []
    for condition in conditions(regression):
        groups: dict[int | None, list[str]] = {}
        for curve in curves_at(regression, condition):
            found = curve.difference
            if found is None or finite(found.mean) is None:
                continue
            verdict = f" ({relative(found.mean)}, {relative_interval(found.ci95)})" if side(found) else ""
            groups.setdefault(side(found), []).append(f"“{curve.arm}”{verdict}")
        clauses = _clauses(groups, better=-1)
        if clauses:
            where = f"In-context regression, condition number {condition:g}"
            sentences.append(f"{where}: the error is {'; '.join(clauses)}.")
    return [*sentences, *_speed_up(regression)]


def pretrained_sentences(model: str, tried: Sequence[PretrainedMomentum]) -> list[str]:
    """What momentum does to a model that was trained without it, before and after a short finetune.

    Args:
        model: Its name.
        tried: The decays that it was given.
    """
    what = f"“{model}”, which was trained without"
    sentences = []
    base = next((number for each in tried if (number := finite(each.base)) is not None), None)
    found = [
        f"{perplexity_text(each.perplexity)}{_with_eta(each, ' with ')}"
        for each in tried
        if finite(each.perplexity) is not None
    ]
    if base is not None and found:
        sentences.append(
            f"Put into {what}, momentum takes its perplexity from {perplexity_text(base)} to {listed(found)}."
        )
    verdict = {-1: "better", 1: "worse", 0: "not distinguished", None: "no interval, so no conclusion"}
    tuned = [
        f"{_with_eta(each, 'with ', ' ')}{_measured(each.difference)}: {verdict[side(each.difference)]}"
        for each in tried
        if each.difference is not None and finite(each.difference.mean) is not None
    ]
    if tuned:
        whose = "After the same short finetune" if sentences else f"After the same short finetune of {what}"
        sentences.append(f"{whose}, loss with it less without: {'; '.join(tuned)}.")
    return sentences


def cost_sentence(report: MomentumReport) -> str | None:
    """How much longer a training step takes, and whether parameters were added; None where neither is known."""
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
    """The paper's difference at full length, and whether this run's interval holds it; empty without a momentum arm."""
    length = full_length(report)
    arm = best_momentum(report, length)
    if arm is None:
        return []
    vanilla, momentum = MOMENTUM_PERPLEXITY["1024"]
    published = math.log(momentum / vanilla)
    said = (
        "The paper's own models of 350M parameters, one run each and so without an interval, differ by "
        f"{nats(published)} nats a token at 1,024 tokens (perplexity {vanilla:.2f} and {momentum:.2f})"
    )
    found = difference_at(arm, length)
    ends = known(found.ci95) if found is not None else None
    if ends is None:
        return [f"{said}."]
    where = {0: "holds that", 1: "lies above that, a smaller gain or none", -1: "lies below that, a larger gain"}
    place = "lies above 0: a loss" if side(found) == 1 else where[apart(ends, (published, published)) or 0]
    said += f"; the interval of “{arm.name}” here, of another model on other text, {place}"
    if side(found) == 0 and (ends[1] - ends[0]) / 2 > abs(published):
        said += ", and is too wide to show so small a one"
    return [f"{said}."]


def caution_sentences(report: MomentumReport) -> list[str]:
    """What stands behind the p-values: how many comparisons, how many seeds, what is assumed."""
    found = [paired for arm in report.arms if (paired := difference_at(arm, full_length(report))) is not None]
    sentences = []
    if len(found) > 1:
        sentences.append(
            f"No correction is made for there being {len(found)} comparisons: where nothing differs, each still has "
            f"one chance in {CHANCE_IN} to look shown."
        )
    seeds = sorted({paired.n for paired in found if paired.n > 1})
    if seeds:
        least = f"{2 / 2 ** seeds[0]:.3g}"
        sentences.append(
            "Intervals and p are Student's, over seeds alone, and take their differences for normal; a sign-flip test, "
            f"which does not, cannot give less than {least} with {plural(seeds[0], 'seed')}."
        )
    return sentences


def _lead(report: MomentumReport, length: str | None) -> list[str]:
    """Whether the paper's momentum does better than its baseline, and with which etas."""
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
        -1: ("predicts better than", "with eta"),
        0: ("is not distinguished from", "with eta"),
        1: ("is worse than", "with eta"),
        None: ("cannot be compared with", "without an interval, with eta"),
    }
    clauses: list[str] = []
    for key, (does, how) in words.items():
        if key in groups:
            # The first clause names the baseline.
            beside = base if not clauses else "it"
            comma = "," if key is None else ""
            clauses.append(f"{does} {beside}{comma} {how} {listed(groups[key])}")
    return [f"On text of {length_name(length)} tokens, momentum attention {_joined(clauses)}."]


def _arms(report: MomentumReport, length: str | None) -> list[str]:
    """Each arm compared with its baseline."""
    sentences = []
    for arm in report.arms:
        if arm.baseline is None:
            continue
        found = difference_at(arm, length)
        if found is None:
            sentences.append(f"“{arm.name}” could not be compared with “{arm.baseline}”: a loss is missing.")
            continue
        verdict = {-1: "better", 1: "worse", 0: "not distinguished", None: "no interval, so no conclusion"}
        sentences.append(f"“{arm.name}” less “{arm.baseline}”: {_measured(found)}: {verdict[side(found)]}.")
    return sentences


def _lowest(report: MomentumReport, length: str | None) -> list[str]:
    """The arm with the lowest perplexity, whom it is distinguished from, and that it was picked."""
    found = [arm for arm in report.arms if perplexity_at(arm, length) is not None]
    best = lowest_arm(found, length)
    if best is None or len(found) < 2 or length is None:
        return []
    estimate = best.perplexity[length]
    ends = f" ({perplexity_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    said = f"Lowest of {len(found)} is the perplexity of “{best.name}”: {perplexity_text(estimate.mean)}{ends}"
    level, unsure = [], []
    for arm in found:
        if arm is best:
            continue
        paired = between(best, arm, length)
        # Arms of two baselines are not paired: there the perplexities' own intervals decide.
        place = side(paired) if paired is not None else apart(estimate.ci95, arm.perplexity[length].ci95)
        if place is None:
            unsure.append(arm.name)
        elif place != -1:
            level.append(arm.name)
    if level:
        said += f"; it is not distinguished from {quoted(level)}"
    if unsure:
        said += f"; without an interval it cannot be compared with {quoted(unsure)}"
    if not level and not unsure:
        said += "; it lies below all others"
    return [f"{said}. It was picked as the lowest on this very text, which flatters it."]


def _at_chance(scored: Sequence[MomentumArm], names: Sequence[str]) -> list[str]:
    """Tasks on which no arm is shown to do more than give the most frequent answer."""
    lost = []
    for name in names:
        scores = [score for arm in scored for score in arm.tasks if score.task == name]
        if all(at_chance(score) for score in scores):
            lost.append(name)
    if not lost:
        return []
    every = len(lost) == len(names) and len(names) > 1
    what = "On no task is any arm" if every else f"On {quoted(lost)} no arm is"
    return [
        f"{what}, with momentum or without, shown to lie above chance level, which is always to give the most frequent "
        "answer: differences there say nothing of learning in context."
    ]


def _speed_up(regression: MomentumRegression) -> list[str]:
    """How far heavy-ball momentum takes exact gradient descent: what there is to be gained."""
    clauses = []
    for condition in conditions(regression):
        by_kind = {exact_kind(name): curve for name, curve in references_at(regression, condition).items()}
        ends = [last_error(by_kind[kind]) if kind in by_kind else None for kind in DESCENTS]
        plain, heavy = (finite(each.mean) if each is not None else None for each in ends)
        if plain is not None and heavy is not None:
            clauses.append(f"from {decimal(plain)} to {decimal(heavy)} at condition number {condition:g}")
    if not clauses:
        return []
    seen = plural(max(regression.points - 1, 0), "example")
    return [
        f"For comparison, after {seen} momentum takes the error of exact gradient descent, in as many steps, "
        f"{listed(clauses)}."
    ]


def _with_eta(each: PretrainedMomentum, before: str, after: str = "") -> str:
    """`with eta 0.1` between `before` and `after`; nothing where it is not known."""
    eta = finite(each.eta)
    return "" if eta is None else f"{before}eta {eta:g}{after}"


def _reference_names(report: MomentumReport) -> list[str]:
    """Baselines, and arms without one."""
    return list(dict.fromkeys([*(arm.name for arm in report.arms if arm.baseline is None), *baselines(report)]))


def _measured(found: Paired) -> str:
    """`-0.0123 nats a token (-0.0150 to -0.0096), -1.2 % of perplexity (-1.5 to -1.0 %), 5 seeds`."""
    if known(found.ci95) is None:
        return f"{nats(found.mean)} nats a token, {relative(found.mean)} of perplexity, {plural(found.n, 'seed')}"
    return (
        f"{nats(found.mean)} nats a token ({nats_interval(found.ci95)}), {relative(found.mean)} of perplexity "
        f"({relative_interval(found.ci95)}), {plural(found.n, 'seed')}"
    )


def _clauses(groups: dict[int | None, list[str]], better: int) -> list[str]:
    """`below its baseline's for “a” (...)`, `above it for “b” (...)`: group by group, the `better` side first."""
    words = {1: "above", -1: "below", 0: "not distinguished from"}
    clauses: list[str] = []
    for key in (better, -better, 0):
        if key in groups:
            clauses.append(f"{words[key]} {'it' if clauses else BASELINES} for {listed(groups[key])}")
    if None in groups:
        clauses.append(f"not comparable, without an interval, for {listed(groups[None])}")
    return clauses


def _joined(clauses: Sequence[str]) -> str:
    """Clauses that are lists themselves: `a, b, and c`."""
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])}, and {clauses[-1]}"
