"""The verdict: what a result says in plain sentences, and no more than its intervals allow.

Two accuracies are called apart where the paired tests say so. Without tests, and for all else, two estimates are
called apart only when their 95 % intervals do not touch. That is stricter than a test of the difference, so a sentence
that says "apart" can be believed and one that says "not separated" is no proof of equality. A similarity is judged by
its place between floor and ceiling where it has one. Numbers are rounded to what their intervals support; p-values and
power are in the tables.
"""

from collections.abc import Sequence
from typing import Literal

from dualform.report.measures import control_of, controls_in_order, in_order, measure_of
from dualform.report.numerals import count, finite, known, percent, rounded, rounded_interval, scaled, significant
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    capital,
    gap_in_prose,
    in_points,
    is_few,
    listed,
    plural,
    score_in_prose,
    share,
    share_in_prose,
)
from dualform.result import FEWEST_FOR_INTERVAL, Accuracy, Calibrated, Estimate, PairedTest, Result
from dualform.studies.baseline_words import COLLAPSED_ABOVE, above_guessing, guessing_sentences, not_above_guessing
from dualform.studies.comparison.rounding_words import rounding_sentences

NEGLIGIBLE_BELOW = 0.05
"""A calibrated value whose whole interval lies below this is described as next to nothing, however sure it is."""

SMALL_BELOW = 100
"""An estimate that stands on fewer numbers than this is called small."""

LEVEL = 0.05
"""Below this a p-value, or a false discovery rate, counts."""

Generality = Literal["both", "queries", "demonstrations", "neither"]
"""What a difference holds for: other queries, other demonstrations, both or neither."""


def headlines(result: Result) -> list[str]:
    """What the run found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup. They may contain text of the task (label words), so escape them before
        they go into a page. Empty where the result holds no numbers.
    """
    sentences = _best_learner(result)
    guessing = guessing_sentences(result)
    # Where the best is no better than guessing, that comes first: all that follows depends on it.
    best = best_learners(result)
    if guessing and all(above_guessing(result, key) is not True for key in best):
        sentences = guessing + sentences
    else:
        sentences += guessing
    sentences += _icl_beside_ft(result) + _likeness(result) + _recovered(result) + _nothing_learned(result)
    judged = judged_by(result)
    sentences += rounding_sentences(result, None if judged is None else judged[0])
    sentences += _collapse(result)
    return sentences + _how_much_it_stands_on(result) if sentences else []


def overlap(first: Estimate, second: Estimate) -> bool | None:
    """Whether two 95 % intervals touch; None where either is unknown."""
    one, two = known(first.ci95), known(second.ci95)
    return None if one is None or two is None else one[0] <= two[1] and two[0] <= one[1]


def collapsed(result: Result) -> list[str]:
    """Learners whose most frequent prediction takes more than `COLLAPSED_ABOVE` of all, in the usual order."""
    shares = {key: finite(each.majority_share) for key, each in result.predictions.items()}
    return learners_in_order(key for key, share in shares.items() if share is not None and share > COLLAPSED_ABOVE)


def best_learners(result: Result) -> list[str]:
    """Keys of the learners with the highest mean accuracy: one, or several that tie; none without numbers."""
    means = _means(result)
    return [key for key, mean in means.items() if mean == max(means.values())]


def _means(result: Result) -> dict[str, float]:
    found = {key: finite(result.accuracy[key].mean) for key in learners_in_order(result.accuracy)}
    return {key: mean for key, mean in found.items() if mean is not None}


_TOO_FEW = f"Fewer than {FEWEST_FOR_INTERVAL} answers are too few to compare learners by."


