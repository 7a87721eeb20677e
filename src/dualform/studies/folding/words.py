"""What a folding study says in plain sentences, and no more than its intervals allow.

Two accuracies are called apart only where their 95 % intervals do not touch, a difference real only where its interval
does not hold 0, and a ratio only where its interval does not hold 1.
"""

import math
from collections.abc import Sequence

from dualform.report.numerals import count, decimal, decimal_interval, finite, known, percent, percent_interval
from dualform.report.phrases import (
    OUTSIDE,
    apart,
    capital,
    difference,
    difference_interval,
    is_undefined,
    listed,
    share_in_prose,
    share_with_interval,
)
from dualform.result import Estimate
from dualform.studies.baseline_words import above_baselines, chance_level, guessing_phrase, majority_level
from dualform.studies.fold_settings import READS_PROMPT
from dualform.studies.folding.result import Composition, Folding, FoldingResult, FoldPoint, Perplexity, Transfer

AXES: dict[str, tuple[str, str]] = {
    "method": ("method", "Ways of folding"),
    "source": ("source of the texts", "Where the unlabelled texts come from"),
    "k": ("demonstrations", "How many demonstrations"),
    "texts": ("unlabelled texts", "How many unlabelled texts"),
    "strength": ("ridge strength", "How strong the ridge"),
    "layers": ("layers folded", "Which layers are folded"),
}
"""Axis -> its name beside a scale, and as a heading; in the order of the page."""

LOGARITHMIC = ("k", "texts", "strength")
"""Axes that are drawn on a log scale."""


def headlines(result: FoldingResult) -> list[str]:
    """What the study found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup; escape them before they go into a page. Empty without a folding study.
    """
    folding = result.folding
    if folding is None:
        return []
    sentences = _guessing(result, folding) + _best(folding) + _default(result, folding) + _other_methods(folding)
    for axis in axes_in_order(folding):
        if axis != "method":
            sentences += _along(axis, points_on(folding, axis))
    if folding.perplexity is not None:
        sentences.append(perplexity_sentence(folding.perplexity))
    sentences += transfer_sentences(folding.transfer) + composition_sentences(folding.compositions)
    if not folding.points:
        return sentences
    n = {point.accuracy.n for point in folding.points}
    stands = count(min(n)) if len(n) == 1 else f"{count(min(n))} to {count(max(n))}"
    return [*sentences, f"Each accuracy is a mean over {stands} (seed, query) pairs."]


def axes_in_order(folding: Folding) -> list[str]:
    """The axes that were varied, in the page's order; unknown ones last, as they came."""
    known_first = {axis: place for place, axis in enumerate(AXES)}
    found = dict.fromkeys(point.axis for point in folding.points)
    return sorted(found, key=lambda axis: known_first.get(axis, len(AXES)))


def axis_name(axis: str) -> str:
    """The axis beside a scale."""
    return AXES[axis][0] if axis in AXES else axis


def axis_heading(axis: str) -> str:
    """The axis as a heading."""
    return AXES[axis][1] if axis in AXES else capital(axis)


def points_on(folding: Folding, axis: str) -> list[FoldPoint]:
    """An axis's points, in the order in which they were written."""
    return [point for point in folding.points if point.axis == axis]


def numbers(points: Sequence[FoldPoint]) -> list[float] | None:
    """Where the points lie, as numbers; None where one of them is in words."""
    found = [number_of(point) for point in points]
    return None if None in found else [value for value in found if value is not None]


def is_scale(axis: str, points: Sequence[FoldPoint]) -> bool:
    """Whether the points lie along a scale, or are names that stand beside one another."""
    return axis in LOGARITHMIC or (bool(points) and numbers(points) is not None)


def places(axis: str, points: Sequence[FoldPoint]) -> list[float] | None:
    """Where the points lie on a scale; None where one has no place.

    A strength that is given in words, as one chosen by a rule, lies at the strength that came of it.
    """
    found = []
    for point in points:
        place = number_of(point)
        if place is None and axis == "strength":
            place = finite(point.strength)
        if place is None:
            return None
        found.append(place)
    return found


