import math

import pytest
import torch

from dualform.ops.random_update import matched_random, released_random
from dualform.ops.similarity import sim_aou_raw


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_random_updates_have_the_lengths_of_the_given_ones():
    update = normal(5, 3, 16) * torch.tensor([1e-12, 1.0, 1e12], dtype=torch.float64)[:, None]
    drawn = matched_random(update, torch.Generator().manual_seed(1))
    torch.testing.assert_close(drawn.norm(dim=-1), update.norm(dim=-1))
    assert not drawn.equal(update)


def test_raw_sim_aou_with_a_random_update_is_zero_with_the_predicted_spread():
    n_examples, n_layers, d_model = 200, 20, 64
    zsl, icl = normal(n_examples, n_layers, d_model), normal(n_examples, n_layers, d_model, seed=1)
    ft = zsl + matched_random(icl - zsl, torch.Generator().manual_seed(2))
    scores = sim_aou_raw(zsl, icl, ft)
    spread = 1 / math.sqrt(d_model)
    assert scores.mean().item() == pytest.approx(0, abs=4 * spread / math.sqrt(scores.numel()))
    # The standard error of a standard deviation over 4,000 numbers is 1.1 %; four of them.
    assert scores.std().item() == pytest.approx(spread, rel=0.045)


def test_the_uniform_baseline_of_the_released_code_scores_far_from_zero_when_updates_lean_one_way():
    update = normal(200, 1, 64) + 1
    zsl = torch.zeros_like(update)
    uniform = released_random(update, torch.Generator().manual_seed(2))
    assert uniform.min() >= 0
    assert uniform.max() < 1
    assert sim_aou_raw(zsl, update, uniform).mean() > 0.5
    matched = matched_random(update, torch.Generator().manual_seed(2))
    assert sim_aou_raw(zsl, update, matched).mean().abs() < 0.05


def test_the_released_baseline_scores_as_the_mean_entry_of_the_update_says():
    """cos(u, U) is about E[U] sum(u) / (|u| sqrt(d E[U^2])), which is sqrt(3) / 2 cos(u, 1)."""
    update = normal(400, 1, 256) + 0.3
    uniform = released_random(update, torch.Generator().manual_seed(2))
    scores = torch.cosine_similarity(update, uniform, dim=-1)
    expected = math.sqrt(3) / 2 * torch.cosine_similarity(update, torch.ones_like(update), dim=-1)
    assert scores.mean().item() == pytest.approx(expected.mean().item(), abs=4 / math.sqrt(256 * 400))


def test_a_seed_fixes_the_draw_and_the_argument_stays():
    update = normal(4, 2, 8)
    copy = update.clone()
    drawn = [matched_random(update, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])
    assert update.equal(copy)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_dtype_is_followed_and_a_zero_update_stays_zero(dtype):
    drawn = matched_random(torch.zeros(2, 8, dtype=dtype), torch.Generator().manual_seed(0))
    assert drawn.dtype == dtype
    assert drawn.equal(torch.zeros(2, 8, dtype=dtype))
