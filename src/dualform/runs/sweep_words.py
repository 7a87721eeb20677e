"""The sentences in which a sweep's results are reported.

A group is one model, one task and one set of options, with all its seeds. A group counts as a win for a learner only if
that group's own test or intervals show it significantly ahead. Queries of different groups are never pooled. The only
numbers across groups are means over tasks, to which each task contributes one number. Their intervals describe the
variation between tasks, not between queries.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dualform.paired_t import student_interval
from dualform.report.measures import in_order
from dualform.report.numerals import MISSING, finite, known, rounded, rounded_interval
from dualform.report.palette import learner_style, learners_in_order
from dualform.report.phrases import capital, difference, in_points, leading_sentences, listed, plural
from dualform.result import Result
from dualform.studies.against_words import CANDIDATES, compare_accuracy, not_beaten
from dualform.studies.baseline_words import above_guessing, collapsed, majority_level
from dualform.studies.comparison.similarity_words import judged_by
from dualform.studies.study import STUDIES
from dualform.sweep_result import SweepCell, SweepGroup, SweepResult

MOST_NAMES = 6
"""Most groups that a sentence lists by name; for more, it gives the first few and the number of the others."""

MOST_MODEL_SENTENCES = 4
"""Most models (with their options) that each have a sentence in the verdict; with more, only the table has them."""


@dataclass(frozen=True)
class TaskMean:
    """A mean over tasks, with one number for each task."""

    mean: float
    ci95: tuple[float | None, float | None]
    """Student's t interval over the tasks; (None, None) for fewer than three tasks."""
    n: int
    """Number of tasks."""
    low: tuple[float, str]
    """The lowest number and its task."""
    high: tuple[float, str]
    """The highest number and its task."""


def sweep_headlines(sweep: SweepResult) -> list[str]:
    """At most four of the sentences of `sweep_verdict`: the winners, mean accuracies, similarity."""
    results = comparison_results(sweep)
    winners, means = _winner_sentences(results), _mean_accuracy_sentences(results)
    similarity, others = _similarity_sentences(results)[:1], sweep_verdict(sweep)
    ranked = [*winners, *means[:1], *similarity, *means[1:], *others]
    return leading_sentences(*([sentence] for sentence in dict.fromkeys(ranked)))


def sweep_notes(sweep: SweepResult) -> list[str]:
    """The cautions among the sentences of `sweep_verdict`."""
    results = comparison_results(sweep)
    if not sweep.groups or not results:
        return []
    return [
        *_guessing_sentences(results, only_problems=True),
        *_zero_shot_sentences(results, only_problems=True),
        *_collapse_sentences(results, only_problems=True),
        *_limitation_sentences(sweep, results),
    ]


def sweep_verdict(sweep: SweepResult) -> list[str]:
    """The results of a sweep in sentences, most important first.

    Returns:
        Sentences without markup; empty for a sweep without groups. They may contain names of models and tasks, so
        escape them before putting them into a page.
    """
    if not sweep.groups:
        return []
    results = comparison_results(sweep)
    sentences = [
        *_winner_sentences(results),
        *_mean_accuracy_sentences(results),
        *_guessing_sentences(results),
        *_zero_shot_sentences(results),
        *_collapse_sentences(results),
        *_similarity_sentences(results),
        *_other_study_sentences(sweep),
    ]
    if not sentences:
        return [f"No group of this sweep has a result yet. {cell_sentence(sweep)}"]
    return sentences + _limitation_sentences(sweep, results)


def comparison_results(sweep: SweepResult) -> list[tuple[SweepGroup, Result]]:
    """The groups whose results have accuracies, with those results."""
    return [(group, group.result) for group in sweep.groups if group.result is not None and group.result.accuracy]


def model_and_options(group: SweepGroup) -> str:
    """A group's model and options, without its task: `smollm2-135m (k 4)`."""
    return (group.model or study_name(group)) + _options(group)


