"""Layers constructed to do gradient descent: K layers compared with K steps by autograd, also for GD++ and ridge.

All in float64, from random W_0, examples and queries. Each construction is compared with an independent computation of
the descent, and also with computations from which it must differ.
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
"""Number of layers and of steps."""
RATE, CURVATURE, STRENGTH = 0.3, 0.02, 0.5
"""eta, gamma N (gamma itself is not divided by N in the constructions), and lambda of ridge."""
TOLERANCE = 1e-12
_OUTPUTS = 3
_QUERIES = 16


def depth_errors(dimension: int, points: int, seed: int) -> dict[str, float]:
    """Relative deviations ||layers - steps|| / ||steps|| over all queries, by name of the claim."""
    generator = stream("construction depth", seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    x, y, query = normal(points, dimension), normal(points, _OUTPUTS), normal(_QUERIES, dimension)
    W_0, zero = normal(_OUTPUTS, dimension), torch.zeros(_OUTPUTS, dimension, dtype=torch.float64)
    # Rates below the stability limit, so that steps do not amplify rounding errors.
    largest = float(torch.linalg.eigvalsh(x.mT @ x / points)[-1])
    rate, gamma = RATE / largest, CURVATURE / (points * largest)
    permuted = y.roll(1, dims=0)

    def descended(W: Tensor, steps: int = DEPTH, rate: float = rate, strength: float = 0.0, y: Tensor = y) -> Tensor:
        return query @ _descent(W, x, y, steps, rate, strength).mT

    layers = [gd_layer(W_0, rate, points)] * DEPTH
    deep = descend_by_layers(layers, x, y, query, W_0)
    plus = descend_by_layers([gd_plus_plus_layer(zero, rate, gamma, points)] * DEPTH, x, y, query)
    ridge = ridge_by_layers([ridge_layer(dimension, _OUTPUTS, rate, STRENGTH, points)] * DEPTH, x, y, query)
    softmax = _by_softmax(layers, x, y, query, W_0)
    steps = descended(W_0)
    return {
        "one": _relative_error(descend_by_layers(layers[:1], x, y, query, W_0), descended(W_0, 1)),
        "deep": _relative_error(deep, steps),
        "plus": _relative_error(plus, _gd_plus_plus(x, y, query, DEPTH, rate, gamma)),
        "ridge": _relative_error(ridge, descended(zero, strength=STRENGTH)),
        "fewer": _relative_error(deep, descended(W_0, DEPTH - 1)),
        "rate": _relative_error(deep, descended(W_0, rate=2 * rate)),
        "labels": _relative_error(deep, descended(W_0, y=permuted)),
        "softmax": _relative_error(softmax, steps),
        "plain": _relative_error(plus, descended(zero)),
        "unregularised": _relative_error(ridge, descended(zero)),
    }


_SAYS: Mapping[str, tuple[str, str, bool]] = {
    "one": ("A layer with constructed weights does one gradient step", "arXiv:2212.07677v2, proposition 1", False),
    "deep": (f"{DEPTH} such layers do {DEPTH} gradient steps", "arXiv:2212.07677v2, section 3", False),
    "plus": (f"{DEPTH} layers of GD++ do {DEPTH} steps of GD++", "arXiv:2212.07677v2, A.10", False),
    "ridge": (f"{DEPTH} layers with decay do {DEPTH} gradient steps on the ridge loss", "", False),
    "fewer": (f"{DEPTH} layers do {DEPTH - 1} gradient steps", "", True),
    "rate": (f"{DEPTH} layers do gradient steps twice as long", "", True),
    "labels": (f"{DEPTH} layers do gradient steps on permuted targets", "", True),
    "softmax": ("The same weights with softmax do gradient steps", "", True),
    "plain": (f"{DEPTH} layers of GD++ do plain gradient steps", "", True),
    "unregularised": (f"{DEPTH} layers with decay do gradient steps on the loss without ridge", "", True),
}
"""Name -> claim, source, whether it must fail."""


def depth_claims(errors: Sequence[Mapping[str, float]]) -> list[Claim]:
    """Claims about layers and gradient steps.

    Args:
        errors: Results of `depth_errors`, one a seed.
    """
    return [
        claim_in_seeds(
            f"{says}.",
            f"relative deviation below {TOLERANCE:g}",
            [by_name[name] for by_name in errors],
            [by_name[name] < TOLERANCE for by_name in errors],
            must_fail=must_fail,
            source=source,
        )
        for name, (says, source, must_fail) in _SAYS.items()
    ]


def _relative_error(actual: Tensor, expected: Tensor) -> float:
    return float((actual - expected).norm() / expected.norm())


def _descent(W: Tensor, x: Tensor, y: Tensor, steps: int, rate: float, strength: float = 0.0) -> Tensor:
    """W after steps on (1 / 2N) (sum_i |W x_i - y_i|^2 + strength |W|^2), its gradient by autograd."""
    for _ in range(steps):
        W = W.detach().requires_grad_()
        loss = ((x @ W.mT - y).square().sum() + strength * W.square().sum()) / (2 * len(x))
        (gradient,) = torch.autograd.grad(loss, W)
        W = W.detach() - rate * gradient
    return W


def _gd_plus_plus(x: Tensor, y: Tensor, query: Tensor, steps: int, rate: float, gamma: float) -> Tensor:
    """Predictions of GD++: each step fits the residuals, then transforms all inputs by I - gamma X X^T."""
    predicted = torch.zeros(len(query), y.shape[-1]).to(y)
    for _ in range(steps):
        W = _descent(torch.zeros(y.shape[-1], x.shape[-1]).to(x), x, y, 1, rate)
        predicted = predicted + query @ W.mT
        y = y - x @ W.mT
        shrink = torch.eye(x.shape[-1]).to(x) - gamma * x.mT @ x
        x, query = x @ shrink, query @ shrink
    return predicted


def _by_softmax(layers: Sequence[LinearSelfAttention], x: Tensor, y: Tensor, query: Tensor, W_0: Tensor) -> Tensor:
    """`descend_by_layers` with softmax of the scores, multiplied by N to turn the mean into a sum."""
    tokens = torch.cat([torch.cat([x, y], -1), torch.cat([query, -query @ W_0.mT], -1)])
    for layer in layers:
        k, q = (einsum(W, tokens, "head d e, pos e -> head pos d") for W in (layer.W_K, layer.W_Q))
        v = einsum(layer.W_V, tokens, "head d e, pos e -> head pos d")
        weights = len(x) * (q @ k[:, : len(x)].mT).softmax(-1)
        tokens = tokens + einsum(layer.P, weights @ v[:, : len(x)], "head e d, head pos d -> pos e")
    return -tokens[len(x) :, x.shape[-1] :]
