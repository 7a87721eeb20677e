import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import kendalltau

from dualform.errors import ShapeError
from dualform.ops import rank
from dualform.ops.rank import (
    attention_mass,
    demonstration_log_mass,
    ft_logits,
    ft_mass,
    icl_logits,
    icl_mass,
    kendall_tau_b,
    per_demonstration,
)

OWNER = torch.tensor([0, 0, 1, -1, 2, 2, 2])


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_tau_b(a: torch.Tensor, b: torch.Tensor) -> float:
    """The definition, pair by pair."""
    agreement = pairs_a = pairs_b = 0
    for i in range(len(a)):
        for j in range(i):
            sign_a, sign_b = int(torch.sign(a[i] - a[j])), int(torch.sign(b[i] - b[j]))
            agreement += sign_a * sign_b
            pairs_a += sign_a != 0
            pairs_b += sign_b != 0
    return agreement / np.sqrt(pairs_a * pairs_b) if pairs_a and pairs_b else float("nan")


# --- masses


def test_icl_mass_sums_over_heads_then_softmaxes_over_tokens():
    scores = normal(2, 3, 4, 7)
    mass = icl_mass(scores)
    assert mass.shape == (2, 3, 7)
    expected = (scores[1, 2, 0] + scores[1, 2, 1] + scores[1, 2, 2] + scores[1, 2, 3]).softmax(0)
    torch.testing.assert_close(mass[1, 2], expected)
    torch.testing.assert_close(mass.sum(-1), torch.ones(2, 3, dtype=torch.float64))


def test_ft_mass_is_softmax_of_head_concatenated_inner_products():
    train_q, q = normal(3, 7, 4, 5), normal(2, 3, 4, 5, seed=1)
    mass = ft_mass(train_q, q)
    assert mass.shape == (2, 3, 7)
    Q, concatenated = train_q[2].reshape(7, 20), q[1, 2].reshape(20)
    torch.testing.assert_close(mass[1, 2], (Q @ concatenated).softmax(0))


def test_attention_mass_follows_the_given_axis():
    scores = normal(3, 4)
    torch.testing.assert_close(attention_mass(scores, dim=0).sum(0), torch.ones(4, dtype=torch.float64))


def test_per_demonstration_sums_tokens_and_leaves_separators_out():
    mass = torch.tensor([0.1, 0.2, 0.3, 0.25, 0.05, 0.05, 0.05])
    sums = per_demonstration(mass.expand(2, 7), OWNER, 4)
    torch.testing.assert_close(sums, torch.tensor([0.3, 0.3, 0.15, 0.0]).expand(2, 4))


def test_log_mass_is_the_logarithm_of_mass_up_to_a_constant():
    logits = normal(2, 3, 7)
    expected = per_demonstration(attention_mass(logits), OWNER, 3).log()
    got = demonstration_log_mass(logits, OWNER, 3)
    torch.testing.assert_close(got - got[..., :1], expected - expected[..., :1])
    assert demonstration_log_mass(logits, OWNER, 4)[..., 3].eq(-torch.inf).all()
    assert demonstration_log_mass(logits, torch.full((7,), -1), 0).shape == (2, 3, 0)


def test_large_logits_tie_as_masses_and_not_as_logits():
    logits = torch.arange(7, dtype=torch.float32) * 300
    reversed_logits = logits.flip(-1)
    assert attention_mass(logits).unique().numel() == 2, "nothing underflowed, so the test shows nothing"
    assert kendall_tau_b(attention_mass(logits), attention_mass(reversed_logits)).item() > -0.5
    assert kendall_tau_b(logits, reversed_logits).item() == -1
    by_mass = per_demonstration(attention_mass(logits), OWNER, 3)
    assert by_mass.unique().numel() == 2
    by_log_mass = demonstration_log_mass(logits, OWNER, 3)
    assert kendall_tau_b(by_log_mass, torch.tensor([0.0, 1.0, 2.0])).item() == 1


def test_where_nothing_underflows_masses_and_logits_rank_alike():
    scores, train_q, q = normal(2, 3, 4, 30), normal(3, 30, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    torch.testing.assert_close(
        kendall_tau_b(icl_mass(scores), ft_mass(train_q, q)), kendall_tau_b(icl_logits(scores), ft_logits(train_q, q))
    )


# --- Kendall


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12).flatmap(lambda n: st.tuples(*[st.lists(st.integers(-3, 3), min_size=n, max_size=n)] * 2)))
def test_tau_b_answers_to_the_definition_with_and_without_ties(rows):
    a, b = (torch.tensor(row, dtype=torch.float64) for row in rows)
    assert kendall_tau_b(a, b).item() == pytest.approx(slow_tau_b(a, b), abs=1e-12, nan_ok=True)


