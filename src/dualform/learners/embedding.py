"""Logistic regression on the model's hidden states, averaged over the query's tokens, after a chosen layer."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, LabelUse, Learner
from dualform.learners.classifier import class_log_probabilities, fit_standardised
from dualform.learners.inner_splits import Split, inner_splits
from dualform.learners.prompting import ZeroShot
from dualform.learners.saved_parts import SavedParts, linear_head
from dualform.models.cost.work import Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Probe, Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.models.structure.blocks import enclosing_blocks

FEWEST_TO_CHOOSE = 10
"""Smallest number of labels inside which a layer is chosen: two for each fold of a cross-validation."""

_POOLED = Recording(pooled=True)


def prompts_of(queries: Sequence[Query]) -> tuple[Query, ...]:
    """The queries without answers, since only the prompt's hidden states are needed."""
    return tuple(Query(query.prompt, ()) for query in queries)


def read_pooled(zero_shot: AdaptedModel, queries: Sequence[Query]) -> Tensor:
    """Hidden states after each layer's block, averaged over the tokens of each prompt.

    Returns:
        `(example, layer, d_model)`, float32 on the CPU, in the order of `queries`.
    """
    prompts = prompts_of(queries)
    pooled: dict[int, Tensor] = {}
    for indices in zero_shot.lm.groups(prompts):
        pooled.update(zip(indices, _pooled(zero_shot.read_group(prompts, indices, _POOLED)), strict=True))
    return torch.stack([pooled[i] for i in range(len(prompts))])


def choose_layer(states: np.ndarray[Any, Any], labels: Sequence[int], splits: Sequence[Split]) -> int:
    """The layer whose classifiers predict held-out labels best.

    Args:
        states: `(example, layer, d_model)`.
        labels: Class of each example.
        splits: Indices of the examples to fit to, and of those to predict.

    Returns:
        The layer with the largest sum of log-probabilities of the right labels. Examples whose class is not among
        those to fit to are left out. The middle layer if no example can be predicted.
    """
    n_layers, classes = states.shape[1], np.array(labels)
    scores, known = np.zeros(n_layers), 0
    for train, held_out in splits:
        seen = set(classes[list(train)])
        predicted = [index for index in held_out if classes[index] in seen]
        if len(seen) < 2 or not predicted:
            continue
        known += len(predicted)
        for layer in range(n_layers):
            classifier = fit_standardised(states[list(train), layer], [labels[index] for index in train])
            table = class_log_probabilities(classifier, states[predicted, layer], int(classes.max()) + 1)
            # As scikit-learn's log_loss: one probability that underflows would outweigh all others.
            right = table[torch.arange(len(predicted)), torch.as_tensor(classes[predicted])]
            scores[layer] += float(right.clamp(min=_LEAST).sum())
    return int(scores.argmax()) if known else n_layers // 2


_LEAST = float(np.log(np.finfo(np.float64).eps))


@dataclass(frozen=True)
class EmbeddingModel:
    """The zero-shot model with a classifier of one layer's averaged hidden states instead of its output head."""

    learner: str
    zero_shot: AdaptedModel
    classifier: Any
    """Fitted scikit-learn pipeline; None if all labelled examples have the same label."""
    layer: int
    """Index of the layer, 0 for the first."""
    only_label: int
    """The answer to every query if there is no classifier."""
    n_labels: int
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        return self.zero_shot.n_prefix

    @ordinary_torch()
    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of prompts; answers are the classifier's (-inf for labels that it has not seen).

        Of `want` nothing is recorded.
        """
        prompts = prompts_of([queries[i] for i in indices])
        readings = self.zero_shot.read_group(prompts, range(len(prompts)), _POOLED)
        features = _pooled(readings)[:, self.layer].numpy()
        table = class_log_probabilities(self.classifier, features, self.n_labels, self.only_label)
        return Readings(tuple(indices), table, readings.next_token, readings.hidden, None)

    def saved_parts(self) -> SavedParts:
        """See `Saveable`."""
        d_model = self.zero_shot.lm.shape.d_model
        return SavedParts(
            self.n_prefix, head=linear_head(self.classifier, "mean", self.only_label, d_model, self.layer)
        )


class EmbeddingLearner(Learner):
    """Logistic regression (scikit-learn, L2, C = 1) on standardised hidden states, averaged over the prompt's tokens.

    Averaged are the hidden states after a layer's block at all tokens of the prompt, without the opening tokens, whose
    hidden states are many times larger in most models. The template's words count too: they come after the text and
    have read it. The layer is chosen by five-fold cross-validation inside the labels (`choose_layer`); with fewer than
    10 labels it is the middle one, since layers near the middle suit most tasks better than the last
    (arXiv:2502.02013).
    """

    name = "embedding"
    title = "embedding"
    noun = "the classifier of hidden states"
    meaning = "Logistic regression on the mean hidden state after a layer that is chosen by cross-validation."
    colour = "#7F6BB3"
    needs_demonstrations = True
    needs_label_words = True
    trains_on = "labelled"

    @ordinary_torch()
    def adapt(self, context: AdaptationContext) -> EmbeddingModel:
        """Read the labelled examples, choose a layer, and fit the classifier."""
        start, labels = time.perf_counter(), context.labelled.labels
        zero_shot = ZeroShot(context.opening).adapt(context.lm, context.encoded)
        states = read_pooled(zero_shot, context.labelled_queries()).numpy()
        layer = choose_layer(states, labels, self._splits(context))
        classifier = fit_standardised(states[:, layer], labels)
        context.record({"layer": layer})
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return EmbeddingModel(self.name, zero_shot, classifier, layer, labels[0], context.task.n_labels, cost)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """Check that the hidden states after each layer's block can be read."""
        enclosing_blocks(lm.model, lm.anatomy)

    def work(self, context: AdaptationContext) -> Work:
        """Reading the prompt of every labelled example; the opening is counted for zero-shot."""
        opening = len(context.opening)
        return encode(opening).uncharged + read(prompts_of(context.labelled_queries()), opening)

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """Reading the prompts, without answers."""
        return read(prompts_of(queries), len(context.opening))

    def labels_used(self, context: AdaptationContext) -> LabelUse:
        """All labelled examples are trained on; the layer is chosen on the same ones."""
        n = len(context.labelled.labels)
        return LabelUse(0, n, n if self._splits(context) else 0, n)

    def _splits(self, context: AdaptationContext) -> list[Split]:
        """The splits inside which the layer is chosen; none with too few labels or a single class."""
        labels = context.labelled.labels
        if len(labels) < FEWEST_TO_CHOOSE or len(set(labels)) < 2:
            return []
        return inner_splits(labels, "cross-validation", context.seed)


EMBEDDING = EmbeddingLearner()


def _pooled(readings: Readings) -> Tensor:
    """`(example, layer, d_model)`, float32 on the CPU."""
    assert readings.trace is not None
    assert readings.trace.pooled is not None
    return readings.trace.pooled.float().cpu()
