"""A context as a rank-one weight change for each token: exact, but valid for one query only.

Demonstrations change the vector with which a token enters a block's MLP. `ops.folding` computes the change of the MLP's
first matrices that has the same effect, and the rest is added to the residual stream. Changed in this way for every
block and token, the zero-shot forward gives the prompted one. This is an identity: it tests that the model's parts are
understood, and is no evidence of learning.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import FINDING_MLP_INPUTS, Work, encode, short_forwards
from dualform.models.loading.offloading import weight_of
from dualform.models.reading.cached import NaiveRoute
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Layout, Probe, Query, lay_out
from dualform.models.reading.route import EncodedPrefix
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.mlp_inputs import MLPInputs, find_mlp_inputs, hooked_mlps
from dualform.ops.folding import rank_one_factors


@dataclass(frozen=True)
class RankOne:
    """Zero-shot with the demonstrations' effect on each token written into the MLP weights that read it.

    Source:
        arXiv:2507.16003, the theorem on contextual blocks and its extension to skip connections: `dW = (W da) a^T /
        ||a||^2` in the MLP's first matrices, and the context's change of the residual stream added after the MLP. The
        paper's block has no norms; here `a` is the actual input of the matrices, after any norm. The paper treats the
        last token; here every token of the query has its own change, so that attention in later blocks is that of the
        prompted model too.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    name: str = "fold"

    @torch.no_grad()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> "RankOneModel":
        """Encode demonstrations and opening; weight changes are computed when a query is read.

        Raises:
            ModelError: The linears that read the MLPs' inputs were not found (`find_mlp_inputs`).
        """
        start = time.perf_counter()
        inputs = find_mlp_inputs(lm.model, lm.anatomy)
        prompted, opening = lm.encode(demonstrations.prefix), lm.encode(self.opening)
        cost = AdaptationCost.of(self.work(lm.shape, demonstrations), lm.shape, time.perf_counter() - start)
        return RankOneModel(self.name, lm, prompted, opening, inputs, cost)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Reading demonstrations and opening once each."""
        return encode(len(demonstrations.prefix)) + encode(len(self.opening)) + short_forwards(FINDING_MLP_INPUTS)


@dataclass(frozen=True)
class RankOneModel:
    """The zero-shot model with a weight change for every token of a query.

    Each query is read twice: after the demonstrations to compute the changes, and after the opening to apply them.
    """

    learner: str
    lm: LanguageModel
    prompted: EncodedPrefix
    """Opening and demonstrations."""
    opening: EncodedPrefix
    """The prefix of zero-shot."""
    inputs: tuple[MLPInputs, ...]
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query when changes are computed; the changed model reads only the opening."""
        return self.prompted.length

    @torch.no_grad()
    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries; the trace is that of the changed zero-shot forward.

        Raises:
            ContextError: Demonstrations and queries together exceed a switch length.
        """
        chosen = [queries[i] for i in indices]
        self.lm.require_usable_prefix(self.prompted.length, chosen, probe)
        context = self._in_context(chosen, lay_out(chosen, probe, self.lm.device))
        with self._changed(context):
            return self.lm.read_group(self.opening, queries, indices, want, probe)

    def _in_context(self, queries: list[Query], layout: Layout) -> "_Context":
        """Every block's `a` and `u` at the queries' tokens after the demonstrations."""
        context = _Context(tuple([] for _ in self.inputs), tuple([] for _ in self.inputs))
        first = self._n_before(self.prompted)

        def keep_input(layer: int, name: str, a: Tensor, out: Tensor) -> None:
            if name == self.inputs[layer].linears[0]:
                context.a[layer].append(a[:, first:])

        def keep_residual(layer: int, u: Tensor, out: Tensor) -> None:
            context.u[layer].append(u[:, first:])

        with hooked_mlps(self.lm.model, self.inputs, keep_input, keep_residual):
            self.lm.route.read(self.prompted, queries, layout, NO_RECORDING)
        return context

    @contextmanager
    def _changed(self, context: "_Context") -> Iterator[None]:
        """Apply each token's weight change inside the block; entries of `context` are consumed, one per forward."""
        first = self._n_before(self.opening)

        def changed(layer: int, name: str, a: Tensor, out: Tensor) -> Tensor:
            own = a[:, first:]
            module = self.lm.model.get_submodule(name)
            weight = weight_of(self.lm.model, f"{name}.weight")
            W = weight.mT if row_axis(module) else weight
            left, right = rank_one_factors(W, own, context.a[layer][0] - own)
            return _added(out, first, left * (right * own).sum(-1, keepdim=True))

        def changed_output(layer: int, u: Tensor, out: Tensor) -> Tensor:
            context.a[layer].pop(0)
            return _added(out, first, context.u[layer].pop(0) - u[:, first:])

        with hooked_mlps(self.lm.model, self.inputs, changed, changed_output):
            yield

    def _n_before(self, prefix: EncodedPrefix) -> int:
        """Number of prefix positions in a forward: 0 unless the naive route reads the prefix with every query."""
        return prefix.length if isinstance(self.lm.route, NaiveRoute) else 0


@dataclass(frozen=True)
class _Context:
    """Activations by layer, with one entry per forward (slow routes need several forwards for a group)."""

    a: tuple[list[Tensor], ...] = field(repr=False)
    """The MLP's input, `(batch, own_pos, d_model)`."""
    u: tuple[list[Tensor], ...] = field(repr=False)
    """The residual stream at the MLP, `(batch, own_pos, d_model)`."""


def _added(states: Tensor, first: int, change: Tensor) -> Tensor:
    """States `(batch, pos, d)` with a change added from position `first` on."""
    return torch.cat([states[:, :first], states[:, first:] + change], dim=1) if first else states + change
