import itertools
import math
from dataclasses import astuple

import numpy as np
import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.variance import spread_interval, spread_ratio, variance_split


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def runs(
    shape: tuple[int, int, int],
    source: torch.Generator,
    *,
    of_set: float = 0.0,
    of_order: float = 0.0,
    of_query: float = 0.0,
    of_pair: float = 0.0,
    of_rest: float = 0.0,
) -> Tensor:
    """Numbers of shape `(set, order, example)` with an effect of each kind, of these deviations."""
    n_sets, n_orders, n_queries = shape

    def effect(deviation: float, *shape: int) -> Tensor:
        return deviation * torch.randn(*shape, generator=source, dtype=torch.float64)

    return (
        effect(of_set, n_sets, 1, 1)
        + effect(of_order, n_sets, n_orders, 1)
        + effect(of_query, 1, 1, n_queries)
        + effect(of_pair, n_sets, 1, n_queries)
        + effect(of_rest, n_sets, n_orders, n_queries)
    )


def mean_squares(y: np.ndarray) -> dict[str, float]:
    """Mean squares of the design, by loops over its cells."""
    s, o, q = y.shape
    grand = y.mean()
    squares = dict.fromkeys(("set", "order", "set x query", "rest"), 0.0)
    for i, j, k in itertools.product(range(s), range(o), range(q)):
        of_set, of_run, of_query, of_pair = y[i].mean(), y[i, j].mean(), y[:, :, k].mean(), y[i, :, k].mean()
        squares["set"] += (of_set - grand) ** 2
        squares["order"] += (of_run - of_set) ** 2
        squares["set x query"] += (of_pair - of_set - of_query + grand) ** 2
        squares["rest"] += (y[i, j, k] - of_run - of_pair + of_set) ** 2
    degrees = {
        "set": s - 1,
        "order": s * (o - 1),
        "set x query": (s - 1) * (q - 1),
        "rest": s * (o - 1) * (q - 1),
    }
    return {name: squares[name] / degrees[name] if degrees[name] else math.nan for name in squares}


def slow_split(y: np.ndarray) -> tuple[float, float, float]:
    """Set, order and residual by solving the expected mean squares of the docstring for the variances, then cut."""
    _, o, q = y.shape
    names = ("set", "order", "set x query", "rest")
    observed = mean_squares(y)
    # Rows: what each mean square is expected to be, in V(set), V(order), V(set x query), V(rest).
    expected = np.array([[o * q, q, o, 1], [0, q, 0, 1], [0, 0, o, 1], [0, 0, 0, 1]], dtype=float)
    of_set, of_order, of_pair, of_rest = np.linalg.solve(expected, [observed[name] for name in names])
    return max(of_set, 0.0), max(of_order, 0.0), (of_pair + of_rest) / q


EFFECTS = {"of_set": 0.06, "of_order": 0.05, "of_query": 0.4, "of_pair": 0.2, "of_rest": 0.25}


def split(y: Tensor, n_resamples: int = 1) -> tuple[float, float, float]:
    parts = variance_split(y, n_resamples=n_resamples, generator=generator())
    return parts.set, parts.order, parts.residual


@pytest.mark.parametrize("shape", [(4, 3, 7), (2, 2, 2), (6, 2, 30)])
def test_the_split_answers_to_the_slow_version(shape):
    for seed in range(5):
        y = runs(shape, generator(seed), **EFFECTS)
        assert split(y) == pytest.approx(slow_split(y.numpy()), rel=1e-9, abs=1e-15)
        right = (y > 0).to(torch.bool)
        assert split(right) == pytest.approx(slow_split(right.double().numpy()), rel=1e-9, abs=1e-15)


def test_one_order_answers_to_a_two_way_table_by_hand():
    y = torch.tensor([[1.0, 2.0], [5.0, 8.0]])[:, None]
    # Rows 1.5 and 6.5, columns 3 and 5, mean 4: MS(set) = 2 x 2 x 2.5^2 = 25, deviations of cells are 0.5, so
    # MS(set x query) = 4 x 0.25 = 1.
    parts = variance_split(y, generator=generator())
    assert parts.set == pytest.approx((25 - 1) / 2)
    assert parts.residual == pytest.approx(1 / 2)
    assert parts.total == pytest.approx(y.mean(2).var().item()) == pytest.approx(12.5)
    assert math.isnan(parts.order)
    assert all(math.isnan(end) for end in parts.order_ci95)
    assert all(math.isfinite(end) for end in parts.set_ci95)


