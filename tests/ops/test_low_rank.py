import numpy as np
import pytest
import torch

from dualform.errors import ConfigError, NumericalError, ShapeError
from dualform.ops.low_rank import low_rank


def matrix(d_out=7, d_in=5, seed=0, dtype=torch.float64):
    return torch.randn(d_out, d_in, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def naive(delta, rank):
    """The cut sum of outer products, a value at a time."""
    U, s, Vh = np.linalg.svd(delta.double().numpy())
    return torch.from_numpy(sum(s[i] * np.outer(U[:, i], Vh[i]) for i in range(min(rank, len(s)))))


@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (4, 4)])
@pytest.mark.parametrize("rank", [1, 2, 4])
def test_the_product_is_the_cut_singular_value_decomposition(shape, rank):
    delta = matrix(*shape)
    found = low_rank(delta, rank)
    assert found.A.shape == (rank, shape[1])
    assert found.B.shape == (shape[0], rank)
    torch.testing.assert_close(found.product, naive(delta, rank))


def test_what_is_kept_and_what_is_left_out_add_up_to_the_squared_norm():
    delta = matrix()
    for rank in range(1, 6):
        found = low_rank(delta, rank)
        lost = (delta - found.product).square().sum() / delta.square().sum()
        assert found.kept == pytest.approx(1 - float(lost), abs=1e-12)
        assert found.kept == pytest.approx(float(found.product.square().sum() / delta.square().sum()), abs=1e-12)


def test_no_other_matrix_of_that_rank_is_nearer():
    delta = matrix()
    found = low_rank(delta, 2)
    distance = (delta - found.product).norm()
    generator = torch.Generator().manual_seed(1)
    for scale in (1e-3, 1e-1, 1.0):
        for _ in range(50):
            A = found.A + scale * torch.randn(found.A.shape, generator=generator, dtype=delta.dtype)
            # The best B for this A, so that the rival is as good as it can be.
            B = torch.linalg.lstsq(A.T, delta.T).solution.T
            assert (delta - B @ A).norm() > distance
    # The claim is one about that rank: with one more, a matrix is nearer.
    assert (delta - low_rank(delta, 3).product).norm() < distance


def test_a_matrix_of_rank_two_is_whole_at_rank_two_and_not_at_rank_one():
    delta = matrix(7, 2) @ matrix(2, 5, seed=1)
    torch.testing.assert_close(low_rank(delta, 2).product, delta)
    assert low_rank(delta, 2).kept == pytest.approx(1, abs=1e-12)
    one = low_rank(delta, 1)
    assert one.kept < 0.99
    assert (one.product - delta).abs().max() > 0.1


def test_beyond_full_rank_the_factors_hold_zeros():
    delta = matrix()
    found = low_rank(delta, 8)
    assert found.A.shape == (8, 5)
    assert found.B.shape == (7, 8)
    assert not found.A[5:].any()
    assert not found.B[:, 5:].any()
    assert found.kept == 1
    torch.testing.assert_close(found.product, delta)


def test_both_factors_are_of_one_size():
    found = low_rank(1e6 * matrix(), 3)
    torch.testing.assert_close(found.A.norm(dim=1), found.B.norm(dim=0))


def test_a_change_of_zeros_has_zero_factors_and_nothing_to_keep():
    found = low_rank(torch.zeros(3, 4), 2)
    assert not found.product.any()
    assert np.isnan(found.kept)


def test_half_precision_comes_back_as_float32_and_the_argument_is_left_as_it_was():
    delta = matrix(dtype=torch.bfloat16)
    before = delta.clone()
    found = low_rank(delta, 5)
    assert found.A.dtype == found.B.dtype == torch.float32
    assert torch.equal(delta, before)
    torch.testing.assert_close(found.product, delta.float())


def test_mistakes_are_named():
    with pytest.raises(ConfigError, match=r"rank is 0; expected 1 or more"):
        low_rank(matrix(), 0)
    with pytest.raises(ShapeError, match=r"d_out, d_in.*\(7,\)"):
        low_rank(matrix()[:, 0], 1)
    broken = matrix()
    broken[0, :2] = torch.inf
    with pytest.raises(NumericalError, match=r"2 of 35 entries of the change are not finite"):
        low_rank(broken, 1)
