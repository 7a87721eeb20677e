"""Chunked forms of `fast_weights`: the same numbers as token by token, from a few large products.

With the weights S_0 before a chunk, the decay c_t since then and D_ti = c_t / c_i, every rule here computes

    S_t = c_t S_0 + sum_{i <= t} D_ti u_i k_i^T,        o_t = c_t S_0 q_t + sum_{i <= t} D_ti u_i (k_i^T q_t)

and they differ in u. If u_t depends on earlier tokens, all u of a chunk are the solution of a triangular system. Decays
are computed by multiplication from token to token, not by division, so they may be 0 or underflow but do not overflow.

Scores of later tokens are multiplied by 0, which does not remove NaN or infinity, so tokens must be finite.

Chunks are an axis of the tensors, `(batch, head, chunk, pos, d)`; only the states are computed one after the other.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint


def decayed_mesa_chunk(d_k: int) -> int:
    """Number of tokens whose Gram matrices, of d_k x d_k numbers each, are in memory at a time when they decay.

    Measured on a processor: forming the matrices costs this many times d_k^2 operations per token.

    Args:
        d_k: Width of a key.
    """
    return min(64, max(16, 2**14 // d_k**2))


def linear_chunked(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor | None, S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Outputs and last weights of S <- a S + b v k^T: here u_t is b_t v_t.

    Args:
        q: Attention queries, of shape `(batch, head, pos, d_k)`.
        k: Keys, of shape `(batch, head, pos, d_k)`.
        v: Values, of shape `(batch, head, pos, d_v)`.
        rate: b, of shape `(batch, head, pos)`.
        decay: a, of shape `(batch, head, pos)`; None for 1.
        S: Initial weights, of shape `(batch, head, d_v, d_k)`.
        chunk: Tokens in a chunk.

    Returns:
        Outputs, of shape `(batch, head, pos, d_v)`, and the last weights, in the shape of `S`.

    Source:
        Chunks as in `momentum_dual`; with one decay for all tokens arXiv:2307.08621, with one for each token
        arXiv:2405.21060.
    """
    n = q.shape[2]
    size = min(chunk, n)
    q, k, u = (_in_chunks(x, size) for x in (q, k, v * rate[..., None]))
    decays = _decays(decay, size, k)
    before, S = _carried(S, decays.last, (u * decays.to_end).mT @ k)
    return _together(_read(q, k, u, decays, before), n), S


