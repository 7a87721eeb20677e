"""Momentum attention: adds to each token a decaying sum of the earlier values, which does not depend on its query.

In the paper's notation, with eta in (0, 1):

    MoAttn(V, K, q_t) = V softmax(K^T q_t / sqrt(d)) + m_t,     m_t = sum_{i < t} eta^(t - i) v_i

Three functions compute the added term m_t, with the same numbers: `momentum_naive` (the sum as written above, with t x
t weights), `momentum_chunked` (a few large products, memory linear in t) and `momentum_recurrent` (token by token, as
`momentum_step` does when decoding). Each can start from the state after an earlier part of the sequence, and returns
the state at its end.

The state is S_t = sum_{i <= t} eta^(p_t - p_i) v_i, where p are the positions; m_t is S_{t-1} after decay. Exponents
are differences that are never negative, so a power may underflow to zero but not overflow.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.cosine import result_dtype


@dataclass(frozen=True)
class MomentumState:
    """The state after some tokens, from which later tokens continue: one vector for each head."""

    sums: Tensor
    """sum_i eta^(p - p_i) v_i over the valid tokens i in the segment of the last valid token, whose position is p, of
    shape `(batch, head, d_head)`, at least float32. Never normalised."""
    position: Tensor
    """Position p of the last valid token, of shape `(batch,)`; -1 if there was none."""
    segment: Tensor | None = None
    """Segment of the last valid token, of shape `(batch,)`; None if no segments were given."""


class Momentum(NamedTuple):
    """The added term and the state after the last token."""

    term: Tensor
    """m_t, in the shape and dtype of the values: `(batch, head, pos, d_head)`, or `(batch, head, d_head)` in a step."""
    state: MomentumState
    """The state from which the next part of the sequence continues."""


def momentum_naive(
    values: Tensor,
    eta: float | Tensor,
    *,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    state: MomentumState | None = None,
    normalised: bool = False,
) -> Momentum:
    """The added term computed with t x t weights: slow and simple, the reference for the other forms.

    Args:
        values: Values of the heads, of shape `(batch, head, pos, d_head)`. See `momentum_chunked` for details of all
            arguments.
        eta: Decay per position, in [0, 1).
        positions: Positions, of shape `(batch, pos)`.
        segments: Segments, of shape `(batch, pos)`.
        valid: False at padding, of shape `(batch, pos)`.
        state: The state after earlier tokens.
        normalised: Multiply by (1 - eta) / eta.

    Returns:
        The same as `momentum_chunked`, up to rounding.

    Raises:
        ConfigError: As in `momentum_chunked`.
        ShapeError: As in `momentum_chunked`.

    Source:
        See `momentum_chunked`.
    """
    line = _timeline(values, positions, segments, valid, state)
    rate = rate_of_heads(eta, values)
    with full_precision(values):
        x = _behind_state(values, valid, state)
        p, run = line.position, line.run
        lag = p[:, 1:, None] - p[:, None, :]
        seen = (lag > 0) & (run[:, 1:, None] == run[:, None, :])
        if valid is not None:
            seen = seen & valid[:, :, None]
        term = _factor(rate, normalised)[:, None, None] * (_power(rate, lag - 1, seen) @ x)
        to_last = _power(rate, p[:, -1:] - p, run == run[:, -1:])
        sums = (to_last[:, :, None] @ x)[:, :, 0]
    return Momentum(term.to(values.dtype), line.left_with(sums))


def momentum_chunked(
    values: Tensor,
    eta: float | Tensor,
    *,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    state: MomentumState | None = None,
    normalised: bool = False,
    chunk: int = 32,
) -> Momentum:
    """The added term computed with a few products and memory linear in t, for training and long texts.

    m_t = sum over tokens i of the same row and segment with p_i < p_t of eta^(p_t - p_i) v_i, in differentiable
    operations: gradients flow to `values`, to `eta` and to the state.

    A sequence may be processed in parts: a part that starts from the state of the previous one gives the same term as
    in the whole sequence. If the term is not normalised, `term[:, :, t] + values[:, :, t]` are the sums after token t,
    from which a branch can start. Heads that share values share the term, so compute it once for each key-value head.

    Without `positions`, `segments` and `valid` all chunks have the same weights, which are built once. With any of
    them, weights are built for every row and chunk, which takes up to as long as the products.

    Args:
        values: Values v of the heads, before W_O, of shape `(batch, head, pos, d_head)`.
        eta: Decay per position, in [0, 1): a number, a scalar tensor of shape `()`, or one number for each head, of
            shape `(head)`. At 0 the term is exactly zero, so that attention is unchanged bit for bit; this holds for
            the normalised term too, although its limit is v_{t-1}. The range of a tensor is checked unless it requires
            a gradient, because a check would make a GPU wait in every layer; a trained eta should be kept in range by
            its parametrisation.
        positions: Integers from 0 that increase within a segment, of shape `(batch, pos)` or `(1, pos)`. The sum decays
            with their differences, so also over gaps. Those of padding are ignored. By default valid tokens are
            numbered, continuing from the state.
        segments: Integers that identify the sequence of each token if several are packed into a row, of shape
            `(batch, pos)` or `(1, pos)`. Tokens receive only values of their segment; a number that recurs after
            another one is a new segment. A sequence in parts has segments in all parts or in none. Those of padding are
            ignored.
        valid: False where a token is padding, at any place of the row, of shape `(batch, pos)` or `(1, pos)`. The
            values of padding are ignored, and its term is zero.
        state: The state after earlier tokens; by default there are none.
        normalised: Multiply by (1 - eta) / eta, so that the weights of infinitely many earlier tokens sum to 1.
        chunk: Tokens in a chunk, at least 2. It affects results only by rounding.

    Returns:
        The term, in the dtype of `values` and of their shape, and the state after the last token. Half precision is
        summed in float32, under autocast too.

    Raises:
        ConfigError: `eta` is outside [0, 1), positions do not ascend, the state lacks the segments or has them in
            vain, `values` are no floats, or `chunk` is below 2.
        ShapeError: The shapes do not belong together.

    Source:
        arXiv:2212.10559v3, the section on momentum-based attention, for the default: the paper gives neither eta nor
        the place of the sum, which we take head by head, before W_O. Positions, segments, padding and the normalised
        term are this library's. The sum is not the dual of gradient descent with momentum; `momentum_dual` has that.
    """
    require_chunk(chunk)
    line = _timeline(values, positions, segments, valid, state)
    rate = rate_of_heads(eta, values)
    with full_precision(values):
        # The state is prepended as a token, so that the sum before a token is the sum after its predecessor.
        sums = _sums(_behind_state(values, valid, state), rate, line.clock, chunk)
        term = sums[:, :, :-1] * line.share(rate, normalised)
    return Momentum(term.to(values.dtype), line.left_with(sums[:, :, -1]))


def momentum_recurrent(
    values: Tensor,
    eta: float | Tensor,
    *,
    positions: Tensor | None = None,
    segments: Tensor | None = None,
    valid: Tensor | None = None,
    state: MomentumState | None = None,
    normalised: bool = False,
) -> Momentum:
    """The added term computed token by token, with a state of one vector for each head: S <- eta^gap S + v.

    Args:
        values: Values of the heads, of shape `(batch, head, pos, d_head)`. See `momentum_chunked` for details of all
            arguments.
        eta: Decay per position, in [0, 1).
        positions: Positions, of shape `(batch, pos)`.
        segments: Segments, of shape `(batch, pos)`.
        valid: False at padding, of shape `(batch, pos)`.
        state: The state after earlier tokens.
        normalised: Multiply by (1 - eta) / eta.

    Returns:
        The same as `momentum_chunked`, up to rounding.

    Raises:
        ConfigError: As in `momentum_chunked`.
        ShapeError: As in `momentum_chunked`.

    Source:
        See `momentum_chunked`.
    """
    line = _timeline(values, positions, segments, valid, state)
    rate = rate_of_heads(eta, values)
    sums, *tokens = _behind_state(values, valid, state).unbind(2)
    # Decay of S up to one position before a token: the exponent is 0 if there is no gap.
    decays = _power(rate, line.gaps - 1, line.follows).unbind(-1)
    real = [None] * len(tokens) if line.valid is None else list(line.valid.unbind(1))
    terms = []
    for value, decay, is_real in zip(tokens, decays, real, strict=True):
        term, sums = _advance(sums, value, rate, decay, is_real, normalised)
        terms.append(term)
    return Momentum(torch.stack(terms, 2).to(values.dtype), line.left_with(sums))


def momentum_step(
    state: MomentumState | None,
    value: Tensor,
    eta: float | Tensor,
    gap: int | Tensor = 1,
    *,
    valid: Tensor | None = None,
    normalised: bool = False,
) -> Momentum:
    """The added term of one further token, for decoding.

    Args:
        state: The state after earlier tokens; None before the first.
        value: Values of the heads at the token, of shape `(batch, head, d_head)`.
        eta: As in `momentum_chunked`.
        gap: Distance of the token from the last one, in positions, at least 1: a number, or one for each row, of shape
            `(batch)`. The range of a tensor is not checked.
        valid: False where the row has ended and is padded, of shape `(batch)`; its state stays the same.
        normalised: As in `momentum_chunked`.

    Returns:
        The term, in the shape and dtype of `value`, and the state after the token, which belongs to the segment of
        the last token.

    Raises:
        ConfigError: `eta` is outside [0, 1), `gap` is below 1, or `value` is no float.
        ShapeError: The shapes do not belong together.

    Source:
        See `momentum_chunked`.
    """
    if not isinstance(gap, Tensor) and gap < 1:
        raise ConfigError(f"gap is {gap}; expected 1 position or more behind the last token.")
    _require_values("value", value, "batch head d_head")
    batch = value.shape[0]
    _require_rows(batch, None, valid=valid, gap=gap if isinstance(gap, Tensor) else None)
    rate = rate_of_heads(eta, value)
    sums = _sums_of(state, value)
    position = value.new_full((batch,), -1, dtype=torch.long) if state is None else state.position
    decay = None
    if isinstance(gap, Tensor):
        decay = _power(rate, gap - 1, torch.ones_like(gap, dtype=torch.bool))
    elif gap > 1:
        decay = (rate ** (gap - 1))[None]
    term, sums = _advance(sums, value.to(sums.dtype), rate, decay, valid, normalised)
    ahead = position + gap
    if valid is not None:
        ahead = torch.where(valid, ahead, position)
    return Momentum(term.to(value.dtype), MomentumState(sums, ahead, None if state is None else state.segment))


def decayed_sums(values: Tensor, eta: float | Tensor, *, spacing: int = 1, chunk: int = 32) -> Tensor:
    """S_t = sum_{i <= t} eta^(spacing (t - i)) v_i, for all t, in memory linear in t.

    Args:
        values: Vectors to sum along the sequence, of shape `(batch, head, pos, d_head)`.
        eta: As in `momentum_chunked`.
        spacing: Distance of neighbouring tokens, in positions.
        chunk: Tokens in a chunk, at least 2.

    Returns:
        Sums, in the shape of `values` and at least float32, also under autocast.

    Raises:
        ConfigError: `eta` is outside [0, 1), `values` are not floating point, or `chunk` is below 2.
        ShapeError: `values` or `eta` is of another shape.

    Source:
        Elementary. The chunks are those of retention's chunkwise form, arXiv:2307.08621, whose decay is fixed too; the
        sums between chunks are formed the same way again, rather than one after the other.
    """
    _require_values("values", values, "batch head pos d_head")
    require_chunk(chunk)
    rate = rate_of_heads(eta, values)
    with full_precision(values):
        return _sums(values.to(rate.dtype), rate, _EvenTimes(spacing), chunk)


def rate_of_heads(eta: float | Tensor, values: Tensor) -> Tensor:
    """Eta as a tensor with an axis of heads, after a check of its range.

    Args:
        eta: A number in [0, 1), or a tensor of such numbers, of shape `()`, `(1)` or `(head)`.
        values: The values, of shape `(batch, head, ...)`, which determine device and dtype.

    Returns:
        One eta for each head or one for all, of shape `(head)` or `(1)`, at least float32.

    Raises:
        ConfigError: `eta` is outside [0, 1); a tensor that requires a gradient is not checked.
        ShapeError: `eta` is a tensor of another shape.
    """
    if isinstance(eta, Tensor):
        if eta.ndim > 1 or (eta.ndim == 1 and eta.shape[0] not in (1, values.shape[1])):
            raise ShapeError(
                f"eta must be a number, () or (head,) = ({values.shape[1]},); given a tensor of shape "
                f"{tuple(eta.shape)}."
            )
        if not eta.requires_grad:
            outside = eta[~((eta >= 0) & (eta < 1))]
            if outside.numel():
                raise ConfigError(_outside(float(outside[0])))
        return eta.reshape(-1).to(values.device, result_dtype(values))
    if not 0 <= eta < 1:
        raise ConfigError(_outside(eta))
    return values.new_full((1,), eta, dtype=result_dtype(values))


def full_precision(values: Tensor) -> torch.autocast:
    """A context without autocast, which would compute products of float32 in half precision.

    Args:
        values: A tensor of any shape `(...)`, for its device.
    """
    return torch.autocast(values.device.type, enabled=False)


def require_chunk(chunk: int) -> None:
    """Check that chunks are long enough to shorten the sequence of chunks.

    Args:
        chunk: Tokens in a chunk.

    Raises:
        ConfigError: `chunk` is below 2.
    """
    if chunk < 2:
        raise ConfigError(f"chunk is {chunk}; expected 2 tokens or more.")


@dataclass(frozen=True)
class _EvenTimes:
    """Positions of tokens at equal distances, so that all chunks have the same weights."""

    spacing: int

    def within(self, rate: Tensor, size: int) -> Tensor:
        """Weights between the tokens of a chunk, `(batch, head, chunk, pos, pos)`; here batch and chunk are 1."""
        at = self.spacing * torch.arange(size, device=rate.device)
        lag = (at[:, None] - at)[None, None]
        return _power(rate, lag, lag >= 0)

    def since(self, rate: Tensor, size: int) -> Tensor:
        """Decay from the end of the previous chunk to each token, `(batch, head, chunk, pos)`."""
        lag = self.spacing * torch.arange(1, size + 1, device=rate.device)[None, None]
        return _power(rate, lag, lag > 0)

    def of_ends(self, size: int) -> "_EvenTimes":
        """Positions of the last tokens of the chunks."""
        return _EvenTimes(self.spacing * size)


@dataclass(frozen=True)
class _UnevenTimes:
    """Positions of tokens, and the number of each token's run (a segment without interruption), `(batch, pos)`."""

    position: Tensor
    run: Tensor

    def within(self, rate: Tensor, size: int) -> Tensor:
        """As `_EvenTimes.within`."""
        at, run = _in_chunks(self.position, size), _in_chunks(self.run, size)
        lag = at[..., :, None] - at[..., None, :]
        causal = torch.ones(size, size, dtype=torch.bool, device=rate.device).tril()
        return _power(rate, lag, causal & (run[..., :, None] == run[..., None, :]))

    def since(self, rate: Tensor, size: int) -> Tensor:
        """As `_EvenTimes.since`."""
        at, run = _in_chunks(self.position, size), _in_chunks(self.run, size)
        # No tokens precede the first chunk, so its decay is applied to zeros.
        end, end_run = (F.pad(x[:, :-1, -1], (1, 0))[..., None] for x in (at, run))
        return _power(rate, at - end, run == end_run)

    def of_ends(self, size: int) -> "_UnevenTimes":
        """As `_EvenTimes.of_ends`."""
        return _UnevenTimes(_in_chunks(self.position, size)[..., -1], _in_chunks(self.run, size)[..., -1])