def number_of(point: FoldPoint) -> float | None:
    """A point's place, where it is a number."""
    return _number(point.value)


def _number(text: str) -> float | None:
    try:
        value = float(text.strip().replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def perplexity_sentence(perplexity: Perplexity) -> str:
    """What folding does to plain text."""
    where = f"On plain text ({count(perplexity.tokens)} tokens of “{perplexity.source}”)"
    before, after, ratio = finite(perplexity.before), finite(perplexity.after.mean), finite(perplexity.ratio.mean)
    if ratio is None:
        return f"{where} perplexity could not be compared."
    interval = known(perplexity.ratio.ci95)
    ends = f" ({decimal_interval(interval)})" if interval else ""
    said = f"{where} folding multiplies perplexity by {decimal(ratio)}{ends}"
    if before is not None and after is not None:
        said += f", from {before:.2f} to {after:.2f}"
    if interval is None:
        return f"{said}; no interval, so no conclusion."
    if interval[0] > 1:
        return f"{said}: the model has become worse at it."
    if interval[1] < 1:
        return f"{said}: the model has become better at it."
    return f"{said}: no change is shown."


def transfer_sentences(transfer: Sequence[Transfer]) -> list[str]:
    """On which other tasks the folded model is better, worse or not distinguished."""
    groups: dict[int | None, list[str]] = {}
    for each in transfer:
        if finite(each.difference.mean) is not None:
            interval = f", {difference_interval(each.difference.ci95)}" if known(each.difference.ci95) else ""
            figures = f"“{each.task}” ({difference(each.difference.mean)} points{interval})"
            groups.setdefault(apart(each.difference.ci95, (0.0, 0.0)), []).append(figures)
    clauses = _sides(groups, ("worse than", "better than"), "the base model", "an interval")
    return [f"Asked other tasks, the folded model is {'; '.join(clauses)}."] if clauses else []


def _sides(groups: dict[int | None, list[str]], words: tuple[str, str], reference: str, missing: str) -> list[str]:
    """Clauses such as `worse than the base model on A; not distinguished from it on B`.

    Args:
        groups: What lies below the reference (-1), above it (1), is not distinguished from it (0) or cannot be judged.
        words: How the first two are called.
        reference: Named by the first clause; the others say `it`.
        missing: What those that cannot be judged lack.
    """
    clauses: list[str] = []
    for side, relation in ((-1, words[0]), (1, words[1]), (0, "not distinguished from")):
        if side in groups:
            clauses.append(f"{relation} {'it' if clauses else reference} on {listed(groups[side])}")
    if None in groups:
        clauses.append(f"not to be judged, without {missing}, on {listed(groups[None])}")
    return clauses


def composition_sentences(compositions: Sequence[Composition]) -> list[str]:
    """Whether a sum of folds still does what each of them does alone."""
    sentences = []
    for each in compositions:
        groups: dict[int | None, list[str]] = {}
        for task in each.accuracy:
            alone = each.alone.get(task)
            if alone is None or finite(alone.mean) is None or finite(each.accuracy[task].mean) is None:
                continue
            figures = f"“{task}” ({percent(each.accuracy[task].mean)}, alone {percent(alone.mean)})"
            groups.setdefault(apart(each.accuracy[task].ci95, alone.ci95), []).append(figures)
        clauses = _sides(groups, ("below", "above"), "the task's own fold", "intervals")
        if clauses:
            sentences.append(f"The sum “{parts_name(each)}” is {'; '.join(clauses)}.")
    return sentences


def parts_name(composition: Composition) -> str:
    """`reviews + tweets`."""
    return " + ".join(composition.parts)


def best_point(points: Sequence[FoldPoint]) -> FoldPoint | None:
    """The most accurate fold, the first of equals; None without numbers. What still reads the prompt is none."""
    found = [
        point
        for point in points
        if finite(point.accuracy.mean) is not None and not (point.axis == "method" and point.value in READS_PROMPT)
    ]
    return max(found, key=lambda point: finite(point.accuracy.mean) or 0.0) if found else None


def _best(folding: Folding) -> list[str]:
    """The most accurate way of folding compared with zero-shot, ICL and FT; how far it answers as ICL does."""
    axis = next(iter(axes_in_order(folding)), None)
    points = points_on(folding, axis) if axis is not None else []
    best = best_point(points)
    if best is None or axis is None:
        return []
    if axis == "method":
        what = (
            f"Of {len(points)} ways of folding, “{best.value}” is"
            if len(points) > 1
            else f"Folding by “{best.value}” is"
        )
        named = f"{what}{' most' if len(points) > 1 else ''} accurate"
    else:
        named = f"Folding is at its most accurate at {axis_name(axis)} “{best.value}”"
    others = [("zero-shot", folding.zero_shot), ("in-context learning", best.icl)]
    others += [("finetuning", folding.ft)] if folding.ft is not None else []
    others = [(name, each) for name, each in others if finite(each.mean) is not None]
    said = f"{named}: {share_in_prose(best.accuracy)}"
    if others:
        said += f", where {listed([f'{name} has {share_in_prose(each, interval=False)}' for name, each in others])}"
        said += f". It {_placed(best.accuracy, others)}"
    sentences = [f"{said}."]
    if finite(best.agreement.mean) is not None:
        like = f"It answers {share_with_interval(best.agreement)} of the queries as in-context learning does"
        if is_undefined(best.recovered):
            like += f"; what it recovers of the prompt's gain is undefined, since {OUTSIDE}"
        elif finite(best.recovered.mean) is not None:
            interval = f" ({percent_interval(best.recovered.ci95)})" if known(best.recovered.ci95) else ""
            like += f", and recovers {percent(best.recovered.mean)}{interval} of what the prompt gained over zero-shot"
            if known(best.recovered.ci95) is None or apart(best.icl.ci95, folding.zero_shot.ci95) != 1:
                like += "; but that gain itself is not shown, so the share means little"
        sentences.append(f"{like}.")
    if len(points) > 1:
        sentences.append(f"It was picked as the best of {len(points)} on these very queries, which flatters it.")
    return sentences


def _guessing(result: FoldingResult, folding: Folding) -> list[str]:
    """Who is not shown to answer better than guessing and the commonest label; first, as all else depends on it."""
    chance, majority = chance_level(result), majority_level(result)
    if majority is None:
        return []
    axis = next(iter(axes_in_order(folding)), None)
    best = best_point(points_on(folding, axis)) if axis is not None else None
    found = [("zero-shot", folding.zero_shot), ("in-context learning", folding.icl)]
    found += [("finetuning", folding.ft)] if folding.ft is not None else []
    found += [("the best fold", best.accuracy)] if best is not None else []
    level = [name for name, each in found if above_baselines(each, chance, majority) is False]
    if not level:
        return []
    return [
        f"Not shown to answer better than {guessing_phrase(result)}: {listed(level)}. Nothing here says that "
        f"{'it has' if len(level) == 1 else 'they have'} learned the task."
    ]


def _default(result: FoldingResult, folding: Folding) -> list[str]:
    """The study's own method, which nobody picked by these queries, where another is the most accurate."""
    settings = result.config.get("fold")
    method = settings.get("method") if isinstance(settings, dict) else None
    points = points_on(folding, "method")
    best = best_point(points)
    for point in points:
        if point.value == method and point is not best and finite(point.accuracy.mean) is not None:
            others = [("zero-shot", folding.zero_shot), ("in-context learning", point.icl)]
            return [
                f"The study's default, “{point.value}”, which was not picked by them, has "
                f"{share_in_prose(point.accuracy)}: it {_placed(point.accuracy, others)}."
            ]
    return []


def _placed(found: Estimate, others: Sequence[tuple[str, Estimate]]) -> str:
    """`lies above zero-shot, and is not distinguished from in-context learning`, by intervals."""
    groups: dict[int | None, list[str]] = {}
    for name, each in others:
        groups.setdefault(apart(found.ci95, each.ci95), []).append(name)
    words = {
        1: "lies above {}",
        -1: "lies below {}",
        0: "is not distinguished from {}",
        None: "cannot be compared, without intervals, with {}",
    }
    return ", and ".join(words[side].format(listed(groups[side])) for side in words if side in groups)


def _other_methods(folding: Folding) -> list[str]:
    """Which methods lie below the best, and which are not shown to do better than no fold at all."""
    points = points_on(folding, "method")
    best = best_point(points)
    if best is None or len(points) < 2:
        return []
    others = [point for point in points if point is not best and finite(point.accuracy.mean) is not None]
    below = [point for point in others if apart(point.accuracy.ci95, best.accuracy.ci95) == -1]
    level = [point for point in others if apart(point.accuracy.ci95, best.accuracy.ci95) == 0]
    clauses = []
    if below:
        clauses.append(f"shown to lie below it: {listed([_told(point) for point in below])}")
    if level:
        clauses.append(f"not distinguished from it: {listed([_told(point) for point in level])}")
    sentences = [f"{capital('; '.join(clauses))}."] if clauses else []
    useless = [point for point in points if apart(point.accuracy.ci95, folding.zero_shot.ci95) in (0, -1)]
    if useless:
        sentences.append(f"Not shown to be above zero-shot: {listed([f'“{point.value}”' for point in useless])}.")
    return sentences


def _told(point: FoldPoint) -> str:
    return f"“{point.value}” ({percent(point.accuracy.mean)})"


def _along(axis: str, points: Sequence[FoldPoint]) -> list[str]:
    """How accuracy goes from one end of an axis to the other, or from one word to the next."""
    found = [point for point in points if finite(point.accuracy.mean) is not None]
    if len(found) < 2:
        return []
    name = capital(axis_name(axis))
    best = best_point(found)
    assert best is not None
    numbered = [point for point in found if number_of(point) is not None] if is_scale(axis, points) else []
    if len(numbered) < 2:
        figures = listed([f"“{point.value}” {share_with_interval(point.accuracy)}" for point in found])
        level = [point for point in found if point is not best and apart(best.accuracy.ci95, point.accuracy.ci95) != 1]
        if not level:
            return [f"{name}: accuracy is {figures}; “{best.value}” lies above all others."]
        if len(level) == len(found) - 1:
            return [f"{name}: accuracy is {figures}; none is shown to differ from the best."]
        rest = listed([f"“{point.value}”" for point in level])
        return [f"{name}: accuracy is {figures}; “{best.value}” is not shown to lie above {rest}."]
    first, last = numbered[0], numbered[-1]
    best = best_point(numbered)
    assert best is not None
    said = f"{name}: accuracy goes from {share_with_interval(first.accuracy)} at {first.value} to "
    said += f"{share_with_interval(last.accuracy)} at {last.value}"
    said += {
        1: ", a rise that the intervals show",
        -1: ", a fall that the intervals show",
        0: "; the two intervals overlap",
        None: "; no intervals, so no conclusion",
    }[apart(last.accuracy.ci95, first.accuracy.ci95)]
    if best is not first and best is not last:
        said += f"; the highest is {percent(best.accuracy.mean)} at {best.value}"
        if apart(best.accuracy.ci95, first.accuracy.ci95) == 1 and apart(best.accuracy.ci95, last.accuracy.ci95) == 1:
            said += ", above both ends"
    named = [point for point in found if number_of(point) is None]
    if named:
        said += f"; {listed([f'“{point.value}” has {share_with_interval(point.accuracy)}' for point in named])}"
    ends = [finite(point.agreement.mean) for point in (first, last)]
    if None not in ends:
        said += f". Agreement with ICL goes from {percent(ends[0])} to {percent(ends[1])}"
    return [f"{said}."]
