"""Notes on properties of a task's rows that limit what its results mean."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from dualform.errors import TaskError
from dualform.tasks.labels import abbreviate
from dualform.tasks.options import listed
from dualform.tasks.splits import text_of
from dualform.tasks.task import Example, Task

_FEW = 2
"""Minimum number of rows per choice for the note that choice 0 is never correct."""


def row_notes(task: Task) -> list[str]:
    """Notes on the rows of a finished task."""
    if task.is_multiple_choice:
        return _choice_number_notes(task)
    return [*_contradiction_notes(task), *_rare_label_notes(task)]


def _contradiction_notes(task: Task) -> list[str]:
    """Note on texts that occur with several labels, which no learner can all predict correctly."""
    labels: dict[str, Counter[int]] = defaultdict(Counter)
    reported: dict[str, Counter[int]] = defaultdict(Counter)
    example_of: dict[str, Example] = {}
    for split, examples in task.splits.items():
        for example in examples:
            text = text_of(example, task.template.fields)
            labels[text][example.label] += 1
            example_of.setdefault(text, example)
            if split == task.report_split:
                reported[text][example.label] += 1
    several = [text for text, counts in labels.items() if len(counts) > 1]
    if not several:
        return []
    rows = sum(labels[text].total() for text in several)
    names = task.label_names or task.label_words or ()
    first = several[0]
    text = abbreviate(" ".join(example_of[first].fields[name] for name in task.template.fields))
    best = sum(max(counts.values()) for counts in reported.values())
    total = sum(counts.total() for counts in reported.values())
    bound = f" Accuracy on the {task.report_split} split cannot exceed {best / total:.1%}." if best < total else ""
    verb = "texts have" if len(several) > 1 else "text has"
    return [
        f"{len(several)} {verb} different labels in different rows ({rows} rows in all), such as {text!r} "
        f"({listed([names[label] for label in sorted(labels[first])])}).{bound}"
    ]


def _rare_label_notes(task: Task) -> list[str]:
    names = task.label_names or task.label_words or ()
    notes = []
    for split, consequence in (
        (task.report_split, "so results say nothing about"),
        ("train", "so no demonstration can show"),
    ):
        present = {example.label for example in task.splits[split]}
        missing = [names[label] for label in range(task.n_labels) if label not in present]
        if missing:
            what, them = ("labels have", "them") if len(missing) > 1 else ("label has", "it")
            notes.append(f"{len(missing)} {what} no row in the {split} split, {consequence} {them}: {listed(missing)}.")
    return notes


def _choice_number_notes(task: Task) -> list[str]:
    examples = [example for examples in task.splits.values() for example in examples]
    right = Counter(example.label for example in examples)
    if right[0] or len(examples) < _FEW * task.n_labels:
        return []
    return [
        f"Choice 0 is never correct in {len(examples)} rows. Choices are numbered from 0; if the file counts from 1, "
        "subtract 1."
    ]


def drop_repeated_choices(examples: Mapping[str, Sequence[Example]]) -> tuple[dict[str, list[Example]], list[str]]:
    """Leave out rows in which the correct choice occurs twice: rounding would decide which copy scores higher.

    Returns:
        The remaining rows, and notes on the rows with equal choices.

    Raises:
        TaskError: No row remains.
    """
    kept: dict[str, list[Example]] = {}
    dropped, alike, total = 0, 0, 0
    for split, rows in examples.items():
        kept[split] = []
        for example in rows:
            total += 1
            texts = Counter(choice.strip() for choice in example.choices or ())
            if texts[(example.choices or ())[example.label].strip()] > 1:
                dropped += 1
                continue
            alike += max(texts.values()) > 1
            kept[split].append(example)
    if total and dropped == total:
        raise TaskError(
            f"in all {total} rows the correct choice occurs twice, so rounding would decide between the copies. Make "
            "the choices of a row different."
        )
    notes = []
    if dropped:
        notes.append(
            f"Left out: {dropped} of {total} rows in which the correct choice occurs twice, so rounding would decide "
            "between the copies."
        )
    if alike:
        notes.append(f"{alike} of {total} rows have two equal wrong choices, which receive the same score.")
    return kept, notes
