from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dualform.errors import ConfigError, NumericalError, ShapeError
from dualform.ops.fast_weights import (
    OPTIONS,
    RULES,
    FastWeightForm,
    FastWeightOutput,
    FastWeightRule,
    FastWeightState,
    fast_weights,
    inner_gradient,
    inner_loss,
)
from dualform.ops.momentum_dual import momentum_linear_attention

CHUNK = 8
MINI_BATCH = 5
DOUBLE = torch.float64
HEADS, D = 2, 4
FORMS: tuple[FastWeightForm, ...] = ("recurrent", "chunked")

EVERY_RULE = pytest.mark.parametrize("rule", RULES)
EVERY_FORM = pytest.mark.parametrize("form", FORMS)
STEPPING: tuple[FastWeightRule, ...] = tuple(rule for rule in RULES if rule != "mesa")
NORMED: tuple[FastWeightRule, ...] = ("ttt-linear", "titans")


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def uniform(low: float, high: float, *shape: int, seed: int = 0) -> Tensor:
    return low + (high - low) * torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def tokens(n: int, batch: int = 2, d_v: int = D) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of length 1, so that rates below 1 are steady, and values."""
    q, k = (F.normalize(normal(batch, HEADS, n, D, seed=seed), dim=-1) for seed in (1, 2))
    return q, k, normal(batch, HEADS, n, d_v, seed=3)


def options(rule: FastWeightRule, n: int, batch: int = 2) -> dict[str, Any]:
    """All that the rule heeds, different for every token, and weights to begin from."""
    shape = (batch, HEADS, n)
    every = {
        # The gradient of titans has no half.
        "rate": uniform(0.1, 0.9, *shape, seed=4) / (2 if rule == "titans" else 1),
        "decay": uniform(0.8, 1.0, *shape, seed=5),
        "momentum": uniform(0.2, 0.8, *shape, seed=6),
        "ridge": uniform(0.5, 1.5, HEADS, D, seed=7),
        "norm": (uniform(0.5, 1.5, HEADS, D, seed=8), normal(HEADS, D, seed=9)),
        "mini_batch": MINI_BATCH,
    }
    chosen = {name: value for name, value in every.items() if name in OPTIONS[rule]}
    return {**chosen, "state": FastWeightState(rule, normal(1, HEADS, D, D, seed=10))}


def apart(got: Tensor, expected: Tensor) -> float:
    """Largest error, relative to the largest number."""
    return float((got - expected).abs().max() / expected.abs().max())


def part(given: dict[str, Any], here: slice) -> dict[str, Any]:
    return {
        name: value[:, :, here] if name in ("rate", "decay", "momentum") and isinstance(value, Tensor) else value
        for name, value in given.items()
    }


def parts_of_state(state: FastWeightState) -> list[Tensor]:
    return [x for x in (state.weights, state.gram, state.momentum, state.anchor) if x is not None]


def cast(given: Any, dtype: torch.dtype) -> Any:
    if isinstance(given, Tensor):
        return given.to(dtype)
    if isinstance(given, tuple):
        return tuple(cast(x, dtype) for x in given)
    if isinstance(given, FastWeightState):
        return FastWeightState(given.rule, given.weights.to(dtype))
    return given


def gradient_by_autograd(rule: FastWeightRule, S: Tensor, k: Tensor, v: Tensor, **more: Any) -> Tensor:
    S = S.detach().requires_grad_()
    (gradient,) = torch.autograd.grad(inner_loss(rule, S, k, v, **more).sum(), S)
    return gradient


# Every update against autograd on its inner loss.


@pytest.mark.parametrize("rule", STEPPING)
@pytest.mark.parametrize("normed", [False, True])
def test_the_gradient_is_autograds(rule, normed):
    if normed and rule not in NORMED:
        normed = False
    S, k, v = normal(2, HEADS, D, D), normal(2, HEADS, D, seed=1), normal(2, HEADS, D, seed=2)
    norm = options(rule, 1)["norm"] if normed else None
    got = inner_gradient(rule, S, k, v, norm=norm)
    assert apart(got, gradient_by_autograd(rule, S, k, v, norm=norm)) < 1e-8


@pytest.mark.parametrize("normed", [False, True])
@pytest.mark.parametrize("rule", NORMED)
@EVERY_FORM
def test_every_weights_after_a_token_are_a_step_along_autograds_gradient(rule, normed, form):
    n = MINI_BATCH + 2
    q, k, v = tokens(n)
    given = options(rule, n)
    norm = given["norm"] = given["norm"] if normed else None
    state = given.pop("state")
    M = anchor = state.weights.expand(2, -1, -1, -1)
    Z = torch.zeros_like(M)
    one = torch.ones(2, HEADS, n, dtype=DOUBLE)
    for t in range(n):
        here = slice(t, t + 1)
        state = fast_weights(
            rule, q[:, :, here], k[:, :, here], v[:, :, here], form=form, **part(given, here), state=state
        ).state
        anchor = M if t % MINI_BATCH == 0 else anchor
        gradient = gradient_by_autograd(rule, anchor, k[:, :, t], v[:, :, t], norm=norm)
        rate, decay = (given.get(name, one)[:, :, t, None, None] for name in ("rate", "decay"))
        eta = given["momentum"][:, :, t, None, None] if rule == "titans" else 0.0
        Z = eta * Z - rate * gradient
        M = decay * M + Z
        assert apart(state.weights, M) < 1e-8


@pytest.mark.parametrize("rule", ["linear", "delta", "gated-delta"])
@EVERY_FORM
def test_the_other_rules_step_along_it_from_the_decayed_weights(rule, form):
    q, k, v = tokens(1)
    given = options(rule, 1)
    S = given["state"].weights * given.get("decay", torch.ones(2, HEADS, 1, dtype=DOUBLE))[..., None]
    expected = S - given["rate"][..., None] * gradient_by_autograd(rule, S, k[:, :, 0], v[:, :, 0])
    got = fast_weights(rule, q, k, v, form=form, **given)
    assert apart(got.state.weights, expected) < 1e-8
    # The output is read behind the token's own update.
    assert apart(got.output, q @ expected.mT) < 1e-8
    assert apart(got.output, q @ S.mT) > 0.1


def test_a_gradient_that_forgets_the_norms_projection_is_seen():
    S, k, v = normal(64, D, D), normal(64, D, seed=1), normal(64, D, seed=2)
    norm = (uniform(0.5, 1.5, D, seed=3), normal(D, seed=4))
    true = gradient_by_autograd("titans", S, k, v, norm=norm)
    z = (S @ k[..., None])[..., 0]
    spread = (z.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    unit = (z - z.mean(-1, keepdim=True)) / spread
    behind = 2 * norm[0] * (norm[0] * unit + norm[1] - v)
    along = unit * (behind * unit).mean(-1, keepdim=True)
    # Without the projection at all; and with D times what should have been one, as a public reference has it.
    forgetting = behind / spread
    misplaced = D * behind - (behind.mean(-1, keepdim=True) + along) / spread
    for wrong in (forgetting, misplaced):
        cosines = F.cosine_similarity((wrong[..., None] * k[..., None, :]).flatten(1), true.flatten(1))
        assert cosines.median() < 0.9
    right = (behind - behind.mean(-1, keepdim=True) - along) / spread
    assert apart(right[..., None] * k[..., None, :], true) < 1e-8


# What each rule minimises.


@EVERY_FORM
def test_longhorn_goes_where_its_loss_is_least_and_the_explicit_step_does_not(form):
    q, k, v = tokens(1)
    k = 2 * k
    given = options("longhorn", 1)
    before = given["state"].weights.expand(2, -1, -1, -1)
    losses = {"rate": given["rate"][..., 0], "before": before}
    S = fast_weights("longhorn", q, k, v, form=form, **given).state.weights
    scale = float((S - before).abs().max())
    assert gradient_by_autograd("longhorn", S, k[:, :, 0], v[:, :, 0], **losses).abs().max() < 1e-8 * scale
    # By optimisation too: Newton's step is exact on a quadratic, and its matrix here is I + b k k^T.
    b, key = given["rate"][..., None], k
    curved = torch.eye(D, dtype=DOUBLE) + b * key.mT @ key
    assert apart(S, torch.linalg.solve(curved, (before + b * v.mT @ key).mT).mT) < 1e-10
    explicit = fast_weights("delta", q, k, v, rate=given["rate"], state=FastWeightState("delta", before)).state.weights
    assert gradient_by_autograd("longhorn", explicit, k[:, :, 0], v[:, :, 0], **losses).abs().max() > 0.1 * scale


@EVERY_FORM
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_mesa_reads_the_ridge_solution_of_all_tokens_so_far(form, decay):
    n = 2 * CHUNK + 3
    q, k, v = tokens(n)
    ridge, rate = uniform(0.5, 1.5, HEADS, D, seed=7), uniform(0.1, 0.9, 2, HEADS, n, seed=4)
    got = fast_weights("mesa", q, k, v, rate=rate, decay=decay, ridge=ridge, form=form, chunk=CHUNK)
    for t in range(n):
        keys, values = k[:, :, : t + 1], v[:, :, : t + 1]
        weights = rate[:, :, : t + 1] * decay ** torch.arange(t, -1, -1, dtype=DOUBLE)
        moments = keys.mT @ (weights[..., None] * keys) + torch.diag_embed(ridge)
        solution = torch.linalg.solve(moments, keys.mT @ (weights[..., None] * values)).mT
        assert apart(got.output[:, :, t], (solution @ q[:, :, t, :, None])[..., 0]) < 1e-10
        gradient = gradient_by_autograd("mesa", solution, keys, values, rate=weights, ridge=ridge)
        assert gradient.abs().max() < 1e-10
    # Another ridge is another solution.
    other = fast_weights("mesa", q, k, v, rate=rate, decay=decay, ridge=2 * ridge, form=form, chunk=CHUNK)
    assert apart(other.output, got.output) > 0.05


# Equivalences.


@EVERY_FORM
def test_linear_is_causal_linear_attention_and_with_decay_it_is_not(form):
    q, k, v = tokens(3 * CHUNK + 1)
    attention = momentum_linear_attention(q, k, v, 0.0, "none")
    assert apart(fast_weights("linear", q, k, v, form=form).output, attention) < 1e-12
    assert apart(fast_weights("linear", q, k, v, decay=0.9, form=form).output, attention) > 0.1


@EVERY_FORM
def test_delta_is_one_step_of_sgd_a_token_and_another_rate_is_not(form):
    q, k, v = (x[:1, :1] for x in tokens(2 * CHUNK + 1))
    S = torch.zeros(D, D, dtype=DOUBLE, requires_grad=True)
    optimiser, read = torch.optim.SGD([S], lr=0.7), []
    for query, key, value in zip(q[0, 0], k[0, 0], v[0, 0], strict=True):
        optimiser.zero_grad()
        (0.5 * (S @ key - value).square().sum()).backward()
        optimiser.step()
        read.append((S @ query).detach())
    expected = torch.stack(read)
    assert apart(fast_weights("delta", q, k, v, rate=0.7, form=form, chunk=CHUNK).output[0, 0], expected) < 1e-12
    assert apart(fast_weights("delta", q, k, v, rate=0.6, form=form, chunk=CHUNK).output[0, 0], expected) > 0.01
    # Nor is it where the keys are of another length.
    assert apart(fast_weights("delta", q, 0.5 * k, v, rate=0.7, form=form).output[0, 0], expected) > 0.1


@EVERY_FORM
def test_gated_delta_without_decay_is_delta_and_with_decay_it_is_not(form):
    q, k, v = tokens(2 * CHUNK + 1)
    delta = fast_weights("delta", q, k, v, rate=0.5, form=form, chunk=CHUNK).output
    for one in (1.0, torch.ones((), dtype=DOUBLE)):
        gated = fast_weights("gated-delta", q, k, v, rate=0.5, decay=one, form=form, chunk=CHUNK)
        assert apart(gated.output, delta) < 1e-12
    assert apart(fast_weights("gated-delta", q, k, v, rate=0.5, decay=0.9, form=form).output, delta) > 0.05


@EVERY_FORM
def test_plain_titans_is_delta_at_twice_the_rate_and_with_momentum_it_is_not(form):
    q, k, v = tokens(2 * CHUNK + 1)
    delta = fast_weights("delta", q, k, v, rate=0.6, form=form).output
    plain = {"rate": 0.3, "mini_batch": 1, "form": form}
    assert apart(fast_weights("titans", q, k, v, **plain).output, delta) < 1e-12
    assert apart(fast_weights("titans", q, k, v, **plain, momentum=0.3).output, delta) > 0.05
    assert apart(fast_weights("titans", q, k, v, **{**plain, "mini_batch": 4}).output, delta) > 0.05
    assert apart(fast_weights("titans", q, k, v, **{**plain, "rate": 0.6}).output, delta) > 0.05


@EVERY_FORM
def test_plain_ttt_is_delta_for_the_values_without_their_keys(form):
    q, k, v = tokens(2 * CHUNK + 1)
    delta = fast_weights("delta", q, k, v - k, rate=0.6, form=form).output
    assert apart(fast_weights("ttt-linear", q, k, v, rate=0.6, mini_batch=1, form=form).output, delta) < 1e-12
    assert apart(fast_weights("ttt-linear", q, k, v + k, rate=0.6, mini_batch=1, form=form).output, delta) > 0.1


# One form against the other.


def both(rule, n, dtype=DOUBLE, **changed) -> tuple[FastWeightOutput, FastWeightOutput]:
    given = {name: cast(value, dtype) for name, value in {**options(rule, n), **changed}.items()}
    q, k, v = (x.to(dtype) for x in tokens(n))
    first, second = (fast_weights(rule, q, k, v, form=form, chunk=CHUNK, **given) for form in FORMS)
    return first, second


@EVERY_RULE
@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 203])
def test_both_forms_agree_at_every_length(rule, n):
    recurrent, by_chunks = both(rule, n)
    assert apart(by_chunks.output, recurrent.output) < 1e-10
    pairs = zip(parts_of_state(by_chunks.state), parts_of_state(recurrent.state), strict=True)
    assert all(apart(got, expected) < 1e-10 for got, expected in pairs)
    assert by_chunks.state.seen == recurrent.state.seen
    # 200 tokens' rounding of 6e-8 each. Behind a LayerNorm the loss is not convex: steps drive neighbouring weights
    # apart, and what rounding puts between them grows from token to token.
    compared = slice(0, 50 if rule in NORMED else n)
    for got in both(rule, n, torch.float32):
        assert got.output.dtype == got.state.weights.dtype == torch.float32
        assert apart(got.output.double()[:, :, compared], recurrent.output[:, :, compared]) < 1e-4


@pytest.mark.parametrize(
    ("rule", "changed"),
    [
        ("mesa", {"decay": 1.0}),
        ("linear", {"decay": 1.0}),
        ("gated-delta", {"decay": 1.0}),
        ("titans", {"decay": 1.0, "momentum": 0.0, "norm": None}),
        ("titans", {"mini_batch": 1}),
        ("ttt-linear", {"mini_batch": 1}),
        ("ttt-linear", {"norm": None}),
        ("gated-delta", {"decay": uniform(0.0, 1e-30, 2, HEADS, 3 * CHUNK + 1)}),
        ("titans", {"decay": 0.0, "momentum": 1.0}),
        ("mesa", {"rate": 0.0, "decay": 1.0}),
    ],
)
def test_both_forms_agree_where_something_is_left_out_or_at_its_end(rule, changed):
    recurrent, by_chunks = both(rule, 3 * CHUNK + 1, **changed)
    assert apart(by_chunks.output, recurrent.output) < 1e-10


@EVERY_RULE
@EVERY_FORM
@pytest.mark.parametrize("cuts", [[1, 3, 12], [MINI_BATCH], [CHUNK, CHUNK + 1]])
def test_a_sequence_may_be_cut_anywhere(rule, form, cuts):
    n = 2 * CHUNK + 5
    q, k, v = tokens(n)
    given = options(rule, n)
    whole = fast_weights(rule, q, k, v, form=form, chunk=CHUNK, **given)
    outputs, state = [], given.pop("state")
    for start, stop in zip([0, *cuts], [*cuts, n], strict=True):
        here = slice(start, stop)
        read = fast_weights(
            rule, *(x[:, :, here] for x in (q, k, v)), form=form, chunk=CHUNK, state=state, **part(given, here)
        )
        outputs.append(read.output)
        state = read.state
    assert apart(torch.cat(outputs, 2), whole.output) < 1e-10
    for got, expected in zip(parts_of_state(state), parts_of_state(whole.state), strict=True):
        assert apart(got, expected) < 1e-10
    # And what was before is not forgotten.
    forgetful = fast_weights(rule, *(x[:, :, cuts[0] :] for x in (q, k, v)), **part(given, slice(cuts[0], n)))
    assert apart(forgetful.output, whole.output[:, :, cuts[0] :]) > 0.01


@EVERY_RULE
@EVERY_FORM
def test_no_token_reads_a_later_one_and_every_one_reads_itself(rule, form):
    n, t = 2 * CHUNK + 3, CHUNK + 2
    q, k, v = tokens(n)
    given = options(rule, n)
    before = fast_weights(rule, q, k, v, form=form, chunk=CHUNK, **given).output
    for changed in range(3):
        other = [x.clone() for x in (q, k, v)]
        other[changed][:, :, t] += 1.0
        after = fast_weights(rule, *other, form=form, chunk=CHUNK, **given).output
        assert apart(after[:, :, :t], before[:, :, :t]) < 1e-14
        assert (after[:, :, t] - before[:, :, t]).abs().max() > 1e-3


@EVERY_RULE
@pytest.mark.parametrize("chunk", [2, 7, 64])
def test_results_do_not_depend_on_the_chunk(rule, chunk):
    q, k, v = tokens(19)
    given = options(rule, 19)
    first, second = (fast_weights(rule, q, k, v, chunk=size, **given).output for size in (CHUNK, chunk))
    assert apart(second, first) < 1e-12


@EVERY_RULE
def test_the_chunked_forms_gradients_are_right_and_the_recurrent_forms(rule):
    n = 4
    q, k, v = tokens(n, batch=1)
    given = options(rule, n, batch=1)
    given |= {"mini_batch": 3} if "mini_batch" in given else {}
    norm, state = given.pop("norm", ()), given.pop("state")
    names = [name for name, value in given.items() if isinstance(value, Tensor)]
    inputs = [q, k, v, state.weights, *norm, *(given[name] for name in names)]
    inputs = [x[:, :1] if x.ndim == 4 or x.shape == (1, HEADS, n) else x for x in inputs]
    inputs = [x[:1] if x.ndim == 2 else x for x in inputs]
    inputs = [x.clone().requires_grad_() for x in inputs]

    def read(form: Any, *x: Tensor) -> Tensor:
        more = dict(zip(names, x[4 + len(norm) :], strict=True))
        if norm:
            more["norm"] = x[4:6]  # type: ignore[assignment]
        output, left = fast_weights(
            rule, *x[:3], form=form, chunk=2, state=FastWeightState(rule, x[3]), **{**given, **more}
        )
        return torch.cat([output.flatten(), left.weights.flatten()])

    assert torch.autograd.gradcheck(lambda *x: read("chunked", *x), inputs, fast_mode=True)
    seed = normal(n * D + D * D, seed=11)
    gradients = [torch.autograd.grad(read(form, *inputs) @ seed, inputs) for form in FORMS]
    for got, expected in zip(gradients[1], gradients[0], strict=True):
        assert apart(got, expected) < 1e-9


DECAYING = [(rule, name) for rule in RULES for name in ("decay", "momentum") if name in OPTIONS[rule]]


@pytest.mark.parametrize(("rule", "name"), DECAYING)
@pytest.mark.parametrize("where", ["a number", "every token", "some tokens", "below 0"])
def test_the_chunked_forms_slope_at_a_decay_or_momentum_of_0_is_the_recurrent_forms(rule, name, where):
    n = 2 * CHUNK + 3
    q, k, v = tokens(n)
    given = options(rule, n)
    at = {"a number": torch.zeros((), dtype=DOUBLE), "every token": torch.zeros_like(given[name])}.get(where)
    if at is None:
        at = given[name].clone()
        # A learned one may step over its end, where values are not looked at.
        at[:, :, ::3] = -0.1 if where == "below 0" else 0.0
        at[:, :, 4] = at[:, :, 3]
    at.requires_grad_()
    found = []
    for form in FORMS:
        read = fast_weights(rule, q, k, v, form=form, chunk=CHUNK, **{**given, name: at})
        (slope,) = torch.autograd.grad(read.output.square().sum() + read.state.weights.sum(), at)
        found.append((slope, read.output.detach()))
    assert found[0][0].abs().max() > 0.1
    for got, expected in zip(found[1], found[0], strict=True):
        assert apart(got, expected) < 1e-9


@pytest.mark.parametrize(("rule", "name"), [pair for pair in DECAYING if pair[0] != "mesa"])
def test_slopes_of_slopes_are_right_at_0_too(rule, name):
    n = 4
    q, k, v = (x[:, :1] for x in tokens(n, batch=1))
    at = torch.tensor([0.0, 0.6, 0.0, 0.3], dtype=DOUBLE)[None, None].requires_grad_()
    more: dict[str, Any] = {"decay": 0.9} if name == "momentum" else {}
    assert torch.autograd.gradgradcheck(lambda x: fast_weights(rule, q, k, v, chunk=4, **more, **{name: x}).output, at)


def test_mesa_without_decay_has_right_gradients_too():
    q, k, v = (x[:, :1].clone().requires_grad_() for x in tokens(4, batch=1))
    rate = uniform(0.1, 0.9, 1, 1, 4).requires_grad_()

    def read(*x: Tensor) -> Tensor:
        return fast_weights("mesa", *x[:3], rate=x[3], chunk=2).output

    assert torch.autograd.gradcheck(read, (q, k, v, rate), fast_mode=True)


@EVERY_RULE
@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_single_under_autocast_too(rule, form, dtype):
    n = CHUNK + 1
    q, k, v = (x.to(dtype) for x in tokens(n))
    given = {name: cast(value, torch.float32) for name, value in options(rule, n).items()}
    wide = fast_weights(rule, q.float(), k.float(), v.float(), form=form, **given)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = fast_weights(rule, q, k, v, form=form, **given)
    assert half.output.dtype == dtype
    assert half.state.weights.dtype == torch.float32
    assert torch.equal(half.output, wide.output.to(dtype))
    assert torch.equal(half.state.weights, wide.state.weights)


@EVERY_RULE
def test_arguments_stay_as_they_are_and_a_broadcast_rate_is_that_rate(rule):
    n = CHUNK + 2
    q, k, v = tokens(n)
    given = {**options(rule, n), "rate": 0.5}
    kept = [x.clone() for x in (q, k, v)]
    number = fast_weights(rule, q, k, v, **given).output
    assert all(torch.equal(x, y) for x, y in zip((q, k, v), kept, strict=True))
    for shape in ((), (1, 1, 1), (1, HEADS, 1), (2, HEADS, n)):
        given["rate"] = torch.full(shape, 0.5, dtype=DOUBLE)
        assert torch.equal(fast_weights(rule, q, k, v, **given).output, number)


class Largest(TorchDispatchMode):
    """The most numbers that any tensor had."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, Tensor):
            self.numbers = max(self.numbers, result.numel())
        return result


