"""How similar context and finetuning are, in sentences: by the place between floor and ceiling, or next to chance.

A similarity is judged by its place between floor and ceiling where it has one; without, two estimates are called apart
only where their 95 % intervals do not touch.
"""

from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import count, finite, known, rounded, rounded_interval
from dualform.report.palette import learner_nouns
from dualform.report.phrases import (
    apart,
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
"""A calibrated value whose whole interval lies below this is described as next to nothing, however sure it is."""


_JUDGED_BY = (("sim_aou_raw", "raw SimAOU"), ("sim_aou", "SimAOU"))
"""Measures by which the verdict judges similarity, the better one first, as they are called in a sentence."""


def similarity_sentences(result: Result) -> list[str]:
    """How similar the updates by context and by finetuning are, whether both put the same answers right, cautions."""
    return _on_its_scale(result) + _recovered(result) + _nothing_learned(result)


def judged_by(result: Result) -> tuple[str, str] | None:
    """The measure by which similarity is judged on its scale, and its name in a sentence; None without a scale."""
    there = [(key, name) for key, name in _JUDGED_BY if key in result.calibrated and key in result.similarity]
    placed = [(key, name) for key, name in there if finite(result.calibrated[key].mean) is not None]
    return next(iter(placed + there), None)


def _on_its_scale(result: Result) -> list[str]:
    """Where similarity lies between nothing learned and the same thing twice; without a scale, compared with chance."""
    judged = judged_by(result)
    if judged is None:
        return _next_to_chance(result)
    key, name = judged
    sentence = (
        f"Similarity of the updates by context and by finetuning: {name} {score_in_prose(result.similarity[key])}"
    )
    return [f"{sentence}{_placed(result, key)}", *_not_specific(result, key, name), *_not_learned(result, key, name)]


def _placed(result: Result, key: str) -> str:
    """A similarity on its scale, as the end of a sentence."""
    place, found = result.calibrated[key], result.similarity[key]
    floor = f"({control_of(place.control).title}, {rounded(place.floor, found.ci95)})"
    ceiling = rounded(place.ceiling, found.ci95)
    if finite(place.mean) is None:
        return f"; it has no scale, because its ceiling ({ceiling}) does not lie above its highest control {floor}."
    # Controls may have been read on fewer queries, and the scale is computed from those.
    where = ""
    if rounded(place.score, found.ci95) != rounded(found.mean, found.ci95):
        score = rounded(place.score, found.ci95)
        where = f" (over the {count(place.n)} pairs on which controls were read: {score})"
    return (
        f"{where}: on the scale from its highest control {floor} to its ceiling ({ceiling}) that is "
        f"{score_in_prose(place, most=2)}: {judgement(place)}."
    )


def judgement(place: Calibrated) -> str:
    """What the interval of a calibrated value allows to be said, as the end of a sentence."""
    ends = known(place.ci95)
    if ends is None:
        return "no interval, so no conclusion"
    low, high = ends
    if high < 0:
        return "less alike than where nothing is learned"
    if low <= 0:
        if high >= 1:
            return "the run cannot tell nothing learned from the same thing twice"
        return "not told apart from nothing learned"
    if high < NEGLIGIBLE_BELOW:
        return "above nothing learned by a sliver, and next to nothing of what the measure can show"
    if high >= 1:
        return "clearly above nothing learned, and it reaches the ceiling"
    return "clearly above nothing learned, and clearly below the ceiling"


def _not_specific(result: Result, key: str, name: str) -> list[str]:
    """Said where finetuning on other demonstrations looks as much like this context."""
    other = result.controls.get("other_demonstrations", {}).get(key)
    if other is None or not _reaches(other, result.similarity[key]):
        return []
    return [
        f"Finetuned on other demonstrations of the same task, the model scores {name} {score_in_prose(other)}, not "
        "clearly less: what similarity there is has not been shown to be specific to these demonstrations."
    ]


def _not_learned(result: Result, key: str, name: str) -> list[str]:
    """Said where a model that never learned anything scores as high."""
    other = result.controls.get("untrained", {}).get(key)
    if other is None or not _reaches(other, result.similarity[key]):
        return []
    return [
        f"The untrained model scores {name} {score_in_prose(other)}, not clearly less: as the paper's critics found "
        "(Deutch et al., arXiv:2311.07772), such a similarity comes with the architecture and is no sign of something "
        "learned."
    ]


def _reaches(control: Estimate, found: Estimate) -> bool:
    """Whether a control's interval touches that of the score, or lies above it."""
    other, own = known(control.ci95), known(found.ci95)
    return other is not None and own is not None and other[1] >= own[0]


def layers_above_floor(result: Result) -> list[str]:
    """For each measure with a test of each layer, how many lie above its floor, as `SimAOU: 12 of 30`."""
    told = []
    for key in in_order(result.similarity):
        q = [value for each in result.similarity[key].per_layer_q or [] if (value := finite(each)) is not None]
        if q and key in result.calibrated:
            floor = control_of(result.calibrated[key].control).title
            above = sum(value < LEVEL for value in q)
            told.append(f"{measure_of(key).title}: {above} of {len(q)} (floor: {floor})")
    return told


def _next_to_chance(result: Result) -> list[str]:
    """Whether the two updates are more alike than each control, by the first measure that has a random one."""
    for key, name in (("sim_aou", "SimAOU"), ("sim_aou_raw", "raw SimAOU"), ("sim_am_delta", "SimAM of changes")):
        found = result.similarity.get(key)
        random = result.controls.get("random", {}).get(key)
        if found is None or random is None or finite(found.mean) is None or finite(random.mean) is None:
            continue
        numbers = f"{name} {score_in_prose(found)}, random direction {score_in_prose(random)}"
        place = apart(found.ci95, random.ci95)
        if place is None:
            return [f"Similarity of the two updates: {numbers}; without intervals the two cannot be compared."]
        if place == 0:
            return [f"The updates by context and by finetuning are no more alike than chance allows: {numbers}."]
        if place == -1:
            return [f"The updates by context and by finetuning are less alike than chance: {numbers}."]
        return [
            f"The updates by context and by finetuning are more alike than chance: {numbers}.",
            *_matched_by_control(result, key, name),
            *_not_specific(result, key, name),
            *_not_learned(result, key, name),
        ]
    return []


def _matched_by_control(result: Result, key: str, name: str) -> list[str]:
    """A warning where a control in which nothing is learned scores as high as the real thing."""
    found = result.similarity[key]
    matched = []
    for control in controls_in_order(result.controls):
        other = result.controls[control].get(key)
        # The random direction has had its say.
        if control != "random" and control_of(control).kind == "floor" and other is not None and _reaches(other, found):
            matched.append(f"“{control_of(control).title}”, {score_in_prose(other)}")
    if not matched:
        return []
    return [
        f"But {name} does not lie clearly above its control{'s' if len(matched) > 1 else ''} {listed(matched)}: alone, "
        "it does not show that context and finetuning learn the same thing."
    ]


def _recovered(result: Result) -> list[str]:
    found = result.similarity.get("rec2ftp")
    if found is None:
        return []
    if found.n == 0 or finite(found.mean) is None:
        return [
            "Finetuning put right no answer that zero-shot had wrong, so there is nothing for context to recover and "
            "Rec2FTP has no value."
        ]
    fixed = "1 answer" if found.n == 1 else f"{count(found.n)} answers"
    if is_few(found):
        return [
            f"Of {fixed} that finetuning put right, context put right {share(found).split(' of ')[0]}: fewer than "
            f"{FEWEST_FOR_INTERVAL} such answers are too few to say whether the two correct the same ones."
        ]
    sentence = f"Of {fixed} that finetuning put right, context put right {share_with_named_interval(found)}"
    # Rec2FTP and its chance level stand on the same answers, so only the interval of their difference tells them apart.
    chance, interval = finite(found.details.get("chance")), known(found.details.get("lift_ci95") or (None, None))
    if chance is None:
        return [f"{sentence}."]
    sentence += (
        f", against {rounded(100 * chance, in_points(found.ci95), 0, 1)} % of all answers that zero-shot had wrong"
    )
    if interval is None:
        return [f"{sentence}. Without an interval the two cannot be compared."]
    lift = f"the difference is {rounded_interval(in_points(interval), 0, 1, sign=True)} points (95 %)"
    if interval[0] > 0:
        return [f"{sentence}; {lift}, above chance."]
    if interval[1] < 0:
        return [f"{sentence}; {lift}, below chance."]
    return [f"{sentence}; {lift}, so it is not clearly more than luck."]


def _nothing_learned(result: Result) -> list[str]:
    """A caution to similarity and Rec2FTP where one side is not shown to have learned the task."""
    if not {"icl", "ft"} <= set(result.accuracy) or not result.similarity:
        return []
    level = not_above_guessing(result, ("icl", "ft"))
    if not level:
        return []
    return [
        f"Since {learner_nouns(level)} {'is' if len(level) == 1 else 'are'} not shown to answer better than guessing, "
        "what is alike here need not be anything that was learned."
    ]
