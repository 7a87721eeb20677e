"""The verdict: what a result says in plain sentences, and no more than its intervals allow.

Two estimates are called apart only when their 95 % intervals do not touch. That is stricter than a test of the
difference, so a sentence that says "apart" can be believed and one that says "not separated" is no proof of
equality.
"""

from collections.abc import Sequence

from dualform.report.measures import control_of, controls_in_order
from dualform.report.numerals import (
    count,
    decimal,
    decimal_interval,
    finite,
    known,
    percent,
    percent_interval,
    scaled,
    significant,
)
from dualform.report.palette import learner_style, learners_in_order
from dualform.result import Accuracy, Estimate, Result

COLLAPSED_ABOVE = 0.9
"""Share of the most frequent predicted label above which a learner counts as collapsed into one class."""

SMALL_BELOW = 100
"""An estimate that stands on fewer numbers than this is called small."""


def verdict(result: Result) -> list[str]:
    """What the run found, most important first.

    Args:
        result: Any result; parts that are missing are passed over.

    Returns:
        Plain sentences without markup. They may contain text of the task (label words), so escape them before
        they go into a page. Empty where the result holds no numbers.
    """
    sentences = _best_learner(result) + _icl_beside_ft(result) + _likeness(result) + _recovered(result)
    sentences += _collapse(result) + _near_chance(result)
    return sentences + _how_much_it_stands_on(result) if sentences else []


def chance_level(result: Result) -> float | None:
    """Accuracy of guessing uniformly, 1 / number of labels; None where the task lists no labels."""
    label_words = result.task.get("label_words")
    return 1 / len(label_words) if isinstance(label_words, Sequence) and len(label_words) > 0 else None


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


def _best_learner(result: Result) -> list[str]:
    best = best_learners(result)
    if not best:
        return []
    first = result.accuracy[best[0]]
    if len(best) > 1:
        return [f"{_capital(_listed(best))} share the highest mean accuracy, {_share(first)}."]
    sentence = f"{_capital(_noun(best[0]))} has the highest mean accuracy, {_share(first)}."
    others = [key for key in _means(result) if key not in best]
    touching = {key: overlap(first, result.accuracy[key]) for key in others}
    unknown = [key for key in others if touching[key] is None]
    level = [key for key in others if touching[key]]
    if not others:
        return [sentence]
    if unknown:
        return [f"{sentence} Without an interval for every learner, the run cannot say how sure that order is."]
    if level:
        return [f"{sentence} Its interval overlaps that of {_listed(level)}: the run does not separate them."]
    return [f"{sentence} No other learner's interval reaches it."]


def _icl_beside_ft(result: Result) -> list[str]:
    if not {"icl", "ft"} <= set(_means(result)):
        return []
    icl, ft = result.accuracy["icl"], result.accuracy["ft"]
    gap = 100 * (_means(result)["icl"] - _means(result)["ft"])
    if gap == 0:
        place = "ICL and finetuning have the same mean accuracy"
    else:
        place = f"ICL is {abs(gap):.1f} points {'above' if gap > 0 else 'below'} finetuning"
    touching = overlap(icl, ft)
    if touching is None:
        return [f"{place}; there are no intervals to weigh that by."]
    if touching:
        return [f"{place}, and their 95 % intervals overlap: the run does not tell the two apart."]
    return [f"{place}, and their 95 % intervals do not overlap."]


def _likeness(result: Result) -> list[str]:
    """Whether the two updates are more alike than each control, by the first measure that has a random one."""
    for key, name in (("sim_aou", "SimAOU"), ("sim_aou_raw", "raw SimAOU"), ("sim_am_delta", "SimAM of changes")):
        found = result.similarity.get(key)
        random = result.controls.get("random", {}).get(key)
        if found is None or random is None or finite(found.mean) is None or finite(random.mean) is None:
            continue
        numbers = f"{name} {_value(found)}, random direction {_value(random)}"
        touching = overlap(found, random)
        if touching is None:
            return [f"Likeness of the two updates: {numbers}; without intervals the two cannot be compared."]
        if touching:
            return [f"The updates by context and by finetuning are no more alike than chance allows: {numbers}."]
        if found.mean < random.mean:  # type: ignore[operator] # both are finite, above
            return [f"The updates by context and by finetuning are less alike than chance: {numbers}."]
        return [
            f"The updates by context and by finetuning are more alike than chance: {numbers}.",
            *_matched_by_control(result, key, name),
        ]
    return []


