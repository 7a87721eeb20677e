"""A context as one vector or one matrix a layer: the mean over many tokens of what it does to each."""

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dualform.errors import ConfigError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import FINDING_MLP_INPUTS, ThoughtMatrices, Work, encode, read, short_forwards
from dualform.models.editing.blockwise import require_editable_outputs
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import weight_of
from dualform.models.reading.cached import NaiveRoute, RepeatedRoute
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel
from dualform.models.reading.layout import Layout, Query, lay_out
from dualform.models.reading.route import EncodedPrefix
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.mlp_inputs import MLPInputs, find_mlp_inputs, hooked_mlps
from dualform.ops.folding import rank_one_sum
from dualform.ops.rounding import at_least_float32

ThoughtForm = Literal["vector", "matrix"]
"""A bias for attention's output alone, or also a change of the MLP's first matrices."""


@dataclass(frozen=True)
class Thought:
    """Ordinary weights for what demonstrations do to unlabelled texts on average: two forwards a text, no gradients.

    Every token of every text counts alike, and every layer is seen in the unchanged model, so that what one layer
    already brings about is not taken off what the next one gets.

    In the form `matrix` the vector reaches the MLP as well, through the residual stream, beside the MLP's own change:
    the mean part of the change is counted twice there, but in blocks whose attention and MLP stand side by side.

    Source:
        arXiv:2510.08734, thought vectors and thought matrices. There the vector stands behind the MLP (a bias of its
        last matrix); here at W_O, where attention makes it and where norms behind the MLP do not rescale it.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...]
    """Unlabelled texts to see the demonstrations' effect on; only their prompts are read."""
    form: ThoughtForm = "vector"
    strength: float = 1.0
    """Factor of what the form is named after: of the vector, or of the matrix (whose vector then keeps factor 1).
    Were the MLP's inputs spread over all directions alike, d_model would make the matrix the best linear map; real
    inputs share directions, and factors near it overshoot."""
    name: str = "fold"

    def __post_init__(self) -> None:
        if self.form not in get_args(ThoughtForm):
            raise ConfigError(f"form {self.form!r} is unknown: choose one of {', '.join(get_args(ThoughtForm))}")
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength {self.strength} must be a finite number, such as 1")
        if not self.texts:
            raise ConfigError("texts are empty: a thought is a mean over tokens. Give at least one unlabelled text.")

    @torch.no_grad()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Read every text with and without the demonstrations, and take means.

        Raises:
            ModelError: W_O of a layer is not known; for the form `matrix` also where it is unknown what reads the MLPs'
                inputs (`find_mlp_inputs`).
            ContextError: A text cannot follow a separately encoded prefix (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        outputs = _output_linears(lm)
        inputs = find_mlp_inputs(lm.model, lm.anatomy) if self.form == "matrix" else ()
        prompted, opening = lm.encode(demonstrations.prefix), lm.encode(self.opening)
        means = _Means()
        texts = [Query(text.prompt, ()) for text in self.texts]
        for indices in lm.groups(texts):
            chosen = [texts[i] for i in indices]
            means.take_in(_Reader(lm, inputs, outputs, chosen, lay_out(chosen, device=lm.device)), prompted, opening)
        deltas = tuple(self._deltas(lm, outputs, inputs, means))
        # Even the opening token's keys and values change with the weights.
        with applied(lm.model, deltas):
            prefix = lm.encode(self.opening)
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return AdaptedModel(self.name, lm, prefix, cost, deltas)

    def _deltas(
        self, lm: LanguageModel, outputs: tuple[str, ...], inputs: tuple[MLPInputs, ...], means: "_Means"
    ) -> Iterator[WeightDelta]:
        factor = self.strength if self.form == "vector" else 1.0
        for layer, W_O in enumerate(outputs):
            yield WeightDelta(f"{W_O}.bias", 0, None, factor * means.vector(layer))
        for layer, found in enumerate(inputs):
            matrix = self.strength * means.matrix(layer)
            for name in found.linears:
                module = lm.model.get_submodule(name)
                weight = weight_of(lm.model, f"{name}.weight").float().to(matrix.device)
                transposed = row_axis(module) == 1
                delta = matrix.mT @ weight if transposed else weight @ matrix
                yield WeightDelta(f"{name}.weight", row_axis(module), None, delta)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Both prefixes, every text behind either of them, and the opening once more with the new weights."""
        texts = [Query(text.prompt, ()) for text in self.texts]
        prompted, opening = len(demonstrations.prefix), len(self.opening)
        work = encode(prompted) + encode(opening) * 2 + read(texts, prompted) + read(texts, opening)
        if self.form == "matrix":
            tokens = sum(len(text.prompt) for text in self.texts)
            work += Work.of(ThoughtMatrices(tokens)) + short_forwards(FINDING_MLP_INPUTS)
        return work


class _Means:
    """Sums over tokens, by layer; memory does not depend on how many there are."""

    def __init__(self) -> None:
        self._outputs: dict[int, Tensor] = {}
        self._products: dict[int, Tensor] = {}
        self._tokens = 0

    def vector(self, layer: int) -> Tensor:
        """Mean change of attention's output, `(d_model,)`, float32."""
        return (self._outputs[layer] / self._tokens).float()

    def matrix(self, layer: int) -> Tensor:
        """Thought matrix of the MLP's input, `(d_model, d_model)`, float32."""
        return (self._products[layer] / self._tokens).float()

    def take_in(self, reader: "_Reader", prompted: EncodedPrefix, opening: EncodedPrefix) -> None:
        """One group of texts, read behind either prefix."""
        # The slow routes need several forwards for a group, so that each layer has a queue.
        seen: dict[tuple[str, int], list[Tensor]] = {}

        def keep(what: str, layer: int, states: Tensor) -> None:
            seen.setdefault((what, layer), []).append(states)

        def compare(what: str, layer: int, states: Tensor) -> None:
            change = seen[what, layer].pop(0) - states
            if what == "output":
                self._add(self._outputs, layer, change.sum(dim=0))
            else:
                self._add(self._products, layer, rank_one_sum(states, change))

        reader.read(prompted, keep)
        reader.read(opening, compare)
        self._tokens += reader.n_tokens

    @staticmethod
    def _add(sums: dict[int, Tensor], layer: int, part: Tensor) -> None:
        sums[layer] = sums[layer] + part if layer in sums else part


See = Callable[[str, int, Tensor], None]
"""Receives `output` (attention's, behind W_O) or `input` (the MLP's), layer, and states `(token, d_model)`, float32 at
least, of the texts' own tokens."""


@dataclass(frozen=True)
class _Reader:
    """Reads one group of texts and shows what they look like inside, real tokens only."""

    lm: LanguageModel
    inputs: tuple[MLPInputs, ...]
    outputs: tuple[str, ...]
    texts: list[Query]
    layout: Layout

    @property
    def n_tokens(self) -> int:
        return sum(len(text.prompt) for text in self.texts)

    def read(self, prefix: EncodedPrefix, see: See) -> None:
        self.lm.require_usable_prefix(prefix.length, self.texts)
        first = prefix.length if isinstance(self.lm.route, NaiveRoute) else 0
        batch = len(self.texts) if isinstance(self.lm.route, RepeatedRoute) else 1

        def own(states: Tensor) -> Tensor:
            # Some families flatten batch and position; a batch of several rows is padded behind each text.
            rows = states.reshape(batch, -1, states.shape[-1])[:, first:]
            rows = rows[self.layout.own] if batch > 1 else rows[0]
            return at_least_float32(rows)

        def at_linear(layer: int, name: str, a: Tensor, out: Tensor) -> None:
            if name == self.inputs[layer].linears[0]:
                see("input", layer, own(a))

        def at_block(layer: int, u: Tensor, out: Tensor) -> None:
            pass

        with Hooks(self.lm.model) as hooks, hooked_mlps(self.lm.model, self.inputs, at_linear, at_block):
            hooks.after_each(self.outputs, lambda layer, x, out: see("output", layer, own(out)))
            self.lm.route.read(prefix, self.texts, self.layout, NO_RECORDING)


def _output_linears(lm: LanguageModel) -> tuple[str, ...]:
    require_editable_outputs(lm)
    return tuple(layer.W_O for layer in lm.anatomy.layers if layer.W_O is not None)