def test_two_orders_answer_to_a_table_by_hand():
    # The second order adds 2 to both queries of the first set and to the first query of the second set.
    y = torch.tensor([[[0.0, 4.0], [2.0, 6.0]], [[10.0, 12.0], [12.0, 12.0]]])
    # Sets 3 and 11.5: MS(set) = 4 x 2 x 4.25^2 = 144.5. Runs 2, 4, 11, 12: MS(order) = 2 (1 + 1 + 1/4 + 1/4) / 2 = 2.5.
    # Set by query 1, 5, 11, 12; queries 6, 8.5; mean 7.25: deviations of 3/4, MS(set x query) = 2 x 4 x 9/16 = 4.5.
    # The rest is 1/2 in all four cells of the second set: MS(rest) = 4 x 1/4 / 2 = 0.5.
    assert mean_squares(y.numpy()) == pytest.approx({"set": 144.5, "order": 2.5, "set x query": 4.5, "rest": 0.5})
    assert split(y) == pytest.approx(((144.5 - 2.5 - 4.5 + 0.5) / 4, (2.5 - 0.5) / 2, (4.5 + 0.5) / 4))


def mean_split(n_trials: int, shape: tuple[int, int, int], **effects: float) -> Tensor:
    source = generator(1)
    return torch.tensor([split(runs(shape, source, **effects)) for _ in range(n_trials)], dtype=torch.float64)


def test_known_components_are_recovered_without_bias():
    # Effects so large that hardly an estimate is cut.
    effects = {"of_set": 0.10, "of_order": 0.08, "of_query": 0.4, "of_pair": 0.2, "of_rest": 0.25}
    estimates = mean_split(800, (8, 4, 50), **effects)
    true = torch.tensor([0.10**2, 0.08**2, (0.2**2 + 0.25**2) / 50], dtype=torch.float64)
    standard_error = estimates.std(0) / math.sqrt(800)
    assert ((estimates.mean(0) - true).abs() < 4 * standard_error).all()
    # The test is worth something: four standard errors are a small part of the components.
    assert (4 * standard_error < 0.1 * true).all()


def test_queries_that_differ_do_not_enter():
    plain = runs((5, 3, 20), generator(), **EFFECTS | {"of_query": 0.0})
    shifted = plain + 10 * torch.randn(20, generator=generator(2), dtype=torch.float64)
    assert split(shifted) == pytest.approx(split(plain))


def test_pure_noise_gives_sets_and_orders_next_to_nothing():
    estimates = mean_split(200, (10, 4, 50), of_rest=0.5)
    residual = 0.5**2 / 50
    assert estimates[:, 2].mean().item() == pytest.approx(residual, rel=0.05)
    # Half of the estimates are cut at 0, the others are noise: on average some hundredths to a tenth of the residual.
    assert (estimates[:, :2].mean(0) < 0.15 * residual).all()
    assert ((estimates[:, :2] == 0).double().mean(0) > 0.3).all()


def test_the_plain_variance_of_accuracies_takes_that_noise_for_differences_between_sets():
    source = generator(1)
    plain = [runs((10, 4, 50), source, of_rest=0.5).mean(2).var().item() for _ in range(200)]
    assert np.mean(plain) == pytest.approx(0.5**2 / 50, rel=0.1)


def test_few_queries_overstate_differences_between_sets_unless_the_residual_is_taken_off():
    effects = {"of_set": 0.1, "of_query": 0.4, "of_pair": 0.3, "of_rest": 0.4}
    source = generator(2)
    trials = [runs((20, 2, 5), source, **effects) for _ in range(200)]
    plain = np.mean([y.mean((1, 2)).var().item() for y in trials])
    taken_off = np.mean([split(y)[0] for y in trials])
    # V(set) + (V(set x query) + V(rest) / 2) / 5 is over four times V(set).
    assert plain == pytest.approx(0.1**2 + (0.3**2 + 0.4**2 / 2) / 5, rel=0.1)
    assert taken_off == pytest.approx(0.1**2, rel=0.25)


