"""Sentences on how similar ICL and finetuning are.

A similarity is judged by its position between floor and ceiling if it was calibrated. Otherwise it is compared with the
random direction and called different from it only if their 95 % intervals do not overlap.
"""

from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import count, finite, known, rounded, rounded_interval
from dualform.report.palette import learner_nouns
from dualform.report.phrases import (
    capital,
    compare_intervals,
    in_points,
    is_few,
    listed,
    score_in_prose,
    share,
    share_with_named_interval,
)
from dualform.result import FEWEST_FOR_INTERVAL, Calibrated, Estimate, Result
from dualform.studies.baseline_words import not_above_guessing
from dualform.studies.paired_words import LEVEL

NEGLIGIBLE_BELOW = 0.05
"""A calibrated value whose whole interval lies below this is called negligible, even if significant."""


_VERDICT_MEASURES = (("sim_aou_raw", "raw SimAOU"), ("sim_aou", "SimAOU"))
"""Measures by which the verdict judges similarity, preferred one first, with their names in a sentence."""


def similarity_sentences(result: Result) -> list[str]:
    """Sentences on the similarity of the updates by ICL and by finetuning, on Rec2FTP, and their caveats."""
    return _update_similarity(result) + _recovered(result) + _guessing_caveat(result)


def similarity_headline(result: Result) -> list[str]:
    """The similarity of the updates by ICL and by finetuning in one sentence; empty if it was not measured."""
    judged = judged_by(result)
    if judged is None:
        return _compared_with_chance(result)[:1]
    key, name = judged
    place = result.calibrated[key]
    updates = "Similarity of the updates by ICL and by finetuning"
    if finite(place.mean) is None:
        return [f"{updates}, {name}: no scale, because the ceiling is not above the floor."]
    return [f"{updates}, {name} from 0 (floor) to 1 (ceiling): {score_in_prose(place, most=2)}, {judgement(place)}."]


def similarity_caveats(result: Result) -> list[str]:
    """The `similarity_sentences` that limit what the headline says."""
    judged = judged_by(result)
    if judged is None:
        return _compared_with_chance(result)[1:] + _guessing_caveat(result)
    return _not_specific(result, *judged) + _untrained(result, *judged) + _guessing_caveat(result)


def judged_by(result: Result) -> tuple[str, str] | None:
    """The measure by which the verdict judges similarity, with its name; None if no measure was calibrated."""
    calibrated = [
        (key, name) for key, name in _VERDICT_MEASURES if key in result.calibrated and key in result.similarity
    ]
    with_value = [(key, name) for key, name in calibrated if finite(result.calibrated[key].mean) is not None]
    return next(iter(with_value + calibrated), None)


def _update_similarity(result: Result) -> list[str]:
    """Where similarity lies between floor and ceiling, or whether it is above chance if no measure was calibrated."""
    judged = judged_by(result)
    if judged is None:
        return _compared_with_chance(result)
    key, name = judged
    score = f"Similarity of the updates by ICL and by finetuning: {name} {score_in_prose(result.similarity[key])}"
    return [
        f"{score}{_describe_position(result, key)}",
        *_not_specific(result, key, name),
        *_untrained(result, key, name),
    ]


def _describe_position(result: Result, key: str) -> str:
    """Where a similarity lies on its scale, as the end of a sentence."""
    calibrated, similarity = result.calibrated[key], result.similarity[key]
    floor = f"({control_of(calibrated.control).title}, {rounded(calibrated.floor, similarity.ci95)})"
    ceiling = rounded(calibrated.ceiling, similarity.ci95)
    if finite(calibrated.mean) is None:
        return f"; it has no scale, because its ceiling ({ceiling}) is not above its floor {floor}."
    # Controls may have been read on fewer queries, and the scale is computed from those.
    on_controls = ""
    score = rounded(calibrated.score, similarity.ci95)
    if score != rounded(similarity.mean, similarity.ci95):
        on_controls = f", or {score} over the {count(calibrated.n)} (seed, query) pairs on which controls were read"
    return (
        f"{on_controls}. On the scale from its floor {floor} to its ceiling ({ceiling}) that is "
        f"{score_in_prose(calibrated, most=2)}: {judgement(calibrated)}."
    )


def judgement(calibrated: Calibrated) -> str:
    """What can be concluded from the interval of a calibrated value, as the end of a sentence."""
    ends = known(calibrated.ci95)
    if ends is None:
        return "no interval, so no conclusion"
    low, high = ends
    if high < 0:
        return "significantly below the floor"
    if low <= 0:
        if high >= 1:
            return "inconclusive, because the interval includes both floor and ceiling"
        return "not significantly above the floor"
    if high < NEGLIGIBLE_BELOW:
        return "significantly above the floor, but negligible"
    if high >= 1:
        return "significantly above the floor and not significantly below the ceiling"
    return "significantly above the floor and significantly below the ceiling"


def _not_specific(result: Result, key: str, name: str) -> list[str]:
    """A caveat if finetuning on other demonstrations is as similar to ICL on these."""
    other = result.controls.get("other_demonstrations", {}).get(key)
    if other is None or not _overlaps_or_exceeds(other, result.similarity[key]):
        return []
    return [
        f"Finetuning on other demonstrations of the same task scores {name} {score_in_prose(other)}, which is not "
        "significantly lower: the similarity may not be specific to these demonstrations."
    ]


