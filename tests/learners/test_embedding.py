"""The embedding learner is a plain script with transformers and scikit-learn."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from dualform.errors import ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.embedding import FEWEST_TO_CHOOSE, choose_layer
from dualform.learners.inner_splits import inner_splits
from dualform.models.reading.capture import Recording
from dualform.studies.comparison.run import compare
from tests.learners.contexts import budget, context_of, relabelled
from tests.models.editing.test_edit import Snapshot
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task
from tests.tiny import tiny_model

EMBEDDING = LEARNERS["embedding"]


def answers(context: Any, adapted: Any) -> torch.Tensor:
    return answer_log_probabilities(adapted, context.lm, context.setup.queries)


def plain_states(family: str, opening: tuple[int, ...], prompts: list[tuple[int, ...]]) -> np.ndarray[Any, Any]:
    """Mean hidden states after the first block by transformers alone; the last is reported after a norm."""
    model = tiny_model(family, dtype=torch.float64)
    rows = []
    for prompt in prompts:
        with torch.no_grad():
            out: Any = model(input_ids=torch.tensor([[*opening, *prompt]]), output_hidden_states=True)
        rows.append(out.hidden_states[1][0, len(opening) :].mean(0).numpy())
    return np.stack(rows)


@pytest.mark.parametrize("family", ["gpt2", "llama", "falcon"])
def test_it_is_a_plain_script_with_transformers_and_scikit_learn(family: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("dualform.learners.embedding.choose_layer", lambda states, labels, splits: 0)
    context = context_of(small_experiment(family, k=12))
    opening, encoder = context.opening, context.setup.encoder
    states = plain_states(family, opening, [encoder.query(example).prompt for example in context.labelled.examples])
    scaler = StandardScaler().fit(states)
    classifier = LogisticRegression(max_iter=1000).fit(scaler.transform(states), context.labelled.labels)
    queries = plain_states(family, opening, [query.prompt for query in context.setup.queries])
    expected = classifier.predict_log_proba(scaler.transform(queries))
    actual = answers(context, EMBEDDING.adapt(context)).numpy()
    # The learner keeps features in float32, and the solver stops at a gradient of 1e-4.
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)


class TestChoosingALayer:
    def separable(self, good: int, n: int = 20) -> tuple[np.ndarray[Any, Any], list[int]]:
        """States in which one of three layers knows the class, and the others are noise."""
        generator = np.random.default_rng(0)
        labels = [index % 2 for index in range(n)]
        states = generator.normal(size=(n, 3, 6))
        states[:, good, 0] += 8.0 * np.array(labels)
        return states, labels

    @pytest.mark.parametrize("good", [0, 1, 2])
    def test_the_layer_that_knows_the_class_is_chosen(self, good: int):
        states, labels = self.separable(good)
        assert choose_layer(states, labels, inner_splits(labels, "cross-validation", seed=1)) == good

    def test_it_is_the_one_with_the_smallest_log_loss_of_held_out_labels(self):
        generator = np.random.default_rng(3)
        states, labels = generator.normal(size=(15, 4, 5)), [0, 1, 2] * 5
        splits = inner_splits(labels, "cross-validation", seed=1)
        losses = []
        for layer in range(4):
            loss = 0.0
            for train, held_out in splits:
                scaler = StandardScaler().fit(states[list(train), layer])
                fitted = LogisticRegression(max_iter=1000).fit(
                    scaler.transform(states[list(train), layer]), [labels[i] for i in train]
                )
                scores = fitted.predict_log_proba(scaler.transform(states[list(held_out), layer]))
                loss -= sum(row[labels[i]] for row, i in zip(scores, held_out, strict=True))
            losses.append(loss)
        assert choose_layer(states, labels, splits) == int(np.argmin(losses))

    def test_a_class_that_occurs_once_does_not_prevent_the_choice(self):
        states, labels = self.separable(2)
        labels[0] = 2
        assert choose_layer(states, labels, inner_splits(labels, "cross-validation", seed=1)) == 2

    def test_without_splits_it_is_the_middle_one(self):
        states, labels = self.separable(2)
        assert choose_layer(states, labels, []) == 1
        # Fitted to one class alone, nothing can be predicted.
        assert choose_layer(states, labels, [((0, 2, 4), (1, 3))]) == 1


@pytest.mark.parametrize(("n", "chosen"), [(FEWEST_TO_CHOOSE - 2, 0), (FEWEST_TO_CHOOSE, FEWEST_TO_CHOOSE)])
def test_labels_for_the_choice_are_counted_if_there_is_one(n: int, chosen: int):
    use = EMBEDDING.labels_used(context_of(small_experiment(k=n)))
    assert (use.shown, use.trained, use.selected, use.total) == (0, n, chosen, n)


def test_the_layer_is_reported():
    facts: dict[str, Any] = {}
    adapted = EMBEDDING.adapt(context_of(small_experiment(k=12), facts=facts))
    assert facts == {"layer": getattr(adapted, "layer")}  # noqa: B009
    config = small_config(learners=("zsl", "embedding"), controls=())
    result = compare(config, lm=small_lm(), task=small_task()).result
    # Four demonstrations are too few to choose: the middle of two layers.
    assert [of_seed["layer"] for of_seed in result.own["embedding"]["facts"]] == [1, 1]


def test_its_readings_depend_neither_on_the_group_nor_on_what_else_is_asked_for():
    context = context_of(small_experiment(k=12))
    adapted = EMBEDDING.adapt(context)
    alone = adapted.read_group(context.setup.queries, [3])
    together = adapted.read_group(context.setup.queries, [1, 3, 0], Recording(q=True), "label0")
    assert together.queries == (1, 3, 0)
    torch.testing.assert_close(together.log_probabilities[1], alone.log_probabilities[0], rtol=1e-5, atol=1e-6)


def test_adapting_leaves_no_trace_also_when_fitting_raises(monkeypatch: pytest.MonkeyPatch):
    context = context_of(small_experiment(k=12))
    before = Snapshot(context.lm.model)
    EMBEDDING.adapt(context)
    before.assert_restored(context.lm.model)
    monkeypatch.setattr(LogisticRegression, "fit", lambda *args: (_ for _ in ()).throw(RuntimeError("no fit")))
    with pytest.raises(RuntimeError, match="no fit"):
        EMBEDDING.adapt(context)
    before.assert_restored(context.lm.model)


def test_one_class_and_classes_that_never_occur():
    context = context_of(small_experiment(k=12))
    table = answers(context, EMBEDDING.adapt(relabelled(context, [1] * 12)))
    assert (table[:, 1] == 0).all()
    assert torch.isneginf(table[:, 0]).all()
    other = EMBEDDING.adapt(relabelled(context, [0, 2] * 6, n_labels=4))
    table = other.read_group(context.setup.queries, [0, 1]).log_probabilities
    assert torch.isneginf(table[:, [1, 3]]).all()
    assert table[:, [0, 2]].exp().sum(1).tolist() == pytest.approx([1.0, 1.0])


def test_queries_cost_what_zero_shot_queries_do():
    config = small_config(learners=("zsl", "embedding"), **budget(12))
    first, second = (compare(config, lm=small_lm(), task=small_task()).result for _ in range(2))
    assert numbers(first) == numbers(second)
    assert first.cost["embedding"].flops == first.cost["zsl"].flops
    assert math.isfinite(first.cost["embedding"].adapt_flops or math.nan)


def test_a_model_without_a_list_of_blocks_is_refused(monkeypatch: pytest.MonkeyPatch):
    lm = small_lm()
    monkeypatch.setattr("dualform.models.structure.blocks.block_of", lambda model, name: None)
    with pytest.raises(ModelError, match="in no list of layers"):
        EMBEDDING.check(lm, small_config())
