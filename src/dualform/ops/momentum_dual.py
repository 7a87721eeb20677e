"""Attention without softmax that is the exact dual form of gradient descent with momentum.

The inner loss of token t is -<v_t, M k_t>, with the fast weights M read by o_t = M_t q_t. Its gradient is -v_t k_t^T
whatever M is, so that gradient descent at rate 1 is linear attention, M_t = M_{t-1} + v_t k_t^T. With momentum eta it
is linear attention whose weights depend on the distance l = t - i alone:

    o_t = sum_{i <= t} w(t - i) v_i (k_i^T q_t)

    kind          fast weights                                                       w(l)
    none          M_t = M_{t-1} + v_t k_t^T                                          1
    heavy-ball    S_t = eta S_{t-1} + v_t k_t^T,  M_t = M_{t-1} + S_t                (1 - eta^(l+1)) / (1 - eta)
    nesterov      S_t as above,  M_t = M_{t-1} + v_t k_t^T + eta S_t                 (1 - eta^(l+2)) / (1 - eta)

The weight w grows with the distance, up to 1 / (1 - eta), because the momentum of older tokens has changed M for more
steps. The weights of momentum attention (`momentum`), in contrast, decrease with the distance and do not depend on k
or q.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.momentum import decayed_sums, full_precision, rate_of_heads, require_chunk

MomentumKind = Literal["none", "heavy-ball", "nesterov"]
"""The kind of momentum with which the fast weights are updated."""

DualForm = Literal["naive", "chunked", "recurrent"]
"""The algorithm; all compute the same numbers."""


def momentum_linear_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    eta: float | Tensor,
    kind: MomentumKind = "heavy-ball",
    form: DualForm = "chunked",
    *,
    chunk: int = 64,
) -> Tensor:
    """Causal linear attention whose fast weights are updated by gradient descent with momentum: o_t = M_t q_t.

    Args:
        q: Attention queries, of shape `(batch, head, pos, d_k)`, used without scaling.
        k: Keys, of shape `(batch, head, pos, d_k)`.
        v: Values, of shape `(batch, head, pos, d_v)`.
        eta: Momentum, in [0, 1): a number, a scalar tensor of shape `()`, or one number for each head, of shape
            `(head)`. A tensor that requires a gradient is not checked. At 0 every kind is plain causal linear
            attention, bit for bit as the same form computes it.
        kind: The kind of momentum; "none" ignores `eta`.
        form: "naive" computes t x t weights and is the reference for the others; "recurrent" updates S and M token by
            token; "chunked" computes weights within chunks and passes S and M on between them, with memory linear in
            t.
        chunk: Tokens in a chunk, at least 2. It affects results only by rounding.

    Returns:
        Outputs, of shape `(batch, head, pos, d_v)`, in the dtype of `v`. Half precision is summed in float32, under
        autocast too.

    Raises:
        ConfigError: `eta` is outside [0, 1), no such `kind` or `form`, `chunk` is below 2, or `v` is no float.
        ShapeError: The shapes do not belong together.

    Source:
        dualform's own derivation. That linear attention is gradient descent: arXiv:2212.10559v3, equations (8) and
        (9). Heavy ball: Polyak, "Some methods of speeding up the convergence of iteration methods", 1964. "nesterov"
        has the weights at which Nesterov's method takes its gradients, as arXiv:1212.0901 and `torch.optim.SGD` write
        it: his own weights, under a gradient that does not depend on them, are those of the heavy ball.
    """
    for name, given, known in (("kind", kind, get_args(MomentumKind)), ("form", form, get_args(DualForm))):
        if given not in known:
            raise ConfigError(f"{name} is {given!r}; expected one of {', '.join(map(repr, known))}.")
    require_chunk(chunk)
    _require_tokens(q, k, v)
    rate = rate_of_heads(eta, v)
    if kind == "none":
        rate = torch.zeros_like(rate)
    with full_precision(v):
        wide_q, wide_k, wide_v = (x.to(rate.dtype) for x in (q, k, v))
        if form == "naive":
            output = _naive(wide_q, wide_k, wide_v, rate, kind)
        elif form == "chunked":
            output = _chunked(wide_q, wide_k, wide_v, rate, kind, chunk)
        else:
            output = _recurrent(wide_q, wide_k, wide_v, rate, kind)
    return output.to(v.dtype)


def _naive(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, kind: MomentumKind) -> Tensor:
    scores = einsum(q, k, "b h q_pos d_k, b h k_pos d_k -> b h q_pos k_pos")
    weights = _by_distance(_weights(rate, v.shape[2], kind))
    return einsum(weights * scores, v, "b h q_pos k_pos, b h k_pos d_v -> b h q_pos d_v")


def _recurrent(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, kind: MomentumKind) -> Tensor:
    eta = rate[:, None, None]
    S = M = v.new_zeros(*v.shape[:2], v.shape[-1], k.shape[-1])
    outputs = []
    for t in range(v.shape[2]):
        descent = einsum(v[:, :, t], k[:, :, t], "b h d_v, b h d_k -> b h d_v d_k")
        S = eta * S + descent
        M = M + descent + eta * S if kind == "nesterov" else M + S
        outputs.append(einsum(M, q[:, :, t], "b h d_v d_k, b h d_k -> b h d_v"))
    return torch.stack(outputs, 2)


def _chunked(q: Tensor, k: Tensor, v: Tensor, rate: Tensor, kind: MomentumKind, chunk: int) -> Tensor:
    n = v.shape[2]
    size = min(chunk, n)
    # Zeros that fill up the last chunk do not change S and M.
    q, k, v = (
        rearrange(F.pad(x, (0, 0, 0, -n % size)), "b h (chunk pos) d -> b h chunk pos d", pos=size) for x in (q, k, v)
    )
    w = _weights(rate, size, kind)
    output = (q @ k.mT * _by_distance(w)[:, None]) @ v
    if n > size:
        S, M = _fast_weights(k, v, rate, w, kind)
        # Within the chunk, the previous M stays, and the previous S continues to be added to it.
        output = output + q @ M.mT + _spent(rate, size, kind)[:, None, :, None] * (q @ S.mT)
    return rearrange(output, "b h chunk pos d -> b h (chunk pos) d")[:, :, :n]


def _fast_weights(k: Tensor, v: Tensor, rate: Tensor, w: Tensor, kind: MomentumKind) -> tuple[Tensor, Tensor]:
    """S and M before each chunk, `(batch, head, chunk, d_v, d_k)`, of keys and values in chunks."""
    size, d_k = k.shape[-2:]
    decay = rate[:, None] ** torch.arange(size, device=k.device)
    # The contribution of a chunk alone: its tokens are at distances size - 1, ..., 0 from its end.
    to_S, to_M = ((v * x.flip(-1)[:, None, :, None]).mT @ k for x in (decay, w))
    S = decayed_sums(rearrange(to_S, "b h chunk d_v d_k -> b h chunk (d_v d_k)"), rate, spacing=size)
    S = _before(rearrange(S, "b h chunk (d_v d_k) -> b h chunk d_v d_k", d_k=d_k))
    M = _before((to_M + _spent(rate, size, kind)[:, -1, None, None, None] * S).cumsum(2))
    return S, M


def _before(chunks: Tensor) -> Tensor:
    """The state before each chunk, given the state after each: zeros come first."""
    return F.pad(chunks[:, :, :-1], (0, 0, 0, 0, 1, 0))


def _weights(rate: Tensor, n: int, kind: MomentumKind) -> Tensor:
    """w(l) for l = 0, ..., n - 1, of shape `(head, n)`."""
    # The geometric sum is computed by addition, since 1 - eta^(l+1) and 1 - eta lose digits where eta is near 1.
    heavy_ball = (rate[:, None] ** torch.arange(n, device=rate.device)).cumsum(-1)
    return 1 + rate[:, None] * heavy_ball if kind == "nesterov" else heavy_ball


def _spent(rate: Tensor, n: int, kind: MomentumKind) -> Tensor:
    """Factor of S that has been added to M after 1, ..., n steps without new tokens, of shape `(head, n)`."""
    # S decays before each step; nesterov then adds eta S.
    spent = rate[:, None] * _weights(rate, n, "heavy-ball")
    return rate[:, None] * spent if kind == "nesterov" else spent


def _by_distance(w: Tensor) -> Tensor:
    """w(q_pos - k_pos) where that is 0 or more, else 0: `(head, n)` -> `(head, n, n)`."""
    at = torch.arange(w.shape[-1], device=w.device)
    lag = at[:, None] - at
    return torch.where(lag >= 0, w[:, lag.clamp(min=0)], 0.0)


def _require_tokens(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not (q.ndim == v.ndim == 4 and q.shape == k.shape and q.shape[:3] == v.shape[:3]) or 0 in (*q.shape, *v.shape):
        raise ShapeError(
            "q and k must be (batch, head, pos, d_k) and v (batch, head, pos, d_v), none of them empty; given "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    if not v.is_floating_point():
        raise ConfigError(f"v are {v.dtype}; expected a floating dtype.")