@EVERY_RULE
def test_the_chunked_form_never_holds_all_tokens_weights_at_a_time(rule):
    n, width = 256, 32
    q, k, v = (F.normalize(normal(1, 1, n, width, seed=seed), dim=-1) for seed in (1, 2, 3))
    more: dict[str, Any] = {"decay": 0.9} if "decay" in OPTIONS[rule] else {}
    with Largest() as mode, torch.no_grad():
        fast_weights(rule, q, k, v, rate=0.5, **more)
    # Weights between chunks are a sixteenth of it at most, each token's with decayed mesa a few tokens' at a time.
    assert mode.numbers <= n * width * width // 8


@EVERY_FORM
@pytest.mark.parametrize(
    ("rule", "most", "more"),
    [
        # Keys of length 1, all alike: the step of a mini-batch of 4 is 4 times that of a token.
        ("delta", 2.0, {}),
        ("gated-delta", 2.0, {}),
        ("ttt-linear", 2.0, {"mini_batch": 1}),
        ("ttt-linear", 0.5, {"mini_batch": 4}),
        ("titans", 1.0, {"mini_batch": 1}),
        ("titans", 0.25, {"mini_batch": 4}),
    ],
)
def test_steps_grow_without_bound_just_above_the_rate_that_is_documented(rule, most, more, form):
    _, k, v = tokens(1)
    k, v = (x.expand(-1, -1, 200, -1) for x in (k, v))
    for rate, grows in ((1.1 * most, True), (0.9 * most, False)):
        S = fast_weights(rule, k, k, v, rate=rate, form=form, chunk=CHUNK, **more).state.weights
        assert bool(S.abs().max() > 1e3) == grows


