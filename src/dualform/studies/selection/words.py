"""The findings of a selection study in sentences.

The optimism of a choice is the accuracy on the selecting queries, by which it was made, minus that on untouched
queries. A choice is said to inflate a learner's accuracy only if the 95 % interval of its optimism lies above 0.
"""

from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import count, decimal, decimal_interval, finite, known, significant
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import (
    compare_intervals,
    difference,
    difference_interval,
    is_few,
    leading_sentences,
    listed,
    plural,
)
from dualform.result import Estimate
from dualform.studies.baseline_words import guessing_sentences
from dualform.studies.selection.result import Choice, ChoiceScore, Selection, SelectionResult

EQUAL_WITHIN = 0.1
"""Two budgets are called equal if the larger exceeds the smaller by at most this share."""


def headlines(result: SelectionResult) -> list[str]:
    """At most four of the `findings`: the largest optimism, similarity, and the budgets of the searches."""
    selection = result.selection
    if selection is None or not selection.choices:
        return []
    similarity, budgets = _similarity(result), _budgets(selection.choices)
    singles = [[sentence] for sentence in (*similarity[:1], *budgets[:1], *similarity[1:])]
    return leading_sentences(guessing_sentences(result), _overall(selection.choices), *singles)


def notes(result: SelectionResult) -> list[str]:
    """The cautions among the `findings`, and the numbers of queries."""
    selection = result.selection
    if selection is None or not selection.choices:
        return []
    unchosen = (choice for choice in selection.choices if choice.select == "none")
    uneven = [sentence for choice in unchosen for sentence in _optimism(choice)]
    return [*guessing_sentences(result), *uneven, _basis(selection)]


def findings(result: SelectionResult) -> list[str]:
    """All sentences about the result, the most important first.

    Args:
        result: Any result; missing parts are skipped.

    Returns:
        Plain text, which must be escaped for HTML. Empty if the result holds no selection study.
    """
    selection = result.selection
    if selection is None or not selection.choices:
        return []
    return [
        *guessing_sentences(result),
        *_overall(selection.choices),
        *[sentence for choice in selection.choices for sentence in _optimism(choice)],
        *_budgets(selection.choices),
        *_similarity(result),
        _basis(selection),
    ]


def _basis(selection: Selection) -> str:
    """On how many queries the choices and their evaluation are based."""
    return (
        f"Based on choices by {plural(selection.n_validation, 'validation query', 'validation queries')} or "
        f"{plural(selection.n_report, 'report query', 'report queries')}, evaluated on "
        f"{plural(selection.n_untouched, 'untouched query', 'untouched queries')}."
    )


def choice_name(choice: Choice) -> str:
    """`ICL on report`: the accuracy by which the choice was made, and the selecting queries."""
    return f"{_SELECTORS.get(choice.select, choice.select)} on {choice.select_on}"


_SELECTORS = {"icl": "ICL", "ft": "FT", "both": "both", "none": "none"}


def chosen_trial(choice: Choice) -> str:
    """`seed 3, order 1, rate 0.01`."""
    return f"seed {choice.seed}, order {choice.order}, rate {choice.learning_rate:.3g}"


def _rule(choice: Choice) -> str:
    """`Choosing by in-context learning's accuracy on the report queries`."""
    accuracy = {
        "icl": "in-context learning's accuracy",
        "ft": "finetuning's accuracy",
        "both": "the mean of both accuracies",
    }
    return f"Choosing by {accuracy.get(choice.select, choice.select)} on the {choice.select_on} queries"


def _scores(choice: Choice) -> list[tuple[str, ChoiceScore]]:
    return [(key, choice.scores[key]) for key in learners_in_order(choice.scores)]


def _overall(choices: list[Choice]) -> list[str]:
    """The largest optimism that is significant, or that none is."""
    searched = [(choice, key, score) for choice in choices if choice.select != "none" for key, score in _scores(choice)]
    if not searched:
        return ["Nothing was chosen, so there is no conclusion on the optimism of a choice."]
    if not any(known(score.optimism.ci95) for _, _, score in searched):
        return ["No intervals, so no conclusion on the optimism of a choice."]
    significant_scores = [
        (choice, key, score)
        for choice, key, score in searched
        if _sign(score.optimism) == 1 and finite(score.optimism.mean) is not None
    ]
    if not significant_scores:
        return [
            "No choice significantly inflates a learner's accuracy: no interval of accuracy on the selecting queries "
            "minus accuracy on untouched queries lies above zero."
        ]
    choice, key, score = max(significant_scores, key=lambda each: finite(each[2].optimism.mean) or 0.0)
    return [
        f"{_rule(choice)} inflates the accuracy of {learner_style(key).noun} most, by {_points(score.optimism)}; "
        f"{len(significant_scores)} of {len(searched)} accuracies of chosen settings are significantly too high."
    ]


def _sign(estimate: Estimate) -> int | None:
    """1 if the interval lies above zero, -1 if below, 0 if it contains zero; None without one or for few answers."""
    if is_few(estimate):
        return None
    return compare_intervals(estimate.ci95, (0.0, 0.0))


