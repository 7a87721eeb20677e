import random
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.finetuned import Finetuned
from dualform.learners.inner_splits import FOLDS, inner_splits
from dualform.studies.experiment import DemonstrationSet
from dualform.studies.inner_selection import InnerSelection
from tests.studies.small import small_config, small_experiment

BUDGET: dict[str, Any] = {"controls": (), "selection_limit": None, "k": 4}


@given(st.lists(st.integers(0, 3), min_size=2, max_size=40), st.integers(0, 5))
def test_cross_validation_predicts_every_example_once_from_the_others(labels: list[int], seed: int):
    splits = inner_splits(labels, "cross-validation", seed)
    assert len(splits) == min(FOLDS, len(labels))
    assert sorted(index for _, held_out in splits for index in held_out) == list(range(len(labels)))
    for train, held_out in splits:
        assert sorted((*train, *held_out)) == list(range(len(labels)))
        for label in set(labels):
            n = labels.count(label)
            assert abs(sum(labels[index] == label for index in held_out) - n / len(splits)) <= 1


@given(st.integers(2, 40), st.integers(0, 5))
def test_prequential_blocks_are_predicted_from_what_came_before(n: int, seed: int):
    splits = inner_splits([0] * n, "prequential", seed)
    known: set[int] = set(splits[0][0])
    for train, held_out in splits:
        assert set(train) == known
        assert held_out
        known |= set(held_out)
        assert not set(train) & set(held_out)
    assert known == set(range(n))
    # Trains on fewer examples than one pass over each fold's complement.
    assert sum(len(train) for train, _ in splits) < 2 * n


def test_one_label_cannot_be_divided():
    assert inner_splits([1], "cross-validation", 0) == inner_splits([1], "prequential", 0) == []


@pytest.mark.parametrize("how", ["cross-validation", "prequential"])
def test_predictions_are_those_of_models_trained_on_the_other_examples(how: str):
    experiment = small_experiment(**BUDGET, labels=7, choose_inside=how)
    drawn = experiment.draw(3)
    selection = InnerSelection(experiment, drawn.labelled)

    def adapt(part: DemonstrationSet) -> AdaptedModel:
        context = AdaptationContext(experiment, part, rate=1e-2)
        adapted = LEARNERS["ft"].adapt(context)
        assert isinstance(adapted, AdaptedModel)
        return adapted

    table = selection.predict(adapt)

    rows = []
    for train, held_out in inner_splits(drawn.labelled.labels, how, 3):  # type: ignore[arg-type]
        demonstrations = experiment.encoder.demonstrations(drawn.labelled.at(train).classes_in_turn(99))
        adapted = Finetuned(experiment.encoder.opening, 1e-2).adapt(experiment.lm, demonstrations)
        for index in held_out:
            queries = [experiment.encoder.query(drawn.labelled.examples[index])]
            rows.append((drawn.labelled.labels[index], adapted.read_group(queries, [0]).log_probabilities[0].double()))
    assert selection.labels == [label for label, _ in rows]
    torch.testing.assert_close(table, torch.stack([row for _, row in rows]), rtol=1e-9, atol=1e-9)


def test_the_prompt_takes_each_class_in_turn_from_the_budget_and_training_takes_all():
    experiment = small_experiment(**BUDGET, labels=9)
    drawn = experiment.draw(5)
    labels = drawn.labelled.labels
    assert len(labels) == len(set(drawn.labelled.rows)) == 9
    shown = drawn.demonstrations.labels
    # Two of each class, if the budget has as many.
    assert len(shown) == 4
    assert min(map(shown.count, (0, 1))) == min(2, *map(labels.count, (0, 1)))
    assert drawn.labelled.examples[:4] == drawn.demonstrations.examples
    assert drawn.encoded_labelled.sequences[:4] == drawn.encoded.sequences
    assert len(drawn.encoded_labelled.sequences) == 9
    assert drawn.encoded_labelled.prefix == drawn.encoded.prefix


def test_a_class_with_too_few_demonstrations_gives_all_that_it_has():
    experiment = small_experiment(**BUDGET, labels=9)
    labelled = experiment.draw(5).labelled
    places = [*[i for i, label in enumerate(labelled.labels) if label == 0][:1]]
    places += [i for i, label in enumerate(labelled.labels) if label == 1]
    lopsided = labelled.at(sorted(places))
    assert sorted(lopsided.classes_in_turn(3).labels) == [0, 1, 1]
    assert lopsided.classes_in_turn(99).examples == lopsided.examples
    with pytest.raises(ConfigError, match="negative"):
        lopsided.classes_in_turn(-1)


def test_a_budget_changes_the_defaults_that_need_other_labels():
    config = small_config(labels=6, controls=None, rounding=None, k=None, selection_limit=None)
    assert (config.k, config.balanced, config.controls, config.rounding, config.tune) == (6, False, (), "none", "each")
    assert small_config(labels=64, controls=None, k=None, selection_limit=None).k == 32
    # A saved configuration reads back as it was.
    assert type(config).model_validate(config.model_dump(mode="json")) == config


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"controls": ("random",)}, "controls random use labels outside the budget of 6"),
        ({"select": "icl"}, "select icl chooses the seed on labels outside the budget"),
        ({"k": 8}, "k 8 is more than the 6 labels"),
        ({"balanced": True}, "balanced demonstrations need the labels of the whole train split"),
        ({"tune": "first"}, "tune first would choose the rates of every seed on the 6 labels of the first"),
        ({"rounding": "choose"}, "rounding choose prefers stable rates on the selection split"),
        ({"selection_limit": 7}, "selection_limit 7 is for the selection split"),
        ({"select_on": "report"}, "cannot be used where settings are chosen on the reported queries"),
        ({"labels": 0}, "labels"),
    ],
)
def test_settings_that_need_labels_outside_the_budget_are_refused(given: dict[str, object], words: str):
    with pytest.raises(ConfigError, match=words):
        small_config(**{**BUDGET, "labels": 6, **given})


def test_the_shuffle_of_the_splits_depends_on_the_seed():
    labels = [random.Random(0).randrange(2) for _ in range(20)]
    assert inner_splits(labels, "cross-validation", 1) != inner_splits(labels, "cross-validation", 2)
