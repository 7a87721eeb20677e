"""The fast route: the prefix is encoded once, queries are packed into one row, and keys are never copied.

Attention of each query token to the prefix and to its own query is computed separately and merged by log-sum-exp.
Grouped heads are folded into the row axis, so that keys and values are not repeated either. Linear layers process one
long row without padding; only attention within a query is padded, to the longest query of the row.
"""

from typing import Any

import torch
from einops import einsum, rearrange
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.reading.attention import AttentionCall, attend_with_lse, attention_backend, merge
from dualform.models.reading.capture import ProbeIndex, Recorder, Recording, Trace
from dualform.models.reading.forward import KeysValues, LayerOrder, forward_rows, keys_values
from dualform.models.reading.layout import Layout, Query
from dualform.models.structure.anatomy import Anatomy


class PackedRoute:
    """Reads queries through dualform's registered attention function."""

    name = "packed"

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self._model = model
        self.anatomy = anatomy

    def encode(self, prefix: tuple[int, ...]) -> KeysValues:
        """Run the prefix once and keep each layer's keys and values."""
        return keys_values(self._model, self.anatomy, prefix)

    def read(
        self, prefix: KeysValues, queries: list[Query], layout: Layout, want: Recording
    ) -> tuple[Tensor, Tensor, Trace | None]:
        """Logits and hidden states at `layout.scored_rows`, and the trace if anything is to be recorded."""
        recorder = None
        if want:
            width = layout.seen_mask.shape[1]
            index = ProbeIndex(
                batch=torch.zeros_like(layout.probe),
                position=layout.probe_rows,
                columns=layout.gather[:, :width],
                n_prefix=prefix.length,
            )
            recorder = Recorder(self.anatomy, want, layout.seen_mask, index)
        backend = _PackedBackend(LayerOrder(self._model, self.anatomy), prefix, layout, recorder)
        inputs: dict[str, Any] = {
            "input_ids": layout.tokens[None],
            "position_ids": (layout.offsets + prefix.length)[None],
            "use_cache": False,
        }
        with attention_backend(backend):
            if recorder is None:
                logits, hidden = forward_rows(self._model, layout.scored_rows, **inputs)
                return logits, hidden, None
            with recorder.attached(self._model):
                logits, hidden = forward_rows(self._model, layout.scored_rows, **inputs)
        return logits, hidden, recorder.trace()