def _optimism(choice: Choice) -> list[str]:
    """The optimism of one choice for each learner."""
    groups: dict[int | None, list[str]] = {}
    for key, score in _scores(choice):
        if finite(score.optimism.mean) is not None:
            sign, noun = _sign(score.optimism), learner_style(key).noun
            points = f"by {_points(score.optimism)}" if sign in (1, -1) else f"({_points_in_brackets(score.optimism)})"
            groups.setdefault(sign, []).append(f"{noun} {points}")
    if not groups:
        return []
    if choice.select == "none":
        differing = groups.get(1, []) + groups.get(-1, [])
        if not differing:
            return []
        return [
            f"Even without a choice, accuracy differs between the two sets of queries for {listed(differing)}: they "
            "are not equally hard, and every optimism includes that difference."
        ]
    words = {
        1: "inflates {} of {}",
        -1: "deflates {} of {}",
        0: "does not significantly inflate {} of {}",
        None: "allows no conclusion, without an interval, on {} of {}",
    }
    clauses: list[str] = []
    for sign in words:
        if sign in groups:
            clauses.append(words[sign].format("that" if clauses else "the accuracy", listed(groups[sign])))
    return [f"{_rule(choice)} {', and '.join(clauses)}.{_uneven(choice)}"]


def _uneven(choice: Choice) -> str:
    """Whether the choice inflates the accuracy of one learner more than that of the other."""
    if not {"icl", "ft"} <= set(choice.scores):
        return ""
    order = compare_intervals(choice.scores["icl"].optimism.ci95, choice.scores["ft"].optimism.ci95)
    if not order:
        return ""
    more, less = ("icl", "ft") if order == 1 else ("ft", "icl")
    return f" It favours {learner_style(more).noun} over {learner_style(less).noun}: the two intervals do not overlap."


def _points(estimate: Estimate) -> str:
    """`+5.2 points (+1.0 to +9.3)`."""
    interval = f" ({difference_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    return f"{difference(estimate.mean)} points{interval}"


def _points_in_brackets(estimate: Estimate) -> str:
    """The same for use in brackets: `+5.2 points, +1.0 to +9.3`."""
    interval = f", {difference_interval(estimate.ci95)}" if known(estimate.ci95) else ""
    return f"{difference(estimate.mean)} points{interval}"


def _budgets(choices: list[Choice]) -> list[str]:
    """The tokens read to search for ICL's and FT's settings; choices with equal searches are reported together."""
    names: dict[str, list[str]] = {}
    for choice in choices:
        if not {"icl", "ft"} <= set(choice.scores) or choice.select == "none":
            continue
        icl, ft = choice.scores["icl"], choice.scores["ft"]
        icl_tokens, ft_tokens = finite(icl.tokens), finite(ft.tokens)
        if icl_tokens is None or ft_tokens is None:
            clause = "the number of tokens read by the search is unknown, so the budgets cannot be compared"
        else:
            clause = (
                f"the search read {count(icl_tokens)} tokens for in-context learning ({plural(icl.trials, 'trial')}) "
                f"and {count(ft_tokens)} for finetuning ({plural(ft.trials, 'trial')}): "
                f"{_compare_budgets(icl_tokens, ft_tokens)}"
            )
        names.setdefault(clause, []).append(choice_name(choice))
    if len(names) == 1:
        return [f"With every choice, {clause}." for clause in names]
    return [f"With {listed(choices_named)}, {clause}." for clause, choices_named in names.items()]


def _compare_budgets(icl: float, ft: float) -> str:
    if max(icl, ft) == 0:
        return "neither was searched"
    if min(icl, ft) == 0:
        return f"the budgets were unequal, since {'finetuning' if ft == 0 else 'in-context learning'} was not searched"
    ratio = max(icl, ft) / min(icl, ft)
    if ratio <= 1 + EQUAL_WITHIN:
        return f"equal budgets, within {100 * EQUAL_WITHIN:.0f} %"
    larger = "in-context learning" if icl > ft else "finetuning"
    return f"the budgets were unequal, {significant(ratio)} times as many tokens for {larger}"


def _similarity(result: SelectionResult) -> list[str]:
    """Whether the similarity of ICL and FT depends on the choice.

    The highest minus the lowest score is never negative, so its interval cannot show this. The intervals of the two
    scores are compared instead.
    """
    assert result.selection is not None
    choices = result.selection.choices
    if len(choices) < 2:
        return []
    if len({(choice.seed, choice.order, choice.learning_rate) for choice in choices}) == 1:
        return [f"Every choice is the same ({chosen_trial(choices[0])}), so similarity cannot depend on it."]
    sentences = []
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        scores = [(choice, choice.similarity[key]) for choice in choices if key in choice.similarity]
        scores = [(choice, score) for choice, score in scores if finite(score.mean) is not None]
        if len(scores) < 2:
            continue
        lowest = min(scores, key=lambda each: finite(each[1].mean) or 0.0)
        highest = max(scores, key=lambda each: finite(each[1].mean) or 0.0)
        if lowest[1].mean == highest[1].mean:
            sentences.append(f"{measure_of(key).title} is {decimal(lowest[1].mean)} with every choice.")
            continue
        sentence = f"{measure_of(key).title} lies between {_score(lowest)} and {_score(highest)}"
        score_range = result.selection.similarity_range.get(key)
        if score_range is not None and finite(score_range.mean) is not None:
            interval = f" ({decimal_interval(score_range.ci95)})" if known(score_range.ci95) else ""
            sentence += f", a range of {decimal(score_range.mean)}{interval}"
        order = compare_intervals(highest[1].ci95, lowest[1].ci95)
        verdict = {
            1: "their intervals do not overlap, so it depends on the choice",
            0: "their intervals overlap, so it does not differ significantly between choices",
            None: "no intervals, so no conclusion",
        }[None if order is None else max(order, 0)]
        sentences.append(f"{sentence}; {verdict}.")
    return sentences


def _score(scored: tuple[Choice, Estimate]) -> str:
    """`0.102 (0.080 to 0.124; FT on report)`."""
    choice, score = scored
    interval = f"{decimal_interval(score.ci95)}; " if known(score.ci95) else ""
    return f"{decimal(score.mean)} ({interval}{choice_name(choice)})"
