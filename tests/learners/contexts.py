"""The input of a learner, as a study gives it, from a small experiment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from dualform.learners.base import AdaptationContext
from dualform.studies.experiment import Experiment
from dualform.tasks.build import build_task
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task import Task
from tests.studies.small import sentences


def choices_task() -> Task:
    """A multiple-choice task: each row with two or three endings of its own."""
    rows = [
        {"text": text, "choices": ["the bad one", "works everywhere", "nothing"][: 2 + i % 2], "label": i % 2}
        for i, (text, _) in enumerate(sentences())
    ]
    return build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), TaskOptions(choices="choices"))


def budget(n: int) -> dict[str, Any]:
    """Settings with a budget of labels, in place of a selection split and of controls."""
    return {"labels": n, "selection_limit": None, "controls": ()}


def context_of(experiment: Experiment[Any], seed: int = 1, facts: dict[str, Any] | None = None) -> AdaptationContext:
    """The context of one seed; what the learner records is added to `facts`."""
    recorded: dict[str, Any] = {} if facts is None else facts

    def record(given: Mapping[str, Any]) -> None:
        recorded.update(given)

    return AdaptationContext(experiment, experiment.draw(seed), record=record)


def relabelled(context: AdaptationContext, labels: Sequence[int], n_labels: int = 2) -> AdaptationContext:
    """The same context with other labels of the labelled examples, of a task with so many classes."""
    labelled = replace(context.labelled, labels=tuple(labels))
    words = ("negative", "positive", "mixed", "absent")[:n_labels]
    task = replace(context.task, label_words=words, label_names=words)
    setup: Any = replace(context.setup, task=task)  # type: ignore[type-var]
    return replace(context, setup=setup, drawn=replace(context.drawn, labelled=labelled))  # type: ignore[type-var]
