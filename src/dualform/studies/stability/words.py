"""What a stability study says in plain sentences, and no more than its intervals allow.

One spread is called larger than another only where the 95 % interval of their ratio excludes 1; two numbers are called
apart only where their 95 % intervals do not touch.
"""

from collections.abc import Callable, Mapping, Sequence

from dualform.report.numerals import count, finite, known, percent, significant
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    apart,
    capital,
    difference,
    difference_interval,
    hundredths,
    hundredths_interval,
    listed,
    plural,
    points,
    points_interval,
    share_with_interval,
)
from dualform.result import (
    Behaviour,
    Contrast,
    Estimate,
    LearnerStability,
    ModelStability,
    Result,
    Spread,
    StabilityRun,
    VarianceSplit,
)
from dualform.studies.baseline_words import COLLAPSED_ABOVE, majority_answer, majority_level

MOSTLY_COLLAPSED_FROM = 0.5
"""Share of a learner's runs that collapse from which its stability is said to be worth little."""

HARDLY_MOVED_BELOW = 0.02
"""Change of mean accuracy over zero-shot below which a learner is said to have hardly moved."""


def headlines(result: Result) -> list[str]:
    """What `dualform stability` prints; the other answers are on the page, next to their charts.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup. They may contain names of models and label words, so escape them before they
        go into a page. Empty where the result holds no stability study.
    """
    answers = stability_answers(result)
    return [sentence for question in ("stable", "fair", "size", "standing") for sentence in answers.get(question, [])]


def stability_answers(result: Result) -> dict[str, list[str]]:
    """What the study found by question, the most important first; empty where the result holds no stability study.

    Questions are `stable`, `fair`, `size`, `collapse`, `variance`, `labels`, and last `standing`: how many runs there
    are.
    """
    if result.stability is None or not result.stability.models:
        return {}
    models, contrasts = result.stability.models, result.stability.contrasts
    stable = _told(models, lambda name, model: _ft_beside_icl(name, model, contrasts))
    return {
        "stable": (_overall(contrasts) if len(models) > 1 else [])
        + stable
        + _told(models, lambda _, model: _guessing(result, model)),
        "fair": _told(models, lambda _, model: _fair(model)),
        "size": _by_size(result),
        "collapse": _told(models, lambda _, model: _collapse(model)),
        "variance": _told(models, lambda _, model: _variance(model)),
        "labels": _told(models, lambda _, model: _labels(model)),
        "standing": _how_much_it_stands_on(result),
    }


def runs_with_true_labels(learner: LearnerStability) -> list[StabilityRun]:
    """The runs that spreads are made of."""
    return [run for run in learner.runs if run.labels == "true"]


def gain_over_zero_shot(model: ModelStability, learner: str, like: str | None = None) -> float | None:
    """Mean accuracy less zero-shot's, as a share.

    Args:
        model: Its learners.
        learner: Whose accuracy.
        like: Only over the sets and orders that this learner was run on too; None for all.

    Returns:
        The difference; None where either is unknown.
    """
    if not {"zsl", learner, like or learner} <= set(model.learners):
        return None
    places = {(run.seed, run.order) for run in runs_with_true_labels(model.learners[like or learner])}
    found = [
        value
        for run in runs_with_true_labels(model.learners[learner])
        if (run.seed, run.order) in places and (value := finite(run.plain.accuracy)) is not None
    ]
    before = finite(model.learners["zsl"].plain.accuracy.mean)
    return None if before is None or not found else sum(found) / len(found) - before


def variance_shares(split: VarianceSplit | None) -> dict[str, float]:
    """`set`, `order` and `residual` as shares of the total; without those that are unknown, empty without variance.

    Read them with their intervals: of few sets they are rough, and a verdict on set and order needs both intervals.
    """
    total = finite(split.total) if split is not None else None
    if split is None or not total:
        return {}
    parts = {"set": finite(split.set), "order": finite(split.order), "residual": finite(split.residual)}
    return {name: part / total for name, part in parts.items() if part is not None}


