"""One attention function under every model, through transformers' public registry.

The function is registered once and does nothing of its own: it passes each call to the active backend
(`attention_backend`) or, without one, computes ordinary attention. A backend computes attention in a way of its own
(shared prefix, momentum) or records it (recording, probing).
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
MOMENTUM = "dualform_momentum"
"""Name of the child that an attention module has when there is something to be added to its heads' output."""
ATTENTION = "dualform_attention"
"""Name of the child that an attention module has when it does not attend by softmax."""

# What models hand through to the attention function without meaning anything to it. Every other keyword raises:
# an ignored `softcap` would be a wrong number.
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
    """What one layer asks for; query and key are after rotary embedding, grouped heads unrepeated."""

    query: Tensor
    """`(batch, head, q_pos, d_head)`."""
    key: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    value: Tensor
    """`(batch, kv_head, k_pos, d_head)`."""
    mask: Tensor | None
    """`(batch or 1, 1, q_pos, k_pos)`, True or 0 where attention is allowed; None for plain causal."""
    scale: float
    """Factor of the scores."""
    window: int | None
    """A token sees itself and at most `window - 1` tokens before it; None for all."""
    dropout: float = 0.0
    """Probability, while training."""
    momentum: "Callable[[AttentionCall], Tensor] | None" = None
    """What is added to the heads' output, `(batch, q_pos, head, d_head)`; None for nothing (`models.momentum`)."""
    instead: "Callable[[AttentionCall], Tensor] | None" = None
    """What computes the heads' output, likewise; None for softmax (`models.linear_attention`)."""
    sink: Tensor | None = None
    """A logit of each head in the softmax's denominator, without a value, `(head,)`; None where there is none."""


class AttentionBackend(Protocol):
    """What stands under the model's attention while it is in force."""

    builds_mask: bool
    """False when the tap knows by itself who sees whom, so that the model need not build a mask."""

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        """Return the input of W_O before heads are joined, of shape `(batch, q_pos, head, d_head)`."""
        ...


_tap: ContextVar[AttentionBackend | None] = ContextVar("dualform_tap", default=None)


@contextmanager
def attention_backend(tap: AttentionBackend) -> Iterator[None]:
    """Put `tap` under every model whose attention implementation is `NAME`, until the block ends."""
    token = _tap.set(tap)
    try:
        yield
    finally:
        _tap.reset(token)


def plain_attention(call: AttentionCall) -> Tensor:
    """Ordinary softmax attention, or what the layer has instead; and its momentum where it has one.

    Returns:
        `(batch, q_pos, head, d_head)`.
    """
    out = _softmax_attention(call) if call.instead is None else call.instead(call)
    return out if call.momentum is None else out + call.momentum(call)


def _softmax_attention(call: AttentionCall) -> Tensor:
    groups = call.query.shape[1] // call.key.shape[1]
    key, value = (x.repeat_interleave(groups, dim=1) if groups > 1 else x for x in (call.key, call.value))
    causal = call.mask is None and call.query.shape[2] > 1
    if call.sink is not None:
        return _with_sink(call, call.sink, key, value, causal)
    out = F.scaled_dot_product_attention(
        call.query, key, value, attn_mask=call.mask, dropout_p=call.dropout, is_causal=causal, scale=call.scale
    )
    return out.transpose(1, 2)


def _with_sink(call: AttentionCall, sink: Tensor, key: Tensor, value: Tensor, causal: bool) -> Tensor:
    """Softmax over the keys and a sink, written out: no fused kernel knows sinks."""
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
    """The momentum of an attention module; None where it has none, or one that adds nothing."""
    found: Any = getattr(module, MOMENTUM, None)
    return None if found is None or found.off else found


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
    for name, given in kwargs.items():
        if name not in _HARMLESS and given is not None and (name, given) != ("is_causal", True):
            shown = f"a tensor of shape {tuple(given.shape)}" if isinstance(given, Tensor) else repr(given)
            raise ModelError(
                f"{type(module).__name__} asks attention for {name}={shown}, which dualform does not support: "
                "leaving it out would give wrong numbers. Choose another model."
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
        getattr(module, ATTENTION, None),
        s_aux,
    )
    tap = _tap.get()
    out = plain_attention(call) if tap is None else tap.attend(module, call)
    # Families may view the heads as one axis, which other memory layouts do not allow.
    return out.contiguous(), None


def _mask(*args: Any, **kwargs: Any) -> Tensor | None:
    tap = _tap.get()
    return sdpa_mask(*args, **kwargs) if tap is None or tap.builds_mask else None


AttentionInterface.register(NAME, _attention)
# Without a mask of its own name transformers would build none and padding would be attended to in silence.
AttentionMaskInterface.register(NAME, _mask)


def hidden(scores: Tensor) -> Tensor:
    """True where a score says that its token is not seen, of the same shape.

    Families hide a token by adding a large negative number: -inf, the lowest finite number of a dtype, or -10,000
    (GPT-2 of old, BERT kin). Sums of it with a score, or two of them, still lie far below any real score.
    """
    return scores <= HIDDEN


HIDDEN = -9_000.0
"""Pre-softmax scores from here down mean that the token is hidden; next to any other the weight is exp(-9000) = 0."""


def attend_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Softmax attention together with the logarithm of its normaliser, from which parts can be merged.

    Args:
        query: `(batch, head, q_pos, d_head)`.
        key: `(batch, head, k_pos, d_head)`.
        value: `(batch, head, k_pos, d_head)`.
        scale: Factor of the scores.
        mask: Additive, broadcastable to `(batch, head, q_pos, k_pos)`; None lets everyone see everything.

    Returns:
        Output `(batch, head, q_pos, d_head)` and log-sum-exp of the scores `(batch, head, q_pos)`. A query that
        sees nothing has output 0 and log-sum-exp -inf.
    """
    if query.device.type == "cpu":
        out, lse = attention_with_lse_on_cpu(query, key, value, mask, scale)
    else:
        out, lse = _products_with_lse(query, key, value, scale, mask)
    if mask is not None:
        # The kernel's own answer for a row that sees nothing is a finite number.
        blind = hidden(mask).all(-1).expand(lse.shape)
        out = out.masked_fill(blind[..., None], 0.0)
        lse = lse.masked_fill(blind, -torch.inf)
    return out, lse


def _products_with_lse(
    query: Tensor, key: Tensor, value: Tensor, scale: float, mask: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The same in plain products, for devices without a kernel that gives the log-sum-exp."""
    scores = torch.matmul(query, key.transpose(-1, -2))
    scores = at_least_float32(scores) * scale
    if mask is not None:
        scores = scores + mask
    lse = torch.logsumexp(scores, dim=-1)
    return torch.matmul(torch.exp(scores - lse[..., None]).to(value.dtype), value), lse


def merge(parts: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Attention over the union of key sets, from attention over each.

    Args:
        parts: Outputs `(..., q_pos, d_head)` and log-sum-exps `(..., q_pos)` over disjoint sets of keys.

    Returns:
        `(..., q_pos, d_head)`, in the outputs' dtype.
    """
    if len(parts) == 1:
        return parts[0][0]
    total = torch.logsumexp(torch.stack([lse for _, lse in parts]), dim=0)
    weighted = [out * torch.exp(lse - total)[..., None].to(out.dtype) for out, lse in parts]
    return torch.stack(weighted).sum(0) if len(weighted) > 2 else weighted[0] + weighted[1]
