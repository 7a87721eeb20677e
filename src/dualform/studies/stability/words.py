"""The findings of a stability study in sentences.

One spread is called larger than another only if the 95 % interval of their ratio excludes 1. Two other numbers are
called different only if their 95 % intervals do not overlap.
"""

from collections.abc import Callable, Mapping, Sequence

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    capital,
    compare_intervals,
    difference,
    difference_interval,
    leading_sentences,
    listed,
    plural,
    share_with_interval,
)
from dualform.result import Estimate
from dualform.studies.baseline_words import majority_answer, majority_level
from dualform.studies.stability.collapse_words import collapse_sentences
from dualform.studies.stability.contrast_words import (
    compare_ft_with_icl,
    overall_sentences,
    reasons_for_stability,
    runs_with_true_labels,
    size_sentences,
)
from dualform.studies.stability.result import LearnerStability, ModelStability, StabilityResult, VarianceSplit


def headlines(result: StabilityResult) -> list[str]:
    """At most four sentences: stability, the effect of choosing the set, and size.

    Args:
        result: Any result; missing parts are skipped.

    Returns:
        Plain text, which must be escaped for HTML because it may contain model names and label words. Empty if the
        result holds no stability study.
    """
    if result.stability is None or not result.stability.models:
        return []
    models, contrasts = result.stability.models, result.stability.contrasts
    stable = stability_answers(result)["stable"]
    lead = overall_sentences(contrasts)[:1] if len(models) > 1 else []
    fair = _per_model(models, lambda _, model: _fair_headline(model))
    size = size_sentences(result) if len(models) > 1 else []
    return leading_sentences(lead or stable[:1], *([sentence] for sentence in (*fair, *size, *stable[1:])))


def notes(result: StabilityResult) -> list[str]:
    """Cautions about the findings, and how many runs they are based on."""
    if result.stability is None or not result.stability.models:
        return []
    models = result.stability.models
    size = size_sentences(result)
    return [
        *_per_model(models, lambda _, model: _guessing(result, model)),
        *_per_model(models, lambda _, model: reasons_for_stability(model)),
        # A caution about the number of models comes last.
        *size[-1:],
        *_basis(result),
    ]


def stability_answers(result: StabilityResult) -> dict[str, list[str]]:
    """The findings by question, the most important first; empty if the result holds no stability study.

    The questions are `stable`, `fair`, `size`, `collapse`, `variance` and `labels`; `basis` says how many runs the
    findings are based on.
    """
    if result.stability is None or not result.stability.models:
        return {}
    models, contrasts = result.stability.models, result.stability.contrasts
    stable = _per_model(models, lambda name, model: compare_ft_with_icl(name, model, contrasts))
    return {
        "stable": (overall_sentences(contrasts) if len(models) > 1 else [])
        + stable
        + _per_model(models, lambda _, model: _guessing(result, model)),
        "fair": _per_model(models, lambda _, model: _fair(model)),
        "size": size_sentences(result),
        "collapse": _per_model(models, lambda _, model: collapse_sentences(model)),
        "variance": _per_model(models, lambda _, model: _variance(model)),
        "labels": _per_model(models, lambda _, model: _labels(model)),
        "basis": _basis(result),
    }


def variance_shares(split: VarianceSplit | None) -> dict[str, float]:
    """`set`, `order` and `residual` as shares of the total variance; unknown ones are left out.

    They are imprecise for few sets: use the intervals to compare set with order. Empty if the total is 0 or unknown.
    """
    total = finite(split.total) if split is not None else None
    if split is None or not total:
        return {}
    parts = {"set": finite(split.set), "order": finite(split.order), "residual": finite(split.residual)}
    return {name: part / total for name, part in parts.items() if part is not None}


def _per_model(models: Mapping[str, ModelStability], describe: Callable[[str, ModelStability], list[str]]) -> list[str]:
    """Sentences about each model, preceded by its name if there are several."""
    sentences = [(name, sentence) for name, model in models.items() for sentence in describe(name, model)]
    return [f"{name}: {sentence}" if len(models) > 1 else sentence for name, sentence in sentences]


def _guessing(result: StabilityResult, model: ModelStability) -> list[str]:
    """Learners whose mean accuracy is not significantly above that of always giving the most common label."""
    nouns = []
    for key in learners_in_order(model.learners):
        over = model.learners[key].plain.over_majority
        ends = None if over is None else known(over.ci95)
        if over is not None and (ends is None or ends[0] <= 0):
            nouns.append(learner_style(key).noun)
    if not nouns:
        return []
    return [
        f"{capital(listed(nouns))} {'is' if len(nouns) == 1 else 'are'} not significantly more accurate on average "
        f"than {majority_answer(result)}, the most common label ({percent(majority_level(result))}), so stable "
        "accuracy here is no sign of learning."
    ]


def _variance(model: ModelStability) -> list[str]:
    sentences = []
    for key in learners_in_order(model.learners):
        split = model.learners[key].plain.variance
        if split is None:
            continue
        noun, shares = learner_style(key).noun, variance_shares(split)
        if finite(split.total) == 0:
            sentences.append(f"{capital(noun)}'s accuracy did not vary over sets and orders.")
            continue
        if "set" not in shares or "residual" not in shares:
            continue
        sentence = f"Variance of {noun}'s accuracy: {percent(shares['set'], 0)} comes from the set"
        queries = f" and {percent(shares['residual'], 0)} from the limited number of queries"
        if "order" not in shares:
            sentences.append(f"{sentence}{queries}; with one order per set, set and order cannot be separated.")
            continue
        verdict = {
            1: "the set matters more than the order",
            -1: "the order matters more than the set",
            0: "the shares of set and order do not differ significantly",
            None: "no intervals, so no conclusion on set and order",
        }[compare_intervals(split.set_ci95, split.order_ci95)]
        sentences.append(f"{sentence}, {percent(shares['order'], 0)} from its order{queries}; {verdict}.")
    return sentences


