"""What a sweep says in plain sentences, and no more than its groups' own intervals and tests allow.

A group (one model, one task, one set of options, all seeds) speaks for itself: it is counted as deciding for a learner
only where its own tests or intervals do. Groups are never pooled into one sample. The one number across groups is a
mean over tasks: each task gives one number, so that the interval tells what other tasks of this kind may show, and says
nothing of other queries.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dualform.paired_t import student_interval
from dualform.report.measures import in_order
from dualform.report.numerals import MISSING, finite, known, rounded, rounded_interval
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import capital, difference, in_points, listed, plural
from dualform.result import Result
from dualform.studies.against_words import CANDIDATES, compare_accuracy, not_beaten
from dualform.studies.baseline_words import above_guessing, collapsed, majority_level
from dualform.studies.comparison.similarity_words import judged_by
from dualform.studies.study import STUDIES
from dualform.sweep_result import SweepCell, SweepGroup, SweepResult

NAMED = 6
"""Groups that a sentence names; of more it gives the number."""

SLICES_TOLD = 4
"""Models (with their options) of which each has a sentence of its own in the verdict; more are left to the table."""


@dataclass(frozen=True)
class TaskMean:
    """A mean over tasks, each of which gives one number."""

    mean: float
    ci95: tuple[float | None, float | None]
    """Student's interval over the tasks; unknown below three of them."""
    n: int
    """Tasks."""
    low: tuple[float, str]
    """The lowest number, and whose it is."""
    high: tuple[float, str]


def sweep_verdict(sweep: SweepResult) -> list[str]:
    """What the sweep found, most important first.

    Returns:
        Plain sentences without markup. They may contain names of models, tasks and label words, so escape them before
        they go into a page. Empty where the sweep has no groups.
    """
    if not sweep.groups:
        return []
    found = compared(sweep)
    sentences = _winner(sweep, found) + _by_how_much(found) + _against_guessing(found) + _against_zero_shot(found)
    sentences += _collapse(found)
    sentences += _similarity(found) + _other_studies(sweep)
    if not sentences:
        return [f"No group of this sweep has a result yet. {cell_sentence(sweep)}"]
    return sentences + _standing(sweep, found)


def compared(sweep: SweepResult) -> list[tuple[SweepGroup, Result]]:
    """The groups that have accuracies, with their results."""
    return [(group, group.result) for group in sweep.groups if group.result is not None and group.result.accuracy]


def slice_name(group: SweepGroup) -> str:
    """All of a group but its task: `smollm2-135m (k 4)`."""
    return (group.model or study_name(group)) + _options(group)


def group_name(group: SweepGroup) -> str:
    """A group in a sentence: `smollm2-135m on sst2 (k 4)`."""
    about = group.model or study_name(group)
    return (f"{about} on {group.task}" if group.task else about) + _options(group)


def study_name(group: SweepGroup) -> str:
    """`comparison`, `stability` and so on."""
    return STUDIES[group.study].noun if group.study in STUDIES else group.study


def option_text(value: Any) -> str:
    """An option's value as a reader writes it: `4`, `true`, `0.001`, `zsl, icl`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(option_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {option_text(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else MISSING if value is None else str(value)


def slices(found: Iterable[tuple[SweepGroup, Result]]) -> dict[str, list[tuple[SweepGroup, Result]]]:
    """The groups by `slice_name`, in the order of the sweep: what is alike in all but the task."""
    by_name: dict[str, list[tuple[SweepGroup, Result]]] = {}
    for group, result in found:
        by_name.setdefault(slice_name(group), []).append((group, result))
    return by_name


def learners_of(found: Iterable[tuple[SweepGroup, Result]]) -> list[str]:
    """All learners of these groups, in the usual order."""
    return learners_in_order(dict.fromkeys(key for _, result in found for key in result.accuracy))


def accuracy_of(learner: str) -> Callable[[Result], float | None]:
    """A result's mean accuracy of one learner."""
    return lambda result: finite(result.accuracy[learner].mean) if learner in result.accuracy else None


def difference_of(first: str, second: str) -> Callable[[Result], float | None]:
    """A result's mean accuracy of one learner less that of another."""

    def less(result: Result) -> float | None:
        one, two = accuracy_of(first)(result), accuracy_of(second)(result)
        return None if one is None or two is None else one - two

    return less


SHARE = (0.0, 1.0)
"""Where an accuracy or an agreement can lie."""
GAP = (-1.0, 1.0)
"""Where the difference of two can lie."""


