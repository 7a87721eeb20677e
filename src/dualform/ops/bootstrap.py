"""95 % intervals for numbers measured on the same queries under several demonstration seeds.

Queries that share a seed share its demonstrations, so they are not independent: resampling all (seed, query) pairs
alike gives intervals that are far too narrow. Here seeds are resampled first, then queries within each drawn seed.
"""

from collections.abc import Callable

import torch
from einops import einsum, pack, rearrange, unpack
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened


def clustered_mean(values: Tensor) -> Tensor:
    """Mean over examples within each seed, then over seeds: the number that the intervals surround.

    Args:
        values: Numbers of shape `(seed, example, ...)`; NaN or infinite where there is none.

    Returns:
        Means over the finite numbers, of shape `(...)`; seeds without any are left out, NaN where all are.

    Raises:
        ShapeError: Fewer than two axes.

    Source:
        dualform's own; "mean over examples, then layers" of arXiv:2212.10559v3, extended to several seeds.
    """
    _require_seeds(values=values)
    finite = widened(values).masked_fill(~values.isfinite(), torch.nan)
    return finite.nanmean(1).nanmean(0).to(result_dtype(values))


def clustered_bootstrap(
    values: Tensor, *, n_resamples: int = 1000, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """95 % interval of `clustered_mean`, by a two-stage bootstrap.

    Each resample draws seeds with replacement, then for each drawn seed examples with replacement, afresh also when
    a seed is drawn twice; the interval runs from the 2.5th to the 97.5th percentile of the resampled means. One
    seed: examples alone are resampled, and the interval says nothing about other demonstrations. Percentiles of
    few clusters are too narrow: with five seeds that differ much, about 84 % instead of 95 % of intervals hold
    the true mean; with twenty, 93 %.

    Args:
        values: Numbers of shape `(seed, example, ...)`; NaN or infinite where there is none.
        n_resamples: How many resamples.
        generator: Source of randomness; drawn on its own device, then moved. All entries share the resamples.

    Returns:
        Lower and upper end, each of shape `(...)`; NaN where fewer than two numbers are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: Fewer than two axes.

    Source:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8 (both stages with
        replacement).
    """
    _require_seeds(values=values)
    if not _can_resample(values, n_resamples):
        nothing = values.new_full(values.shape[2:], torch.nan, dtype=result_dtype(values))
        return nothing, nothing.clone()
    columns, rest = pack([widened(values)], "seed example *")
    finite = columns.isfinite()
    draws = _Draws(columns.shape[0], columns.shape[1], n_resamples, generator, columns)
    sums = draws.totals(columns.nan_to_num(0.0, 0.0, 0.0))
    # Without gaps the counts are known, and half of the work is saved.
    counts = columns.shape[1] if bool(finite.all()) else draws.totals(finite.to(columns.dtype))
    means = (sums / counts).nanmean(1)
    interval = _interval(means).masked_fill(finite.sum((0, 1)) < 2, torch.nan).to(result_dtype(values))
    low, high = (unpack(end, rest, "*")[0] for end in interval)
    return low, high


def clustered_bootstrap_ratio(
    numerator: Tensor, denominator: Tensor, *, n_resamples: int = 1000, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """95 % interval of a ratio of totals over all seeds and examples, such as Rec2FTP.

    Args:
        numerator: What each example adds above the line, of shape `(seed, example)`; NaN or infinite where there
            is none.
        denominator: What it adds below the line, `(seed, example)`.
        n_resamples: How many resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.

    Returns:
        Lower and upper end of sum(numerator) / sum(denominator), each a scalar of shape `()`. Resamples with
        nothing below the line are left out; NaN where all are, or fewer than two examples are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: The shapes differ or are not `(seed, example)`.

    Source:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, sections 2.5 and 3.8; Rec2FTP is
        arXiv:2212.10559v3, section 4.3.
    """
    require_same_shape("seed example", numerator=numerator, denominator=denominator)

    def ratio(totals: Tensor) -> Tensor:
        return totals[..., 0] / totals[..., 1]

    both = torch.stack([widened(numerator), widened(denominator)], dim=-1)
    low, high = clustered_bootstrap_of(ratio, both, n_resamples=n_resamples, generator=generator)
    dtype = result_dtype(numerator, denominator)
    return low.to(dtype), high.to(dtype)


def clustered_bootstrap_of(
    statistic: Callable[[Tensor], Tensor], values: Tensor, *, n_resamples: int = 1000, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """95 % interval of any function of totals: a ratio, a lift (difference of ratios), a Jaccard index.

    Args:
        statistic: Turns totals of shape `(resample, column)` into numbers of shape `(resample)`.
        values: What each example adds to each total, of shape `(seed, example, column)`; an example with a NaN
            or an infinity in any column adds to none.
        n_resamples: How many resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.

    Returns:
        Lower and upper end, each a scalar of shape `()`. Resamples in which the statistic is not finite are left
        out; NaN where all are, or fewer than two examples are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: `values` is not `(seed, example, column)`.

    Source:
        Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8.
    """
    require_same_shape("seed example column", values=values)
    wide = widened(values)
    complete = wide.isfinite().all(-1, keepdim=True)
    dtype = result_dtype(values)
    if not _can_resample(wide, n_resamples) or int(complete.sum()) < 2:
        nothing = values.new_full((), torch.nan, dtype=dtype)
        return nothing, nothing.clone()
    draws = _Draws(wide.shape[0], wide.shape[1], n_resamples, generator, wide)
    resampled = statistic(draws.totals(torch.where(complete, wide, 0.0)).sum(1))
    low, high = _interval(rearrange(resampled, "resample -> resample 1"))[:, 0].to(dtype)
    return low, high


class _Draws:
    """Which seed stands in each slot of each resample, and how often each of its examples was drawn there."""

    def __init__(
        self, n_seeds: int, n_examples: int, n_resamples: int, generator: torch.Generator, like: Tensor
    ) -> None:
        shape = (n_resamples, n_seeds)
        seed_of_slot = torch.randint(n_seeds, shape, generator=generator, device=generator.device)
        drawn = torch.randint(n_examples, (*shape, n_examples), generator=generator, device=generator.device)
        self.seed_of_slot = seed_of_slot.to(like.device)
        self.weights = like.new_zeros(*shape, n_examples)
        self.weights.scatter_add_(-1, drawn.to(like.device), like.new_ones(1).expand(*drawn.shape))

    def totals(self, values: Tensor) -> Tensor:
        """Weighted sums over examples, `(seed, example, column)` -> `(resample, slot, column)`."""
        totals = values.new_empty(*self.seed_of_slot.shape, values.shape[-1])
        for seed, of_seed in enumerate(values):
            slots = self.seed_of_slot == seed
            totals[slots] = einsum(self.weights[slots], of_seed, "slot example, example column -> slot column")
        return totals


def _interval(resampled: Tensor) -> Tensor:
    """2.5th and 97.5th percentile of the finite numbers, `(resample, column)` -> `(2, column)`."""
    finite = resampled.masked_fill(~resampled.isfinite(), torch.nan)
    at = finite.new_tensor([0.025, 0.975])
    # torch refuses to take quantiles of more than 16 million numbers at once.
    width = max(1, 8_000_000 // len(finite))
    return torch.cat([finite_part.nanquantile(at, dim=0) for finite_part in finite.split(width, dim=-1)], dim=-1)


def _require_seeds(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            raise ShapeError(f"{name} must be (seed, example, ...); given {tuple(tensor.shape)}.")


def _can_resample(values: Tensor, n_resamples: int) -> bool:
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}; expected 1 or more.")
    return values.numel() > 0
