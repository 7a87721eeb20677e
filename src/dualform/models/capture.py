"""The inside of a model at one token a query, taken down while the forward runs.

Only what a measure needs is kept: the probe's rows, never a full map of scores. Recording only looks on, so a
model's outputs are the same with it and without it, bit for bit.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.anatomy import Anatomy


@dataclass(frozen=True)
class Recording:
    """What to take down, at the probe of every query, in every layer and head."""

    output: bool = False
    """Attention output after W_O, before the residual is added."""
    scores: bool = False
    """Pre-softmax scores from the probe to the query's own tokens."""
    demo_scores: bool = False
    """The same to the tokens of the shared prefix."""
    q: bool = False
    """Attention queries at the probe."""
    head_output: bool = False
    """Input of W_O at the probe, head by head."""
    update: bool = False
    """sum_i v_i k_i^T over the query's own tokens: W_ZSL of the linear form."""

    def __bool__(self) -> bool:
        return any(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class Trace:
    """The inside of a model for some queries; what was not asked for is None.

    `seen_pos` counts the query's own tokens up to the probe, padded at the end.
    """

    mask: Tensor
    """True for real tokens, `(example, seen_pos)`."""
    output: Tensor | None = None
    """`(example, layer, d_model)`."""
    scores: Tensor | None = None
    """`(example, layer, head, seen_pos)`, anything at padding."""
    demo_scores: Tensor | None = None
    """`(example, layer, head, prefix_pos)`; -inf where a sliding window hides the token."""
    q: Tensor | None = None
    """`(example, layer, head, d_head)`, as multiplied with the keys (after rotary embedding)."""
    head_output: Tensor | None = None
    """`(example, layer, head, d_head)`."""
    update: Tensor | None = None
    """`(example, layer, kv_head, d_v, d_k)`."""


@dataclass(frozen=True)
class ProbeIndex:
    """Where the probes are in one forward."""

    batch: Tensor
    """Batch row, `(example,)`."""
    position: Tensor
    """Position on the query axis, `(example,)`."""
    columns: Tensor
    """Positions of the query's own tokens on the key axis, `(example, seen_pos)`."""
    n_prefix: int
    """Keys before them that belong to the prefix."""

    def to(self, device: torch.device) -> "ProbeIndex":
        """The same on another device."""
        return replace(
            self, batch=self.batch.to(device), position=self.position.to(device), columns=self.columns.to(device)
        )


class Recorder:
    """Collects one forward's records, layer by layer, into a `Trace`."""

    def __init__(self, anatomy: Anatomy, want: Recording, mask: Tensor, index: ProbeIndex) -> None:
        self._anatomy = anatomy
        self._want = want
        self._mask = mask
        self._index = index
        self._records: dict[str, dict[int, Tensor]] = {
            field.name: {} for field in fields(want) if getattr(want, field.name)
        }

    @contextmanager
    def attached(self, model: PreTrainedModel) -> Iterator[None]:
        """Look at the output of every W_O while the block runs; nothing stays on the model, whatever happens."""
        handles: list[Any] = []
        try:
            if self._want.output:
                for i, layer in enumerate(self._anatomy.layers):
                    if layer.W_O is None:
                        raise ModelError(f"layer {i}: W_O was not found ({'; '.join(layer.unclear)})")
                    handles.append(model.get_submodule(layer.W_O).register_forward_hook(self._output_hook(i)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _output_hook(self, layer: int) -> Any:
        def keep(module: nn.Module, args: Any, out: Tensor) -> None:
            # Some families (Falcon, OPT of old) flatten batch and position before W_O; both are recovered here.
            rows = out if out.dim() == 3 else out.view(int(self._index.batch.max()) + 1, -1, out.shape[-1])
            index = self._index.to(out.device)
            self._keep("output", layer, rows[index.batch, index.position])

        return keep

    def see(
        self,
        layer: int,
        q: Tensor,
        own_keys: Tensor,
        own_values: Tensor,
        own_scores: Tensor,
        prefix_scores: Tensor | None,
        head_output: Tensor,
    ) -> None:
        """Take down one layer.

        Args:
            layer: Which.
            q: `(example, head, d_head)`.
            own_keys: `(example, kv_head, seen_pos, d_head)`, anything at padding.
            own_values: The same of the values.
            own_scores: `(example, head, seen_pos)`.
            prefix_scores: `(example, head, prefix_pos)`, or None without a prefix.
            head_output: `(example, head, d_head)`.
        """
        records = self._records
        if "q" in records:
            self._keep("q", layer, q)
        if "scores" in records:
            self._keep("scores", layer, own_scores)
        if "demo_scores" in records:
            empty = q.new_zeros(*q.shape[:2], 0)
            self._keep("demo_scores", layer, empty if prefix_scores is None else prefix_scores)
        if "head_output" in records:
            self._keep("head_output", layer, head_output)
        if "update" in records:
            values = own_values.masked_fill(~self._mask.to(own_values.device)[:, None, :, None], 0.0)
            update = einsum(values, own_keys, "example h pos v, example h pos k -> example h v k")
            self._keep("update", layer, update)

    def _keep(self, name: str, layer: int, record: Tensor) -> None:
        # Layers of a divided model lie on several devices; a trace lies on one.
        self._records[name][layer] = record.to(self._mask.device)

    def see_dense(
        self,
        layer: int,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        head_output: Tensor,
        scores: Tensor | None,
        scale: float = 1.0,
        mask: Tensor | None = None,
    ) -> None:
        """Take down one layer of an ordinary forward, whose keys hold prefix and query together.

        Args:
            layer: Which.
            query: `(batch, head, q_pos, d_head)`.
            key: `(batch, kv_head, k_pos, d_head)`.
            value: The same of the values.
            head_output: `(batch, head, q_pos, d_head)`.
            scores: Pre-softmax scores `(batch, head, q_pos, k_pos)` if the family shows them; else they are
                computed from the next two.
            scale: Factor of the scores.
            mask: `(batch or 1, head or 1, q_pos, k_pos)`, bool or additive, or None.
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
                seen = mask.expand(key.shape[0], -1, -1, -1)[index.batch, :, index.position]
                row = row.masked_fill(~seen, -torch.inf) if seen.dtype == torch.bool else row + seen
        else:
            row = scores[index.batch, :, index.position]
        # Families say that a token is hidden by adding the lowest finite number; a trace says -inf.
        row = row.masked_fill(row <= torch.finfo(row.dtype).min / 2, -torch.inf)
        own = row.gather(2, index.columns[:, None, :].expand(-1, row.shape[1], -1))
        self.see(layer, q, keys, values, own, row[..., : index.n_prefix], head_output[index.batch, :, index.position])

    def trace(self) -> Trace:
        """Everything taken down, layers stacked."""
        stacked = {
            name: torch.stack([by_layer[i] for i in range(len(self._anatomy.layers))], dim=1)
            for name, by_layer in self._records.items()
        }
        return Trace(mask=self._mask, **stacked)


def _columns(x: Tensor, index: ProbeIndex) -> Tensor:
    """`(batch, kv_head, k_pos, d_head)` -> `(example, kv_head, seen_pos, d_head)`."""
    heads = torch.arange(x.shape[1], device=x.device)
    return x[index.batch[:, None, None], heads[None, :, None], index.columns[:, None, :]]


def join_traces(traces: list[Trace]) -> Trace:
    """One trace of several, example axes end to end, `seen_pos` padded to the longest."""
    width = max(trace.mask.shape[1] for trace in traces)

    def joined(name: str) -> Tensor | None:
        parts = [getattr(trace, name) for trace in traces]
        if parts[0] is None:
            return None
        if name in ("mask", "scores"):
            parts = [torch.nn.functional.pad(part, (0, width - part.shape[-1])) for part in parts]
        return torch.cat(parts)

    return Trace(**{field.name: joined(field.name) for field in fields(Trace)})  # type: ignore[arg-type]
