import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dualform.studies.advice.recommend import (
    best_learners,
    break_even,
    probability_of_best,
    regrets,
    smoothed,
)


def answers(shares: list[list[float]], n_seeds: int = 4, n_examples: int = 60) -> Tensor:
    """Random right and wrong answers with these shares, `(learner, budget)` -> `(learner, budget, seed, example)`."""
    generator = torch.Generator().manual_seed(0)
    wanted = torch.tensor(shares, dtype=torch.float64)[..., None, None]
    return (torch.rand((*wanted.shape[:2], n_seeds, n_examples), generator=generator) < wanted).double()


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_smoothing_averages_each_budget_with_those_of_half_and_twice_the_labels(values: list[float]):
    result = smoothed(torch.tensor([values], dtype=torch.float64), [4 * 2**n for n in range(len(values))])[0].tolist()
    for place, value in enumerate(values):
        near = values[max(0, place - 1) : place] + values[place + 1 : place + 2]
        assert result[place] == pytest.approx((value + 0.5 * sum(near)) / (1 + 0.5 * len(near)))


def test_budgets_that_are_far_apart_are_not_averaged():
    accuracies = torch.tensor([[0.9, 0.6, 0.55], [0.5, 0.7, 0.72]], dtype=torch.float64)
    torch.testing.assert_close(smoothed(accuracies, [4, 32, 256]), accuracies)


def test_smoothing_leaves_a_constant_curve_alone():
    flat = torch.full((2, 5), 0.7, dtype=torch.float64)
    torch.testing.assert_close(smoothed(flat, [1, 2, 4, 8, 16]), flat)


def test_the_better_learner_is_chosen_and_surely_so():
    right = answers([[0.9, 0.9, 0.9], [0.5, 0.5, 0.5]])
    assert best_learners(right, [4, 8, 16]).tolist() == [0, 0, 0]
    assert (probability_of_best(right, [4, 8, 16], torch.tensor([0, 0, 0])) > 0.99).all()
    assert (probability_of_best(right, [4, 8, 16], torch.tensor([1, 1, 1])) < 0.01).all()


def test_two_equal_learners_share_the_probability():
    right = answers([[0.6] * 3, [0.6] * 3], n_seeds=20, n_examples=200)
    first = probability_of_best(right, [4, 8, 16], torch.zeros(3, dtype=torch.long))
    second = probability_of_best(right, [4, 8, 16], torch.ones(3, dtype=torch.long))
    assert (first + second >= 1 - 1e-9).all()
    assert (first + second < 1.1).all()


def test_identical_learners_are_each_the_best():
    right = answers([[0.6] * 2]).repeat(2, 1, 1, 1)
    assert probability_of_best(right, [4, 8], torch.tensor([1, 1])).tolist() == [1.0, 1.0]


def test_regret_is_zero_where_one_learner_is_always_right_and_counts_what_the_others_lose():
    right = torch.stack([torch.ones(2, 3, 10), torch.zeros(2, 3, 10)]).double()
    advised, always = regrets(right, [4, 8])
    assert advised.tolist() == [0.0, 0.0]
    assert always.tolist() == [[0.0, 0.0], [1.0, 1.0]]


def test_regret_is_measured_on_queries_that_did_not_choose():
    # Learner 0 is right on one half of the queries, learner 1 on the other: whatever a half of them recommends is the
    # worse one on the rest.
    right = torch.zeros(2, 1, 1, 40, dtype=torch.float64)
    right[0, :, :, :20] = 1
    right[1, :, :, 20:] = 1
    advised, always = regrets(right, [4])
    assert float(advised[0]) > float(always.mean())


def test_regret_of_the_advice_approaches_zero_with_many_queries():
    right = answers([[0.5, 0.8], [0.8, 0.5]], n_seeds=2, n_examples=600)
    # Two budgets that disagree: each still has its own winner after smoothing.
    assert best_learners(right, [4, 8]).tolist() == [1, 0]
    assert regrets(right, [4, 8])[0].max() < 0.01


def test_break_even_is_where_training_catches_up_for_good():
    prompting = {"icl": torch.tensor([[0.7, 0.7], [0.7, 0.7], [0.7, 0.7]])}
    training = {
        "ft": torch.tensor([[0.5, 0.5], [0.6, 0.6], [0.7, 0.7]]),
        "lora": torch.tensor([[0.8, 0.8], [0.6, 0.8], [0.7, 0.9]]),
    }
    assert break_even([4, 8, 16], prompting, training) == ("icl", "lora", 4, None)


def test_break_even_with_spread_needs_more_labels():
    prompting = {"icl": torch.tensor([[0.68, 0.72]] * 3)}
    training = {"lora": torch.tensor([[0.6, 0.62], [0.62, 0.82], [0.9, 0.9]])}
    assert break_even([4, 8, 16], prompting, training) == ("icl", "lora", 8, 16)


def test_there_may_be_no_break_even_and_one_draw_has_no_spread():
    prompting, training = {"icl": torch.tensor([[0.7], [0.7]])}, {"lora": torch.tensor([[0.8], [0.6]])}
    assert break_even([4, 8], prompting, training) == ("icl", "lora", None, None)
    assert break_even([4], {"icl": torch.tensor([[0.5]])}, {"lora": torch.tensor([[0.6]])}) == ("icl", "lora", 4, None)
