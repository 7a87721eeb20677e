"""95 % intervals for numbers measured on the same queries under several demonstration seeds.

The design is crossed: numbers of one seed share its demonstrations, and numbers of one query share that query. So
(seed, query) pairs are not independent, neither along rows nor along columns. Resampling pairs as if they were gives
intervals that are far too narrow, and so does drawing new queries within each seed if queries differ more than seeds.
Here, seeds are drawn, and, independently, one set of queries that all drawn seeds share.
"""

from collections.abc import Callable, Sequence

import torch
from einops import einsum, pack, rearrange, unpack
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened

AT_ONCE = 2_000_000
"""Numbers of shape (resample, seed, entry) held at a time: 16 MB in float64, and a few such tensors are alive."""


def clustered_mean(values: Tensor) -> Tensor:
    """Mean over examples within each seed, then over seeds; the functions below give its interval.

    Args:
        values: Numbers of shape `(seed, example, ...)`; NaN or infinite where a number is missing.

    Returns:
        Means over the finite numbers, of shape `(...)`; seeds without any are left out. NaN if no seed is left.

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
    """95 % interval of `clustered_mean`, by the crossed ("pigeonhole") bootstrap.

    Each resample draws seeds with replacement and, independently, one set of examples with replacement that is
    used for all drawn seeds: the weight of a number is the number of times its seed was drawn, times the number of
    times its example was. The interval runs from the 2.5th to the 97.5th percentile of the resampled means. With one
    seed, only examples are resampled, and the interval does not cover other demonstrations.

    Coverage of the true mean, measured with normally distributed effects of seed, query and pair (2,000 trials each,
    standard error at most 1 %), with five seeds and 200 queries: 95 % if queries contribute most to the variance of the
    mean, 92 % if seeds and queries contribute equally, 85 % if seeds contribute most. Percentile intervals over few
    seeds are too narrow: coverage is 74 % with three seeds and 93 % with twenty (and 50 queries). If single pairs
    contribute most, the interval is too wide, with a coverage above 99 %, because their noise is counted up to three
    times. No resampling of crossed rows and columns is exact in all three cases (McCullagh).

    Args:
        values: Numbers of shape `(seed, example, ...)`; NaN or infinite where a number is missing. Index `i` of
            the example axis is the same query under every seed.
        n_resamples: Number of resamples.
        generator: Source of randomness; drawn on its own device, then moved. All entries share the resamples.

    Returns:
        Lower and upper end, each of shape `(...)`; NaN where fewer than two numbers are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: Fewer than two axes.

    Source:
        Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007, arXiv:0712.1111; McCullagh,
        Resampling and exchangeable arrays, Bernoulli 6(2), 2000.
    """
    _require_seeds(values=values)
    if not _can_resample(values, n_resamples):
        nothing = values.new_full(values.shape[2:], torch.nan, dtype=result_dtype(values))
        return nothing, nothing.clone()
    columns, rest = pack([widened(values)], "seed example *")
    draws = _Draws(columns.shape[0], columns.shape[1], n_resamples, generator, columns)
    width = max(1, AT_ONCE // (n_resamples * columns.shape[0]))
    parts = [_interval(draws.means(part)) for part in columns.split(width, dim=-1)]
    few = columns.isfinite().sum((0, 1)) < 2
    interval = torch.cat(parts, dim=-1).masked_fill(few, torch.nan).to(result_dtype(values))
    low, high = (unpack(end, rest, "*")[0] for end in interval)
    return low, high


def clustered_bootstrap_ratio(
    numerator: Tensor, denominator: Tensor, *, n_resamples: int = 1000, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """95 % interval of a ratio of totals over all seeds and examples, such as Rec2FTP.

    Args:
        numerator: What each example adds to the numerator, of shape `(seed, example)`; NaN or infinite where a
            number is missing.
        denominator: What each example adds to the denominator, `(seed, example)`.
        n_resamples: Number of resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.

    Returns:
        Lower and upper end of sum(numerator) / sum(denominator), each a scalar of shape `()`. Resamples
        with a denominator of 0 are left out; NaN if all are, or if fewer than two examples are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: The shapes differ or are not `(seed, example)`.

    Source:
        Owen, arXiv:0712.1111, with the product weights applied to both totals; Rec2FTP is arXiv:2212.10559v3,
        section 4.3.
    """
    require_same_shape("seed example", numerator=numerator, denominator=denominator)

    def ratio(totals: Tensor) -> Tensor:
        return totals[..., 0] / totals[..., 1]

    both = torch.stack([widened(numerator), widened(denominator)], dim=-1)
    low, high = clustered_bootstrap_of(ratio, both, n_resamples=n_resamples, generator=generator)
    dtype = result_dtype(numerator, denominator)
    return low.to(dtype), high.to(dtype)


def clustered_resamples_of(
    statistic: Callable[[Tensor], Tensor],
    values: Tensor,
    *,
    n_resamples: int = 1000,
    generator: torch.Generator,
    examples: bool = True,
) -> Tensor:
    """A function of totals in every resample, for intervals that are not plain percentiles.

    Args:
        statistic: As in `clustered_bootstrap_of`, but it may return several numbers, `(resample, ...)`.
        values: What each example adds to each total, `(seed, example, column)`, as in `clustered_bootstrap_of`.
        n_resamples: Number of resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.
        examples: If False, only seeds are drawn, and every example counts once. The spread of the result is then
            the part of the variance that is underestimated with few seeds.

    Returns:
        Resampled numbers, `(resample, ...)`; not finite where the statistic is not.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: `values` is not `(seed, example, column)`.

    Source:
        Owen, The pigeonhole bootstrap, arXiv:0712.1111.
    """
    require_same_shape("seed example column", values=values)
    wide = widened(values)
    complete = wide.isfinite().all(-1, keepdim=True)
    _can_resample(wide, n_resamples)
    draws = _Draws(wide.shape[0], wide.shape[1], n_resamples, generator, wide)
    there = torch.where(complete, wide, 0.0)
    of_seeds = draws.totals(there) if examples else there.sum(1).expand(n_resamples, -1, -1)
    return statistic(einsum(draws.seeds, of_seeds, "resample seed, resample seed column -> resample column"))


def clustered_bootstrap_of(
    statistic: Callable[[Tensor], Tensor], values: Tensor, *, n_resamples: int = 1000, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """95 % interval of any function of totals: a ratio, a lift (difference of ratios), a Jaccard index.

    Args:
        statistic: Turns totals of shape `(resample, column)` into numbers of shape `(resample, ...)`.
        values: What each example adds to each total, of shape `(seed, example, column)`; an example with a NaN
            or an infinity in any column adds to none.
        n_resamples: Number of resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.

    Returns:
        Lower and upper end, each of shape `(...)`. Resamples in which the statistic is not finite are left out; NaN
        if all are, or if fewer than two examples are finite.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: `values` is not `(seed, example, column)`.

    Source:
        Owen, The pigeonhole bootstrap, arXiv:0712.1111, for smooth functions of means.
    """
    require_same_shape("seed example column", values=values)
    wide = widened(values)
    complete = wide.isfinite().all(-1, keepdim=True)
    dtype = result_dtype(values)
    if not _can_resample(wide, n_resamples) or int(complete.sum()) < 2:
        nothing = statistic(wide.new_full((1, wide.shape[-1]), torch.nan))[0].to(dtype)
        return nothing, nothing.clone()
    resampled = clustered_resamples_of(statistic, wide, n_resamples=n_resamples, generator=generator)
    columns, rest = pack([resampled], "resample *")
    low, high = (unpack(end, rest, "*")[0] for end in _interval(columns).to(dtype))
    return low, high


def clustered_bootstrap_of_seeds(
    statistic: Callable[[Tensor], Tensor],
    values: Sequence[Tensor],
    *,
    n_resamples: int = 1000,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """95 % interval of a mean over seeds of a function of each seed's totals, such as macro-F1.

    Args:
        statistic: Turns totals of shape `(resample, seed, column)` into numbers of shape `(resample, seed, ...)`.
        values: What each example adds to each total, of shape `(seed, example, column)`, all finite; one tensor for
            each run of a seed (such as an order of its demonstrations), over which a seed's number is averaged.
        n_resamples: Number of resamples, drawn as in `clustered_bootstrap`.
        generator: Source of randomness.

    Returns:
        Lower and upper end, each of shape `(...)`. In a resample, seeds whose number is not finite are left out.

    Raises:
        ConfigError: `n_resamples` is below 1.
        ShapeError: A tensor is not `(seed, example, column)`.

    Source:
        Owen, The pigeonhole bootstrap, arXiv:0712.1111.
    """
    require_same_shape("seed example column", **{f"values_{number}": each for number, each in enumerate(values)})
    wide = [widened(each) for each in values]
    if not _can_resample(wide[0], n_resamples):
        nothing = statistic(wide[0].new_full((1, 1, wide[0].shape[-1]), torch.nan))[0, 0].to(result_dtype(values[0]))
        return nothing, nothing.clone()
    draws = _Draws(wide[0].shape[0], wide[0].shape[1], n_resamples, generator, wide[0])
    of_seeds, rest = pack([torch.stack([statistic(draws.totals(each)) for each in wide]).mean(0)], "resample seed *")
    weights = rearrange(draws.seeds, "resample seed -> resample seed 1") * of_seeds.isfinite()
    means = (of_seeds.nan_to_num(0.0) * weights).sum(1) / weights.sum(1)
    low, high = (unpack(end, rest, "*")[0] for end in _interval(means).to(result_dtype(values[0])))
    return low, high


class _Draws:
    """How often each seed and each example was drawn in each resample, independently of each other."""

    def __init__(
        self, n_seeds: int, n_examples: int, n_resamples: int, generator: torch.Generator, like: Tensor
    ) -> None:
        # Examples first, so that they do not depend on the number of seeds.
        self.examples = _counts(n_examples, n_resamples, generator, like)
        """Of shape `(resample, example)`; each row sums to the number of examples."""
        self.seeds = _counts(n_seeds, n_resamples, generator, like)
        """Of shape `(resample, seed)`; each row sums to the number of seeds."""

    def totals(self, values: Tensor) -> Tensor:
        """Weighted sums over examples, `(seed, example, column)` -> `(resample, seed, column)`."""
        return einsum(self.examples, values, "resample example, seed example column -> resample seed column")

    def means(self, values: Tensor) -> Tensor:
        """Resampled `clustered_mean`, `(seed, example, column)` -> `(resample, column)`; NaN without any number."""
        finite = values.isfinite()
        sums = self.totals(values.nan_to_num(0.0, 0.0, 0.0))
        seeds = rearrange(self.seeds, "resample seed -> resample seed 1")
        if bool(finite.all()):
            # Without gaps the counts are known, and half of the work is saved.
            return (sums * seeds).sum(1) / (values.shape[0] * values.shape[1])
        counts = self.totals(finite.to(values.dtype))
        # A drawn seed is left out if none of its drawn examples has a number.
        present = seeds * (counts > 0)
        return (sums / counts.clamp(min=1) * present).sum(1) / present.sum(1)


def _counts(n: int, n_resamples: int, generator: torch.Generator, like: Tensor) -> Tensor:
    """How often each of `n` is among `n` draws with replacement, of shape `(resample, n)`."""
    drawn = torch.randint(n, (n_resamples, n), generator=generator, device=generator.device).to(like.device)
    return like.new_zeros(n_resamples, n).scatter_add_(-1, drawn, like.new_ones(1).expand(*drawn.shape))


def _interval(resampled: Tensor) -> Tensor:
    """2.5th and 97.5th percentile of the finite numbers, `(resample, column)` -> `(2, column)`."""
    finite = resampled.masked_fill(~resampled.isfinite(), torch.nan)
    at = finite.new_tensor([0.025, 0.975])
    return finite.nanquantile(at, dim=0)


def _require_seeds(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.ndim < 2:
            raise ShapeError(f"{name} must be (seed, example, ...); given {tuple(tensor.shape)}.")


def _can_resample(values: Tensor, n_resamples: int) -> bool:
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}; expected 1 or more.")
    return values.numel() > 0
