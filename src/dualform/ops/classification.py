"""Scores of predicted label probabilities: log-loss, Brier score and calibration error."""

import math

import torch
from einops import einsum, rearrange
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import require_same_shape, widened

SMALLEST_PROBABILITY = torch.finfo(torch.float64).eps
"""Smallest probability whose logarithm enters the log-loss, 2.2e-16: the machine precision, as in
`sklearn.metrics.log_loss`."""

WORST_LOG_LOSS = -math.log(SMALLEST_PROBABILITY)
"""Log-loss of a right label with a smaller probability, 36.04 nats."""

N_BINS = 10
"""Number of bins of equal width in [0, 1] for the expected calibration error."""


def label_probabilities(log_p: Tensor) -> Tensor:
    """Probabilities of the labels.

    Args:
        log_p: Log-probabilities of the labels in nats up to a constant, -inf for impossible, of shape `(..., label)`.

    Returns:
        Their softmax over the labels, `(..., label)`, in float64; NaN throughout a row that holds a NaN or +inf, or is
        -inf throughout.

    Raises:
        ShapeError: There is no label axis.
    """
    if log_p.ndim < 1 or log_p.shape[-1] < 1:
        raise ShapeError(f"log_p must be (..., label) with at least one label; given {tuple(log_p.shape)}.")
    return widened(log_p).softmax(-1)


def log_loss(log_p: Tensor, labels: Tensor) -> Tensor:
    """Log-loss (cross-entropy) of each example: minus the logarithm of the right label's probability.

    Args:
        log_p: As in `label_probabilities`, `(..., example, label)`.
        labels: Right label numbers, `(example)`.

    Returns:
        Nats, `(..., example)`, in [0, `WORST_LOG_LOSS`]: a probability below `SMALLEST_PROBABILITY`, whose log-loss may
        be infinite, counts as `SMALLEST_PROBABILITY`. NaN where the probabilities are.

    Raises:
        ShapeError: The shapes do not fit.

    Source:
        Good, Rational Decisions, 1952; `sklearn.metrics.log_loss`, whose clip from above (a loss of 2e-16 instead of 0)
        is left out.
    """
    return -_of_right(widened(log_p).log_softmax(-1), labels).clamp(min=-WORST_LOG_LOSS)


def has_no_probability(log_p: Tensor, labels: Tensor) -> Tensor:
    """Whether the right label has probability 0 to machine precision, so that `log_loss` is cut off.

    Args:
        log_p: As in `label_probabilities`, `(..., example, label)`.
        labels: Right label numbers, `(example)`.

    Returns:
        1 or 0, `(..., example)`, in float64; NaN where the probabilities are.
    """
    right = _of_right(widened(log_p).log_softmax(-1), labels)
    return (right < -WORST_LOG_LOSS).to(right.dtype).masked_fill(right.isnan(), torch.nan)


def brier_score(log_p: Tensor, labels: Tensor) -> Tensor:
    """Brier score of each example: squared distance of the probabilities from the right answer.

    Args:
        log_p: As in `label_probabilities`, `(..., example, label)`.
        labels: Right label numbers, `(example)`.

    Returns:
        Sum over labels of (probability - 1 for the right label, else probability) squared, `(..., example)`, in [0, 2];
        (n - 1) / n for equal probabilities of n labels. NaN where the probabilities are.

    Raises:
        ShapeError: The shapes do not fit.

    Source:
        Brier, Verification of forecasts expressed in terms of probability, 1950; `sklearn.metrics.brier_score_loss`
        with `scale_by_half=False`. For two labels it is twice the squared error of one label's probability.
    """
    p = label_probabilities(log_p)
    # The row's sum of squares with the right label's p squared replaced by (1 - p) squared.
    right = _of_right(p, labels)
    return (p.square().sum(-1) + 1 - 2 * right).clamp(min=0)