# Mistakes.


@EVERY_FORM
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_mesa_without_digits_says_what_would_help(form, decay):
    q, k, v = (x.float() for x in tokens(2 * CHUNK))
    alike = torch.ones_like(k)
    given: dict[str, Any] = {"decay": decay, "form": form, "chunk": CHUNK}
    message = r"not positive definite in torch\.float32, with a ridge of 1e-12 .* larger ridge, or .* float64"
    with pytest.raises(NumericalError, match=message):
        fast_weights("mesa", q, alike, v, ridge=1e-12, **given)
    double = fast_weights("mesa", q.double(), alike.double(), v.double(), ridge=1e-12, **given).output
    assert double.isfinite().all()
    for bad in (torch.nan, torch.inf):
        spoilt = k.clone()
        spoilt[0, 0, 5, 1] = bad
        with pytest.raises(NumericalError, match="mesa: keys hold numbers that are not finite"):
            fast_weights("mesa", q, spoilt, v, **given)


def test_a_state_of_an_open_mini_batch_is_continued_with_that_mini_batch():
    q, k, v = tokens(5)
    for rule in NORMED:
        for form in FORMS:
            state = fast_weights(rule, q, k, v, rate=0.1, mini_batch=8, form=form).state
            assert (state.seen, state.mini_batch) == (5, 8)
            with pytest.raises(ConfigError, match=r"open mini-batch of 8 and is continued with mini_batch = 7"):
                fast_weights(rule, q, k, v, rate=0.1, mini_batch=7, form=form, state=state)
            # Once it is complete, any other may follow.
            state = fast_weights(rule, *(x[:, :, :3] for x in (q, k, v)), mini_batch=8, form=form, state=state).state
            assert (state.seen, state.mini_batch, state.anchor) == (0, None, None)
            fast_weights(rule, q, k, v, rate=0.1, mini_batch=7, form=form, state=state)


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        ("hebb", {}, "rule is 'hebb'"),
        ("delta", {"form": "naive"}, "form is 'naive'"),
        ("delta", {"chunk": 1}, "chunk is 1"),
        ("titans", {"mini_batch": 0}, "mini_batch is 0"),
        ("delta", {"rate": -0.5}, r"rate is -0\.5"),
        ("delta", {"rate": float("nan")}, "rate is nan"),
        ("delta", {"rate": torch.full((2, HEADS, 3), -0.25)}, r"rate is -0\.25"),
        ("gated-delta", {"decay": 1.5}, r"decay is 1\.5"),
        ("gated-delta", {"decay": torch.full((2, HEADS, 3), 1.25)}, r"decay is 1\.25"),
        ("titans", {"momentum": -1.0}, r"momentum is -1\.0"),
        ("mesa", {"ridge": 0.0}, r"ridge is 0\.0"),
        ("mesa", {"ridge": torch.tensor([1.0, 1.0, -2.0, 1.0])}, r"ridge is -2\.0"),
        ("mesa", {"ridge": torch.inf}, "ridge is inf"),
        ("mesa", {"ridge": torch.nan}, "ridge is nan"),
        ("delta", {"decay": 0.9}, r"decay is 0\.9, but delta heeds only rate"),
        ("linear", {"momentum": 0.5}, "momentum is 0.5, but linear heeds only rate, decay"),
        ("delta", {"norm": (torch.ones(D), torch.zeros(D))}, "norm is given, but delta"),
        ("delta", {"mini_batch": 4}, "mini_batch is 4, but delta"),
        ("delta", {"state": FastWeightState("linear", torch.zeros(1, HEADS, D, D))}, "of the rule 'linear'"),
        ("titans", {"state": FastWeightState("titans", torch.zeros(1, HEADS, D, D), seen=20)}, "seen 20 tokens"),
    ],
)
def test_a_bad_setting_is_named(rule, given, message):
    q, k, v = tokens(3)
    with pytest.raises(ConfigError, match=message):
        fast_weights(rule, q, k, v, **given)


