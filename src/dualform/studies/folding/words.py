"""The findings of a folding study in sentences.

Two accuracies are called different only if their 95 % intervals do not overlap, a difference significant only if its
interval excludes 0, and a ratio only if its interval excludes 1.
"""

import math
from collections.abc import Sequence

from dualform.report.numerals import count, decimal, decimal_interval, finite, known, percent, percent_interval
from dualform.report.phrases import (
    OUTSIDE,
    capital,
    compare_intervals,
    difference,
    difference_interval,
    is_undefined,
    leading_sentences,
    listed,
    share_in_prose,
    share_with_interval,
)
from dualform.result import Estimate
from dualform.studies.baseline_words import above_baselines, chance_level, guessing_phrase, majority_level
from dualform.studies.fold_settings import READS_PROMPT
from dualform.studies.folding.result import Composition, Folding, FoldingResult, FoldPoint, Perplexity, Transfer

AXES: dict[str, tuple[str, str]] = {
    "method": ("method", "Folding methods"),
    "source": ("source of the texts", "Source of the unlabelled texts"),
    "k": ("demonstrations", "Number of demonstrations"),
    "texts": ("unlabelled texts", "Number of unlabelled texts"),
    "strength": ("ridge strength", "Ridge strength"),
    "layers": ("layers folded", "Folded layers"),
}
"""Axis -> its name on a scale and as a heading, in page order."""

LOGARITHMIC = ("k", "texts", "strength")
"""Axes drawn on a logarithmic scale."""


def headlines(result: FoldingResult) -> list[str]:
    """At most four of the `findings`: the best fold, how it answers, and what folding does to plain text."""
    folding = result.folding
    if folding is None:
        return []
    best = [[sentence] for sentence in _best_fold_sentences(folding)]
    perplexity = [] if folding.perplexity is None else [perplexity_sentence(folding.perplexity)]
    singles = [[sentence] for sentence in findings(result)]
    return leading_sentences(_guessing_sentences(result, folding), *best[:2], perplexity, *best[2:]) or (
        leading_sentences(*singles)
    )


def notes(result: FoldingResult) -> list[str]:
    """The cautions among the `findings`, and what the accuracies are computed from."""
    folding = result.folding
    if folding is None:
        return []
    return [
        *_guessing_sentences(result, folding),
        *_best_fold_sentences(folding)[2:],
        *_default_method_sentences(result, folding),
        *_basis(folding),
    ]


def findings(result: FoldingResult) -> list[str]:
    """All sentences about the result, the most important first.

    Args:
        result: Any result; missing parts are skipped.

    Returns:
        Plain text, which must be escaped for HTML. Empty if the result holds no folding study.
    """
    folding = result.folding
    if folding is None:
        return []
    sentences = (
        _guessing_sentences(result, folding)
        + _best_fold_sentences(folding)
        + _default_method_sentences(result, folding)
        + _other_method_sentences(folding)
    )
    for axis in axes_in_order(folding):
        if axis != "method":
            sentences += _axis_sentences(axis, points_on(folding, axis))
    if folding.perplexity is not None:
        sentences.append(perplexity_sentence(folding.perplexity))
    sentences += transfer_sentences(folding.transfer) + composition_sentences(folding.compositions)
    return sentences + _basis(folding)


def _basis(folding: Folding) -> list[str]:
    """What the accuracies are computed from."""
    if not folding.points:
        return []
    n = {point.accuracy.n for point in folding.points}
    pairs = count(min(n)) if len(n) == 1 else f"{count(min(n))} to {count(max(n))}"
    return [f"Each accuracy is a mean over {pairs} (seed, query) pairs."]


def axes_in_order(folding: Folding) -> list[str]:
    """The axes that were varied, in page order, unknown ones last."""
    positions = {axis: position for position, axis in enumerate(AXES)}
    axes = dict.fromkeys(point.axis for point in folding.points)
    return sorted(axes, key=lambda axis: positions.get(axis, len(AXES)))


def axis_name(axis: str) -> str:
    """The name of the axis on a scale."""
    return AXES[axis][0] if axis in AXES else axis


def axis_heading(axis: str) -> str:
    """The name of the axis as a heading."""
    return AXES[axis][1] if axis in AXES else capital(axis)


def points_on(folding: Folding, axis: str) -> list[FoldPoint]:
    """The points of an axis, in the order of the result."""
    return [point for point in folding.points if point.axis == axis]


