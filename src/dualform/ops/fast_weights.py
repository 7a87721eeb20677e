"""Fast weights: layers whose weights are updated at every token by descent on an inner loss, for several rules.

A layer's weights S, of shape d_v x d_k, map keys to values, and each token updates them once. In the papers' notation:

    rule           inner loss                           update at a token                              read
    linear         -<S k, v>                            S <- a S + b v k^T                             S q
    delta          1/2 ||S k - v||^2                    S <- S - b (S k - v) k^T                       S q
    gated-delta    the same                             S <- a S - b (a S k - v) k^T                   S q
    longhorn       1/2 ||S - S'||^2                     S <- S - e (S k - v) k^T,                      S q
                     + b/2 ||S k - v||^2                  e = b / (1 + b ||k||^2)
    mesa           1/2 sum_i b_i ||S k_i - v_i||^2      G <- a G + b v k^T,                            G (H + L)^-1 q
                     + 1/2 tr(S L S^T)                    H <- a H + b k k^T
    ttt-linear     1/2 ||N(S k) - (v - k)||^2           S <- S - b gradient                            S q
    titans         ||N(S k) - v||^2                     Z <- n Z - b gradient,  S <- a S + Z           S q

where b is the rate, a the decay, n the momentum, L the ridge, and N a LayerNorm or the identity. A token's output is
read after its own update. The last two rules compute gradients at the weights before the token's mini-batch.

The form "recurrent" updates the weights token by token and is the reference; "chunked" (`fast_weights_chunked`)
computes the same numbers with a few large products.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, ShapeError
from dualform.ops.cosine import result_dtype
from dualform.ops.fast_weights_chunked import delta_chunked, linear_chunked, mesa_chunked, mini_batches_chunked
from dualform.ops.momentum import full_precision, require_chunk

FastWeightRule = Literal["linear", "delta", "gated-delta", "longhorn", "mesa", "ttt-linear", "titans"]
"""The rule by which fast weights are updated."""

RULES: tuple[FastWeightRule, ...] = get_args(FastWeightRule)
"""All rules."""

FastWeightForm = Literal["recurrent", "chunked"]
"""The algorithm; both compute the same numbers."""

OPTIONS: dict[FastWeightRule, tuple[str, ...]] = {
    "linear": ("rate", "decay"),
    "delta": ("rate",),
    "gated-delta": ("rate", "decay"),
    "longhorn": ("rate",),
    "mesa": ("rate", "decay", "ridge"),
    "ttt-linear": ("rate", "norm", "mini_batch"),
    "titans": ("rate", "decay", "momentum", "norm", "mini_batch"),
}
"""The options of each rule. Any other option must keep its default."""

MINI_BATCH = 16
"""Default number of tokens in a mini-batch, from arXiv:2407.04620."""

NORM_EPS = 1e-6
"""Added to the variance in a rule's LayerNorm, as in the code released with arXiv:2407.04620."""

Norm = tuple[Tensor, Tensor]
"""Weight and bias of a LayerNorm."""


@dataclass(frozen=True)
class FastWeightState:
    """The state after some tokens, from which later tokens continue; with `weights` alone, initial weights."""

    rule: FastWeightRule
    weights: Tensor
    """S, or G of mesa, of shape `(batch, head, d_v, d_k)`, at least float32; `batch` may be 1 for initial weights."""
    gram: Tensor | None = None
    """Mesa's H, of shape `(batch, head, d_k, d_k)`; None for zeros."""
    momentum: Tensor | None = None
    """Z of titans, in the shape of `weights`; None for zeros."""
    anchor: Tensor | None = None
    """Weights before the current mini-batch, if it is incomplete, in the shape of `weights`; else None."""
    seen: int = 0
    """Number of tokens of that mini-batch so far."""
    mini_batch: int | None = None
    """Number of tokens of that mini-batch when complete; None if there is no incomplete one."""


class FastWeightOutput(NamedTuple):
    """Output of the layer and the state after the last token."""

    output: Tensor
    """Shape `(batch, head, pos, d_v)`."""
    state: FastWeightState
    """The state from which the next part of the sequence continues."""


