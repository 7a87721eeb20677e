"""When a learner collapses into one class, and what contextual calibration does about it."""

from collections.abc import Sequence

from dualform.report.numerals import finite, known, percent
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    apart,
    capital,
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