def _told(models: Mapping[str, ModelStability], tell: Callable[[str, ModelStability], list[str]]) -> list[str]:
    """What is told of each model, under its name where there are several."""
    said = [(name, sentence) for name, model in models.items() for sentence in tell(name, model)]
    return [f"{name}: {sentence}" if len(models) > 1 else sentence for name, sentence in said]


def _overall(contrasts: Sequence[Contrast]) -> list[str]:
    """The answer for several models in one sentence, before each is told on its own."""
    found = [each for each in contrasts if each.question == "ft_beside_icl" and each.learner == "ft"]
    groups: dict[str, list[str]] = {}
    for each in found:
        if not each.calibrated:
            groups.setdefault(_claim(each), []).append(each.first)
    words = {
        "more": "is more stable than in-context learning in",
        "less": "is less stable than in-context learning in",
        "level": "is not told apart from in-context learning by its stability in",
        "unknown": "cannot be compared with in-context learning by its stability in",
    }
    said = [f"{words[claim]} {listed(groups[claim])}" for claim in words if claim in groups]
    return [f"Finetuning {'; it '.join(said)}."] if said else []


def _claim(contrast: Contrast) -> str:
    """`more` stable, `less` stable, `level` or `unknown`: the first spread of a contrast beside the second."""
    ends = known(contrast.ci95)
    if ends is None or finite(contrast.ratio) is None:
        return "unknown"
    return "more" if ends[1] < 1 else "less" if ends[0] > 1 else "level"


def _ft_beside_icl(name: str, model: ModelStability, contrasts: Sequence[Contrast]) -> list[str]:
    own = [each for each in contrasts if each.question == "ft_beside_icl" and each.first == name]
    sentences = []
    for learner in learners_in_order(dict.fromkeys(each.learner for each in own)):
        plain = [each for each in own if each.learner == learner and not each.calibrated]
        calibrated = [each for each in own if each.learner == learner and each.calibrated]
        noun, found = learner_style(learner).noun, model.learners.get(learner)
        for each in plain:
            sentence = _stability_sentence(learner, each)
            sentence += _collapsed_anyway(noun, found.plain if found else None)
            if calibrated:
                sentence += f" After contextual calibration of both, {_calibrated_clause(noun, calibrated[0])}."
                sentence += _collapsed_anyway(noun, found.calibrated if found else None)
            sentences.append(sentence)
        sentences += _moved(model, learner)
    if not sentences and not any(key.startswith("ft") for key in model.learners):
        return ["Finetuning was not run, so nothing here compares its stability with that of in-context learning."]
    return sentences or [
        "The runs are too few to compare the stability of finetuning with that of in-context learning."
    ]


def _stability_sentence(learner: str, contrast: Contrast) -> str:
    noun = capital(learner_style(learner).noun)
    spreads = (
        "over the same demonstration sets and orders its accuracy has a standard deviation of "
        f"{points(contrast.sd_first)} points, in-context learning's {points(contrast.sd_second)}"
    )
    claim = _claim(contrast)
    if claim == "unknown":
        return f"{noun} beside in-context learning: {spreads}; without an interval of their ratio no order is claimed."
    place = {
        "more": "is more stable than in-context learning",
        "less": "is less stable than in-context learning",
        "level": "and in-context learning are not told apart by their stability",
    }[claim]
    return f"{noun} {place}: {spreads}; {_ratio(contrast)}."


def _calibrated_clause(noun: str, contrast: Contrast) -> str:
    words = {
        "more": f"{noun} is the more stable",
        "less": f"{noun} is the less stable",
        "level": "they are not told apart",
        "unknown": "they cannot be compared",
    }
    spreads = f"{points(contrast.sd_first)} points beside {points(contrast.sd_second)}"
    ratio = f"; {_ratio(contrast)}" if _claim(contrast) != "unknown" else ""
    return f"{words[_claim(contrast)]}: {spreads}{ratio}"


def _ratio(contrast: Contrast) -> str:
    """`ratio 0.33 (95 % interval 0.25 to 0.45, 10 sets)`."""
    interval = hundredths_interval(contrast.ci95)
    return f"ratio {hundredths(contrast.ratio)} (95 % interval {interval}, {plural(contrast.n, 'set')})"