def _sums(x: Tensor, rate: Tensor, clock: _EvenTimes | _UnevenTimes, chunk: int) -> Tensor:
    """Sums after each token, of the shape of `x`, `(batch, head, pos, d_head)`."""
    n = x.shape[2]
    size = min(chunk, n)
    chunks = rearrange(F.pad(x, (0, 0, 0, -n % size)), "b h (chunk pos) d -> b h chunk pos d", pos=size)
    own = clock.within(rate, size) @ chunks
    if n > size:
        # The sums at the ends of the chunks are again a sequence, with one token for each chunk.
        ends = _sums(own[..., -1, :], rate, clock.of_ends(size), chunk)
        before = F.pad(ends[:, :, :-1], (0, 0, 1, 0))
        own = torch.addcmul(own, clock.since(rate, size)[..., None], before[..., None, :])
    return rearrange(own, "b h chunk pos d -> b h (chunk pos) d")[:, :, :n]


def _in_chunks(rows: Tensor, size: int) -> Tensor:
    """`(batch, pos)` -> `(batch, chunk, pos)`; the last chunk is filled up with its last token's."""
    missing = -rows.shape[1] % size
    filled = torch.cat([rows, rows[:, -1:].expand(-1, missing)], 1)
    return rearrange(filled, "batch (chunk pos) -> batch chunk pos", pos=size)