def _best_learner(result: Result) -> list[str]:
    best = best_learners(result)
    if not best:
        return []
    first = result.accuracy[best[0]]
    if len(best) > 1:
        return [f"{capital(_nouns(best))} share the highest mean accuracy, {_share(first)}."]
    sentence = f"{capital(_noun(best[0]))} has the highest mean accuracy, {_share(first)}."
    others = [key for key in _means(result) if key not in best]
    if is_few(first):
        return [f"{sentence} {_TOO_FEW}"]
    touching = {key: overlap(first, result.accuracy[key]) for key in others}
    unknown = [key for key in others if touching[key] is None]
    level = [key for key in others if touching[key]]
    if not others:
        return [sentence]
    tests = {key: paired_test(result, best[0], key) for key in others}
    if others and all(tests.values()):
        return [f"{sentence} {_ahead_of(tests)}"]
    if unknown:
        return [f"{sentence} Without an interval for every learner, the run cannot say how sure that order is."]
    if level:
        return [f"{sentence} Its interval overlaps that of {_nouns(level)}: the run does not separate them."]
    return [f"{sentence} No other learner's interval reaches it."]


def _icl_beside_ft(result: Result) -> list[str]:
    if not {"icl", "ft"} <= set(_means(result)):
        return []
    icl, ft = result.accuracy["icl"], result.accuracy["ft"]
    if is_few(icl) or is_few(ft):
        return []
    gap = _means(result)["icl"] - _means(result)["ft"]
    test = paired_test(result, "icl", "ft")
    if gap == 0:
        place = "ICL and finetuning have the same mean accuracy"
    else:
        size = gap_in_prose(gap, None if test is None else test.ci95)
        place = f"ICL is {size} {'above' if gap > 0 else 'below'} finetuning"
    if test is not None:
        return [f"{place}{_weighed(test)}"]
    touching = overlap(icl, ft)
    if touching is None:
        return [f"{place}; there are no intervals to weigh that by."]
    if touching:
        return [f"{place}, and their 95 % intervals overlap: the run does not tell the two apart."]
    return [f"{place}, and their 95 % intervals do not overlap."]


def paired_test(result: Result, first: str, second: str) -> PairedTest | None:
    """The test of two learners, whichever way round it was written; None where there is none."""
    for test in result.tests:
        if (test.first, test.second) == (first, second):
            return test
        if (test.second, test.first) == (first, second):
            mean, ends = finite(test.difference), known(test.ci95)
            turned = {
                "first": first,
                "second": second,
                "difference": None if mean is None else -mean,
                "ci95": (None, None) if ends is None else (-ends[1], -ends[0]),
            }
            return test.model_copy(update=turned)
    return None


def generality(test: PairedTest) -> Generality:
    """What a difference holds for, at the level `LEVEL`.

    A test that could not be made, or of fewer than `FEWEST_FOR_INTERVAL` answers, shows nothing.
    """
    if test.n < FEWEST_FOR_INTERVAL:
        return "neither"
    queries, seeds = (number is not None and number < LEVEL for number in map(finite, (test.p_queries, test.p_seeds)))
    if queries and seeds:
        return "both"
    return "queries" if queries else "demonstrations" if seeds else "neither"


def n_seeds(result: Result) -> int:
    """Demonstration seeds that the accuracies stand on."""
    return max((len(each.per_seed) for each in result.accuracy.values()), default=0)


def least_p(result: Result) -> float | None:
    """The smallest p-value that a sign-flip test over this many seeds can give, 2 / 2**S; None below two seeds."""
    seeds = n_seeds(result)
    return 2 / 2**seeds if seeds > 1 else None


