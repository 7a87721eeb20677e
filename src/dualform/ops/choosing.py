"""Effect of choosing a demonstration set by its accuracy on the comparison of two learners."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from einops import einsum
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import require_same_shape

Chooser = Literal["none", "first", "second", "both"]
"""The learner by whose accuracy a set is chosen; `both` for the mean of the two, `none` for all sets."""


@dataclass(frozen=True)
class ChosenGap:
    """First learner's accuracy minus the second's for a chosen set, on the selecting half and on the other half."""

    first: tuple[float, float]
    """Accuracy of the first learner on the selecting queries, and on the others."""
    second: tuple[float, float]
    """Accuracy of the second learner, likewise."""
    gap: tuple[float, float]
    """First minus second, on the selecting queries and on the others."""
    gap_ci95: tuple[tuple[float, float], tuple[float, float]]
    """95 % intervals of the two differences, resampling sets and halves."""


def chosen_gap(
    first: Tensor, second: Tensor, chooser: Chooser, *, n_resamples: int = 1000, generator: torch.Generator
) -> ChosenGap:
    """Split the queries into halves at random, choose a set on one, and compare the learners on both.

    On the selecting half, the accuracy by which the set was chosen is biased upwards; on the other half it is not. Both
    learners use the chosen set.

    Args:
        first: 1 where the first learner is right, of shape `(set, example)`, with the same queries for every set.
        second: The same for the second learner, on the same sets, `(set, example)`.
        chooser: The learner whose accuracy decides; of equally accurate sets the first is chosen.
        n_resamples: Number of random halves, and of resamples for each interval.
        generator: Source of randomness.

    Returns:
        Means over random halves; intervals from as many resamples of sets, each with its own halves.

    Raises:
        ConfigError: `chooser` is unknown, or `n_resamples` below 1.
        ShapeError: The shapes differ, or there are fewer than two queries or no set.

    Source:
        dualform's own. The code released with arXiv:2212.10559v3 chooses a seed by ICL's accuracy on the reported
        queries and uses it for both learners.
    """
    require_same_shape("set example", first=first, second=second)
    if chooser not in get_args(Chooser):
        raise ConfigError(f"chooser is {chooser!r}; expected one of {', '.join(get_args(Chooser))}.")
    if n_resamples < 1:
        raise ConfigError(f"n_resamples is {n_resamples}; expected 1 or more.")
    n_sets, n_queries = first.shape
    if n_sets < 1 or n_queries < 2:
        raise ShapeError(f"choosing needs one set and two queries at least; given {tuple(first.shape)}.")
    both = torch.stack([first, second]).double()
    halves = torch.rand(n_resamples, n_queries, generator=generator).argsort(dim=1) < n_queries // 2
    sides = torch.stack([halves, ~halves]).double()
    # Counts are compared, not shares, so that rounding does not decide between equally accurate sets.
    counts = einsum(both, sides, "learner set query, half resample query -> learner half resample set")
    sizes = sides[:, 0].sum(dim=1)[:, None]
    drawn = torch.randint(n_sets, (n_resamples, n_sets), generator=generator)
    resampled = counts.gather(3, drawn.expand(2, 2, -1, -1))
    means = _chosen(counts, chooser) / sizes
    low, high = torch.quantile(
        _differences(_chosen(resampled, chooser) / sizes), torch.tensor([0.025, 0.975]).double(), dim=1
    )
    at_first, at_second = (tuple(side.mean(dim=1).tolist()) for side in means)
    gap = tuple(_differences(means).mean(dim=1).tolist())
    return ChosenGap(at_first, at_second, gap, tuple(zip(low.tolist(), high.tolist(), strict=True)))  # type: ignore[arg-type]


def _chosen(counts: Tensor, chooser: Chooser) -> Tensor:
    """Right answers of each set, `(learner, half, resample, set)` -> those of the set that the first half chooses."""
    if chooser == "none":
        return counts.mean(dim=3)
    score = {"first": counts[0, 0], "second": counts[1, 0], "both": counts[:, 0].sum(dim=0)}[chooser]
    best = score.argmax(dim=1)
    return counts.gather(3, best[None, None, :, None].expand(2, 2, -1, 1))[..., 0]


def _differences(chosen: Tensor) -> Tensor:
    """First learner minus second, `(half, resample)`."""
    return chosen[0] - chosen[1]