def _power(rate: Tensor, lag: Tensor, seen: Tensor) -> Tensor:
    """eta^lag where `seen` and 0 elsewhere: `(batch, ...)` of integers -> `(batch, head, ...)`."""
    # Where not seen a lag may be negative, and its power infinite: 0 times that would be NaN, in the gradient too.
    exponent = lag.clamp(min=0).unsqueeze(1).to(rate.dtype)
    powers = rate.reshape(-1, *[1] * (lag.ndim - 1)) ** exponent
    return torch.where(seen.unsqueeze(1), powers, 0.0)


def _factor(rate: Tensor, normalised: bool) -> Tensor:
    """What the sums one position before a token are multiplied by to give its term, `(head)`."""
    # Normalised, (1 - eta) / eta times eta: the quotient alone would overflow for a tiny eta.
    return torch.where(rate > 0, 1 - rate, 0.0) if normalised else rate


def _advance(
    sums: Tensor, value: Tensor, rate: Tensor, decay: Tensor | None, valid: Tensor | None, normalised: bool
) -> tuple[Tensor, Tensor]:
    """Term and sums at the next token; `decay`, `(batch, head)`, is that of the sums up to one position before it."""
    before = sums if decay is None else decay[..., None] * sums
    term, after = _factor(rate, normalised)[:, None] * before, rate[:, None] * before + value
    if valid is not None:
        real = valid[:, None, None]
        term, after = torch.where(real, term, 0.0), torch.where(real, after, sums)
    return term, after