def test_sets_are_not_mistaken_for_orders_nor_orders_for_sets():
    of_sets = mean_split(100, (10, 4, 40), of_set=0.2, of_rest=0.3).mean(0)
    assert of_sets[0].item() == pytest.approx(0.04, rel=0.25)
    assert of_sets[1].item() < 0.0004
    of_orders = mean_split(100, (10, 4, 40), of_order=0.2, of_rest=0.3).mean(0)
    assert of_orders[1].item() == pytest.approx(0.04, rel=0.15)
    # Without an effect of sets half of the estimates are cut at 0 and half are the noise of the mean of four orders.
    assert of_orders[0].item() < 0.1 * 0.04
    plain = [runs((10, 4, 40), generator(seed), of_order=0.2).mean((1, 2)).var().item() for seed in range(100)]
    assert np.mean(plain) == pytest.approx(0.04 / 4, rel=0.15)


def test_with_one_order_the_set_holds_both():
    estimates = mean_split(300, (20, 1, 40), of_set=0.1, of_order=0.1, of_query=0.4, of_pair=0.1, of_rest=0.2)
    assert estimates[:, 0].mean().item() == pytest.approx(0.02, rel=0.1)
    assert estimates[:, 1].isnan().all()
    assert estimates[:, 2].mean().item() == pytest.approx((0.1**2 + 0.2**2) / 40, rel=0.05)


@pytest.mark.parametrize("n_orders", [1, 3])
@pytest.mark.parametrize("value", [0.0, 1.0, 0.7])
def test_runs_that_are_all_alike_have_no_variance(n_orders, value):
    query = torch.rand(15, generator=generator())
    for right in (torch.full((4, n_orders, 15), value), query.expand(4, n_orders, 15)):
        parts = variance_split(right, generator=generator())
        assert (parts.set, parts.residual, parts.total) == (0, 0, 0)
        assert parts.set_ci95 == (0, 0)
        assert parts.order == 0 or n_orders == 1


def test_the_parts_add_up_and_the_total_is_what_a_run_varies_by():
    y = runs((12, 4, 60), generator(), **EFFECTS)
    parts = variance_split(y, generator=generator())
    assert min(parts.set, parts.order, parts.residual) > 0
    assert parts.total == pytest.approx(parts.set + parts.order + parts.residual)
    # Over all pairs of runs of different sets, half the mean squared difference.
    accuracy = y.mean(2)
    apart = [
        (accuracy[i, k] - accuracy[j, m]).square().item() / 2
        for i, j in itertools.combinations(range(12), 2)
        for k, m in itertools.product(range(4), range(4))
    ]
    assert parts.total == pytest.approx(np.mean(apart))


def test_intervals_surround_the_estimates_and_answer_to_resampled_sets():
    y = runs((10, 3, 40), generator(4), **EFFECTS)
    parts = variance_split(y, n_resamples=4000, generator=generator(1))
    assert parts.set_ci95[0] < parts.set < parts.set_ci95[1]
    assert parts.order_ci95[0] < parts.order < parts.order_ci95[1]
    # The slow way: draw sets, compute the four mean squares anew, undo the shrinking of those between sets.
    random = np.random.default_rng(2)
    sets, orders = [], []
    for _ in range(400):
        drawn = y[torch.from_numpy(random.integers(10, size=10))]
        centred = drawn - drawn.mean((0, 1)) + drawn.mean()
        ms = {name: value * (10 / 9 if "set" in name else 1) for name, value in slow_mean_squares(centred).items()}
        sets.append(max((ms["set"] - ms["order"] - ms["set x query"] + ms["rest"]) / 120, 0))
        orders.append(max((ms["order"] - ms["rest"]) / 40, 0))
    for ends, slow in ((parts.set_ci95, sets), (parts.order_ci95, orders)):
        low, high = np.percentile(slow, [2.5, 97.5])
        # A 2.5 % quantile of 400 draws has a standard error of 0.13 deviations, 0.03 of the width.
        assert ends == pytest.approx((low, high), abs=0.12 * (high - low))


