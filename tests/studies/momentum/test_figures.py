import math

import pytest
from scipy.stats import ttest_1samp

from dualform.report.numerals import MISSING
from dualform.studies.momentum.figures import (
    between,
    full_length,
    lengths,
    lowest_arm,
    nats,
    over_tasks,
    perplexity_text,
    relative,
    seedwise,
)
from tests.report.example_momentum import arm, estimate, paired, score, study

LOST = arm("momentum", None, eta=0.5)
"""An arm without a number, as of runs that failed."""


def test_a_seed_without_one_task_is_left_out_of_the_mean_over_tasks():
    first, second = paired(0.1, 0.01), paired(0.2, 0.01)
    second = second.model_copy(update={"per_seed": second.per_seed | {"3": None}})
    paired_result = over_tasks(
        arm("momentum", 0.0, eta=0.1, tasks=[score("a", 0.5, 0.5, first), score("b", 0.5, 0.5, second)])
    )
    assert paired_result is not None
    assert (paired_result.n, "3" in paired_result.per_seed) == (4, False)
    assert paired_result.per_seed["1"] == pytest.approx((0.1 + 0.2 - 2 * 0.012) / 2)


def test_a_difference_seed_by_seed_is_students():
    values = {"1": 0.3, "2": -0.1, "3": 0.25, "4": 0.4}
    paired_result, test = seedwise(values), ttest_1samp(list(values.values()), 0.0)
    assert paired_result is not None
    assert paired_result.mean == pytest.approx(0.2125)
    assert paired_result.ci95 == pytest.approx(tuple(test.confidence_interval(0.95)))
    assert paired_result.p == pytest.approx(test.pvalue)
    assert seedwise({}) is None
    single, constant = seedwise({"1": 0.3}), seedwise({"1": 0.5, "2": 0.5})
    assert single is not None
    assert constant is not None
    assert (single.mean, single.ci95, single.p) == (0.3, (None, None), None)
    assert (constant.ci95, constant.p) == ((0.5, 0.5), None)


def test_arms_with_one_baseline_are_compared_seed_by_seed_and_others_are_not():
    momentum, convolution, base = arm("momentum", -0.01, eta=0.1), arm("convolution", -0.02), arm("vanilla", 0.0)
    paired_result = between(momentum, convolution, "256")
    assert paired_result is not None
    first, second = momentum.difference["256"].per_seed, convolution.difference["256"].per_seed
    assert paired_result.per_seed == pytest.approx({seed: (first[seed] or 0) - (second[seed] or 0) for seed in first})
    assert between(momentum, base, "256") == momentum.difference["256"]
    reverse = between(base, momentum, "256")
    assert reverse is not None
    assert reverse.mean == pytest.approx(0.01)
    assert between(momentum, arm("heavy-ball", 0.3, eta=0.3), "256") is None
    assert between(momentum, LOST, "256") is None


def test_full_length_is_the_trained_one_where_it_was_measured():
    assert lengths(study()) == ["64", "128", "256"]
    assert full_length(study()) == "256"
    assert full_length(study(length=1024)) == "256"
    assert full_length(study(length=128)) == "128"
    assert full_length(study(arms=[])) is None
    odd = arm("vanilla", 0.0, perplexity={"long": estimate(20.0), "8": estimate(30.0)})
    assert lengths(study(arms=[odd])) == ["8", "long"]
    assert full_length(study(arms=[odd])) == "8"
    assert lowest_arm([LOST], "256") is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (-0.0123, "-0.0123"),
        (0.0, "+0.0000"),
        (2e-5, "+2.0e-05"),
        (None, MISSING),
        (math.nan, MISSING),
        (1.5, "+1.5000"),
    ],
)
def test_nats_keep_their_sign_and_do_not_round_to_zero(value, text):
    assert nats(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (math.log(1.012), "+1.20 %"),
        (math.log(0.5), "-50.0 %"),
        (math.log(21), "+2,000 %"),
        (9.0, "+8.1e+05 %"),
        (1e6, "+3.8e+262 %"),
        (None, MISSING),
    ],
)
def test_a_difference_of_losses_is_a_change_of_perplexity(value, text):
    assert relative(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(24.314, "24.31"), (151.23, "151.2"), (1512.3, "1,512"), (2.5e9, "2.5e+09"), (None, MISSING)]
)
def test_perplexities_have_four_digits_or_more(value, text):
    assert perplexity_text(value) == text
