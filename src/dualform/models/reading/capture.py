"""Internal activations of a model at one token per query (the probe), recorded while the forward runs.

Only the rows that a measure needs are kept, never a full score matrix. Recording does not change the model's outputs,
bit for bit.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from itertools import count
from typing import Any

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.hooks import Hooks
from dualform.models.reading.attention import hidden
from dualform.models.structure.anatomy import Anatomy
from dualform.ops.rounding import at_least_float32


@dataclass(frozen=True)
class Recording:
    """What to record at the probe of every query, in every layer and head."""

    output: bool = False
    """Attention output after W_O, before the residual is added."""
    scores: bool = False
    """Pre-softmax scores from the probe to the query's own tokens."""
    demo_scores: bool = False
    """Pre-softmax scores from the probe to the tokens of the shared prefix."""
    q: bool = False
    """Attention queries at the probe."""
    head_output: bool = False
    """Input of W_O at the probe by head, after the gate or norm that some families apply to the heads' output."""
    mixed: bool = False
    """Values weighted by attention, by head, before that gate or norm."""
    update: bool = False
    """sum_i v_i k_i^T over the query's own tokens: W_ZSL of linear attention."""
    pooled: bool = False
    """Mean over the query's own tokens, up to the probe, of the hidden states after each layer's block."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Trace:
    """Internal activations of a model for some queries; a field that was not recorded is None.

    The axis `seen_pos` counts the query's own tokens up to the probe, padded at the end. If layers differ in width or
    number of heads, the smaller ones are padded with zeros to the largest; `sizes` holds their real sizes.
    """

    mask: Tensor
    """True for real tokens, `(example, seen_pos)`."""
    output: Tensor | None = None
    """`(example, layer, d_model)`."""
    scores: Tensor | None = None
    """`(example, layer, head, seen_pos)`; values at padding are undefined."""
    demo_scores: Tensor | None = None
    """`(example, layer, head, prefix_pos)`; -inf where a sliding window hides the token."""
    q: Tensor | None = None
    """`(example, layer, head, d_head)`, as multiplied with the keys (after rotary embedding)."""
    head_output: Tensor | None = None
    """`(example, layer, head, d_head)`."""
    mixed: Tensor | None = None
    """`(example, layer, head, d_head)`."""
    update: Tensor | None = None
    """`(example, layer, kv_head, d_v, d_k)`."""
    pooled: Tensor | None = None
    """`(example, layer, d_model)`, at least float32."""
    sinks: Tensor | None = None
    """Logits in the softmax's denominator that belong to no token, `(layer, head)`, -inf for a layer without; None
    if no layer has sinks or no scores were recorded."""
    sizes: tuple["LayerSize", ...] | None = None
    """Each layer's real sizes; None if all layers have the same."""

    def by_example(self) -> dict[str, Tensor]:
        """The recorded fields and the mask by name: all tensors whose first axis is `example`."""
        names = ("mask", *(field.name for field in fields(Recording)))
        return {name: record for name in names if (record := getattr(self, name)) is not None}

    def real_heads(self, n: int, of_keys: bool = False) -> Tensor | None:
        """True for heads that are not padding, `(layer, n)`; None if all are real. `of_keys` counts key-value heads."""
        if self.sizes is None:
            return None
        counts = [size.n_kv_heads if of_keys else size.n_heads for size in self.sizes]
        return torch.arange(n, device=self.mask.device) < torch.tensor(counts, device=self.mask.device)[:, None]


@dataclass(frozen=True)
class LayerSize:
    """Sizes of one layer's attention."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    d_value: int


@dataclass(frozen=True)
class ProbeIndex:
    """Positions of the probes in one forward."""

    batch: Tensor
    """Batch row, `(example,)`."""
    position: Tensor
    """Position on the query axis, `(example,)`."""
    columns: Tensor
    """Positions of the query's own tokens on the key axis, `(example, seen_pos)`."""
    n_prefix: int
    """Number of keys before them that belong to the prefix."""
    own: Tensor | None = None
    """Positions of the query's own tokens on the query axis, `(example, seen_pos)`; None if they equal `columns`."""

    def to(self, device: torch.device) -> "ProbeIndex":
        """The same on another device."""
        return replace(
            self,
            batch=self.batch.to(device),
            position=self.position.to(device),
            columns=self.columns.to(device),
            own=None if self.own is None else self.own.to(device),
        )


