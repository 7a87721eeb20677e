"""Thought vectors and matrices: the mean effect of a context on many tokens, as one vector or matrix per layer."""

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
"""A bias for the attention output only, or also a change of the MLP's first matrices."""


@dataclass(frozen=True)
class Thought:
    """The mean effect of demonstrations on unlabelled texts as weights, from two forwards per text without gradients.

    Every token of every text counts equally. Every layer is measured in the unchanged model, so the effect of changes
    in earlier layers is not subtracted.

    With the form `matrix`, the vector also reaches the MLP through the residual stream, in addition to the MLP's own
    change, so the mean change is counted twice there (except in blocks with parallel attention and MLP).

    Source:
        arXiv:2510.08734, thought vectors and thought matrices. In the paper the vector is added after the MLP (a bias
        of its last matrix); here it is added at W_O, where norms after the MLP do not rescale it.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    texts: tuple[Query, ...]
    """Unlabelled texts on which the effect is measured; only their prompts are read."""
    form: ThoughtForm = "vector"
    strength: float = 1.0
    """Factor of the vector or, with the form `matrix`, of the matrix only. If the MLP's inputs were isotropic, the
    factor d_model would make the matrix the best linear map; for real inputs it is too large."""
    name: str = "fold"

    def __post_init__(self) -> None:
        if self.form not in get_args(ThoughtForm):
            raise ConfigError(f"form {self.form!r} is unknown: choose one of {', '.join(get_args(ThoughtForm))}")
        if not math.isfinite(self.strength):
            raise ConfigError(f"strength {self.strength} must be a finite number, such as 1")
        if not self.texts:
            raise ConfigError(
                "texts is empty, but the effect is averaged over texts. Give at least one unlabelled text."
            )

    @torch.no_grad()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Read every text with and without the demonstrations, and average the differences.

        Raises:
            ModelError: W_O of a layer was not found; for the form `matrix`, also if the linears that read the MLPs'
                inputs were not found (`find_mlp_inputs`).
            ContextError: A text cannot follow a separately encoded prefix (`LanguageModel.require_usable_prefix`).
        """
        start = time.perf_counter()
        outputs = _output_linears(lm)
        inputs = find_mlp_inputs(lm.model, lm.anatomy) if self.form == "matrix" else ()
        prompted, opening = lm.encode(demonstrations.prefix), lm.encode(self.opening)
        means = _Means()
        texts = [Query(text.prompt, ()) for text in self.texts]
        for indices in lm.groups(texts):
            group = [texts[i] for i in indices]
            means.add_group(
                _TextReader(lm, inputs, outputs, group, lay_out(group, device=lm.device)), prompted, opening
            )
        deltas = tuple(self._deltas(lm, outputs, inputs, means))
        # Keys and values of the opening depend on the weights.
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
        for layer, mlp_inputs in enumerate(inputs):
            matrix = self.strength * means.matrix(layer)
            for name in mlp_inputs.linears:
                module = lm.model.get_submodule(name)
                weight = weight_of(lm.model, f"{name}.weight").float().to(matrix.device)
                transposed = row_axis(module) == 1
                delta = matrix.mT @ weight if transposed else weight @ matrix
                yield WeightDelta(f"{name}.weight", row_axis(module), None, delta)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Both prefixes, every text after each of them, and the opening once more with the new weights."""
        texts = [Query(text.prompt, ()) for text in self.texts]
        prompted, opening = len(demonstrations.prefix), len(self.opening)
        work = encode(prompted) + encode(opening) * 2 + read(texts, prompted) + read(texts, opening)
        if self.form == "matrix":
            tokens = sum(len(text.prompt) for text in self.texts)
            work += Work.of(ThoughtMatrices(tokens)) + short_forwards(FINDING_MLP_INPUTS)
        return work


class _Means:
    """Running means over tokens, by layer; memory does not depend on the number of tokens."""

    def __init__(self) -> None:
        self._outputs: dict[int, Tensor] = {}
        self._products: dict[int, Tensor] = {}
        self._tokens = 0

    def vector(self, layer: int) -> Tensor:
        """Mean change of the attention output, `(d_model,)`, float32."""
        return (self._outputs[layer] / self._tokens).float()

    def matrix(self, layer: int) -> Tensor:
        """Thought matrix of the MLP's input, `(d_model, d_model)`, float32."""
        return (self._products[layer] / self._tokens).float()

    def add_group(self, reader: "_TextReader", prompted: EncodedPrefix, opening: EncodedPrefix) -> None:
        """Read one group of texts after each prefix, and add the differences."""
        # Queues, because slow routes need several forwards for a group.
        queues: dict[tuple[str, int], list[Tensor]] = {}

        def record(kind: str, layer: int, states: Tensor) -> None:
            queues.setdefault((kind, layer), []).append(states)

        def compare(kind: str, layer: int, states: Tensor) -> None:
            change = queues[kind, layer].pop(0) - states
            if kind == "output":
                self._add(self._outputs, layer, change.sum(dim=0))
            else:
                self._add(self._products, layer, rank_one_sum(states, change))

        reader.read(prompted, record)
        reader.read(opening, compare)
        self._tokens += reader.n_tokens

    @staticmethod
    def _add(sums: dict[int, Tensor], layer: int, part: Tensor) -> None:
        sums[layer] = sums[layer] + part if layer in sums else part


StateCallback = Callable[[str, int, Tensor], None]
"""Called with `output` (of attention, after W_O) or `input` (of the MLP), the layer's index, and the states of the
texts' tokens, `(token, d_model)`, at least float32."""


@dataclass(frozen=True)
class _TextReader:
    """Reads one group of texts and passes their activations to a callback, without padding."""

    lm: LanguageModel
    inputs: tuple[MLPInputs, ...]
    outputs: tuple[str, ...]
    texts: list[Query]
    layout: Layout

    @property
    def n_tokens(self) -> int:
        return sum(len(text.prompt) for text in self.texts)

    def read(self, prefix: EncodedPrefix, callback: StateCallback) -> None:
        self.lm.require_usable_prefix(prefix.length, self.texts)
        first = prefix.length if isinstance(self.lm.route, NaiveRoute) else 0
        batch = len(self.texts) if isinstance(self.lm.route, RepeatedRoute) else 1

        def own(states: Tensor) -> Tensor:
            # Some families flatten batch and position; rows of a batch are padded after each text.
            rows = states.reshape(batch, -1, states.shape[-1])[:, first:]
            rows = rows[self.layout.own] if batch > 1 else rows[0]
            return at_least_float32(rows)

        def at_linear(layer: int, name: str, a: Tensor, out: Tensor) -> None:
            if name == self.inputs[layer].linears[0]:
                callback("input", layer, own(a))

        def at_block(layer: int, u: Tensor, out: Tensor) -> None:
            pass

        with Hooks(self.lm.model) as hooks, hooked_mlps(self.lm.model, self.inputs, at_linear, at_block):
            hooks.after_each(self.outputs, lambda layer, x, out: callback("output", layer, own(out)))
            self.lm.route.read(prefix, self.texts, self.layout, NO_RECORDING)


def _output_linears(lm: LanguageModel) -> tuple[str, ...]:
    require_editable_outputs(lm)
    return tuple(layer.W_O for layer in lm.anatomy.layers if layer.W_O is not None)
