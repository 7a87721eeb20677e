"""F1 scores from counts."""

import torch
from torch import Tensor


def f1_by_label(right: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    """F1 score of each label, 2 right / (true + predicted): the harmonic mean of precision and recall.

    Args:
        right: How often each label was predicted rightly, of shape `(..., label)`.
        true: How often it was the right answer, `(..., label)`.
        predicted: How often it was predicted, `(..., label)`.

    Returns:
        Scores in [0, 1], `(..., label)`; NaN for a label that is never the right answer, 0 for one that is never
        predicted.

    Source:
        van Rijsbergen, Information Retrieval, 1979; `sklearn.metrics.f1_score` with `average=None`.
    """
    scores = 2 * right / (true + predicted)
    return scores.masked_fill(true == 0, torch.nan)


def macro_f1(right: Tensor, true: Tensor, predicted: Tensor) -> Tensor:
    """Mean over labels of the F1 score, 2 right / (true + predicted).

    Args:
        right: How often each label was predicted correctly, of shape `(..., label)`.
        true: How often it was the right answer, `(..., label)`.
        predicted: How often it was predicted, `(..., label)`.

    Returns:
        Means in [0, 1] over the labels that are the right answer at least once, of shape `(...)`; NaN if no label is. A
        label that is never predicted scores 0.

    Source:
        van Rijsbergen, Information Retrieval, 1979; `sklearn.metrics.f1_score` with `average="macro"` and `labels` set
        to those that occur among the right answers.
    """
    return f1_by_label(right, true, predicted).nanmean(-1)


def balanced_accuracy(right: Tensor, true: Tensor) -> Tensor:
    """Mean over labels of the recall, right / true: the accuracy if all labels were equally frequent.

    Args:
        right: How often each label was predicted rightly, of shape `(..., label)`.
        true: How often it was the right answer, `(..., label)`.

    Returns:
        Means in [0, 1] over the labels that are the right answer at least once, of shape `(...)`; NaN where none is.

    Source:
        Brodersen et al., The balanced accuracy and its posterior distribution, 2010;
        `sklearn.metrics.balanced_accuracy_score`.
    """
    return (right / true).masked_fill(true == 0, torch.nan).nanmean(-1)