@pytest.mark.parametrize("ridge", [1e-50, 1e50])
def test_a_ridge_that_is_none_in_the_dtype_computed_in_is_refused(ridge):
    q, k, v = tokens(3)
    fast_weights("mesa", q, k, v, ridge=ridge)
    for given in (ridge, torch.full((D,), ridge, dtype=DOUBLE)):
        with pytest.raises(ConfigError, match=r"ridge is 1e.50; expected finite numbers above 0 in torch\.float32"):
            fast_weights("mesa", q.float(), k.float(), v.float(), ridge=given)


@pytest.mark.parametrize(
    ("rule", "given", "message"),
    [
        ("delta", {"rate": torch.ones(3)}, r"rate must be .* given a tensor of shape \(3,\)"),
        ("delta", {"rate": torch.ones(2, HEADS, 4)}, r"given a tensor of shape \(2, 2, 4\)"),
        ("mesa", {"ridge": torch.ones(5)}, r"ridge must be .* \(5,\)"),
        ("titans", {"norm": (torch.ones(D), torch.zeros(3))}, r"bias of norm must be .* given \(3,\)"),
        (
            "delta",
            {"state": FastWeightState("delta", torch.zeros(3, HEADS, D, D))},
            r"weights must be .* \(3, 2, 4, 4\)",
        ),
    ],
)
def test_a_bad_shape_is_named(rule, given, message):
    q, k, v = tokens(3)
    with pytest.raises(ShapeError, match=message):
        fast_weights(rule, q, k, v, **given)


