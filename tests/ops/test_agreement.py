import dataclasses
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import entropy

from dualform.errors import ConfigError, ShapeError
from dualform.ops.agreement import (
    kl_divergence,
    label_agreement,
    overlap_cosine,
    prediction_entropy,
    rec2ftp,
    top_k_overlap,
    total_variation,
)


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(got: float, numerator: int, denominator: int) -> bool:
    return got == numerator / denominator if denominator else math.isnan(got)


# --- Rec2FTP


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.booleans()), max_size=12))
def test_rec2ftp_answers_to_counting_one_by_one(rows):
    zsl, icl, ft = (torch.tensor([row[i] for row in rows], dtype=torch.bool) for i in range(3))
    got = rec2ftp(zsl, icl, ft)
    fixed = [i for z, i, f in rows if f and not z]
    wrong = [i for z, i, _ in rows if not z]
    broken = [not i for z, i, f in rows if z and not f]
    changed_by_ft = {n for n, (z, _, f) in enumerate(rows) if z != f}
    changed_by_icl = {n for n, (z, i, _) in enumerate(rows) if z != i}
    assert (got.numerator, got.denominator) == (sum(fixed), len(fixed))
    assert (got.chance_numerator, got.chance_denominator) == (sum(wrong), len(wrong))
    assert (got.reverse_numerator, got.reverse_denominator) == (sum(broken), len(broken))
    assert got.jaccard_numerator == len(changed_by_ft & changed_by_icl)
    assert got.jaccard_denominator == len(changed_by_ft | changed_by_icl)
    assert same(got.value, sum(fixed), len(fixed))
    assert same(got.chance, sum(wrong), len(wrong))
    assert same(got.reverse, sum(broken), len(broken))
    assert got.lift == pytest.approx(got.value - got.chance, nan_ok=True)


def test_nothing_fixed_is_nan_with_its_count():
    right = torch.tensor([True, False])
    got = rec2ftp(right, ~right, right)
    assert math.isnan(got.value)
    assert math.isnan(got.lift)
    assert got.denominator == 0
    assert got.chance == 1


def test_context_that_is_always_right_recalls_everything_without_lift():
    zsl = torch.tensor([False, False, True, True])
    got = rec2ftp(zsl, torch.ones(4, dtype=torch.bool), torch.tensor([True, False, True, False]))
    assert got.value == 1
    assert got.lift == 0


def test_context_that_fixes_just_what_finetuning_fixed_has_lift():
    zsl = torch.tensor([False, False, True, True])
    ft = torch.tensor([True, False, True, False])
    got = rec2ftp(zsl, ft, ft)
    assert (got.value, got.chance, got.lift, got.reverse, got.jaccard) == (1, 0.5, 0.5, 1, 1)


def test_rec2ftp_is_frozen_and_refuses_what_is_not_boolean():
    right = torch.tensor([True, False])
    with pytest.raises(dataclasses.FrozenInstanceError):
        rec2ftp(right, right, right).value = 1.0  # type: ignore[misc]
    with pytest.raises(ShapeError, match=r"icl_right must be boolean.*given torch\.int64"):
        rec2ftp(right, right.long(), right)
    with pytest.raises(ShapeError, match=r"zsl_right \(2,\), icl_right \(2,\), ft_right \(1,\)"):
        rec2ftp(right, right, right[:1])


# --- distributions


def assert_near(got: torch.Tensor, expected: torch.Tensor) -> None:
    # Divergences of nearly equal distributions are differences of numbers of order 1.
    torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-9)


def test_label_agreement_is_whether_the_highest_label_is_the_same():
    a = torch.tensor([[0.0, 1.0], [2.0, 1.0], [0.5, 0.5], [torch.nan, 1.0]])
    b = torch.tensor([[-3.0, -1.0], [1.0, 2.0], [1.0, 0.0], [0.0, 1.0]])
    got = label_agreement(a, b)
    assert got[:3].tolist() == [1, 0, 1]
    assert got[3].isnan()


@settings(max_examples=30, deadline=None)
@given(n_labels=st.integers(1, 6), shift=st.floats(-50, 50), seed=st.integers(0, 10_000))
def test_distances_answer_to_their_definitions_and_normalise_within(n_labels, shift, seed):
    log_p, log_q = normal(4, n_labels, seed=seed) * 3, normal(4, n_labels, seed=seed + 1) * 3
    p, q = log_p.softmax(-1).numpy(), log_q.softmax(-1).numpy()
    assert_near(total_variation(log_p + shift, log_q), torch.from_numpy(abs(p - q).sum(-1) / 2))
    assert_near(kl_divergence(log_p, log_q - shift), torch.from_numpy(rel_entr(p, q).sum(-1)))
    assert_near(prediction_entropy(log_p + shift), torch.from_numpy(entropy(p, axis=-1)))
    # Pinsker's inequality ties the two together.
    assert (total_variation(log_p, log_q) <= (kl_divergence(log_p, log_q) / 2).sqrt() + 1e-9).all()