@dataclass(frozen=True)
class _Timeline:
    """Positions of the state's last token and of each token. Padding has that of the last valid token."""

    position: Tensor
    """`(batch, 1 + pos)`, where `batch` may be 1 here and below."""
    run: Tensor
    """Tokens see each other within a run, `(batch, 1 + pos)`; counted from 0, the state's."""
    valid: Tensor | None
    """`(batch, pos)`."""
    last_position: Tensor
    """`(batch,)`, never 1 for many."""
    last_segment: Tensor | None
    """`(batch,)`, never 1 for many."""
    even: bool
    """Neither gaps nor runs nor padding."""

    @property
    def gaps(self) -> Tensor:
        """Positions between a token and the one before it, `(batch, pos)`."""
        return self.position.diff()

    @property
    def follows(self) -> Tensor:
        """Whether a token sees the one before it, `(batch, pos)`."""
        return self.run[:, 1:] == self.run[:, :-1]

    @property
    def clock(self) -> _EvenTimes | _UnevenTimes:
        """The same for `_sums`."""
        return _EvenTimes(1) if self.even else _UnevenTimes(self.position, self.run)

    def share(self, rate: Tensor, normalised: bool) -> Tensor:
        """What the sums after the token before are multiplied by to give a term, `(batch, head, pos, 1)`."""
        factor = _factor(rate, normalised)[:, None, None]
        if self.even:
            return factor
        seen = self.follows if self.valid is None else self.follows & self.valid
        return factor * _power(rate, self.gaps - 1, seen)[..., None]

    def left_with(self, sums: Tensor) -> MomentumState:
        """The state after the last token."""
        # A copy: a view would keep the sums of all tokens in memory for as long as a cache keeps the state.
        return MomentumState(sums.clone(), self.last_position, self.last_segment)


