"""The ensemble over orders is a mean of the probabilities after each order."""

from typing import Any

import pytest
import torch

from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.ensemble import mean_of_probabilities
from dualform.models.cost.work import read
from dualform.studies.comparison.run import compare
from tests.learners.contexts import budget, choices_task, context_of
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import naive_scores
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task
from tests.tiny import tiny_model

ENSEMBLE = LEARNERS["icl_ensemble"]


def answers(context: Any) -> torch.Tensor:
    return answer_log_probabilities(ENSEMBLE.adapt(context), context.lm, context.setup.queries)


def test_it_is_the_mean_over_plain_forwards_in_each_order():
    context = context_of(small_experiment("llama", k=4, ensemble_orders=3))
    plain, encoder = tiny_model("llama", dtype=torch.float64), context.setup.encoder
    orders = context.demonstrations.in_orders(3)
    assert len({order.rows for order in orders}) == 3
    total = torch.zeros(len(context.setup.queries), 2, dtype=torch.float64)
    for order in orders:
        prefix = encoder.demonstrations(order).prefix
        scores = [naive_scores(plain, prefix, query).double() for query in context.setup.queries]
        total += torch.stack(scores).softmax(-1) / 3
    torch.testing.assert_close(answers(context), total.log())


def test_one_order_is_icl_and_so_is_a_single_demonstration():
    cases: tuple[dict[str, Any], ...] = ({"k": 4, "ensemble_orders": 1}, {"k": 1, "ensemble_orders": 5}, {"k": 0})
    for changes in cases:
        context = context_of(small_experiment(**changes))
        prompted = LEARNERS["icl"].adapt(context)
        expected = answer_log_probabilities(prompted, context.lm, context.setup.queries).log_softmax(-1)
        torch.testing.assert_close(answers(context), expected, rtol=1e-12, atol=1e-12)
        assert ENSEMBLE.work(context).tokens == LEARNERS["icl"].work(context).tokens


def test_probabilities_are_averaged_and_impossible_answers_stay_so():
    tables = [torch.tensor([[0.2, 0.8, 0.0]]).log(), torch.tensor([[0.6, 0.4, 0.0]]).log() + 5]
    torch.testing.assert_close(
        mean_of_probabilities(tables).exp(), torch.tensor([[0.4, 0.6, 0.0]], dtype=torch.float64), rtol=1e-6, atol=0
    )


def test_the_cost_counts_each_order():
    config = small_config(learners=("zsl", "icl", "icl_ensemble"), controls=(), ensemble_orders=3)
    result = compare(config, lm=small_lm(), task=small_task()).result
    once, cost = result.cost["icl"], result.cost["icl_ensemble"]
    for name in ("tokens", "flops", "kept_tokens", "kept_flops", "adapt_tokens"):
        assert getattr(cost, name) == pytest.approx(3 * getattr(once, name), rel=1e-9), name
    context = context_of(small_experiment(k=4, ensemble_orders=3))
    queries, n_prefix = context.setup.queries, len(context.encoded.prefix)
    assert ENSEMBLE.reading(context, queries, "prompt").tokens == 3 * read(queries, n_prefix).tokens


def test_multiple_choice_labels_and_seeds():
    config = small_config(learners=("icl_ensemble",), k=6, **budget(6))
    first, second = (compare(config, lm=small_lm(), task=small_task()).result for _ in range(2))
    assert numbers(first) == numbers(second)
    assert first.labels["icl_ensemble"].model_dump() == {"demonstrations": 6, "training": 0, "settings": 0, "total": 6}
    result = compare(small_config(learners=("icl_ensemble",), controls=()), lm=small_lm(), task=choices_task()).result
    assert result.accuracy["icl_ensemble"].n


def test_adapting_leaves_no_trace():
    context = context_of(small_experiment(k=4))
    before = Snapshot(context.lm.model)
    answers(context)
    before.assert_restored(context.lm.model)
