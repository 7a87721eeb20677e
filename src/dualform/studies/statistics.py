"""From numbers by seed and query to means with intervals."""

from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.ops.bootstrap import clustered_bootstrap, clustered_bootstrap_ratio, clustered_mean
from dualform.result import Accuracy, Estimate, Similarity


@dataclass(frozen=True)
class Statistics:
    """Means and intervals over seeds and queries, every number from the same resamples."""

    resamples: int
    seeds: tuple[str, ...]
    """Names of the demonstration seeds, in the order of the first axis."""

    def _generator(self) -> torch.Generator:
        # The same resamples for every number: intervals of related numbers can then be compared.
        return torch.Generator().manual_seed(0)

    def interval(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """95 % interval over `(seed, example, ...)`."""
        return clustered_bootstrap(values, n_resamples=self.resamples, generator=self._generator())

    def estimate(self, values: Tensor) -> Estimate:
        """`(seed, example)` -> mean and interval."""
        low, high = self.interval(values)
        n = int(values.isfinite().sum())
        return Estimate(mean=float(clustered_mean(values)), ci95=(float(low), float(high)), n=n)

    def ratio(self, numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
        """95 % interval of a ratio of totals, each `(seed, example)`."""
        low, high = clustered_bootstrap_ratio(
            numerator, denominator, n_resamples=self.resamples, generator=self._generator()
        )
        return float(low), float(high)

    def per_seed(self, values: Tensor) -> dict[str, float | None]:
        """Means of each seed."""
        return {seed: float(row.nanmean()) for seed, row in zip(self.seeds, values, strict=True)}

    def accuracy(self, learner: str, right: Tensor) -> Accuracy:
        """Bools as numbers, `(seed, example)` -> share of right answers."""
        # Zero-shot does not depend on the seed; counting it once for each would feign more queries.
        estimate = self.estimate(right[:1] if learner == "zsl" else right)
        return Accuracy(**estimate.model_dump(), per_seed=self.per_seed(right))

    def similarity(self, values: Tensor) -> Similarity:
        """`(seed, example)`, `(seed, example, layer)` or `(seed, example, layer, head)` -> the full record."""
        per_head = clustered_mean(values).tolist() if values.dim() == 4 else None
        by_layer = values.nanmean(dim=3) if values.dim() == 4 else values
        overall = by_layer.nanmean(dim=2) if values.dim() > 2 else by_layer
        estimate = self.estimate(overall)
        layers, intervals = None, None
        if values.dim() > 2:
            low, high = self.interval(by_layer)
            layers = clustered_mean(by_layer).tolist()
            intervals = list(zip(low.tolist(), high.tolist(), strict=True))
        return Similarity(
            **estimate.model_dump(),
            per_seed=self.per_seed(overall),
            per_layer=layers,
            per_layer_ci95=intervals,
            per_head=per_head,
        )
