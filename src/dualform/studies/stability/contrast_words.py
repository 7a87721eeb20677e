"""Who is more stable: spreads of accuracy compared between learners, and between models of different size."""

from collections.abc import Sequence

from dualform.report.numerals import count, finite, known, percent, significant
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    capital,
    difference,
    hundredths,
    hundredths_interval,
    listed,
    plural,
    points,
)
from dualform.studies.stability.result import (
    Behaviour,
    Contrast,
    LearnerStability,
    ModelStability,
    StabilityResult,
    StabilityRun,
)

HARDLY_MOVED_BELOW = 0.02
"""Change of mean accuracy over zero-shot below which a learner is said to have hardly moved."""


MOSTLY_COLLAPSED_FROM = 0.5
"""Share of a learner's runs that collapse from which its stability is said to be worth little."""


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


def runs_with_true_labels(learner: LearnerStability) -> list[StabilityRun]:
    """The runs that spreads are made of."""
    return [run for run in learner.runs if run.labels == "true"]


def overall_sentences(contrasts: Sequence[Contrast]) -> list[str]:
    """The answer for several models in one sentence, before each is told on its own."""
    found = [each for each in contrasts if each.question == "ft_beside_icl" and each.learner == "ft"]
    groups: dict[str, list[str]] = {}
    for each in found:
        if not each.calibrated:
            groups.setdefault(_claim(each), []).append(each.first)
    words = {
        "more": "is more stable than in-context learning in",
        "less": "is less stable than in-context learning in",
        "level": "does not differ significantly from in-context learning in stability in",
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


def ft_next_to_icl(name: str, model: ModelStability, contrasts: Sequence[Contrast]) -> list[str]:
    """Whether finetuning, at each of its rates, is more stable than in-context learning in one model."""
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
        return (
            f"{noun} compared with in-context learning: {spreads}; without an interval of their ratio no order is "
            "claimed."
        )
    place = {
        "more": "is more stable than in-context learning",
        "less": "is less stable than in-context learning",
        "level": "and in-context learning do not differ significantly in stability",
    }[claim]
    return f"{noun} {place}: {spreads}; {_ratio(contrast)}."


def _calibrated_clause(noun: str, contrast: Contrast) -> str:
    words = {
        "more": f"{noun} is the more stable",
        "less": f"{noun} is the less stable",
        "level": "they do not differ significantly",
        "unknown": "they cannot be compared",
    }
    spreads = f"{points(contrast.sd_first)} points compared with {points(contrast.sd_second)}"
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


def size_sentences(result: StabilityResult) -> list[str]:
    """Whether larger models are more stable."""
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
            f"{_named(models, each.first)} compared with {_named(models, each.second)}: {_step(each)}" for each in own
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
    spreads = f"a standard deviation of {points(contrast.sd_first)} points compared with {points(contrast.sd_second)}"
    words = {
        "more": "the larger is more stable",
        "less": "the larger is less stable",
        "level": "the two do not differ significantly",
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
