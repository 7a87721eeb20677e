"""Numerical checks that layers which learn at inference compute their formulas, each against a slow, direct reference.

References do not share code with the layers: the gradient of an inner loss by autograd, a linear system solved at every
token, or an exact predictor of in-context regression. All in float64 at random tokens; errors are
||layer - reference|| / ||reference|| over all outputs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.lab.predictors import Descent, OnePassSGD, Ridge, by_point
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.ops.fast_weights import NORM_EPS, FastWeightRule, FastWeightState, fast_weights
from dualform.ops.streams import stream
from dualform.studies.laboratory.claims import claim_in_seeds
from dualform.studies.laboratory.result import Claim

TOLERANCE = 1e-10
"""Largest relative error that can be due to rounding; in float64 over tens of tokens it is below 1e-13."""

_CHUNK, _MINI_BATCH = 5, 4
"""Smaller than the sequences, so that weights are carried over from chunk to chunk."""


@dataclass(frozen=True)
class _Tokens:
    """Inputs of a layer: q, k, v `(batch, head, pos, d)`; rate, decay, momentum `(batch, head, pos)`."""

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    decay: Tensor
    momentum: Tensor
    ridge: Tensor
    norm: tuple[Tensor, Tensor]
    start: Tensor
    """Initial weights for layers with a LayerNorm, which has no gradient at zero."""


@dataclass(frozen=True)
class _Case:
    says: str
    error: Callable[[_Tokens, Sequences], Tensor]
    source: str
    must_fail: bool = False


def equivalence_errors(seeds: Sequence[int], tasks: RegressionTasks) -> Tensor:
    """Relative errors of each layer from its reference, `(case, seed)`.

    Args:
        seeds: Seeds of tokens, weights and examples.
        tasks: Distribution of the examples (x, y) for layers that read them as keys and values.
    """
    inputs = [_draw(seed, tasks) for seed in seeds]
    return torch.stack([torch.stack([case.error(*each) for each in inputs]) for case in _CASES])


def equivalence_claims(errors: Tensor) -> list[Claim]:
    """Claims of equivalence, and cases that must fail.

    Args:
        errors: Result of `equivalence_errors`, `(case, seed)`.

    Returns:
        Claims with relative errors over seeds. A claim holds if its error is below `TOLERANCE` in every seed; a case
        that must fail holds if it is below in any. If a seed's error is NaN the mean is missing, and the claim neither
        holds nor fails.
    """
    return [
        claim_in_seeds(
            case.says,
            f"relative error below {TOLERANCE:.0e} in every seed",
            own,
            [error < TOLERANCE for error in own],
            must_fail=case.must_fail,
            source=case.source,
        )
        for case, own in zip(_CASES, errors.tolist(), strict=True)
    ]


def _draw(seed: int, tasks: RegressionTasks) -> tuple[_Tokens, Sequences]:
    generator = stream("equivalences", seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    def share(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    batch, heads, pos, d = 2, 2, 18, 6
    tokens = _Tokens(
        q=normal(batch, heads, pos, d),
        k=F.normalize(normal(batch, heads, pos, d), dim=-1),
        v=normal(batch, heads, pos, d),
        rate=0.2 + 0.6 * share(batch, heads, pos),
        decay=0.8 + 0.2 * share(batch, heads, pos),
        momentum=0.6 * share(batch, heads, pos),
        ridge=0.5 + share(heads, d),
        norm=(1 + 0.2 * normal(heads, d), 0.2 * normal(heads, d)),
        start=normal(batch, heads, d, d),
    )
    return tokens, tasks.draw(8, generator, dtype=torch.float64)


def _relative_error(actual: Tensor, expected: Tensor) -> Tensor:
    return (actual - expected).norm() / expected.norm()


def _layer(rule: FastWeightRule, tokens: _Tokens, **options: Any) -> Tensor:
    return fast_weights(rule, tokens.q, tokens.k, tokens.v, chunk=_CHUNK, **options).output


def _outputs_under(tokens: _Tokens, update: Callable[[Tensor, int], Tensor], start: Tensor | None = None) -> Tensor:
    """Outputs S_t q_t with S_t = update(S_{t-1}, t), starting from `start` or zero."""
    S = torch.zeros_like(tokens.start) if start is None else start
    outputs = []
    for t in range(tokens.k.shape[2]):
        S = update(S, t)
        outputs.append(_read(S, tokens.q[:, :, t]))
    return torch.stack(outputs, 2)


def _read(S: Tensor, at: Tensor) -> Tensor:
    return (S @ at[..., None])[..., 0]


def _gradient(loss: Callable[[Tensor], Tensor], S: Tensor) -> Tensor:
    """Gradient of a loss with respect to S; the loss is summed over batch and heads, each of which has its own S."""
    with torch.enable_grad():
        S = S.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(loss(S).sum(), S)
    return gradient


def _scalars(values: Tensor, t: int) -> Tensor:
    return values[:, :, t, None, None]


def _squared_error(tokens: _Tokens, t: int) -> Callable[[Tensor], Tensor]:
    return lambda S: (_read(S, tokens.k[:, :, t]) - tokens.v[:, :, t]).square().sum(-1)


def _linear(tokens: _Tokens, _: Sequences) -> Tensor:
    scores = (tokens.q @ tokens.k.mT).tril()
    return _relative_error(_layer("linear", tokens), scores @ tokens.v)


def _linear_by_autograd(tokens: _Tokens, _: Sequences) -> Tensor:
    def update(S: Tensor, t: int) -> Tensor:
        loss = lambda S: -(_read(S, tokens.k[:, :, t]) * tokens.v[:, :, t]).sum(-1)  # noqa: E731
        return S - _scalars(tokens.rate, t) * _gradient(loss, S)

    layer = _layer("linear", tokens, rate=tokens.rate)
    return _relative_error(layer, _outputs_under(tokens, update))


def _delta(tokens: _Tokens, _: Sequences, factor: float = 1.0) -> Tensor:
    def update(S: Tensor, t: int) -> Tensor:
        return S - _scalars(tokens.rate, t) * _gradient(_squared_error(tokens, t), S) / 2

    layer = _layer("delta", tokens, rate=factor * tokens.rate)
    return _relative_error(layer, _outputs_under(tokens, update))


def _gated_delta(tokens: _Tokens, _: Sequences) -> Tensor:
    def update(S: Tensor, t: int) -> Tensor:
        S = _scalars(tokens.decay, t) * S
        return S - _scalars(tokens.rate, t) * _gradient(_squared_error(tokens, t), S) / 2

    layer = _layer("gated-delta", tokens, rate=tokens.rate, decay=tokens.decay)
    return _relative_error(layer, _outputs_under(tokens, update))


def _longhorn(tokens: _Tokens, _: Sequences) -> Tensor:
    def update(S: Tensor, t: int) -> Tensor:
        # S_t (I + b k k^T) = S_{t-1} + b v k^T: the gradient is taken at S_t, not at S_{t-1}.
        k, v, b = tokens.k[:, :, t], tokens.v[:, :, t], _scalars(tokens.rate, t)
        system = torch.eye(k.shape[-1]).to(k) + b * k[..., :, None] * k[..., None, :]
        return torch.linalg.solve(system, S + b * v[..., :, None] * k[..., None, :], left=False)

    # Keys of different lengths: with unit keys the implicit step would differ only by a constant factor.
    tokens = _Tokens(**{**vars(tokens), "k": 2 * tokens.k * tokens.decay[..., None]})
    layer = _layer("longhorn", tokens, rate=tokens.rate)
    return _relative_error(layer, _outputs_under(tokens, update))


def _mesa(tokens: _Tokens, _: Sequences) -> Tensor:
    def update(_: Tensor, t: int) -> Tensor:
        # Ridge regression as least squares with d more examples, with keys sqrt(ridge) e_i and values 0.
        k, v = tokens.k[:, :, : t + 1], tokens.v[:, :, : t + 1]
        extra = torch.diag_embed(tokens.ridge.sqrt()).expand(*k.shape[:2], -1, -1)
        A, B = torch.cat([k, extra], 2), F.pad(v, (0, 0, 0, extra.shape[-1]))
        return torch.linalg.lstsq(A, B).solution.mT

    layer = _layer("mesa", tokens, ridge=tokens.ridge)
    return _relative_error(layer, _outputs_under(tokens, update))


def _layer_norm(x: Tensor, norm: tuple[Tensor, Tensor]) -> Tensor:
    weight, bias = norm
    deviation = (x.var(-1, unbiased=False, keepdim=True) + NORM_EPS).sqrt()
    return (x - x.mean(-1, keepdim=True)) / deviation * weight + bias


def _ttt(tokens: _Tokens, _: Sequences) -> Tensor:
    before = tokens.start

    def update(S: Tensor, t: int) -> Tensor:
        nonlocal before
        if t % _MINI_BATCH == 0:
            before = S
        k, v = tokens.k[:, :, t], tokens.v[:, :, t]
        loss = lambda S: (_layer_norm(_read(S, k), tokens.norm) - (v - k)).square().sum(-1) / 2  # noqa: E731
        return S - _scalars(tokens.rate, t) * _gradient(loss, before)

    layer = _layer(
        "ttt-linear",
        tokens,
        rate=tokens.rate,
        norm=tokens.norm,
        mini_batch=_MINI_BATCH,
        state=FastWeightState("ttt-linear", tokens.start),
    )
    return _relative_error(layer, _outputs_under(tokens, update, tokens.start))


def _titans(tokens: _Tokens, _: Sequences, normed: bool = False) -> Tensor:
    before = tokens.start
    velocity = torch.zeros_like(before)

    def update(M: Tensor, t: int) -> Tensor:
        nonlocal before, velocity
        if t % _MINI_BATCH == 0:
            before = M
        k, v = tokens.k[:, :, t], tokens.v[:, :, t]
        mapped = (lambda M: _layer_norm(_read(M, k), tokens.norm)) if normed else (lambda M: _read(M, k))
        gradient = _gradient(lambda M: (mapped(M) - v).square().sum(-1), before)  # type: ignore[no-untyped-call]
        velocity = _scalars(tokens.momentum, t) * velocity - _scalars(rate, t) * gradient
        return _scalars(tokens.decay, t) * M + velocity

    # The loss is not halved, so half the rate gives the same step.
    rate = tokens.rate / 2
    layer = _layer(
        "titans",
        tokens,
        rate=rate,
        decay=tokens.decay,
        momentum=tokens.momentum,
        norm=tokens.norm if normed else None,
        mini_batch=_MINI_BATCH,
        state=FastWeightState("titans", tokens.start),
    )
    return _relative_error(layer, _outputs_under(tokens, update, tokens.start))


def _as_regressor(rule: FastWeightRule, examples: Sequences, rate: float = 1.0, ridge: float = 1.0) -> Tensor:
    """Predictions of a layer with k = x and v = y, read at the next point's x, `(sequence, point)`."""
    x, y = examples.x[:, None], examples.y[:, None, :, None]
    read = fast_weights(rule, x[:, :, 1:], x[:, :, :-1], y[:, :, :-1], rate=rate, ridge=ridge)
    return F.pad(read.output[:, 0, :, 0], (1, 0))


