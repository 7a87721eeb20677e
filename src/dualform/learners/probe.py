"""Logistic regression on the model's own last hidden state: what a linear reader gets out of the same examples."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.prompting import ZeroShot
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Probe, Query
from dualform.models.reading.ordinary import ordinary_torch


@dataclass(frozen=True)
class LinearProbe:
    """Hidden states behind the zero-shot prompt, standardised, into scikit-learn's logistic regression (L2, C = 1).

    For tasks with label words only: free-text choices have no classes to regress on.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    queries: tuple[Query, ...]
    """The demonstrations as queries, in order."""
    labels: tuple[int, ...]
    """The labels that they show."""
    n_labels: int
    name: str = "probe"

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> "ProbedModel":
        """Read the demonstrations one by one behind no context, and fit."""
        # scikit-learn takes a second to import, and not everyone probes.
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        start = time.perf_counter()
        zero_shot = ZeroShot(self.opening).adapt(lm, demonstrations)
        features: dict[int, Tensor] = {}
        for indices in lm.groups(self.queries):
            readings = zero_shot.read_group(self.queries, indices)
            features.update(zip(indices, readings.hidden.float().cpu(), strict=True))
        classifier = None
        if len(set(self.labels)) > 1:
            classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
            classifier.fit(np.stack([features[i].numpy() for i in range(len(self.labels))]), np.array(self.labels))
        seconds = time.perf_counter() - start
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, seconds)
        only = self.labels[0] if self.labels else 0
        return ProbedModel(self.name, zero_shot, classifier, only, self.n_labels, cost)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Every demonstration behind the opening, which zero-shot reads as well."""
        return encode(len(self.opening)).uncharged + read(self.queries, len(self.opening))


@dataclass(frozen=True)
class ProbedModel:
    """The zero-shot model with a classifier instead of its output head."""

    learner: str
    zero_shot: AdaptedModel
    classifier: Any
    """Fitted scikit-learn pipeline; None when the demonstrations show one label only."""
    only_label: int
    n_labels: int
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Tokens that stand before every query."""
        return self.zero_shot.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group; the classifier's log-probabilities stand in for the label words' (-inf: never shown)."""
        return self.answer(self.zero_shot.read_group(queries, indices, want, probe))

    def answer(self, readings: Readings) -> Readings:
        """Zero-shot readings with the classifier's answers, for those who have read the queries already."""
        table = torch.full((len(readings.queries), self.n_labels), -torch.inf, dtype=torch.float64)
        if self.classifier is None:
            table[:, self.only_label] = 0.0
        else:
            # A state far out on one side leaves the other label a probability that underflows to 0: -inf, then.
            with np.errstate(divide="ignore"):
                found = self.classifier.predict_log_proba(readings.hidden.float().cpu().numpy())
            table[:, list(self.classifier.classes_)] = torch.as_tensor(found, dtype=torch.float64)
        return Readings(readings.queries, table, readings.next_token, readings.hidden, readings.trace)


class ProbeLearner(Learner):
    """See `LinearProbe`."""

    name = "probe"
    needs_demonstrations = True
    needs_label_words = True
    answers_from = "zsl"

    def adapt(self, context: AdaptationContext) -> ProbedModel:
        """Fit a classifier to the demonstrations' hidden states."""
        return self._method(context).adapt(context.lm, context.encoded)

    def work(self, context: AdaptationContext) -> Work:
        """See `LinearProbe`."""
        return self._method(context).work(context.lm.shape, context.encoded)

    def _method(self, context: AdaptationContext) -> LinearProbe:
        labels = context.demonstrations.labels
        return LinearProbe(context.opening, context.demonstration_queries(), labels, context.task.n_labels)


PROBE = ProbeLearner()
