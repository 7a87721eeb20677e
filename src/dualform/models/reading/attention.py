"""One attention function under every model, through transformers' public registry.

The function is registered once. It passes each call to the active backend (`attention_backend`) or, without one,
computes ordinary attention. A backend computes attention differently (shared prefix) or observes it (recording,
probing).
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from dualform.errors import ModelError
from dualform.models.compat import attention_with_lse_on_cpu
from dualform.ops.rounding import at_least_float32

NAME = "dualform"
ADDED_TERM = "dualform_momentum"
"""Name of the child module that computes a term to add to the output of a layer's heads (`models.editing.momentum`)."""
REPLACED_ATTENTION = "dualform_attention"
"""Name of the child module that computes attention instead of softmax (`models.editing.linear_attention`)."""

# Keyword arguments that models pass to the attention function but that do not affect it. Every other keyword raises:
# ignoring a `softcap` would give wrong numbers.
_HARMLESS = frozenset(
    {
        "cache_position",
        "logits_to_keep",
        "num_items_in_batch",
        "output_attentions",
        "output_hidden_states",
        "output_router_logits",
        "position_ids",
        "return_dict",
        "use_cache",
    }
)


@dataclass(frozen=True)
class AttentionCall:
    """Arguments of one layer's attention; query and key are after rotary embedding, grouped heads are not repeated."""

    query: Tensor
    """`(batch, head, q_pos, d_head)`."""
    key: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    value: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    mask: Tensor | None
    """`(batch or 1, 1, q_pos, k_pos)`, True or 0 where attention is allowed; None for causal attention."""
    scale: float
    """Factor of the scores."""
    window: int | None
    """Size of the sliding window: a token attends to itself and at most `window - 1` tokens before it; None for all."""
    dropout: float = 0.0
    """Probability of dropping an attention weight during training."""
    momentum: "Callable[[AttentionCall], Tensor] | None" = None
    """Computes a term to add to the heads' output, `(batch, q_pos, head, d_head)`; None for no term."""
    replacement: "Callable[[AttentionCall], Tensor] | None" = None
    """Computes the heads' output instead of softmax attention, `(batch, q_pos, head, d_head)`; None for softmax."""
    sink: Tensor | None = None
    """An extra logit of each head in the softmax's denominator, without a value, `(head,)`; None without sinks."""


class AttentionBackend(Protocol):
    """Computes attention in place of the registered function while it is active."""

    builds_mask: bool
    """False if the backend builds its own mask, so that the model does not have to."""

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """Return the input of W_O before heads are joined, of shape `(batch, q_pos, head, d_head)`."""
        ...


_active_backend: ContextVar[AttentionBackend | None] = ContextVar("dualform_attention_backend", default=None)


@contextmanager
def attention_backend(backend: AttentionBackend) -> Iterator[None]:
    """Use `backend` in every model whose attention implementation is `NAME`, until the block ends."""
    token = _active_backend.set(backend)
    try:
        yield
    finally:
        _active_backend.reset(token)


def plain_attention(call: AttentionCall) -> Tensor:
    """Ordinary softmax attention or its replacement, plus momentum where the layer has it.

    Returns:
        `(batch, q_pos, head, d_head)`.
    """
    out = _softmax_attention(call) if call.replacement is None else call.replacement(call)
    return out if call.momentum is None else out + call.momentum(call)


def _softmax_attention(call: AttentionCall) -> Tensor:
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (call.key, call.value))
    causal = call.mask is None and call.query.shape[2] > 1
    if call.sink is not None:
        return _attention_with_sink(call, call.sink, key, value, causal)
    out = F.scaled_dot_product_attention(
        call.query, key, value, attn_mask=call.mask, dropout_p=call.dropout, is_causal=causal, scale=call.scale
    )
    return out.transpose(1, 2)


