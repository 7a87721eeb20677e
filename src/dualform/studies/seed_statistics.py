"""Statistics over seeds: means, and paired differences from a baseline."""

import math
from collections.abc import Sequence

import torch

from dualform.ops.permutation import sign_flip_p
from dualform.paired_t import paired_t_test, student_interval
from dualform.result import Estimate, Paired


def over_seeds(values: Sequence[float]) -> Estimate:
    """Mean over seeds and its 95 % interval by Student's t; both None without values."""
    n = len(values)
    if not n:
        return Estimate(mean=None, ci95=(None, None), n=0)
    mean = math.fsum(values) / n
    low, high = student_interval(values)
    return Estimate(mean=mean, ci95=(low, high), n=n)


def paired_difference(seeds: Sequence[int], own: Sequence[float], baseline: Sequence[float]) -> Paired:
    """Differences of an arm from its baseline, paired by seed; `p` is None where all seeds have the same difference."""
    differences = [a - b for a, b in zip(own, baseline, strict=True)]
    n = len(differences)
    if not n:
        return Paired(mean=None, ci95=(None, None), p=None, p_signs=None, per_seed={}, n=0)
    mean = math.fsum(differences) / n
    return Paired(
        mean=mean,
        ci95=student_interval(differences),
        p=paired_t_test(differences, scale=max(map(abs, (*own, *baseline)))),
        p_signs=float(sign_flip_p(torch.tensor(differences, dtype=torch.float64))) if n > 1 else None,
        per_seed={str(seed): value for seed, value in zip(seeds, differences, strict=True)},
        n=n,
    )
