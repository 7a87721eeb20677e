"""How often a learner gives nearly all queries one answer, and how contextual calibration changes that."""

from collections.abc import Sequence

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    capital,
    compare_intervals,
    plural,
    points,
    points_interval,
    share_with_interval,
)
from dualform.studies.baseline_words import COLLAPSED_ABOVE
from dualform.studies.stability.contrast_words import runs_with_true_labels
from dualform.studies.stability.result import Behaviour, LearnerStability, ModelStability, Spread, StabilityRun


def collapse_sentences(model: ModelStability) -> list[str]:
    """How often each learner's runs collapse into one class, before and after contextual calibration."""
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
        sentence += f"; its most frequent answer takes {percent(before.majority_share.mean)} of the queries on average"
        if after is not None:
            sentence += f"; after contextual calibration in {share_with_interval(after.collapse_rate)}"
            sentence += f", with {percent(after.majority_share.mean)}"
        sentences.append(capital(f"{sentence}."))
        if key == "icl":
            sentences += _collapsed_runs(key, learner)
            sentences += [_effect_of_calibration(noun, before, after)] if after is not None else []
    return sentences


def _zero_shot_collapse(learner: LearnerStability) -> list[str]:
    """Zero-shot uses no demonstrations, so it has a single run."""
    share = finite(learner.plain.majority_share.mean)
    if share is None or share <= COLLAPSED_ABOVE:
        return []
    after = learner.calibrated.majority_share.mean if learner.calibrated is not None else None
    sentence = f"Without demonstrations the model already gives {percent(share)} of the queries the same answer"
    return [f"{sentence}{f'; after calibration, {percent(after)}' if finite(after) is not None else ''}."]


def _collapsed_runs(key: str, learner: LearnerStability) -> list[str]:
    """In how many sets the order matters, which answer the collapsed runs give, and their accuracy."""
    runs = runs_with_true_labels(learner)
    collapsed = [run for run in runs if _is_collapsed(run)]
    if not collapsed:
        return []
    by_set: dict[int, list[bool]] = {}
    for run in runs:
        by_set.setdefault(run.seed, []).append(_is_collapsed(run))
    always = sum(all(orders) for orders in by_set.values())
    sometimes = sum(any(orders) and not all(orders) for orders in by_set.values())
    clauses = []
    if max(map(len, by_set.values())) > 1:
        never = len(by_set) - always - sometimes
        clauses.append(
            f"of {plural(len(by_set), 'set')}, {always} {'does' if always == 1 else 'do'} so in every order, "
            f"{sometimes} in some and {never} in none"
        )
    labels = [run.plain.majority_label for run in collapsed if run.plain.majority_label is not None]
    if labels:
        top = max(dict.fromkeys(labels), key=labels.count)
        clauses.append(f"the answer is “{top.strip()}” in {labels.count(top)} of {plural(len(labels), 'such run')}")
    others = [run for run in runs if not _is_collapsed(run)]
    if others:
        clauses.append(f"mean accuracy is then {_mean_accuracy(collapsed)}, otherwise {_mean_accuracy(others)}")
    return [f"When {learner_style(key).noun} collapses: {'; '.join(clauses)}."] if clauses else []


def _is_collapsed(run: StabilityRun) -> bool:
    share = finite(run.plain.majority_share)
    return share is not None and share > COLLAPSED_ABOVE


def _mean_accuracy(runs: Sequence[StabilityRun]) -> str:
    accuracies = [accuracy for run in runs if (accuracy := finite(run.plain.accuracy)) is not None]
    return percent(sum(accuracies) / len(accuracies)) if accuracies else percent(None)


def _effect_of_calibration(noun: str, before: Behaviour, after: Behaviour) -> str:
    old, new = before.accuracy, after.accuracy
    sentence = f"Contextual calibration changes {noun}'s mean accuracy from {percent(old.mean)} to {percent(new.mean)}"
    if finite(old.sd) is None or finite(new.sd) is None:
        return f"{sentence}."
    sentence += f" and its standard deviation from {_sd(old)} to {_sd(new)} points"
    verdict = {
        1: "less spread than before",
        -1: "more spread than before",
        0: "the spread does not change significantly",
        None: "no intervals, so no conclusion on the spread",
    }[compare_intervals(old.sd_ci95, new.sd_ci95)]
    return f"{sentence}: {verdict}."


def _sd(spread: Spread) -> str:
    interval = f" ({points_interval(spread.sd_ci95)})" if known(spread.sd_ci95) else ""
    return points(spread.sd) + interval
