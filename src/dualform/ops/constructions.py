"""Weights with which linear self-attention computes gradient descent on the examples in its context.

Each example is a token e = (x, y), one row of the input, and a layer without softmax computes

    e_j <- e_j + sum_h P_h sum_i W_V_h e_i (W_K_h e_i)^T W_Q_h e_j

where i runs over the examples and j over examples and queries. With W_K = W_Q = [[I, 0], [0, 0]], W_V = [[0, 0],
[W_0, -I]] and P = (eta / N) I this is e_j <- (x_j, y_j - dW x_j), where dW = -(eta / N) sum_i (W_0 x_i - y_i) x_i^T is
one step of gradient descent from W_0 on (1 / 2N) sum_i |W x_i - y_i|^2. Changing the weights from W_0 to W_0 + dW has
the same effect on the residuals as subtracting dW x from the targets, so applying the same layer again computes the
next step. A query that enters as (x, -W_0 x) leaves as (x, -(W_0 + dW) x), whose last part is minus the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from dualform.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class LinearSelfAttention:
    """Weights of a layer, in the paper's notation; each multiplies a token as a column, W e."""

    W_K: Tensor
    """`(head, d_k, d_token)`."""
    W_Q: Tensor
    """`(head, d_k, d_token)`."""
    W_V: Tensor
    """`(head, d_v, d_token)`."""
    P: Tensor
    """`(head, d_token, d_v)`."""
    skip: Tensor | None = None
    """Matrix by which the residual connection multiplies a token, `(d_token, d_token)`; None for the identity."""


def gd_layer(W0: Tensor, eta: float, n_context: int) -> LinearSelfAttention:
    """The layer that computes one step of gradient descent from W_0; applied K times, it computes K steps.

    Args:
        W0: `(d_y, d_x)`.
        eta: Learning rate of the step.
        n_context: N, the number of examples that the layer will be applied to. The weights contain it: applied to n
            examples, the learning rate is eta n / N.

    Source:
        arXiv:2212.07677, proposition 1; keys and values are those of the examples only, as in the released
        code.
    """
    _require_context(n_context)
    d_y, d_x = W0.shape
    x_part = _selection(d_x, d_x + d_y, W0)
    W_V = torch.zeros_like(x_part)
    W_V[d_x:, :d_x] = W0
    W_V[d_x:, d_x:] = -torch.eye(d_y).to(W0)
    P = eta / n_context * torch.eye(d_x + d_y).to(W0)
    return LinearSelfAttention(x_part[None], x_part[None], W_V[None], P[None])


def gd_plus_plus_layer(W0: Tensor, eta: float, gamma: float, n_context: int) -> LinearSelfAttention:
    """The layer of GD++: the step of `gd_layer`, and in a second head x_j <- (I - gamma sum_i x_i x_i^T) x_j.

    Both heads read the layer's input tokens, and queries are transformed like examples. Because this changes W_0 x,
    several such layers compute GD++ only for W_0 = 0.

    Args:
        W0: `(d_y, d_x)`.
        eta: Learning rate of the step.
        gamma: Strength of the transformation of the inputs; not divided by N.
        n_context: N, the number of examples in context.

    Source:
        arXiv:2212.07677, GD++.
    """
    step = gd_layer(W0, eta, n_context)
    x_part = step.W_K[0]
    return LinearSelfAttention(
        W_K=torch.stack([x_part, x_part]),
        W_Q=torch.stack([x_part, x_part]),
        W_V=torch.stack([step.W_V[0], x_part]),
        P=torch.stack([step.P[0], -gamma * torch.eye(len(x_part)).to(W0)]),
    )


def ridge_layer(d_x: int, d_y: int, eta: float, strength: float, n_context: int) -> LinearSelfAttention:
    """The layer that computes one step of gradient descent on (1 / 2N) (sum_i |W x_i - y_i|^2 + strength |W|^2).

    Its step is W <- (1 - c) W - (eta / N) sum_i (W x_i - y_i) x_i^T with the decay c = eta strength / N. It
    differs from `gd_layer` in two ways. First, a token must hold y_i and W x_i separately, because the decay shrinks
    W x_i but not y_i. So a token is (x, y, p) with p = -W x, and its values are -(y + p). Second, p must shrink by the
    factor 1 - c, which attention to other tokens cannot compute; this is what `skip` does.

        p_j <- (1 - c) p_j - (eta / N) sum_i (y_i + p_i) x_i^T x_j

    The same descent without `skip` is `gd_layer` with d_x additional examples (sqrt(strength) u, 0), where u is the
    unit vector of each coordinate.

    Args:
        d_x: Dimension of an input.
        d_y: Dimension of an output.
        eta: Rate of the step; layers converge to the closed form where it is below 2 N over the largest eigenvalue of
            the Gram matrix plus `strength`.
        strength: Ridge penalty, 0 or more, as added to the diagonal of the Gram matrix.
        n_context: N, the number of examples in context.

    Returns:
        Weights in float64.

    Source:
        dualform's own derivation. Theorems 1 and 2 of arXiv:2211.15661 show, by other constructions, that a
        transformer can compute ridge regression.
    """
    _require_context(n_context)
    if not strength >= 0:
        raise ConfigError(f"the strength of ridge is {strength}; expected 0 or more.")
    d_token = d_x + 2 * d_y
    p_part = slice(d_x + d_y, d_token)
    zeros = torch.zeros(d_token, d_token, dtype=torch.float64)
    x_part = _selection(d_x, d_token, zeros)
    W_V = zeros.clone()
    W_V[p_part, d_x : d_x + d_y] = -torch.eye(d_y)
    W_V[p_part, p_part] = -torch.eye(d_y)
    P = eta / n_context * torch.eye(d_token, dtype=torch.float64)
    skip = torch.eye(d_token, dtype=torch.float64)
    skip[p_part, p_part] *= 1 - eta * strength / n_context
    return LinearSelfAttention(x_part[None], x_part[None], W_V[None], P[None], skip)


