"""What a selection study says in plain sentences, and no more than its intervals allow.

A choice is said to flatter a learner only where the 95 % interval of its optimism (accuracy on the queries that it was
chosen on, less accuracy on queries that nothing was chosen on) lies above 0.
"""

from dualform.report.measures import in_order, measure_of
from dualform.report.numerals import count, decimal, decimal_interval, finite, known, significant
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import apart, difference, difference_interval, is_few, listed, plural
from dualform.result import Estimate
from dualform.studies.baseline_words import guessing_sentences
from dualform.studies.selection.result import Choice, ChoiceScore, SelectionResult

EQUAL_WITHIN = 0.1
"""Two budgets count as equal when the larger is no more than this above the smaller, as a share of it."""


def headlines(result: SelectionResult) -> list[str]:
    """What the study found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup; escape them before they go into a page. Empty without a selection study.
    """
    selection = result.selection
    if selection is None or not selection.choices:
        return []
    return [
        *guessing_sentences(result),
        *_overall(selection.choices),
        *[sentence for choice in selection.choices for sentence in _flattery(choice)],
        *_budgets(selection.choices),
        *_similarity(result),
        f"Chosen on {plural(selection.n_validation, 'validation query', 'validation queries')} or "
        f"{plural(selection.n_report, 'report query', 'report queries')}; held against "
        f"{plural(selection.n_untouched, 'query', 'queries')} that nothing was chosen on.",
    ]


def choice_name(choice: Choice) -> str:
    """`ICL on report`: by whose accuracy, on which queries; the same for every two equal choices."""
    return f"{_SELECTS.get(choice.select, choice.select)} on {choice.select_on}"


_SELECTS = {"icl": "ICL", "ft": "FT", "both": "both", "none": "none"}


def chosen(choice: Choice) -> str:
    """`seed 3, order 1, rate 0.01`."""
    return f"seed {choice.seed}, order {choice.order}, rate {choice.learning_rate:.3g}"


def _act(choice: Choice) -> str:
    """`Choosing by in-context learning's accuracy on the report queries`."""
    if choice.select == "none":
        return "Choosing nothing"
    whose = {"icl": "in-context learning's accuracy", "ft": "finetuning's accuracy", "both": "both learners' accuracy"}
    return f"Choosing by {whose.get(choice.select, choice.select)} on the {choice.select_on} queries"


def _scores(choice: Choice) -> list[tuple[str, ChoiceScore]]:
    return [(key, choice.scores[key]) for key in learners_in_order(choice.scores)]


def _overall(choices: list[Choice]) -> list[str]:
    """The largest optimism that is shown, or that none is."""
    searched = [(choice, key, score) for choice in choices if choice.select != "none" for key, score in _scores(choice)]
    if not searched:
        return ["Nothing was chosen, so nothing here says how much a choice flatters."]
    with_interval = [(choice, key, score) for choice, key, score in searched if known(score.optimism.ci95)]
    if not with_interval:
        return ["Without intervals no choice is said to flatter a learner."]
    shown = [
        each for each in with_interval if _side(each[2].optimism) == 1 and finite(each[2].optimism.mean) is not None
    ]
    if not shown:
        return [
            "No way of choosing is shown to flatter a learner: every interval of accuracy where it was chosen less "
            "accuracy on untouched queries reaches zero or lies below."
        ]
    choice, key, score = max(shown, key=lambda each: finite(each[2].optimism.mean) or 0.0)
    return [
        f"{_act(choice)} flatters {learner_style(key).noun} most, by {_points(score.optimism)}; {len(shown)} of "
        f"{len(searched)} accuracies chosen are shown to be too high."
    ]


def _side(estimate: Estimate) -> int | None:
    """Where an interval lies: 1 above zero, -1 below, 0 around it, None where it is unknown or of few answers."""
    if is_few(estimate):
        return None
    return apart(estimate.ci95, (0.0, 0.0))


def _flattery(choice: Choice) -> list[str]:
    groups: dict[int | None, list[str]] = {}
    for key, score in _scores(choice):
        if finite(score.optimism.mean) is not None:
            side, noun = _side(score.optimism), learner_style(key).noun
            shown = side in (1, -1)
            told = f"{noun} by {_points(score.optimism)}" if shown else f"{noun} ({_inside(score.optimism)})"
            groups.setdefault(side, []).append(told)
    if not groups:
        return []
    if choice.select == "none":
        if 1 not in groups and -1 not in groups:
            return []
        apart_from_zero = groups.get(1, []) + groups.get(-1, [])
        return [
            f"Even where nothing is chosen the two sets of queries differ for {listed(apart_from_zero)}: they are not "
            "equally hard, and every optimism here contains that difference."
        ]
    words = {
        1: "flatters {}",
        -1: "shows too low {}",
        0: "is not shown to flatter {}",
        None: "cannot be judged, without an interval, for {}",
    }
    clauses = [words[side].format(listed(groups[side])) for side in words if side in groups]
    return [f"{_act(choice)} {', and '.join(clauses)}.{_unevenly(choice)}"]


