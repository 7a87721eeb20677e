"""Statistics over a few seeds: means, Student's intervals, paired tests."""

import itertools
import math

import pytest
from scipy import stats

from dualform.studies.momentum.figures import seedwise
from dualform.studies.seed_statistics import over_seeds, paired_difference

VALUES = [3.1, 2.7, 3.6, 2.9, 3.3]
BASELINE = [3.0, 2.9, 3.2, 2.8, 3.1]


def test_a_mean_has_students_interval() -> None:
    estimate = over_seeds(VALUES)
    low, high = stats.t.interval(0.95, 4, loc=sum(VALUES) / 5, scale=stats.sem(VALUES))
    assert estimate.mean == pytest.approx(sum(VALUES) / 5)
    assert estimate.ci95 == pytest.approx((low, high))
    assert estimate.n == 5
    # A normal interval would be too short.
    assert high - low > 2 * 1.96 * stats.sem(VALUES)


@pytest.mark.parametrize("values", [[2.5], [2.5, 2.5]])
def test_one_number_has_no_interval_and_equal_ones_have_one_without_width(values: list[float]) -> None:
    estimate = over_seeds(values)
    assert estimate.mean == 2.5
    assert estimate.ci95 == ((None, None) if len(values) == 1 else (2.5, 2.5))


def test_a_difference_is_taken_seed_by_seed() -> None:
    difference = paired_difference((7, 1, 3, 9, 4), VALUES, BASELINE)
    differences = [a - b for a, b in zip(VALUES, BASELINE, strict=True)]
    test = stats.ttest_rel(VALUES, BASELINE)
    assert difference.per_seed == dict(zip(["7", "1", "3", "9", "4"], differences, strict=True))
    assert difference.mean == pytest.approx(sum(differences) / 5)
    assert difference.ci95 == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert difference.p == pytest.approx(test.pvalue)
    assert difference.n == 5
    # An unpaired test would give a larger one.
    assert difference.p < 0.6 * stats.ttest_ind(VALUES, BASELINE).pvalue


def test_signs_are_flipped_in_all_ways() -> None:
    differences = [a - b for a, b in zip(VALUES, BASELINE, strict=True)]
    sums = [
        sum(s * d for s, d in zip(signs, differences, strict=True)) for signs in itertools.product((1, -1), repeat=5)
    ]
    share = sum(abs(total) >= abs(sum(differences)) - 1e-12 for total in sums) / 32
    assert paired_difference(range(5), VALUES, BASELINE).p_signs == pytest.approx(share)
    # All differences have one sign: the smallest p-value of five seeds.
    assert paired_difference(range(5), [1.0, 2.0, 3.0, 4.0, 5.0], [0.0] * 5).p_signs == pytest.approx(2 / 32)


def test_one_seed_has_no_test() -> None:
    difference = paired_difference((4,), [1.0], [3.0])
    assert (difference.mean, difference.ci95, difference.n) == (-2.0, (None, None), 1)
    assert (difference.p, difference.p_signs) == (None, None)
    assert difference.per_seed == {"4": -2.0}


@pytest.mark.parametrize(
    ("own", "baseline"), [([0.3, 0.2], [0.2, 0.1]), ([0.5, 0.5], [0.5, 0.5]), ([0.7, 0.6, 0.5], [0.3, 0.2, 0.1])]
)
def test_differences_that_are_equal_but_for_rounding_have_no_t_test(own: list[float], baseline: list[float]) -> None:
    difference = paired_difference(range(len(own)), own, baseline)
    assert difference.p is None
    assert difference.p_signs is not None
    assert math.isclose(difference.mean or 0.0, own[0] - baseline[0])
    assert difference.ci95 == pytest.approx((difference.mean, difference.mean))


@pytest.mark.parametrize(
    "differences",
    [[0.1, 0.1], [0.0, 0.0, 0.0], [0.7 - 0.3, 0.6 - 0.2, 0.5 - 0.1], [0.1, 0.2], VALUES, [-0.012, -0.009]],
)
def test_studies_and_reports_have_one_paired_t_test(differences: list[float]) -> None:
    seeds = range(len(differences))
    of_study = paired_difference(seeds, differences, [0.0] * len(differences))
    of_report = seedwise({str(seed): value for seed, value in zip(seeds, differences, strict=True)})
    assert of_report is not None
    assert of_report.p == of_study.p
    assert of_report.ci95 == of_study.ci95
    if max(differences) - min(differences) > 1e-9:
        assert of_study.p == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    else:
        # scipy has NaN or, with a warning that it is unreliable, 0.
        assert of_study.p is None