def _timeline(
    values: Tensor, positions: Tensor | None, segments: Tensor | None, valid: Tensor | None, state: MomentumState | None
) -> _Timeline:
    _require_values("values", values, "batch head pos d_head")
    batch, _, n, _ = values.shape
    _require_rows(batch, n, positions=positions, segments=segments, valid=valid)
    if state is not None and (state.segment is None) != (segments is None):
        left, now = ("without", "with") if state.segment is None else ("with", "without")
        raise ConfigError(
            f"the state was left {left} segments and is continued {now}. Give segments to every part of a sequence or "
            "to none."
        )
    steps = torch.arange(1, n + 1, device=values.device)[None]
    start = steps.new_full((batch,), -1) if state is None else state.position
    if positions is None and segments is None and valid is None:
        steps = F.pad(steps, (1, 0))
        return _Timeline(steps, torch.zeros_like(steps), None, start + n, None, even=True)
    # One row for all, as long as all are equal.
    opening = start[:1, None] if state is None else start[:, None]
    latest = None if valid is None else torch.where(valid, steps, 0).cummax(1).values
    if positions is None:
        counted = steps if valid is None else valid.cumsum(1)
        position = _behind(opening, opening + counted, None)
    else:
        position = _behind(opening, positions, latest)
    run, last_segment = torch.zeros_like(position), None
    if segments is not None:
        named = segments[:, :1] if state is None or state.segment is None else state.segment[:, None]
        segment = _behind(named, segments, latest)
        run = F.pad((segment.diff() != 0).cumsum(1), (1, 0))
        last_segment = segment[:, -1].expand(batch)
    line = _Timeline(position, run, valid, position[:, -1].expand(batch), last_segment, even=False)
    if positions is not None:
        _require_ascending(line)
    return line


