import math
import time
from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import permutation_test
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.permutation import adjusted_for_discoveries, sign_flip_p


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def scipys(column: np.ndarray, alternative: str, n_resamples: int = 9999) -> float:
    """The twin: scipy's own test of one column without gaps."""
    result = permutation_test(
        (column,),
        lambda x, axis: x.mean(axis),
        permutation_type="samples",
        alternative=alternative,
        vectorized=True,
        n_resamples=n_resamples,
        rng=np.random.default_rng(1),
    )
    return float(result.pvalue)


def by_hand(column: list[float], *, two_sided: bool) -> float:
    """All sign patterns by a loop."""
    sums = [
        sum(sign * x for sign, x in zip(signs, column, strict=True)) for signs in product((1, -1), repeat=len(column))
    ]
    observed = sum(column)
    # Sums of equal size are often unequal in floats.
    slack = 1e-9
    hits = [abs(s) >= abs(observed) - slack if two_sided else s >= observed - slack for s in sums]
    return sum(hits) / len(hits)


def furthest_from_uniform(p: Tensor) -> float:
    """Kolmogorov-Smirnov distance of p-values from the uniform distribution on [0, 1]."""
    ordered = p.sort().values
    at = torch.arange(1, len(p) + 1, dtype=p.dtype) / len(p)
    return float(torch.maximum((at - ordered).abs(), (at - 1 / len(p) - ordered).abs()).max())


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("n_units", [12, 30])
def test_without_an_effect_p_values_are_uniform(alternative, n_units):
    # 12 units are enumerated, 30 are not. Columns are independent, as their data are.
    p = sign_flip_p(normal(n_units, 2000, seed=n_units), alternative=alternative, n_resamples=4999)
    # 1.95 / sqrt(n) is passed once in a thousand samples; random flips that all columns share add a little.
    assert furthest_from_uniform(p) < 1.95 / math.sqrt(2000) + 0.015


def test_with_an_effect_p_values_are_small_and_grow_as_it_shrinks():
    noise = normal(20, 500)
    powers = [(sign_flip_p(noise + effect) < 0.05).double().mean().item() for effect in (0.0, 0.3, 1.0)]
    assert powers[0] == pytest.approx(0.05, abs=0.04)
    # The t-test's power at 0.3 standard deviations and 20 units is 0.25.
    assert powers[1] == pytest.approx(0.25, abs=0.08)
    assert powers[2] > 0.97


def test_an_effect_the_other_way_is_not_greater():
    below = normal(10, 1) - 2
    assert sign_flip_p(below).item() < 0.05
    assert sign_flip_p(below, alternative="greater").item() > 0.95


def test_heavy_tails_and_unequal_spreads_leave_the_test_exact():
    # Signs are all that the null needs: each unit may have its own symmetric distribution.
    spreads = torch.logspace(-3, 3, 12, dtype=torch.float64)[:, None]
    p = sign_flip_p(spreads * normal(12, 2000) ** 3)
    assert (p < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.02)


def test_crossed_seeds_counted_as_units_of_their_own_reject_far_too_often():
    # Two learners that are equally good; which one does better depends on the demonstrations, shared by all queries.
    n_trials, n_seeds, n_queries = 400, 8, 25
    of_seed = normal(n_seeds, 1, n_trials)
    differences = of_seed + normal(n_seeds, n_queries, n_trials, seed=1)
    by_seed = sign_flip_p(differences.mean(1))
    pairs = sign_flip_p(differences.flatten(0, 1), n_resamples=999)
    assert (by_seed < 0.05).double().mean().item() == pytest.approx(0.05, abs=0.045)
    assert (pairs < 0.05).double().mean().item() > 0.5


def test_three_units_are_enumerated_as_by_hand_and_never_below_two_in_eight():
    columns = [[1.0, 2.0, 4.0], [1.0, -2.0, 4.0], [-1.0, -1.0, -1.0], [1.0, 1.0, -1.0], [0.0, 0.0, 3.0]]
    p = sign_flip_p(torch.tensor(columns).T)
    assert p.tolist() == [by_hand(column, two_sided=True) for column in columns]
    assert p.tolist() == [2 / 8, 6 / 8, 2 / 8, 1.0, 1.0]
    assert p.min().item() == 2 / 2**3
    greater = sign_flip_p(torch.tensor(columns).T, alternative="greater")
    assert greater.tolist() == [by_hand(column, two_sided=False) for column in columns]
    assert greater[0].item() == 1 / 2**3


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
@pytest.mark.parametrize("n_units", [2, 5, 9])
def test_enumeration_answers_to_scipy(alternative, n_units):
    # Whole numbers bring ties, and a shift brings small p-values.
    columns = torch.cat([normal(n_units, 4) + 0.5, (3 * normal(n_units, 4, seed=1)).round()], dim=1)
    p = sign_flip_p(columns, alternative=alternative)
    assert p.tolist() == pytest.approx([scipys(column.numpy(), alternative) for column in columns.T], abs=1e-12)