def _matched_by_control(result: Result, key: str, name: str) -> list[str]:
    """A warning where a control in which nothing is learned scores as high as the real thing."""
    found = result.similarity[key]
    interval = known(found.ci95)
    matched = []
    for control in controls_in_order(result.controls):
        other = result.controls[control].get(key)
        ends = None if other is None else known(other.ci95)
        if control != "random" and control_of(control).floor and interval and ends and ends[1] >= interval[0]:
            matched.append(f"“{control_of(control).title}”, {_value(result.controls[control][key])}")
    if not matched:
        return []
    return [
        f"But {name} does not lie clearly above its control{'s' if len(matched) > 1 else ''} {_and(matched)}: alone, "
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
    sentence = f"Of {fixed} that finetuning put right, context put right {_share(found, n=False)}"
    # Rec2FTP and its chance level stand on the same answers, so only the interval of their difference tells them apart.
    chance, interval = finite(found.details.get("chance")), known(found.details.get("lift_ci95") or (None, None))
    if chance is None:
        return [f"{sentence}."]
    sentence += f", against {percent(chance)} of all answers that zero-shot had wrong"
    if interval is None:
        return [f"{sentence}. Without an interval the two cannot be compared."]
    lift = f"the difference is {100 * interval[0]:+.1f} to {100 * interval[1]:+.1f} points (95 %)"
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
            f"{_capital(_noun(key))} has collapsed into one class: it answers {answer} to "
            f"{percent(each.majority_share)} of the queries, so its accuracy says little."
        )
    return sentences


def _near_chance(result: Result) -> list[str]:
    chance = chance_level(result)
    if chance is None:
        return []
    intervals = {key: known(result.accuracy[key].ci95) for key in _means(result)}
    level = [key for key, ends in intervals.items() if ends and ends[0] <= chance <= ends[1]]
    if not level:
        return []
    return [f"Not told apart from guessing ({percent(chance)}): {_listed(level)}."]


def _how_much_it_stands_on(result: Result) -> list[str]:
    sentences = []
    smallest = min((each.n for each in result.accuracy.values()), default=SMALL_BELOW)
    if smallest < SMALL_BELOW:
        sentences.append(f"The accuracies stand on as few as {smallest} answers: read them as a first look.")
    recovered = result.similarity.get("rec2ftp")
    if recovered is not None and 0 < recovered.n < SMALL_BELOW:
        sentences.append(f"Rec2FTP stands on {recovered.n} of them: a small number.")
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
        sentence += f"it took {significant(icl_time)} ms beside {significant(ft_time)} ms"
    return sentence + "."


def _share(estimate: Estimate | Accuracy, n: bool = True) -> str:
    """`72.1 % (95 % interval 70.2 to 73.9 %, n = 2000)`."""
    parts = [f"95 % interval {percent_interval(estimate.ci95)}"] if known(estimate.ci95) else []
    parts += [f"n = {estimate.n}"] if n else []
    return percent(estimate.mean) + (f" ({', '.join(parts)})" if parts else "")


def _value(estimate: Estimate) -> str:
    """`0.186 (0.170 to 0.201)`."""
    interval = f" ({decimal_interval(estimate.ci95)})" if known(estimate.ci95) else ""
    return decimal(estimate.mean) + interval


def _noun(learner: str) -> str:
    return learner_style(learner).noun


def _listed(learners: Sequence[str]) -> str:
    return _and([_noun(key) for key in learners])


def _and(parts: Sequence[str]) -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
