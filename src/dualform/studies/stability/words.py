"""What a stability study says in plain sentences, and no more than its intervals allow.

One spread is called larger than another only where the 95 % interval of their ratio excludes 1; two numbers are called
apart only where their 95 % intervals do not touch.
"""

from collections.abc import Callable, Mapping, Sequence

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    apart,
    capital,
    difference,
    difference_interval,
    listed,
    plural,
    share_with_interval,
)
from dualform.result import Estimate
from dualform.studies.baseline_words import majority_answer, majority_level
from dualform.studies.stability.collapse_words import collapse_sentences
from dualform.studies.stability.contrast_words import (
    ft_next_to_icl,
    overall_sentences,
    runs_with_true_labels,
    size_sentences,
)
from dualform.studies.stability.result import LearnerStability, ModelStability, StabilityResult, VarianceSplit


def headlines(result: StabilityResult) -> list[str]:
    """What `dualform stability` prints; the other answers are on the page, next to their charts.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup. They may contain names of models and label words, so escape them before they
        go into a page. Empty where the result holds no stability study.
    """
    answers = stability_answers(result)
    return [sentence for question in ("stable", "fair", "size", "standing") for sentence in answers.get(question, [])]


def stability_answers(result: StabilityResult) -> dict[str, list[str]]:
    """What the study found by question, the most important first; empty where the result holds no stability study.

    Questions are `stable`, `fair`, `size`, `collapse`, `variance`, `labels`, and last `standing`: how many runs there
    are.
    """
    if result.stability is None or not result.stability.models:
        return {}
    models, contrasts = result.stability.models, result.stability.contrasts
    stable = _of_each_model(models, lambda name, model: ft_next_to_icl(name, model, contrasts))
    return {
        "stable": (overall_sentences(contrasts) if len(models) > 1 else [])
        + stable
        + _of_each_model(models, lambda _, model: _guessing(result, model)),
        "fair": _of_each_model(models, lambda _, model: _fair(model)),
        "size": size_sentences(result),
        "collapse": _of_each_model(models, lambda _, model: collapse_sentences(model)),
        "variance": _of_each_model(models, lambda _, model: _variance(model)),
        "labels": _of_each_model(models, lambda _, model: _labels(model)),
        "standing": _based_on(result),
    }


def variance_shares(split: VarianceSplit | None) -> dict[str, float]:
    """`set`, `order` and `residual` as shares of the total; without those that are unknown, empty without variance.

    Read them with their intervals: of few sets they are rough, and a verdict on set and order needs both intervals.
    """
    total = finite(split.total) if split is not None else None
    if split is None or not total:
        return {}
    parts = {"set": finite(split.set), "order": finite(split.order), "residual": finite(split.residual)}
    return {name: part / total for name, part in parts.items() if part is not None}


def _of_each_model(models: Mapping[str, ModelStability], tell: Callable[[str, ModelStability], list[str]]) -> list[str]:
    """Sentences on each model, under its name where there are several."""
    said = [(name, sentence) for name, model in models.items() for sentence in tell(name, model)]
    return [f"{name}: {sentence}" if len(models) > 1 else sentence for name, sentence in said]


def _guessing(result: StabilityResult, model: ModelStability) -> list[str]:
    """Learners whose mean accuracy is not shown to lie above that of always giving the commonest label."""
    level = []
    for key in learners_in_order(model.learners):
        over = model.learners[key].plain.over_majority
        ends = None if over is None else known(over.ci95)
        if over is not None and (ends is None or ends[0] <= 0):
            level.append(learner_style(key).noun)
    if not level:
        return []
    return [
        f"Mean accuracy is not shown to lie above that of {majority_answer(result)}, the commonest label "
        f"({percent(majority_level(result))}), for {listed(level)}: what has not been shown to learn anything is "
        "stable for free."
    ]


def _variance(model: ModelStability) -> list[str]:
    sentences = []
    for key in learners_in_order(model.learners):
        split = model.learners[key].plain.variance
        if split is None:
            continue
        noun, shares = learner_style(key).noun, variance_shares(split)
        if finite(split.total) == 0:
            sentences.append(
                f"{capital(noun)}'s accuracy did not vary over sets and orders beyond what queries explain."
            )
            continue
        if "set" not in shares or "residual" not in shares:
            continue
        sentence = f"Of the variance of {noun}'s accuracy, {percent(shares['set'], 0)} comes from the set"
        if "order" not in shares:
            sentence += f" and {percent(shares['residual'], 0)} is what more queries would average away"
            sentences.append(f"{sentence}; with one order of each set, set and order are one.")
            continue
        sentence += f", {percent(shares['order'], 0)} from its order, and {percent(shares['residual'], 0)} is what "
        sentence += "more queries would average away"
        verdicts = {
            1: "the set matters more than the order",
            -1: "the order matters more than the set",
            0: "the intervals of set and order overlap, so the run does not say which of the two matters more",
            None: "without intervals the run does not say which of the two matters more",
        }
        sentences.append(f"{sentence}; {verdicts[apart(split.set_ci95, split.order_ci95)]}.")
    return sentences