def delta_chunked(
    q: Tensor, k: Tensor, v: Tensor, rate: Tensor, decay: Tensor | None, S: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """Outputs and last weights of S <- a S - b (a S k - v) k^T.

    u_t = b_t (v_t - a_t S_{t-1} k_t), where S_{t-1} depends on the earlier u. With one row for each token,

        (I + strictly lower part of diag(b) (D * K K^T)) U = diag(b) (V - diag(c) K S_0^T)

    The system is solved for V and for diag(c) K, in all chunks at once; S_0 is then inserted chunk by chunk.

    Args:
        q: See `linear_chunked`.
        k: See `linear_chunked`.
        v: See `linear_chunked`.
        rate: See `linear_chunked`.
        decay: See `linear_chunked`.
        S: See `linear_chunked`.
        chunk: See `linear_chunked`.

    Returns:
        See `linear_chunked`.

    Source:
        arXiv:2406.06484, the WY form in chunks; with decay, arXiv:2412.06464. Their T is our solution of the system
        for diag(b).
    """
    n, d_v = q.shape[2], v.shape[-1]
    size = min(chunk, n)
    q, k, v, rate = (_in_chunks(x, size) for x in (q, k, v, rate[..., None]))
    decays = _decays(decay, size, k)
    scaled = rate * k
    system = scaled @ k.mT * decays.within
    # `unitriangular` ignores the diagonal and uses 1. Solved from the right, which keeps rows contiguous in memory.
    solved = torch.linalg.solve_triangular(
        system.mT, torch.cat([rate * v, scaled * decays.since], -1).mT, upper=True, left=False, unitriangular=True
    ).mT
    own, inherited = solved.split([d_v, k.shape[-1]], -1)
    left = k * decays.to_end
    before, us = [], []
    for number in range(k.shape[2]):
        before.append(S)
        u = own[:, :, number] - inherited[:, :, number] @ S.mT
        us.append(u)
        S = _decayed(S, decays.last, number) + u.mT @ left[:, :, number]
    return _together(_read(q, k, torch.stack(us, 2), decays, torch.stack(before, 2)), n), S


def mesa_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    decay: Tensor | None,
    ridge: Tensor,
    G: Tensor,
    H: Tensor,
    chunk: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Outputs and last weights of G <- g G + b v k^T, H <- g H + b k k^T, read by G (H + L)^-1 q.

    With x_t = (H_t + L)^-1 q_t, the outputs are those of `linear_chunked` for the queries x.

    Args:
        q: See `linear_chunked`.
        k: See `linear_chunked`.
        v: See `linear_chunked`.
        rate: See `linear_chunked`.
        decay: See `linear_chunked`.
        ridge: Diagonal of L, of shape `(head, d_k)` or `(1, d_k)`.
        G: Weights to start from, of shape `(batch, head, d_v, d_k)`.
        H: Gram matrix to start from, of shape `(batch, head, d_k, d_k)`.
        chunk: See `linear_chunked`.

    Returns:
        Outputs as `linear_chunked`, G and H.

    Source:
        The layer: arXiv:2309.05858, and with decay arXiv:2506.05233. The way without decay is this library's.
    """
    if decay is None:
        x, H = _solved_by_chunks(q, k, rate, ridge, H, chunk)
    else:
        x, H = _solved_by_tokens(q, k, rate, decay, ridge, H)
    output, G = linear_chunked(x, k, v, rate, decay, G, chunk)
    return output, G, H


def mini_batches_chunked(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    decay: Tensor | None,
    momentum: Tensor | None,
    slope: Callable[[Tensor, Tensor, Tensor], Tensor],
    M: Tensor,
    S: Tensor | None,
    anchor: Tensor,
    seen: int,
    mini_batch: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor, int]:
    """Outputs and what is left of S <- n S - theta gradient, M <- a M + S, with gradients at each mini-batch's start.

    A gradient is (slope of the loss in M k) k^T, so a mini-batch's are known as soon as its first weights are, and
    within it the weights are a sum as in linear attention. Mini-batches follow one another.

    Args:
        q: See `linear_chunked`.
        k: See `linear_chunked`.
        v: See `linear_chunked`.
        rate: theta, of shape `(batch, head, pos)`.
        decay: a, of shape `(batch, head, pos)`; None for 1.
        momentum: n, of shape `(batch, head, pos)`; None where there is no S, and M takes the steps themselves.
        slope: Of the loss, given M k, k and v, of shape `(batch, head, pos, d)` each; of the shape of v.
        M: Weights to start from, of shape `(batch, head, d_v, d_k)`.
        S: Of the shape of M; None without momentum.
        anchor: Weights at which the open mini-batch takes its gradients, of the shape of M.
        seen: Tokens of the open mini-batch so far; 0 if none is open.
        mini_batch: Tokens of a mini-batch.

    Returns:
        Outputs, of shape `(batch, head, pos, d_v)`, then M, S, anchor and seen after the last token.

    Source:
        arXiv:2407.04620, the dual form; with momentum and decay, arXiv:2501.00663, the parallel form.
    """
    n = q.shape[2]
    opening = min(n, mini_batch - seen) if seen else 0
    closing = (n - opening) % mini_batch
    outputs = []
    # The rest of the open mini-batch, then whole ones, then what stays open.
    for start, stop, size in (
        (0, opening, opening),
        (opening, n - closing, mini_batch),
        (n - closing, n, closing),
    ):
        if start == stop:
            continue
        if start or not seen:
            anchor = M
        here = slice(start, stop)
        output, M, S, anchor = _mini_batches(
            q[:, :, here],
            k[:, :, here],
            v[:, :, here],
            rate[:, :, here],
            None if decay is None else decay[:, :, here],
            None if momentum is None else momentum[:, :, here],
            slope,
            M,
            S,
            anchor,
            size,
        )
        outputs.append(output)
    seen = (seen + n) % mini_batch
    return torch.cat(outputs, 2), M, S, anchor if seen else M, seen


def _mini_batches(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rate: Tensor,
    decay: Tensor | None,
    momentum: Tensor | None,
    slope: Callable[[Tensor, Tensor, Tensor], Tensor],
    M: Tensor,
    S: Tensor | None,
    anchor: Tensor,
    size: int,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """As `mini_batches_chunked`, for mini-batches that are all of one size; the anchor is the last one's."""
    n = q.shape[2]
    q, k, v, descent = (_in_chunks(x, size) for x in (q, k, v, -rate[..., None]))
    decays = _decays(decay, size, k)
    weights, spent, momenta = decays.within, None, None
    if momentum is not None:
        momenta = _decays(momentum, size, k)
        # A step made at i is in S_j by the momentum since i, and S_j in M_t by the decay since j.
        weights, spent = decays.within @ momenta.within, decays.within @ momenta.since
    to_M = k * weights[..., -1, :, None]
    to_S = None if momenta is None else k * momenta.to_end
    steps, Ms, Ss = [], [], []
    for number, (key, value, step) in enumerate(zip(k.unbind(2), v.unbind(2), descent.unbind(2), strict=True)):
        anchor = anchor if number == 0 else M
        u = step * slope(key @ anchor.mT, key, value)
        steps.append(u)
        Ms.append(M)
        M = _decayed(M, decays.last, number) + u.mT @ to_M[:, :, number]
        if S is not None and momenta is not None and spent is not None and to_S is not None:
            Ss.append(S)
            M = M + spent[:, :, number, -1:] * S
            S = _decayed(S, momenta.last, number) + u.mT @ to_S[:, :, number]
    output = (q @ k.mT * weights) @ torch.stack(steps, 2) + decays.since * (q @ torch.stack(Ms, 2).mT)
    if spent is not None:
        output = output + spent * (q @ torch.stack(Ss, 2).mT)
    return _together(output, n), M, S, anchor


def _solved_by_chunks(
    q: Tensor, k: Tensor, rate: Tensor, ridge: Tensor, H: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """(H_t + L)^-1 q_t at every token, `(batch, head, pos, d_k)`, without decay, and the last H.

    With F F^T = H_0 + L before the chunk, p = F^-1 q and rows z = F^-1 b^1/2 k for its tokens, Woodbury's identity says

        (H_t + L)^-1 q = F^-T (p - Z^T (I + Z Z^T)^-1 Z p),    over rows i <= t alone

    A leading block's Cholesky factor is a leading block of the whole's: one factor R serves all tokens of a chunk, if
    what later tokens would add is struck out between the two triangular systems. All systems are solved from the right,
    so that tokens' rows stay as they lie in memory.
    """
    n = q.shape[2]
    size = min(chunk, n)
    # A rate of 0 adds nothing, and neither does this: the root's slope at 0 itself would be infinite.
    root = rate.clamp(min=torch.finfo(rate.dtype).tiny).sqrt()
    q, Z = (_in_chunks(x, size) for x in (q, k * root[..., None]))
    before, H = _carried(H, None, Z.mT @ Z)
    factor = torch.linalg.cholesky(before + torch.diag_embed(ridge)[:, None])
    p, Z = torch.linalg.solve_triangular(factor.mT, torch.cat([q, Z], -2), upper=True, left=False).split(size, -2)
    R = torch.linalg.cholesky(Z @ Z.mT + torch.eye(size, dtype=Z.dtype, device=Z.device))
    # Rows are the tokens that ask, columns those that they have seen.
    half = torch.linalg.solve_triangular(R.mT, p @ Z.mT, upper=True, left=False).tril()
    p = p - torch.linalg.solve_triangular(R, half, upper=False, left=False) @ Z
    return _together(torch.linalg.solve_triangular(factor, p, upper=False, left=False), n), H


def _solved_by_tokens(
    q: Tensor, k: Tensor, rate: Tensor, decay: Tensor, ridge: Tensor, H: Tensor
) -> tuple[Tensor, Tensor]:
    """The same with decay, which L does not share: no two tokens' matrices differ by few ranks.

    Every token has its system of d_k x d_k; those of a few at a time are in memory, and for the gradient they are
    formed again.
    """
    n, d = k.shape[2:]
    size = min(decayed_mesa_chunk(d), n)
    q, k, scaled = (_in_chunks(x, size) for x in (q, k, k * rate[..., None]))
    decays = _decays(decay, size, k)
    before, H = _carried(H, decays.last, (scaled * decays.to_end).mT @ k)
    L = torch.diag_embed(ridge)[:, None]

    def solve(q: Tensor, k: Tensor, scaled: Tensor, within: Tensor, since: Tensor, before: Tensor) -> Tensor:
        outer = rearrange(scaled[..., :, None] * k[..., None, :], "b h pos d e -> b h pos (d e)")
        own = rearrange(within @ outer, "b h pos (d e) -> b h pos d e", d=d)
        solved: Tensor = _SymmetricSolve.apply(own + since[..., None] * before[:, :, None] + L, q)  # type: ignore[no-untyped-call]
        return solved

    parts = zip(*(x.unbind(2) for x in (q, k, scaled, decays.within, decays.since, before)), strict=True)
    if torch.is_grad_enabled():
        # What is formed again is formed without randomness.
        x = [checkpoint(solve, *part, use_reentrant=False, preserve_rng_state=False) for part in parts]
    else:
        x = [solve(*part) for part in parts]
    return _together(torch.stack(x, 2), n), H


class _SymmetricSolve(torch.autograd.Function):
    """x = A^-1 b for symmetric positive A, `(..., d, d)`, and b, `(..., d)`; its gradient costs another solve.

    The gradient of a Cholesky factor, which autograd would take, costs several products of d x d.
    """

    @staticmethod
    def forward(ctx: Any, A: Tensor, b: Tensor) -> Tensor:
        factor = torch.linalg.cholesky(A)
        x = torch.cholesky_solve(b[..., None], factor)[..., 0]
        ctx.save_for_backward(factor, x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        factor, x = ctx.saved_tensors
        to_b = torch.cholesky_solve(gradient[..., None], factor)[..., 0]
        return -to_b[..., :, None] * x[..., None, :], to_b


class _Decays(NamedTuple):
    """How much of what was there is left, in chunks."""

    since: Tensor
    """c_t, since the chunk's start, `(batch, head, chunk, pos, 1)`, or a 1 of as many axes."""
    within: Tensor
    """D_ti, since a token of the chunk, 0 for i > t: `(batch, head, chunk, pos, pos)`, or `(pos, pos)`."""
    to_end: Tensor
    """D_ti with t the chunk's last token, `(batch, head, chunk, pos, 1)`, or a 1 of as many axes."""
    last: Tensor | None
    """c at the last token, `(batch, head, chunk, 1, 1)`; None where nothing decays."""


def _decays(decay: Tensor | None, size: int, like: Tensor) -> _Decays:
    if decay is None:
        ones = like.new_ones(1, 1, 1, 1, 1)
        return _Decays(ones, like.new_ones(size, size).tril(), ones, None)
    a = _in_chunks(decay[..., None], size, filler=1.0)
    within: Tensor = _ProductsSince.apply(a)  # type: ignore[no-untyped-call]
    since = within[..., :1] * a[..., :1, :]
    return _Decays(since, within, within[..., -1, :, None], since[..., -1:, :])


class _ProductsSince(torch.autograd.Function):
    """D_ti = a_{i+1} ... a_t for i <= t, 0 for i > t, `(..., pos, pos)`, of a, `(..., pos, 1)`; D_tt is 1.

    The slope in a_j of a product with j in it is the product behind j times that before it, D_tj D_{j-1,i}: right where
    a_j is 0, at which a logarithm has no slope and nothing can be divided by a_j.
    """

    @staticmethod
    def forward(ctx: Any, a: Tensor) -> Tensor:
        later = torch.ones(a.shape[-2], a.shape[-2], dtype=torch.bool, device=a.device).tril(-1)
        products = torch.where(later, a, 1.0).cumprod(-2).tril()
        ctx.save_for_backward(products)
        return products

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (products,) = ctx.saved_tensors
        behind = products.mT @ gradient
        # No product has the first token's own decay in it.
        return F.pad((behind[..., 1:, :] * products[..., :-1, :]).sum(-1, keepdim=True), (0, 0, 1, 0))


def _decayed(S: Tensor, last: Tensor | None, number: int) -> Tensor:
    return S if last is None else last[:, :, number] * S


def _carried(S: Tensor, last: Tensor | None, added: Tensor) -> tuple[Tensor, Tensor]:
    """Weights before each chunk, `(batch, head, chunk, d_v, d_k)`, and after the last, given what each chunk adds."""
    before = []
    # One after the other, without decay too: on a processor a cumulative sum over an axis in the middle is slower.
    for number, addend in enumerate(added.unbind(2)):
        before.append(S)
        S = S + addend if last is None else torch.addcmul(addend, last[:, :, number], S)
    return torch.stack(before, 2), S


def _read(q: Tensor, k: Tensor, u: Tensor, decays: _Decays, before: Tensor) -> Tensor:
    return (q @ k.mT * decays.within) @ u + decays.since * (q @ before.mT)


def _in_chunks(x: Tensor, size: int, filler: float = 0.0) -> Tensor:
    """`(batch, head, pos, d)` -> `(batch, head, chunk, pos, d)`; tokens that fill up the last chunk write nothing."""
    missing = -x.shape[2] % size
    if missing:
        x = F.pad(x, (0, 0, 0, missing), value=filler)
    return rearrange(x, "b h (chunk pos) d -> b h chunk pos d", pos=size)


def _together(x: Tensor, n: int) -> Tensor:
    return rearrange(x, "b h chunk pos d -> b h (chunk pos) d")[:, :, :n]
