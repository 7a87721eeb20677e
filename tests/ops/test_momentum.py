from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dualform.errors import ConfigError, ShapeError
from dualform.ops.momentum import (
    Momentum,
    MomentumState,
    decayed_sums,
    momentum_chunked,
    momentum_naive,
    momentum_recurrent,
    momentum_step,
)

CHUNK = 8
DOUBLE = torch.float64
ETAS = torch.tensor([0.0, 0.3, 0.95], dtype=DOUBLE)
"""One a head."""


def chunked(values, eta, **options) -> Momentum:
    return momentum_chunked(values, eta, chunk=CHUNK, **options)


FORMS = [momentum_naive, chunked, momentum_recurrent]
EVERY_FORM = pytest.mark.parametrize("form", FORMS)


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = DOUBLE) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE).to(dtype)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    # Values are of order 1 and their sums at most of order 1 / (1 - eta): rounding is absolute, or relative to those.
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


def assert_same(got: Momentum, expected: Momentum, tolerance: float = 1e-12) -> None:
    assert_close(got.term, expected.term, tolerance)
    assert_close(got.state.sums, expected.state.sums, tolerance)
    assert torch.equal(got.state.position, expected.state.position)


def to_the_letter(values, eta, positions, segments, valid, normalised=False) -> Tensor:
    """The definition, one number after another: sum over i with p_i < p_t of eta^(p_t - p_i) v_i."""
    term = torch.zeros_like(values)
    batch, heads, n, _ = values.shape
    for b in range(batch):
        for h in range(heads):
            decay = float(eta[h])
            for t in range(n):
                for i in range(n):
                    lag = int(positions[b, t] - positions[b, i])
                    if valid[b, t] and valid[b, i] and segments[b, t] == segments[b, i] and lag > 0 and decay > 0:
                        share = (1 - decay) / decay if normalised else 1.0
                        term[b, h, t] += share * decay**lag * values[b, h, i]
    return term


def packed_rows(n: int, seed: int, batch: int = 2) -> dict[str, Any]:
    """Positions with gaps that start anew in every segment, and padding wherever chance puts it."""
    generator = torch.Generator().manual_seed(seed)

    def chance(share: float) -> Tensor:
        return torch.rand(batch, n, generator=generator) < share

    starts, steps = chance(0.15), torch.randint(1, 4, (batch, n), generator=generator).cumsum(1)
    positions = steps - torch.where(starts, steps, 0).cummax(1).values
    return {"positions": positions, "segments": starts.cumsum(1) + 7, "valid": ~chance(0.2)}


def parts_of(row: Tensor | None, cuts: list[int]) -> list[Tensor | None]:
    return [None] * (len(cuts) + 1) if row is None else list(row.tensor_split(cuts, dim=1))


def in_parts(form, values: Tensor, eta, cuts: list[int], **rows) -> Momentum:
    """The same sequence read in parts, the state handed on."""
    state, terms = None, []
    normalised = rows.pop("normalised", False)
    pieces = {name: parts_of(row, cuts) for name, row in rows.items()}
    for number, piece in enumerate(values.tensor_split(cuts, dim=2)):
        here = {name: piece_of[number] for name, piece_of in pieces.items()}
        term, state = form(piece, eta, state=state, normalised=normalised, **here)
        terms.append(term)
    assert state is not None
    return Momentum(torch.cat(terms, 2), state)


# The definition.


@EVERY_FORM
@pytest.mark.parametrize("normalised", [False, True])
def test_every_form_is_the_definition_to_the_letter(form, normalised):
    values, rows = normal(2, 3, 3 * CHUNK + 3, 2), packed_rows(3 * CHUNK + 3, seed=1)
    assert rows["segments"].diff().any()
    assert not rows["valid"].all()
    got = form(values, ETAS, normalised=normalised, **rows).term
    assert_close(got, to_the_letter(values, ETAS, **rows, normalised=normalised))