def pair_sentences(result: Result) -> list[str]:
    """Which differences between learners hold, and for what; empty without tests."""
    if not result.tests:
        return []
    # What a difference holds for -> the better learner -> those that it is ahead of.
    ahead: dict[Generality, dict[str, list[str]]] = {"both": {}, "queries": {}, "demonstrations": {}}
    level = []
    for test in result.tests:
        gap = finite(test.difference)
        if gap is None:
            continue
        high, low = (test.first, test.second) if gap >= 0 else (test.second, test.first)
        kind = generality(test)
        if kind == "neither":
            level.append(f"{_noun(test.first)} and {_noun(test.second)}")
        else:
            ahead[kind].setdefault(high, []).append(f"{_noun(low)} ({gap_in_prose(gap, test.ci95)})")
    sentences = []
    kinds: tuple[tuple[Generality, str], ...] = (
        ("both", "other queries and for other demonstrations"),
        ("queries", "other queries under these demonstrations only"),
        ("demonstrations", "other demonstrations on these queries only"),
    )
    for kind, what in kinds:
        told = [f"{_noun(key)} above {listed(ahead[kind][key])}" for key in learners_in_order(ahead[kind])]
        if told:
            sentences.append(f"Holds for {what}: {'; '.join(told)}.")
    if level:
        sentences.append(f"Not told apart: {'; '.join(level)}.")
    return sentences


def seeds_note(result: Result) -> str:
    """How far down a test over this many seeds can go, and whether that is far enough."""
    least = least_p(result)
    if least is None:
        return "Fewer than two seeds allow no test over demonstrations."
    note = f"With {plural(n_seeds(result), 'seed')} a p-value over demonstrations is never below {least:.3g}"
    if least < LEVEL:
        return f"{note}."
    return f"{note}, so no difference can be shown to hold for other demonstrations here; six seeds are the fewest."


def _ahead_of(tests: dict[str, PairedTest | None]) -> str:
    """Whom the best learner is ahead of, and for what."""
    level: dict[Generality, list[str]] = {}
    for key, test in tests.items():
        if test is not None:
            level.setdefault(generality(test), []).append(key)
    told = [
        f"{words} {_nouns(level[kind])}{rest}"
        for kind, words, rest in (
            ("both", "is ahead of", " for other queries and other demonstrations"),
            ("queries", "is ahead of", " for other queries under these demonstrations only"),
            ("demonstrations", "is ahead of", " for other demonstrations on these queries only"),
            ("neither", "does not differ significantly from", ""),
        )
        if kind in level
    ]
    return f"By paired tests it {'; it '.join(told)}."


def _weighed(test: PairedTest) -> str:
    """What a paired test says of a difference, as the end of a sentence; its p-values and power are in the table."""
    ends = in_points(test.ci95)
    interval = f" (95 % interval {rounded_interval(ends, 0, 1, sign=True)})" if ends is not None else ""
    told = {
        "both": "that holds for other queries and for other demonstrations",
        "queries": "that holds for other queries under these demonstrations, but is not shown for other demonstrations",
        "demonstrations": "that holds for other demonstrations on these queries, but is not shown for other queries",
        "neither": "the run does not tell the two apart",
    }
    return f"{interval}: {told[generality(test)]}."


_LIKENESS = (("sim_aou_raw", "raw SimAOU"), ("sim_aou", "SimAOU"))
"""Measures by which the verdict judges similarity, the better one first, as they are called in a sentence."""


def judged_by(result: Result) -> tuple[str, str] | None:
    """The measure by which similarity is judged on its scale, and its name in a sentence; None without a scale."""
    there = [(key, name) for key, name in _LIKENESS if key in result.calibrated and key in result.similarity]
    placed = [(key, name) for key, name in there if finite(result.calibrated[key].mean) is not None]
    return next(iter(placed + there), None)


def _likeness(result: Result) -> list[str]:
    """Where similarity lies between nothing learned and the same thing twice; without a scale, compared with chance."""
    judged = judged_by(result)
    if judged is None:
        return _likeness_beside_chance(result)
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


def _likeness_beside_chance(result: Result) -> list[str]:
    """Whether the two updates are more alike than each control, by the first measure that has a random one."""
    for key, name in (("sim_aou", "SimAOU"), ("sim_aou_raw", "raw SimAOU"), ("sim_am_delta", "SimAM of changes")):
        found = result.similarity.get(key)
        random = result.controls.get("random", {}).get(key)
        if found is None or random is None or finite(found.mean) is None or finite(random.mean) is None:
            continue
        numbers = f"{name} {score_in_prose(found)}, random direction {score_in_prose(random)}"
        touching = overlap(found, random)
        if touching is None:
            return [f"Similarity of the two updates: {numbers}; without intervals the two cannot be compared."]
        if touching:
            return [f"The updates by context and by finetuning are no more alike than chance allows: {numbers}."]
        if found.mean < random.mean:  # type: ignore[operator] # both are finite, above
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
    sentence = f"Of {fixed} that finetuning put right, context put right {_share(found)}"
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