def slow_mean_squares(y: Tensor) -> dict[str, float]:
    """`mean_squares` by whole arrays, fast enough for hundreds of resamples."""
    s, o, q = y.shape
    of_set, of_run, of_query, of_pair = y.mean((1, 2)), y.mean(2), y.mean((0, 1)), y.mean(1)
    pairs = of_pair - of_set[:, None] - of_query + y.mean()
    rest = y - of_run[..., None] - of_pair[:, None] + of_set[:, None, None]
    return {
        "set": o * q * of_set.var().item(),
        "order": q * (of_run - of_set[:, None]).square().sum().item() / (s * (o - 1)),
        "set x query": o * pairs.square().sum().item() / ((s - 1) * (q - 1)),
        "rest": rest.square().sum().item() / (s * (o - 1) * (q - 1)),
    }


def test_intervals_of_the_split_hold_the_truth_about_as_often_as_the_docstring_says():
    source, hits = generator(5), np.zeros(2)
    effects = {"of_set": 0.05, "of_order": 0.03, "of_query": 0.4, "of_pair": 0.2, "of_rest": 0.2}
    for _ in range(300):
        parts = variance_split(runs((10, 4, 100), source, **effects), n_resamples=200, generator=source)
        hits += parts.set_ci95[0] <= 0.05**2 <= parts.set_ci95[1], parts.order_ci95[0] <= 0.03**2 <= parts.order_ci95[1]
    # Four standard errors of 300 trials are 9 %.
    assert hits / 300 == pytest.approx([0.82, 0.88], abs=0.09)


def test_queries_without_an_answer_under_some_run_are_left_out_of_all():
    y = runs((4, 3, 12), generator(), **EFFECTS)
    whole = variance_split(y[..., :10], generator=generator())
    y[2, 1, 10], y[0, 0, 11] = torch.nan, torch.inf
    copy = y.clone()
    assert variance_split(y, generator=generator()) == whole
    torch.testing.assert_close(y, copy, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 4, 20), (0, 4, 20), (4, 0, 20), (4, 2, 1), (4, 2, 0)])
def test_too_little_to_split_is_nan(shape):
    parts = variance_split(torch.ones(shape), generator=generator())
    assert all(math.isnan(value) for value in np.ravel(np.array(astuple(parts)[:4])))
    assert all(math.isnan(end) for end in (*parts.set_ci95, *parts.order_ci95))


def test_a_seed_fixes_the_intervals():
    y = runs((15, 2, 20), generator(), **EFFECTS)
    first, second, other = (variance_split(y, generator=generator(seed)) for seed in (1, 1, 2))
    assert first == second
    assert first.set_ci95 != other.set_ci95
    assert first.set == other.set


# --- ratios of spreads


def accuracies(n_sets: int, n_orders: int, source: torch.Generator, *, of_set: float, of_order: float) -> Tensor:
    return 0.7 + runs((n_sets, n_orders, 1), source, of_set=of_set, of_order=of_order)[..., 0]


def test_the_ratio_is_that_of_standard_deviations_over_all_runs():
    first, second = torch.rand(5, 3, generator=generator()), torch.rand(5, 3, generator=generator(1))
    ratio, low, high = spread_ratio(first, second, generator=generator(2))
    assert ratio == pytest.approx((first.std() / second.std()).item(), rel=1e-5)
    assert low < ratio < high


def test_a_spread_scaled_by_a_factor_has_that_ratio_in_every_resample():
    second = torch.rand(6, 3, generator=generator(), dtype=torch.float64)
    assert spread_ratio(3 * second + 1, second, generator=generator(1)) == pytest.approx((3, 3, 3))


def test_swapping_the_two_inverts_the_ratio_and_its_interval():
    first, second = accuracies(8, 2, generator(), of_set=0.1, of_order=0.1), torch.rand(8, 2, generator=generator(1))
    ratio, low, high = spread_ratio(first, second, n_resamples=4001, generator=generator(2))
    back, back_low, back_high = spread_ratio(second, first, n_resamples=4001, generator=generator(2))
    # Percentiles between two resamples are interpolated on the ratio, not on its logarithm.
    assert (1 / back, 1 / back_high, 1 / back_low) == pytest.approx((ratio, low, high), rel=1e-3)