def apply_layer(weights: LinearSelfAttention, tokens: Tensor, keys_from: int) -> Tensor:
    """The tokens after a layer, of the same shape.

    Args:
        weights: Weights of the layer.
        tokens: Examples and then queries, `(..., token, d_token)`.
        keys_from: Number of tokens that are attended to, which are the first ones (the examples). No token attends to
            a query.

    Raises:
        ShapeError: The width of the tokens is not that of the weights, or there are fewer than `keys_from`.

    Source:
        arXiv:2212.07677, the linear self-attention layer of proposition 1.
    """
    d_token = weights.W_K.shape[-1]
    if tokens.dim() < 2 or tokens.shape[-1] != d_token or not 0 <= keys_from <= tokens.shape[-2]:
        raise ShapeError(
            f"tokens must be (..., token, {d_token}) with {keys_from} or more of them to attend to; given "
            f"{tuple(tokens.shape)}."
        )
    attended = tokens[..., :keys_from, :]
    k = einsum(weights.W_K, attended, "head d_k d_token, ... pos d_token -> ... head pos d_k")
    v = einsum(weights.W_V, attended, "head d_v d_token, ... pos d_token -> ... head pos d_v")
    q = einsum(weights.W_Q, tokens, "head d_k d_token, ... token d_token -> ... head token d_k")
    written = einsum(q, v.mT @ k, "... head token d_k, ... head d_v d_k -> ... head token d_v")
    update = einsum(weights.P, written, "head d_token d_v, ... head token d_v -> ... token d_token")
    return (tokens if weights.skip is None else tokens @ weights.skip.T) + update


def descend_by_layers(
    layers: Sequence[LinearSelfAttention], x: Tensor, y: Tensor, query: Tensor, W0: Tensor | None = None
) -> Tensor:
    """Predictions of layers from `gd_layer` or `gd_plus_plus_layer`: minus the last part of each query's token.

    Args:
        layers: Applied in order.
        x: Inputs in context, `(..., point, d_x)`.
        y: Their targets, `(..., point, d_y)`.
        query: Inputs to predict, `(..., query, d_x)`, independently of each other.
        W0: The initial weights, `(d_y, d_x)`; None for zero. They must be those with which the layers were built,
            which is not checked; otherwise examples and queries start from different weights.

    Returns:
        `(..., query, d_y)`.

    Source:
        arXiv:2212.07677, section 3: each layer is one step.
    """
    _require_examples(x, y, query)
    query_token = query.new_zeros(*query.shape[:-1], y.shape[-1]) if W0 is None else -query @ W0.T
    return -_through(layers, torch.cat([x, y], -1), torch.cat([query, query_token], -1))[..., x.shape[-1] :]


def ridge_by_layers(layers: Sequence[LinearSelfAttention], x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """Predictions of layers from `ridge_layer`, starting at W = 0: minus each query's p, `(..., query, d_y)`.

    Args:
        layers: Applied in order.
        x: Inputs in context, `(..., point, d_x)`.
        y: Their targets, `(..., point, d_y)`.
        query: Inputs to predict, `(..., query, d_x)`, independently of each other.

    Source:
        See `ridge_layer`.
    """
    _require_examples(x, y, query)
    examples = torch.cat([x, y, torch.zeros_like(y)], -1)
    query_token = torch.cat([query, query.new_zeros(*query.shape[:-1], 2 * y.shape[-1])], -1)
    return -_through(layers, examples, query_token)[..., x.shape[-1] + y.shape[-1] :]


def _through(layers: Sequence[LinearSelfAttention], examples: Tensor, queries: Tensor) -> Tensor:
    """The queries' tokens after all layers."""
    tokens = torch.cat([examples, queries], dim=-2)
    n_context = examples.shape[-2]
    for layer in layers:
        tokens = apply_layer(layer, tokens, n_context)
    return tokens[..., n_context:, :]


def _selection(width: int, d_token: int, like: Tensor) -> Tensor:
    """[[I, 0], [0, 0]]: keeps the first entries of a token."""
    kept = torch.zeros(d_token).to(like)
    kept[:width] = 1
    return torch.diag(kept)


def _require_context(n_context: int) -> None:
    if n_context < 1:
        raise ConfigError(f"n_context is {n_context}; a step on a mean over examples needs 1 or more.")


def _require_examples(x: Tensor, y: Tensor, query: Tensor) -> None:
    if min(x.dim(), y.dim(), query.dim()) < 2 or x.shape[:-1] != y.shape[:-1] or x.shape[-1] != query.shape[-1]:
        raise ShapeError(
            "x must be (..., point, d_x), y (..., point, d_y) and query (..., query, d_x); given "
            f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(query.shape)}."
        )
