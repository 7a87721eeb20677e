"""Whether finetuning is more stable than in-context learning, and larger models more stable than smaller ones."""

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

SMALL_CHANGE = 0.02
"""A change of mean accuracy over zero-shot below this, as a share, is called small."""

MOSTLY_COLLAPSED = 0.5
"""From this share of collapsed runs on, a learner's stability comes with a caution."""


def gain_over_zero_shot(model: ModelStability, learner: str, same_runs_as: str | None = None) -> float | None:
    """Mean accuracy minus that of zero-shot, as a share; None if either is unknown.

    Args:
        model: The model's learners.
        learner: Key of the learner.
        same_runs_as: If given, only the sets and orders on which this learner was run too.
    """
    if not {"zsl", learner, same_runs_as or learner} <= set(model.learners):
        return None
    places = {(run.seed, run.order) for run in runs_with_true_labels(model.learners[same_runs_as or learner])}
    accuracies = [
        accuracy
        for run in runs_with_true_labels(model.learners[learner])
        if (run.seed, run.order) in places and (accuracy := finite(run.plain.accuracy)) is not None
    ]
    before = finite(model.learners["zsl"].plain.accuracy.mean)
    return None if before is None or not accuracies else sum(accuracies) / len(accuracies) - before


def runs_with_true_labels(learner: LearnerStability) -> list[StabilityRun]:
    """The runs over which spreads are computed."""
    return [run for run in learner.runs if run.labels == "true"]


def overall_sentences(contrasts: Sequence[Contrast]) -> list[str]:
    """One sentence on finetuning and in-context learning over several models."""
    groups: dict[str, list[str]] = {}
    for contrast in contrasts:
        if contrast.question == "ft_beside_icl" and contrast.learner == "ft" and not contrast.calibrated:
            groups.setdefault(_claim(contrast), []).append(contrast.first)
    words = {
        "more": "is more stable than in-context learning in",
        "less": "is less stable than in-context learning in",
        "level": "does not differ significantly from in-context learning in stability in",
        "unknown": "cannot be compared with in-context learning by its stability in",
    }
    clauses = [f"{words[claim]} {listed(groups[claim])}" for claim in words if claim in groups]
    return [f"Finetuning {'; it '.join(clauses)}."] if clauses else []


def _claim(contrast: Contrast) -> str:
    """Whether the first of the two is `more` or `less` stable, `level` (no significant difference) or `unknown`."""
    ends = known(contrast.ci95)
    if ends is None or finite(contrast.ratio) is None:
        return "unknown"
    return "more" if ends[1] < 1 else "less" if ends[0] > 1 else "level"


def compare_ft_with_icl(name: str, model: ModelStability, contrasts: Sequence[Contrast]) -> list[str]:
    """Whether finetuning, at each learning rate, is more stable than in-context learning in one model."""
    own = [contrast for contrast in contrasts if contrast.question == "ft_beside_icl" and contrast.first == name]
    sentences = []
    for key in learners_in_order(dict.fromkeys(contrast.learner for contrast in own)):
        plain = [contrast for contrast in own if contrast.learner == key and not contrast.calibrated]
        calibrated = [contrast for contrast in own if contrast.learner == key and contrast.calibrated]
        noun, learner = learner_style(key).noun, model.learners.get(key)
        for contrast in plain:
            sentence = _stability_sentence(key, contrast)
            sentence += _collapse_caution(noun, learner.plain if learner else None)
            if calibrated:
                sentence += f" After contextual calibration of both, {_calibrated_clause(noun, calibrated[0])}."
                sentence += _collapse_caution(noun, learner.calibrated if learner else None)
            sentences.append(sentence)
        sentences += _gain_sentences(model, key)
    if not sentences and not any(key.startswith("ft") for key in model.learners):
        return ["Finetuning was not run, so its stability is not compared with that of in-context learning."]
    return sentences or [
        "There are too few runs to compare the stability of finetuning with that of in-context learning."
    ]


def _stability_sentence(key: str, contrast: Contrast) -> str:
    noun = capital(learner_style(key).noun)
    spreads = (
        "over the same demonstration sets and orders, the standard deviation of its accuracy is "
        f"{points(contrast.sd_first)} points, that of in-context learning {points(contrast.sd_second)}"
    )
    claim = _claim(contrast)
    if claim == "unknown":
        return f"{noun} compared with in-context learning: {spreads}; no interval of their ratio, so no conclusion."
    verdict = {
        "more": "is more stable than in-context learning",
        "less": "is less stable than in-context learning",
        "level": "and in-context learning do not differ significantly in stability",
    }[claim]
    return f"{noun} {verdict}: {spreads} ({_ratio(contrast)})."