def ratio_hits(interval, n_trials: int, *, shared: bool) -> tuple[float, float]:
    """How often the interval holds the true ratio of 2, and its mean width on the log scale."""
    source, hits, width = generator(3), 0, 0.0
    large, small = {"of_set": 0.05, "of_order": 0.02}, {"of_set": 0.015, "of_order": 0.01}
    for _ in range(n_trials):
        common, own = accuracies(20, 4, source, **large), accuracies(20, 4, source, **small)
        first = 2 * (common if shared else accuracies(20, 4, source, **large))
        first = first + 2 * accuracies(20, 4, source, **small)
        low, high = interval(first, common + own, source)
        hits += bool(low <= 2 <= high)
        width += math.log(high / low) / n_trials
    return hits / n_trials, width


def jointly(first: Tensor, second: Tensor, source: torch.Generator) -> tuple[float, float]:
    return spread_ratio(first, second, n_resamples=200, generator=source)[1:]


def by_run(first: Tensor, second: Tensor, source: torch.Generator) -> tuple[float, float]:
    """What must not be done here: runs resampled as if each had a set of its own."""
    return spread_ratio(first.reshape(-1, 1), second.reshape(-1, 1), n_resamples=200, generator=source)[1:]


@pytest.mark.parametrize("shared", [True, False])
def test_the_interval_of_a_ratio_holds_it_about_as_often_as_the_docstring_says(shared):
    hits, _ = ratio_hits(jointly, 300, shared=shared)
    # 92 % there; four standard errors of 300 trials are 6 %.
    assert hits == pytest.approx(0.92, abs=0.065)


def test_resampling_runs_instead_of_sets_is_too_narrow():
    hits, _ = ratio_hits(by_run, 300, shared=False)
    assert hits < 0.85


def test_sets_in_common_make_the_ratio_much_better_known():
    assert ratio_hits(jointly, 40, shared=True)[1] < 0.6 * ratio_hits(jointly, 40, shared=False)[1]


def test_runs_that_either_lacks_are_left_out_of_both():
    first, second = torch.rand(5, 3, generator=generator()), torch.rand(5, 3, generator=generator(1))
    first[0, 2], second[4], first[4, 0] = torch.nan, torch.nan, torch.inf
    kept = first.isfinite() & second.isfinite()
    ratio, low, high = spread_ratio(first, second, generator=generator(2))
    assert ratio == pytest.approx((first[kept].std() / second[kept].std()).item(), rel=1e-5)
    assert low < ratio < high
    assert spread_ratio(first[:4], second[:4], generator=generator(2)) == pytest.approx((ratio, low, high))


def test_nothing_below_the_line_is_nan_and_nothing_above_it_is_zero():
    still, moving = torch.full((5, 2), 0.7), torch.rand(5, 2, generator=generator())
    assert all(math.isnan(number) for number in spread_ratio(moving, still, generator=generator()))
    assert all(math.isnan(number) for number in spread_ratio(still, still, generator=generator()))
    assert spread_ratio(still, moving, generator=generator()) == (0, 0, 0)


def test_an_end_without_bound_is_nan():
    # Every set but one is the same for the second: a third of the resamples miss that one.
    first = torch.arange(5.0)[:, None]
    second = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.9])[:, None]
    ratio, low, high = spread_ratio(first, second, generator=generator())
    assert 0 < low < ratio
    assert math.isnan(high)


def test_one_set_has_a_ratio_and_no_interval():
    first, second = torch.tensor([[0.1, 0.3]]), torch.tensor([[0.2, 0.3]])
    ratio, low, high = spread_ratio(first, second, generator=generator())
    assert ratio == pytest.approx(2, rel=1e-6)
    assert math.isnan(low)
    assert math.isnan(high)
    for shape in [(1, 1), (0, 3), (3, 0)]:
        nothing = torch.ones(shape)
        assert all(math.isnan(number) for number in spread_ratio(nothing, nothing, generator=generator()))
    missing = torch.full((3, 2), torch.nan)
    assert all(math.isnan(number) for number in spread_ratio(missing, missing, generator=generator()))


