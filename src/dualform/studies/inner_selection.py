"""Choosing a learner's settings inside a budget of labels, without a validation set.

Every way is a list of splits: which of the labelled examples to train on, and which to predict. Predictions of all
splits are put together, and settings are compared on them as they would be on a selection split.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.base import AdaptationContext, Learner
from dualform.models.cost.work import Work
from dualform.models.reading.layout import Query
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_config import Selection
from dualform.studies.work import read_changed
from dualform.tasks.demonstrations import Demonstrations

FOLDS = 5
"""Folds of the cross-validation, or one for each label if there are fewer."""
FIRST_BLOCK = 2
"""Smallest number of examples to train on in the prequential protocol."""

Split = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices of the labelled examples to train on, and of those to predict."""


def inner_splits(labels: Sequence[int], how: Selection, seed: int) -> list[Split]:
    """Splits of the labelled examples.

    Args:
        labels: Label of each example.
        how: `cross-validation` deals every class out among `FOLDS` folds, so that each example is predicted once.
            `prequential` predicts blocks of doubling size, each from all examples before it, so that all but the first
            block are predicted once.
        seed: Seed of the shuffle that precedes both.

    Returns:
        The splits; empty for fewer than two examples.

    Source:
        Prequential selection without a validation set: arXiv:2512.19879.
    """
    n = len(labels)
    if n < 2:
        return []
    shuffled = random.Random(f"{seed}/inner").sample(range(n), n)
    if how == "prequential":
        splits, known = [], min(FIRST_BLOCK, n - 1)
        while known < n:
            splits.append((tuple(sorted(shuffled[:known])), tuple(sorted(shuffled[known : 2 * known]))))
            known *= 2
        return splits
    # The classes one after the other, so that dealing them out gives every fold its share of each.
    by_class = sorted(shuffled, key=lambda index: labels[index])
    folds = [by_class[first :: min(FOLDS, n)] for first in range(min(FOLDS, n))]
    return [(tuple(sorted(set(range(n)) - set(fold))), tuple(sorted(fold))) for fold in folds]


class InnerSelection:
    """Trains a learner on parts of the labelled examples, and predicts the rest.

    Args:
        experiment: Model, task and settings.
        labelled: The labelled examples.
    """

    def __init__(self, experiment: Experiment[Any], labelled: Demonstrations) -> None:
        self._experiment = experiment
        self._parts: list[tuple[DemonstrationSet, list[Query]]] = []
        predicted: list[int] = []
        for train, held_out in inner_splits(labelled.labels, experiment.config.choose_inside, labelled.seed):
            queries = [experiment.encoder.query(labelled.examples[index]) for index in held_out]
            self._parts.append((experiment.with_labels(labelled.at(train)), queries))
            predicted += held_out
        self.labels = [labelled.labels[index] for index in predicted]
        """Label of each predicted example, as shown."""

    def predict(self, adapt: Callable[[DemonstrationSet], AdaptedModel]) -> Tensor:
        """Log-probabilities of the answers to all predicted examples, `(example, answer)`, nats, on the CPU.

        Args:
            adapt: Trains on a part of the labelled examples.

        Raises:
            NumericalError: A training diverged.
        """
        tables = [answer_log_probabilities(adapt(part), self._experiment.lm, queries) for part, queries in self._parts]
        width = max((table.shape[1] for table in tables), default=0)
        filled = [torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf) for table in tables]
        return torch.cat(filled) if filled else torch.zeros(0, 0)

    def work(self, learner: Learner, context: AdaptationContext) -> Work:
        """The work of `predict`."""
        opening = len(self._experiment.encoder.opening)
        work = Work()
        for part, queries in self._parts:
            work += learner.work(replace(context, drawn=part)) + read_changed(queries, opening)
        return work
