"""From numbers by seed and query to means with intervals."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from scipy.stats import binomtest
from torch import Tensor

from dualform.learners.base import LEARNERS
from dualform.ops.bootstrap import (
    clustered_bootstrap,
    clustered_bootstrap_of,
    clustered_bootstrap_of_seeds,
    clustered_bootstrap_ratio,
    clustered_mean,
)
from dualform.ops.f1 import macro_f1
from dualform.result import FEWEST_FOR_INTERVAL, Accuracy, Estimate, Similarity

Interval = tuple[float | None, float | None]
NO_INTERVAL: Interval = (None, None)


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

    def share(self, hits: Tensor) -> Estimate:
        """Share of ones among zeros and ones, `(seed, example)`, NaN where there is neither."""
        return Estimate(
            mean=float(clustered_mean(hits)),
            ci95=self.share_interval(hits.nan_to_num(0.0), hits.isfinite().double()),
            n=int(hits.isfinite().sum()),
        )

    def share_interval(self, numerator: Tensor, denominator: Tensor) -> Interval:
        """95 % interval of a ratio of two counts, the first a part of the second.

        Args:
            numerator: 1 for each pair that counts above the line, `(seed, example)`.
            denominator: 1 for each that counts below it.

        Returns:
            The bootstrap's. A share of 0 or 1 has the exact binomial (Clopper-Pearson) interval of its queries, because
            resampling equal answers shows no spread; a share of fewer than `FEWEST_FOR_INTERVAL` pairs has none.
        """
        numerator, denominator = numerator.nan_to_num(0.0), denominator.nan_to_num(0.0)
        if int(denominator.sum()) < FEWEST_FOR_INTERVAL:
            return NO_INTERVAL
        share = float(numerator.sum() / denominator.sum())
        if share in (0.0, 1.0):
            # Pairs of one query under several seeds are not independent, so each query counts once.
            queries = int((denominator > 0).any(0).sum())
            exact = binomtest(round(share * queries), queries).proportion_ci(0.95, "exact")
            return float(exact.low), float(exact.high)
        return self.ratio(numerator, denominator)

    def difference(self, differences: Tensor) -> Estimate:
        """Mean of differences between two answerers, -1, 0 or 1 for each pair, `(seed, example)`.

        Returns:
            No interval with fewer than `FEWEST_FOR_INTERVAL` pairs, or where no pair tells the two apart.
        """
        estimate = self.estimate(differences)
        apart = bool((differences.nan_to_num(0.0) != 0).any())
        if apart and estimate.n >= FEWEST_FOR_INTERVAL:
            return estimate
        return estimate.model_copy(update={"ci95": NO_INTERVAL})

    def ratio(self, numerator: Tensor, denominator: Tensor) -> tuple[float, float]:
        """95 % interval of a ratio of totals, each `(seed, example)`."""
        low, high = clustered_bootstrap_ratio(
            numerator, denominator, n_resamples=self.resamples, generator=self._generator()
        )
        return float(low), float(high)

    def interval_of(self, statistic: Callable[[Tensor], Tensor], columns: Tensor) -> tuple[float, float]:
        """95 % interval of a statistic of totals.

        Args:
            statistic: Totals `(..., column)` -> `(...)`.
            columns: What each pair adds to the totals, `(seed, example, column)`.
        """
        low, high = clustered_bootstrap_of(statistic, columns, n_resamples=self.resamples, generator=self._generator())
        return float(low), float(high)

    def per_seed(self, values: Tensor) -> dict[str, float | None]:
        """Means of each seed."""
        return {seed: float(row.nanmean()) for seed, row in zip(self.seeds, values, strict=True)}

    def accuracy(self, learner: str, predicted: Tensor, labels: Tensor, names: Sequence[str] | None) -> Accuracy:
        """How often a learner is right, in all and by label.

        Args:
            learner: Its name.
            predicted: Label numbers that it answers, `(seed, example)`.
            labels: The right ones, `(example,)`.
            names: What each label is called; None for free-text choices, whose numbers are no classes.
        """
        right = (predicted == labels).double()
        # Counting the same answers once for each seed would feign more queries.
        seeds = len(predicted) if depends_on_seed(learner) else 1
        return Accuracy(
            **self.share(right[:seeds]).model_dump(),
            per_seed=self.per_seed(right),
            over_majority=self.over_majority(right[:seeds], labels),
            macro_f1=None if names is None else self.macro_f1(predicted[:seeds], labels),
            per_label={} if names is None else self.per_label(right[:seeds], labels, names),
        )

    def over_majority(self, right: Tensor, labels: Tensor) -> Estimate:
        """Accuracy less that of always giving the commonest of `labels`, from who was right, `(seed, example)`."""
        return self.difference(right - (labels == commonest(labels)).double())

    def per_label(self, right: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Estimate]:
        """Label -> share of its queries answered rightly (recall); labels that no query has are left out."""
        return {
            name: self.share(right.masked_fill(labels != label, torch.nan))
            for label, name in enumerate(names)
            if bool((labels == label).any())
        }

    def macro_f1(self, predicted: Tensor, labels: Tensor) -> Estimate:
        """Mean over the labels that occur of the F1 score, mean over seeds.

        Args:
            predicted: Label numbers that a learner answers, `(seed, example)`, or `(seed, order, example)`.
            labels: The right ones, `(example,)`.

        Returns:
            No interval where a label has fewer than `FEWEST_FOR_INTERVAL` pairs: its F1 score is a part of the mean
            like any other.
        """
        runs = predicted[:, None] if predicted.dim() == 2 else predicted
        there = labels.unique()
        true = (labels[:, None] == there).double().expand(len(runs), -1, -1)
        columns = []
        for run in runs.unbind(1):
            said = (run[..., None] == there).double()
            columns.append(torch.cat([true * said, true, said], dim=-1))

        def score(totals: Tensor) -> Tensor:
            return macro_f1(*totals.chunk(3, dim=-1))

        ends: Interval = NO_INTERVAL
        if int(true.sum((0, 1)).min()) >= FEWEST_FOR_INTERVAL:
            low, high = clustered_bootstrap_of_seeds(
                score, columns, n_resamples=self.resamples, generator=self._generator()
            )
            ends = float(low), float(high)
        mean = float(torch.stack([score(each.sum(1)) for each in columns]).mean())
        return Estimate(mean=mean, ci95=ends, n=len(runs) * runs.shape[2])

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


def depends_on_seed(learner: str) -> bool:
    """Whether another demonstration seed gives another model."""
    known = LEARNERS.get(learner)
    return known is None or known.uses_demonstrations


def commonest(labels: Tensor) -> int:
    """The label that most of `(example,)` have, the lowest of equals."""
    return int(torch.bincount(labels).argmax())