_SGD_RATE, _STRENGTH = 0.1, 0.7


def _sgd(_: _Tokens, examples: Sequences) -> Tensor:
    return _relative_error(
        _as_regressor("delta", examples, rate=_SGD_RATE), by_point(OnePassSGD(_SGD_RATE), examples.x, examples.y)
    )


def _sgd_of_permuted(_: _Tokens, examples: Sequences) -> Tensor:
    permuted = Sequences(examples.x, examples.y.roll(1, dims=1), examples.clean, examples.w)
    return _relative_error(
        _as_regressor("delta", permuted, rate=_SGD_RATE), by_point(OnePassSGD(_SGD_RATE), examples.x, examples.y)
    )


def _ridge(_: _Tokens, examples: Sequences) -> Tensor:
    return _relative_error(
        _as_regressor("mesa", examples, ridge=_STRENGTH), by_point(Ridge(_STRENGTH), examples.x, examples.y)
    )


def _one_step(examples: Sequences) -> Tensor:
    return by_point(Descent(1, 1.0), examples.x, examples.y)


def _gradient_step(_: _Tokens, examples: Sequences) -> Tensor:
    # The loss is a mean over examples, so the sum is divided by their number.
    N = torch.arange(examples.y.shape[1], dtype=torch.float64).clamp(min=1)
    return _relative_error(_as_regressor("linear", examples) / N, _one_step(examples))