def group_name(group: SweepGroup) -> str:
    """A group's name for a sentence: `smollm2-135m on sst2 (k 4)`."""
    name = group.model or study_name(group)
    return (f"{name} on {group.task}" if group.task else name) + _options(group)


def study_name(group: SweepGroup) -> str:
    """The name of a group's study: `comparison`, `stability` and so on."""
    return STUDIES[group.study].noun if group.study in STUDIES else group.study


def option_text(value: Any) -> str:
    """An option's value as text: `4`, `true`, `0.001`, `zsl, icl`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ", ".join(map(option_text, value))
    if isinstance(value, dict):
        return ", ".join(f"{key}: {option_text(each)}" for key, each in value.items())
    return f"{value:g}" if isinstance(value, float) else MISSING if value is None else str(value)


def group_by_model(results: Iterable[tuple[SweepGroup, Result]]) -> dict[str, list[tuple[SweepGroup, Result]]]:
    """The groups by `model_and_options`, in the order of the sweep; those under one name differ only in their task."""
    by_name: dict[str, list[tuple[SweepGroup, Result]]] = {}
    for group, result in results:
        by_name.setdefault(model_and_options(group), []).append((group, result))
    return by_name


def learners_of(results: Iterable[tuple[SweepGroup, Result]]) -> list[str]:
    """All learners of these groups, in the standard order."""
    return learners_in_order(dict.fromkeys(key for _, result in results for key in result.accuracy))


def accuracy_of(learner: str) -> Callable[[Result], float | None]:
    """A function that reads a learner's mean accuracy from a result."""
    return lambda result: finite(result.accuracy[learner].mean) if learner in result.accuracy else None


def difference_of(first: str, second: str) -> Callable[[Result], float | None]:
    """A function that reads the mean accuracy of `first` minus that of `second` from a result."""

    def subtract(result: Result) -> float | None:
        accuracies = accuracy_of(first)(result), accuracy_of(second)(result)
        return None if accuracies[0] is None or accuracies[1] is None else accuracies[0] - accuracies[1]

    return subtract


SHARE_RANGE = (0.0, 1.0)
"""Range of an accuracy or an agreement."""
DIFFERENCE_RANGE = (-1.0, 1.0)
"""Range of a difference between two accuracies."""


def mean_over_tasks(
    results: Sequence[tuple[SweepGroup, Result]],
    number: Callable[[Result], float | None],
    within: tuple[float, float] | None = None,
) -> TaskMean | None:
    """Mean over tasks of a number that is read from each result.

    Args:
        results: Groups with their results. Several groups with the same task are averaged into one number.
        number: Reads the number from a result; results for which it returns None are left out.
        within: Range of such a number. The interval is cut to it, because with few tasks it can extend beyond.

    Returns:
        The mean. It has Student's t interval if there are at least three tasks; with two, the multiplier of 12.7 makes
        the interval useless. None if no result has the number.
    """
    by_task: dict[str, list[float]] = {}
    for group, result in results:
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


def groups_by_winner(results: Iterable[tuple[SweepGroup, Result]]) -> dict[str | None, list[SweepGroup]]:
    """The groups by the learner, of prompting, finetuning and folding, that is significantly the most accurate.

    Groups without such a learner are under None. Groups in which fewer than two of the three were run are left out.
    """
    by_learner: dict[str | None, list[SweepGroup]] = {key: [] for key in (*CANDIDATES, None)}
    for group, result in results:
        if len(_candidates(result)) > 1:
            unbeaten = not_beaten(result)
            by_learner[unbeaten[0] if len(unbeaten) == 1 else None].append(group)
    return by_learner


def learners_above_zero_shot(result: Result) -> list[str] | None:
    """Learners that are significantly more accurate than zero-shot; None if nothing can be compared with zero-shot."""
    others = [key for key in learners_in_order(result.accuracy) if key != "zsl"]
    if "zsl" not in result.accuracy:
        return None
    orders = {key: compare_accuracy(result, key, "zsl") for key in others}
    if all(order is None for order in orders.values()):
        return None
    return [key for key, order in orders.items() if order == 1]


