"""The advice in sentences."""

from collections.abc import Sequence

from dualform.report.numerals import finite, percent
from dualform.report.palette import learner_noun
from dualform.report.phrases import capital, plural, points, share_with_interval
from dualform.studies.advice.result import Advice, AdviceResult, BreakEven, Recommendation


def headlines(result: AdviceResult) -> list[str]:
    """One sentence with the recommendation, and at most three more; empty for a result without advice.

    Returns:
        Plain text, which must be escaped for HTML.
    """
    advice = result.advice
    if advice is None or not advice.recommendations:
        return []
    sentences = [recommendation_sentence(advice), _accuracy_sentence(advice)]
    if advice.break_even is not None:
        one_draw = advice.curves[advice.break_even.training][0].spread is None
        sentences.append(break_even_sentence(advice.break_even, advice.budgets, one_draw=one_draw))
    if (sentence := regret_sentence(advice)) is not None:
        sentences.append(sentence)
    return sentences


def recommendation_sentence(advice: Advice) -> str:
    """Which learner to use from how many labels on, and which cheaper one is not significantly worse."""
    ranges = list(reversed(_ranges(advice.recommendations)))
    if len(ranges) == 1:
        parts = [f"use {learner_noun(ranges[0][0])} with {_labels(advice.budgets)}"]
    else:
        parts = [
            f"{'use ' if number == 0 else ''}{learner_noun(learner)} "
            f"{f'from {first} labels on' if number == 0 else _between(first, last)}"
            for number, (learner, first, last) in enumerate(ranges)
        ]
    last = advice.recommendations[-1]
    if last.as_good:
        # The one with the cheapest query.
        first = last.labels
        for each in reversed(advice.recommendations):
            if each.learner != last.learner or last.as_good[0] not in each.as_good:
                break
            first = each.labels
        from_there = f" from {first}" if len(advice.budgets) > 1 else ""
        parts.append(f"{learner_noun(last.as_good[0])} is not significantly worse{from_there}")
    sure = percent(last.probability, 0)
    return f"{capital('; '.join(parts))} (best in {sure} of bootstrap resamples with {plural(last.labels, 'label')})."


def _accuracy_sentence(advice: Advice) -> str:
    last = advice.recommendations[-1]
    return (
        f"{capital(learner_noun(last.learner))} reaches {share_with_interval(last.accuracy)} with {last.labels} labels."
    )


def break_even_sentence(even: BreakEven, budgets: Sequence[int], *, one_draw: bool = False) -> str:
    """From how many labels on training beats prompting.

    Args:
        even: The break-even.
        budgets: Numbers of labels, ascending.
        one_draw: Whether there is only one draw, so that no standard deviation is known.
    """
    pair = f"{learner_noun(even.training)} is at least as accurate as {learner_noun(even.prompting)}"
    if even.labels is None:
        ahead = f"{learner_noun(even.prompting)} is more accurate than {learner_noun(even.training)}"
        return f"With {plural(budgets[-1], 'label')}, {ahead}, the best learner of those that train."
    start = f"{capital(pair)} from {plural(even.labels, 'label')} on"
    if one_draw:
        return f"{start}."
    if even.labels_with_spread is None:
        return f"{start}, but at no budget does it stay ahead if both are one standard deviation over draws off."
    if even.labels_with_spread == even.labels:
        return f"{start}, also if both are one standard deviation over draws off."
    return f"{start}, and from {even.labels_with_spread} if both are one standard deviation over draws off."


def regret_sentence(advice: Advice) -> str | None:
    """What following the advice loses, compared with always using one learner; None without queries to divide."""
    advised, always = mean_regrets(advice)
    if advised is None or not always:
        return None
    best = min(always, key=lambda name: always[name])
    return (
        f"On queries that did not choose it, the advice loses {points(advised)} points of accuracy to the best learner "
        f"of each budget; always using {learner_noun(best)} would lose {points(always[best])}."
    )


def mean_regrets(advice: Advice) -> tuple[float | None, dict[str, float]]:
    """Loss of the advice and of always using one learner, means over budgets."""
    known = [each for each in advice.recommendations if finite(each.regret) is not None]
    if not known:
        return None, {}
    always = {name: sum(each.regret_of.get(name) or 0.0 for each in known) / len(known) for name in known[0].regret_of}
    return sum(each.regret or 0.0 for each in known) / len(known), always


def _ranges(recommendations: Sequence[Recommendation]) -> list[tuple[str, int, int]]:
    """Runs of budgets with one recommended learner: the learner, the first and the last budget."""
    ranges: list[tuple[str, int, int]] = []
    for each in recommendations:
        if ranges and ranges[-1][0] == each.learner:
            ranges[-1] = (each.learner, ranges[-1][1], each.labels)
        else:
            ranges.append((each.learner, each.labels, each.labels))
    return ranges


def _between(first: int, last: int) -> str:
    return f"with {plural(first, 'label')}" if first == last else f"with {first} to {last}"


def _labels(budgets: Sequence[int]) -> str:
    if len(budgets) == 1:
        return plural(budgets[0], "label")
    return f"{budgets[0]} to {budgets[-1]} labels"
