"""Weights and prompt together, and all learners trained in batches, in a comparison with a budget of labels."""

import dataclasses
from typing import Any

import pytest
import torch

from dualform.errors import ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.trained_and_prompted import leave_one_out
from dualform.models.editing.edit import applied
from dualform.result import LabelCount
from dualform.studies.comparison.run import compare
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import naive_scores
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task

TRAINED = ("lora", "full", "bitfit", "lora_icl")
SETTINGS: dict[str, Any] = {
    "labels": 6,
    "k": 2,
    "learners": ("zsl", "icl", *TRAINED, "ttt"),
    "training": {"epochs": 1, "batch_size": 4},
    "controls": (),
    "selection_limit": None,
}


def context(**changes: Any) -> AdaptationContext:
    experiment = small_experiment(**(SETTINGS | {"rates": (1e-2,)} | changes))
    return AdaptationContext(experiment, experiment.draw(1), rate=1e-2)


@pytest.mark.parametrize("name", ["lora_icl", "ttt"])
def test_the_trained_model_reads_the_demonstrations_before_every_query(name):
    given = context()
    before = Snapshot(given.lm.model)
    adapted = LEARNERS[name].adapt(given)
    assert adapted.deltas  # type: ignore[attr-defined]
    before.assert_restored(given.lm.model)
    assert adapted.n_prefix == len(given.encoded.prefix) > len(given.opening)
    table = answer_log_probabilities(adapted, given.lm, given.setup.queries)
    with applied(given.lm.model, adapted.deltas):  # type: ignore[attr-defined]
        for row, query in zip(table, given.setup.queries, strict=True):
            expected = naive_scores(given.lm.model, given.encoded.prefix, query).double()
            torch.testing.assert_close(row, expected, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["lora_icl", "ttt"])
def test_at_rate_zero_it_is_in_context_learning(name):
    given = dataclasses.replace(context(), rate=0.0)
    tables = [
        answer_log_probabilities(LEARNERS[each].adapt(given), given.lm, given.setup.queries) for each in (name, "icl")
    ]
    assert torch.equal(*tables)


@pytest.mark.parametrize("name", TRAINED)
def test_all_labelled_examples_are_trained_on(name):
    given = context()
    assert (len(given.encoded.sequences), len(given.encoded_labelled.sequences)) == (2, 6)
    adapted = LEARNERS[name].adapt(given)
    # Two steps: four of the six labels, then the other two.
    assert len(adapted.losses) == 2  # type: ignore[attr-defined]
    assert adapted.cost.tokens >= sum(map(len, given.encoded_labelled.sequences))


def test_test_time_training_predicts_each_demonstration_as_a_prompt_of_the_others_would():
    given = context(k=4, labels=4)
    encoded, encoder = given.encoded, given.setup.encoder
    tasks = leave_one_out(given)
    assert tasks.prefix == encoded.prefix
    for number, (ids, n_answer) in enumerate(zip(tasks.sequences, tasks.n_answer_tokens, strict=True)):
        # A prompt of the other three has as many tokens, and ends alike.
        shown = given.demonstrations
        rest = encoder.demonstrations(shown.at([place for place in range(4) if place != number]))
        own = encoded.sequences[number][len(given.opening) :]
        assert sorted(ids) == sorted((*rest.prefix, *own))
        assert ids[-len(own) :] == own
        assert n_answer == encoded.n_answer_tokens[number]
    orders = {ids[: -len(encoded.sequences[number]) or None] for number, ids in enumerate(tasks.sequences)}
    assert len(orders) == 4


def test_labels_are_counted_and_a_single_rate_costs_none():
    result = compare(small_config(**SETTINGS), lm=small_lm(), task=small_task()).result
    for name in ("lora", "full", "bitfit"):
        assert result.labels[name] == LabelCount(demonstrations=0, training=6, settings=0, total=6)
    assert result.labels["lora_icl"] == LabelCount(demonstrations=2, training=6, settings=0, total=6)
    assert result.labels["ttt"] == LabelCount(demonstrations=2, training=2, settings=0, total=2)
    assert {trial.validation_accuracy for trial in result.trials} == {None}


def test_a_class_that_never_occurs_is_no_obstacle_and_the_seed_decides_everything():
    settings = SETTINGS | {"labels": 1, "k": 1}
    results = [compare(small_config(**settings), lm=small_lm(), task=small_task()).result for _ in range(2)]
    assert numbers(results[0]) == numbers(results[1])
    assert set(results[0].accuracy) >= {"zsl", "icl", *TRAINED}
    assert all(results[0].labels[name].total == 1 for name in TRAINED)


def test_the_one_pass_recipe_is_refused_for_training_at_test_time():
    config = small_config(learners=("icl", "ttt"), controls=(), lora={"recipe": "one-pass"})
    with pytest.raises(ModelError, match="the recipe one-pass cannot be used: leave out ttt"):
        LEARNERS["ttt"].check(small_lm("llama"), config)
