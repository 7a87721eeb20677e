"""Macro-averaged F1 from counts."""

import torch
from torch import Tensor


def macro_f1(right: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    """Mean over labels of the F1 score, 2 right / (true + predicted).

    Args:
        right: How often each label was predicted rightly, of shape `(..., label)`.
        true: How often it was the right answer, `(..., label)`.
        predicted: How often it was predicted, `(..., label)`.

    Returns:
        Means in [0, 1] over the labels that are the right answer at least once, of shape `(...)`; NaN where none is. A
        label that is never predicted scores 0.

    Source:
        van Rijsbergen, Information Retrieval, 1979; `sklearn.metrics.f1_score` with `average="macro"` and `labels` set
        to those that occur among the right answers.
    """
    scores = 2 * right / (true + predicted)
    return scores.masked_fill(true == 0, torch.nan).nanmean(-1)