def test_bad_tokens_are_named():
    q, k, v = tokens(3)
    for bad in ((q[0], k[0], v[0]), (q, k[:, :, :2], v), (q, k, v[:, :1]), (q[:, :, :0], k[:, :, :0], v[:, :, :0])):
        with pytest.raises(ShapeError, match=r"q and k must be"):
            fast_weights("delta", *bad)
    with pytest.raises(ConfigError, match=r"k are torch\.int64"):
        fast_weights("delta", q, k.long(), v)
    with pytest.raises(ShapeError, match="d_v and d_k must be equal; given 5 and 4"):
        fast_weights("ttt-linear", *tokens(3, d_v=5))
    with pytest.raises(ConfigError, match="rule is 'mesa'"):
        inner_gradient("mesa", normal(D, D), normal(D), normal(D))
    with pytest.raises(ConfigError, match="norm is given, but delta"):
        inner_loss("delta", normal(D, D), normal(D), normal(D), norm=(normal(D), normal(D)))


def test_keys_and_values_may_differ_in_width():
    q, k, v = tokens(CHUNK + 3, d_v=5)
    for rule in RULES:
        if rule == "ttt-linear":
            continue
        recurrent, by_chunks = (fast_weights(rule, q, k, v, rate=0.3, form=form, chunk=CHUNK) for form in FORMS)
        assert by_chunks.output.shape == v.shape
        assert apart(by_chunks.output, recurrent.output) < 1e-10
