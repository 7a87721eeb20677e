"""Linear self-attention that descends: each layer is the explicit step, and is not where an assumption is broken."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.constructions import (
    LinearSelfAttention,
    apply_layer,
    descend_by_layers,
    gd_layer,
    gd_plus_plus_layer,
    ridge_by_layers,
    ridge_layer,
)

N, D_X, D_Y = 7, 4, 2
ETA, GAMMA, STRENGTH = 0.6, 0.03, 0.8


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X, Y, QUERY, W0 = normal(N, D_X), normal(N, D_Y, seed=1), normal(3, D_X, seed=2), normal(D_Y, D_X, seed=3)


def assert_exact(got: Tensor, expected: Tensor) -> None:
    # Sums of a few dozen products of order 1, in float64.
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)


def descended(W: Tensor, x: Tensor, y: Tensor, eta: float, steps: int, strength: float = 0.0) -> Tensor:
    """W after steps on (1/2N) (sum |W x - y|^2 + strength |W|^2), by autograd."""
    for _ in range(steps):
        W = W.detach().requires_grad_()
        loss = ((x @ W.T - y).square().sum() + strength * W.square().sum()) / (2 * len(x))
        (gradient,) = torch.autograd.grad(loss, W)
        W = (W - eta * gradient).detach()
    return W


def softmax_layer(weights: LinearSelfAttention, tokens: Tensor, keys_from: int) -> Tensor:
    attended = tokens[:keys_from]
    k, v, q = (x @ W[0].T for x, W in ((attended, weights.W_K), (attended, weights.W_V), (tokens, weights.W_Q)))
    return tokens + keys_from * (q @ k.T).softmax(-1) @ v @ weights.P[0].T


def test_layer_is_one_step_of_gradient_descent_on_the_examples_in_context() -> None:
    predicted = descend_by_layers([gd_layer(W0, ETA, N)], X, Y, QUERY, W0)
    assert_exact(predicted, QUERY @ descended(W0, X, Y, ETA, 1).T)
    assert (predicted - QUERY @ W0.T).norm() > 0.1, "nothing was learned, so the test shows nothing"


def test_tokens_keep_their_x_and_targets_lose_what_the_step_explains() -> None:
    tokens = apply_layer(gd_layer(W0, ETA, N), torch.cat([X, Y], -1), N)
    delta_W = descended(W0, X, Y, ETA, 1) - W0
    assert_exact(tokens, torch.cat([X, Y - X @ delta_W.T], -1))


@pytest.mark.parametrize("start", [None, W0], ids=["from zero", "from W_0"])
def test_the_same_layer_again_is_the_next_step(start: Tensor | None) -> None:
    begun = torch.zeros_like(W0) if start is None else start
    for steps in (2, 5):
        predicted = descend_by_layers([gd_layer(begun, ETA, N)] * steps, X, Y, QUERY, start)
        assert_exact(predicted, QUERY @ descended(begun, X, Y, ETA, steps).T)


def test_a_layer_made_for_another_number_of_examples_steps_at_another_rate() -> None:
    predicted = descend_by_layers([gd_layer(W0, ETA, 2 * N)], X, Y, QUERY, W0)
    assert_exact(predicted, QUERY @ descended(W0, X, Y, ETA / 2, 1).T)


def test_weights_other_than_the_layers_own_are_no_start() -> None:
    predicted = descend_by_layers([gd_layer(W0, ETA, N)], X, Y, QUERY)
    for begun in (W0, 0 * W0):
        assert (predicted - QUERY @ descended(begun, X, Y, ETA, 1).T).norm() > 0.1


def test_many_layers_are_least_squares() -> None:
    predicted = descend_by_layers([gd_layer(0 * W0, 0.5, N)] * 3000, X, Y, QUERY)
    torch.testing.assert_close(predicted, QUERY @ torch.linalg.lstsq(X, Y).solution)


def test_layers_of_different_rates_are_steps_of_different_rates() -> None:
    predicted = descend_by_layers([gd_layer(W0, 0.3, N), gd_layer(W0, 0.9, N)], X, Y, QUERY, W0)
    assert_exact(predicted, QUERY @ descended(descended(W0, X, Y, 0.3, 1), X, Y, 0.9, 1).T)


def gd_plus_plus(x: Tensor, y: Tensor, query: Tensor, steps: int) -> Tensor:
    """Predictions from W = 0: each step descends on residuals and inputs as they are, then transforms the inputs."""
    predicted = torch.zeros(len(query), y.shape[1], dtype=x.dtype)
    for _ in range(steps):
        delta_W = descended(torch.zeros(y.shape[1], x.shape[1], dtype=x.dtype), x, y, ETA, 1)
        predicted, y = predicted + query @ delta_W.T, y - x @ delta_W.T
        transform = torch.eye(x.shape[1]).to(x) - GAMMA * x.T @ x
        x, query = x @ transform, query @ transform
    return predicted


def test_layer_of_gd_plus_plus_is_a_step_and_a_transform_of_its_inputs() -> None:
    tokens = apply_layer(gd_plus_plus_layer(W0, ETA, GAMMA, N), torch.cat([X, Y], -1), N)
    delta_W = descended(W0, X, Y, ETA, 1) - W0
    assert_exact(tokens, torch.cat([X - GAMMA * X @ X.T @ X, Y - X @ delta_W.T], -1))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_layers_of_gd_plus_plus_are_its_steps(steps: int) -> None:
    layers = [gd_plus_plus_layer(0 * W0, ETA, GAMMA, N)] * steps
    predicted = descend_by_layers(layers, X, Y, QUERY)
    assert_exact(predicted, gd_plus_plus(X, Y, QUERY, steps))
    plain = descend_by_layers([gd_layer(0 * W0, ETA, N)] * steps, X, Y, QUERY)
    # The first step's prediction is made before inputs are transformed.
    assert ((predicted - plain).norm() > 0.01) == (steps > 1)
    assert_exact(descend_by_layers([gd_plus_plus_layer(0 * W0, ETA, 0.0, N)] * steps, X, Y, QUERY), plain)


def test_gd_plus_plus_in_depth_from_other_weights_than_zero_is_not_gd_plus_plus_on_what_they_leave() -> None:
    layers = [gd_plus_plus_layer(W0, ETA, GAMMA, N)] * 2
    left = gd_plus_plus(X, Y - X @ W0.T, QUERY, 2)
    assert (descend_by_layers(layers, X, Y, QUERY, W0) - (QUERY @ W0.T + left)).norm() > 0.01
    assert_exact(descend_by_layers(layers[:1], X, Y, QUERY, W0), QUERY @ W0.T + gd_plus_plus(X, Y - X @ W0.T, QUERY, 1))


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_layers_of_ridge_are_descent_with_decay(steps: int) -> None:
    predicted = ridge_by_layers([ridge_layer(D_X, D_Y, ETA, STRENGTH, N)] * steps, X, Y, QUERY)
    W = descended(0 * W0, X, Y, ETA, steps, STRENGTH)
    assert_exact(predicted, QUERY @ W.T)
    without = ridge_by_layers([ridge_layer(D_X, D_Y, ETA, 0.0, N)] * steps, X, Y, QUERY)
    assert_exact(without, descend_by_layers([gd_layer(0 * W0, ETA, N)] * steps, X, Y, QUERY))
    # From zero the first step has nothing to shrink.
    assert ((predicted - without).norm() > 0.01) == (steps > 1)


def ridge(x: Tensor, y: Tensor, strength: float) -> Tensor:
    return torch.linalg.solve(x.T @ x + strength * torch.eye(x.shape[1]).to(x), x.T @ y).T


def test_layers_of_ridge_converge_to_the_closed_form_at_the_rate_that_theory_gives() -> None:
    eigenvalues = torch.linalg.eigvalsh(X.T @ X) + STRENGTH
    eta = float(2 * N / (eigenvalues[0] + eigenvalues[-1]))
    factor = float((eigenvalues[-1] - eigenvalues[0]) / (eigenvalues[-1] + eigenvalues[0]))
    closed = QUERY @ ridge(X, Y, STRENGTH).T
    layer = ridge_layer(D_X, D_Y, eta, STRENGTH, N)
    errors = [float((ridge_by_layers([layer] * steps, X, Y, QUERY) - closed).norm()) for steps in (20, 40, 400)]
    assert errors[1] / errors[0] == pytest.approx(factor**20, rel=0.1)
    assert errors[2] < 1e-12
    assert (closed - QUERY @ ridge(X, Y, 2 * STRENGTH).T).norm() > 0.05, "another strength would not do"


def test_layers_of_ridge_beyond_the_largest_rate_diverge() -> None:
    largest = 2 * N / (float(torch.linalg.eigvalsh(X.T @ X)[-1]) + STRENGTH)
    closed = QUERY @ ridge(X, Y, STRENGTH).T
    for rate, diverges in ((0.98 * largest, False), (1.02 * largest, True)):
        layers = [ridge_layer(D_X, D_Y, rate, STRENGTH, N)] * 800
        assert ((ridge_by_layers(layers, X, Y, QUERY) - closed).norm() > 1) == diverges


def test_without_its_self_term_the_layer_descends_on_no_ridge_loss() -> None:
    layer = replace(ridge_layer(D_X, D_Y, ETA, STRENGTH, N), skip=None)
    predicted = ridge_by_layers([layer] * 800, X, Y, QUERY)
    assert (predicted - QUERY @ ridge(X, Y, STRENGTH).T).norm() > 0.05
    torch.testing.assert_close(predicted, QUERY @ ridge(X, Y, 0.0).T, rtol=1e-4, atol=1e-4)


def test_ridge_is_plain_descent_over_as_many_more_examples_as_dimensions() -> None:
    units = torch.eye(D_X).double()
    x, y = torch.cat([X, STRENGTH**0.5 * units]), torch.cat([Y, torch.zeros(D_X, D_Y).double()])
    # The same mean over N, so that rates are the same.
    plain = descend_by_layers([gd_layer(0 * W0, ETA, N)] * 4, x, y, QUERY)
    assert_exact(plain, ridge_by_layers([ridge_layer(D_X, D_Y, ETA, STRENGTH, N)] * 4, X, Y, QUERY))


@pytest.mark.parametrize("broken", ["softmax", "rate", "labels", "query as key"])
def test_layer_is_no_such_step_where_an_assumption_is_broken(broken: str) -> None:
    layer, y, keys_from = gd_layer(W0, ETA, N), Y, N
    if broken == "rate":
        layer = gd_layer(W0, 1.2 * ETA, N)
    if broken == "labels":
        y = Y[torch.randperm(N, generator=torch.Generator().manual_seed(0))]
    if broken == "query as key":
        keys_from = N + 1
    tokens = torch.cat([torch.cat([X, y], -1), torch.cat([QUERY[:1], -QUERY[:1] @ W0.T], -1)])
    apply = softmax_layer if broken == "softmax" else apply_layer
    predicted = -apply(layer, tokens, keys_from)[-1, D_X:]
    step = QUERY[0] @ (descended(W0, X, Y, ETA, 1) - W0).T
    assert (predicted - QUERY[0] @ W0.T - step).norm() > 0.1 * step.norm()


def test_examples_come_in_any_order_and_queries_do_not_see_one_another() -> None:
    layers = [gd_plus_plus_layer(0 * W0, ETA, GAMMA, N)] * 3
    order = torch.randperm(N, generator=torch.Generator().manual_seed(0))
    predicted = descend_by_layers(layers, X, Y, QUERY)
    assert_exact(descend_by_layers(layers, X[order], Y[order], QUERY), predicted)
    assert_exact(descend_by_layers(layers, X, Y, QUERY[1:2]), predicted[1:2])


def test_leading_axes_are_kept_and_dtype_followed() -> None:
    x, y, query = normal(5, 2, N, D_X), normal(5, 2, N, D_Y, seed=1), normal(5, 2, 1, D_X, seed=2)
    together = descend_by_layers([gd_layer(W0, ETA, N)] * 2, x, y, query, W0)
    assert together.shape == (5, 2, 1, D_Y)
    assert_exact(together[3, 1], descend_by_layers([gd_layer(W0, ETA, N)] * 2, x[3, 1], y[3, 1], query[3, 1], W0))
    layers = [ridge_layer(D_X, D_Y, ETA, STRENGTH, N)] * 2
    assert_exact(ridge_by_layers(layers, x, y, query)[3, 1], ridge_by_layers(layers, x[3, 1], y[3, 1], query[3, 1]))
    assert gd_plus_plus_layer(W0.float(), ETA, GAMMA, N).P.dtype == torch.float32


def test_errors_name_what_was_given() -> None:
    with pytest.raises(ConfigError, match="n_context is 0"):
        gd_layer(W0, ETA, 0)
    with pytest.raises(ConfigError, match="strength of ridge is -1"):
        ridge_layer(D_X, D_Y, ETA, -1, N)
    with pytest.raises(ShapeError, match=r"\(\.\.\., token, 6\) with 7 or more .* given \(7, 5\)"):
        apply_layer(gd_layer(W0, ETA, N), torch.zeros(7, 5), N)
    with pytest.raises(ShapeError, match=r"with 7 or more .* given \(6, 6\)"):
        apply_layer(gd_layer(W0, ETA, N), torch.zeros(6, 6), N)
    for call in (descend_by_layers, ridge_by_layers):
        with pytest.raises(ShapeError, match=r"given \(7, 4\), \(6, 2\) and \(3, 4\)"):
            call([], X, Y[1:], QUERY)