def values_as_numbers(points: Sequence[FoldPoint]) -> list[float] | None:
    """The values of the points as numbers; None if one of them is not a number."""
    values = [value_as_number(point) for point in points]
    return None if None in values else [value for value in values if value is not None]


def is_scale(axis: str, points: Sequence[FoldPoint]) -> bool:
    """Whether the points lie on a numeric scale, rather than being names."""
    return axis in LOGARITHMIC or (bool(points) and values_as_numbers(points) is not None)


def positions(axis: str, points: Sequence[FoldPoint]) -> list[float] | None:
    """The positions of the points on a scale; None if one has no position.

    A strength given as a rule, such as `gcv`, is placed at the strength that the rule chose.
    """
    on_scale = []
    for point in points:
        position = value_as_number(point)
        if position is None and axis == "strength":
            position = finite(point.strength)
        if position is None:
            return None
        on_scale.append(position)
    return on_scale


def value_as_number(point: FoldPoint) -> float | None:
    """The value of a point as a number; None if it is not one."""
    try:
        value = float(point.value.strip().replace(",", ""))
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def perplexity_sentence(perplexity: Perplexity) -> str:
    """How folding changes the perplexity of plain text."""
    where = f"On plain text ({count(perplexity.tokens)} tokens of “{perplexity.source}”),"
    before, after, ratio = finite(perplexity.before), finite(perplexity.after.mean), finite(perplexity.ratio.mean)
    if ratio is None:
        return f"{where} perplexity could not be compared."
    interval = known(perplexity.ratio.ci95)
    ends = f" ({decimal_interval(interval)})" if interval else ""
    sentence = f"{where} folding multiplies perplexity by {decimal(ratio)}{ends}"
    if before is not None and after is not None:
        sentence += f", from {before:.2f} to {after:.2f}"
    if interval is None:
        return f"{sentence}; no interval, so no conclusion."
    if interval[0] > 1:
        return f"{sentence}: a significant increase, so the model predicts plain text worse."
    if interval[1] < 1:
        return f"{sentence}: a significant decrease, so the model is better at it."
    return f"{sentence}: no significant change."


def transfer_sentences(transfer: Sequence[Transfer]) -> list[str]:
    """On which other tasks the folded model differs significantly from the base model."""
    groups: dict[int | None, list[str]] = {}
    for each in transfer:
        if finite(each.difference.mean) is not None:
            interval = f", {difference_interval(each.difference.ci95)}" if known(each.difference.ci95) else ""
            figures = f"“{each.task}” ({difference(each.difference.mean)} points{interval})"
            groups.setdefault(compare_intervals(each.difference.ci95, (0.0, 0.0)), []).append(figures)
    clauses = _comparison_clauses(groups, "the base model", "an interval")
    return [f"On other tasks, the folded model is {'; '.join(clauses)}."] if clauses else []


def _comparison_clauses(groups: dict[int | None, list[str]], reference: str, missing: str) -> list[str]:
    """Clauses such as `significantly less accurate than the base model on A; not significantly different from it on B`.

    Args:
        groups: The tasks with lower (-1), higher (1), not significantly different (0) or unknown (None) accuracy.
        reference: What is compared with; named in the first clause only.
        missing: What is missing for the unknown ones.
    """
    relations = {
        -1: "significantly less accurate than",
        1: "significantly more accurate than",
        0: "not significantly different from",
    }
    clauses: list[str] = []
    for order, relation in relations.items():
        if order in groups:
            clauses.append(f"{relation} {'it' if clauses else reference} on {listed(groups[order])}")
    if None in groups:
        clauses.append(f"without {missing}, so not compared, on {listed(groups[None])}")
    return clauses


def composition_sentences(compositions: Sequence[Composition]) -> list[str]:
    """Whether a sum of folds is as accurate on each task as the task's own fold."""
    sentences = []
    for each in compositions:
        groups: dict[int | None, list[str]] = {}
        for task, accuracy in each.accuracy.items():
            alone = each.alone.get(task)
            if alone is None or finite(alone.mean) is None or finite(accuracy.mean) is None:
                continue
            figures = f"“{task}” ({percent(accuracy.mean)}, alone {percent(alone.mean)})"
            groups.setdefault(compare_intervals(accuracy.ci95, alone.ci95), []).append(figures)
        clauses = _comparison_clauses(groups, "the task's own fold", "intervals")
        if clauses:
            sentences.append(f"The sum “{join_part_names(each)}” is {'; '.join(clauses)}.")
    return sentences


def join_part_names(composition: Composition) -> str:
    """`reviews + tweets`."""
    return " + ".join(composition.parts)


