"""Numbers of several runs of one arm: means, and differences to a baseline, seed by seed."""

import math
from collections.abc import Sequence

import torch
from scipy import stats

from dualform.ops.permutation import sign_flip_p
from dualform.result import Estimate, Paired


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean and Student's interval over seeds; neither of none."""
    n = len(values)
    if not n:
        return Estimate(mean=None, ci95=(None, None), n=0)
    mean = math.fsum(values) / n
    low, high = _interval(values)
    return Estimate(mean=mean, ci95=(low, high), n=n)


def paired(seeds: Sequence[int], own: Sequence[float], beside: Sequence[float]) -> Paired:
    """Difference of an arm to its baseline, seed by seed; no `p` where all seeds have the same difference."""
    differences = [a - b for a, b in zip(own, beside, strict=True)]
    n = len(differences)
    if not n:
        return Paired(mean=None, ci95=(None, None), p=None, p_signs=None, per_seed={}, n=0)
    mean = math.fsum(differences) / n
    error = _error(differences) if n > 1 else 0.0
    # Differences that are one number but for rounding have no spread that a test could go by.
    rounding = 1e-12 * max(map(abs, (*own, *beside)))
    return Paired(
        mean=mean,
        ci95=_interval(differences),
        p=2 * float(stats.t.sf(abs(mean) / error, n - 1)) if error > rounding else None,
        p_signs=float(sign_flip_p(torch.tensor(differences, dtype=torch.float64))) if n > 1 else None,
        per_seed={str(seed): value for seed, value in zip(seeds, differences, strict=True)},
        n=n,
    )


def _interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 %, Student's; no interval of one number."""
    n = len(values)
    if n < 2:
        return None, None
    mean = math.fsum(values) / n
    reach = float(stats.t.ppf(0.975, n - 1)) * _error(values)
    return mean - reach, mean + reach


def _error(values: Sequence[float]) -> float:
    """Standard error of the mean of two numbers or more."""
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
