"""Weights of linear self-attention that do gradient descent on the examples in its context.

A token is e = (x, y), an example a row, and a layer without softmax adds

    e_j <- e_j + sum_h P_h sum_i W_V_h e_i (W_K_h e_i)^T W_Q_h e_j

where i runs over the examples and j over examples and queries. With W_K = W_Q = [[I, 0], [0, 0]], W_V = [[0, 0],
[W_0, -I]] and P = (eta / N) I that is e_j <- (x_j, y_j - dW x_j), where dW = -(eta / N) sum_i (W_0 x_i - y_i) x_i^T is
one step of gradient descent from W_0 on (1 / 2N) sum_i |W x_i - y_i|^2: to have W_0 + dW instead of W_0 is to have
targets that are dW x less. So the same layer again does the next step, and a query that goes in as (x, -W_0 x) comes
out as (x, -(W_0 + dW) x), minus the prediction.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import einsum
from torch import Tensor

from dualform.errors import ConfigError, ShapeError


@dataclass(frozen=True)
class LinearSelfAttention:
    """Weights of a layer, in the paper's letters; each acts on a token as a column, W e."""

    W_K: Tensor
    """`(head, d_k, d_token)`."""
    W_Q: Tensor
    """`(head, d_k, d_token)`."""
    W_V: Tensor
    """`(head, d_v, d_token)`."""
    P: Tensor
    """`(head, d_token, d_v)`."""
    skip: Tensor | None = None
    """What is kept of a token itself, `(d_token, d_token)`; None for all of it, the residual connection."""


def gd_layer(W0: Tensor, eta: float, n_context: int) -> LinearSelfAttention:
    """The layer that does one step of gradient descent from W_0; K of it do K steps.

    Args:
        W0: `(d_y, d_x)`.
        eta: Rate of the step.
        n_context: N, which must be the number of examples that the layer is applied to: it stands in the weights, and
            with n of them the step's rate is eta n / N.

    Source:
        arXiv:2212.07677, proposition 1; a layer's keys and values are of the examples only, as in its released code.
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
    """The layer of GD++: the step of `gd_layer`, and by a second head x_j <- (I - gamma sum_i x_i x_i^T) x_j.

    Both are of the tokens that come in. Queries are transformed as examples are. After it, W_0 x is no longer what it
    was, so that in depth the layers do GD++ on the first layer's loss at W_0 = 0 only.

    Args:
        W0: `(d_y, d_x)`.
        eta: Rate of the step.
        gamma: How much of the curvature is taken out of the inputs; not divided by N.
        n_context: N, examples in context.

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
    """The layer that does one step of gradient descent on (1 / 2N) (sum_i |W x_i - y_i|^2 + strength |W|^2).

    Its step is W <- (1 - c) W - (eta / N) sum_i (W x_i - y_i) x_i^T with the decay c = eta strength / N. The decay asks
    for two things that `gd_layer` does without. First, y_i - W x_i alone is no longer enough to go on: what shrinks is
    W x_i and not y_i. So a token is (x, y, p) with p = -W x, whose values are -(y + p). Second, p must lose a share c
    of itself, which no sum over the other tokens can give: it is the `skip` that keeps 1 - c of p.

        p_j <- (1 - c) p_j - (eta / N) sum_i (y_i + p_i) x_i^T x_j

    The same descent without a self-term is `gd_layer` over d_x more examples (sqrt(strength) u, 0), u a unit vector of
    each coordinate.

    Args:
        d_x: Of an input.
        d_y: Of an output.
        eta: Rate of the step; layers converge to the closed form where it is below 2 N over the largest eigenvalue of
            the Gram matrix plus `strength`.
        strength: Of ridge, 0 or more, as added to the Gram matrix.
        n_context: N, examples in context.

    Returns:
        Weights in float64.

    Source:
        dualform's own derivation. That a transformer's layers can do ridge regression: arXiv:2211.15661, theorems 1
        and 2, by other constructions.
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
        weights: Of the layer.
        tokens: Examples and then queries, `(..., token, d_token)`.
        keys_from: Tokens that are attended to, the first ones: the examples. Queries attend to them, and nothing
            attends to a query.

    Raises:
        ShapeError: Tokens are of another width than the weights, or fewer than `keys_from`.

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
    """What layers of `gd_layer` or `gd_plus_plus_layer` predict: minus what they make of a query's y.

    Args:
        layers: Applied in order.
        x: Inputs in context, `(..., point, d_x)`.
        y: Their targets, `(..., point, d_y)`.
        query: Inputs whose y is predicted, `(..., query, d_x)`; each is predicted independently of the others.
        W0: The weights that the layers descend from, `(d_y, d_x)`; None for zero. They must be those that the layers
            were made with, which cannot be seen here: with others, examples and query start from different weights.

    Returns:
        `(..., query, d_y)`.

    Source:
        arXiv:2212.07677, section 3: depth is steps.
    """
    _require_examples(x, y, query)
    query_token = query.new_zeros(*query.shape[:-1], y.shape[-1]) if W0 is None else -query @ W0.T
    return -_through(layers, torch.cat([x, y], -1), torch.cat([query, query_token], -1))[..., x.shape[-1] :]


def ridge_by_layers(layers: Sequence[LinearSelfAttention], x: Tensor, y: Tensor, query: Tensor) -> Tensor:
    """What layers of `ridge_layer` predict, from W = 0: minus what they make of a query's p, `(..., query, d_y)`.

    Args:
        layers: Applied in order.
        x: Inputs in context, `(..., point, d_x)`.
        y: Their targets, `(..., point, d_y)`.
        query: Inputs whose y is predicted, `(..., query, d_x)`; each is predicted independently of the others.

    Source:
        dualform's own; see `ridge_layer`.
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