def over_tasks(
    found: Sequence[tuple[SweepGroup, Result]],
    number: Callable[[Result], float | None],
    within: tuple[float, float] | None = None,
) -> TaskMean | None:
    """Mean over tasks of what `number` finds in a result.

    Args:
        found: Groups. Of several with one task their mean is that task's number.
        number: What to average; results for which it is None are left out.
        within: Where such a number can lie: the interval is cut there, since few tasks make it wider than that.

    Returns:
        The mean, with Student's interval over the tasks from three on: of two, its multiplier of 12.7 says nothing.
        None where no group has such a number.
    """
    by_task: dict[str, list[float]] = {}
    for group, result in found:
        value = number(result)
        if value is not None:
            by_task.setdefault(group.task or "", []).append(value)
    if not by_task:
        return None
    means = {task: sum(values) / len(values) for task, values in by_task.items()}
    values = list(means.values())
    mean, n = sum(values) / len(values), len(values)
    interval = student_interval(values) if n > 2 else (None, None)
    if within is not None and interval[0] is not None and interval[1] is not None:
        interval = (max(within[0], interval[0]), min(within[1], interval[1]))
    lowest, highest = min(means, key=means.__getitem__), max(means, key=means.__getitem__)
    return TaskMean(mean, interval, n, (means[lowest], lowest), (means[highest], highest))


def decided(found: Iterable[tuple[SweepGroup, Result]]) -> dict[str | None, list[SweepGroup]]:
    """Between prompt, finetune and fold: learner -> groups that put it above the others; None -> those undecided.

    Groups in which fewer than two of the three were run decide nothing and are left out.
    """
    by_learner: dict[str | None, list[SweepGroup]] = {key: [] for key in (*CANDIDATES, None)}
    for group, result in found:
        if len(_candidates(result)) > 1:
            left = not_beaten(result)
            by_learner[left[0] if len(left) == 1 else None].append(group)
    return by_learner


def beaters_of_zero_shot(result: Result) -> list[str] | None:
    """Learners that the run shows to lie above zero-shot; None where it has no zero-shot to lie above."""
    others = [key for key in learners_in_order(result.accuracy) if key != "zsl"]
    if "zsl" not in result.accuracy:
        return None
    orders = {key: compare_accuracy(result, key, "zsl") for key in others}
    if all(order is None for order in orders.values()):
        return None
    return [key for key, order in orders.items() if order == 1]


def seed_spread(result: Result, learner: str) -> tuple[float, float, float | None, int] | None:
    """Lowest and highest accuracy over seeds, their standard deviation and number; None without two seeds.

    The deviation is of the sample (n - 1) and None below three seeds.
    """
    if learner not in result.accuracy:
        return None
    values = [value for each in result.accuracy[learner].per_seed.values() if (value := finite(each)) is not None]
    if len(values) < 2:
        return None
    mean = sum(values) / len(values)
    sd = (sum((value - mean) ** 2 for value in values) / (len(values) - 1)) ** 0.5
    return min(values), max(values), sd if len(values) > 2 else None, len(values)


def cells_by_status(sweep: SweepResult) -> dict[str, list[SweepCell]]:
    """The cells that are `finished`, `reused`, `failed` and `pending`."""
    by_status: dict[str, list[SweepCell]] = {"finished": [], "reused": [], "failed": [], "pending": []}
    for cell in sweep.cells:
        by_status[cell.status].append(cell)
    return by_status


def cell_sentence(sweep: SweepResult) -> str:
    """How many cells there are, and what became of them."""
    by_status = cells_by_status(sweep)
    words = {
        "finished": "computed now",
        "reused": "found finished in the store",
        "failed": "failed",
        "pending": "not begun",
    }
    told = [f"{len(cells)} {words[status]}" for status, cells in by_status.items() if cells]
    return f"{plural(len(sweep.cells), 'cell')}: {', '.join(told)}." if told else "No cells."


def named(groups: Sequence[SweepGroup]) -> str:
    """The groups' names as a list; of many the first few, and how many more."""
    names = list(map(group_name, groups))
    if len(names) > NAMED:
        return f"{', '.join(names[: NAMED - 1])} and {len(names) - NAMED + 1} others"
    return listed(names)


def axes_of(found: Sequence[tuple[SweepGroup, Result]]) -> dict[str, list[Any]]:
    """The grid's further axes that take two values or more, with those values; numbers in order of size."""
    values: dict[str, list[Any]] = {}
    for group, _ in found:
        for axis, value in group.options.items():
            seen = values.setdefault(axis, [])
            if value not in seen:
                seen.append(value)
    return {axis: sorted(seen) if is_numeric(seen) else seen for axis, seen in values.items() if len(seen) > 1}


def is_numeric(values: Iterable[Any]) -> bool:
    """Whether all of an axis' values are numbers."""
    return all(finite(value) is not None for value in values)