@EVERY_FORM
def test_without_rows_tokens_follow_one_another(form):
    values = normal(2, 3, 2 * CHUNK + 5, 2)
    batch, _, n, _ = values.shape
    steps, ones = torch.arange(n).expand(batch, n), torch.ones(batch, n, dtype=torch.bool)
    got = form(values, ETAS)
    assert_close(got.term, to_the_letter(values, ETAS, steps, torch.zeros_like(steps), ones))
    assert got.state.position.tolist() == [n - 1] * batch
    assert got.state.segment is None
    assert_close(form(values, ETAS, positions=steps[:1] + 5).term, got.term)


@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 1000])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_all_forms_agree_at_every_length(n, uneven, normalised):
    values = normal(2, 3, n, 4)
    rows = packed_rows(n, seed=n) if uneven else {}
    naive = momentum_naive(values, ETAS, normalised=normalised, **rows)
    for form in (chunked, momentum_chunked, momentum_recurrent):
        assert_same(form(values, ETAS, normalised=normalised, **rows), naive)
        single = form(values.float(), ETAS.float(), normalised=normalised, **rows)
        assert single.term.dtype == single.state.sums.dtype == torch.float32
        # The rate itself is rounded: eta^l has l times its relative error, which at 0.95 peaks near l = 20.
        assert_same(
            single,
            Momentum(naive.term.float(), replace(naive.state, sums=naive.state.sums.float())),
            tolerance=1e-5,
        )


@pytest.mark.parametrize("n", [5, 2 * CHUNK**2 + 3])
def test_decayed_sums_are_what_the_recurrence_sums_up(n):
    values, sums = normal(1, 3, n, 2), []
    total = torch.zeros(1, 3, 2, dtype=DOUBLE)
    for value in values.unbind(2):
        total = ETAS[:, None] ** 5 * total + value
        sums.append(total)
    assert_close(decayed_sums(values, ETAS, spacing=5, chunk=CHUNK), torch.stack(sums, 2))


def test_one_rate_is_that_rate_for_every_head():
    values = normal(1, 3, 2 * CHUNK, 2)
    expected = chunked(values, torch.full((3,), 0.3, dtype=DOUBLE)).term
    assert torch.equal(chunked(values, 0.3).term, expected)
    assert torch.equal(chunked(values, torch.tensor(0.3, dtype=DOUBLE)).term, expected)


# Eta at its ends.


@EVERY_FORM
@pytest.mark.parametrize("normalised", [False, True])
@pytest.mark.parametrize("rows", [{}, packed_rows(3 * CHUNK, seed=2)], ids=["even", "uneven"])
def test_eta_zero_adds_exactly_nothing(form, normalised, rows):
    values = normal(2, 3, 3 * CHUNK, 2, dtype=torch.float32)
    attention = normal(2, 3, 3 * CHUNK, 2, seed=1, dtype=torch.float32)
    for eta in (0, 0.0, torch.tensor(0.0), torch.zeros(3)):
        got = form(values, eta, normalised=normalised, **rows)
        assert torch.equal(got.term, torch.zeros_like(values))
        assert torch.equal(attention + got.term, attention)
    # What a larger eta would need is known all the same: the last value.
    if not rows:
        assert torch.equal(got.state.sums, values[:, :, -1])
    assert form(values, 1e-3, normalised=normalised, **rows).term.any()


@EVERY_FORM
def test_a_tiny_normalised_eta_gives_the_value_before_which_eta_zero_does_not(form):
    values = normal(1, 2, 2 * CHUNK, 3, dtype=torch.float32)
    for eta in (1e-12, 1e-38, torch.tensor(1e-45)):
        term = form(values, eta, normalised=True).term
        assert_close(term[:, :, 1:], values[:, :, :-1], 1e-6)
        assert not term[:, :, 0].any()