def seed_spread(result: Result, learner: str) -> tuple[float, float, float | None, int] | None:
    """Lowest accuracy, highest accuracy, standard deviation and number of seeds; None for fewer than two seeds.

    The standard deviation is the sample's (n - 1 in the denominator), and None for fewer than three seeds.
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
    """The cells by status: `finished`, `reused`, `failed` and `pending`."""
    by_status: dict[str, list[SweepCell]] = {"finished": [], "reused": [], "failed": [], "pending": []}
    for cell in sweep.cells:
        by_status[cell.status].append(cell)
    return by_status


def cell_sentence(sweep: SweepResult) -> str:
    """The number of cells, in total and by status."""
    by_status = cells_by_status(sweep)
    words = {
        "finished": "computed in this run",
        "reused": "reused from the store",
        "failed": "failed",
        "pending": "not started",
    }
    counts = [f"{len(cells)} {words[status]}" for status, cells in by_status.items() if cells]
    return f"{plural(len(sweep.cells), 'cell')}: {', '.join(counts)}." if counts else "No cells."


def list_group_names(groups: Sequence[SweepGroup]) -> str:
    """The groups' names as a list, cut to `MOST_NAMES`."""
    names = list(map(group_name, groups))
    if len(names) > MOST_NAMES:
        return f"{', '.join(names[: MOST_NAMES - 1])} and {len(names) - MOST_NAMES + 1} others"
    return listed(names)


def varied_axes(results: Sequence[tuple[SweepGroup, Result]]) -> dict[str, list[Any]]:
    """The axes in the groups' options that take at least two values, with those values; numbers are sorted."""
    values: dict[str, list[Any]] = {}
    for group, _ in results:
        for axis, value in group.options.items():
            seen = values.setdefault(axis, [])
            if value not in seen:
                seen.append(value)
    return {axis: sorted(seen) if is_numeric(seen) else seen for axis, seen in values.items() if len(seen) > 1}


def is_numeric(values: Iterable[Any]) -> bool:
    """Whether all values of an axis are numbers."""
    return all(finite(value) is not None for value in values)


def judged_measures(results: Iterable[tuple[SweepGroup, Result]]) -> list[str]:
    """Keys of all measures in the results; the one on which the verdict is based comes first."""
    results = list(results)
    keys = in_order(dict.fromkeys(key for _, result in results for key in result.similarity))
    first = next((judged[0] for _, result in results if (judged := judged_by(result)) is not None), None)
    return sorted(keys, key=lambda key: key != first)


def _options(group: SweepGroup) -> str:
    options = [f"{axis} {option_text(value)}" for axis, value in group.options.items()]
    return f" ({', '.join(options)})" if options else ""


def _candidates(result: Result) -> list[str]:
    return [key for key in CANDIDATES if accuracy_of(key)(result) is not None]


def _noun(key: str) -> str:
    return learner_style(key).noun


def _winner_sentences(results: list[tuple[SweepGroup, Result]]) -> list[str]:
    """In how many groups prompting, finetuning or folding is the most accurate."""
    by_learner = groups_by_winner(results)
    n = sum(map(len, by_learner.values()))
    if not n:
        return []
    keys = [key for key in CANDIDATES if any(key in _candidates(result) for _, result in results)]
    size = _sweep_size([(group, result) for group, result in results if len(_candidates(result)) > 1])
    nouns = listed([_noun(key) for key in keys])
    if n == len(by_learner[None]):
        where = f"In the only group ({size})" if n == 1 else f"In all {n} groups ({size})"
        return [f"{where}, the most accurate of {nouns} is not significantly ahead of the others."]
    wins = sorted(((key, len(by_learner[key])) for key in keys), key=lambda item: -item[1])
    counts = listed([f"{_noun(key)} in {count}" for key, count in wins])
    sentence = f"Significantly the most accurate of {nouns}, in {plural(n, 'group')} ({size}): {counts}"
    undecided = len(by_learner[None])
    return [f"{sentence}; none of them in {undecided}." if undecided else f"{sentence}."]


