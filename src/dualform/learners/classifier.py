"""Fitted scikit-learn classifiers as learners' answers."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor


def class_log_probabilities(classifier: Any, features: Any, n_labels: int, only_label: int = 0) -> Tensor:
    """A classifier's log-probabilities of all classes.

    Args:
        classifier: A fitted classifier or pipeline; None if only one class was seen.
        features: One row or text for each example.
        n_labels: Number of classes of the task.
        only_label: The answer without a classifier.

    Returns:
        Nats, `(example, label)`, float64 on the CPU; -inf for classes that the classifier has not seen.
    """
    table = torch.full((len(features), n_labels), -torch.inf, dtype=torch.float64)
    if classifier is None:
        table[:, only_label] = 0.0
    elif len(features):
        # A probability may underflow to 0, whose logarithm is -inf.
        with np.errstate(divide="ignore"):
            scores = classifier.predict_log_proba(features)
        table[:, [int(label) for label in classifier.classes_]] = torch.as_tensor(scores, dtype=torch.float64)
    return table


def fit_standardised(features: Any, labels: Sequence[int]) -> Any:
    """Logistic regression (scikit-learn, L2, C = 1) on standardised features.

    Args:
        features: One row for each example, `(example, feature)`.
        labels: Class of each example.

    Returns:
        A fitted scikit-learn pipeline; None if there are fewer than two classes.
    """
    # Imported here because it is slow.
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    if len(set(labels)) < 2:
        return None
    return make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000)).fit(features, np.array(labels))
