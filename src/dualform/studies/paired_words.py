"""What paired tests of two learners say: which differences hold, and for what."""

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
"""Below this a p-value, or a false discovery rate, counts."""


Generality = Literal["both", "queries", "demonstrations", "neither"]
"""What a difference holds for: other queries, other demonstrations, both or neither."""


HOLDS_FOR = {
    "both": "for other queries and other demonstrations",
    "queries": "for other queries under these demonstrations only",
    "demonstrations": "for other demonstrations on these queries only",
}
"""What a difference holds for, as the end of a sentence."""


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
        told = [f"{learner_noun(key)} above {listed(ahead[kind][key])}" for key in learners_in_order(ahead[kind])]
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


def ahead_of(tests: dict[str, PairedTest | None]) -> str:
    """Whom the best learner is ahead of, and for what."""
    level: dict[Generality, list[str]] = {}
    for key, test in tests.items():
        if test is not None:
            level.setdefault(generality(test), []).append(key)
    told = [
        f"{words} {learner_nouns(level[kind])}{rest}"
        for kind, words, rest in (
            *((kind, "is ahead of", f" {what}") for kind, what in HOLDS_FOR.items()),
            ("neither", "does not differ significantly from", ""),
        )
        if kind in level
    ]
    return f"By paired tests it {'; it '.join(told)}."


def describe_test(test: PairedTest) -> str:
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
