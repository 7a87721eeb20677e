import math
import time
from random import Random

import numpy as np
import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.bootstrap import (
    AT_ONCE,
    clustered_bootstrap,
    clustered_bootstrap_of,
    clustered_bootstrap_ratio,
    clustered_mean,
)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=generator(seed), dtype=torch.float64)


def crossed(
    n_seeds: int, n_examples: int, source: torch.Generator, *, of_seed: float, of_query: float, of_pair: float
) -> Tensor:
    """Numbers of true mean 0: an effect of the seed, one of the query and one of the pair, of these deviations."""
    seed = torch.randn(n_seeds, 1, generator=source, dtype=torch.float64)
    query = torch.randn(1, n_examples, generator=source, dtype=torch.float64)
    pair = torch.randn(n_seeds, n_examples, generator=source, dtype=torch.float64)
    return of_seed * seed + of_query * query + of_pair * pair


def slow_bootstrap(values: np.ndarray, n_resamples: int, seed: int) -> tuple[float, float]:
    """Seeds drawn, one set of queries drawn for all of them, by Python loops with random numbers of its own."""
    random = Random(seed)
    n_seeds, n_examples = values.shape
    means = []
    for _ in range(n_resamples):
        queries = random.choices(range(n_examples), k=n_examples)
        of_seeds = []
        for drawn_seed in random.choices(range(n_seeds), k=n_seeds):
            numbers = [values[drawn_seed, query] for query in queries if np.isfinite(values[drawn_seed, query])]
            if numbers:
                of_seeds.append(np.mean(numbers))
        means.append(np.mean(of_seeds))
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def nested_bootstrap(values: Tensor, *, n_resamples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """What must not be done here: queries drawn afresh within each drawn seed, as if each seed had its own."""
    n_seeds, n_examples = values.shape
    seeds = torch.randint(n_seeds, (n_resamples, n_seeds, 1), generator=generator)
    queries = torch.randint(n_examples, (n_resamples, n_seeds, n_examples), generator=generator)
    low, high = values[seeds, queries].mean((1, 2)).quantile(values.new_tensor([0.025, 0.975]))
    return low, high


@pytest.mark.parametrize("gaps", [False, True])
def test_interval_answers_to_the_slow_version(gaps):
    values = crossed(6, 12, generator(1), of_seed=0.5, of_query=1, of_pair=1)
    if gaps:
        # So few numbers of the first seed are left that many resamples draw none of them.
        values[0, :10] = torch.nan
        values[3, 2] = torch.inf
    low, high = clustered_bootstrap(values, n_resamples=8000, generator=generator(2))
    slow_low, slow_high = slow_bootstrap(values.numpy(), 8000, seed=3)
    # A 2.5 % quantile of 8,000 draws has a standard error of 0.03 standard deviations, one width is 3.9 of them:
    # 0.04 of the width is four standard errors of a difference.
    tolerance = 0.04 * (slow_high - slow_low)
    assert low.item() == pytest.approx(slow_low, abs=tolerance)
    assert high.item() == pytest.approx(slow_high, abs=tolerance)


def test_identical_rows_give_the_interval_of_one_row():
    row = normal(1, 60, 2)
    alone = clustered_bootstrap(row, generator=generator(1))
    repeated = clustered_bootstrap(row.expand(5, 60, 2), generator=generator(1))
    # The same draws of queries, summed in another order.
    torch.testing.assert_close(torch.stack(repeated), torch.stack(alone), rtol=1e-12, atol=1e-12)


def test_identical_rows_under_the_nested_scheme_are_too_narrow_by_the_root_of_the_number_of_seeds():
    row = normal(1, 60)
    low, high = clustered_bootstrap(row, n_resamples=4000, generator=generator(1))
    nested_low, nested_high = nested_bootstrap(row.expand(5, 60), n_resamples=4000, generator=generator(2))
    # Each end has a standard error of 0.04 standard deviations, so each width one of 1.5 %.
    assert ((high - low) / (nested_high - nested_low)).item() == pytest.approx(math.sqrt(5), rel=0.08)


def test_identical_rows_give_the_ratio_interval_of_one_row_and_of_any_statistic():
    columns = (torch.rand(1, 60, 2, generator=generator()) < 0.6).double()
    alone = clustered_bootstrap_ratio(columns[..., 0], columns[..., 1], generator=generator(1))
    repeated = columns.expand(4, 60, 2)
    several = clustered_bootstrap_ratio(repeated[..., 0], repeated[..., 1], generator=generator(1))
    torch.testing.assert_close(several, alone)
    difference = clustered_bootstrap_of(lambda totals: totals[:, 0] - totals[:, 1], columns, generator=generator(1))
    of_four = clustered_bootstrap_of(lambda totals: totals[:, 0] - totals[:, 1], repeated, generator=generator(1))
    torch.testing.assert_close(of_four, tuple(4 * end for end in difference))


N_TRIALS = 400
# Four binomial standard errors of 400 trials at 95 % are 4.4 %; above the nominal level there is no bound.
LOWEST_COVERAGE = 0.95 - 4 * math.sqrt(0.95 * 0.05 / N_TRIALS)


def coverage(bootstrap, n_seeds: int, n_examples: int, **deviations: float) -> float:
    source = generator(5)
    hits = 0
    for _ in range(N_TRIALS):
        values = crossed(n_seeds, n_examples, source, **deviations)
        low, high = bootstrap(values, n_resamples=300, generator=source)
        hits += bool(low <= 0 <= high)
    return hits / N_TRIALS


QUERIES_DIFFER = {"of_seed": 0.05, "of_query": 1.0, "of_pair": 0.5}
SEEDS_DIFFER = {"of_seed": 1.0, "of_query": 0.5, "of_pair": 0.5}


def test_intervals_hold_the_true_mean_as_often_as_promised_where_queries_differ_most():
    assert coverage(clustered_bootstrap, 5, 40, **QUERIES_DIFFER) > LOWEST_COVERAGE


def test_the_nested_scheme_is_far_too_narrow_where_queries_differ_most():
    assert coverage(nested_bootstrap, 5, 40, **QUERIES_DIFFER) < 0.8


def test_intervals_hold_the_true_mean_as_often_as_promised_where_twenty_seeds_differ_most():
    assert coverage(clustered_bootstrap, 20, 20, **SEEDS_DIFFER) > LOWEST_COVERAGE


def test_a_bootstrap_of_pairs_is_far_too_narrow_where_seeds_differ_most():
    def of_pairs(values: Tensor, *, n_resamples: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        # One seed that holds all pairs: examples alone are resampled.
        return clustered_bootstrap(values.reshape(1, -1), n_resamples=n_resamples, generator=generator)

    assert coverage(of_pairs, 20, 20, **SEEDS_DIFFER) < 0.8


def test_five_seeds_that_differ_most_are_too_few_as_the_docstring_says():
    # 85 % there, by 2,000 trials; four standard errors of 400 are 7 %.
    assert coverage(clustered_bootstrap, 5, 40, **SEEDS_DIFFER) == pytest.approx(0.85, abs=0.07)


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


def test_many_entries_are_resampled_in_parts_without_a_difference():
    values = normal(4, 6, 700)
    assert AT_ONCE < 4 * 700 * 1000
    whole = clustered_bootstrap(values, generator=generator(1))
    for entries in (slice(0, 300), slice(400, 700)):
        part = clustered_bootstrap(values[..., entries], generator=generator(1))
        torch.testing.assert_close(torch.stack(part), torch.stack(whole)[:, entries])


def test_hundreds_of_entries_take_well_under_a_second():
    values = torch.rand(5, 200, 30, 9, generator=generator())
    clustered_bootstrap(values[:, :, :1], generator=generator())
    start = time.perf_counter()
    clustered_bootstrap(values, generator=generator())
    # A tenth of a second on one core; the margin is for a busy machine.
    assert time.perf_counter() - start < 2


# --- ratios


def slow_ratio(numerator: np.ndarray, denominator: np.ndarray, n_resamples: int, seed: int) -> tuple[float, float]:
    random = Random(seed)
    n_seeds, n_examples = numerator.shape
    ratios = []
    for _ in range(n_resamples):
        above = below = 0.0
        queries = random.choices(range(n_examples), k=n_examples)
        for drawn_seed in random.choices(range(n_seeds), k=n_seeds):
            for query in queries:
                above += numerator[drawn_seed, query]
                below += denominator[drawn_seed, query]
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
