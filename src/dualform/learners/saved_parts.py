"""What a learner's adapted model consists of, so that it can be written to disk and run without dualform."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from dualform.models.editing.edit import WeightDelta


@dataclass(frozen=True)
class LinearHead:
    """A linear classifier: log-probabilities are `log_softmax(weight @ features + bias)`."""

    reads: Literal["words", "mean", "last"]
    """Its features: TF-IDF weights of the text; the mean over the prompt's tokens of the hidden states after a block;
    or the last hidden state at the prompt's last token."""
    classes: tuple[int, ...]
    """Label of each row of `weight`; the other labels have probability 0."""
    weight: Tensor
    """`(class, feature)`, float64."""
    bias: Tensor
    """`(class,)`, float64."""
    block: int | None = None
    """For `mean`: index of the layer after whose block the hidden states are read."""
    terms: tuple[str, ...] = ()
    """For `words`: the term of each feature."""
    idf: Tensor | None = None
    """For `words`: the inverse document frequency of each term, `(feature,)`, float64."""


@dataclass(frozen=True)
class SavedParts:
    """An adapted model as data."""

    n_prefix: int
    """Number of tokens before every query: the opening, or all demonstrations."""
    deltas: tuple[WeightDelta, ...] = ()
    """Changes of the weights."""
    shift: Tensor | None = None
    """Added to the log-probabilities of the answers before they are normalised, `(label,)`, nats."""
    head: LinearHead | None = None
    """A classifier that takes the place of the model's answers."""


class Saveable(Protocol):
    """An adapted model that can be written to disk."""

    def saved_parts(self) -> SavedParts:
        """Its parts."""
        ...


def linear_head(
    classifier: Any, reads: Literal["words", "mean", "last"], only_label: int, n_features: int, block: int | None = None
) -> LinearHead:
    """A fitted scikit-learn classifier as a linear head.

    Args:
        classifier: Logistic regression alone, or behind a `StandardScaler` or a `TfidfVectorizer` in a pipeline; a
            `DummyClassifier`; or None if only one class was seen.
        reads: See `LinearHead`.
        only_label: The answer without a classifier.
        n_features: Number of features without a classifier.
        block: See `LinearHead`.
    """
    if classifier is None:
        return LinearHead(reads, (only_label,), _zeros(1, n_features), _zeros(1), block)
    steps: Sequence[Any] = [step for _, step in classifier.steps] if hasattr(classifier, "steps") else [classifier]
    *before, last = steps
    classes = tuple(int(label) for label in last.classes_)
    if not hasattr(last, "coef_"):
        prior = np.log(np.asarray(last.class_prior_, dtype=np.float64))
        return LinearHead(reads, classes, _zeros(len(classes), 0), torch.from_numpy(prior), block)
    weight, bias = np.asarray(last.coef_, dtype=np.float64), np.asarray(last.intercept_, dtype=np.float64)
    if len(classes) == 2 and len(weight) == 1:
        # scikit-learn keeps only the second class's row, relative to the first.
        weight, bias = np.concatenate([0 * weight, weight]), np.concatenate([0 * bias, bias])
    terms: tuple[str, ...] = ()
    idf = None
    for step in before:
        if hasattr(step, "vocabulary_"):
            terms = tuple(sorted(step.vocabulary_, key=step.vocabulary_.__getitem__))
            idf = torch.from_numpy(np.asarray(step.idf_, dtype=np.float64))
        else:
            mean, scale = (np.asarray(values, dtype=np.float64) for values in (step.mean_, step.scale_))
            weight = weight / scale
            bias = bias - weight @ mean
    return LinearHead(reads, classes, torch.from_numpy(weight), torch.from_numpy(bias), block, terms, idf)


def _zeros(*shape: int) -> Tensor:
    return torch.zeros(*shape, dtype=torch.float64)