# --- one spread


def test_the_interval_of_a_spread_answers_to_resampled_sets():
    values = accuracies(8, 3, generator(), of_set=0.05, of_order=0.03)
    values[2, 1] = torch.nan
    low, high = spread_interval(values, n_resamples=4000, generator=generator(1))
    random, slow = np.random.default_rng(2), []
    for _ in range(4000):
        drawn = values.numpy()[random.integers(8, size=8)]
        n, of_set = np.isfinite(drawn).sum(1), np.nanmean(drawn, axis=1)
        between = (n * (of_set - np.nanmean(drawn)) ** 2).sum()
        within = np.nansum((drawn - of_set[:, None]) ** 2)
        slow.append(math.sqrt((8 / 7 * between + within) / (n.sum() - 1)))
    slow_low, slow_high = np.percentile(slow, [2.5, 97.5])
    assert (low, high) == pytest.approx((slow_low, slow_high), abs=0.05 * (slow_high - slow_low))
    assert low < values[values.isfinite()].std().item() < high


def spread_hits(interval, n_sets: int) -> float:
    """How often the interval holds the true deviation of sets and orders together."""
    source, hits = generator(6), 0
    for _ in range(300):
        low, high = interval(accuracies(n_sets, 4, source, of_set=0.05, of_order=0.03), source)
        hits += bool(low <= math.hypot(0.05, 0.03) <= high)
    return hits / 300


def test_the_interval_of_a_spread_holds_it_about_as_often_as_the_docstring_says():
    def by_set(values: Tensor, source: torch.Generator) -> tuple[float, float]:
        return spread_interval(values, n_resamples=200, generator=source)

    # 80 % with 10 sets and 92 % with 50; four standard errors of 300 trials are 9 and 6 %.
    assert spread_hits(by_set, 10) == pytest.approx(0.80, abs=0.1)
    assert spread_hits(by_set, 50) == pytest.approx(0.92, abs=0.07)


def test_resampling_runs_as_if_each_had_its_own_set_holds_a_spread_far_too_seldom():
    def by_single_run(values: Tensor, source: torch.Generator) -> tuple[float, float]:
        return spread_interval(values.reshape(-1, 1), n_resamples=200, generator=source)

    assert spread_hits(by_single_run, 10) < 0.7


def test_a_spread_of_nothing_is_zero_and_that_of_too_little_is_nan():
    assert spread_interval(torch.full((4, 3), 0.7), generator=generator()) == (0, 0)
    for values in (torch.rand(1, 5), torch.ones(0, 2), torch.ones(2, 0), torch.full((3, 2), torch.nan)):
        assert all(math.isnan(end) for end in spread_interval(values, generator=generator()))
    one_set = torch.full((3, 2), torch.nan)
    one_set[1] = torch.tensor([0.1, 0.2])
    assert all(math.isnan(end) for end in spread_interval(one_set, generator=generator()))


def test_errors_name_what_was_given():
    with pytest.raises(ShapeError, match=r"\(set, order, example\); given right \(3, 4\)"):
        variance_split(torch.ones(3, 4), generator=generator())
    with pytest.raises(ConfigError, match="n_resamples is 0; expected 1 or more"):
        variance_split(torch.ones(3, 2, 4), n_resamples=0, generator=generator())
    with pytest.raises(ShapeError, match=r"given first \(3, 4\), second \(3, 5\)"):
        spread_ratio(torch.ones(3, 4), torch.ones(3, 5), generator=generator())
    with pytest.raises(ConfigError, match="n_resamples is -1; expected 1 or more"):
        spread_ratio(torch.ones(3, 4), torch.ones(3, 4), n_resamples=-1, generator=generator())
    with pytest.raises(ShapeError, match=r"\(set, order\); given values \(3,\)"):
        spread_interval(torch.ones(3), generator=generator())
    with pytest.raises(ConfigError, match="n_resamples is 0; expected 1 or more"):
        spread_interval(torch.ones(3, 2), n_resamples=0, generator=generator())