@pytest.mark.parametrize("eta", [1e-45, 1e-30, 1e-3, 0.999, 1 - 1e-6, 1 - 1e-9])
@pytest.mark.parametrize("normalised", [False, True])
def test_powers_underflow_and_never_overflow(eta, normalised):
    n = 5000
    values = normal(1, 2, n, 2, dtype=torch.float32)
    rate = torch.tensor([eta, 0.5]).requires_grad_()
    every_rows: list[dict[str, Any]] = [
        {},
        {"positions": 3 * torch.arange(n)[None], "segments": torch.arange(n)[None] // 3000},
    ]
    for rows in every_rows:
        term, state = momentum_chunked(values, rate, normalised=normalised, **rows)
        (slope,) = torch.autograd.grad(term.sum(), rate)
        for found in (term, state.sums, slope):
            assert found.isfinite().all()


def test_normalised_weights_of_an_endless_past_sum_to_one():
    ones = torch.ones(1, 2, 400, 1, dtype=DOUBLE)
    eta = torch.tensor([0.3, 0.9], dtype=DOUBLE)
    assert_close(momentum_chunked(ones, eta, normalised=True).term[:, :, -1], torch.ones(1, 2, 1, dtype=DOUBLE))
    assert_close(momentum_chunked(ones, eta).term[0, :, -1, 0], eta / (1 - eta), tolerance=1e-12)


# Who sees whom.


@EVERY_FORM
@pytest.mark.parametrize("rows", [{}, {"positions": torch.arange(3 * CHUNK)[None]}], ids=["even", "uneven"])
def test_a_token_changes_nothing_before_it_and_not_its_own_term(form, rows):
    values = normal(1, 2, 3 * CHUNK, 3, dtype=torch.float32)
    before = form(values, 0.9, **rows).term
    for t in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 3):
        changed = values.clone()
        changed[:, :, t] += 100.0
        after = form(changed, 0.9, **rows).term
        assert torch.equal(after[:, :, : t + 1], before[:, :, : t + 1])
        assert (after[:, :, t + 1 :] != before[:, :, t + 1 :]).any(-1).all()


@EVERY_FORM
@pytest.mark.parametrize("filler", [0.0, 1e4, torch.nan, torch.inf])
def test_padding_on_either_side_or_in_between_changes_nothing_whatever_it_holds(form, filler):
    n = 2 * CHUNK + 3
    values = normal(1, 2, n, 3)
    plain = form(values, 0.9)
    for left, middle, right in [(5, 0, 0), (0, 0, 2 * CHUNK), (3 * CHUNK, 2, 1), (0, 2 * CHUNK + 1, 0)]:
        valid = torch.cat(
            [torch.full((k,), real) for k, real in [(left, False), (7, True), (middle, False), (n - 7, True)]]
        )
        valid = F.pad(valid, (0, right))[None]
        padded = torch.full((1, 2, valid.shape[1], 3), filler, dtype=DOUBLE)
        padded[:, :, valid[0]] = values
        got = form(padded, 0.9, valid=valid)
        assert_close(got.term[:, :, valid[0]], plain.term)
        assert torch.equal(got.term[:, :, ~valid[0]], torch.zeros(1, 2, left + middle + right, 3, dtype=DOUBLE))
        assert_close(got.state.sums, plain.state.sums)
        assert torch.equal(got.state.position, plain.state.position)


@EVERY_FORM
def test_rows_of_one_batch_may_be_padded_differently(form):
    values = normal(2, 2, CHUNK + 4, 3)
    valid = torch.ones(2, CHUNK + 4, dtype=torch.bool)
    valid[0, :6] = False
    got = form(values, 0.7, valid=valid)
    assert_close(got.term[:1, :, 6:], form(values[:1, :, 6:], 0.7).term)
    assert_close(got.term[1:], form(values[1:], 0.7).term)
    assert got.state.position.tolist() == [CHUNK - 3, CHUNK + 3]


