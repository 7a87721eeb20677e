import pytest
import torch

from dualform.ops.rounding import last_place_move, unit_in_last_place

DTYPES = (torch.float32, torch.float64, torch.bfloat16)


def some(dtype: torch.dtype) -> torch.Tensor:
    """Numbers of many sizes and both signs, powers of two among them."""
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(500, generator=generator) * torch.logspace(-6, 6, 500)
    return torch.cat([drawn, 2.0 ** torch.arange(-9, 9), torch.tensor([-1.0])]).to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_unit_is_the_distance_to_the_next_number_away_from_zero(dtype: torch.dtype) -> None:
    x = some(dtype)
    away = torch.where(x > 0, torch.inf, -torch.inf).to(dtype)
    expected = (torch.nextafter(x, away).double() - x.double()).abs()
    assert torch.equal(unit_in_last_place(x).double(), expected)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16])
def test_a_moved_number_is_another_one_and_off_by_one_unit(dtype: torch.dtype) -> None:
    # float16 ends at 65504.
    x = some(torch.float32).clamp(-1e3, 1e3).to(dtype)
    x = x[x.abs() > 1e-3]
    move = last_place_move(x, torch.Generator().manual_seed(1))
    moved = (x.to(move.dtype) + move).to(dtype)
    assert (moved != x).all()
    # Nothing is lost on the way: the sum is a number of that precision.
    assert torch.equal(moved.to(move.dtype) - x.to(move.dtype), move)
    assert torch.equal(move.abs(), unit_in_last_place(x))
    assert 0.4 < float((move > 0).double().mean()) < 0.6


def test_zeros_stay_zeros() -> None:
    assert not last_place_move(torch.zeros(5), torch.Generator().manual_seed(1)).any()


def test_equal_seeds_give_equal_moves() -> None:
    x = some(torch.float32)
    first, again, other = (last_place_move(x, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
