"""When a claim holds, given its values by seed or an interval.

A case that must fail is constructed so that its claim is false. It counts as failing only if its whole interval is on
the other side of the bound, so that a wide interval alone is not enough.
"""

import math
from collections.abc import Sequence

from dualform.result import Estimate
from dualform.studies.laboratory.result import Claim
from dualform.studies.seed_statistics import over_seeds


def claim_in_seeds(
    says: str, expected: str, values: Sequence[float], met: Sequence[bool], *, must_fail: bool = False, source: str = ""
) -> Claim:
    """A claim that holds if it is true in every seed; a case that must fail holds if it is true in any.

    Args:
        says: The claim, one sentence.
        expected: Expected value with its tolerance, in words.
        values: Measured values, one a seed. Without any the claim does not hold.
        met: Whether each value is as expected.
        must_fail: Whether the case is constructed so that the claim is false.
        source: arXiv id and section, or empty.
    """
    return Claim(
        says=says,
        expected=expected,
        found=over_seeds(values),
        holds=any(met) if must_fail else bool(met) and all(met),
        must_fail=must_fail,
        source=source,
    )


def wholly_below(estimate: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean if there is no interval, is below the bound."""
    high = estimate.mean if estimate.ci95[1] is None else estimate.ci95[1]
    return high is not None and high < bound


def wholly_above(estimate: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean if there is no interval, is above the bound."""
    low = estimate.mean if estimate.ci95[0] is None else estimate.ci95[0]
    return low is not None and low > bound


def holds_below(estimate: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether the whole interval is below the bound; a case that must fail fails only with a finite interval above."""
    if must_fail:
        return not (_has_interval(estimate) and wholly_above(estimate, bound))
    return wholly_below(estimate, bound)


def holds_above(estimate: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether the whole interval is above the bound; a case that must fail fails only with a finite interval below."""
    if must_fail:
        return not (_has_interval(estimate) and wholly_below(estimate, bound))
    return wholly_above(estimate, bound)


def holds_within(ratios: Sequence[float], factor: float, must_fail: bool = False) -> bool:
    """Whether every ratio lies between `1 / factor` and `factor`.

    A case that must fail fails only if no ratio does and their interval lies wholly outside.

    Args:
        ratios: One a seed, above 0.
        factor: Above 1.
        must_fail: Whether the case is constructed so that the claim is false.
    """
    near = [1 / factor <= ratio <= factor for ratio in ratios]
    if not must_fail:
        return bool(near) and all(near)
    estimate = geometric(ratios)
    outside = wholly_below(estimate, 1 / factor) or wholly_above(estimate, factor)
    return any(near) or not (_has_interval(estimate) and outside)


def _has_interval(estimate: Estimate) -> bool:
    return all(end is not None and math.isfinite(end) for end in estimate.ci95)


def geometric(values: Sequence[float]) -> Estimate:
    """Geometric mean with Student's 95 % interval, both computed on logarithms.

    Args:
        values: One a seed, above 0.
    """
    logs = over_seeds([math.log(value) for value in values])
    mean, low, high = (None if log is None else math.exp(log) for log in (logs.mean, *logs.ci95))
    return Estimate(mean=mean, ci95=(low, high), n=logs.n)


def ratios(numerators: Sequence[float], denominators: Sequence[float]) -> list[float]:
    """Quotients by seed; empty if there are no numerators."""
    return [a / b for a, b in zip(numerators, denominators, strict=True)] if numerators else []


def mean(values: Sequence[float]) -> float:
    """Mean of at least one number."""
    return math.fsum(values) / len(values)