def _collapse(result: Result) -> list[str]:
    sentences = []
    for key in collapsed(result):
        each = result.predictions[key]
        answer = "one label" if each.majority_label is None else f"“{each.majority_label.strip()}”"
        sentences.append(
            f"{capital(_noun(key))} has collapsed into one class: it answers {answer} to "
            f"{percent(each.majority_share)} of the queries{_true_share(result, each.majority_label)}, so its accuracy "
            "says little."
        )
    return sentences


def _nothing_learned(result: Result) -> list[str]:
    """A caution to similarity and Rec2FTP where one side is not shown to have learned the task."""
    if not {"icl", "ft"} <= set(result.accuracy) or not result.similarity:
        return []
    level = not_above_guessing(result, ("icl", "ft"))
    if not level:
        return []
    return [
        f"Since {_nouns(level)} {'is' if len(level) == 1 else 'are'} not shown to answer better than guessing, what is "
        "alike here need not be anything that was learned."
    ]


def _how_much_it_stands_on(result: Result) -> list[str]:
    sentences = []
    smallest = min((each.n for each in result.accuracy.values()), default=SMALL_BELOW)
    if smallest < SMALL_BELOW:
        sentences.append(f"Some accuracies are computed from only {smallest} answers: read them as a first look.")
    recovered = result.similarity.get("rec2ftp")
    if recovered is not None and FEWEST_FOR_INTERVAL <= recovered.n < SMALL_BELOW:
        sentences.append(f"Rec2FTP is computed from {recovered.n} of them: a small number.")
    seeds = {len(each.per_seed) for each in result.accuracy.values()}
    if seeds == {1}:
        sentences.append("There is one demonstration seed, so nothing here tells how much the draw matters.")
    return sentences


def cost_sentence(result: Result) -> str | None:
    """How ICL and finetuning compare in what a query costs; None where either cost is unknown."""
    if not {"icl", "ft"} <= set(result.cost):
        return None
    icl, ft = result.cost["icl"], result.cost["ft"]
    icl_tokens, ft_tokens = finite(icl.tokens), finite(ft.tokens)
    if not icl_tokens or not ft_tokens:
        return None
    sentence = f"With nothing shared, a prompted query reads {significant(icl_tokens / ft_tokens)} times the tokens "
    sentence += "of a finetuned one"
    icl_time, ft_time = scaled(icl.query_seconds, 1000), scaled(ft.query_seconds, 1000)
    if icl_time is not None and ft_time is not None:
        sentence += "; with the demonstrations encoded once, "
        sentence += f"a prompted query took {significant(icl_time)} ms, a finetuned one {significant(ft_time)} ms"
    return sentence + "."


def _true_share(result: Result, label: str | None) -> str:
    """How often that answer is the right one; nothing where it is not known."""
    baselines = result.baselines
    if baselines is None or label not in baselines.label_counts or not baselines.n:
        return ""
    return f" (right for {percent(baselines.label_counts[label] / baselines.n)} of them)"


def _share(estimate: Estimate | Accuracy) -> str:
    """`72 % (95 % interval 68 to 76 %)`; `3 of 4` for few answers."""
    ends = in_points(estimate.ci95)
    if is_few(estimate) or ends is None:
        return share_in_prose(estimate)
    return f"{share_in_prose(estimate, interval=False)} (95 % interval {rounded_interval(ends, 0, 1)} %)"


def _noun(learner: str) -> str:
    return learner_style(learner).noun


def _nouns(learners: Sequence[str]) -> str:
    return listed([_noun(key) for key in learners])