def _behind(opening: Tensor, rows: Tensor, latest: Tensor | None) -> Tensor:
    """The state's number, `(batch, 1)`, then the tokens', `(batch, pos)`, each as it was at the latest valid one."""
    batch = max(x.shape[0] for x in (opening, rows, latest) if x is not None)
    numbers = torch.cat([opening.expand(batch, -1), rows.expand(batch, -1)], 1)
    return numbers if latest is None else numbers.gather(1, F.pad(latest, (1, 0)).expand(batch, -1))


def _behind_state(values: Tensor, valid: Tensor | None, state: MomentumState | None) -> Tensor:
    """The state's sums, then the values, padding being zero: `(batch, head, 1 + pos, d_head)`, float32 at least."""
    x = values.to(result_dtype(values))
    if valid is not None:
        # By filling, not by a weight of 0: padding may hold NaN.
        x = x.masked_fill(~valid[:, None, :, None], 0.0)
    return torch.cat([_sums_of(state, values[:, :, 0])[:, :, None], x], 2)


def _sums_of(state: MomentumState | None, value: Tensor) -> Tensor:
    """Sums of the state, `(batch, head, d_head)`, on the device of `value`, at least float32; zeros without a state."""
    if state is None:
        return torch.zeros_like(value, dtype=result_dtype(value))
    if state.sums.shape != value.shape or state.position.shape != value.shape[:1]:
        raise ShapeError(
            f"the state must fit the values, sums {tuple(value.shape)} and position {tuple(value.shape[:1])}; given "
            f"{tuple(state.sums.shape)} and {tuple(state.position.shape)}."
        )
    return state.sums.to(result_dtype(value))


def _require_values(name: str, values: Tensor, axes: str) -> None:
    names = axes.split()
    if values.ndim != len(names) or 0 in values.shape:
        raise ShapeError(f"{name} must be ({', '.join(names)}), none of them empty; given {tuple(values.shape)}.")
    if not values.is_floating_point():
        raise ConfigError(f"{name} are {values.dtype}; expected a floating dtype, for sums that decay.")


def _require_rows(batch: int, n: int | None, **rows: Tensor | None) -> None:
    """Refuse numbers that are not one a token, `(batch, pos)` or `(1, pos)`, or, without `n`, one a row, `(batch)`."""
    for name, given in rows.items():
        if given is None:
            continue
        if given.shape not in ([(batch,)] if n is None else [(batch, n), (1, n)]):
            expected = f"(batch,) = ({batch},)" if n is None else f"(batch, pos) = ({batch}, {n}) or (1, {n})"
            raise ShapeError(f"{name} must be {expected}; given {tuple(given.shape)}.")
        is_bool = given.dtype == torch.bool
        if is_bool != (name == "valid") or given.is_floating_point():
            kind = "torch.bool, True where a token is real" if name == "valid" else "integers"
            raise ConfigError(f"{name} are {given.dtype}; expected {kind}.")


def _require_ascending(line: _Timeline) -> None:
    wrong = line.follows & (line.gaps < 1)
    if line.valid is not None:
        wrong = wrong & line.valid
    if wrong.any():
        row, token = (int(i) for i in wrong.nonzero()[0])
        before, after = (int(x) for x in line.position[row if len(line.position) > 1 else 0, token : token + 2])
        raise ConfigError(
            f"in row {row}, token {token} has position {after} behind position {before}. Within a segment positions "
            "ascend, from 0 and on from the state: put tokens in that order, or mark the sequences by segments."
        )


def _outside(eta: float) -> str:
    return f"eta is {eta}; expected a number in [0, 1). With 0, attention is without momentum."