def best_point(points: Sequence[FoldPoint]) -> FoldPoint | None:
    """The most accurate fold, the first of equals, without methods that still read the prompt; None without numbers."""
    candidates = [
        point
        for point in points
        if finite(point.accuracy.mean) is not None and not (point.axis == "method" and point.value in READS_PROMPT)
    ]
    return max(candidates, key=lambda point: finite(point.accuracy.mean) or 0.0) if candidates else None


def _best_fold_sentences(folding: Folding) -> list[str]:
    """The most accurate fold compared with zero-shot, ICL and FT, and how often it answers as ICL does."""
    axis = next(iter(axes_in_order(folding)), None)
    points = points_on(folding, axis) if axis is not None else []
    best = best_point(points)
    if best is None or axis is None:
        return []
    if axis != "method":
        lead = f"Folding is most accurate with {axis_name(axis)} = “{best.value}”: "
    elif len(points) > 1:
        lead = f"Of {len(points)} folding methods, “{best.value}” is the most accurate: "
    else:
        lead = f"Folding by “{best.value}” reaches an accuracy of "
    others = [("zero-shot", folding.zero_shot), ("in-context learning", best.icl)]
    others += [("finetuning", folding.ft)] if folding.ft is not None else []
    others = [(name, accuracy) for name, accuracy in others if finite(accuracy.mean) is not None]
    sentence = f"{lead}{share_in_prose(best.accuracy)}"
    if others:
        levels = [f"{share_in_prose(accuracy, interval=False)} for {name}" for name, accuracy in others]
        sentence += f", compared with {listed(levels)}. It is {_compared_with(best.accuracy, others)}"
    sentences = [f"{sentence}."]
    if finite(best.agreement.mean) is not None:
        sentence = f"It answers {share_with_interval(best.agreement)} of the queries as in-context learning does"
        if is_undefined(best.recovered):
            sentence += f"; the share of the prompt's gain that it recovers is undefined, since {OUTSIDE}"
        elif finite(best.recovered.mean) is not None:
            interval = f" ({percent_interval(best.recovered.ci95)})" if known(best.recovered.ci95) else ""
            sentence += f" and recovers {percent(best.recovered.mean)}{interval} of the prompt's gain over zero-shot"
            if known(best.recovered.ci95) is None or compare_intervals(best.icl.ci95, folding.zero_shot.ci95) != 1:
                sentence += "; but that gain is not significant, so the share means little"
        sentences.append(f"{sentence}.")
    if len(points) > 1:
        sentences.append(
            f"It was chosen as the best of {len(points)} by the reported queries, so its accuracy is biased upwards."
        )
    return sentences


def _guessing_sentences(result: FoldingResult, folding: Folding) -> list[str]:
    """What is not significantly more accurate than guessing and always giving the most common label."""
    chance, majority = chance_level(result), majority_level(result)
    if majority is None:
        return []
    axis = next(iter(axes_in_order(folding)), None)
    best = best_point(points_on(folding, axis)) if axis is not None else None
    accuracies = [("zero-shot", folding.zero_shot), ("in-context learning", folding.icl)]
    accuracies += [("finetuning", folding.ft)] if folding.ft is not None else []
    accuracies += [("the best fold", best.accuracy)] if best is not None else []
    names = [name for name, accuracy in accuracies if above_baselines(accuracy, chance, majority) is False]
    if not names:
        return []
    be, have = ("is", "it has") if len(names) == 1 else ("are", "they have")
    return [
        f"{capital(listed(names))} {be} not significantly more accurate than {guessing_phrase(result)}, so there is no "
        f"evidence that {have} learned the task."
    ]


def _default_method_sentences(result: FoldingResult, folding: Folding) -> list[str]:
    """The default method if another one is the most accurate; it was not chosen by the reported queries."""
    settings = result.config.get("fold")
    method = settings.get("method") if isinstance(settings, dict) else None
    points = points_on(folding, "method")
    best = best_point(points)
    for point in points:
        if point.value == method and point is not best and finite(point.accuracy.mean) is not None:
            others = [("zero-shot", folding.zero_shot), ("in-context learning", point.icl)]
            return [
                f"The default method “{point.value}”, which was not chosen by these queries, reaches "
                f"{share_in_prose(point.accuracy)}: it is {_compared_with(point.accuracy, others)}."
            ]
    return []