def judged_measures(found: Iterable[tuple[SweepGroup, Result]]) -> list[str]:
    """Keys of the measures that some group has, the one that the verdict judges by first."""
    groups = list(found)
    keys = in_order(dict.fromkeys(key for _, result in groups for key in result.similarity))
    first = next((judged[0] for _, result in groups if (judged := judged_by(result)) is not None), None)
    return sorted(keys, key=lambda key: key != first)


def _options(group: SweepGroup) -> str:
    told = [f"{axis} {option_text(value)}" for axis, value in group.options.items()]
    return f" ({', '.join(told)})" if told else ""


def _candidates(result: Result) -> list[str]:
    return [key for key in CANDIDATES if accuracy_of(key)(result) is not None]


def _noun(key: str) -> str:
    return learner_style(key).noun


def _winner(sweep: SweepResult, found: list[tuple[SweepGroup, Result]]) -> list[str]:
    """Which of prompt, finetune and fold wins in how many groups."""
    by_learner = decided(found)
    n = sum(map(len, by_learner.values()))
    if not n:
        return []
    keys = [key for key in CANDIDATES if any(key in _candidates(result) for _, result in found)]
    extent = _extent([(group, result) for group, result in found if len(_candidates(result)) > 1])
    wins = {key: len(by_learner[key]) for key in keys if by_learner[key]}
    if not wins:
        between = listed([_noun(key) for key in keys])
        if n == 1:
            return [f"In the one group, {extent}, the run does not decide between {between} by accuracy."]
        return [f"In none of {n} groups ({extent}) does the run decide between {between} by accuracy."]
    told = [f"{_noun(key)} in {count}" for key, count in sorted(wins.items(), key=lambda item: -item[1])]
    told[0] = told[0].replace(" in ", " is ahead in ", 1)
    none = [_noun(key) for key in keys if key not in wins]
    sentence = f"By accuracy, of {plural(n, 'group')} ({extent}) {listed(told)}"
    sentence += f", {' and '.join(none)} in none" if none else ""
    undecided = len(by_learner[None])
    return [f"{sentence}; in {undecided} the run does not decide." if undecided else f"{sentence}."]


def _extent(found: Sequence[tuple[SweepGroup, Result]]) -> str:
    """`2 models, 6 tasks, 3 seeds each`."""
    parts = []
    for n, one in (
        (len({group.model for group, _ in found}), "model"),
        (len({group.task for group, _ in found}), "task"),
    ):
        parts.append(plural(n, one))
    seeds = {len(each.per_seed) for _, result in found for each in result.accuracy.values() if each.per_seed}
    if seeds:
        few, many = min(seeds), max(seeds)
        parts.append(plural(many, "seed") + " each" if few == many else f"{few} to {many} seeds")
    return ", ".join(parts)


def _by_how_much(found: list[tuple[SweepGroup, Result]]) -> list[str]:
    """For each model, means over tasks and what lies between them."""
    told = []
    by_slice = {name: groups for name, groups in slices(found).items() if len(_tasks(groups)) > 1}
    if len(by_slice) > SLICES_TOLD:
        return []
    for name, groups in by_slice.items():
        shared = [(group, result) for group, result in groups if len(_candidates(result)) > 1]
        keys = [key for key in CANDIDATES if shared and all(key in _candidates(result) for _, result in shared)]
        if len(keys) < 2:
            continue
        means = {key: over_tasks(shared, accuracy_of(key), SHARE) for key in keys}
        shares = [
            f"{_noun(key)} {rounded(100 * mean.mean, in_points(mean.ci95), 0, 1)} %"
            for key, mean in means.items()
            if mean is not None
        ]
        gaps = [(one, over_tasks(shared, difference_of(keys[0], one), GAP)) for one in keys[1:]]
        less = [f"less {_noun(one)} {_gap(gap)}" for one, gap in gaps if gap is not None]
        n = len(_tasks(shared))
        told.append(f"{name}, mean over {plural(n, 'task')}: {', '.join(shares)}; {_noun(keys[0])} {', '.join(less)}.")
    return told


def _tasks(groups: Iterable[tuple[SweepGroup, Result]]) -> set[str | None]:
    return {group.task for group, _ in groups}


def _gap(gap: TaskMean) -> str:
    """`+3 points (95 % interval over tasks -1 to +7)`, rounded to what the interval supports."""
    ends = in_points(gap.ci95)
    if ends is None:
        return f"{difference(gap.mean)} points ({difference(gap.low[0])} to {difference(gap.high[0])})"
    mean, interval = rounded(100 * gap.mean, ends, 0, 1, sign=True), rounded_interval(ends, 0, 1, sign=True)
    return f"{mean} points (95 % interval over tasks {interval})"