@EVERY_FORM
@pytest.mark.parametrize("positions", [None, "restarted"])
def test_packed_sequences_are_what_they_are_apart(form, positions):
    lengths = [5, 1, 2 * CHUNK + 1, 3]
    sequences = [normal(1, 3, n, 2, seed=n) for n in lengths]
    segments = torch.cat([torch.full((n,), 10 - s) for s, n in enumerate(lengths)])[None]
    if positions:
        positions = torch.cat([torch.arange(n) + 3 for n in lengths])[None]
    got = form(torch.cat(sequences, 2), ETAS, segments=segments, positions=positions)
    apart = [form(sequence, ETAS) for sequence in sequences]
    assert_close(got.term, torch.cat([part.term for part in apart], 2))
    assert_close(got.state.sums, apart[-1].state.sums)
    assert got.state.segment is not None
    assert got.state.segment.tolist() == [7]
    # Without segments the sequences would run into each other.
    assert (form(torch.cat(sequences, 2), ETAS).term - got.term).abs().max() > 0.1


@EVERY_FORM
def test_a_segment_that_comes_back_is_a_new_one(form):
    values = normal(1, 1, CHUNK, 2)
    segments = torch.tensor([[1, 1, 1, 2, 2, 1, 1, 1]])
    renamed = torch.tensor([[1, 1, 1, 2, 2, 3, 3, 3]])
    assert torch.equal(form(values, 0.8, segments=segments).term, form(values, 0.8, segments=renamed).term)


@EVERY_FORM
def test_a_gap_decays_as_so_many_tokens_without_value(form):
    values = normal(1, 3, 2 * CHUNK + 2, 2)
    positions = torch.arange(2 * CHUNK + 2)[None]
    positions = torch.where(positions < CHUNK + 3, positions, positions + CHUNK + 4)
    filled = torch.cat(
        [values[:, :, : CHUNK + 3], torch.zeros(1, 3, CHUNK + 4, 2, dtype=DOUBLE), values[:, :, CHUNK + 3 :]], 2
    )
    got, expected = form(values, ETAS, positions=positions), form(filled, ETAS)
    assert_close(got.term, expected.term[:, :, positions[0]])
    assert_same(Momentum(got.state.sums, got.state), Momentum(expected.state.sums, expected.state))
    assert (got.term - form(values, ETAS).term).abs().max() > 0.1


# The state.


