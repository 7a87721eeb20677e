import math
import time

import numpy as np
import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.bootstrap import (
    clustered_bootstrap,
    clustered_bootstrap_of,
    clustered_bootstrap_ratio,
    clustered_mean,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def clustered(n_seeds: int, n_examples: int, source: torch.Generator, between: float = 1.0) -> Tensor:
    """Numbers of true mean 0: a part common to the seed, and a part of each example."""
    common = torch.randn(n_seeds, 1, generator=source, dtype=torch.float64)
    own = torch.randn(n_seeds, n_examples, generator=source, dtype=torch.float64)
    return between * common + own


def slow_bootstrap(values: np.ndarray, n_resamples: int, seed: int) -> tuple[float, float]:
    """Two stages by Python loops, with random numbers of its own."""
    random = np.random.default_rng(seed)
    means = []
    for _ in range(n_resamples):
        of_seeds = []
        for _ in range(len(values)):
            row = values[random.integers(len(values))]
            drawn = row[random.integers(len(row), size=len(row))]
            drawn = drawn[np.isfinite(drawn)]
            if len(drawn):
                of_seeds.append(drawn.mean())
        means.append(np.mean(of_seeds))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@pytest.mark.parametrize("gaps", [False, True])
def test_interval_answers_to_the_slow_version(gaps):
    values = clustered(6, 12, generator(1))
    if gaps:
        values[0, :5] = torch.nan
        values[3, 2] = torch.inf
    low, high = clustered_bootstrap(values, n_resamples=8000, generator=generator(2))
    slow_low, slow_high = slow_bootstrap(values.numpy(), 8000, seed=3)
    # A 2.5 % quantile of 8,000 draws has a standard error of 0.03 standard deviations, one width is 3.9 of them:
    # 0.04 of the width is four standard errors of a difference.
    tolerance = 0.04 * (slow_high - slow_low)
    assert low.item() == pytest.approx(slow_low, abs=tolerance)
    assert high.item() == pytest.approx(slow_high, abs=tolerance)


def coverage(interval, n_seeds: int, n_examples: int, n_trials: int = 300) -> float:
    source = generator(5)
    hits = 0
    for _ in range(n_trials):
        low, high = interval(clustered(n_seeds, n_examples, source), source)
        hits += bool(low <= 0 <= high)
    return hits / n_trials


# 300 trials at 95 %: a standard error of 1.3 %, four of them below, and room above.
LOWEST_COVERAGE = 0.95 - 4 * math.sqrt(0.95 * 0.05 / 300)


def test_intervals_hold_the_true_mean_as_often_as_promised():
    covered = coverage(lambda values, source: clustered_bootstrap(values, n_resamples=300, generator=source), 20, 10)
    assert covered > LOWEST_COVERAGE


def test_an_unclustered_bootstrap_is_far_too_narrow():
    def unclustered(values: Tensor, source: torch.Generator) -> tuple[Tensor, Tensor]:
        # One seed that holds all pairs: examples alone are resampled.
        return clustered_bootstrap(values.reshape(1, -1), n_resamples=300, generator=source)

    assert coverage(unclustered, 20, 10) < 0.8


def test_one_seed_resamples_examples_only():
    values = normal(1, 50)
    low, high = clustered_bootstrap(values, n_resamples=4000, generator=generator())
    half_width = 1.96 * values.std(unbiased=False).item() / math.sqrt(50)
    mean = values.mean().item()
    assert low.item() == pytest.approx(mean - half_width, abs=0.15 * half_width)
    assert high.item() == pytest.approx(mean + half_width, abs=0.15 * half_width)


def test_the_mean_weighs_seeds_alike_however_many_examples_they_have():
    values = torch.tensor([[1.0, 1.0, 1.0, 1.0], [3.0, torch.nan, torch.nan, torch.inf], [torch.nan] * 4])
    assert clustered_mean(values).item() == 2
    assert values[values.isfinite()].mean().item() != 2
    assert clustered_mean(torch.full((2, 3), torch.nan)).isnan()


def test_every_entry_of_the_rest_has_its_own_interval():
    values = normal(3, 20, 2, 4)
    values[:, :, 1, 3] = torch.nan
    low, high = clustered_bootstrap(values, generator=generator(1))
    assert low.shape == high.shape == (2, 4)
    assert low[1, 3].isnan()
    assert high[1, 3].isnan()
    values[:, :, 1, 3] = 0
    mean = clustered_mean(values)
    assert ((low <= mean) & (mean <= high)).sum() == 7
    alone = clustered_bootstrap(values[:, :, 0, 2], generator=generator(1))
    torch.testing.assert_close(torch.stack(alone), torch.stack([low[0, 2], high[0, 2]]))


def test_a_gap_elsewhere_does_not_move_an_entry():
    values = normal(3, 20, 2)
    whole = clustered_bootstrap(values, generator=generator(1))
    values[0, 0, 1] = torch.nan
    gapped = clustered_bootstrap(values, generator=generator(1))
    torch.testing.assert_close(gapped[0][0], whole[0][0])
    torch.testing.assert_close(gapped[1][0], whole[1][0])


@pytest.mark.parametrize("shape", [(1, 1), (0, 5), (3, 0), (1, 1, 2), (2, 3, 0)])
def test_too_little_to_resample_is_nan(shape):
    low, high = clustered_bootstrap(torch.ones(shape), generator=generator())
    assert low.shape == high.shape == shape[2:]
    assert low.isnan().all()
    assert high.isnan().all()


def test_one_finite_number_is_nan_and_two_seeds_of_one_example_are_not():
    values = torch.full((2, 3), torch.nan)
    values[1, 1] = 1
    assert clustered_bootstrap(values, generator=generator())[0].isnan()
    low, high = clustered_bootstrap(torch.tensor([[1.0], [2.0]]), generator=generator())
    assert (low.item(), high.item()) == (1, 2)


def test_a_seed_fixes_the_interval_and_the_argument_stays():
    values = normal(3, 10)
    values[0, 0] = torch.nan
    copy = values.clone()
    first, second, other = (clustered_bootstrap(values, generator=generator(seed)) for seed in (1, 1, 2))
    assert first[0].equal(second[0])
    assert not first[0].equal(other[0])
    torch.testing.assert_close(values, copy, rtol=0, atol=0, equal_nan=True)
    assert clustered_bootstrap(values.float(), generator=generator())[0].dtype == torch.float32


def test_hundreds_of_entries_take_well_under_a_second():
    values = torch.rand(5, 200, 30, 9, generator=generator())
    clustered_bootstrap(values[:, :, :1], generator=generator())
    start = time.perf_counter()
    clustered_bootstrap(values, generator=generator())
    # A tenth of a second on one core; the margin is for a busy machine.
    assert time.perf_counter() - start < 2


# --- ratios


def slow_ratio(numerator: np.ndarray, denominator: np.ndarray, n_resamples: int, seed: int) -> tuple[float, float]:
    random = np.random.default_rng(seed)
    n_seeds, n_examples = numerator.shape
    ratios = []
    for _ in range(n_resamples):
        above = below = 0.0
        for _ in range(n_seeds):
            cluster = random.integers(n_seeds)
            drawn = random.integers(n_examples, size=n_examples)
            above += numerator[cluster, drawn].sum()
            below += denominator[cluster, drawn].sum()
        ratios.append(above / below)
    low, high = np.percentile(ratios, [2.5, 97.5])
    return float(low), float(high)


def test_ratio_interval_answers_to_the_slow_version():
    denominator = (torch.rand(5, 40, generator=generator()) < 0.5).double()
    numerator = denominator * (torch.rand(5, 40, generator=generator(1)) < 0.7)
    low, high = clustered_bootstrap_ratio(numerator, denominator, n_resamples=4000, generator=generator(2))
    slow_low, slow_high = slow_ratio(numerator.numpy(), denominator.numpy(), 4000, seed=3)
    tolerance = 0.06 * (slow_high - slow_low)
    assert low.item() == pytest.approx(slow_low, abs=tolerance)
    assert high.item() == pytest.approx(slow_high, abs=tolerance)


def test_ratio_pools_totals_and_so_differs_from_a_mean_of_ratios():
    numerator, denominator = torch.tensor([[9.0] * 10, [0.0] * 10]), torch.tensor([[10.0] * 10, [1.0] * 10])
    low, high = clustered_bootstrap_ratio(numerator, denominator, generator=generator())
    assert high.item() == pytest.approx(0.9)
    assert low.item() == 0
    assert clustered_mean(numerator / denominator).item() == pytest.approx(0.45)


def test_ratio_over_nothing_is_nan_and_resamples_without_a_denominator_are_left_out():
    nothing = torch.zeros(2, 5)
    assert clustered_bootstrap_ratio(nothing, nothing, generator=generator())[0].isnan()
    rare = nothing.clone()
    rare[0, 0] = 1
    low, high = clustered_bootstrap_ratio(rare, rare, generator=generator())
    assert (low.item(), high.item()) == (1, 1)


def test_missing_examples_add_to_neither_side():
    numerator, denominator = torch.ones(2, 6), torch.full((2, 6), 2.0)
    numerator[0, 0], denominator[1, 1] = torch.nan, torch.nan
    low, high = clustered_bootstrap_ratio(numerator, denominator, generator=generator())
    assert (low.item(), high.item()) == (0.5, 0.5)


@pytest.mark.parametrize("shape", [(1, 1), (0, 3), (2, 0)])
def test_ratio_of_too_little_is_nan(shape):
    low, high = clustered_bootstrap_ratio(torch.ones(shape), torch.ones(shape), generator=generator())
    assert low.isnan()
    assert high.isnan()


def test_any_function_of_totals_has_an_interval():
    columns = (torch.rand(4, 30, 4, generator=generator()) < 0.5).float()

    def lift(totals: Tensor) -> Tensor:
        return totals[:, 0] / totals[:, 1] - totals[:, 2] / totals[:, 3]

    low, high = clustered_bootstrap_of(lift, columns, n_resamples=500, generator=generator(1))
    assert low < lift(columns.sum((0, 1))[None]).item() < high
    ratio_alone = clustered_bootstrap_ratio(columns[..., 0], columns[..., 1], n_resamples=500, generator=generator(1))
    through = clustered_bootstrap_of(
        lambda totals: totals[:, 0] / totals[:, 1], columns, n_resamples=500, generator=generator(1)
    )
    torch.testing.assert_close(torch.stack(ratio_alone), torch.stack(through))


def test_errors_name_what_was_given():
    with pytest.raises(ConfigError, match="n_resamples is 0; expected 1 or more"):
        clustered_bootstrap(torch.ones(2, 3), n_resamples=0, generator=generator())
    with pytest.raises(ShapeError, match=r"values must be \(seed, example, \.\.\.\); given \(3,\)"):
        clustered_bootstrap(torch.ones(3), generator=generator())
    with pytest.raises(ShapeError, match=r"numerator \(2, 3\), denominator \(2, 4\)"):
        clustered_bootstrap_ratio(torch.ones(2, 3), torch.ones(2, 4), generator=generator())
    with pytest.raises(ShapeError, match=r"\(seed, example, column\); given values \(2, 3\)"):
        clustered_bootstrap_of(lambda totals: totals[:, 0], torch.ones(2, 3), generator=generator())