def test_tau_b_answers_to_scipy_on_long_rows():
    a, b = normal(2, 3, 1100), normal(2, 3, 1100, seed=1)
    b = b + 0.5 * a
    b[0, 1] = b[0, 1].round()
    got = kendall_tau_b(a, b)
    assert got.shape == (2, 3)
    assert got[0, 1].item() == pytest.approx(kendalltau(a[0, 1].numpy(), b[0, 1].numpy()).statistic, abs=1e-12)
    assert got.min() > 0.2


@pytest.mark.parametrize("at_once", [1, 40, 2**20])
def test_tau_b_of_many_short_rows_is_scipys_of_each(at_once, monkeypatch):
    monkeypatch.setattr(rank, "_PAIRS_AT_ONCE", at_once)
    a, b = normal(4, 3, 6), normal(4, 3, 6, seed=1)
    a[1, 2, :2], b[2, 1, 3:], b[3, 0] = -torch.inf, 0.5, 1.0
    expected = [kendalltau(x, y).statistic for x, y in zip(a.reshape(-1, 6), b.reshape(-1, 6), strict=True)]
    torch.testing.assert_close(
        kendall_tau_b(a, b), torch.tensor(expected, dtype=torch.float64).reshape(4, 3), equal_nan=True
    )
    assert kendall_tau_b(a, b).isnan().sum() == 1


@pytest.mark.parametrize("n", [128, 129])
def test_tau_b_is_the_same_where_scipy_takes_over(n):
    a, b = normal(2, n), normal(2, n, seed=1)
    b[1, :9] = -torch.inf
    expected = [kendalltau(x, y).statistic for x, y in zip(a, b, strict=True)]
    torch.testing.assert_close(kendall_tau_b(a, b), torch.tensor(expected, dtype=torch.float64))


def test_tau_sees_order_alone():
    a, b = normal(40), normal(40, seed=1)
    torch.testing.assert_close(kendall_tau_b(a.exp(), 3 * b - 7), kendall_tau_b(a, b))
    assert kendall_tau_b(a, a).item() == pytest.approx(1)
    assert kendall_tau_b(a, -a).item() == pytest.approx(-1)
    # The claim is about increasing functions: a square is none.
    assert abs(kendall_tau_b(a**2, b) - kendall_tau_b(a, b)) > 0.01


def test_infinities_are_ranks_like_others():
    a = torch.tensor([-torch.inf, 0.0, 1.0, torch.inf])
    assert kendall_tau_b(a, torch.arange(4.0)).item() == 1


@pytest.mark.parametrize("a", [[1.0, 1.0, 1.0], [1.0, torch.nan, 2.0]])
def test_a_constant_side_or_a_nan_gives_nan(a):
    b = torch.tensor([3.0, 1.0, 2.0])
    assert kendall_tau_b(torch.tensor(a), b).isnan()
    assert kendall_tau_b(b, torch.tensor(a)).isnan()


def test_single_numbers_and_empty_rows_are_nan_and_dtype_is_followed():
    assert kendall_tau_b(torch.ones(2, 1), torch.ones(2, 1)).isnan().all()
    assert kendall_tau_b(torch.ones(2, 0), torch.ones(2, 0)).isnan().all()
    assert kendall_tau_b(torch.ones(0, 3), torch.ones(0, 3)).shape == (0,)
    assert kendall_tau_b(torch.rand(2, 4), torch.rand(2, 4)).dtype == torch.float32


def test_errors_name_what_was_given():
    with pytest.raises(ShapeError, match=r"a \(2, 3\), b \(2, 4\)"):
        kendall_tau_b(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"demo_scores \(2, 3\)"):
        icl_mass(torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"given \(3, 7, 4, 5\) and \(2, 3, 4, 6\)"):
        ft_mass(torch.zeros(3, 7, 4, 5), torch.zeros(2, 3, 4, 6))
    with pytest.raises(ShapeError, match=r"holds 2; expected -1 \(none\) to 1"):
        per_demonstration(torch.zeros(7), OWNER, 2)
    with pytest.raises(ShapeError, match=r"given \(7,\) for tokens of shape \(2, 6\)"):
        demonstration_log_mass(torch.zeros(2, 6), OWNER, 3)