def _collapsed_anyway(noun: str, behaviour: Behaviour | None) -> str:
    """A caution where most runs give one answer to nearly everything: such a learner is stable for free too."""
    rate = finite(behaviour.collapse_rate.mean) if behaviour is not None else None
    if rate is None or rate < MOSTLY_COLLAPSED_FROM:
        return ""
    return f" But {percent(rate)} of {noun}'s runs collapse into one class, and one answer to all is stable for free."


def _moved(model: ModelStability, learner: str) -> list[str]:
    """How much a learner changed accuracy: one that hardly moves is stable for free."""
    gain = gain_over_zero_shot(model, learner)
    if gain is None:
        return []
    noun = learner_style(learner).noun
    icl = gain_over_zero_shot(model, "icl", like=learner)
    beside = f"; in-context learning, on the same sets and orders, by {difference(icl)}" if icl is not None else ""
    sentence = f"{noun} changed mean accuracy by {difference(gain)} points over zero-shot{beside}."
    if abs(gain) < HARDLY_MOVED_BELOW:
        sentence += (
            f" That is under {points(HARDLY_MOVED_BELOW)} points: a learner that hardly moves is stable for free."
        )
    return [capital(sentence)]


def _guessing(result: Result, model: ModelStability) -> list[str]:
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


def _collapse(model: ModelStability) -> list[str]:
    sentences = []
    for key in learners_in_order(model.learners):
        learner = model.learners[key]
        if key == "zsl":
            sentences += _zero_shot_collapse(learner)
            continue
        noun = learner_style(key).noun
        before, after = learner.plain, learner.calibrated
        if finite(before.collapse_rate.mean) is None:
            continue
        sentence = f"{noun} collapses into one class in {share_with_interval(before.collapse_rate)} of its runs"
        sentence += f", its most frequent answer taking {percent(before.majority_share.mean)} of the queries on average"
        if after is not None:
            sentence += f"; after contextual calibration in {share_with_interval(after.collapse_rate)}"
            sentence += f", taking {percent(after.majority_share.mean)}"
        sentences.append(capital(f"{sentence}."))
        if key == "icl":
            sentences += _when_it_collapses(key, learner)
            sentences += [_what_calibration_does(noun, before, after)] if after is not None else []
    return sentences


def _zero_shot_collapse(learner: LearnerStability) -> list[str]:
    """Zero-shot reads no demonstrations, so it has one run that collapses or does not."""
    share = finite(learner.plain.majority_share.mean)
    if share is None or share <= COLLAPSED_ABOVE:
        return []
    after = learner.calibrated.majority_share.mean if learner.calibrated is not None else None
    sentence = f"Without demonstrations the model already gives one answer to {percent(share)} of the queries"
    return [f"{sentence}{f', after calibration to {percent(after)}' if finite(after) is not None else ''}."]


def _when_it_collapses(key: str, learner: LearnerStability) -> list[str]:
    """Whether the set decides or the order, into which label, and what it costs."""
    runs = runs_with_true_labels(learner)
    fallen = [run for run in runs if _fallen(run)]
    if not fallen:
        return []
    by_set: dict[int, list[bool]] = {}
    for run in runs:
        by_set.setdefault(run.seed, []).append(_fallen(run))
    always = sum(all(each) for each in by_set.values())
    sometimes = sum(any(each) and not all(each) for each in by_set.values())
    clauses = []
    if max(map(len, by_set.values())) > 1:
        never = len(by_set) - always - sometimes
        clauses.append(
            f"of {plural(len(by_set), 'set')} {always} {'does' if always == 1 else 'do'} so in every order, "
            f"{sometimes} in some and {never} in none"
        )
    labels = [run.plain.majority_label for run in fallen if run.plain.majority_label is not None]
    if labels:
        top = max(dict.fromkeys(labels), key=labels.count)
        clauses.append(f"the one answer is “{top.strip()}” in {labels.count(top)} of {plural(len(labels), 'such run')}")
    standing = [run for run in runs if not _fallen(run)]
    if standing:
        clauses.append(f"such runs are right on {_mean(fallen)} of the queries, the others on {_mean(standing)}")
    return [f"When {learner_style(key).noun} collapses: {'; '.join(clauses)}."] if clauses else []


