"""Calibration: removes a prompt's preference for a label, which does not depend on the query."""

import torch
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened


def contextual_calibration(log_probabilities: Tensor, content_free: Tensor) -> Tensor:
    """Label log-probabilities divided by those of content-free inputs under the same prompt, nats.

    Computes p / p_cf, normalised over labels, where p_cf is the mean of the content-free label distributions. With
    one content-free input, that input's calibrated distribution is uniform, and a constant that is added to one label's
    logit for all inputs cancels exactly. With several content-free inputs both hold only approximately, because the
    divisor is a mean of distributions, not of logits.

    Args:
        log_probabilities: Label log-probabilities of queries, up to a constant for each row, -inf for impossible, of
            shape `(..., example, label)`.
        content_free: The same of inputs without content (`N/A`, an empty one) under the same prompt, of shape
            `(..., content_free, label)`; leading axes broadcast. A row that contains a NaN, or whose entries are all
            -inf, is not a distribution and is left out of the mean.

    Returns:
        Log-probabilities in [-inf, 0], each row normalised, of shape `(..., example, label)`. A label that is
        impossible for the query stays impossible. A whole row is NaN if its entries are all NaN or -inf, if no
        content-free row is left, or if a label that is possible for the query has p_cf = 0, which cannot be
        divided by.

    Raises:
        ShapeError: The numbers of labels differ, leading axes do not broadcast, or there is no content-free input.

    Source:
        arXiv:2102.09690v2, section 5: W = diag(p_cf)^-1, b = 0. The paper writes softmax(W p + b), a softmax of
        probabilities; we normalise W p itself, which predicts the same label and leaves calibrated probabilities
        that are p again when p_cf is uniform.
    """
    _require_labels("content_free", log_probabilities, content_free)
    log_p = widened(log_probabilities).log_softmax(-1)
    rows = widened(content_free).log_softmax(-1)
    known = ~rows.isnan().any(-1, keepdim=True)
    # In logarithms throughout: the probability of an unlikely label would underflow to 0 and could not be divided by.
    log_p_cf = torch.where(known, rows, -torch.inf).logsumexp(-2, keepdim=True) - known.sum(-2, keepdim=True).log()
    # An impossible label stays impossible, also where p_cf is 0 and floating point would give NaN.
    quotient = torch.where(log_p == -torch.inf, log_p, log_p - log_p_cf)
    # A quotient of +inf becomes NaN here, as documented.
    calibrated = quotient.log_softmax(-1).masked_fill(~known.any(-2, keepdim=True), torch.nan)
    return calibrated.to(result_dtype(log_probabilities, content_free))


def batch_calibration(log_probabilities: Tensor, batch: Tensor) -> Tensor:
    """Label log-probabilities minus their means over a batch of queries under the same prompt, nats.

    A constant added to one label's logit everywhere drops out exactly, since logarithms are averaged.

    Args:
        log_probabilities: Label log-probabilities of queries, up to a constant for each row, -inf for impossible, of
            shape `(..., example, label)`.
        batch: The same of the queries of the batch, whose labels need not be known, of shape `(..., batch, label)`;
            leading axes broadcast.

    Returns:
        Log-probabilities in [-inf, 0], each row normalised, of shape `(..., example, label)`. A label that is
        impossible for the query stays so. NaN where a possible label is impossible in the batch.

    Raises:
        ShapeError: The numbers of labels differ, leading axes do not broadcast, or the batch is empty.

    Source:
        arXiv:2309.17249, section 3. The paper subtracts the logarithm of the mean probability; we subtract the mean
        logarithm, which a few certain answers do not dominate, and for which the exact removal above holds.
    """
    _require_labels("batch", log_probabilities, batch)
    log_p = widened(log_probabilities).log_softmax(-1)
    mean = widened(batch).log_softmax(-1).mean(-2, keepdim=True)
    # 0 / p is 0 whatever p is.
    shifted = torch.where(log_p == -torch.inf, log_p, log_p - mean)
    return shifted.log_softmax(-1).to(result_dtype(log_probabilities, batch))


def _require_labels(name: str, log_probabilities: Tensor, reference: Tensor) -> None:
    """Check that both hold answers with the same labels, and the reference at least one row."""
    require_same_shape("... example label", log_probabilities=log_probabilities)
    require_same_shape(f"... {name} label", **{name: reference})
    if log_probabilities.shape[-1] != reference.shape[-1] or not _broadcast(log_probabilities, reference):
        raise ShapeError(
            f"log_probabilities (..., example, label) and {name} (..., {name}, label) must have the same labels and "
            f"leading axes that broadcast; given {tuple(log_probabilities.shape)} and {tuple(reference.shape)}."
        )
    if reference.shape[-2] == 0:
        raise ShapeError(f"{name} holds no input: its shape is {tuple(reference.shape)}; expected 1 or more.")


def _broadcast(log_probabilities: Tensor, content_free: Tensor) -> bool:
    try:
        torch.broadcast_shapes(log_probabilities.shape[:-2], content_free.shape[:-2])
    except RuntimeError:
        return False
    return True