@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_random_flips_answer_to_scipy(alternative):
    columns = normal(25, 6, seed=3) + torch.linspace(0, 0.8, 6, dtype=torch.float64)
    p = sign_flip_p(columns, alternative=alternative)
    twin = torch.tensor([scipys(column.numpy(), alternative) for column in columns.T], dtype=torch.float64)
    # Each has a standard error of sqrt(p (1 - p) / 9,999), scipy's doubled tail one of sqrt(2) times that.
    standard_error = (3 * twin * (1 - twin) / 9999).sqrt() + 1e-4
    assert ((p - twin).abs() < 4 * standard_error).all()


def test_random_flips_agree_with_enumeration_of_the_same_units():
    columns = normal(13, 8) + 0.3
    enumerated, drawn = sign_flip_p(columns, n_resamples=2**13), sign_flip_p(columns, n_resamples=2**13 - 1)
    assert ((enumerated - drawn).abs() < 4 * (enumerated * (1 - enumerated) / 2**13).sqrt() + 2e-4).all()
    assert not enumerated.equal(drawn)


def test_random_flips_are_never_below_one_in_one_more_than_their_number():
    assert sign_flip_p(torch.ones(40, 1), n_resamples=99).item() == pytest.approx(1 / 100)


def test_ties_in_rounded_numbers_count_as_ties():
    # In float32 0.3 - 0.2 is not 0.1: the two patterns that leave the sum as it is would be told apart.
    differences = torch.tensor([0.3 - 0.2, 0.1, -0.1]) + torch.tensor([0.0, 1e-8, 0.0])
    assert sign_flip_p(differences).item() == sign_flip_p(torch.tensor([1.0, 1.0, -1.0])).item() == 1
    untied = torch.tensor([0.1, 0.1, -0.09])
    assert sign_flip_p(untied).item() == by_hand([10, 10, -9], two_sided=True) == 0.5


@pytest.mark.parametrize("n_units", [2, 7, 40])
@pytest.mark.parametrize("alternative", ["two-sided", "greater"])
def test_no_difference_anywhere_is_exactly_one(n_units, alternative):
    assert sign_flip_p(torch.zeros(n_units, 3), alternative=alternative).tolist() == [1, 1, 1]


def test_missing_pairs_are_left_out_of_their_own_column():
    columns = normal(6, 3) + 0.7
    gapped = columns.clone()
    gapped[1, 0], gapped[4, 0], gapped[5, 2] = torch.nan, torch.inf, -torch.inf
    p = sign_flip_p(gapped)
    assert p[0] == sign_flip_p(columns[[0, 2, 3, 5], 0])
    assert p[1] == sign_flip_p(columns[:, 1])
    assert p[2] == sign_flip_p(columns[:5, 2])
    many = normal(30, 2) + 0.2
    many[7, 0] = torch.nan
    without = torch.cat([many[:7], many[8:]])[:, 0]
    # Other flips of the same numbers.
    assert sign_flip_p(many)[0].item() == pytest.approx(sign_flip_p(without).item(), abs=0.03)


def test_fewer_than_two_units_are_nan():
    columns = torch.full((4, 3), torch.nan)
    columns[0, 1] = 1
    columns[:2, 2] = 1
    p = sign_flip_p(columns)
    assert p[:2].isnan().all()
    assert p[2].item() == 0.5
    assert sign_flip_p(torch.ones(0, 2)).isnan().all()
    assert sign_flip_p(torch.ones(1)).isnan()
    assert sign_flip_p(torch.ones(5, 0)).shape == (0,)


def test_a_column_has_the_same_p_alone_as_beside_others():
    columns = normal(30, 4, 5)
    columns[0, 0, 0] = torch.nan
    together = sign_flip_p(columns)
    assert together.shape == (4, 5)
    for layer, head in [(0, 0), (0, 1), (3, 4)]:
        assert sign_flip_p(columns[:, layer, head]).item() == pytest.approx(together[layer, head].item(), abs=2e-4)