def _sweep_size(results: Sequence[tuple[SweepGroup, Result]]) -> str:
    """`2 models, 6 tasks, 3 seeds each`."""
    parts = [
        plural(len({group.model for group, _ in results}), "model"),
        plural(len({group.task for group, _ in results}), "task"),
    ]
    seeds = {len(each.per_seed) for _, result in results for each in result.accuracy.values() if each.per_seed}
    if seeds:
        few, many = min(seeds), max(seeds)
        parts.append(plural(many, "seed") + " each" if few == many else f"{few} to {many} seeds")
    return ", ".join(parts)


def _mean_accuracy_sentences(results: list[tuple[SweepGroup, Result]]) -> list[str]:
    """For each model, the learners' mean accuracies over tasks and the differences between them."""
    sentences = []
    by_model = {name: groups for name, groups in group_by_model(results).items() if len(_tasks(groups)) > 1}
    if len(by_model) > MOST_MODEL_SENTENCES:
        return []
    for name, groups in by_model.items():
        shared = [(group, result) for group, result in groups if len(_candidates(result)) > 1]
        keys = [key for key in CANDIDATES if shared and all(key in _candidates(result) for _, result in shared)]
        if len(keys) < 2:
            continue
        means = {key: mean_over_tasks(shared, accuracy_of(key), SHARE_RANGE) for key in keys}
        shares = [
            f"{_noun(key)} {rounded(100 * mean.mean, in_points(mean.ci95), 0, 1)} %"
            for key, mean in means.items()
            if mean is not None
        ]
        differences = [
            f"minus {_noun(key)} {_format_difference(mean)}"
            for key in keys[1:]
            if (mean := mean_over_tasks(shared, difference_of(keys[0], key), DIFFERENCE_RANGE)) is not None
        ]
        n = plural(len(_tasks(shared)), "task")
        sentences.append(
            f"{name}, mean accuracy over {n}: {', '.join(shares)}; {_noun(keys[0])} {', '.join(differences)}."
        )
    return sentences


def _tasks(groups: Iterable[tuple[SweepGroup, Result]]) -> set[str | None]:
    return {group.task for group, _ in groups}


def _format_difference(mean: TaskMean) -> str:
    """`+3 points (95% CI over tasks -1 to +7)`, rounded to the precision of the interval."""
    ends = in_points(mean.ci95)
    if ends is None:
        return f"{difference(mean.mean)} points (range {difference(mean.low[0])} to {difference(mean.high[0])})"
    text, interval = rounded(100 * mean.mean, ends, 0, 1, sign=True), rounded_interval(ends, 0, 1, sign=True)
    return f"{text} points (95% CI over tasks {interval})"


def _zero_shot_sentences(results: list[tuple[SweepGroup, Result]], only_problems: bool = False) -> list[str]:
    above = [(group, learners_above_zero_shot(result)) for group, result in results]
    judged = [(group, keys) for group, keys in above if keys is not None]
    if not judged:
        return []
    without = [group for group, keys in judged if not keys]
    if not without and only_problems:
        return []
    if not without:
        return [f"At least one learner is significantly better than zero-shot in {_all_groups(len(judged))}."]
    count = f"{len(without)} of {plural(len(judged), 'group')}"
    return [f"No learner is significantly better than zero-shot in {count}: {list_group_names(without)}."]


def _all_groups(n: int) -> str:
    return f"all {n:,} groups" if n > 1 else "the only group"


def _guessing_sentences(results: list[tuple[SweepGroup, Result]], only_problems: bool = False) -> list[str]:
    """In which groups no learner is significantly better than guessing and than always giving the most common label."""
    judged = []
    for group, result in results:
        above = [above_guessing(result, key) for key in result.accuracy]
        if majority_level(result) is not None and any(each is not None for each in above):
            judged.append((group, any(each is True for each in above)))
    if not judged:
        return []
    without = [group for group, learned in judged if not learned]
    better = "significantly better than guessing and than always giving the most common label"
    if not without and only_problems:
        return []
    if not without:
        return [f"At least one learner is {better} in {_all_groups(len(judged))}."]
    count = f"{len(without)} of {plural(len(judged), 'group')}"
    return [
        f"No learner is {better} in {count}: {list_group_names(without)}. There, "
        "differences between learners are not evidence of learning."
    ]