def reliability_counts(confidence: Tensor, right: Tensor, n_bins: int = N_BINS) -> Tensor:
    """What each answer adds to the counts of a reliability diagram.

    Args:
        confidence: Probability of the predicted label, in [0, 1], of shape `(...)`; NaN for no answer.
        right: Whether the answer is right, 1 or 0, `(...)`.
        n_bins: Number of bins of equal width. A bin includes its upper end, the first one also 0.

    Returns:
        `(..., 3, bin)`: the number of answers (1 in the answer's bin), the sum of their confidences, and the number of
        right ones; 0 throughout for NaN.

    Raises:
        ConfigError: `n_bins` is below 1.
        ShapeError: The shapes differ.

    Source:
        Niculescu-Mizil and Caruana, Predicting good probabilities with supervised learning, 2005; bins as in
        `sklearn.calibration.calibration_curve` with `strategy="uniform"`.
    """
    if n_bins < 1:
        raise ConfigError(f"n_bins is {n_bins}; expected 1 or more.")
    if confidence.shape != right.shape:
        raise ShapeError(f"confidence and right differ in shape: {tuple(confidence.shape)}, {tuple(right.shape)}.")
    confidence, right = widened(confidence), widened(right)
    answered = (confidence + right).isfinite()
    inner = torch.tensor([end / n_bins for end in range(1, n_bins)], dtype=confidence.dtype, device=confidence.device)
    bins = torch.bucketize(confidence.nan_to_num(0.0), inner)
    member = torch.nn.functional.one_hot(bins, n_bins).to(confidence.dtype) * answered.unsqueeze(-1)
    values = torch.stack([torch.ones_like(confidence), confidence, right], dim=-1)
    return member.unsqueeze(-2) * torch.where(answered.unsqueeze(-1), values, 0.0).unsqueeze(-1)


def calibration_error(counts: Tensor) -> Tensor:
    """Expected calibration error from the counts of a reliability diagram.

    Args:
        counts: Sums of `reliability_counts` over answers, `(..., 3, bin)`.

    Returns:
        Mean over answers of the absolute difference between accuracy and mean confidence of the answer's bin, `(...)`,
        in [0, 1]; NaN without answers. It tends to exceed 0 even for calibrated probabilities, because the accuracy of
        a bin with few answers varies: compare it with `calibration_errors_by_chance`.

    Source:
        Naeini et al., Obtaining well calibrated probabilities using Bayesian binning, 2015;
        arXiv:1706.04599, section 2.
    """
    n, confidence, right = counts.unbind(-2)
    return (right - confidence).abs().sum(-1) / n.sum(-1)


def calibration_errors_by_chance(
    confidence: Tensor, n_bins: int = N_BINS, *, n_draws: int = 1000, generator: torch.Generator
) -> Tensor:
    """Expected calibration errors of simulated answers, each right with the probability that is its confidence.

    Args:
        confidence: Probability of each predicted label, `(seed, example)`; NaN for no answer.
        n_bins: As in `reliability_counts`.
        n_draws: How many sets of answers are drawn.
        generator: Source of randomness. One uniform number a query decides its answers under all seeds, because the
            answers to one query are alike; where they are not, the true level is lower than the one returned.

    Returns:
        The error in each draw, `(draw)`; NaN without answers.

    Raises:
        ConfigError: `n_bins` or `n_draws` is below 1.
        ShapeError: `confidence` is not `(seed, example)`.

    Source:
        Consistency resampling, Broecker and Smith, Increasing the reliability of reliability diagrams, 2007.
    """
    require_same_shape("seed example", confidence=confidence)
    if n_draws < 1:
        raise ConfigError(f"n_draws is {n_draws}; expected 1 or more.")
    confidence = widened(confidence)
    counts = reliability_counts(confidence, torch.ones_like(confidence), n_bins)
    member, sums = counts[..., 0, :], counts.sum((0, 1))
    uniform = torch.rand(n_draws, confidence.shape[1], generator=generator, device=generator.device)
    errors = []
    for part in uniform.to(confidence).split(max(1, 2_000_000 // max(1, confidence.numel()))):
        right = (rearrange(part, "draw example -> draw 1 example") < confidence).to(confidence.dtype)
        hits = einsum(right, member, "draw seed example, seed example bin -> draw bin")
        drawn = torch.stack([sums[0].expand_as(hits), sums[1].expand_as(hits), hits], dim=-2)
        errors.append(calibration_error(drawn))
    return torch.cat(errors)


def _of_right(table: Tensor, labels: Tensor) -> Tensor:
    """The right label's entry of each example, `(..., example, label)` -> `(..., example)`."""
    if table.ndim < 2 or labels.ndim != 1 or table.shape[-2] != len(labels):
        raise ShapeError(
            f"the table must be (..., example, label) and labels (example); given {tuple(table.shape)} and "
            f"{tuple(labels.shape)}."
        )
    index = labels.to(table.device, torch.int64).unsqueeze(-1).expand(*table.shape[:-1], 1)
    return table.gather(-1, index).squeeze(-1)