class Recorder:
    """Collects one forward's records, layer by layer, into a `Trace`."""

    def __init__(self, anatomy: Anatomy, want: Recording, mask: Tensor, index: ProbeIndex) -> None:
        self._anatomy = anatomy
        self._want = want
        self._mask = mask
        self._index = index
        self._batch = 1
        self._records: dict[str, dict[int, Tensor]] = {
            field.name: {} for field in fields(want) if getattr(want, field.name)
        }
        self._sinks: dict[int, Tensor] = {}

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[None]:
        """Hook every W_O until the block ends, also if it raises.

        Raises:
            ModelError: The model has no attention layer that can be recorded, attention outputs are requested and W_O
                of some layer is unknown, or hidden states are requested and some layer is in no list of blocks.
        """
        if not self._anatomy.layers:
            self._anatomy.require_layers("recording")
        if self._want.output and (missing := self._anatomy.missing_projections("W_O")):
            raise ModelError(
                f"attention outputs cannot be recorded, which needs W_O of every layer: {'; '.join(missing)}. Choose "
                "another model."
            )
        # One linear may be W_O of several layers and then runs once for each.
        at_linear: dict[str, dict[int, int]] = {}
        if self._want.output or self._want.head_output:
            for i, layer in enumerate(self._anatomy.layers):
                if layer.W_O is not None:
                    at_linear.setdefault(layer.W_O, {})[layer.output_use] = i
        at_block: dict[str, list[int]] = {}
        if self._want.pooled:
            # Imported here to avoid a circular import.
            from dualform.models.structure.blocks import enclosing_blocks

            for i, name in enumerate(enclosing_blocks(model, self._anatomy)):
                at_block.setdefault(name, []).append(i)
        with Hooks(model) as hooks:
            hooks.before_call(model, self._begin)
            for name, runs in at_block.items():
                hooks.after(name, partial(self._keep_pooled, name, iter(runs)))
            for name, layers in at_linear.items():
                hooks.after(name, partial(self._keep_outputs, layers, count()))
            yield

    def _begin(self, args: Any, kwargs: Any) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        assert isinstance(ids, Tensor)
        self._batch = ids.shape[0]

    def _keep_outputs(self, layers: dict[int, int], uses: Iterator[int], x: Tensor, out: Tensor) -> None:
        layer = layers.get(next(uses))
        if layer is None:
            return
        if self._want.output:
            self._keep("output", layer, self._at_probe(out))
        if self._want.head_output:
            inputs = self._at_probe(x)
            self._keep("head_output", layer, inputs.view(len(inputs), self._anatomy.layers[layer].n_heads, -1))

    def _keep_pooled(self, block: str, runs: Iterator[int], x: Tensor, out: Tensor) -> None:
        layer = next(runs, None)
        if layer is None:
            return
        if out.dim() not in (2, 3):
            raise ModelError(
                f"{block} returns hidden states of shape {tuple(out.shape)}; expected one vector per token (batch, "
                "pos, d_model), so they cannot be averaged over tokens. Choose another model."
            )
        index = self._index.to(out.device)
        own = index.columns if index.own is None else index.own
        states = at_least_float32(self._rows(out)[index.batch[:, None], own])
        mask = self._mask.to(out.device)[..., None]
        self._keep("pooled", layer, states.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1))

    def _at_probe(self, states: Tensor) -> Tensor:
        index = self._index.to(states.device)
        return self._rows(states)[index.batch, index.position]

    def _rows(self, states: Tensor) -> Tensor:
        # Some families (Falcon, older OPT) flatten batch and position before W_O.
        return states if states.dim() == 3 else states.reshape(self._batch, -1, states.shape[-1])

    def record(
        self,
        layer: int,
        q: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        own_scores: Tensor,
        prefix_scores: Tensor | None,
        head_output: Tensor,
        sink: Tensor | None = None,
    ) -> None:
        """Record one layer.

        Args:
            layer: Index of the layer.
            q: `(example, head, d_head)`.
            own_keys: `(example, kv_head, seen_pos, d_head)`; values at padding do not matter.
            own_values: `(example, kv_head, seen_pos, d_value)`.
            own_scores: `(example, head, seen_pos)`.
            prefix_scores: `(example, head, prefix_pos)`, or None without a prefix.
            head_output: Values weighted by attention, `(example, head, d_head)`.
            sink: As `AttentionCall.sink`.
        """
        records = self._records
        if sink is not None:
            self._sinks[layer] = sink.detach().to(self._mask.device)
        if "q" in records:
            self._keep("q", layer, q)
        if "scores" in records:
            self._keep("scores", layer, own_scores)
        if "demo_scores" in records:
            empty = q.new_zeros(*q.shape[:2], 0)
            self._keep("demo_scores", layer, empty if prefix_scores is None else prefix_scores)
        if "mixed" in records:
            self._keep("mixed", layer, head_output)
        if "head_output" in records and self._anatomy.layers[layer].W_O is None:
            # Without a known W_O its input cannot be hooked; this equals it if there is no gate or norm before W_O.
            self._keep("head_output", layer, head_output)
        if "update" in records:
            values = own_values.masked_fill(~self._mask.to(own_values.device)[:, None, :, None], 0.0)
            update = einsum(values, own_keys, "example h pos v, example h pos k -> example h v k")
            self._keep("update", layer, update)

    def _keep(self, name: str, layer: int, record: Tensor) -> None:
        # Layers may be on several devices; a trace is on one.
        self._records[name][layer] = record.to(self._mask.device)

    def record_dense(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_output: Tensor,
        scores: Tensor | None,
        scale: float = 1.0,
        mask: Tensor | None = None,
        sink: Tensor | None = None,
    ) -> None:
        """Record one layer of an ordinary forward, whose key axis holds prefix and query together.

        Args:
            layer: Index of the layer.
            query: `(batch, head, q_pos, d_head)`.
            key: `(batch, kv_head, k_pos, d_head)`.
            value: `(batch, kv_head, k_pos, d_value)`.
            head_output: `(batch, head, q_pos, d_value)`.
            scores: Pre-softmax scores `(batch, head, q_pos, k_pos)`; None to compute them from query, key, `scale` and
                `mask`.
            scale: Factor of the scores.
            mask: `(batch or 1, head or 1, q_pos, k_pos)`, bool or additive, or None.
            sink: As `AttentionCall.sink`.
        """
        index = self._index.to(query.device)
        q = query[index.batch, :, index.position]
        keys, values = (_columns(x, index) for x in (key, value))
        if scores is None:
            groups = query.shape[1] // key.shape[1]
            rows = rearrange(q, "example (h g) d -> example h g d", g=groups)
            row = einsum(rows, key[index.batch], "example h g d, example h pos d -> example h g pos") * scale
            row = rearrange(row, "example h g pos -> example (h g) pos")
            if mask is not None:
                visible = mask.expand(key.shape[0], -1, -1, -1)[index.batch, :, index.position]
                row = row.masked_fill(~visible, -torch.inf) if visible.dtype == torch.bool else row + visible
        else:
            row = scores[index.batch, :, index.position]
        # Families mask a token by adding a large negative number; a trace holds -inf there.
        row = row.masked_fill(hidden(row), -torch.inf)
        own = row.gather(2, index.columns[:, None, :].expand(-1, row.shape[1], -1))
        mixed = head_output[index.batch, :, index.position]
        self.record(layer, q, keys, values, own, row[..., : index.n_prefix], mixed, sink)

    def trace(self) -> Trace:
        """Everything recorded, layers stacked."""
        layers = self._anatomy.layers
        stacked = {
            name: stack_layers([by_layer[i] for i in range(len(layers))], dim=1)
            for name, by_layer in self._records.items()
        }
        return Trace(mask=self._mask, **stacked, sinks=self._stacked_sinks(), sizes=layer_sizes(self._anatomy))

    def _stacked_sinks(self) -> Tensor | None:
        if not self._sinks:
            return None
        layers = self._anatomy.layers
        like = next(iter(self._sinks.values()))
        table = like.new_full((len(layers), self._anatomy.n_heads), -torch.inf)
        for layer, sink in self._sinks.items():
            table[layer, : len(sink)] = sink
        return table