def fast_weights(
    rule: FastWeightRule,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    rate: float | Tensor = 1.0,
    decay: float | Tensor = 1.0,
    momentum: float | Tensor = 0.0,
    ridge: float | Tensor = 1.0,
    norm: Norm | None = None,
    mini_batch: int = MINI_BATCH,
    form: FastWeightForm = "chunked",
    chunk: int = 32,
    state: FastWeightState | None = None,
) -> FastWeightOutput:
    """Outputs of a layer whose weights are updated by each token, including the current one, before it is read.

    Differentiable in all its tensors; chunked mesa with decay only once. A sequence may be processed in parts: a part
    that starts from the state of the previous one gives the same outputs as in the whole sequence. All tokens must be
    finite: except in the recurrent form, a NaN or an infinity also affects earlier outputs of its chunk.

    Args:
        rule: The update rule.
        q: Attention queries, of shape `(batch, head, pos, d_k)`, used without scaling or normalisation.
        k: Keys, of shape `(batch, head, pos, d_k)`, used without normalisation. If they are too long for the rate, the
            weights diverge: for delta and gated-delta, if rate ||k||^2 is above 2; for ttt-linear without a norm, if
            rate times the largest eigenvalue of a mini-batch's sum of k k^T is above 2 (this eigenvalue is mini_batch
            times as large as that of one token if all keys are equal); for titans, if it is above 1, since its loss is
            not halved. A decay below 1, or momentum, raises these bounds.
        v: Values, of shape `(batch, head, pos, d_v)`.
        rate: b, at least 0: a number, or a tensor of shape `()` or `(batch, head, pos)`, any axis of which may be 1.
            The range of a tensor that requires a gradient is not checked, here and below.
            Chunked mesa without decay treats a negative rate as 0 and gives no gradient to a rate of 0 or less.
        decay: a, in [0, 1], of the same shapes: the factor by which a token multiplies the weights; 1 - alpha in
            titans.
        momentum: n, in [0, 1], of the same shapes.
        ridge: Diagonal of L, above 0 in the dtype of the computation: a number, or a tensor of shape `()`, `(d_k)` or
            `(head, d_k)`. If it is near the rounding error of the largest eigenvalue of H, few digits are correct, and
            in the chunked form without decay about one digit fewer than in the recurrent form; use float64 then.
        norm: Weight and bias of ttt-linear's or titans's LayerNorm, each of shape `(d_v)` or `(head, d_v)`; None for
            N(x) = x. At weights of zero its slope is 1 / sqrt(NORM_EPS) = 1000, so with a norm use initial weights
            other than zero, given as `FastWeightState(rule, weights)`.
        mini_batch: For ttt-linear and titans, the number of tokens whose gradients are computed at the same weights;
            with 1, at those after the previous token. It changes the results, equally in both forms.
        form: "recurrent" or "chunked".
        chunk: Tokens in a chunk, at least 2. It affects results only by rounding. For ttt-linear and titans, chunks
            are mini-batches.
        state: The state after earlier tokens; by default all weights are zero.

    Returns:
        Outputs, in the dtype of `v`, and the state after the last token. Half precision is summed in float32, under
        autocast too.

    Raises:
        ConfigError: No such rule or form, a rate, decay, momentum or ridge out of range, an option that the rule does
            not have, a state of another rule or of an incomplete mini-batch of another size, tensors that are not
            floating point, or `chunk` or `mini_batch` too small.
        NumericalError: H + L of mesa is not positive definite in the dtype of the computation: the ridge is too small,
            or keys or rates are not finite.
        ShapeError: The shapes do not match.

    Source:
        linear and delta: arXiv:2102.11174. gated-delta: arXiv:2412.06464. longhorn: arXiv:2407.14207, which has a
        rate for each row of S; here all rows share one. mesa: arXiv:2309.05858 and arXiv:2506.05233. ttt-linear:
        arXiv:2407.04620, without the residual connection and the LayerNorm of its output, and without a bias
        next to S. titans: arXiv:2501.00663, with a memory of one linear layer, gradients at each chunk's start. The
        decay of linear is that of many later layers.
    """
    options = {
        "rate": rate,
        "decay": decay,
        "momentum": momentum,
        "ridge": ridge,
        "norm": norm,
        "mini_batch": mini_batch,
    }
    _require_settings(rule, form, options)
    require_chunk(chunk)
    if mini_batch < 1:
        raise ConfigError(f"mini_batch is {mini_batch}; expected 1 token or more.")
    _require_tokens(rule, q, k, v)
    dtype = result_dtype(q, k, v)
    sequence = _Sequence(
        q=q.to(dtype),
        k=k.to(dtype),
        v=v.to(dtype),
        rate=_by_token("rate", rate, k, dtype, most=None),
        decay=None if _is_number(decay, 1.0) else _by_token("decay", decay, k, dtype, most=1.0),
        momentum=_by_token("momentum", momentum, k, dtype, most=1.0) if rule == "titans" else None,
    )
    wide_norm = None if norm is None else _rows_of_norm(norm, v, dtype)
    diagonal = _diagonal(ridge, k, dtype)
    start = _started(state, rule, sequence, mini_batch)
    with full_precision(v):
        try:
            if form == "recurrent":
                output, left = _recurrent(sequence, diagonal, wide_norm, mini_batch, start)
            else:
                output, left = _chunked(sequence, diagonal, wide_norm, mini_batch, chunk, start)
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise _not_positive(sequence, diagonal) from error
    return FastWeightOutput(output.to(v.dtype), left)