def _calibrated_clause(noun: str, contrast: Contrast) -> str:
    claim = _claim(contrast)
    verdict = {
        "more": f"{noun} is the more stable",
        "less": f"{noun} is the less stable",
        "level": "they do not differ significantly",
        "unknown": "they cannot be compared",
    }[claim]
    ratio = f" ({_ratio(contrast)})" if claim != "unknown" else ""
    return f"{verdict}: {points(contrast.sd_first)} points compared with {points(contrast.sd_second)}{ratio}"


def _ratio(contrast: Contrast) -> str:
    """`ratio 0.33, 95 % interval 0.25 to 0.45, 10 sets`."""
    interval = hundredths_interval(contrast.ci95)
    return f"ratio {hundredths(contrast.ratio)}, 95 % interval {interval}, {plural(contrast.n, 'set')}"


def _collapse_caution(noun: str, behaviour: Behaviour | None) -> str:
    """A caution if most runs give nearly all queries the same answer, which makes accuracy stable too."""
    rate = finite(behaviour.collapse_rate.mean) if behaviour is not None else None
    if rate is None or rate < MOSTLY_COLLAPSED:
        return ""
    return (
        f" But {percent(rate)} of {noun}'s runs collapse into one class, and giving every query the same answer is "
        "stable as well."
    )


def _gain_sentences(model: ModelStability, key: str) -> list[str]:
    """How much a learner changed mean accuracy, with a caution if the change is small."""
    gain = gain_over_zero_shot(model, key)
    if gain is None:
        return []
    icl = gain_over_zero_shot(model, "icl", same_runs_as=key)
    noun = capital(learner_style(key).noun)
    sentence = f"{noun} changed mean accuracy by {difference(gain)} points over zero-shot"
    sentence += f"; in-context learning, on the same sets and orders, by {difference(icl)}." if icl is not None else "."
    if abs(gain) < SMALL_CHANGE:
        sentence += f" Under {points(SMALL_CHANGE)} points, a learner may be stable only because it changes little."
    return [sentence]


def reasons_for_stability(model: ModelStability) -> list[str]:
    """Learners that may be stable only because their runs collapse or because they hardly change accuracy."""
    sentences = []
    for key in learners_in_order(each for each in model.learners if each.startswith("ft")):
        caution = _collapse_caution(learner_style(key).noun, model.learners[key].plain).removeprefix(" But ")
        sentences += [caution] if caution else []
        gain = gain_over_zero_shot(model, key)
        if gain is not None and abs(gain) < SMALL_CHANGE:
            sentences += _gain_sentences(model, key)
    return sentences


def size_sentences(result: StabilityResult) -> list[str]:
    """Whether larger models are more stable."""
    assert result.stability is not None
    models = result.stability.models
    if len(models) == 1:
        return ["Only one model was run, so there is no conclusion on stability and model size."]
    steps = [each for each in result.stability.contrasts if each.question == "size" and not each.calibrated]
    sentences = []
    for key in learners_in_order(dict.fromkeys(step.learner for step in steps)):
        own = [step for step in steps if step.learner == key]
        noun = capital(learner_style(key).noun)
        comparisons = [
            f"{_with_size(models, step.first)} compared with {_with_size(models, step.second)}: {_size_clause(step)}"
            for step in own
        ]
        sentences.append(f"{noun} by size: {'; '.join(comparisons)}.")
        if len(own) > 1:
            everywhere = {_claim(step) for step in own} == {"more"}
            sentences.append(f"{noun} is {'' if everywhere else 'not shown to be '}more stable at every step in size.")
    if not sentences:
        return ["No learner was run on two models, so there is no conclusion on stability and model size."]
    if len(models) == 2:
        sentences.append("Two sizes are not a trend, and two models differ in more than size.")
    else:
        sentences.append("Models differ in more than size, so a trend over them is not the effect of size alone.")
    return sentences


def _size_clause(contrast: Contrast) -> str:
    claim = _claim(contrast)
    verdict = {
        "more": "the larger is more stable",
        "less": "the larger is less stable",
        "level": "the two do not differ significantly",
        "unknown": "the two cannot be compared",
    }[claim]
    spreads = f"a standard deviation of {points(contrast.sd_first)} points compared with {points(contrast.sd_second)}"
    return f"{verdict}, {spreads}{f' ({_ratio(contrast)})' if claim != 'unknown' else ''}"


def _with_size(models: dict[str, ModelStability], name: str) -> str:
    """`smollm2-135m (135 million parameters)`; the name alone if the size is unknown."""
    parameters = finite(models[name].model.get("parameters")) if name in models else None
    if parameters is None:
        return name
    if parameters < 1e6:
        return f"{name} ({count(parameters)} parameters)"
    unit, size = ("billion", 1e9) if parameters >= 1e9 else ("million", 1e6)
    return f"{name} ({significant(parameters / size)} {unit} parameters)"
