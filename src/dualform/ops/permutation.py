"""P-values of paired differences by the sign-flip test, and their adjustment for multiple testing."""

from typing import Literal, get_args

import torch
from einops import pack, rearrange, unpack
from scipy.stats import false_discovery_control
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened

Alternative = Literal["two-sided", "greater"]
"""The alternative to a mean of 0: any other mean, or a mean above 0."""

AT_ONCE = 2_000_000
"""Numbers of shape (resample, unit) or (resample, column) held at a time: 16 MB in float64."""


def sign_flip_p(
    differences: Tensor, *, alternative: Alternative = "two-sided", n_resamples: int = 9999, seed: int = 0
) -> Tensor:
    """P-value that the mean over units is 0, by the paired permutation (sign-flip) test.

    If two settings do not differ, each unit's difference is equally likely to have either sign. The p-value is the
    share of sign patterns whose mean is at least as extreme as the observed one. If there are at most `n_resamples`
    patterns (2**n), all are enumerated and the p-value is exact. Otherwise patterns are drawn at random and the
    observed one is counted among them (the +1 rule), so that the test is valid and p is never below
    1 / (n_resamples + 1). The smallest p-value with n units is 2 / 2**n two-sided and 1 / 2**n one-sided.

    Units must be independent. For a test over demonstrations, queries with the same demonstrations are not independent
    units: average over them first.

    Args:
        differences: First setting minus the second, of shape `(unit, ...)`; NaN or infinite where a pair is missing.
            Missing pairs are left out.
        alternative: `two-sided`, or `greater` for a mean above 0.
        n_resamples: Number of random patterns, and the largest number of patterns that are enumerated.
        seed: Seed of the random patterns. All columns share them, so a column's p-value does not depend on the
            others.

    Returns:
        P-values in (0, 1], of shape `(...)`; 1 where all differences are 0, and NaN with fewer than two finite units.

    Raises:
        ConfigError: `alternative` is unknown, or `n_resamples` is below 1.
        ShapeError: There is no unit axis.

    Source:
        Fisher, The Design of Experiments, 1935, section 21; the +1 rule: Phipson and Smyth, Permutation P-values
        Should Never Be Zero, 2010, arXiv:1603.05766. The same test as
        `scipy.stats.permutation_test(..., permutation_type="samples")`, which the tests compare with: equal where
        patterns are enumerated. Ours is one matrix product, and allows for missing pairs; scipy's rearranges every
        number in every resample, some fifteen times slower (1,000 units, 30 columns). Where patterns are random,
        scipy doubles the smaller tail; we count both, which is less noisy and as valid, signs being symmetric.
    """
    if alternative not in get_args(Alternative):
        raise ConfigError(f"alternative is {alternative!r}; expected one of {', '.join(get_args(Alternative))}.")
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}; expected 1 or more.")
    if differences.ndim < 1:
        raise ShapeError("differences must be (unit, ...); given a number without axes.")
    dtype = result_dtype(differences)
    if differences.numel() == 0:
        return differences.new_full(differences.shape[1:], torch.nan, dtype=dtype)
    columns, rest = pack([widened(differences)], "unit *")
    finite = columns.isfinite()
    n_finite = finite.sum(0)
    p = torch.full_like(n_finite, torch.nan, dtype=columns.dtype)
    # Sums that are equal in exact arithmetic differ by rounding, some of it from before the differences were taken.
    # Such ties count as "at least as far out"; the tolerance is in standard deviations of the flipped sum.
    tolerance = max(100 * torch.finfo(dtype).eps, 1e-10)
    most_enumerated = n_resamples.bit_length() - 1

    for n_units in n_finite.unique().tolist():
        if 2 <= n_units <= most_enumerated:
            chosen = n_finite == n_units
            first = (~finite[:, chosen]).sort(dim=0, stable=True).indices[:n_units]
            present = columns[:, chosen].gather(0, first)
            flips = _all_flips(n_units).to(columns.device)
            p[chosen] = _n_as_far_out(present, flips, alternative, tolerance) / len(flips)

    many = n_finite > max(most_enumerated, 1)
    if bool(many.any()):
        present = columns[:, many].masked_fill(~finite[:, many], 0)
        flips = _random_flips(len(columns), n_resamples, seed).to(columns.device)
        p[many] = (_n_as_far_out(present, flips, alternative, tolerance) + 1) / (n_resamples + 1)
    [p] = unpack(p, rest, "*")
    return p.to(dtype)


def _n_as_far_out(values: Tensor, flips: Tensor, alternative: Alternative, tolerance: float) -> Tensor:
    """Number of patterns `(resample, unit)` for which the sum of `(unit, column)` is as extreme, `(column)`."""
    # Only relative sizes matter; dividing by the largest number avoids overflow and underflow.
    largest = values.abs().amax(0)
    values = values / torch.where(largest > 0, largest, 1)
    slack = tolerance * torch.linalg.vector_norm(values, dim=0)
    observed = values.sum(0)
    counts = torch.zeros_like(observed)
    for part in flips.split(max(1, AT_ONCE // max(values.shape))):
        flipped = part.to(values.dtype) @ values
        if alternative == "two-sided":
            as_far_out = flipped.abs() >= observed.abs() - slack
        else:
            as_far_out = flipped >= observed - slack
        counts += as_far_out.sum(0)
    return counts


def _all_flips(n_units: int) -> Tensor:
    """Every pattern of signs, `(2**unit, unit)`."""
    bits = rearrange(torch.arange(2**n_units), "pattern -> pattern 1") >> torch.arange(n_units)
    return (1 - 2 * (bits & 1)).to(torch.int8)


def _random_flips(n_units: int, n_resamples: int, seed: int) -> Tensor:
    """Random patterns of signs, `(resample, unit)`; bytes, since there may be millions."""
    generator = torch.Generator().manual_seed(seed)
    return 2 * torch.randint(2, (n_resamples, n_units), generator=generator, dtype=torch.int8) - 1


def adjusted_for_discoveries(p: Tensor) -> Tensor:
    """P-values adjusted for the false discovery rate: of those below q, an expected share of at most q is false.

    The procedure of Benjamini and Hochberg over the last axis, for tests that are independent or positively
    dependent.

    Args:
        p: P-values in [0, 1], of shape `(..., test)`; NaN where there was no test.

    Returns:
        Adjusted p-values in [0, 1], each at least as large as its p-value, of shape `(..., test)`. NaN stays NaN and
        does not count among the tests.

    Raises:
        ConfigError: A number outside [0, 1].
        ShapeError: There is no test axis.

    Source:
        Benjamini and Hochberg, Controlling the False Discovery Rate, 1995, by `scipy.stats.false_discovery_control`.
    """
    require_same_shape("... test", p=p)
    outside = (p < 0) | (p > 1)
    if bool(outside.any()):
        raise ConfigError(f"a p-value is {p[outside][0].item():g}; expected numbers from 0 to 1.")
    if p.numel() == 0:
        return p.to(result_dtype(p), copy=True)
    rows, lead = pack([widened(p)], "* test")
    adjusted = torch.full_like(rows, torch.nan)
    for row, into in zip(rows, adjusted, strict=True):
        tested = ~row.isnan()
        if bool(tested.any()):
            q = false_discovery_control(row[tested].cpu().numpy(), method="bh")
            into[tested] = torch.as_tensor(q, dtype=into.dtype, device=into.device)
    [adjusted] = unpack(adjusted, lead, "* test")
    return adjusted.to(result_dtype(p))
