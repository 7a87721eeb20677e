"""What in a task's rows makes a number mean less than it seems, in plain sentences."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from dualform.errors import TaskError
from dualform.tasks.labels import shown
from dualform.tasks.options import listed
from dualform.tasks.splits import text_of
from dualform.tasks.task import Example, Task

_FEW = 2
"""Rows in which a choice's number must be absent before that is remarked on, times the number of choices."""


def remarks_on(task: Task) -> list[str]:
    """Notes on the rows of a finished task."""
    if task.is_multiple_choice:
        return _about_choice_numbers(task)
    return [*_about_contradictions(task), *_about_rare_labels(task)]


def _about_contradictions(task: Task) -> list[str]:
    """Texts that stand with several labels: no learner can be right about all of them."""
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
    text = shown(" ".join(example_of[first].fields[name] for name in task.template.fields))
    best = sum(max(counts.values()) for counts in reported.values())
    total = sum(counts.total() for counts in reported.values())
    bound = f" Accuracy on the {task.report_split} split cannot exceed {best / total:.1%}." if best < total else ""
    verb = "texts have" if len(several) > 1 else "text has"
    return [
        f"{len(several)} {verb} different labels in different rows ({rows} rows in all), such as {text!r} "
        f"({listed([names[label] for label in sorted(labels[first])])}).{bound}"
    ]


def _about_rare_labels(task: Task) -> list[str]:
    names = task.label_names or task.label_words or ()
    notes = []
    for split, lacking in ((task.report_split, "it is never the right answer"), ("train", "nothing demonstrates it")):
        there = {example.label for example in task.splits[split]}
        missing = [names[label] for label in range(task.n_labels) if label not in there]
        if missing:
            what = "labels have" if len(missing) > 1 else "label has"
            why = lacking.replace("it is", "they are").replace("answer", "answers") if len(missing) > 1 else lacking
            why = why.replace("demonstrates it", "demonstrates them") if len(missing) > 1 else why
            notes.append(f"{len(missing)} {what} no row in the {split} split, where {why}: {listed(missing)}.")
    return notes


def _about_choice_numbers(task: Task) -> list[str]:
    examples = [example for examples in task.splits.values() for example in examples]
    right = Counter(example.label for example in examples)
    if right[0] or len(examples) < _FEW * task.n_labels:
        return []
    return [
        f"Choice 0 is never right in {len(examples)} rows; choices are numbered from 0. Where the file counts from 1, "
        "subtract 1."
    ]


def choice_remarks(examples: Mapping[str, Sequence[Example]]) -> tuple[dict[str, list[Example]], list[str]]:
    """Leave out rows whose right choice stands there twice, and note what is alike.

    Which of two equal texts has the higher score is a matter of rounding, so such a row has no answer that can be
    scored.

    Returns:
        The rows that are left, and notes.

    Raises:
        TaskError: Nothing is left.
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
            f"the right choice stands twice in every one of {total} rows, so that rounding would decide which is "
            "answered. Make the choices of a row different."
        )
    notes = []
    if dropped:
        notes.append(
            f"Left out: {dropped} of {total} rows whose right choice stands there twice, so that rounding would decide "
            "which is answered."
        )
    if alike:
        notes.append(f"{alike} of {total} rows have two equal wrong choices, which are scored alike.")
    return kept, notes