class _PackedBackend:
    builds_mask = False

    def __init__(self, order: LayerOrder, prefix: KeysValues, layout: Layout, recorder: Recorder | None) -> None:
        self._order = order
        self._prefix = prefix
        self._layout = layout
        self._recorder = recorder
        # The row holds own tokens in the order of (example, own_pos); this index maps the padded table back to it.
        self._to_row = layout.own.flatten().nonzero()[:, 0]
        self._own_masks: dict[tuple[int | None, torch.dtype, torch.device], Tensor] = {}
        self._window_masks: dict[tuple[int, torch.dtype, torch.device], Tensor] = {}

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        if call.replacement is not None:
            raise ModelError("attention to prefix and query can be computed separately for softmax attention only")
        layer = self._order.next(module)
        if layer is None:
            raise ModelError("some of its attention is not a recorded layer, so its keys and values are not available")
        # Layers may be on several devices.
        self._layout = self._layout.to(call.query.device)
        self._to_row = self._to_row.to(call.query.device)
        groups = call.query.shape[1] // call.key.shape[1]
        query, key, value = call.query[0], call.key[0], call.value[0]
        own_key, own_value = (rearrange(x[:, self._layout.gather], "h n pos d -> n h pos d") for x in (key, value))
        parts = [self._own_part(query, own_key, own_value, groups, call)]
        if self._prefix.length:
            parts.append(self._prefix_part(query, layer, groups, call))
        if call.sink is not None:
            # A key without a value adds only to the softmax's denominator.
            out, lse = parts[0]
            parts.append((torch.zeros_like(out), call.sink.to(lse)[:, None].expand_as(lse)))
        out = merge(parts)
        if call.momentum is not None:
            out = out + self._momentum(call.momentum, layer, own_value, call)
        if self._recorder is not None:
            self._record(self._recorder, layer, query, (own_key, own_value), out, call)
        return rearrange(out, "head row d -> 1 row head d")

    def _own_part(
        self, query: Tensor, key: Tensor, value: Tensor, groups: int, call: AttentionCall
    ) -> tuple[Tensor, Tensor]:
        """Attention within each query: output `(head, row_pos, d_head)`, log-sum-exp `(head, row_pos)`."""
        mask = self._own_mask(call, groups)
        folded = rearrange(query[:, self._layout.gather], "(h g) n pos d -> n h (g pos) d", g=groups)
        out, lse = attend_with_lse(folded, key, value, call.scale, mask)
        out = rearrange(out, "n h (g pos) d -> (h g) (n pos) d", g=groups)
        lse = rearrange(lse, "n h (g pos) -> (h g) (n pos)", g=groups)
        return out[:, self._to_row], lse[:, self._to_row]

    def _prefix_part(self, query: Tensor, layer: int, groups: int, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Attention to the prefix: output `(head, row_pos, d_head)`, log-sum-exp `(head, row_pos)`."""
        key, value = self._prefix.layers[layer]
        mask = None
        first = self._first_visible(call.window)
        if call.window is not None and self._hides_prefix(call.window):
            key, value = key[:, first:], value[:, first:]
            mask = self._window_mask(call.window, query.dtype).repeat(groups, 1)[None, None]
        folded = rearrange(query, "(h g) row d -> 1 h (g row) d", g=groups)
        out, lse = attend_with_lse(folded, key[None], value[None], call.scale, mask)
        return rearrange(out, "1 h (g row) d -> (h g) row d", g=groups), rearrange(
            lse, "1 h (g row) -> (h g) row", g=groups
        )

    def _momentum(self, momentum: Any, layer: int, own_value: Tensor, call: AttentionCall) -> Tensor:
        """The momentum term, `(head, row_pos, d_head)`, summed over own tokens and prefix."""
        layout, window = self._layout, call.window
        n_heads = call.query.shape[1]
        offsets = layout.offsets[layout.gather]
        lag = offsets[:, :, None] - offsets[:, None, :]
        visible = layout.visible if window is None else layout.visible & (lag < window)
        term = momentum.term_from_lags(own_value, lag, visible, n_heads)
        term = rearrange(term, "n pos head d -> head (n pos) d")[:, self._to_row]
        if not self._prefix.length:
            return term
        value = self._prefix.layers[layer][1]
        positions = torch.arange(self._prefix.length, device=value.device)
        lag = self._prefix.length + layout.offsets[:, None] - positions
        visible = torch.ones_like(lag, dtype=torch.bool) if window is None else lag < window
        before = momentum.term_from_lags(value[None], lag[None], visible[None], n_heads)
        return term + rearrange(before, "1 row head d -> head row d")

    def _own_mask(self, call: AttentionCall, groups: int) -> Tensor:
        window, dtype = call.window, call.query.dtype
        if window is not None and window >= self._layout.gather.shape[1]:
            window = None
        key = (window, dtype, call.query.device)
        if key not in self._own_masks:
            visible = self._layout.visible
            if window is not None:
                offsets = self._layout.offsets[self._layout.gather]
                visible = visible & (offsets[:, :, None] - offsets[:, None, :] < window)
                # Padding must still attend to itself.
                visible = visible | torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device)
            mask = torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill(~visible, -torch.inf)
            self._own_masks[key] = mask[:, None].repeat(1, 1, groups, 1)
        return self._own_masks[key]

    def _hides_prefix(self, window: int) -> bool:
        return self._prefix.length + int(self._layout.offsets.max()) >= window

    def _first_visible(self, window: int | None) -> int:
        """Index of the first prefix token inside the first query token's window; later tokens reach back less far."""
        return 0 if window is None else max(0, self._prefix.length - window + 1)

    def _window_mask(self, window: int, dtype: torch.dtype) -> Tensor:
        """Additive mask, `(row_pos, visible prefix_pos)`."""
        key = (window, dtype, self._layout.offsets.device)
        if key not in self._window_masks:
            hidden = ~self._prefix_in_window(self._layout.offsets, window)[:, self._first_visible(window) :]
            zero = torch.zeros(hidden.shape, dtype=dtype, device=hidden.device)
            self._window_masks[key] = zero.masked_fill(hidden, -torch.inf)
        return self._window_masks[key]

    def _prefix_in_window(self, offsets: Tensor, window: int) -> Tensor:
        """True where a prefix token is in the window of the token at `offsets`, `(token, prefix_pos)`."""
        positions = torch.arange(self._prefix.length, device=offsets.device)
        return self._prefix.length + offsets[:, None] - positions < window

    def _record(
        self,
        recorder: Recorder,
        layer: int,
        query: Tensor,
        own: tuple[Tensor, Tensor],
        out: Tensor,
        call: AttentionCall,
    ) -> None:
        layout = self._layout
        width = layout.seen_mask.shape[1]
        rows = layout.probe_rows
        q = rearrange(query[:, rows], "head n d -> n head d")
        folded = rearrange(q, "n (h g) d -> n h g d", h=call.key.shape[1])
        own_key, own_value = (x[:, :, :width] for x in own)
        own_scores = einsum(folded, own_key, "n h g d, n h pos d -> n h g pos") * call.scale
        prefix_scores = None
        if self._prefix.length:
            prefix_key = self._prefix.layers[layer][0]
            prefix_scores = einsum(folded, prefix_key, "n h g d, h pos d -> n h g pos") * call.scale
            if call.window is not None:
                inside = self._prefix_in_window(layout.offsets[rows], call.window)
                prefix_scores = prefix_scores.masked_fill(~inside[:, None, None], -torch.inf)
            prefix_scores = rearrange(prefix_scores, "n h g pos -> n (h g) pos")
        if call.window is not None and call.window < width:
            distance = layout.probe[:, None] - torch.arange(width, device=rows.device)
            own_scores = own_scores.masked_fill((distance >= call.window)[:, None, None], -torch.inf)
        recorder.record(
            layer=layer,
            q=q,
            own_keys=own_key,
            own_values=own_value,
            own_scores=rearrange(own_scores, "n h g pos -> n (h g) pos"),
            prefix_scores=prefix_scores,
            head_output=rearrange(out[:, rows], "head n d -> n head d"),
            sink=call.sink,
        )