def _collapse_sentences(results: list[tuple[SweepGroup, Result]], only_problems: bool = False) -> list[str]:
    sentences = []
    for key in CANDIDATES:
        with_learner = [(group, result) for group, result in results if key in result.predictions]
        affected = [group for group, result in with_learner if key in collapsed(result)]
        if affected:
            count = f"{len(affected)} of {plural(len(with_learner), 'group')}"
            sentences.append(
                f"{capital(_noun(key))} has collapsed into one class in {count}: {list_group_names(affected)}."
            )
        elif key == "icl" and with_learner and not only_problems:
            sentences.append(f"{capital(_noun(key))} has not collapsed into one class in any group.")
    return sentences


def _similarity_sentences(results: list[tuple[SweepGroup, Result]]) -> list[str]:
    """In how many groups the updates by context and by finetuning are similar, by the measure used for the verdict."""
    by_measure: dict[tuple[str, str], list[tuple[SweepGroup, Result]]] = {}
    for group, result in results:
        judged = judged_by(result)
        if judged is not None:
            by_measure.setdefault(judged, []).append((group, result))
    sentences = []
    for (key, name), groups in by_measure.items():
        scores = [
            (score, ends, group)
            for group, result in groups
            if (score := finite(result.calibrated[key].mean)) is not None
            and (ends := known(result.calibrated[key].ci95)) is not None
        ]
        if not scores:
            continue
        above = [group for _, ends, group in scores if ends[0] > 0]
        reaching = [group for _, ends, group in scores if ends[0] > 0 and ends[1] >= 1]
        low, high = min(scores, key=lambda each: each[0]), max(scores, key=lambda each: each[0])
        sentence = (
            f"Similarity of the updates by ICL and by finetuning ({name}; 0: floor, 1: ceiling) is "
            f"significantly above 0 in {len(above)} of {plural(len(scores), 'group')}"
        )
        if above:
            n = len(reaching) or "none"
            sentence += f"; in {n} of these the interval includes the ceiling (1) or lies above it"
        if len(scores) > 1:
            sentence += (
                f"; values range from {rounded(*low[:2], 1, 2)} ({group_name(low[2])}) to {rounded(*high[:2], 1, 2)} "
                f"({group_name(high[2])})"
            )
        sentences.append(f"{sentence}.")
    return sentences


def _other_study_sentences(sweep: SweepResult) -> list[str]:
    other = [group for group in sweep.groups if group.result is not None and not group.result.accuracy]
    if not other:
        return []
    counts: dict[str, int] = {}
    for group in other:
        counts[study_name(group)] = counts.get(study_name(group), 0) + 1
    studies = listed([f"{name} ({n})" if n > 1 else name for name, n in counts.items()])
    return [f"Results of other studies are in a separate table: {studies}."]


def _limitation_sentences(sweep: SweepResult, results: list[tuple[SweepGroup, Result]]) -> list[str]:
    """Which cells are missing, and what the sweep cannot show."""
    sentences = []
    by_status = cells_by_status(sweep)
    failed, pending = len(by_status["failed"]), len(by_status["pending"])
    if failed or pending:
        missing = [f"{failed} failed"] if failed else []
        missing += [f"{pending} {'was' if pending == 1 else 'were'} not started"] if pending else []
        sentences.append(
            f"Of {plural(len(sweep.cells), 'cell')}, {listed(missing)}; their results are missing from this report."
        )
    seeds = {len(each.per_seed) for _, result in results for each in result.accuracy.values() if each.per_seed}
    if seeds == {1}:
        sentences.append(
            "Each group has a single demonstration seed, so this sweep cannot show how much accuracy depends on the "
            "choice of demonstrations."
        )
    return sentences
