"""Sentences on paired tests of two learners: which differences are significant, and what they generalise to."""

from typing import Literal

from dualform.report.numerals import finite, known, rounded_interval
from dualform.report.palette import learner_noun, learner_nouns, learners_in_order
from dualform.report.phrases import (
    gap_in_prose,
    in_points,
    listed,
    plural,
)
from dualform.result import FEWEST_FOR_INTERVAL, PairedTest, Result

LEVEL = 0.05
"""Significance level of p-values and false discovery rates."""


Generality = Literal["both", "queries", "demonstrations", "neither"]
"""What a difference generalises to: other queries, other demonstrations, both or neither."""


HOLDS_FOR = {
    "both": "for other queries and other demonstrations",
    "queries": "for other queries under these demonstrations only",
    "demonstrations": "for other demonstrations on these queries only",
}
"""What a significant difference generalises to, as the end of a sentence."""


def paired_test(result: Result, first: str, second: str) -> PairedTest | None:
    """The test of two learners, in whichever order the result holds them; None where they were not tested."""
    for test in result.tests:
        if (test.first, test.second) == (first, second):
            return test
        if (test.second, test.first) == (first, second):
            mean, ends = finite(test.difference), known(test.ci95)
            swapped = {
                "first": first,
                "second": second,
                "difference": None if mean is None else -mean,
                "ci95": (None, None) if ends is None else (-ends[1], -ends[0]),
            }
            return test.model_copy(update=swapped)
    return None


def generality(test: PairedTest) -> Generality:
    """What a difference generalises to, at the significance level `LEVEL`.

    A test that could not be computed, or with fewer than `FEWEST_FOR_INTERVAL` answers, counts as not significant.
    """
    if test.n < FEWEST_FOR_INTERVAL:
        return "neither"
    queries, seeds = (number is not None and number < LEVEL for number in map(finite, (test.p_queries, test.p_seeds)))
    if queries and seeds:
        return "both"
    return "queries" if queries else "demonstrations" if seeds else "neither"


def n_seeds(result: Result) -> int:
    """Number of demonstration seeds behind the accuracies."""
    return max((len(each.per_seed) for each in result.accuracy.values()), default=0)


def least_p(result: Result) -> float | None:
    """The smallest p-value that a sign-flip test over this many seeds can give, 2 / 2**S; None below two seeds."""
    seeds = n_seeds(result)
    return 2 / 2**seeds if seeds > 1 else None


def pair_sentences(result: Result) -> list[str]:
    """Which differences between learners are significant, and what they generalise to; empty without tests."""
    if not result.tests:
        return []
    # What the difference generalises to -> the better learner -> the worse ones.
    ahead: dict[Generality, dict[str, list[str]]] = {"both": {}, "queries": {}, "demonstrations": {}}
    level = []
    for test in result.tests:
        gap = finite(test.difference)
        if gap is None:
            continue
        high, low = (test.first, test.second) if gap >= 0 else (test.second, test.first)
        kind = generality(test)
        if kind == "neither":
            level.append(f"{learner_noun(test.first)} and {learner_noun(test.second)}")
        else:
            ahead[kind].setdefault(high, []).append(f"{learner_noun(low)} ({gap_in_prose(gap, test.ci95)})")
    sentences = []
    kinds: tuple[tuple[Generality, str], ...] = (
        ("both", "other queries and for other demonstrations"),
        ("queries", "other queries under these demonstrations only"),
        ("demonstrations", "other demonstrations on these queries only"),
    )
    for kind, what in kinds:
        pairs = [f"{learner_noun(key)} above {listed(ahead[kind][key])}" for key in learners_in_order(ahead[kind])]
        if pairs:
            sentences.append(f"Significant for {what}: {'; '.join(pairs)}.")
    if level:
        sentences.append(f"Not significantly different: {'; '.join(level)}.")
    return sentences


def seeds_note(result: Result) -> str:
    """The smallest p-value that this many seeds allow, and whether it can be significant."""
    least = least_p(result)
    if least is None:
        return "Fewer than two seeds allow no test over demonstrations."
    note = f"With {plural(n_seeds(result), 'seed')} a p-value over demonstrations is at least {least:.3g}"
    if least < LEVEL:
        return f"{note}."
    return f"{note}, so no difference can be significant for other demonstrations; that takes at least six seeds."


def ahead_of(tests: dict[str, PairedTest | None]) -> str:
    """Than which learners the best one is significantly more accurate, and what that generalises to."""
    level: dict[Generality, list[str]] = {}
    for key, test in tests.items():
        if test is not None:
            level.setdefault(generality(test), []).append(key)
    clauses = [
        f"{words} {learner_nouns(level[kind])}{rest}"
        for kind, words, rest in (
            *((kind, "is ahead of", f" {what}") for kind, what in HOLDS_FOR.items()),
            ("neither", "does not differ significantly from", ""),
        )
        if kind in level
    ]
    return f"By paired tests it {'; it '.join(clauses)}."


def describe_test(test: PairedTest) -> str:
    """The interval and the verdict of a paired test, as the end of a sentence; p-values and power are in the table."""
    ends = in_points(test.ci95)
    interval = f" (95 % interval {rounded_interval(ends, 0, 1, sign=True)})" if ends is not None else ""
    verdicts = {
        "both": "that holds for other queries and for other demonstrations",
        "queries": "that holds for other queries under these demonstrations, but is not shown for other demonstrations",
        "demonstrations": "that holds for other demonstrations on these queries, but is not shown for other queries",
        "neither": "not a significant difference",
    }
    return f"{interval}: {verdicts[generality(test)]}."
