"""The page's two leading sentences: which learner to use, and whether context acts like finetuning."""

from dualform.report.measures import in_order
from dualform.report.numerals import finite, known
from dualform.report.palette import learner_noun, learner_nouns, learners_in_order
from dualform.report.phrases import gap_in_prose, is_few, listed, score_in_prose, share_in_prose
from dualform.result import Result
from dualform.studies.against_words import compare_accuracy, not_beaten
from dualform.studies.baseline_words import above_guessing, guessing_phrase, majority_level
from dualform.studies.comparison.similarity_words import judged_by, judgement
from dualform.studies.comparison.words import findings
from dualform.studies.fold import words as fold_words
from dualform.studies.paired_words import HOLDS_FOR, generality, paired_test

MOST_MEASURES = 5
"""Most measures in the first chart of similarity."""

PREFERRED = (
    "sim_aou_raw",
    "sim_aou",
    "sim_am_delta",
    "sim_am_centred",
    "kendall",
    "direct_update",
    "agreement",
    "rec2ftp",
)
"""Measures to put into that chart, the most informative first."""


def which_to_use(result: Result) -> str:
    """One sentence that recommends a learner and states the evidence; empty without accuracies.

    Recommended is the learner with the fewest operations a query, among those that are better than guessing and that no
    other learner is shown to beat.

    Args:
        result: Any result; for one written by `dualform fold`, the sentence is about the fold.
    """
    folded = fold_words.findings(result)
    if folded:
        return folded[0]
    keys = [key for key in learners_in_order(result.accuracy) if finite(result.accuracy[key].mean) is not None]
    if not keys:
        return next(iter(findings(result)), "")
    if any(is_few(result.accuracy[key]) for key in keys):
        return f"Too few answers for a recommendation: {_shares(result, keys)} are correct."
    if majority_level(result) == 1.0:
        return "No recommendation: every reported query has the same right answer."
    if all(above_guessing(result, key) is False for key in keys):
        none = "no learner is" if len(keys) > 1 else f"{learner_noun(keys[0])} is not"
        return f"No recommendation: {none} significantly better than {guessing_phrase(result)}."
    if len(keys) == 1:
        return (
            f"Only {learner_noun(keys[0])} was run: it answers {share_in_prose(result.accuracy[keys[0]])} of the "
            "queries correctly."
        )
    unbeaten = not_beaten(result, keys)
    # A noisy learner may be unbeaten and still be guessing.
    candidates = [key for key in unbeaten if above_guessing(result, key) is not False] or unbeaten
    best = _cheapest(result, candidates)
    rest = [key for key in candidates if key != best]
    accuracy = f"it answers {share_in_prose(result.accuracy[best])} of the queries correctly"
    if not rest:
        return f"Use {_use(best)}: {accuracy}, {_lead(result, best, keys)}."
    level = _shares(result, rest)
    if any(compare_accuracy(result, best, other) is None for other in keys if other != best):
        return f"Use {_use(best)}, with unknown confidence because intervals are missing: {accuracy}, next to {level}."
    why = "its queries cost the fewest operations" if best in result.cost else "it comes first"
    behind = [key for key in keys if key not in unbeaten]
    others = f"; {_behind(result, best, behind)}" if behind else ""
    return f"Use {_use(best)}: {accuracy}, not significantly different from {level}, and of these {why}{others}."


def acts_alike(result: Result) -> str:
    """One sentence on how similar the updates by ICL and by finetuning are; empty if similarity was not measured."""
    judged = judged_by(result)
    if judged is None:
        return ""
    key, name = judged
    place = result.calibrated[key]
    if finite(place.mean) is None:
        return f"Inconclusive: the ceiling of {name} is not above its floor."
    return (
        f"{_short_answer(place.ci95)}: the updates of the attention output by context and by finetuning have a "
        f"similarity of {score_in_prose(place, most=2)} by {name}, on a scale from 0 (floor: nothing learned) to 1 "
        f"(ceiling: the same learner twice): {judgement(place)}."
    )


def first_measures(result: Result) -> list[str]:
    """The measures of the first chart of similarity: at most five, each with a place between floor and ceiling."""
    placed = [
        key
        for key in in_order(result.calibrated)
        if key in result.similarity and finite(result.calibrated[key].mean) is not None
    ]
    ranked = sorted(placed, key=lambda key: PREFERRED.index(key) if key in PREFERRED else len(PREFERRED))
    return in_order(ranked[:MOST_MEASURES])


def _short_answer(interval: object) -> str:
    ends = known(interval)
    if ends is None:
        return "Inconclusive"
    low, high = ends
    if high < 0:
        return "No"
    if low <= 0:
        return "Inconclusive" if high >= 1 else "Not shown"
    return "Yes, as far as it can be measured" if high >= 1 else "In part" if high >= 0.05 else "Hardly"


def _cheapest(result: Result, keys: list[str]) -> str:
    """The learner with the fewest operations a query; without costs, the most accurate one."""

    def cost_then_accuracy(key: str) -> tuple[float, float]:
        flops = finite(result.cost[key].flops) if key in result.cost else None
        return (float("inf") if flops is None else flops, -(finite(result.accuracy[key].mean) or 0.0))

    return min(keys, key=cost_then_accuracy)


def _lead(result: Result, best: str, keys: list[str]) -> str:
    """By how much the recommended learner is ahead of the next, and what that holds for."""
    others = [key for key in keys if key != best]
    closest = max(others, key=lambda key: finite(result.accuracy[key].mean) or 0.0)
    if compare_accuracy(result, best, closest) != 1:
        return f"and the others are not significantly better than {guessing_phrase(result)}"
    tests = [paired_test(result, best, key) for key in others]
    next_best = paired_test(result, best, closest)
    gap = (finite(result.accuracy[best].mean) or 0.0) - (finite(result.accuracy[closest].mean) or 0.0)
    size = gap_in_prose(gap, None if next_best is None else next_best.ci95)
    if next_best is None or any(test is None for test in tests):
        return f"{size} more than the next, {learner_noun(closest)}; their 95 % intervals do not overlap"
    holds = HOLDS_FOR.get(generality(next_best), "")
    return f"{size} more than the next, {learner_noun(closest)}; by paired tests that holds {holds}"


def _behind(result: Result, best: str, keys: list[str]) -> str:
    """Which learners are less accurate, and what that holds for."""
    tests = [paired_test(result, best, key) for key in keys]
    kinds = {generality(test) for test in tests if test is not None}
    # Claim only what holds for all of them; some may be beaten by a learner other than the recommended one.
    weakest = next((kind for kind in ("queries", "demonstrations", "both") if kind in kinds), None)
    holds = f", which holds {HOLDS_FOR[weakest]}" if weakest and "neither" not in kinds and None not in tests else ""
    return f"{learner_nouns(keys)} {'is' if len(keys) == 1 else 'are'} less accurate{holds}"


def _use(key: str) -> str:
    return "the model as it is, zero-shot" if key == "zsl" else learner_noun(key)


def _shares(result: Result, keys: list[str]) -> str:
    return listed([f"{learner_noun(key)} ({share_in_prose(result.accuracy[key], interval=False)})" for key in keys])
