import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dualform.errors import ShapeError
from dualform.ops.cosine import cosine, result_dtype, unit

NUMBER = st.floats(-1e3, 1e3, allow_nan=False).map(lambda x: round(x, 3))


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 6).flatmap(lambda n: st.tuples(*[st.lists(NUMBER, min_size=n, max_size=n)] * 2)))
def test_cosine_is_symmetric_within_bounds_and_ignores_scale(vectors):
    a, b = (torch.tensor(vector, dtype=torch.float64) for vector in vectors)
    value = cosine(a, b)
    if not a.any() or not b.any():
        assert value.isnan()
        return
    assert -1 <= value <= 1
    torch.testing.assert_close(cosine(b, a), value)
    torch.testing.assert_close(cosine(7.3 * a, 1e-5 * b), value, atol=1e-12, rtol=0)
    torch.testing.assert_close(cosine(-a, b), -value)
    torch.testing.assert_close(cosine(a, a), torch.ones((), dtype=torch.float64))


def test_cosine_is_clipped_where_rounding_would_exceed_one():
    a = torch.rand(2000, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    unclipped = (unit(a) * unit(a)).sum(-1)
    assert unclipped.max() > 1, "rounding never exceeded 1, so the test shows nothing"
    assert cosine(a, a).max() == 1


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1e30, 1e300])
def test_cosine_of_extreme_lengths_neither_underflows_nor_overflows(scale):
    a, b = torch.tensor([3.0, 4.0], dtype=torch.float64), torch.tensor([1.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(cosine(a * scale, b * scale), torch.tensor(0.6, dtype=torch.float64))


def test_cosine_of_nothing_and_of_infinities_is_nan():
    assert cosine(torch.zeros(3, 0), torch.zeros(3, 0)).isnan().all()
    assert cosine(torch.tensor([1.0, torch.inf]), torch.ones(2)).isnan()
    assert cosine(torch.tensor([1.0, torch.nan]), torch.ones(2)).isnan()


def test_half_precision_comes_back_as_float32():
    assert cosine(torch.ones(3, dtype=torch.bfloat16), torch.ones(3, dtype=torch.bfloat16)).dtype == torch.float32
    assert result_dtype(torch.ones(1), torch.ones(1, dtype=torch.float64)) == torch.float64


def test_error_names_both_shapes():
    with pytest.raises(ShapeError, match=r"given \(2, 3\) and \(2, 4\)"):
        cosine(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"given \(2, 3\) and \(5, 3\)"):
        cosine(torch.zeros(2, 3), torch.zeros(5, 3))