def inner_loss(
    rule: FastWeightRule,
    S: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    norm: Norm | None = None,
    rate: float | Tensor = 1.0,
    ridge: float | Tensor = 1.0,
    before: Tensor | None = None,
) -> Tensor:
    """The loss that a rule's update descends, as the table above has it.

    The updates of linear, delta, ttt-linear and titans are steps along the negative of its gradient; gated-delta's is
    such a step from the decayed weights; longhorn's weights after a token, and mesa's G (H + L)^-1, are where it is
    least.

    Args:
        rule: The update rule.
        S: Weights, of shape `(..., d_v, d_k)`.
        k: A token's key, of shape `(..., d_k)`; for mesa all tokens' so far, `(..., pos, d_k)`.
        v: A token's value, of shape `(..., d_v)`; for mesa all tokens' so far, `(..., pos, d_v)`.
        norm: As in `fast_weights`, of shapes that go with `(..., d_v)`.
        rate: Longhorn's b, of shape `(...)`, or mesa's, with all decay since the token in it, of shape `(..., pos)`.
        ridge: Mesa's L, a number or the diagonal, of shape `(..., d_k)`.
        before: Longhorn's S', of the shape of S; None leaves that term out.

    Returns:
        Losses, of shape `(...)`.

    Raises:
        ConfigError: No such rule, or a norm for a rule without one.
        ShapeError: ttt-linear with d_v other than d_k.

    Source:
        As `fast_weights`.
    """
    _require_settings(rule, "recurrent", {"norm": norm})
    if rule == "mesa":
        error = k @ S.mT - v
        return 0.5 * (rate * error.square().sum(-1)).sum(-1) + 0.5 * (ridge * S.square().sum(-2)).sum(-1)
    mapped = (S @ k[..., None])[..., 0]
    if rule == "linear":
        return -(mapped * v).sum(-1)
    error = (_normed(mapped, norm) - _target(rule, k, v)).square().sum(-1)
    if rule == "titans":
        return error
    if rule == "longhorn":
        error = rate * error
        if before is not None:
            error = error + (S - before).square().sum((-2, -1))
    return 0.5 * error


def inner_gradient(rule: FastWeightRule, S: Tensor, k: Tensor, v: Tensor, *, norm: Norm | None = None) -> Tensor:
    """The gradient of a token's inner loss in S, in closed form: what the updates are made of.

    Args:
        rule: Any but mesa, which descends to the end at once; longhorn's is that of the loss without S', at rate 1.
        S: Weights, of shape `(..., d_v, d_k)`.
        k: Keys, of shape `(..., d_k)`.
        v: Values, of shape `(..., d_v)`.
        norm: As in `inner_loss`.

    Returns:
        Gradients, of the shape of S.

    Raises:
        ConfigError: No such rule, mesa, or a norm for a rule without one.
        ShapeError: ttt-linear with d_v other than d_k.

    Source:
        As `fast_weights`.
    """
    _require_settings(rule, "recurrent", {"norm": norm})
    if rule == "mesa":
        raise ConfigError("rule is 'mesa', which takes no step along a gradient; ask inner_loss for what it minimises.")
    return _slope(rule, (S @ k[..., None])[..., 0], k, v, norm)[..., :, None] * k[..., None, :]