def _against_zero_shot(found: list[tuple[SweepGroup, Result]]) -> list[str]:
    beaters = [(group, beaters_of_zero_shot(result)) for group, result in found]
    judged = [(group, keys) for group, keys in beaters if keys is not None]
    if not judged:
        return []
    nothing = [group for group, keys in judged if not keys]
    if not nothing:
        return [f"Something is shown to beat zero-shot in all of {plural(len(judged), 'group')}."]
    told = f"No learner is shown to beat zero-shot in {len(nothing)} of {plural(len(judged), 'group')}"
    return [f"{told}: {named(nothing)}."]


def _against_guessing(found: list[tuple[SweepGroup, Result]]) -> list[str]:
    """In which groups nothing is shown to be learned: no learner beats guessing and the commonest label."""
    judged = []
    for group, result in found:
        shown = [above_guessing(result, key) for key in result.accuracy]
        if majority_level(result) is not None and any(each is not None for each in shown):
            judged.append((group, any(each is True for each in shown)))
    if not judged:
        return []
    nothing = [group for group, learned in judged if not learned]
    told = "better than guessing and than always giving the commonest label"
    if not nothing:
        return [f"Something is shown to answer {told} in all of {plural(len(judged), 'group')}."]
    return [
        f"No learner is shown to answer {told} in {len(nothing)} of {plural(len(judged), 'group')}: {named(nothing)}. "
        "Nothing there has been shown to be learned, whatever learner is ahead."
    ]


def _collapse(found: list[tuple[SweepGroup, Result]]) -> list[str]:
    told = []
    for key in CANDIDATES:
        there = [(group, result) for group, result in found if key in result.predictions]
        fallen = [group for group, result in there if key in collapsed(result)]
        if fallen:
            share = f"{len(fallen)} of {plural(len(there), 'group')}"
            told.append(f"{capital(_noun(key))} has collapsed into one class in {share}: {named(fallen)}.")
        elif key == "icl" and there:
            told.append(f"{capital(_noun(key))} has collapsed into one class in no group.")
    return told


def _similarity(found: list[tuple[SweepGroup, Result]]) -> list[str]:
    """In how many groups the updates by context and by finetuning are alike, by the measure that each is judged by."""
    by_measure: dict[tuple[str, str], list[tuple[SweepGroup, Result]]] = {}
    for group, result in found:
        judged = judged_by(result)
        if judged is not None:
            by_measure.setdefault(judged, []).append((group, result))
    told = []
    for (key, name), groups in by_measure.items():
        placed = [
            (place, ends, group)
            for group, result in groups
            if (place := finite(result.calibrated[key].mean)) is not None
            and (ends := known(result.calibrated[key].ci95)) is not None
        ]
        if not placed:
            continue
        clear = [group for _, ends, group in placed if ends[0] > 0]
        reaching = [group for _, ends, group in placed if ends[0] > 0 and ends[1] >= 1]
        low, high = min(placed, key=lambda each: each[0]), max(placed, key=lambda each: each[0])
        sentence = (
            f"Similarity of the updates by context and by finetuning ({name}, 0: highest control, 1: ceiling) is "
            f"clearly above 0 in {len(clear)} of {plural(len(placed), 'group')}"
        )
        sentence += f" and reaches 1 in {len(reaching) or 'none'}" if clear else ""
        if len(placed) > 1:
            sentence += (
                f"; it ranges from {rounded(*low[:2], 1, 2)} ({group_name(low[2])}) to {rounded(*high[:2], 1, 2)} "
                f"({group_name(high[2])})"
            )
        told.append(f"{sentence}.")
    return told


def _other_studies(sweep: SweepResult) -> list[str]:
    other = [group for group in sweep.groups if group.result is not None and not group.result.accuracy]
    if not other:
        return []
    counts: dict[str, int] = {}
    for group in other:
        counts[study_name(group)] = counts.get(study_name(group), 0) + 1
    told = listed([f"{name} ({n})" if n > 1 else name for name, n in counts.items()])
    return [f"Results of other studies are in a table of their own: {told}."]


def _standing(sweep: SweepResult, found: list[tuple[SweepGroup, Result]]) -> list[str]:
    """What is missing, and what the numbers cannot tell."""
    told = []
    by_status = cells_by_status(sweep)
    failed, pending = len(by_status["failed"]), len(by_status["pending"])
    if failed or pending:
        missing = [f"{failed} failed"] if failed else []
        missing += [f"{pending} {'was' if pending == 1 else 'were'} not begun"] if pending else []
        told.append(f"Of {plural(len(sweep.cells), 'cell')} {listed(missing)}: the sentences here leave them out.")
    seeds = {len(each.per_seed) for _, result in found for each in result.accuracy.values() if each.per_seed}
    if seeds == {1}:
        told.append("There is one demonstration seed a group, so this sweep cannot show how much the draw matters.")
    return told
