"""Choosing a learner's settings inside a budget of labels, without a validation set.

Cross-validation and the prequential protocol are both lists of splits: which of the labelled examples to train on, and
which to predict. Predictions of all splits are put together, and settings are compared on them as they would be on a
selection split.
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.inner_splits import inner_splits
from dualform.models.cost.work import Work
from dualform.models.reading.layout import Query
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.work import read_changed
from dualform.tasks.demonstrations import Demonstrations


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
        """Log-probabilities of the answers to all predicted examples, in the order of `labels`.

        Args:
            adapt: Trains on a part of the labelled examples.

        Returns:
            `(example, answer)`, nats, on the CPU; -inf for answers that an example does not have.

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