def _untrained(result: Result, key: str, name: str) -> list[str]:
    """A caveat if a model with random weights scores as high."""
    other = result.controls.get("untrained", {}).get(key)
    if other is None or not _overlaps_or_exceeds(other, result.similarity[key]):
        return []
    return [
        f"The untrained model scores {name} {score_in_prose(other)}, which is not significantly lower: the similarity "
        "may come from the architecture and not from learning (Deutch et al., arXiv:2311.07772)."
    ]


def _overlaps_or_exceeds(control: Estimate, score: Estimate) -> bool:
    """Whether a control's interval overlaps that of the score, or lies above it."""
    other, own = known(control.ci95), known(score.ci95)
    return other is not None and own is not None and other[1] >= own[0]


def layers_above_floor(result: Result) -> list[str]:
    """For each measure tested layer by layer, how many layers lie above its floor, as `SimAOU: 12 of 30`."""
    counts = []
    for key in in_order(result.similarity):
        q = [value for each in result.similarity[key].per_layer_q or [] if (value := finite(each)) is not None]
        if q and key in result.calibrated:
            floor = control_of(result.calibrated[key].control).title
            above = sum(value < LEVEL for value in q)
            counts.append(f"{measure_of(key).title}: {above} of {len(q)} (floor: {floor})")
    return counts


def _compared_with_chance(result: Result) -> list[str]:
    """Whether the updates are more similar than chance, by the first measure with a random direction to compare."""
    for key, name in (("sim_aou", "SimAOU"), ("sim_aou_raw", "raw SimAOU"), ("sim_am_delta", "SimAM of changes")):
        score = result.similarity.get(key)
        random = result.controls.get("random", {}).get(key)
        if score is None or random is None or finite(score.mean) is None or finite(random.mean) is None:
            continue
        numbers = f"{name} {score_in_prose(score)}, random direction {score_in_prose(random)}"
        order = compare_intervals(score.ci95, random.ci95)
        if order is None:
            return [f"Similarity of the two updates: {numbers}; without intervals there is no conclusion."]
        if order == 0:
            return [f"The updates by ICL and by finetuning are not significantly more similar than chance: {numbers}."]
        if order == -1:
            return [f"The updates by ICL and by finetuning are less similar than chance: {numbers}."]
        return [
            f"The updates by ICL and by finetuning are more similar than chance: {numbers}.",
            *_matched_by_control(result, key, name),
            *_not_specific(result, key, name),
        ]
    return []


def _matched_by_control(result: Result, key: str, name: str) -> list[str]:
    """A caveat if a floor other than the random direction scores as high."""
    matched = []
    for control in controls_in_order(result.controls):
        other = result.controls[control].get(key)
        is_other_floor = control != "random" and control_of(control).kind == "floor"
        if is_other_floor and other is not None and _overlaps_or_exceeds(other, result.similarity[key]):
            matched.append(f"“{control_of(control).title}”, {score_in_prose(other)}")
    if not matched:
        return []
    return [
        f"The interval of {name} overlaps or lies below that of the control"
        f"{'s' if len(matched) > 1 else ''} {listed(matched)}: by itself it does not "
        "show that ICL and finetuning learn the same thing."
    ]


def _recovered(result: Result) -> list[str]:
    """Rec2FTP: how many of the answers that finetuning corrected ICL corrects too, compared with chance."""
    recovered = result.similarity.get("rec2ftp")
    if recovered is None:
        return []
    if recovered.n == 0 or finite(recovered.mean) is None:
        return ["Finetuning corrected none of zero-shot's wrong answers, so Rec2FTP is undefined."]
    corrected = "the 1 answer" if recovered.n == 1 else f"the {count(recovered.n)} answers"
    if is_few(recovered):
        return [
            f"Of {corrected} that finetuning corrected, ICL corrected {share(recovered).split(' of ')[0]}. Fewer than "
            f"{FEWEST_FOR_INTERVAL} answers are too few for a conclusion."
        ]
    sentence = f"Of {corrected} that finetuning corrected, ICL corrected {share_with_named_interval(recovered)}"
    # Both shares are computed from the same answers, so their difference has an interval of its own.
    chance = finite(recovered.details.get("chance"))
    interval = known(recovered.details.get("lift_ci95") or (None, None))
    if chance is None:
        return [f"{sentence}."]
    sentence += (
        f", compared with {rounded(100 * chance, in_points(recovered.ci95), 0, 1)} % of all answers that zero-shot had "
        "wrong"
    )
    if interval is None:
        return [f"{sentence}; without an interval of the difference there is no conclusion."]
    order = "above" if interval[0] > 0 else "below" if interval[1] < 0 else "not significantly above"
    ends = rounded_interval(in_points(interval), 0, 1, sign=True)
    return [f"{sentence}: {order} chance (95 % interval of the difference {ends} points)."]


def _guessing_caveat(result: Result) -> list[str]:
    """A caveat if ICL or finetuning may not have learned the task at all."""
    if not {"icl", "ft"} <= set(result.accuracy) or not result.similarity:
        return []
    guessing = not_above_guessing(result, ("icl", "ft"))
    if not guessing:
        return []
    return [
        f"{capital(learner_nouns(guessing))} {'is' if len(guessing) == 1 else 'are'} not significantly better than "
        "guessing, so the similarity may not come from learning the task."
    ]
