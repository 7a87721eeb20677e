"""One hidden state that stands for a task: what a block hands on where the label is predicted, put into zero-shot."""

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
"""Routes whose forward is one row laid out by `lay_out`, so that the row of a token is known."""


@dataclass(frozen=True)
class TaskVector:
    """The zero-shot model with one block's output replaced, at the token that predicts the label, by a mean.

    The mean is that of the same block's output, at the same token, over texts that stand behind the demonstrations.
    Everything behind the block follows: the token's own later layers, and the tokens of longer answers, which see it.

    Source:
        Task vector theta, arXiv:2310.15916, section 2 and 3: the hidden state behind a layer at the separator that
        precedes the answer, patched into a forward without demonstrations. There theta comes from one dummy query a
        prompt and the layer from the accuracy on a labelled development set; here theta is a mean over unlabelled
        texts and the layer is the one that agrees most with in-context learning's answers, so no label is used.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...]
    """Unlabelled calibration texts, with the task's answers."""
    layer: int | None = None
    """Block whose output is replaced, 0 first; None for the one that agrees most with in-context learning."""
    search_texts: int = 32
    """Most texts on which that layer is chosen; the mean is taken over all texts."""
    name: str = "fold"

    def __post_init__(self) -> None:
        mistakes = []
        if not self.texts:
            mistakes.append("a task vector is a mean over calibration texts, and texts is empty: give at least one")
        elif self.layer is None and not all(text.answers for text in self.texts[: max(self.search_texts, 0)]):
            mistakes.append("texts without answers cannot choose a layer: give them the task's answers, or a layer")
        if self.layer is not None and self.layer < 0:
            mistakes.append(f"layer {self.layer} must be 0 (the first block) or more")
        if self.search_texts < 1:
            mistakes.append(f"search_texts {self.search_texts} must be at least 1")
        if mistakes:
            raise ConfigError("; ".join(mistakes))

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> "PatchedModel":
        """Read the texts behind the demonstrations, average, and choose the layer.

        Raises:
            ConfigError: The model has no such layer.
            ModelError: The route does not keep queries in one row, or the model is no plain stack of blocks.
            ContextError: A text cannot follow a separately encoded prefix (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        if lm.route.name not in _ONE_ROW:
            raise ModelError(
                f"{lm.name} is read by the route {lm.route.name!r}, which spreads a query over several rows, so a task "
                f"vector cannot be put in its place. Choose a model that is read by {' or '.join(_ONE_ROW)}."
            )
        blocks = find_blocks(lm.model, lm.anatomy).names
        if self.layer is not None and self.layer >= len(blocks):
            raise ConfigError(f"layer {self.layer}: {lm.name} has the layers 0 to {len(blocks) - 1}. Choose one.")
        vectors, icl = self._means(lm, demonstrations, blocks)
        zero_shot = ZeroShot(self.opening).adapt(lm, demonstrations)

        def patched(layer: int, **more: Any) -> PatchedModel:
            return PatchedModel(self.name, zero_shot, layer, blocks[layer], vectors[layer], **more)

        searched = self.texts[: self.search_texts] if self.layer is None else ()
        agreement: list[float] = []
        divergence: list[float] = []
        for layer in range(len(blocks) if searched else 0):
            found = answer_log_probabilities(patched(layer, cost=zero_shot.cost), lm, searched)
            agreement.append(float(label_agreement(found, icl).mean()))
            divergence.append(float(kl_divergence(icl, found).mean()))
        chosen = self.layer
        if chosen is None:
            chosen = min(range(len(blocks)), key=lambda layer: (-agreement[layer], divergence[layer], layer))
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return patched(chosen, cost=cost, agreement=tuple(agreement), divergence=tuple(divergence))

    def _means(
        self, lm: LanguageModel, demonstrations: EncodedDemonstrations, blocks: tuple[str, ...]
    ) -> tuple[Tensor, Tensor]:
        """Mean outputs `(layer, d_model)` over all texts, and the answers' scores for those that choose the layer."""
        in_context = InContext().adapt(lm, demonstrations)
        total: dict[int, Tensor] = {}

        def add(rows: Tensor, layer: int, x: Any, out: Tensor) -> None:
            # Sums over many texts in double precision, so that the mean does not depend on how they are grouped.
            total[layer] = total.get(layer, 0.0) + out[0, rows.to(out.device)].double().sum(0)

        n_answers = max(len(text.answers) for text in self.texts)
        scores = torch.full((len(self.texts), n_answers), -torch.inf, dtype=torch.float64)
        lm.require_usable_prefix(in_context.n_prefix, self.texts)
        for indices in lm.groups(self.texts):
            rows = _predicting_rows(lay_out([self.texts[i] for i in indices], device=lm.device))
            with Hooks(lm.model) as hooks:
                hooks.after_each(blocks, partial(add, rows))
                readings = in_context.read_group(self.texts, indices)
            found = readings.log_probabilities
            scores[list(indices), : found.shape[1]] = found.double().cpu()
        mean = torch.stack([total[layer].to(lm.device) for layer in range(len(blocks))]) / len(self.texts)
        searched = scores[: self.search_texts]
        # As wide as the longest list of answers among those, as anyone who reads them alone will see it.
        width = max(len(text.answers) for text in self.texts[: self.search_texts])
        return mean.to(lm.model.dtype), searched[:, :width]

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Prefix and opening, every text behind the prefix, and the texts of the search behind the opening."""
        prefix, opening = len(demonstrations.prefix), len(self.opening)
        work = encode(prefix) + encode(opening) + read(self.texts, prefix) + short_forwards(FINDING_BLOCKS)
        if self.layer is None:
            work += read(self.texts[: self.search_texts], opening) * shape.n_layers
        return work


@dataclass(frozen=True)
class PatchedModel:
    """The zero-shot model with a vector in the place of one block's output at the token that predicts the label."""

    learner: str
    zero_shot: AdaptedModel = field(repr=False)
    layer: int
    block: str
    """Name of that layer's module."""
    vector: Tensor = field(repr=False)
    """`(d_model,)`, in the model's dtype."""
    cost: AdaptationCost
    agreement: tuple[float, ...] = ()
    """For each layer, the share of texts that its vector answers as in-context learning does; empty if none chose."""
    divergence: tuple[float, ...] = ()
    """For each layer, mean KL(ICL || patched) between distributions over the answers, nats."""

    @property
    def n_prefix(self) -> int:
        """Tokens that stand before every query."""
        return self.zero_shot.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries, the block's output replaced for as long as it takes."""
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
    """Row position of the token that predicts each query's label, `(example,)`, wherever the probe is."""
    return layout.scored_rows[layout.first_scored]