def layer_sizes(anatomy: Anatomy) -> tuple[LayerSize, ...] | None:
    """Sizes of each layer's attention; None if all layers have the same."""
    sizes = tuple(
        LayerSize(layer.n_heads, layer.n_kv_heads, layer.d_head, layer.head_width) for layer in anatomy.layers
    )
    return None if len(set(sizes)) < 2 else sizes


def stack_layers(layers: Sequence[Tensor], dim: int) -> Tensor:
    """Layers' tensors stacked on a new axis, smaller ones padded with zeros at the end of each axis."""
    if len({layer.shape for layer in layers}) > 1:
        largest = [max(sizes) for sizes in zip(*(layer.shape for layer in layers), strict=True)]
        layers = [
            F.pad(
                layer,
                [n for size, most in zip(layer.shape[::-1], largest[::-1], strict=True) for n in (0, most - size)],
            )
            for layer in layers
        ]
    return torch.stack(list(layers), dim=dim)


def _columns(x: Tensor, index: ProbeIndex) -> Tensor:
    """`(batch, kv_head, k_pos, d_head)` -> `(example, kv_head, seen_pos, d_head)`."""
    heads = torch.arange(x.shape[1], device=x.device)
    return x[index.batch[:, None, None], heads[None, :, None], index.columns[:, None, :]]


def join_traces(traces: list[Trace]) -> Trace:
    """Traces concatenated along the example axis, `seen_pos` padded to the longest."""
    width = max(trace.mask.shape[1] for trace in traces)

    def joined(name: str) -> Any:
        parts = [getattr(trace, name) for trace in traces]
        if parts[0] is None or name in ("sinks", "sizes"):
            return parts[0]
        if name in ("mask", "scores"):
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        return torch.cat(parts)

    return Trace(**{field.name: joined(field.name) for field in fields(Trace)})
