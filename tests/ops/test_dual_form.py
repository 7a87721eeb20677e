import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.dual_form import (
    as_linear_attention,
    gradient_descent_update,
    linear_attention,
    outer_product_update,
    relaxation,
)


def assert_equal_up_to_rounding(got: Tensor, expected: Tensor) -> None:
    # Sums of a few dozen products of order 1, in float64.
    torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def softmax_attention(values: Tensor, keys: Tensor, q: Tensor) -> Tensor:
    return values.mT @ (keys @ q).softmax(-1)


def delta_rule(values: Tensor, keys: Tensor) -> Tensor:
    S = torch.zeros(values.shape[-1], keys.shape[-1], dtype=values.dtype)
    for v, k in zip(values, keys, strict=True):
        S = S - 0.1 * torch.outer(S @ k - v, k)
    return S


@settings(max_examples=25, deadline=None)
@given(
    n_demo_tokens=st.integers(0, 12),
    n_query_tokens=st.integers(1, 6),
    d_v=st.integers(1, 5),
    d_k=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_dual_form_is_linear_attention_over_demonstrations_and_query(n_demo_tokens, n_query_tokens, d_v, d_k, seed):
    demo_values, demo_keys = normal(n_demo_tokens, d_v, seed=seed), normal(n_demo_tokens, d_k, seed=seed + 1)
    values, keys = normal(n_query_tokens, d_v, seed=seed + 2), normal(n_query_tokens, d_k, seed=seed + 3)
    q = normal(d_k, seed=seed + 4)
    W_zsl, delta_W_icl = outer_product_update(values, keys), outer_product_update(demo_values, demo_keys)
    attended = linear_attention(torch.cat([demo_values, values]), torch.cat([demo_keys, keys]), q)
    assert_equal_up_to_rounding((W_zsl + delta_W_icl) @ q, attended)


def test_softmax_attention_has_no_such_dual_form():
    values, keys, q = normal(9, 4), normal(9, 5, seed=1), normal(5, seed=2)
    together = softmax_attention(values, keys, q)
    in_parts = softmax_attention(values[:6], keys[:6], q) + softmax_attention(values[6:], keys[6:], q)
    assert (together - in_parts).norm() > 0.1 * together.norm()
    # Nor is it linear in q, as (W_ZSL + dW_ICL) q is.
    assert (softmax_attention(values, keys, 2 * q) - 2 * together).norm() > 0.1 * together.norm()


def test_demonstration_order_does_not_change_the_update():
    values, keys = normal(20, 4), normal(20, 5, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert_equal_up_to_rounding(outer_product_update(values[order], keys[order]), outer_product_update(values, keys))


def test_demonstration_order_changes_the_update_of_the_delta_rule():
    values, keys = normal(20, 4), normal(20, 5, seed=1)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    assert (delta_rule(values[order], keys[order]) - delta_rule(values, keys)).norm() > 0.01


def train(W0: Tensor, inputs: Tensor, targets: Tensor, learning_rate: float, decay: float = 0.0):
    """One pass of SGD by autograd; returns the weights and the error signals e_i."""
    W = W0.clone()
    errors = []
    for x, target in zip(inputs, targets, strict=True):
        y = (W @ x).requires_grad_()
        (gradient,) = torch.autograd.grad(((y - target) ** 4).sum(), y)
        errors.append(-learning_rate * gradient)
        W = (1 - decay) * W + torch.outer(errors[-1], x)
    return W, torch.stack(errors)


def test_layer_trained_by_gradient_descent_is_w0_x_plus_linear_attention():
    W0, inputs, targets, x = normal(3, 5), normal(8, 5, seed=1), normal(8, 3, seed=2), normal(5, seed=3)
    W, errors = train(W0, inputs, targets, learning_rate=0.01)
    assert (W - W0).norm() > 0.01, "nothing was learned, so the test shows nothing"
    assert_equal_up_to_rounding(W @ x, W0 @ x + linear_attention(errors, inputs, x))


def test_layer_trained_with_weight_decay_is_not():
    W0, inputs, targets, x = normal(3, 5), normal(8, 5, seed=1), normal(8, 3, seed=2), normal(5, seed=3)
    W, errors = train(W0, inputs, targets, learning_rate=0.01, decay=0.05)
    assert (W @ x - W0 @ x - linear_attention(errors, inputs, x)).norm() > 0.01


def readout_loss(targets: Tensor, chosen: list[list[int]] | None = None):
    """Of a nonlinear network on top of the layer, summed over all samples or those of each step."""
    V = normal(2, targets.shape[1], seed=9)

    def loss(outputs: Tensor, step: int) -> Tensor:
        each = ((outputs.tanh() @ V.T).exp() - targets.sum(1, keepdim=True)).square().sum(1)
        return (each if chosen is None else each[chosen[step]]).mean()

    return loss


def trained_by_torch(
    W0: Tensor, inputs: Tensor, loss, rate: float, steps: int, momentum: float = 0.0, weight_decay: float = 0.0
) -> Tensor:
    """The slow, obvious way: gradients by the weights themselves."""
    W = W0.clone().requires_grad_()
    optimiser = torch.optim.SGD([W], lr=rate, momentum=momentum, weight_decay=weight_decay)
    for step in range(steps):
        optimiser.zero_grad()
        loss(inputs @ W.T, step).backward()
        optimiser.step()
    return W.detach()


@settings(max_examples=15, deadline=None)
@given(
    n=st.integers(1, 9),
    steps=st.integers(0, 6),
    d_in=st.integers(1, 6),
    d_out=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_any_training_by_gradient_descent_is_attention_to_its_samples(n, steps, d_in, d_out, seed):
    W0, inputs, targets = (
        normal(d_out, d_in, seed=seed),
        normal(n, d_in, seed=seed + 1),
        normal(n, d_out, seed=seed + 2),
    )
    x = normal(5, d_in, seed=seed + 3)
    loss = readout_loss(targets)
    W = trained_by_torch(W0, inputs, loss, 0.05, steps)
    update = gradient_descent_update(W0, inputs, loss, 0.05, steps)
    assert_equal_up_to_rounding(W0 + outer_product_update(update.E, update.X), W)
    assert_equal_up_to_rounding(as_linear_attention(W0, update.E, update.X, x), x @ W.T)
    assert update.X.equal(inputs)


def test_many_small_steps_in_half_precision_are_summed_in_single():
    W0, inputs, targets = (x.bfloat16() for x in (normal(3, 5), normal(6, 5, seed=1), normal(6, 3, seed=2)))
    rate, steps = 1e-3, 512
    # Every step has the same gradient: the sum is known, and in half precision it would stand still on the way.
    update = gradient_descent_update(W0, inputs, lambda outputs, _: (outputs * targets).sum(), rate, steps)
    assert update.E.dtype == update.X.dtype == torch.float32
    torch.testing.assert_close(update.E, -rate * steps * targets.float(), rtol=1e-5, atol=1e-5)
    stopped = torch.zeros_like(targets)
    for _ in range(steps):
        stopped = stopped - rate * targets
    assert (stopped.float() - update.E).norm() > 0.05 * update.E.norm()
    got = as_linear_attention(W0, update.E, update.X, inputs)
    torch.testing.assert_close(got, inputs.float() @ (W0.float() + outer_product_update(*update)).T)


def test_a_loss_gets_outputs_in_the_layers_own_dtype():
    W0, inputs = normal(3, 5).bfloat16(), normal(6, 5, seed=1).bfloat16()
    seen = []

    def loss(outputs: Tensor, step: int) -> Tensor:
        seen.append(outputs.dtype)
        return outputs.sum()

    gradient_descent_update(W0, inputs, loss, 0.1, 2)
    assert seen == [torch.bfloat16] * 2


def test_samples_left_out_of_a_step_teach_nothing_in_it():
    W0, inputs, targets = normal(3, 5), normal(6, 5, seed=1), normal(6, 3, seed=2)
    loss = readout_loss(targets, [[0, 1], [2, 3], [1, 2]])
    update = gradient_descent_update(W0, inputs, loss, 0.1, 3)
    assert_equal_up_to_rounding(
        W0 + outer_product_update(update.E, update.X), trained_by_torch(W0, inputs, loss, 0.1, 3)
    )
    assert update.E[4:].eq(0).all()
    assert (update.E[:4].norm(dim=1) > 1e-3).all()


def test_one_step_on_half_the_squared_error_has_the_residuals_for_error_signals():
    W0, inputs, targets = normal(3, 5), normal(6, 5, seed=1), normal(6, 3, seed=2)
    update = gradient_descent_update(W0, inputs, lambda outputs, _: (outputs - targets).square().sum() / 2, 0.1)
    assert_equal_up_to_rounding(update.E, 0.1 * (targets - inputs @ W0.T))


@pytest.mark.parametrize("broken", ["decay", "momentum", "rate", "labels"])
def test_it_is_not_where_an_assumption_is_broken(broken):
    W0, inputs, targets = normal(3, 5), normal(6, 5, seed=1), normal(6, 3, seed=2)
    x = normal(5, seed=3)
    other = {"decay": {"weight_decay": 0.2}, "momentum": {"momentum": 0.5}}.get(broken, {})
    W = trained_by_torch(W0, inputs, readout_loss(targets), 0.13 if broken == "rate" else 0.1, 4, **other)
    told = targets.flip(0) if broken == "labels" else targets
    update = gradient_descent_update(W0, inputs, readout_loss(told), 0.1, 4)
    wrong = as_linear_attention(W0, update.E, update.X, x) - W @ x
    assert wrong.norm() > 0.05 * (W @ x - W0 @ x).norm()


def test_an_optimiser_that_scales_every_weight_leaves_the_span_of_its_inputs():
    W0, inputs, targets = normal(3, 5), normal(2, 5, seed=1), normal(2, 3, seed=2)
    outside = torch.eye(5).double() - torch.linalg.pinv(inputs) @ inputs
    loss = readout_loss(targets)
    W = W0.clone().requires_grad_()
    optimiser = torch.optim.Adam([W], lr=0.1)
    loss(inputs @ W.T, 0).backward()
    optimiser.step()
    by_adam = W.detach() - W0
    by_descent = trained_by_torch(W0, inputs, loss, 0.1, 3) - W0
    assert (by_adam @ outside).norm() > 0.1 * by_adam.norm()
    assert (by_descent @ outside).norm() < 1e-12


def test_zero_demonstrations_give_zero_update():
    assert outer_product_update(torch.zeros(2, 0, 3), torch.zeros(2, 0, 4)).equal(torch.zeros(2, 3, 4))
    assert linear_attention(torch.zeros(0, 3), torch.zeros(0, 4), torch.ones(4)).equal(torch.zeros(3))


def test_leading_axes_are_kept_and_broadcast():
    values, keys, q = normal(2, 3, 7, 4), normal(2, 3, 7, 5, seed=1), normal(3, 5, seed=2)
    got = linear_attention(values, keys, q)
    assert got.shape == (2, 3, 4)
    assert_equal_up_to_rounding(got[1, 2], linear_attention(values[1, 2], keys[1, 2], q[2]))


def heads(seed: int):
    """Values, keys and queries of two examples and three heads, nine tokens of which six are demonstrations."""
    return normal(2, 3, 9, 4, seed=seed), normal(2, 3, 9, 5, seed=seed + 1), normal(2, 3, 5, seed=seed + 2)


def test_relaxation_of_a_linear_head_is_exact_whatever_its_scale():
    values, keys, q = heads(0)
    W_zsl = outer_product_update(values[..., 6:, :], keys[..., 6:, :])
    delta_W_icl = outer_product_update(values[..., :6, :], keys[..., :6, :])
    error, cosine = relaxation(W_zsl, delta_W_icl, q, 0.37 * linear_attention(values, keys, q))
    torch.testing.assert_close(error, torch.zeros(2, 3, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(cosine, torch.ones(2, 3, dtype=torch.float64))


def test_relaxation_of_a_softmax_head_is_not_exact():
    values, keys, q = heads(0)
    weights = torch.einsum("ehpk,ehk->ehp", keys, q).softmax(-1)
    output = torch.einsum("ehpv,ehp->ehv", values, weights)
    error, cosine = relaxation(
        outer_product_update(values, keys), torch.zeros(2, 3, 4, 5, dtype=torch.float64), q, output
    )
    assert (error > 0.05).all()
    assert (cosine < 0.999).all()
    assert_equal_up_to_rounding(error, (1 - cosine.clamp(min=0) ** 2).sqrt())


def test_relaxation_error_is_one_where_the_linear_form_points_away():
    W, q = torch.eye(3)[None], torch.ones(1, 3)
    error, cosine = relaxation(W, torch.zeros(1, 3, 3), q, -torch.ones(1, 3))
    assert error.item() == 1
    assert cosine.item() == -1


def test_relaxation_is_nan_without_an_output():
    error, cosine = relaxation(torch.eye(3)[None], torch.zeros(1, 3, 3), torch.ones(1, 3), torch.zeros(1, 3))
    assert error.isnan().all()
    assert cosine.isnan().all()


def test_arguments_are_left_unchanged_and_dtype_followed():
    values, keys, q = (tensor.float() for tensor in heads(0))
    copies = [tensor.clone() for tensor in (values, keys, q)]
    assert linear_attention(values, keys, q).dtype == torch.float32
    W = outer_product_update(values, keys)
    assert W.dtype == torch.float32
    assert relaxation(W, W, q, values[..., 0, :]).cosine.dtype == torch.float32
    assert all(tensor.equal(copy) for tensor, copy in zip((values, keys, q), copies, strict=True))


def test_errors_name_the_shapes():
    with pytest.raises(ShapeError, match=r"same tokens; given \(3, 2\) and \(4, 2\)"):
        outer_product_update(torch.zeros(3, 2), torch.zeros(4, 2))
    with pytest.raises(ShapeError, match=r"keys \(3, 2\) and q \(5,\)"):
        linear_attention(torch.zeros(3, 2), torch.zeros(3, 2), torch.zeros(5))
    with pytest.raises(ShapeError, match=r"W0 must be .* given \(2, 3\) and \(4, 5\)"):
        gradient_descent_update(torch.zeros(2, 3), torch.zeros(4, 5), lambda outputs, step: outputs.sum(), 0.1)
    with pytest.raises(ShapeError, match=r"given \(2, 3\), \(4, 3\) and \(3,\)"):
        as_linear_attention(torch.zeros(2, 3), torch.zeros(4, 3), torch.zeros(4, 3), torch.zeros(3))
    with pytest.raises(ShapeError, match=r"given \(1, 3, 4\), \(1, 3, 4\), \(1, 5\) and \(1, 3\)"):
        relaxation(torch.zeros(1, 3, 4), torch.zeros(1, 3, 4), torch.zeros(1, 5), torch.zeros(1, 3))