def test_equal_distributions_have_distance_zero_and_divergence_is_not_symmetric():
    p, q = torch.tensor([[0.9, 0.1]]).log(), torch.tensor([[0.5, 0.5]]).log()
    assert kl_divergence(p, p).item() == 0
    assert total_variation(p, p).item() == 0
    torch.testing.assert_close(total_variation(p, q), total_variation(q, p))
    assert abs(kl_divergence(p, q) - kl_divergence(q, p)) > 0.1


def test_impossible_labels_are_handled():
    log_p = torch.tensor([[0.0, -torch.inf]])
    log_q = torch.tensor([[0.0, 0.0]])
    assert kl_divergence(log_p, log_q).item() == pytest.approx(math.log(2))
    assert kl_divergence(log_q, log_p).item() == math.inf
    assert kl_divergence(log_p, log_p).item() == 0
    assert total_variation(log_p, log_q).item() == 0.5
    assert prediction_entropy(log_p).item() == 0
    nothing = torch.full((1, 2), -torch.inf)
    assert kl_divergence(nothing, log_q).isnan().all()
    assert total_variation(log_q, nothing).isnan().all()
    assert prediction_entropy(nothing).isnan().all()


def test_entropy_is_largest_when_uniform_and_zero_when_certain():
    assert prediction_entropy(torch.zeros(1, 4)).item() == pytest.approx(math.log(4))
    assert prediction_entropy(torch.tensor([[0.0, -1e4]])).item() == 0


# --- vocabulary


def slow_top_k(a: torch.Tensor, b: torch.Tensor, k: int) -> tuple[float, float]:
    p, q = a.softmax(-1), b.softmax(-1)
    common = sorted(set(p.topk(k).indices.tolist()) & set(q.topk(k).indices.tolist()))
    if not common:
        return 0.0, float("nan")
    u, v = p[common], q[common]
    return len(common) / k, float(u @ v / (u.norm() * v.norm()))


@settings(max_examples=40, deadline=None)
@given(k=st.integers(1, 12), seed=st.integers(0, 10_000))
def test_vocabulary_measures_answer_to_the_slow_version(k, seed):
    a, b = normal(3, 12, seed=seed), normal(3, 12, seed=seed + 1)
    share, value = top_k_overlap(a, b, k), overlap_cosine(a, b, k)
    for row in range(3):
        expected_share, expected_cosine = slow_top_k(a[row], b[row], k)
        assert share[row].item() == pytest.approx(expected_share)
        assert value[row].item() == pytest.approx(expected_cosine, nan_ok=True)


def test_equal_settings_overlap_wholly_and_disjoint_ones_not_at_all():
    a = normal(2, 3, 40)
    assert top_k_overlap(a, a).eq(1).all()
    torch.testing.assert_close(overlap_cosine(a, a + 5), torch.ones(2, 3, dtype=torch.float64))
    assert top_k_overlap(a, -a).eq(0).all()
    assert overlap_cosine(a, -a).isnan().all()


def test_overlap_cosine_does_not_underflow_where_common_tokens_are_improbable():
    a = torch.tensor([[2000.0, 1.0, 0.0, -1.0, -50.0]])
    b = torch.tensor([[-60.0, 1.0, 0.0, -1.0, 3000.0]])
    assert overlap_cosine(a, b, k=4).item() == pytest.approx(1)


def test_a_nan_in_a_row_is_not_hidden():
    a, b = normal(2, 12), normal(2, 12, seed=1)
    b[1, 3] = torch.nan
    assert top_k_overlap(a, b, 3).isnan().tolist() == [False, True]
    assert overlap_cosine(a, a + b * 0, 3).isnan().tolist() == [False, True]


def test_errors_name_the_value():
    with pytest.raises(ConfigError, match="k is 13; expected 1 to 12"):
        top_k_overlap(normal(12), normal(12), 13)
    with pytest.raises(ConfigError, match="k is 0; expected 1 to 12"):
        overlap_cosine(normal(12), normal(12), 0)
    with pytest.raises(ShapeError, match=r"\(\.\.\., label\) and be equal; given log_p \(2, 3\), log_q \(2, 4\)"):
        total_variation(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"shapes must be \(\.\.\., label\); given log_p \(\)"):
        prediction_entropy(torch.zeros(()))