@settings(max_examples=60, deadline=None)
@given(
    form=st.sampled_from(FORMS),
    reader=st.sampled_from(FORMS),
    n=st.integers(1, 3 * CHUNK),
    cuts=st.lists(st.integers(1, 3 * CHUNK), max_size=4),
    rows=st.sets(st.sampled_from(["positions", "segments", "valid"])),
    normalised=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_reading_in_parts_equals_reading_at_once(form, reader, n, cuts, rows, normalised, seed):
    values, every = normal(2, 3, n, 2, seed=seed), packed_rows(n, seed)
    if "segments" not in rows:
        every["positions"] = torch.arange(n).expand(2, n) * 2
    given_rows = {name: every[name] for name in rows}
    cuts = sorted({cut for cut in cuts if cut < n})
    whole = form(values, ETAS, normalised=normalised, **given_rows)
    parts = in_parts(reader, values, ETAS, cuts, normalised=normalised, **given_rows)
    assert_same(parts, whole)


@pytest.mark.parametrize("normalised", [False, True])
def test_steps_equal_the_whole(normalised):
    values, prompt = normal(2, 3, 2 * CHUNK, 2), CHUNK + 1
    whole = chunked(values, ETAS, normalised=normalised)
    _, state = chunked(values[:, :, :prompt], ETAS, normalised=normalised)
    for t in range(prompt, 2 * CHUNK):
        term, state = momentum_step(state, values[:, :, t], ETAS, normalised=normalised)
        assert_close(term, whole.term[:, :, t])
    assert_same(Momentum(term, state), Momentum(whole.term[:, :, -1], whole.state))


def test_steps_need_no_state_and_may_leave_gaps_and_finished_rows_behind():
    values = normal(2, 3, 4, 2)
    gaps = torch.tensor([[1, 1], [2, 3], [1, 1], [4, 2]])
    valid = torch.tensor([[True, True], [True, True], [True, False], [True, False]])
    positions = gaps.cumsum(0).T - 1
    whole = momentum_naive(values, ETAS, positions=positions, valid=valid.T)
    state = None
    for t in range(4):
        term, state = momentum_step(state, values[:, :, t], ETAS, gaps[t], valid=valid[t])
        assert_close(term, whole.term[:, :, t])
    assert state is not None
    assert_same(Momentum(term, state), Momentum(whole.term[:, :, -1], whole.state))
    one_gap = momentum_step(state, values[:, :, 0], ETAS, 3)
    assert_same(one_gap, momentum_step(state, values[:, :, 0], ETAS, torch.tensor([3, 3])))
    assert_close(one_gap.term, ETAS[:, None] ** 3 * state.sums)


def test_a_step_stays_in_the_segment_of_the_last_token():
    values, segments = normal(1, 1, 6, 2), torch.tensor([[1, 1, 1, 5, 5, 5]])
    whole = chunked(values, 0.8, segments=segments)
    before = chunked(values[:, :, :5], 0.8, segments=segments[:, :5]).state
    step = momentum_step(before, values[:, :, 5], 0.8)
    assert_close(step.term, whole.term[:, :, 5])
    assert step.state.segment is not None
    assert step.state.segment.tolist() == [5]


def test_term_and_value_make_the_sums_after_any_token():
    values, positions = normal(1, 3, 7, 2), torch.tensor([[0, 1, 4, 5, 9, 10, 11]])
    term, _ = chunked(values, ETAS, positions=positions)
    for t in range(7):
        state = chunked(values[:, :, : t + 1], ETAS, positions=positions[:, : t + 1]).state
        assert_close(term[:, :, t] + values[:, :, t], state.sums)


def test_a_row_of_padding_alone_leaves_the_state_as_it_was():
    values, valid = normal(2, 3, CHUNK + 2, 2), torch.zeros(2, CHUNK + 2, dtype=torch.bool)
    nothing = chunked(values, ETAS, valid=valid).state
    assert not nothing.sums.any()
    assert nothing.position.tolist() == [-1, -1]
    assert_same(chunked(values, ETAS, state=nothing), chunked(values, ETAS))
    some = chunked(values, ETAS).state
    after = chunked(values, ETAS, valid=valid, state=some).state
    assert_same(Momentum(after.sums, after), Momentum(some.sums, some))


def test_a_state_holds_no_more_memory_than_it_shows():
    state = momentum_chunked(normal(1, 2, 1000, 4), 0.5).state
    assert state.sums.untyped_storage().nbytes() == state.sums.numel() * 8


# Gradients, precision, cost.


@pytest.mark.parametrize("form", [momentum_naive, momentum_recurrent, chunked])
@pytest.mark.parametrize("uneven", [False, True])
@pytest.mark.parametrize("normalised", [False, True])
def test_gradients_with_respect_to_values_rates_and_state(form, uneven, normalised):
    n = CHUNK + 3
    values = normal(2, 2, n, 1).requires_grad_()
    eta = torch.tensor([0.2, 0.9], dtype=DOUBLE, requires_grad=True)
    sums = normal(2, 2, 1, seed=1).requires_grad_()
    rows = packed_rows(n, seed=4) if uneven else {}
    segment = rows["segments"][:, 0] if uneven else None

    def both(values: Tensor, eta: Tensor, sums: Tensor) -> tuple[Tensor, Tensor]:
        state = MomentumState(sums, torch.full((2,), -1), segment)
        term, after = form(values, eta, state=state, normalised=normalised, **rows)
        return term, after.sums

    assert torch.autograd.gradcheck(both, (values, eta, sums))
    assert torch.autograd.gradcheck(both, (values, eta[1].detach().clone().requires_grad_(), sums))


@EVERY_FORM
def test_the_slope_at_eta_zero_is_the_value_before(form):
    values, eta = normal(1, 2, CHUNK + 3, 1), torch.zeros(2, dtype=DOUBLE, requires_grad=True)
    slopes = torch.autograd.functional.jacobian(lambda rate: form(values, rate).term.sum(1), eta)
    assert_close(slopes[0, 1:, 0], values[0, :, :-1, 0].T)
    assert_close(slopes[0, 0, 0], torch.zeros(2, dtype=DOUBLE))


@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(form, dtype):
    values, eta = normal(1, 2, 400, 3, dtype=dtype), 0.99
    term, state = form(values, eta)
    expected = form(values.float(), eta)
    assert term.dtype == dtype
    assert state.sums.dtype == torch.float32
    assert torch.equal(state.sums, expected.state.sums)
    assert torch.equal(term, expected.term.to(dtype))


@EVERY_FORM
def test_autocast_does_not_round_the_sums(form):
    values = normal(1, 2, 400, 3, dtype=torch.float32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = form(values, 0.99)
        # Where autocast is left to itself, products are rounded.
        assert (torch.ones(1, 400) @ values[0, 0]).dtype == torch.bfloat16
    assert_same(got, form(values, 0.99), tolerance=0)


@EVERY_FORM
def test_arguments_are_left_unchanged(form):
    values, rows = normal(2, 3, 2 * CHUNK + 1, 2), packed_rows(2 * CHUNK + 1, seed=3)
    state = MomentumState(normal(2, 3, 2, seed=5), torch.tensor([-1, -1]), rows["segments"][:, 0])
    given_tensors = [values, ETAS, *rows.values(), state.sums, state.position, state.segment]
    copies = [tensor.clone() for tensor in given_tensors if tensor is not None]
    form(values, ETAS, state=state, **rows)
    for tensor, copy in zip(given_tensors, copies, strict=True):
        assert tensor is not None
        assert torch.equal(tensor, copy)


class Watch(TorchDispatchMode):
    """Counts operations and remembers the largest tensor that one of them made."""

    def __init__(self) -> None:
        super().__init__()
        self.n_operations = 0
        self.largest = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.n_operations += 1
        for tensor in out if isinstance(out, tuple | list) else [out]:
            # Views of a small tensor may show more elements than there are.
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def watched(form, n: int, uneven: bool, head: int = 2, d_head: int = 4) -> Watch:
    values = normal(1, head, n, d_head, dtype=torch.float32).requires_grad_()
    eta = torch.tensor([0.5, 0.9], requires_grad=True)
    rows = {"positions": torch.arange(n)[None], "segments": torch.arange(n)[None] // 1000} if uneven else {}
    with Watch() as watch:
        form(values, eta, **rows).term.sum().backward()
    return watch


@pytest.mark.parametrize("uneven", [False, True])
def test_chunks_need_memory_linear_in_the_length_and_no_loop_over_it(uneven):
    long, short = (watched(momentum_chunked, n, uneven) for n in (4096, 1024))
    # Weights of 32 x 32 a chunk and head, in both heads, are the largest there is.
    assert long.largest <= 1.1 * 4096 * 32 * 2 < 4096 * 4096 / 50
    assert long.largest <= 4.1 * short.largest
    assert long.n_operations <= 1.5 * short.n_operations
    assert watched(momentum_naive, 1024, uneven).largest >= 1024 * 1024
    assert watched(momentum_recurrent, 256, uneven).n_operations > 3 * short.n_operations


# Mistakes.


@pytest.mark.parametrize("eta", [-0.1, 1, 1.0, 2.5, float("nan")])
def test_rates_outside_their_range_are_named(eta):
    values = normal(1, 2, 3, 1)
    for given_eta in (eta, torch.tensor(float(eta)), torch.tensor([0.5, float(eta)])):
        for form in FORMS:
            with pytest.raises(ConfigError, match=rf"eta is {eta}.*expected a number in \[0, 1\)"):
                form(values, given_eta)
        with pytest.raises(ConfigError, match="expected a number in"):
            momentum_step(None, values[:, :, 0], given_eta)
    # What is being trained is not looked at.
    momentum_chunked(values, torch.tensor(1.5, requires_grad=True))


@EVERY_FORM
def test_errors_name_value_and_remedy(form):
    values = normal(2, 3, 4, 1)
    ids, valid = torch.arange(4)[None], torch.ones(2, 4, dtype=torch.bool)
    state = form(values, 0.5).state
    with pytest.raises(ShapeError, match=r"values must be \(batch, head, pos, d_head\).*given \(3, 4, 1\)"):
        form(values[0], 0.5)
    with pytest.raises(ShapeError, match=r"none of them empty; given \(2, 3, 0, 1\)"):
        form(values[:, :, :0], 0.5)
    with pytest.raises(ConfigError, match=r"values are torch.int64; expected a floating dtype"):
        form(values.long(), 0.5)
    with pytest.raises(ShapeError, match=r"eta must be.*\(head,\) = \(3,\); given a tensor of shape \(2,\)"):
        form(values, torch.tensor([0.1, 0.2]))
    with pytest.raises(ShapeError, match=r"positions must be \(batch, pos\) = \(2, 4\) or \(1, 4\); given \(1, 3\)"):
        form(values, 0.5, positions=ids[:, :3])
    with pytest.raises(ConfigError, match=r"segments are torch.float32; expected integers"):
        form(values, 0.5, segments=ids.float())
    with pytest.raises(ConfigError, match=r"valid are torch.int64; expected torch.bool, True where"):
        form(values, 0.5, valid=valid.long())
    with pytest.raises(ConfigError, match=r"positions are torch.bool; expected integers"):
        form(values, 0.5, positions=valid)
    with pytest.raises(ShapeError, match=r"sums \(2, 3, 1\) and position \(2,\); given \(1, 3, 1\) and \(2,\)"):
        form(values, 0.5, state=replace(state, sums=state.sums[:1]))
    with pytest.raises(ConfigError, match=r"left without segments and is continued with. Give segments to every part"):
        form(values, 0.5, state=state, segments=ids)
    with pytest.raises(ConfigError, match=r"left with segments and is continued without"):
        form(values, 0.5, state=replace(state, segment=torch.zeros(2, dtype=torch.long)))


@EVERY_FORM
def test_positions_that_do_not_ascend_are_named(form):
    values, positions = normal(2, 1, 4, 1), torch.tensor([[0, 1, 2, 3], [0, 5, 5, 6]])
    with pytest.raises(ConfigError, match=r"in row 1, token 2 has position 5 behind position 5.*mark the sequences"):
        form(values, 0.5, positions=positions)
    with pytest.raises(ConfigError, match=r"in row 0, token 1 has position 3 behind position 3"):
        form(values, 0.5, positions=torch.tensor([[3, 3, 4, 5]]))
    with pytest.raises(ConfigError, match=r"in row 0, token 0 has position 0 behind position 3"):
        form(values, 0.5, positions=positions[:1], state=form(values, 0.5).state)
    # Padding may have any position, and a new segment starts where it likes.
    form(values, 0.5, positions=positions, valid=torch.tensor([[True, True, True, True], [True, True, False, True]]))
    form(values, 0.5, positions=positions, segments=torch.tensor([[0, 0, 0, 0], [0, 0, 1, 1]]))


def test_too_small_chunks_and_gaps_are_named():
    values = normal(1, 1, 4, 1)
    with pytest.raises(ConfigError, match=r"chunk is 1; expected 2 tokens or more"):
        momentum_chunked(values, 0.5, chunk=1)
    with pytest.raises(ConfigError, match=r"chunk is 0; expected 2"):
        decayed_sums(values, 0.5, chunk=0)
    with pytest.raises(ConfigError, match=r"gap is 0; expected 1 position or more"):
        momentum_step(None, values[:, :, 0], 0.5, 0)
    with pytest.raises(ShapeError, match=r"value must be \(batch, head, d_head\).*given \(1, 1, 4, 1\)"):
        momentum_step(None, values, 0.5)
    with pytest.raises(ShapeError, match=r"gap must be \(batch,\) = \(1,\); given \(2,\)"):
        momentum_step(None, values[:, :, 0], 0.5, torch.tensor([1, 2]))