def test_a_seed_fixes_p_the_argument_stays_and_so_does_the_global_generator():
    columns = normal(30, 3)
    copy, state = columns.clone(), torch.get_rng_state()
    assert sign_flip_p(columns, seed=1).equal(sign_flip_p(columns, seed=1))
    assert not sign_flip_p(columns, seed=1).equal(sign_flip_p(columns, seed=2))
    assert columns.equal(copy)
    assert torch.get_rng_state().equal(state)
    assert sign_flip_p(columns.float()).dtype == torch.float32


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_the_unit_of_measurement_does_not_matter(scale):
    columns = normal(20, 5) + 0.3
    assert sign_flip_p(columns * scale).tolist() == pytest.approx(sign_flip_p(columns).tolist(), abs=2e-4)


def test_many_queries_and_layers_take_well_under_a_second():
    differences = normal(1000, 30)
    start = time.perf_counter()
    sign_flip_p(differences)
    # A tenth of a second on one core; the margin is for a busy machine.
    assert time.perf_counter() - start < 2


def test_errors_of_the_test_name_what_was_given():
    with pytest.raises(ConfigError, match="alternative is 'less'; expected one of two-sided, greater"):
        sign_flip_p(torch.ones(3), alternative="less")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="n_resamples is 0; expected 1 or more"):
        sign_flip_p(torch.ones(3), n_resamples=0)
    with pytest.raises(ShapeError, match=r"differences must be \(unit, \.\.\.\)"):
        sign_flip_p(torch.tensor(1.0))


# --- many tests


def slow_adjustment(p: list[float]) -> list[float]:
    """Benjamini and Hochberg by their definition: the lowest level q at which the test would be a discovery."""
    n = len(p)
    ranked = sorted(p)
    return [min(min(1.0, ranked[j] * n / (j + 1)) for j in range(n) if ranked[j] >= value) for value in p]


def test_adjustment_answers_to_the_definition():
    p = torch.rand(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    assert adjusted_for_discoveries(p).tolist() == pytest.approx(slow_adjustment(p.tolist()))
    assert adjusted_for_discoveries(torch.tensor([0.01, 0.04, 0.03, 0.5])).tolist() == pytest.approx(
        [0.04, 0.16 / 3, 0.16 / 3, 0.5]
    )


def test_false_discoveries_stay_below_the_level_and_without_adjustment_they_do_not():
    real, null = normal(200, 10) + 4, normal(200, 90, seed=1)
    z = torch.cat([real, null], dim=1)
    p = torch.special.erfc(z.abs() / math.sqrt(2))

    def false_share(q: Tensor) -> float:
        found = q < 0.1
        return (found[:, 10:].sum(1) / found.sum(1).clamp(min=1)).mean().item()

    # Expected are 0.1 x 90 of 100; four standard errors are 0.025.
    assert false_share(adjusted_for_discoveries(p)) == pytest.approx(0.09, abs=0.025)
    assert false_share(p) > 0.4


def test_missing_tests_pass_through_and_do_not_count():
    p = torch.tensor([[0.01, torch.nan, 0.02, 0.9], [torch.nan] * 4, [0.2, 0.2, 0.2, 0.2]])
    copy = p.clone()
    adjusted = adjusted_for_discoveries(p)
    assert adjusted[0, [0, 2, 3]].equal(adjusted_for_discoveries(p[0, [0, 2, 3]]))
    assert adjusted.isnan().equal(p.isnan())
    assert adjusted[2].tolist() == pytest.approx([0.2] * 4)
    torch.testing.assert_close(p, copy, rtol=0, atol=0, equal_nan=True)
    assert adjusted.dtype == torch.float32


@pytest.mark.parametrize("shape", [(0,), (3, 0), (2, 3, 4)])
def test_rows_are_adjusted_each_on_its_own(shape):
    p = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    adjusted = adjusted_for_discoveries(p)
    assert adjusted.shape == shape
    if p.numel():
        assert adjusted[1, 2].equal(adjusted_for_discoveries(p[1, 2]))
        assert adjusted_for_discoveries(p.mT)[0, 1].equal(adjusted_for_discoveries(p.mT[0, 1]))


def test_errors_of_the_adjustment_name_what_was_given():
    with pytest.raises(ConfigError, match=r"a p-value is 1\.5; expected numbers from 0 to 1"):
        adjusted_for_discoveries(torch.tensor([0.5, 1.5]))
    with pytest.raises(ShapeError, match=r"\(\.\.\., test\); given p \(\)"):
        adjusted_for_discoveries(torch.tensor(0.5))