def _slope(rule: FastWeightRule, mapped: Tensor, k: Tensor, v: Tensor, norm: Norm | None) -> Tensor:
    """The gradient of a token's inner loss in S k, `(..., d_v)`; that in S is its outer product with k."""
    if rule == "linear":
        return -v
    target = _target(rule, k, v)
    factor = 2.0 if rule == "titans" else 1.0
    if norm is None:
        return factor * (mapped - target)
    weight, bias = norm
    centred = mapped - mapped.mean(-1, keepdim=True)
    scale = (centred.square().mean(-1, keepdim=True) + NORM_EPS).rsqrt()
    unit = centred * scale
    behind = (weight * unit + (bias - target)) * (factor * weight)
    # No change of mean or length passes the norm: neither may its gradient have a part along them.
    along = behind.mean(-1, keepdim=True) + unit * (behind * unit).mean(-1, keepdim=True)
    return scale * (behind - along)


def _normed(mapped: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return mapped
    weight, bias = norm
    return F.layer_norm(mapped, mapped.shape[-1:], eps=NORM_EPS) * weight + bias


def _target(rule: FastWeightRule, k: Tensor, v: Tensor) -> Tensor:
    if rule != "ttt-linear":
        return v
    if k.shape[-1] != v.shape[-1]:
        raise ShapeError(f"ttt-linear learns v - k: d_v and d_k must be equal; given {v.shape[-1]} and {k.shape[-1]}.")
    return v - k


class _Sequence(NamedTuple):
    """Tokens, float32 at least; or one of them, with an axis of length 1 in its place."""

    q: Tensor
    k: Tensor
    v: Tensor
    rate: Tensor
    """As `decay` and `momentum`, `(batch, head, pos)`."""
    decay: Tensor | None
    momentum: Tensor | None

    def tokens(self) -> Iterator["_Sequence"]:
        """One after the other."""
        parts = [None if x is None else x.split(1, 2) for x in self]
        for t in range(self.k.shape[2]):
            yield _Sequence(*(None if part is None else part[t] for part in parts))  # type: ignore[arg-type]


def _recurrent(
    sequence: _Sequence, ridge: Tensor, norm: Norm | None, mini_batch: int, state: FastWeightState
) -> tuple[Tensor, FastWeightState]:
    outputs = []
    for token in sequence.tokens():
        state = _step(state, token, norm, mini_batch)
        q = token.q
        if state.gram is not None:
            q = torch.cholesky_solve(q.mT, torch.linalg.cholesky(state.gram + torch.diag_embed(ridge))).mT
        outputs.append(q @ state.weights.mT)
    return torch.cat(outputs, 2), state


def _step(state: FastWeightState, token: _Sequence, norm: Norm | None, mini_batch: int) -> FastWeightState:
    """The state behind one more token."""
    rule, k, v = state.rule, token.k, token.v
    rate = token.rate[..., None]
    if rule == "longhorn":
        rate = rate / (1 + rate * k.square().sum(-1, keepdim=True))
    S = state.weights if token.decay is None else token.decay[..., None] * state.weights
    if rule == "mesa":
        assert state.gram is not None
        gram = state.gram if token.decay is None else token.decay[..., None] * state.gram
        return replace(state, weights=S + (rate * v).mT @ k, gram=gram + (rate * k).mT @ k)
    if rule not in ("ttt-linear", "titans"):
        return replace(state, weights=S - (rate * _slope(rule, k @ S.mT, k, v, None)).mT @ k)
    # The gradient is taken before anything decays.
    anchor = state.weights if state.anchor is None else state.anchor
    step = -(rate * _slope(rule, k @ anchor.mT, k, v, norm)).mT @ k
    momentum = None
    if state.momentum is not None and token.momentum is not None:
        momentum = step = token.momentum[..., None] * state.momentum + step
    seen = (state.seen + 1) % mini_batch
    return _left_by_mini_batches(rule, S + step, momentum, anchor, seen, mini_batch)


def _left_by_mini_batches(
    rule: FastWeightRule, S: Tensor, momentum: Tensor | None, anchor: Tensor, seen: int, mini_batch: int
) -> FastWeightState:
    """The state of a rule with mini-batches, which keeps an anchor only while one is open."""
    if not seen:
        return FastWeightState(rule, S, momentum=momentum)
    return FastWeightState(rule, S, None, momentum, anchor, seen, mini_batch)


def _chunked(
    sequence: _Sequence, ridge: Tensor, norm: Norm | None, mini_batch: int, chunk: int, state: FastWeightState
) -> tuple[Tensor, FastWeightState]:
    rule, S = state.rule, state.weights
    q, k, v, rate, decay, _ = sequence
    if rule in ("ttt-linear", "titans"):
        output, S, Z, anchor, seen = mini_batches_chunked(
            *sequence,
            lambda mapped, key, value: _slope(rule, mapped, key, value, norm),
            S,
            state.momentum,
            S if state.anchor is None else state.anchor,
            state.seen,
            mini_batch,
        )
        return output, _left_by_mini_batches(rule, S, Z, anchor, seen, mini_batch)
    if rule == "mesa":
        assert state.gram is not None
        output, G, H = mesa_chunked(q, k, v, rate, decay, ridge, S, state.gram, chunk)
        return output, replace(state, weights=G, gram=H)
    if rule == "longhorn":
        rate = rate / (1 + rate * k.square().sum(-1))
    by_chunks = linear_chunked if rule == "linear" else delta_chunked
    output, S = by_chunks(q, k, v, rate, decay, S, chunk)
    return output, replace(state, weights=S)


def _started(state: FastWeightState | None, rule: FastWeightRule, x: _Sequence, mini_batch: int) -> FastWeightState:
    """The initial state with all tensors of its rule; those that are not given are zero."""
    (batch, heads, _, d_k), d_v = x.k.shape, x.v.shape[-1]
    zeros = x.v.new_zeros(batch, heads, d_v, d_k)
    if state is None:
        state = FastWeightState(rule, zeros)
    if state.rule != rule:
        raise ConfigError(f"the state is of the rule {state.rule!r} and is continued with {rule!r}; expected the same.")
    if not 0 <= state.seen < mini_batch or (state.seen > 0) != (state.anchor is not None):
        raise ConfigError(
            f"the state has seen {state.seen} tokens of an open mini-batch; expected fewer than mini_batch = "
            f"{mini_batch}, with an anchor if there are any. Continue with the mini_batch that it was left with."
        )
    if state.seen and state.mini_batch != mini_batch:
        raise ConfigError(
            f"the state has seen {state.seen} tokens of an open mini-batch of {state.mini_batch} and is continued with "
            f"mini_batch = {mini_batch}; expected the same until that mini-batch is complete."
        )

    def fitting(name: str, given: Tensor | None, expected: tuple[int, ...]) -> Tensor:
        if given is None:
            return x.v.new_zeros(expected)
        if given.shape not in (expected, (1, *expected[1:])):
            raise ShapeError(f"the state's {name} must be {expected}; given {tuple(given.shape)}.")
        return given.to(zeros).expand(expected)

    shape = tuple(zeros.shape)
    return FastWeightState(
        rule,
        fitting("weights", state.weights, shape),
        fitting("gram", state.gram, (batch, heads, d_k, d_k)) if rule == "mesa" else None,
        fitting("momentum", state.momentum, shape) if rule == "titans" else None,
        None if state.anchor is None else fitting("anchor", state.anchor, shape),
        state.seen,
        state.mini_batch,
    )


def _by_token(name: str, given: float | Tensor, k: Tensor, dtype: torch.dtype, most: float | None) -> Tensor:
    """What was given for each token, `(batch, head, pos)`, once it is known to be in [0, most]."""
    shape = tuple(k.shape[:3])
    if not isinstance(given, Tensor):
        _require_range(name, given, most)
        return k.new_full((1, 1, 1), given, dtype=dtype).expand(shape)
    fits = given.ndim == 0 or (
        given.ndim == 3 and all(here in (1, whole) for here, whole in zip(given.shape, shape, strict=True))
    )
    if not fits:
        raise ShapeError(
            f"{name} must be a number, () or (batch, head, pos) = {shape}, with 1 in place of any; given a tensor of "
            f"shape {tuple(given.shape)}."
        )
    if not given.requires_grad:
        outside = given[~((given >= 0) & (given <= (torch.inf if most is None else most)) & given.isfinite())]
        if outside.numel():
            _require_range(name, float(outside[0]), most)
    return given.to(k.device, dtype).expand(shape)


def _require_range(name: str, given: float, most: float | None) -> None:
    if not (0 <= given <= (torch.finfo(torch.float64).max if most is None else most)):
        expected = "a finite number of 0 or more" if most is None else f"a number in [0, {most:g}]"
        raise ConfigError(f"{name} is {given}; expected {expected}.")


def _diagonal(ridge: float | Tensor, k: Tensor, dtype: torch.dtype) -> Tensor:
    """L's diagonal, `(head, d_k)` or `(1, d_k)`."""
    heads, d_k = k.shape[1], k.shape[-1]
    if isinstance(ridge, Tensor) and ridge.shape not in ((), (d_k,), (heads, d_k), (1, d_k)):
        raise ShapeError(
            f"ridge must be a number, (), (d_k,) = ({d_k},) or (head, d_k) = ({heads}, {d_k}); given a tensor of "
            f"shape {tuple(ridge.shape)}."
        )
    if not (isinstance(ridge, Tensor) and ridge.requires_grad):
        given = ridge if isinstance(ridge, Tensor) else torch.tensor(ridge, dtype=torch.float64)
        # A number that the dtype does not reach is 0 or infinite in it.
        outside = given[~((given.to(dtype) > 0) & given.to(dtype).isfinite())]
        if outside.numel():
            raise ConfigError(
                f"ridge is {float(outside[0])}; expected finite numbers above 0 in {dtype}, without which there may be "
                f"no solution."
            )
    wide = ridge.to(k.device, dtype) if isinstance(ridge, Tensor) else k.new_full((), ridge, dtype=dtype)
    return wide.expand(1, d_k) if wide.ndim < 2 else wide


def _not_positive(x: _Sequence, ridge: Tensor) -> NumericalError:
    """Message for a matrix without a Cholesky factor."""
    for name, numbers in (("keys", x.k), ("rates", x.rate), ("ridge", ridge)):
        if not bool(numbers.isfinite().all()):
            return NumericalError(f"mesa: {name} hold numbers that are not finite. Look for where they come from.")
    dtype = ridge.dtype
    wider = "" if dtype == torch.float64 else ", or give the tokens in float64"
    return NumericalError(
        f"mesa: H + L is not positive definite in {dtype}, with a ridge of {float(ridge.min()):.3g} at its least. It "
        f"must be well above {torch.finfo(dtype).eps:.1e} times the largest eigenvalue of H, the sum of b k k^T. Take "
        f"a larger ridge{wider}."
    )


def _rows_of_norm(norm: Norm, v: Tensor, dtype: torch.dtype) -> Norm:
    """Weight and bias as `(head, 1, d_v)` or `(1, 1, d_v)`."""
    heads, d_v = v.shape[1], v.shape[-1]
    for name, given in zip(("weight", "bias"), norm, strict=True):
        if given.shape not in ((d_v,), (heads, d_v), (1, d_v)):
            raise ShapeError(
                f"the {name} of norm must be (d_v,) = ({d_v},) or (head, d_v) = ({heads}, {d_v}); given "
                f"{tuple(given.shape)}."
            )
    weight, bias = (x.to(v.device, dtype).reshape(-1, 1, d_v) for x in norm)
    return weight, bias


_UNHEEDED = {"rate": 1.0, "decay": 1.0, "momentum": 0.0, "ridge": 1.0, "norm": None, "mini_batch": MINI_BATCH}


def _require_settings(rule: str, form: str, options: Mapping[str, object]) -> None:
    for name, given, known in (("rule", rule, RULES), ("form", form, get_args(FastWeightForm))):
        if given not in known:
            raise ConfigError(f"{name} is {given!r}; expected one of {', '.join(map(repr, known))}.")
    heeded = OPTIONS[rule]  # type: ignore[index]
    for name, value in options.items():
        if name in heeded or _is_number(value, _UNHEEDED[name]):
            continue
        text = value if isinstance(value, (int, float)) else "given"
        raise ConfigError(f"{name} is {text}, but {rule} heeds only {', '.join(heeded)}. Leave {name} out.")


def _is_number(given: object, number: object) -> bool:
    return not isinstance(given, Tensor) and given == number


def _require_tokens(rule: str, q: Tensor, k: Tensor, v: Tensor) -> None:
    if not (q.ndim == v.ndim == 4 and q.shape == k.shape and q.shape[:3] == v.shape[:3]) or 0 in (*q.shape, *v.shape):
        raise ShapeError(
            "q and k must be (batch, head, pos, d_k) and v (batch, head, pos, d_v), none of them empty; given "
            f"{tuple(q.shape)}, {tuple(k.shape)} and {tuple(v.shape)}."
        )
    for name, given in (("q", q), ("k", k), ("v", v)):
        if not given.is_floating_point():
            raise ConfigError(f"{name} are {given.dtype}; expected a floating dtype.")
    if rule == "ttt-linear":
        _target("ttt-linear", k, v)