def _softmax_as_gradient_step(_: _Tokens, examples: Sequences) -> Tensor:
    x, y = examples.x, examples.y
    scores = x[:, 1:] @ x[:, :-1].mT
    seen = torch.ones(scores.shape[1:], dtype=torch.bool).tril()
    attended = F.pad((scores.masked_fill(~seen, -torch.inf).softmax(-1) @ y[:, :-1, None])[..., 0], (1, 0))
    step = _one_step(examples)
    # The best rate for the step, the same at all points.
    return _relative_error((attended * step).sum() / step.square().sum() * step, attended)


_CASES = (
    _Case(
        "Linear attention is additive fast weights: sum_i v_i (k_i^T q) = (sum_i v_i k_i^T) q.",
        _linear,
        "arXiv:2102.11174, section 3",
    ),
    _Case(
        "Linear attention's update is a gradient step on -<v, S k>, by autograd.",
        _linear_by_autograd,
        "arXiv:2212.10559v3, equations (8) and (9)",
    ),
    _Case(
        "The delta rule's update is one SGD step on 1/2 ||S k - v||^2, by autograd.",
        _delta,
        "arXiv:2102.11174, section 4.2",
    ),
    _Case(
        "The gated delta rule's update is the same step from decayed weights.",
        _gated_delta,
        "arXiv:2412.06464, section 3",
    ),
    _Case(
        "Longhorn's update is the implicit step: the gradient of 1/2 b ||S k - v||^2 is taken at the new weights.",
        _longhorn,
        "arXiv:2407.14207, section 3",
    ),
    _Case(
        "The mesa layer's weights are those of ridge regression at every token.",
        _mesa,
        "arXiv:2309.05858",
    ),
    _Case(
        "TTT-linear's update, LayerNorm included, is the gradient of 1/2 ||LN(W k) - (v - k)||^2 at the start of each "
        f"mini-batch of {_MINI_BATCH}, by autograd.",
        _ttt,
        "arXiv:2407.04620, section 2",
    ),
    _Case(
        "Titans' update is descent with momentum and weight decay on ||M k - v||^2, its gradient at the start of each "
        f"mini-batch of {_MINI_BATCH}, by autograd.",
        _titans,
        "arXiv:2501.00663, section 3.1",
    ),
    _Case(
        "Titans' update with a LayerNorm is the same on ||LN(M k) - v||^2, by autograd.",
        lambda tokens, examples: _titans(tokens, examples, normed=True),
        "arXiv:2501.00663, section 3.1",
    ),
    _Case(
        "A delta-rule layer with k = x and v = y makes the predictions of one pass of SGD.",
        _sgd,
        "arXiv:2211.15661, section 4.1; arXiv:2102.11174",
    ),
    _Case(
        "A mesa layer with k = x and v = y makes the predictions of ridge regression.",
        _ridge,
        "arXiv:2309.05858",
    ),
    _Case(
        "A linear attention layer with k = x and v = y, divided by the number of examples, makes the predictions of "
        "one step of gradient descent from 0.",
        _gradient_step,
        "arXiv:2212.07677, proposition 1",
    ),
    _Case(
        "A softmax attention layer with k = x and v = y makes the predictions of one step of gradient descent from 0 "
        "at the best rate.",
        _softmax_as_gradient_step,
        "arXiv:2212.10559v3, equation (11), which first removes the softmax",
        must_fail=True,
    ),
    _Case(
        "The delta rule at 1.1 times the rate is the same SGD step.",
        lambda tokens, examples: _delta(tokens, examples, factor=1.1),
        "",
        must_fail=True,
    ),
    _Case(
        "A delta-rule layer that reads permuted y makes the predictions of one pass of SGD on the true y.",
        _sgd_of_permuted,
        "",
        must_fail=True,
    ),
)