def _labels(model: ModelStability) -> list[str]:
    """Whether a learner's accuracy depends on the labels shown being true."""
    sentences = []
    for key in learners_in_order(model.learners):
        labels = model.learners[key].labels
        others = [rule for rule in labels if rule != "true"]
        if "true" not in labels or not others:
            continue
        noun = learner_style(key).noun
        numbers = [f"{share_with_interval(labels[rule])} with {rule} labels" for rule in ("true", *others)]
        places = {rule: _effect(model.learners[key].label_effects.get(rule)) for rule in others}
        below = [rule for rule in others if places[rule] == -1]
        above = [rule for rule in others if places[rule] == 1]
        level = [rule for rule in others if places[rule] == 0]
        said = []
        if below:
            said.append(f"it is lower with {_effects(model.learners[key], below)}, so it depends on the labels shown")
        if above:
            said.append(f"it is higher with {_effects(model.learners[key], above)}")
        if level:
            said.append(f"with {listed(level)} ones it is not distinguished from that with true ones")
        if not said:
            said.append("without intervals no dependence on the labels is claimed")
        sentences.append(f"{capital(noun)}'s accuracy is {listed(numbers)}: {'; '.join(said)}.")
    return sentences


def _effect(difference: Estimate | None) -> int | None:
    """1 above zero, -1 below, 0 not distinguished from it; None without an interval."""
    ends = None if difference is None else known(difference.ci95)
    return None if ends is None else (ends[0] > 0) - (ends[1] < 0)


def _effects(learner: LearnerStability, rules: Sequence[str]) -> str:
    """`flipped ones (-18.0 to -11.5 points)`."""
    told = [f"{difference_interval(learner.label_effects[rule].ci95)} points" for rule in rules]
    return f"{listed(rules)} ones ({listed(told)}, 95 %)"


def _fair(model: ModelStability) -> list[str]:
    """What choosing the set for ICL, as the paper does, makes of ICL's lead over FT."""
    found = {each.select: each for each in model.fairness}
    if not {"none", "icl"} <= found.keys():
        return []
    fair, chosen = found["none"].gap_chosen_on, found["icl"]
    gaps = [finite(each.mean) for each in (fair, chosen.gap_chosen_on, chosen.gap_untouched)]
    if any(gap is None for gap in gaps):
        return []
    average, here, there = (100 * gap for gap in gaps if gap is not None)
    there_interval = difference_interval(chosen.gap_untouched.ci95)
    sentence = (
        f"Over all {plural(fair.n, 'set')} in-context learning's lead over finetuning is {average:+.1f} points. With "
        f"the set chosen for in-context learning on half of the queries it is {here:+.1f} on that half and "
        f"{there:+.1f} (95 % interval {there_interval}) on the other: reporting the queries that chose the set "
        f"flatters in-context learning by {here - there:.1f} points."
    )
    if "both" in found:
        both = found["both"].gap_untouched
        interval = difference_interval(both.ci95)
        sentence += (
            f" With the set chosen for both alike it is {difference(both.mean)} (95 % interval {interval}) elsewhere."
        )
    return [sentence]


def _based_on(result: StabilityResult) -> list[str]:
    assert result.stability is not None
    n = finite(result.task.get("n_report"))
    queries = f", on {plural(int(n), 'query', 'queries')} each" if n is not None else ""
    runs: dict[str, list[str]] = {}
    for model in result.stability.models.values():
        for key in learners_in_order(model.learners):
            found = runs_with_true_labels(model.learners[key])
            if key == "zsl" or not found:
                continue
            sets, orders = len({run.seed for run in found}), len({run.order for run in found})
            text = f"{plural(sets, 'set')} in {plural(orders, 'order')}"
            nouns = runs.setdefault(text, [])
            if learner_style(key).noun not in nouns:
                nouns.append(learner_style(key).noun)
    if not runs:
        return []
    told = "; ".join(f"{text} for {listed(nouns)}" for text, nouns in runs.items())
    return [f"This stands on {told}{queries}."]
