"""Scores of a learner as a classifier: by class, and of its label probabilities."""

from collections.abc import Sequence

import torch
from torch import Tensor

from dualform.ops.classification import (
    N_BINS,
    brier_score,
    calibration_error,
    calibration_errors_by_chance,
    has_no_probability,
    label_probabilities,
    log_loss,
    reliability_counts,
)
from dualform.result import FEWEST_FOR_INTERVAL, Classification, ClassScores, Estimate, ReliabilityBin
from dualform.studies.statistics import NO_INTERVAL, Interval, Statistics


def classification(
    log_probabilities: Tensor, labels: Tensor, names: Sequence[str] | None, stats: Statistics
) -> Classification:
    """How well the answers and label probabilities of a learner fit the right labels.

    Args:
        log_probabilities: The learner's label log-probabilities in nats up to a constant, `(seed, example, label)`;
            -inf for a label that it never gives or a query does not have. A row with a NaN, or of -inf alone, is no
            answer and left out. Of a learner whose answers are the same for all seeds, pass one seed.
        labels: Right label numbers, `(example,)`.
        names: Names of the labels; None for choices in free text, which are not classes.
        stats: The bootstrap; `stats.seeds` is not used.

    Returns:
        The scores. Scores by class, and the means over classes, are over the labels that occur among `labels`.

    Raises:
        ShapeError: The shapes do not fit.
    """
    table = log_probabilities.double()
    probabilities = label_probabilities(table)
    answered = ~probabilities.isnan().any(-1)
    predicted = table.argmax(-1).masked_fill(~answered, -1)
    right = (predicted == labels).double().masked_fill(~answered, torch.nan)
    confidence = probabilities.amax(-1)
    counts = reliability_counts(confidence, right)
    by_chance = calibration_errors_by_chance(
        confidence, n_draws=stats.resamples, generator=torch.Generator().manual_seed(0)
    )
    no_probability = has_no_probability(table, labels)
    result = Classification(
        accuracy=stats.share(right),
        log_loss=_mean(log_loss(table, labels), stats),
        zero_probability=float(no_probability.nanmean()),
        brier=_mean(brier_score(table, labels), stats),
        ece=_calibration_error(counts, by_chance, stats),
        ece_if_calibrated=float(by_chance.mean()),
        reliability=_reliability(counts, stats),
        left_out=int((~answered).sum()),
    )
    if names is None or not bool(answered.any()):
        return result
    return result.model_copy(
        update={
            "balanced_accuracy": stats.balanced_accuracy(predicted, labels),
            "macro_f1": stats.macro_f1(predicted, labels),
            "per_class": _per_class(predicted, labels, names, stats),
            "labels": list(names),
            "confusion": confusion_counts(predicted, labels, len(names)),
        }
    )


def confusion_counts(predicted: Tensor, labels: Tensor, n_labels: int) -> list[list[int]]:
    """How often each label was predicted for queries of each label: `counts[right label][predicted label]`.

    Args:
        predicted: Predicted label numbers, `(seed, example)`; -1 for no answer, which is not counted.
        labels: Right label numbers, `(example,)`.
        n_labels: Number of labels.
    """
    # Imported here because it is slow.
    from sklearn.metrics import confusion_matrix

    answered = predicted >= 0
    true = labels.expand_as(predicted)[answered]
    # With a single label it would warn, so there is always a second one.
    every = list(range(max(2, n_labels)))
    counts = confusion_matrix(true.numpy(), predicted[answered].numpy(), labels=every)
    return [[int(count) for count in row[:n_labels]] for row in counts[:n_labels]]


def _mean(values: Tensor, stats: Statistics) -> Estimate:
    """Mean of `(seed, example)` over examples, then seeds; no interval with few pairs."""
    estimate = stats.estimate(values)
    return estimate if estimate.n >= FEWEST_FOR_INTERVAL else estimate.model_copy(update={"ci95": NO_INTERVAL})


def _per_class(predicted: Tensor, labels: Tensor, names: Sequence[str], stats: Statistics) -> dict[str, ClassScores]:
    occurring = labels.unique()
    positive = (predicted[..., None] == occurring).double()
    true = (labels[:, None] == occurring) * (predicted >= 0)[..., None].double()
    precisions = stats.shares(positive * true, positive)
    recalls = stats.shares(positive * true, true)
    scores = zip(precisions, recalls, stats.f1_by_label(predicted, labels), strict=True)
    return {
        names[label]: ClassScores(
            precision=precision,
            recall=recall,
            f1=f1,
            support=int((labels == label).sum()),
            predicted=int((predicted == label).sum()),
        )
        for label, (precision, recall, f1) in zip(occurring.tolist(), scores, strict=True)
    }


def _calibration_error(counts: Tensor, by_chance: Tensor, stats: Statistics) -> Estimate:
    """Expected calibration error over all seeds.

    Its interval is the basic bootstrap's, 2 estimate - (high, low), within [0, 1]: the error of a resample exceeds that
    of the sample for the same reason for which the latter exceeds the true one, so percentiles of resamples would be
    too high by twice that excess and never include 0. Near 0 this is not enough, so the interval begins at 0 unless the
    error is larger than 97.5 % of the errors by chance.

    Args:
        counts: What each answer adds to the counts of the bins, `(seed, example, 3, bin)`.
        by_chance: Errors of simulated calibrated answers, `(draw,)`.
        stats: The bootstrap.
    """
    error = float(calibration_error(counts.sum((0, 1))))
    n = int(counts[..., 0, :].sum())
    ends: Interval = NO_INTERVAL
    if n >= FEWEST_FOR_INTERVAL:
        low, high = stats.interval_of(
            lambda totals: calibration_error(totals.unflatten(-1, counts.shape[-2:])), counts.flatten(2)
        )
        if low < high:
            within_chance = error <= float(by_chance.quantile(0.975))
            ends = 0.0 if within_chance else max(0.0, 2 * error - high), min(1.0, 2 * error - low)
    return Estimate(mean=error, ci95=ends, n=n)


def _reliability(counts: Tensor, stats: Statistics) -> list[ReliabilityBin]:
    """The bins that hold answers, over all seeds."""
    n, confidence, _ = counts.sum((0, 1))
    accuracies = stats.shares(counts[..., 2, :], counts[..., 0, :])
    return [
        ReliabilityBin(
            low=place / N_BINS,
            high=(place + 1) / N_BINS,
            confidence=float(confidence[place] / n[place]),
            accuracy=accuracy,
        )
        for place, accuracy in enumerate(accuracies)
        if accuracy.n
    ]