def _labels(model: ModelStability) -> list[str]:
    """Whether a learner's accuracy depends on the demonstrations' labels being true."""
    sentences = []
    for key in learners_in_order(model.learners):
        learner = model.learners[key]
        others = [rule for rule in learner.labels if rule != "true"]
        if "true" not in learner.labels or not others:
            continue
        accuracies = [f"{share_with_interval(learner.labels[rule])} with {rule} labels" for rule in ("true", *others)]
        signs = {rule: _sign(learner.label_effects.get(rule)) for rule in others}
        lower = [rule for rule in others if signs[rule] == -1]
        higher = [rule for rule in others if signs[rule] == 1]
        equal = [rule for rule in others if signs[rule] == 0]
        clauses = []
        if lower:
            clauses.append(f"it is lower with {_effects(learner, lower)}, so it depends on the demonstrations' labels")
        if higher:
            clauses.append(f"it is higher with {_effects(learner, higher)}")
        if equal:
            clauses.append(f"with {listed(equal)} ones it does not differ significantly from that with true ones")
        if not clauses:
            clauses.append("no intervals, so no conclusion on the labels")
        noun = capital(learner_style(key).noun)
        sentences.append(f"{noun}'s accuracy is {listed(accuracies)}: {'; '.join(clauses)}.")
    return sentences


def _sign(difference: Estimate | None) -> int | None:
    """1 if the interval lies above zero, -1 if below, 0 if it contains zero; None without an interval."""
    ends = None if difference is None else known(difference.ci95)
    return None if ends is None else (ends[0] > 0) - (ends[1] < 0)


def _effects(learner: LearnerStability, rules: Sequence[str]) -> str:
    """`flipped ones (95 % interval of the difference -18.0 to -11.5 points)`."""
    intervals = [f"{difference_interval(learner.label_effects[rule].ci95)} points" for rule in rules]
    return f"{listed(rules)} ones (95 % interval of the difference {listed(intervals)})"


def _fair_headline(model: ModelStability) -> list[str]:
    """ICL minus FT on other queries, if the set is chosen by ICL's accuracy on half of them, in one sentence."""
    chosen = next((gap for gap in model.fairness if gap.select == "icl"), None)
    if chosen is None or finite(chosen.gap_untouched.mean) is None:
        return []
    return [
        "If the set is chosen by in-context learning's accuracy on half of the queries, in-context learning minus "
        f"finetuning is {difference(chosen.gap_untouched.mean)} points on the other half (95 % interval "
        f"{difference_interval(chosen.gap_untouched.ci95)})."
    ]


def _fair(model: ModelStability) -> list[str]:
    """How ICL minus FT changes if the set is chosen by ICL's accuracy, as in the paper."""
    by_selector = {gap.select: gap for gap in model.fairness}
    if not {"none", "icl"} <= by_selector.keys():
        return []
    overall, chosen = by_selector["none"].gap_chosen_on, by_selector["icl"]
    gaps = [finite(gap.mean) for gap in (overall, chosen.gap_chosen_on, chosen.gap_untouched)]
    if any(gap is None for gap in gaps):
        return []
    average, selecting, other = (100 * gap for gap in gaps if gap is not None)
    interval = difference_interval(chosen.gap_untouched.ci95)
    sentence = (
        f"In-context learning minus finetuning is {average:+.1f} points over all {plural(overall.n, 'set')}. If the "
        f"set is chosen by in-context learning's accuracy on half of the queries, it is {selecting:+.1f} on that half "
        f"and {other:+.1f} (95 % interval {interval}) on the other: the queries that chose the set bias the "
        f"accuracy of in-context learning upwards by {selecting - other:.1f} points."
    )
    if "both" in by_selector:
        both = by_selector["both"].gap_untouched
        interval = difference_interval(both.ci95)
        sentence += (
            f" If the set is chosen by the mean of both, it is {difference(both.mean)} (95 % interval {interval}) on "
            "the other half."
        )
    return [sentence]


def _basis(result: StabilityResult) -> list[str]:
    """How many sets, orders and queries the findings are based on."""
    assert result.stability is not None
    n = finite(result.task.get("n_report"))
    queries = f", each on {plural(int(n), 'query', 'queries')}" if n is not None else ""
    learners: dict[str, list[str]] = {}
    for model in result.stability.models.values():
        for key in learners_in_order(model.learners):
            runs = runs_with_true_labels(model.learners[key])
            if key == "zsl" or not runs:
                continue
            sets, orders = len({run.seed for run in runs}), len({run.order for run in runs})
            nouns = learners.setdefault(f"{plural(sets, 'set')} in {plural(orders, 'order')}", [])
            if learner_style(key).noun not in nouns:
                nouns.append(learner_style(key).noun)
    if not learners:
        return []
    return [f"Based on {'; '.join(f'{runs} for {listed(nouns)}' for runs, nouns in learners.items())}{queries}."]