def _attention_with_sink(call: AttentionCall, sink: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Softmax over the keys and a sink, written out because no fused kernel supports sinks."""
    scores = torch.matmul(call.query, key.transpose(-1, -2)) * call.scale
    if causal:
        visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril(
            scores.shape[-1] - scores.shape[-2]
        )
        scores = scores.masked_fill(~visible, -torch.inf)
    elif call.mask is not None:
        mask = call.mask
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask
    column = sink.to(scores.dtype).view(1, -1, 1, 1).expand(*scores.shape[:-1], 1)
    weights = torch.cat([scores, column], dim=-1).softmax(dim=-1, dtype=torch.float32)[..., :-1].to(value.dtype)
    weights = F.dropout(weights, p=call.dropout, training=call.dropout > 0)
    return torch.matmul(weights, value).transpose(1, 2)


def momentum_in(module: nn.Module) -> Any:
    """The momentum of an attention module; None if it has none or its decay is zero."""
    momentum: Any = getattr(module, ADDED_TERM, None)
    return None if momentum is None or momentum.inactive else momentum


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    s_aux: Tensor | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    for name, argument in kwargs.items():
        if name not in _HARMLESS and argument is not None and (name, argument) != ("is_causal", True):
            text = f"a tensor of shape {tuple(argument.shape)}" if isinstance(argument, Tensor) else repr(argument)
            raise ModelError(
                f"{type(module).__name__} calls attention with {name}={text}, which dualform does not support; "
                "ignoring it would give wrong numbers. Choose another model."
            )
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    call = AttentionCall(
        query,
        key,
        value,
        attention_mask,
        scale,
        sliding_window,
        dropout,
        momentum_in(module),
        getattr(module, REPLACED_ATTENTION, None),
        s_aux,
    )
    backend = _active_backend.get()
    out = plain_attention(call) if backend is None else backend.attend(module, call)
    # Some families merge the head axes with `view`, which needs contiguous memory.
    return out.contiguous(), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    backend = _active_backend.get()
    return sdpa_mask(*args, **kwargs) if backend is None or backend.builds_mask else None


AttentionInterface.register(NAME, _attention)
# Without a mask function of this name transformers builds no mask, and padding would be attended to.
AttentionMaskInterface.register(NAME, _mask)


def hidden(scores: Tensor) -> Tensor:
    """True where a score means that its token is masked, of the same shape.

    Families mask a token by adding a large negative number: -inf, the lowest finite number of the dtype, or -10,000
    (old GPT-2, BERT). Its sum with a score, or of two such numbers, is still far below any real score.
    """
    return scores <= HIDDEN


HIDDEN = -9_000.0
"""Pre-softmax scores at or below this mean that the token is masked: its attention weight is exp(-9000) = 0."""


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention and the log-sum-exp of its scores, so that attention over several key sets can be merged.

    Args:
        query: `(batch, head, q_pos, d_head)`.
        key: `(batch, head, k_pos, d_head)`.
        value: `(batch, head, k_pos, d_head)`.
        scale: Factor of the scores.
        mask: Additive, broadcastable to `(batch, head, q_pos, k_pos)`; None masks nothing.

    Returns:
        Output `(batch, head, q_pos, d_head)` and log-sum-exp of the scores `(batch, head, q_pos)`. A query whose keys
        are all masked has output 0 and log-sum-exp -inf.
    """
    if query.device.type == "cpu":
        out, lse = attention_with_lse_on_cpu(query, key, value, mask, scale)
    else:
        out, lse = _products_with_lse(query, key, value, scale, mask)
    if mask is not None:
        # The kernel returns finite numbers for a fully masked row.
        all_masked = hidden(mask).all(-1).expand(lse.shape)
        out = out.masked_fill(all_masked[..., None], 0.0)
        lse = lse.masked_fill(all_masked, -torch.inf)
    return out, lse


def _products_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same by matrix products, for devices without a kernel that returns the log-sum-exp."""
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = at_least_float32(scores) * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(torch.exp(scores - lse[..., None]).to(value.dtype), value), lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of several key sets, from attention over each.

    Args:
        parts: For each key set, output `(..., q_pos, d_head)` and log-sum-exp `(..., q_pos)`; the sets are disjoint.

    Returns:
        `(..., q_pos, d_head)`, in the outputs' dtype.
    """
    if len(parts) == 1:
        return parts[0][0]
    total = torch.logsumexp(torch.stack([lse for _, lse in parts]), dim=0)
    weighted = [out * torch.exp(lse - total)[..., None].to(out.dtype) for out, lse in parts]
    return torch.stack(weighted).sum(0) if len(weighted) > 2 else weighted[0] + weighted[1]
