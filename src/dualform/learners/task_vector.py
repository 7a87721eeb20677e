"""Task vectors: the mean hidden state at the token that predicts the label, patched into a zero-shot forward."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import AdaptationCost, AdaptedModel, answer_log_probabilities
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import FINDING_BLOCKS, Work, encode, read, short_forwards
from dualform.models.hooks import Hooks
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Layout, Probe, Query, lay_out
from dualform.models.structure.blocks import find_blocks
from dualform.ops.agreement import kl_divergence, label_agreement

_ONE_ROW = ("packed", "packed-mask")
"""Routes that read a group as one row arranged by `lay_out`, so that each token's position is known."""


@dataclass(frozen=True)
class TaskVector:
    """The zero-shot model with one block's output at the token that predicts the label replaced by a mean.

    The mean is taken of the same block's output at the same token, over texts that are read after the demonstrations.
    Later layers, and further tokens of longer answers, then compute with the replaced output.

    Source:
        Task vector theta, arXiv:2310.15916, sections 2 and 3: the hidden state after a layer at the separator before
        the answer, patched into a forward without demonstrations. In the paper, theta comes from one dummy query per
        prompt, and the layer is chosen by accuracy on a labelled development set. Here theta is a mean over unlabelled
        texts, and the layer is the one whose answers agree most with in-context learning, so no labels are used.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...]
    """Unlabelled calibration texts, with the task's possible answers."""
    layer: int | None = None
    """Index of the block whose output is replaced, 0 for the first; None chooses it by agreement with ICL."""
    search_texts: int = 32
    """Largest number of texts on which the layer is chosen; the mean is taken over all texts."""
    name: str = "fold"

    def __post_init__(self) -> None:
        mistakes = []
        if not self.texts:
            mistakes.append("a task vector is a mean over calibration texts, but texts is empty: give at least one")
        elif self.layer is None and not all(text.answers for text in self.texts[: max(self.search_texts, 0)]):
            mistakes.append("a layer cannot be chosen on texts without answers: give the task's answers, or a layer")
        if self.layer is not None and self.layer < 0:
            mistakes.append(f"layer {self.layer} must be 0 (the first block) or more")
        if self.search_texts < 1:
            mistakes.append(f"search_texts {self.search_texts} must be at least 1")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> "PatchedModel":
        """Read the texts after the demonstrations, average, and choose the layer.

        Raises:
            ConfigError: The model has no such layer.
            ModelError: The route does not keep a query in one row, or the model is not a simple stack of blocks.
            ContextError: A text cannot follow a separately encoded prefix (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        if lm.route.name not in _ONE_ROW:
            raise ModelError(
                f"{lm.name} is read by the route {lm.route.name!r}, which spreads a query over several rows, so a task "
                f"vector cannot be patched in. Choose a model that is read by the route {' or '.join(_ONE_ROW)}."
            )
        blocks = find_blocks(lm.model, lm.anatomy).names
        if self.layer is not None and self.layer >= len(blocks):
            raise ConfigError(f"layer {self.layer} does not exist: {lm.name} has layers 0 to {len(blocks) - 1}.")
        vectors, icl = self._means(lm, demonstrations, blocks)
        zero_shot = ZeroShot(self.opening).adapt(lm, demonstrations)

        def patched(layer: int, **more: Any) -> PatchedModel:
            return PatchedModel(self.name, zero_shot, layer, blocks[layer], vectors[layer], **more)

        searched = self.texts[: self.search_texts] if self.layer is None else ()
        agreement: list[float] = []
        divergence: list[float] = []
        for layer in range(len(blocks) if searched else 0):
            scores = answer_log_probabilities(patched(layer, cost=zero_shot.cost), lm, searched)
            agreement.append(float(label_agreement(scores, icl).mean()))
            divergence.append(float(kl_divergence(icl, scores).mean()))
        chosen = self.layer
        if chosen is None:
            chosen = min(range(len(blocks)), key=lambda layer: (-agreement[layer], divergence[layer], layer))
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return patched(chosen, cost=cost, agreement=tuple(agreement), divergence=tuple(divergence))

    def _means(
        self, lm: LanguageModel, demonstrations: EncodedDemonstrations, blocks: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """Mean outputs over all texts, `(layer, d_model)`, and the scores of answers to the first `search_texts`."""
        in_context = InContext().adapt(lm, demonstrations)
        total: dict[int, Tensor] = {}

        def add(rows: Tensor, layer: int, x: Any, out: Tensor) -> None:
            # In double precision, so that the mean does not depend on how texts are grouped.
            total[layer] = total.get(layer, 0.0) + out[0, rows.to(out.device)].double().sum(0)

        n_answers = max(len(text.answers) for text in self.texts)
        scores = torch.full((len(self.texts), n_answers), -torch.inf, dtype=torch.float64)
        lm.require_usable_prefix(in_context.n_prefix, self.texts)
        for indices in lm.groups(self.texts):
            rows = _predicting_rows(lay_out([self.texts[i] for i in indices], device=lm.device))
            with Hooks(lm.model) as hooks:
                hooks.after_each(blocks, partial(add, rows))
                readings = in_context.read_group(self.texts, indices)
            group_scores = readings.log_probabilities
            scores[list(indices), : group_scores.shape[1]] = group_scores.double().cpu()
        mean = torch.stack([total[layer].to(lm.device) for layer in range(len(blocks))]) / len(self.texts)
        searched = scores[: self.search_texts]
        # As many columns as if these texts were read by themselves.
        width = max(len(text.answers) for text in self.texts[: self.search_texts])
        return mean.to(lm.model.dtype), searched[:, :width]

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Prefix and opening, all texts after the prefix, and the texts of the search after the opening."""
        prefix, opening = len(demonstrations.prefix), len(self.opening)
        work = encode(prefix) + encode(opening) + read(self.texts, prefix) + short_forwards(FINDING_BLOCKS)
        if self.layer is None:
            work += read(self.texts[: self.search_texts], opening) * shape.n_layers
        return work


@dataclass(frozen=True)
class PatchedModel:
    """The zero-shot model with one block's output replaced by a vector at the token that predicts the label."""

    learner: str
    zero_shot: AdaptedModel = field(repr=False)
    layer: int
    block: str
    """Name of that layer's module."""
    vector: Tensor = field(repr=False)
    """`(d_model,)`, in the model's dtype."""
    cost: AdaptationCost
    agreement: tuple[float, ...] = ()
    """For each layer, the share of texts with the same answer as in-context learning; empty if the layer was given."""
    divergence: tuple[float, ...] = ()
    """For each layer, mean KL(ICL || patched) between distributions over the answers, nats."""

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        return self.zero_shot.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries with the block's output replaced."""
        lm = self.zero_shot.lm
        lm.require_usable_prefix(self.n_prefix, [queries[i] for i in indices], probe)
        rows = _predicting_rows(lay_out([queries[i] for i in indices], probe, lm.device))

        def replace(x: Any, out: Tensor) -> Tensor:
            hidden = out.clone()
            hidden[0, rows.to(hidden.device)] = self.vector.to(hidden)
            return hidden

        with Hooks(lm.model) as hooks:
            hooks.after(self.block, replace)
            return self.zero_shot.read_group(queries, indices, want, probe)


def _predicting_rows(layout: Layout) -> Tensor:
    """Position in the row of the token that predicts each query's label, `(example,)`."""
    return layout.scored_rows[layout.first_scored]
