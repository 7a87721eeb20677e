from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from dualform.errors import ConfigError, ShapeError
from dualform.ops.dual_form import linear_attention
from dualform.ops.momentum import momentum_naive
from dualform.ops.momentum_dual import DualForm, MomentumKind, momentum_linear_attention

CHUNK = 8
DOUBLE = torch.float64
ETAS = torch.tensor([0.0, 0.3, 0.95], dtype=DOUBLE)
"""One a head."""

EVERY_FORM = pytest.mark.parametrize("form", get_args(DualForm))
EVERY_KIND = pytest.mark.parametrize("kind", get_args(MomentumKind))
WITH_MOMENTUM = pytest.mark.parametrize("kind", ["heavy-ball", "nesterov"])


def attended(q, k, v, eta, kind="heavy-ball", form="chunked") -> Tensor:
    return momentum_linear_attention(q, k, v, eta, kind, form, chunk=CHUNK)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def tokens(n: int, batch: int = 2, heads: int = 3, d_k: int = 4, d_v: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Queries and keys of length about 1, so that scores are of order 1, and values."""
    q, k = (normal(batch, heads, n, d_k, seed=seed) / d_k**0.5 for seed in (1, 2))
    return q, k, normal(batch, heads, n, d_v, seed=3)


def assert_close(got: Tensor, expected: Tensor, tolerance: float = 1e-12) -> None:
    # Outputs are sums over all tokens and grow with their number: rounding is relative to the largest.
    scale = float(expected.abs().max()) + 1.0
    torch.testing.assert_close(got / scale, expected / scale, rtol=0, atol=tolerance)


def inner_loss(M: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return -torch.dot(v, M @ k)


def trained(q: Tensor, k: Tensor, v: Tensor, eta: float, nesterov: bool) -> Tensor:
    """What torch's own optimiser makes of the fast weights of one head, read after each step."""
    M = torch.zeros(v.shape[-1], k.shape[-1], dtype=DOUBLE, requires_grad=True)
    optimiser = torch.optim.SGD([M], lr=1.0, momentum=eta, nesterov=nesterov)
    outputs = []
    for query, key, value in zip(q, k, v, strict=True):
        optimiser.zero_grad()
        inner_loss(M, key, value).backward()
        optimiser.step()
        outputs.append((M @ query).detach())
    return torch.stack(outputs)


def nesterovs_own(q: Tensor, k: Tensor, v: Tensor, eta: float) -> tuple[Tensor, Tensor]:
    """Nesterov's method with the gradient taken ahead: outputs of its weights, and of the weights ahead."""
    M = torch.zeros(v.shape[-1], k.shape[-1], dtype=DOUBLE)
    S = torch.zeros_like(M)
    outputs, ahead = [], []
    for query, key, value in zip(q, k, v, strict=True):
        place = (M + eta * S).requires_grad_()
        (gradient,) = torch.autograd.grad(inner_loss(place, key, value), place)
        S = eta * S - gradient
        M = M + S
        outputs.append(M @ query)
        ahead.append((M + eta * S) @ query)
    return torch.stack(outputs), torch.stack(ahead)


# The theorem.


@EVERY_FORM
@WITH_MOMENTUM
@pytest.mark.parametrize("eta", [0.3, 0.9])
def test_gradient_descent_with_momentum_is_linear_attention_under_momentum(form, kind, eta):
    q, k, v = tokens(3 * CHUNK + 2, batch=1, heads=1)
    descended = trained(q[0, 0], k[0, 0], v[0, 0], eta, nesterov=kind == "nesterov")
    assert_close(attended(q, k, v, eta, kind, form)[0, 0], descended)
    # Each with its own momentum, and none without.
    others = {"none", "heavy-ball", "nesterov"} - {kind}
    assert all((attended(q, k, v, eta, other, form)[0, 0] - descended).norm() > 0.1 for other in others)


@EVERY_FORM
def test_gradient_descent_without_momentum_is_linear_attention(form):
    q, k, v = tokens(2 * CHUNK + 1, batch=1, heads=1)
    output = attended(q, k, v, 0.9, "none", form)[0, 0]
    assert_close(output, trained(q[0, 0], k[0, 0], v[0, 0], 0.0, nesterov=False))
    for t in range(2 * CHUNK + 1):
        assert_close(output[t], linear_attention(v[0, 0, : t + 1], k[0, 0, : t + 1], q[0, 0, t]))


def test_nesterovs_own_weights_are_the_heavy_balls_and_his_weights_ahead_are_nesterov():
    q, k, v = tokens(2 * CHUNK, batch=1, heads=1)
    own, ahead = nesterovs_own(q[0, 0], k[0, 0], v[0, 0], 0.8)
    assert_close(own, attended(q, k, v, 0.8, "heavy-ball")[0, 0])
    assert_close(ahead, attended(q, k, v, 0.8, "nesterov")[0, 0])


def test_a_loss_whose_gradient_depends_on_the_weights_has_no_such_dual():
    q, k, v = (x[0, 0] for x in tokens(2 * CHUNK, batch=1, heads=1))
    M = torch.zeros(5, 4, dtype=DOUBLE, requires_grad=True)
    optimiser = torch.optim.SGD([M], lr=0.5, momentum=0.5)
    for key, value in zip(k, v, strict=True):
        optimiser.zero_grad()
        (0.5 * (M @ key - value).square().sum()).backward()
        optimiser.step()
    dual = 0.5 * attended(q[None, None], k[None, None], v[None, None], 0.5)[0, 0, -1]
    assert (dual - (M @ q[-1]).detach()).norm() > 0.1 * dual.norm()


def test_the_decaying_sum_of_values_is_not_the_dual_of_the_heavy_ball():
    q, k, v = tokens(3 * CHUNK, batch=1, heads=1)
    plain, eta = attended(q, k, v, 0.0), 0.7
    momentum = momentum_naive(v, eta).term
    descended = trained(q[0, 0], k[0, 0], v[0, 0], eta, nesterov=False) - plain[0, 0]
    for scale in (1.0, float((descended * momentum[0, 0]).sum() / momentum.square().sum())):
        # Not even the best multiple comes near.
        assert (scale * momentum[0, 0] - descended).norm() > 0.9 * descended.norm()
    # It does not read q, as what momentum adds to descent does.
    added = [attended(queries, k, v, eta) - attended(queries, k, v, 0.0) for queries in (q, -q)]
    assert_close(added[1], -added[0])


def test_nor_is_it_where_all_scores_are_one_for_it_forgets_what_the_heavy_ball_has_spent():
    n, eta = 2 * CHUNK, 0.7
    ones = torch.ones(1, 1, n, 1, dtype=DOUBLE)
    # A single value at the start shows the weights by distance.
    v = torch.zeros(1, 1, n, 1, dtype=DOUBLE)
    v[0, 0, 0] = 1.0
    added = (attended(ones, ones, v, eta) - attended(ones, ones, v, 0.0))[0, 0, :, 0]
    forgotten = momentum_naive(v, eta).term[0, 0, :, 0]
    assert (added.diff() > 0).all()
    assert (forgotten[1:].diff() < 0).all()
    # One step after a token, and only then, they are the same.
    assert_close(added[:2], forgotten[:2])


@EVERY_FORM
@WITH_MOMENTUM
def test_weights_by_distance_are_the_closed_forms(form, kind):
    n, eta = 3 * CHUNK, 0.7
    ones = torch.ones(1, 1, n, 1, dtype=DOUBLE)
    v = torch.zeros(1, 1, n, 1, dtype=DOUBLE)
    v[0, 0, 0] = 1.0
    powers = torch.arange(n, dtype=DOUBLE) + (2 if kind == "nesterov" else 1)
    assert_close(attended(ones, ones, v, eta, kind, form)[0, 0, :, 0], (1 - eta**powers) / (1 - eta))


# The forms.


@EVERY_KIND
@pytest.mark.parametrize("n", [1, 2, CHUNK - 1, CHUNK, CHUNK + 1, 1000])
def test_all_forms_agree_at_every_length(kind, n):
    q, k, v = tokens(n)
    naive = attended(q, k, v, ETAS, kind, "naive")
    assert naive.shape == v.shape
    outputs = [attended(q, k, v, ETAS, kind, form) for form in ("chunked", "recurrent")]
    outputs += [momentum_linear_attention(q, k, v, ETAS, kind)]
    for output in outputs:
        assert_close(output, naive)
    for form in get_args(DualForm):
        single = attended(q.float(), k.float(), v.float(), ETAS.float(), kind, form)
        assert single.dtype == torch.float32
        assert_close(single, naive.float(), 1e-5)


@EVERY_FORM
def test_eta_zero_is_plain_causal_linear_attention_bit_for_bit(form):
    q, k, v = (x.float() for x in tokens(3 * CHUNK + 1))
    plain = attended(q, k, v, 0.9, "none", form)
    for eta in (0, 0.0, torch.tensor(0.0), torch.zeros(3)):
        for kind in ("heavy-ball", "nesterov"):
            assert torch.equal(attended(q, k, v, eta, kind, form), plain)
    assert not torch.equal(attended(q, k, v, 1e-3, "heavy-ball", form), plain)
    assert_close(plain, (q @ k.mT).tril() @ v, 1e-6)


@EVERY_FORM
@WITH_MOMENTUM
def test_a_token_changes_nothing_before_it(form, kind):
    q, k, v = (x.float() for x in tokens(3 * CHUNK))
    before = attended(q, k, v, 0.9, kind, form)
    for t in (0, CHUNK - 1, CHUNK, 2 * CHUNK + 3):
        step = torch.zeros_like(q[:, :, :, :1])
        step[:, :, t] = 1.0
        after = attended(q + step, k + step, v + step, 0.9, kind, form)
        assert torch.equal(after[:, :, :t], before[:, :, :t])
        assert (after[:, :, t:] != before[:, :, t:]).any(-1).all()


@WITH_MOMENTUM
@pytest.mark.parametrize("eta", [1e-45, 1e-30, 0.999, 1 - 1e-6, 1 - 1e-9])
def test_long_sequences_under_extreme_momentum_stay_finite_and_exact(eta, kind):
    q, k, v = tokens(5000, batch=1, heads=1, d_k=2, d_v=1)
    rate = torch.tensor(eta, requires_grad=True)
    output = momentum_linear_attention(q.float(), k.float(), v.float(), rate, kind)
    (slope,) = torch.autograd.grad(output.sum(), rate)
    assert output.isfinite().all()
    assert slope.isfinite()
    # The rate that float32 keeps is another number than the one given, so that one is what they must agree on.
    exact = momentum_linear_attention(q, k, v, rate.detach().double().clamp(max=1 - 1e-16), kind, "recurrent")
    assert_close(output.double(), exact, 1e-4)


@EVERY_FORM
@WITH_MOMENTUM
def test_gradients_with_respect_to_queries_keys_values_and_rates(form, kind):
    inputs = [x.requires_grad_() for x in tokens(CHUNK + 3, batch=1, heads=2, d_k=2, d_v=1)]
    for eta in (torch.tensor([0.2, 0.9], dtype=DOUBLE), torch.tensor(0.5, dtype=DOUBLE)):
        eta.requires_grad_()
        assert torch.autograd.gradcheck(lambda q, k, v, eta: attended(q, k, v, eta, kind, form), (*inputs, eta))


@EVERY_FORM
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_summed_in_single(form, dtype):
    q, k, v = (x.to(dtype) for x in tokens(3 * CHUNK))
    output = attended(q, k, v, 0.9, "heavy-ball", form)
    assert output.dtype == dtype
    assert torch.equal(output, attended(q.float(), k.float(), v.float(), 0.9, "heavy-ball", form).to(dtype))


@EVERY_FORM
def test_autocast_does_not_round_the_sums_and_arguments_are_left_unchanged(form):
    q, k, v = (x.float() for x in tokens(3 * CHUNK))
    copies = [x.clone() for x in (q, k, v)]
    expected = attended(q, k, v, 0.9, "heavy-ball", form)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(attended(q, k, v, 0.9, "heavy-ball", form), expected)
    assert all(torch.equal(x, copy) for x, copy in zip((q, k, v), copies, strict=True))


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
            if isinstance(tensor, Tensor):
                self.largest = max(self.largest, tensor.untyped_storage().nbytes() // tensor.element_size())
        return out


def watched(n: int, form: DualForm) -> Watch:
    q, k, v = (x.float().requires_grad_() for x in tokens(n, batch=1, heads=2))
    eta = torch.tensor([0.5, 0.9], requires_grad=True)
    with Watch() as watch:
        momentum_linear_attention(q, k, v, eta, form=form).sum().backward()
    return watch


def test_chunks_need_memory_linear_in_the_length_and_no_loop_over_it():
    long, short = watched(4096, "chunked"), watched(1024, "chunked")
    # Scores of 64 x 64 a chunk and head are the largest there is.
    assert long.largest <= 4096 * 64 * 2 < 4096 * 4096 / 30
    assert long.largest <= 4.1 * short.largest
    # What is carried between chunks may be nested once more.
    assert long.n_operations <= 1.5 * short.n_operations
    assert watched(1024, "naive").largest >= 1024 * 1024
    assert watched(256, "recurrent").n_operations > 3 * short.n_operations


def test_errors_name_value_and_remedy():
    q, k, v = tokens(4)
    with pytest.raises(ConfigError, match=r"kind is 'adam'; expected one of 'none', 'heavy-ball', 'nesterov'"):
        attended(q, k, v, 0.5, kind="adam")
    with pytest.raises(ConfigError, match=r"form is 'fast'; expected one of 'naive', 'chunked', 'recurrent'"):
        attended(q, k, v, 0.5, form="fast")
    with pytest.raises(ConfigError, match=r"eta is 1.0; expected a number in \[0, 1\)"):
        attended(q, k, v, 1.0)
    with pytest.raises(ConfigError, match=r"eta is -0.5; expected"):
        attended(q, k, v, torch.tensor(-0.5), kind="none")
    with pytest.raises(ConfigError, match=r"chunk is 1; expected 2 tokens or more"):
        momentum_linear_attention(q, k, v, 0.5, chunk=1)
    with pytest.raises(ShapeError, match=r"given \(2, 3, 3, 4\), \(2, 3, 4, 4\) and \(2, 3, 4, 5\)"):
        attended(q[:, :, :3], k, v, 0.5)
    with pytest.raises(ShapeError, match=r"none of them empty"):
        attended(q[:, :, :0], k[:, :, :0], v[:, :, :0], 0.5)
    with pytest.raises(ConfigError, match=r"v are torch.int64; expected a floating dtype"):
        attended(q, k, v.long(), 0.5)
