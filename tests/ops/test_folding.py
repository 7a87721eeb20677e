import pytest
import torch

from dualform.errors import ShapeError
from dualform.ops.folding import rank_one_factors, rank_one_sum, rank_one_update, thought_matrix


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


W, A, DA = normal(5, 7), normal(7, seed=1), normal(7, seed=2)


def test_the_changed_matrix_does_to_a_what_the_matrix_does_to_a_with_context():
    changed = W + rank_one_update(W, A, DA)
    torch.testing.assert_close(changed @ A, W @ (A + DA), rtol=1e-13, atol=1e-13)
    # It is the change for this a, and for no other.
    other = normal(7, seed=3)
    assert (changed @ other - W @ (other + DA)).abs().max() > 0.1
    assert (changed @ (2 * A) - W @ (2 * A + DA)).abs().max() > 0.1


def test_the_update_has_rank_one_and_leaves_what_is_at_right_angles_to_a():
    update = rank_one_update(W, A, DA)
    assert torch.linalg.matrix_rank(update) == 1
    other = normal(7, seed=3)
    aside = other - A * (A @ other) / (A @ A)
    torch.testing.assert_close(update @ aside, torch.zeros(5, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(update @ other, W @ DA * (A @ other) / (A @ A))


def test_a_longer_a_needs_a_smaller_change_and_a_longer_da_a_larger_one():
    update = rank_one_update(W, A, DA)
    torch.testing.assert_close(rank_one_update(W, 4 * A, DA), update / 4)
    torch.testing.assert_close(rank_one_update(W, A, 4 * DA), update * 4)
    # Only the change of both leaves it alone.
    torch.testing.assert_close(rank_one_update(W, 4 * A, 4 * DA), update)


def test_factors_multiply_to_the_update_for_every_token_at_once():
    a, da = normal(2, 3, 7, seed=4), normal(2, 3, 7, seed=5)
    left, right = rank_one_factors(W, a, da)
    updates = rank_one_update(W, a, da)
    assert updates.shape == (2, 3, 5, 7)
    for i in range(2):
        for j in range(3):
            torch.testing.assert_close(torch.outer(left[i, j], right[i, j]), updates[i, j])
            torch.testing.assert_close(updates[i, j], torch.outer(W @ da[i, j], a[i, j]) / (a[i, j] @ a[i, j]))


def test_without_an_input_nothing_can_be_changed_and_without_a_change_nothing_is():
    zero = torch.zeros_like(A)
    assert (rank_one_update(W, zero, DA) == 0).all()
    assert (rank_one_update(W, A, zero) == 0).all()
    # The identity fails there, as it must: W 0 is 0 for every W.
    assert (W @ DA).abs().max() > 0.1


@pytest.mark.parametrize("size", [1e-25, 1e25])
def test_very_small_and_very_large_inputs_neither_vanish_nor_overflow(size):
    a = (A * size).float()
    found = rank_one_update(W.float(), a, DA.float() * size)
    torch.testing.assert_close(found, rank_one_update(W, A, DA).float(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_dtype_is_followed_and_arguments_stay(dtype):
    given = tuple(x.to(dtype) for x in (W, A, DA))
    copies = tuple(x.clone() for x in given)
    assert rank_one_update(*given).dtype == dtype
    assert all(torch.equal(x, copy) for x, copy in zip(given, copies, strict=True))
    assert thought_matrix(given[1][None], given[2][None]).dtype == torch.promote_types(dtype, torch.float32)


def test_the_thought_matrix_of_one_token_is_its_own_change_and_of_many_the_mean():
    a, da = normal(6, 7, seed=4), normal(6, 7, seed=5)
    torch.testing.assert_close(W @ thought_matrix(a[:1], da[:1]), rank_one_update(W, a[0], da[0]))
    torch.testing.assert_close(W @ thought_matrix(a, da), rank_one_update(W, a, da).mean(0))
    # For one token it is exact, for many it is not.
    assert (W @ (a[0] + thought_matrix(a, da) @ a[0]) - W @ (a[0] + da[0])).abs().max() > 0.1


def test_sums_add_up_to_the_mean_over_all_tokens():
    a, da = normal(9, 7, seed=4), normal(9, 7, seed=5)
    parts = rank_one_sum(a[:4], da[:4]) + rank_one_sum(a[4:], da[4:])
    torch.testing.assert_close(parts / 9, thought_matrix(a, da))
    # Means of unequal parts do not.
    halves = (thought_matrix(a[:4], da[:4]) + thought_matrix(a[4:], da[4:])) / 2
    assert (halves - thought_matrix(a, da)).abs().max() > 1e-2


def test_inputs_that_point_everywhere_give_back_the_map_divided_by_its_width():
    M = normal(4, 4, seed=6)
    a = normal(400_000, 4, seed=7) * torch.linspace(0.1, 3, 400_000, dtype=torch.float64)[:, None]
    # The mean of 400,000 products of entries of about 1/4: a standard error of 4e-4, times the width and M.
    torch.testing.assert_close(4 * thought_matrix(a, a @ M.mT), M, rtol=0, atol=2e-2)
    leaning = a + torch.tensor([3.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    assert (4 * thought_matrix(leaning, leaning @ M.mT) - M).abs().max() > 0.3


def test_a_token_without_input_counts_and_adds_nothing():
    a, da = normal(3, 7, seed=4), normal(3, 7, seed=5)
    with_zero = torch.cat([a, torch.zeros(1, 7, dtype=a.dtype)]), torch.cat([da, da[:1]])
    torch.testing.assert_close(4 * thought_matrix(*with_zero), 3 * thought_matrix(a, da))


def test_without_tokens_the_sum_is_zero_and_the_mean_is_nan():
    none = torch.zeros(0, 7)
    assert (rank_one_sum(none, none) == 0).all()
    assert torch.isnan(thought_matrix(none, none)).all()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rank_one_update(W, A, DA[:6]), r"must be \(\.\.\., d_in\) and be equal; given a \(7,\), da \(6,\)"),
        (lambda: rank_one_update(W.mT, A, DA), r"d_in that of a; given W \(7, 5\), a \(7,\)"),
        (lambda: rank_one_update(A, A, DA), r"W must be \(d_out, d_in\) with d_in that of a; given W \(7,\)"),
        (lambda: thought_matrix(A, DA), r"must be \(token, d_in\) and be equal; given a \(7,\), da \(7,\)"),
    ],
)
def test_shapes_that_do_not_belong_together_are_named(call, message):
    with pytest.raises(ShapeError, match=message):
        call()
