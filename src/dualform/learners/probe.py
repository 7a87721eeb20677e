"""A linear probe: logistic regression on the model's last hidden state, fitted to the demonstrations."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.classifier import class_log_probabilities, fit_standardised
from dualform.learners.prompting import ZeroShot
from dualform.learners.saved_parts import SavedParts, linear_head
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Probe, Query
from dualform.models.reading.ordinary import ordinary_torch


@dataclass(frozen=True)
class LinearProbe:
    """Logistic regression (scikit-learn, L2, C = 1) on standardised hidden states of zero-shot prompts.

    For tasks with label words only, because free-text choices have no classes.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    queries: tuple[Query, ...]
    """The demonstrations as queries, in order."""
    labels: tuple[int, ...]
    """Label of each demonstration, as shown."""
    n_labels: int
    name: str = "probe"

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> "ProbedModel":
        """Read each demonstration zero-shot, and fit the classifier."""
        start = time.perf_counter()
        zero_shot = ZeroShot(self.opening).adapt(lm, demonstrations)
        features: dict[int, Tensor] = {}
        for indices in lm.groups(self.queries):
            readings = zero_shot.read_group(self.queries, indices)
            features.update(zip(indices, readings.hidden.float().cpu(), strict=True))
        rows = [features[i].numpy() for i in range(len(self.labels))]
        classifier = fit_standardised(np.stack(rows), self.labels) if rows else None
        seconds = time.perf_counter() - start
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, seconds)
        only = self.labels[0] if self.labels else 0
        return ProbedModel(self.name, zero_shot, classifier, only, self.n_labels, cost)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Reading every demonstration after the opening; the opening itself is counted for zero-shot."""
        return encode(len(self.opening)).uncharged + read(self.queries, len(self.opening))


@dataclass(frozen=True)
class ProbedModel:
    """The zero-shot model with a classifier instead of its output head."""

    learner: str
    zero_shot: AdaptedModel
    classifier: Any
    """Fitted scikit-learn pipeline; None if all demonstrations have the same label."""
    only_label: int
    """The answer to every query if there is no classifier."""
    n_labels: int
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        return self.zero_shot.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries; answers are the classifier's log-probabilities (-inf for labels never shown)."""
        return self.answer(self.zero_shot.read_group(queries, indices, want, probe))

    def answer(self, readings: Readings) -> Readings:
        """Replace the answers in zero-shot readings by the classifier's."""
        features = readings.hidden.float().cpu().numpy()
        table = class_log_probabilities(self.classifier, features, self.n_labels, self.only_label)
        return Readings(readings.queries, table, readings.next_token, readings.hidden, readings.trace)

    def saved_parts(self) -> SavedParts:
        """See `Saveable`."""
        d_model = self.zero_shot.lm.shape.d_model
        return SavedParts(self.n_prefix, head=linear_head(self.classifier, "last", self.only_label, d_model))


class ProbeLearner(Learner):
    """See `LinearProbe`."""

    name = "probe"
    needs_demonstrations = True
    needs_label_words = True
    answers_from = "zsl"
    trains_on = "labelled"

    def adapt(self, context: AdaptationContext) -> ProbedModel:
        """Fit the classifier to the demonstrations."""
        return self._method(context).adapt(context.lm, context.encoded)

    def work(self, context: AdaptationContext) -> Work:
        """See `LinearProbe`."""
        return self._method(context).work(context.lm.shape, context.encoded)

    def _method(self, context: AdaptationContext) -> LinearProbe:
        labels = context.labelled.labels
        return LinearProbe(context.opening, context.labelled_queries(), labels, context.task.n_labels)


PROBE = ProbeLearner()