def _unevenly(choice: Choice) -> str:
    """Whether one learner gains more by the choice than the other."""
    if not {"icl", "ft"} <= set(choice.scores):
        return ""
    place = apart(choice.scores["icl"].optimism.ci95, choice.scores["ft"].optimism.ci95)
    if not place:
        return ""
    more, less = ("icl", "ft") if place == 1 else ("ft", "icl")
    return f" It favours {learner_style(more).noun} over {learner_style(less).noun}: the two intervals do not touch."


def _points(estimate: Estimate) -> str:
    """`+5.2 points (+1.0 to +9.3)`."""
    interval = f" ({difference_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    return f"{difference(estimate.mean)} points{interval}"


def _inside(estimate: Estimate) -> str:
    """The same for use within brackets: `+5.2 points, +1.0 to +9.3`."""
    interval = f", {difference_interval(estimate.ci95)}" if known(estimate.ci95) else ""
    return f"{difference(estimate.mean)} points{interval}"


def _budgets(choices: list[Choice]) -> list[str]:
    """What was read in search of ICL's and of FT's choice; choices with the same search are reported together."""
    found: dict[str, list[str]] = {}
    for choice in choices:
        if not {"icl", "ft"} <= set(choice.scores) or choice.select == "none":
            continue
        icl, ft = choice.scores["icl"], choice.scores["ft"]
        one, two = finite(icl.tokens), finite(ft.tokens)
        if one is None or two is None:
            told = "the tokens read in search are unknown, so nothing says whether the budgets were equal"
        else:
            told = (
                f"the search read {count(one)} tokens for in-context learning ({plural(icl.trials, 'trial')}) and "
                f"{count(two)} for finetuning ({plural(ft.trials, 'trial')}): {_beside(one, two)}"
            )
        found.setdefault(told, []).append(choice_name(choice))
    if len(found) == 1:
        return [f"Under every choice {told}." for told in found]
    return [f"Under {listed(names)} {told}." for told, names in found.items()]


def _beside(icl: float, ft: float) -> str:
    if max(icl, ft) == 0:
        return "neither was searched"
    if min(icl, ft) == 0:
        return f"the budgets were not equal, {'finetuning' if ft == 0 else 'in-context learning'} was not searched"
    ratio = max(icl, ft) / min(icl, ft)
    if ratio <= 1 + EQUAL_WITHIN:
        return f"equal budgets, within {100 * EQUAL_WITHIN:.0f} %"
    more = "in-context learning" if icl > ft else "finetuning"
    return f"the budgets were not equal, {more} had {significant(ratio)} times the other's"


def _similarity(result: SelectionResult) -> list[str]:
    """Whether similarity depends on how the pair was chosen.

    The highest less the lowest score is never below zero, so its interval alone proves nothing; the two scores'
    own intervals must lie apart.
    """
    assert result.selection is not None
    choices = result.selection.choices
    if len(choices) < 2:
        return []
    if len({(choice.seed, choice.order, choice.learning_rate) for choice in choices}) == 1:
        return [f"Every choice is the same ({chosen(choices[0])}), so similarity cannot depend on how it was chosen."]
    sentences = []
    for key in in_order(dict.fromkeys(key for choice in choices for key in choice.similarity)):
        found = [(choice, choice.similarity[key]) for choice in choices if key in choice.similarity]
        found = [(choice, value) for choice, value in found if finite(value.mean) is not None]
        if len(found) < 2:
            continue
        low = min(found, key=lambda each: finite(each[1].mean) or 0.0)
        high = max(found, key=lambda each: finite(each[1].mean) or 0.0)
        if low[1].mean == high[1].mean:
            sentences.append(f"{measure_of(key).title} is {decimal(low[1].mean)} under every choice.")
            continue
        sentence = f"{measure_of(key).title} lies between {_score(low)} and {_score(high)}"
        reach = result.selection.similarity_range.get(key)
        if reach is not None and finite(reach.mean) is not None:
            interval = f" ({decimal_interval(reach.ci95)})" if known(reach.ci95) else ""
            sentence += f", a range of {decimal(reach.mean)}{interval}"
        place = apart(high[1].ci95, low[1].ci95)
        said = {
            1: "their intervals do not touch, so it depends on the choice",
            0: "their intervals overlap, so it is not shown to depend on the choice",
            None: "without intervals nothing says whether it depends on the choice",
        }[None if place is None else max(place, 0)]
        sentences.append(f"{sentence}; {said}.")
    return sentences


def _score(each: tuple[Choice, Estimate]) -> str:
    """`0.102 (0.080 to 0.124; FT on report)`."""
    choice, value = each
    interval = f"{decimal_interval(value.ci95)}; " if known(value.ci95) else ""
    return f"{decimal(value.mean)} ({interval}{choice_name(choice)})"
