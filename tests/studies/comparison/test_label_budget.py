"""With a budget of labels, no other label is ever read."""

import dataclasses
from typing import Any

import pytest

from dualform.result import LabelCount
from dualform.studies.comparison.run import Comparison, compare
from dualform.tasks.demonstrations import draw_demonstrations
from dualform.tasks.task import Task
from tests.studies.small import numbers, small_config, small_lm, small_task

PROMPTED = ("icl_contextual", "icl_batch", "icl_domain", "icl_ensemble")
LEARNERS = ("zsl", "icl", "ft", "lora", "probe", "fold", "tfidf", "embedding", *PROMPTED, "knn")
SETTINGS: dict[str, Any] = {
    "labels": 6,
    "k": 4,
    "learners": LEARNERS,
    "rates": (1e-3, 1e-2),
    "lora_rates": (1e-3, 1e-2),
    "fold": {"texts": 8, "plain": "none"},
    "controls": (),
    "selection_limit": None,
}


def run(task: Task, **changes: Any) -> Comparison:
    return compare(small_config(**(SETTINGS | changes)), lm=small_lm(), task=task)


def poisoned(task: Task, seeds: tuple[int, ...], n: int) -> Task:
    """The task with a wrong label wherever it is neither in the seeds' budgets nor reported."""
    bought = {row for seed in seeds for row in draw_demonstrations(task, n, seed).rows}
    splits = dict(task.splits)
    for name in ("train", task.selection_split):
        splits[name] = tuple(
            example
            if name == "train" and example.row in bought
            else dataclasses.replace(example, label=1 - example.label)
            for example in splits[name]
        )
    return dataclasses.replace(task, splits=splits)


@pytest.mark.parametrize("how", ["cross-validation", "prequential"])
def test_no_label_outside_the_budget_is_read(how: str):
    expected = run(small_task(), choose_inside=how).result
    poisoned_result = run(poisoned(small_task(), (1, 2), 6), choose_inside=how).result
    assert numbers(poisoned_result) == numbers(expected)


def test_the_protocol_with_a_selection_split_reads_other_labels():
    changes = {"labels": None, "selection_limit": 6, "learners": ("zsl", "icl", "ft")}
    expected = run(small_task(), **changes).result.trials
    assert run(poisoned(small_task(), (1, 2), 6), **changes).result.trials != expected


def test_the_labels_of_every_learner_are_counted():
    labels = run(small_task()).result.labels
    assert labels["zsl"] == LabelCount(demonstrations=0, training=0, settings=0, total=0)
    assert labels["icl"] == LabelCount(demonstrations=4, training=0, settings=0, total=4)
    assert all(labels[name] == labels["icl"] for name in PROMPTED)
    # Any of the six may be retrieved for a query.
    assert labels["knn"] == LabelCount(demonstrations=6, training=0, settings=0, total=6)
    assert labels["ft"] == labels["lora"] == LabelCount(demonstrations=0, training=6, settings=6, total=6)
    assert labels["probe"] == labels["tfidf"] == LabelCount(demonstrations=0, training=6, settings=0, total=6)
    # Too few to choose a layer.
    assert labels["embedding"] == LabelCount(demonstrations=0, training=6, settings=0, total=6)
    assert labels["fold"] == LabelCount(demonstrations=0, training=4, settings=0, total=4)


def test_labels_of_the_selection_split_count_like_those_in_training():
    labels = run(small_task(), labels=None, selection_limit=5, tune="first").result.labels
    assert labels["ft"] == LabelCount(demonstrations=0, training=4, settings=5, total=9)
    assert run(small_task(), labels=None, rates=(1e-2,)).result.labels["ft"].total == 4


def test_a_single_label_is_enough():
    result = run(small_task(), labels=1, k=1).result
    assert result.labels["ft"].total == 1
    assert all(trial.status == "finished" for trial in result.trials)


def test_every_trial_is_scored_inside_the_budget():
    trials = [trial for trial in run(small_task()).result.trials if trial.learner == "ft"]
    assert {(trial.seed, trial.learning_rate) for trial in trials} == {(s, r) for s in (1, 2) for r in (1e-3, 1e-2)}
    # Six labels, each predicted once.
    assert all(trial.validation_accuracy is not None for trial in trials)
    assert all((6 * trial.validation_accuracy) % 1 == pytest.approx(0, abs=1e-9) for trial in trials)  # type: ignore[operator]
