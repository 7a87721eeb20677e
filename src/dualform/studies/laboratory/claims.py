"""When a claim holds: what is asked of every seed, and of an interval.

A case that must fail is made so that its claim is false. It has failed only where the numbers lie wholly on the other
side: wide intervals must not be enough for it.
"""

import math
from collections.abc import Sequence

from dualform.result import Estimate
from dualform.studies.laboratory.result import Claim
from dualform.studies.seed_statistics import over_seeds


def claim_in_seeds(
    says: str, expected: str, values: Sequence[float], met: Sequence[bool], *, must_fail: bool = False, source: str = ""
) -> Claim:
    """A claim that must be true in every seed; what must fail may be true in none. Without seeds nothing holds.

    Args:
        says: The claim.
        expected: What the values must be.
        values: By seed.
        met: By seed, whether it is so.
        must_fail: Whether the case is made so that the claim is false.
        source: Where it is from.
    """
    return Claim(
        says=says,
        expected=expected,
        found=over_seeds(values),
        holds=any(met) if must_fail else bool(met) and all(met),
        must_fail=must_fail,
        source=source,
    )


def wholly_below(found: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean where there is none, lies below."""
    high = found.mean if found.ci95[1] is None else found.ci95[1]
    return high is not None and high < bound


def wholly_above(found: Estimate, bound: float) -> bool:
    """Whether the interval, or the mean where there is none, lies above."""
    low = found.mean if found.ci95[0] is None else found.ci95[0]
    return low is not None and low > bound


def holds_below(found: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether it is below with its interval; what must fail holds unless a finite interval lies wholly above.

    Were a case that must fail to fail wherever a claim would, wide intervals would be enough for it.
    """
    return not (_has_interval(found) and wholly_above(found, bound)) if must_fail else wholly_below(found, bound)


def holds_above(found: Estimate, bound: float, must_fail: bool = False) -> bool:
    """Whether it is above with its interval; what must fail holds unless a finite interval lies wholly below."""
    return not (_has_interval(found) and wholly_below(found, bound)) if must_fail else wholly_above(found, bound)


def holds_within(ratios: Sequence[float], factor: float, must_fail: bool = False) -> bool:
    """Whether every ratio is 1 but for a factor; what must fail holds if one is, or if their interval is not outside.

    Args:
        ratios: By seed, above 0.
        factor: Above 1.
        must_fail: Whether the case is made so that the claim is false.
    """
    near = [1 / factor <= ratio <= factor for ratio in ratios]
    if not must_fail:
        return bool(near) and all(near)
    found = geometric(ratios)
    outside = wholly_below(found, 1 / factor) or wholly_above(found, factor)
    return any(near) or not (_has_interval(found) and outside)


def _has_interval(found: Estimate) -> bool:
    return all(end is not None and math.isfinite(end) for end in found.ci95)


def geometric(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval of the logarithms, and back: of strengths and ratios, which double and halve.

    Args:
        values: By seed, above 0.
    """
    logs = over_seeds([math.log(value) for value in values])
    mean, low, high = (None if one is None else math.exp(one) for one in (logs.mean, *logs.ci95))
    return Estimate(mean=mean, ci95=(low, high), n=logs.n)


def ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """Quotients by seed; none where there is nothing above."""
    return [a / b for a, b in zip(above, below, strict=True)] if above else []


def mean(values: Sequence[float]) -> float:
    """Mean of at least one number."""
    return math.fsum(values) / len(values)
