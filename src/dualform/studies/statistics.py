"""Means and 95 % intervals of numbers by seed and query."""

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
from dualform.ops.f1 import balanced_accuracy, f1_by_label, macro_f1
from dualform.result import FEWEST_FOR_INTERVAL, Accuracy, Estimate, Similarity

Interval = tuple[float | None, float | None]
NO_INTERVAL: Interval = (None, None)


@dataclass(frozen=True)
class Statistics:
    """Means and intervals over seeds and queries, all from the same bootstrap resamples."""

    resamples: int
    seeds: tuple[str, ...]
    """Names of the demonstration seeds, in the order of the first axis."""

    def _generator(self) -> torch.Generator:
        # Every number uses the same resamples, so that intervals of related numbers can be compared.
        return torch.Generator().manual_seed(0)

    def interval(self, values: Tensor) -> tuple[Tensor, Tensor]:
        """95 % interval over `(seed, example, ...)`."""
        return clustered_bootstrap(values, n_resamples=self.resamples, generator=self._generator())

    def estimate(self, values: Tensor) -> Estimate:
        """Mean and interval of `(seed, example)`; NaN entries are left out."""
        low, high = self.interval(values)
        n = int(values.isfinite().sum())
        return Estimate(mean=float(clustered_mean(values)), ci95=(float(low), float(high)), n=n)

    def share(self, hits: Tensor) -> Estimate:
        """Share of ones among zeros and ones, `(seed, example)`; NaN entries are left out."""
        return Estimate(
            mean=float(clustered_mean(hits)),
            ci95=self.share_interval(hits.nan_to_num(0.0), hits.isfinite().double()),
            n=int(hits.isfinite().sum()),
        )

    def share_interval(self, numerator: Tensor, denominator: Tensor) -> Interval:
        """95 % interval of a ratio of two counts, of which the first is a part of the second.

        Args:
            numerator: 1 for each pair that counts in the numerator, else 0, `(seed, example)`.
            denominator: 1 for each pair that counts in the denominator, else 0.

        Returns:
            The bootstrap interval. For a share of 0 or 1, where resampling shows no spread, the exact binomial
            (Clopper-Pearson) interval over queries; no interval below `FEWEST_FOR_INTERVAL` pairs.
        """
        numerator, denominator = numerator.nan_to_num(0.0), denominator.nan_to_num(0.0)
        if int(denominator.sum()) < FEWEST_FOR_INTERVAL:
            return NO_INTERVAL
        share = float(numerator.sum() / denominator.sum())
        if share in (0.0, 1.0):
            # The answers to one query under several seeds are not independent, so each query counts once.
            queries = int((denominator > 0).any(0).sum())
            exact = binomtest(round(share * queries), queries).proportion_ci(0.95, "exact")
            return float(exact.low), float(exact.high)
        return self.ratio(numerator, denominator)

    def shares(self, numerator: Tensor, denominator: Tensor) -> list[Estimate]:
        """Several ratios of two counts, each as `share_interval` says, from one set of resamples.

        Args:
            numerator: 1 for each pair that counts in the numerator, else 0, `(seed, example, ratio)`.
            denominator: 1 for each pair that counts in the denominator, else 0, likewise.

        Returns:
            An estimate for each ratio, over the pairs of all seeds; its n is the denominator, its mean None if that
            is 0.
        """
        above, below = numerator.sum((0, 1)), denominator.sum((0, 1))
        low, high = clustered_bootstrap_of(
            lambda totals: torch.div(*totals.chunk(2, dim=-1)),
            torch.cat([numerator, denominator], dim=-1),
            n_resamples=self.resamples,
            generator=self._generator(),
        )
        estimates = []
        for place, (hits, n) in enumerate(zip(above.tolist(), below.tolist(), strict=True)):
            ends: Interval = float(low[place]), float(high[place])
            if n < FEWEST_FOR_INTERVAL or hits in (0, n):
                ends = self.share_interval(numerator[..., place], denominator[..., place])
            estimates.append(Estimate(mean=hits / n if n else None, ci95=ends, n=int(n)))
        return estimates

    def difference(self, differences: Tensor) -> Estimate:
        """Mean of the differences in correctness between two learners, -1, 0 or 1, `(seed, example)`.

        Returns:
            No interval with fewer than `FEWEST_FOR_INTERVAL` pairs, or where all differences are 0.
        """
        estimate = self.estimate(differences)
        differ = bool((differences.nan_to_num(0.0) != 0).any())
        if differ and estimate.n >= FEWEST_FOR_INTERVAL:
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
            columns: The contribution of each pair to the totals, `(seed, example, column)`.
        """
        low, high = clustered_bootstrap_of(statistic, columns, n_resamples=self.resamples, generator=self._generator())
        return float(low), float(high)

    def per_seed(self, values: Tensor) -> dict[str, float | None]:
        """Mean of each seed."""
        return {seed: float(row.nanmean()) for seed, row in zip(self.seeds, values, strict=True)}

    def accuracy(self, learner: str, predicted: Tensor, labels: Tensor, names: Sequence[str] | None) -> Accuracy:
        """Accuracy of a learner, overall and by label.

        Args:
            learner: Name of the learner.
            predicted: Label numbers that it predicts, `(seed, example)`.
            labels: Right label numbers, `(example,)`.
            names: Names of the labels; None for choices in free text, which are not classes.
        """
        right = (predicted == labels).double()
        counted = counted_once(learner, right)
        return Accuracy(
            **self.share(counted).model_dump(),
            per_seed=self.per_seed(right),
            over_majority=self.over_majority(counted, labels),
            macro_f1=None if names is None else self.macro_f1(counted_once(learner, predicted), labels),
            per_label={} if names is None else self.per_label(counted, labels, names),
        )

    def over_majority(self, right: Tensor, labels: Tensor) -> Estimate:
        """Accuracy minus that of always giving the most frequent label.

        Args:
            right: 1 for a right answer, else 0, `(seed, example)`.
            labels: Right label numbers, `(example,)`.
        """
        return self.difference(right - (labels == majority_label(labels)).double())

    def per_label(self, right: Tensor, labels: Tensor, names: Sequence[str]) -> dict[str, Estimate]:
        """Label -> share of its queries answered correctly (recall), for the labels that occur."""
        return {
            name: self.share(right.masked_fill(labels != label, torch.nan))
            for label, name in enumerate(names)
            if bool((labels == label).any())
        }

    def macro_f1(self, predicted: Tensor, labels: Tensor) -> Estimate:
        """F1 score, averaged over the labels that occur and over seeds.

        Args:
            predicted: Label numbers that a learner predicts, `(seed, example)` or `(seed, order, example)`; -1 for no
                answer, which is left out.
            labels: Right label numbers, `(example,)`.

        Returns:
            No interval where a label has fewer than `FEWEST_FOR_INTERVAL` pairs.
        """
        (estimate,) = self._over_seeds(macro_f1, predicted, labels)
        return estimate

    def balanced_accuracy(self, predicted: Tensor, labels: Tensor) -> Estimate:
        """Recall, averaged over the labels that occur and over seeds; see `macro_f1`.

        Returns:
            No interval where a label has fewer than `FEWEST_FOR_INTERVAL` pairs, or where resampling shows no spread.
        """
        (estimate,) = self._over_seeds(lambda right, true, _: balanced_accuracy(right, true), predicted, labels)
        return estimate if estimate.ci95[0] != estimate.ci95[1] else estimate.model_copy(update={"ci95": NO_INTERVAL})

    def f1_by_label(self, predicted: Tensor, labels: Tensor) -> list[Estimate]:
        """F1 score of each label that occurs, in order, averaged over seeds; see `macro_f1`.

        Returns:
            `macro_f1` is the mean of these means. No interval for a label with fewer than `FEWEST_FOR_INTERVAL` pairs.
        """
        return self._over_seeds(f1_by_label, predicted, labels)

    def _over_seeds(
        self, score: Callable[[Tensor, Tensor, Tensor], Tensor], predicted: Tensor, labels: Tensor
    ) -> list[Estimate]:
        """Estimates of a score of counts, averaged over seeds (and orders): one, or one for each label that occurs.

        Args:
            score: How often each label is predicted rightly, is right, and is predicted, each `(..., label)` -> scores,
                `(...)` or `(..., label)`.
            predicted: See `macro_f1`.
            labels: Right label numbers, `(example,)`.
        """
        runs = predicted[:, None] if predicted.dim() == 2 else predicted
        occurring = labels.unique()
        is_true = (labels[:, None] == occurring).double()
        columns = []
        for run in runs.unbind(1):
            true = is_true * (run >= 0)[..., None]
            positive = (run[..., None] == occurring).double()
            columns.append(torch.cat([true * positive, true, positive], dim=-1))

        def of_totals(totals: Tensor) -> Tensor:
            return score(*totals.chunk(3, dim=-1))

        low, high = clustered_bootstrap_of_seeds(
            of_totals, columns, n_resamples=self.resamples, generator=self._generator()
        )
        means = torch.stack([of_totals(column.sum(1)) for column in columns]).nanmean((0, 1))
        pairs = columns[0].chunk(3, dim=-1)[1].sum((0, 1))
        n_pairs = pairs if means.dim() else pairs.min()
        n = int((runs[:, 0] >= 0).sum())
        columns_of = (each.reshape(-1).tolist() for each in (means, n_pairs, low, high))
        return [
            Estimate(mean=mean, ci95=(first, last) if fewest >= FEWEST_FOR_INTERVAL else NO_INTERVAL, n=n)
            for mean, fewest, first, last in zip(*columns_of, strict=True)
        ]

    def similarity(self, values: Tensor) -> Similarity:
        """The record of a measure: `(seed, example)`, `(seed, example, layer)` or `(seed, example, layer, head)`."""
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
    """Whether the learner uses demonstrations, so that its answers differ between seeds."""
    known = LEARNERS.get(learner)
    return known is None or known.uses_demonstrations


def counted_once(learner: str, by_seed: Tensor) -> Tensor:
    """Values of a learner, `(seed, ...)`, of the first seed alone if they are the same for every seed."""
    return by_seed if depends_on_seed(learner) else by_seed[:1]


def majority_label(labels: Tensor) -> int:
    """The most frequent of the labels `(example,)`, the lowest in a tie."""
    return int(torch.bincount(labels).argmax())