def _fallen(run: StabilityRun) -> bool:
    share = finite(run.plain.majority_share)
    return share is not None and share > COLLAPSED_ABOVE


def _mean(runs: Sequence[StabilityRun]) -> str:
    found = [value for run in runs if (value := finite(run.plain.accuracy)) is not None]
    return percent(sum(found) / len(found)) if found else percent(None)


def _what_calibration_does(noun: str, before: Behaviour, after: Behaviour) -> str:
    one, two = before.accuracy, after.accuracy
    sentence = f"Contextual calibration takes {noun}'s mean accuracy from {percent(one.mean)} to {percent(two.mean)}"
    if finite(one.sd) is None or finite(two.sd) is None:
        return f"{sentence}."
    sentence += f" and its standard deviation from {_sd(one)} to {_sd(two)} points"
    verdicts = {
        1: "less spread than before",
        -1: "more spread than before",
        0: "the intervals of the two deviations overlap, so no change of spread is claimed",
        None: "without intervals no change of spread is claimed",
    }
    return f"{sentence}: {verdicts[apart(one.sd_ci95, two.sd_ci95)]}."


def _sd(spread: Spread) -> str:
    interval = f" ({points_interval(spread.sd_ci95)})" if known(spread.sd_ci95) else ""
    return points(spread.sd) + interval


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
    """Whether a learner's accuracy hangs on the labels shown being true."""
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
            said.append(f"with {listed(level)} ones it is not told apart from that with true ones")
        if not said:
            said.append("without intervals no dependence on the labels is claimed")
        sentences.append(f"{capital(noun)}'s accuracy is {listed(numbers)}: {'; '.join(said)}.")
    return sentences


def _effect(difference: Estimate | None) -> int | None:
    """1 above zero, -1 below, 0 not told apart from it; None without an interval."""
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


def _by_size(result: Result) -> list[str]:
    assert result.stability is not None
    models = result.stability.models
    if len(models) == 1:
        return ["One model was run, so nothing here says whether instability shrinks with size."]
    steps = [each for each in result.stability.contrasts if each.question == "size" and not each.calibrated]
    sentences = []
    for learner in learners_in_order(dict.fromkeys(each.learner for each in steps)):
        own = [each for each in steps if each.learner == learner]
        noun = capital(learner_style(learner).noun)
        told = "; ".join(
            f"{_named(models, each.first)} beside {_named(models, each.second)}: {_step(each)}" for each in own
        )
        sentences.append(f"{noun} by size: {told}.")
        if len(own) > 1:
            claims = {_claim(each) for each in own}
            if claims == {"more"}:
                sentences.append(f"{noun} is more stable at every step in size.")
            else:
                sentences.append(f"{noun} is not shown to be more stable at every step in size.")
    if not sentences:
        return ["No two models were run alike, so nothing here says whether instability shrinks with size."]
    if len(models) == 2:
        sentences.append("Two sizes are not a trend, and two models differ in more than size.")
    else:
        sentences.append("Models differ in more than size, so a trend over them is not the effect of size alone.")
    return sentences


def _step(contrast: Contrast) -> str:
    spreads = f"a standard deviation of {points(contrast.sd_first)} points beside {points(contrast.sd_second)}"
    words = {
        "more": "the larger is more stable",
        "less": "the larger is less stable",
        "level": "the two are not told apart",
        "unknown": "the two cannot be compared",
    }
    ratio = f", {_ratio(contrast)}" if _claim(contrast) != "unknown" else ""
    return f"{words[_claim(contrast)]}, {spreads}{ratio}"


def _named(models: dict[str, ModelStability], name: str) -> str:
    """`smollm2-135m (135,000,000 parameters)`, in words short enough for a sentence."""
    parameters = finite(models[name].model.get("parameters")) if name in models else None
    if parameters is None:
        return name
    if parameters < 1e6:
        return f"{name} ({count(parameters)} parameters)"
    unit, size = ("billion", 1e9) if parameters >= 1e9 else ("million", 1e6)
    return f"{name} ({significant(parameters / size)} {unit} parameters)"


def _how_much_it_stands_on(result: Result) -> list[str]:
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
