"""Layers whose weights are constructed to descend: K of them against K steps by autograd, GD++ and ridge with them.

All in float64, from random W_0, examples and queries; each is compared with descent that knows nothing of layers, and
each has cases in which the two must differ.
"""

from collections.abc import Mapping, Sequence

import torch
from einops import einsum
from torch import Tensor

from dualform.ops.constructions import (
    LinearSelfAttention,
    descend_by_layers,
    gd_layer,
    gd_plus_plus_layer,
    ridge_by_layers,
    ridge_layer,
)
from dualform.ops.streams import stream
from dualform.studies.laboratory.claims import claim_in_seeds
from dualform.studies.laboratory.result import Claim

DEPTH = 5
"""Layers, and steps."""
RATE, CURVATURE, STRENGTH = 0.3, 0.02, 0.5
"""eta, gamma N (the constructions' own is not divided by N), and ridge's lambda."""
TOLERANCE = 1e-12
_OUTPUTS = 3
_QUERIES = 16


def depth_errors(dimension: int, points: int, seed: int) -> dict[str, float]:
    """How far layers are from steps, ||layers - steps|| / ||steps|| over all queries, by name of the claim."""
    generator = stream("construction depth", seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, query = normal(points, dimension), normal(points, _OUTPUTS), normal(_QUERIES, dimension)
    W_0, zero = normal(_OUTPUTS, dimension), torch.zeros(_OUTPUTS, dimension, dtype=torch.float64)
    # Rates below what the examples' curvature allows, so that steps do not blow up what rounding has left.
    largest = float(torch.linalg.eigvalsh(x.mT @ x / points)[-1])
    rate, gamma = RATE / largest, CURVATURE / (points * largest)
    permuted = y.roll(1, dims=0)

    def descended(W: Tensor, steps: int = DEPTH, rate: float = rate, strength: float = 0.0, y: Tensor = y) -> Tensor:
        return query @ _descent(W, x, y, steps, rate, strength).mT

    layers = [gd_layer(W_0, rate, points)] * DEPTH
    found = descend_by_layers(layers, x, y, query, W_0)
    plus = descend_by_layers([gd_plus_plus_layer(zero, rate, gamma, points)] * DEPTH, x, y, query)
    ridge = ridge_by_layers([ridge_layer(dimension, _OUTPUTS, rate, STRENGTH, points)] * DEPTH, x, y, query)
    softmax = _by_softmax(layers, x, y, query, W_0)
    steps = descended(W_0)
    return {
        "one": _apart(descend_by_layers(layers[:1], x, y, query, W_0), descended(W_0, 1)),
        "deep": _apart(found, steps),
        "plus": _apart(plus, _gd_plus_plus(x, y, query, DEPTH, rate, gamma)),
        "ridge": _apart(ridge, descended(zero, strength=STRENGTH)),
        "fewer": _apart(found, descended(W_0, DEPTH - 1)),
        "rate": _apart(found, descended(W_0, rate=2 * rate)),
        "labels": _apart(found, descended(W_0, y=permuted)),
        "softmax": _apart(softmax, steps),
        "plain": _apart(plus, descended(zero)),
        "unregularised": _apart(ridge, descended(zero)),
    }


_SAYS: Mapping[str, tuple[str, str, bool]] = {
    "one": ("A layer of constructed weights makes one gradient step", "arXiv:2212.07677v2, proposition 1", False),
    "deep": (f"{DEPTH} such layers make {DEPTH} steps", "arXiv:2212.07677v2, section 3", False),
    "plus": (f"{DEPTH} layers of GD++ transform inputs and descend {DEPTH} times", "arXiv:2212.07677v2, A.10", False),
    "ridge": (f"{DEPTH} layers with decay make {DEPTH} steps on ridge's loss", "", False),
    "fewer": (f"{DEPTH} layers make {DEPTH - 1} steps", "", True),
    "rate": ("Layers make steps twice as long", "", True),
    "labels": ("Layers descend on permuted targets", "", True),
    "softmax": ("The same weights under softmax descend", "", True),
    "plain": ("Layers of GD++ descend without transforming inputs", "", True),
    "unregularised": ("Layers with decay descend on the loss without ridge", "", True),
}
"""Name -> claim, source, whether it must fail."""


def depth_claims(errors: Sequence[Mapping[str, float]]) -> list[Claim]:
    """Claims about layers and steps.

    Args:
        errors: From `depth_errors`, one a seed.
    """
    return [
        claim_in_seeds(
            f"{says}.",
            f"relative deviation below {TOLERANCE:g}",
            [one[name] for one in errors],
            [one[name] < TOLERANCE for one in errors],
            must_fail=must_fail,
            source=source,
        )
        for name, (says, source, must_fail) in _SAYS.items()
    ]


def _apart(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def _descent(W: Tensor, x: Tensor, y: Tensor, steps: int, rate: float, strength: float = 0.0) -> Tensor:
    """W after steps on (1 / 2N) (sum_i |W x_i - y_i|^2 + strength |W|^2), its gradient by autograd."""
    for _ in range(steps):
        W = W.detach().requires_grad_()
        loss = ((x @ W.mT - y).square().sum() + strength * W.square().sum()) / (2 * len(x))
        (gradient,) = torch.autograd.grad(loss, W)
        W = W.detach() - rate * gradient
    return W


def _gd_plus_plus(x: Tensor, y: Tensor, query: Tensor, steps: int, rate: float, gamma: float) -> Tensor:
    """What GD++ predicts: each step fits what is left of y, then inputs lose gamma X X^T of themselves."""
    predicted = torch.zeros(len(query), y.shape[-1]).to(y)
    for _ in range(steps):
        W = _descent(torch.zeros(y.shape[-1], x.shape[-1]).to(x), x, y, 1, rate)
        predicted = predicted + query @ W.mT
        y = y - x @ W.mT
        shrink = torch.eye(x.shape[-1]).to(x) - gamma * x.mT @ x
        x, query = x @ shrink, query @ shrink
    return predicted


def _by_softmax(layers: Sequence[LinearSelfAttention], x: Tensor, y: Tensor, query: Tensor, W_0: Tensor) -> Tensor:
    """`descend_by_layers` with scores through softmax, N times as large: what is a mean then counts as a sum."""
    tokens = torch.cat([torch.cat([x, y], -1), torch.cat([query, -query @ W_0.mT], -1)])
    for layer in layers:
        k, q = (einsum(W, tokens, "head d e, pos e -> head pos d") for W in (layer.W_K, layer.W_Q))
        v = einsum(layer.W_V, tokens, "head d e, pos e -> head pos d")
        weights = len(x) * (q @ k[:, : len(x)].mT).softmax(-1)
        tokens = tokens + einsum(layer.P, weights @ v[:, : len(x)], "head e d, head pos d -> pos e")
    return -tokens[len(x) :, x.shape[-1] :]