def _compared_with(accuracy: Estimate, others: Sequence[tuple[str, Estimate]]) -> str:
    """`significantly more accurate than zero-shot, and not significantly different from in-context learning`."""
    groups: dict[int | None, list[str]] = {}
    for name, other in others:
        groups.setdefault(compare_intervals(accuracy.ci95, other.ci95), []).append(name)
    words = {
        1: "significantly more accurate than {}",
        -1: "significantly less accurate than {}",
        0: "not significantly different from {}",
        None: "not comparable, without intervals, with {}",
    }
    return ", and ".join(words[order].format(listed(groups[order])) for order in words if order in groups)


def _other_method_sentences(folding: Folding) -> list[str]:
    """Which methods differ significantly from the best, and which do not from zero-shot."""
    points = points_on(folding, "method")
    best = best_point(points)
    if best is None or len(points) < 2:
        return []
    others = [point for point in points if point is not best and finite(point.accuracy.mean) is not None]
    lower = [point for point in others if compare_intervals(point.accuracy.ci95, best.accuracy.ci95) == -1]
    equal = [point for point in others if compare_intervals(point.accuracy.ci95, best.accuracy.ci95) == 0]
    clauses = []
    if lower:
        clauses.append(
            f"significantly less accurate than the best: {listed([_with_accuracy(point) for point in lower])}"
        )
    if equal:
        names = listed([_with_accuracy(point) for point in equal])
        clauses.append(f"not significantly different from {'it' if lower else 'the best'}: {names}")
    sentences = [f"{capital('; '.join(clauses))}."] if clauses else []
    useless = [point for point in points if compare_intervals(point.accuracy.ci95, folding.zero_shot.ci95) in (0, -1)]
    if useless:
        names = listed([f"“{point.value}”" for point in useless])
        sentences.append(f"Not significantly more accurate than zero-shot: {names}.")
    return sentences


def _with_accuracy(point: FoldPoint) -> str:
    return f"“{point.value}” ({percent(point.accuracy.mean)})"


def _axis_sentences(axis: str, points: Sequence[FoldPoint]) -> list[str]:
    """How accuracy changes along a scale, or differs between names."""
    known_points = [point for point in points if finite(point.accuracy.mean) is not None]
    if len(known_points) < 2:
        return []
    name = capital(axis_name(axis))
    numbered = [point for point in known_points if value_as_number(point) is not None] if is_scale(axis, points) else []
    if len(numbered) < 2:
        return [f"{name}: {_compare_names(known_points)}."]
    first, last, best = numbered[0], numbered[-1], best_point(numbered)
    assert best is not None
    sentence = f"{name}: accuracy is {share_with_interval(first.accuracy)} at {first.value} and "
    sentence += f"{share_with_interval(last.accuracy)} at {last.value}"
    sentence += {
        1: ", a significant increase",
        -1: ", a significant decrease",
        0: ", no significant difference",
        None: "; no intervals, so no conclusion",
    }[compare_intervals(last.accuracy.ci95, first.accuracy.ci95)]
    if best is not first and best is not last:
        sentence += f"; the highest is {percent(best.accuracy.mean)} at {best.value}"
        if (
            compare_intervals(best.accuracy.ci95, first.accuracy.ci95) == 1
            and compare_intervals(best.accuracy.ci95, last.accuracy.ci95) == 1
        ):
            sentence += ", significantly above both ends"
    named = [point for point in known_points if value_as_number(point) is None]
    if named:
        sentence += f"; {_with_names(named)}"
    agreement = [finite(point.agreement.mean) for point in (first, last)]
    if None not in agreement:
        sentence += f". Agreement with ICL is {percent(agreement[0])} at {first.value} and "
        sentence += f"{percent(agreement[1])} at {last.value}"
    return [f"{sentence}."]


def _compare_names(points: Sequence[FoldPoint]) -> str:
    best = best_point(points)
    assert best is not None
    accuracies = f"accuracy is {_with_names(points)}"
    equal = [
        point
        for point in points
        if point is not best and compare_intervals(best.accuracy.ci95, point.accuracy.ci95) != 1
    ]
    if not equal:
        return f"{accuracies}; “{best.value}” is significantly better than all others"
    if len(equal) == len(points) - 1:
        return f"{accuracies}; none differs significantly from the best"
    return f"{accuracies}; “{best.value}” is not significantly better than {listed([f'“{p.value}”' for p in equal])}"


def _with_names(points: Sequence[FoldPoint]) -> str:
    """`71.0 % (68.0 to 74.0 %) with “gcv”`."""
    return listed([f"{share_with_interval(point.accuracy)} with “{point.value}”" for point in points])
