"""Attention without softmax and a linear layer trained by gradient descent, both as sums of outer products.

In the paper's letters, with demonstration tokens X', query-side tokens X and attention query q:

    F_ICL(q) ~ W_V [X'; X] (W_K [X'; X])^T q
             = W_V X (W_K X)^T q  +  W_V X' (W_K X')^T q
             = (W_ZSL + dW_ICL) q

Here `values` contains W_V x and `keys` contains W_K x, one row for each token.
"""

from collections.abc import Callable
from functools import reduce
from typing import NamedTuple

import torch
from einops import einsum
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import cosine, result_dtype, widened


def linear_attention(values: Tensor, keys: Tensor, q: Tensor) -> Tensor:
    """Attention output with neither softmax nor scaling: LinearAttn(V, K, q) = sum_i v_i (k_i^T q).

    Args:
        values: V, of shape `(..., pos, d_v)`.
        keys: K, of shape `(..., pos, d_k)`.
        q: Attention queries, of shape `(..., d_k)`.

    Returns:
        Outputs, of shape `(..., d_v)`, in the dtype of the inputs; zero when there are no tokens.

    Raises:
        ShapeError: The tokens of `values` and `keys`, or the widths of `keys` and `q`, do not match.

    Source:
        arXiv:2212.10559v3, equation (9) and, as the relaxation of attention, equation (11).
    """
    _require_tokens(values, keys)
    if keys.shape[-1] != q.shape[-1]:
        raise ShapeError(f"keys and q must have one width; given keys {tuple(keys.shape)} and q {tuple(q.shape)}.")
    scores = einsum(keys, q, "... pos d_k, ... d_k -> ... pos")
    return einsum(values, scores, "... pos d_v, ... pos -> ... d_v")


def outer_product_update(values: Tensor, keys: Tensor) -> Tensor:
    """The weight matrix that corresponds to attention to some tokens: sum_i v_i k_i^T.

    For demonstration tokens this is dW_ICL, and for query tokens W_ZSL. With error signals as values and a layer's
    inputs as keys it is the update dW of gradient descent.

    Args:
        values: Values W_V x_i (or error signals e_i), of shape `(..., pos, d_v)`.
        keys: Keys W_K x_i (or inputs x_i), of shape `(..., pos, d_k)`.

    Returns:
        Matrices, of shape `(..., d_v, d_k)`, in the dtype of the inputs; zero when there are no tokens.

    Raises:
        ShapeError: The tokens of `values` and `keys` do not match.

    Source:
        arXiv:2212.10559v3, equations (8) and (12).
    """
    _require_tokens(values, keys)
    return einsum(values, keys, "... pos d_v, ... pos d_k -> ... d_v d_k")


class GradientDescentUpdate(NamedTuple):
    """The change of a linear layer by training: dW = sum_i e_i x_i^T = `outer_product_update(E, X)`."""

    E: Tensor
    """Error signals e_i, each summed over steps, of shape `(sample, d_out)`, at least float32."""
    X: Tensor
    """Inputs x_i, of shape `(sample, d_in)`, in the dtype of E."""


def gradient_descent_update(
    W0: Tensor, X: Tensor, loss: Callable[[Tensor, int], Tensor], rate: float, steps: int = 1
) -> GradientDescentUpdate:
    """Train a linear layer W x by gradient descent and return the change of W_0 as values and keys.

    In each step, the gradient with respect to W is sum_i g_i x_i^T, where g_i is the gradient of the loss with respect
    to the layer's output at x_i. This holds for every loss and whatever follows the layer. So e_i is the sum of
    -rate g_i over steps, since the inputs stay the same. With momentum the e_i differ, and weight decay also shrinks
    W_0. The updates of an optimiser that scales each entry of W separately, such as Adam, are not of this form, because
    they leave the span of the inputs.

    Args:
        W0: Weights before training, of shape `(d_out, d_in)`.
        X: Inputs of the training samples, of shape `(sample, d_in)`.
        loss: Function of the layer's outputs, of shape `(sample, d_out)` and in the dtype of `W0` and `X`, and of
            the number of the step, counted from 0. It returns a scalar that is differentiable in the outputs; samples
            that it ignores do not contribute to that step. Sums are at least in float32.
        rate: Learning rate.
        steps: Number of steps.

    Raises:
        ShapeError: The widths of `W0` and `X` do not match.

    Source:
        arXiv:2212.10559v3, equation (8); the identity is that of arXiv:2202.05798.
    """
    if W0.ndim != 2 or X.ndim != 2 or W0.shape[1] != X.shape[1]:
        raise ShapeError(
            f"W0 must be (d_out, d_in) and X (sample, d_in); given {tuple(W0.shape)} and {tuple(X.shape)}."
        )
    # In half precision, steps smaller than the last digit of the sum would be lost.
    given, wide = torch.promote_types(W0.dtype, X.dtype), result_dtype(W0, X)
    W0, X = W0.detach().to(wide), X.detach().to(wide)
    E = X.new_zeros(X.shape[0], W0.shape[0])
    for step in range(steps):
        with torch.enable_grad():
            outputs = as_linear_attention(W0, E, X, X).to(given).requires_grad_()
            (gradient,) = torch.autograd.grad(loss(outputs, step), outputs)
        E = E - rate * gradient.to(E)
    return GradientDescentUpdate(E, X)


def as_linear_attention(W0: Tensor, E: Tensor, X: Tensor, x: Tensor) -> Tensor:
    """Output of the trained layer for x: W_0 x + LinearAttn(E, X, x), which attends to its training samples.

    Args:
        W0: Weights before training, of shape `(d_out, d_in)`.
        E: Error signals, of shape `(sample, d_out)`.
        X: Training inputs, of shape `(sample, d_in)`.
        x: Inputs, of shape `(..., d_in)`.

    Returns:
        Outputs, of shape `(..., d_out)`, in the widest dtype of the four.

    Raises:
        ShapeError: The samples of `E` and `X`, or the widths, do not match.

    Source:
        arXiv:2212.10559v3, equation (8).
    """
    if W0.shape != (E.shape[-1], x.shape[-1]):
        raise ShapeError(
            f"W0 must be (d_out, d_in) of E (sample, d_out) and x (..., d_in); given {tuple(W0.shape)}, "
            f"{tuple(E.shape)} and {tuple(x.shape)}."
        )
    dtype = reduce(torch.promote_types, (each.dtype for each in (W0, E, X, x)))
    W0, E, X, x = (each.to(dtype) for each in (W0, E, X, x))
    return x @ W0.T + linear_attention(E, X, x)


class Relaxation(NamedTuple):
    """Difference between the linear form and the softmax attention head that it approximates."""

    relative_error: Tensor
    """||output - s linear|| / ||output|| at the best scale s >= 0, in [0, 1], of shape `(..., head)`."""
    cosine: Tensor
    """cos(output, linear), in [-1, 1], of shape `(..., head)`."""


def relaxation(W_zsl: Tensor, delta_W_icl: Tensor, q: Tensor, head_output: Tensor) -> Relaxation:
    """Relative error and cosine of (W_ZSL + dW_ICL) q against the true head output.

    Removing softmax removes its normaliser, so the linear form has a free positive scale: the cosine does not
    see it, and the relative error uses the one that fits each output best by least squares, s = max(0, <output,
    linear> / <linear, linear>). So the two say the same in two ways: error^2 = 1 - max(0, cosine)^2, and an
    error of 1 means that the linear form is of no use.

    Args:
        W_zsl: What the query's own tokens write, of shape `(..., head, d_v, d_k)`.
        delta_W_icl: What the demonstration tokens write, of shape `(..., head, d_v, d_k)`.
        q: Attention queries at the probe, of shape `(..., head, d_k)`.
        head_output: True output of each head before W_O, of shape `(..., head, d_v)`.

    Returns:
        Relative error and cosine, each of shape `(..., head)`; both NaN where either vector is zero.

    Raises:
        ShapeError: The widths do not match.

    Source:
        The relaxation is equations (10) to (12) of arXiv:2212.10559v3; the paper does not measure it, we do.
    """
    if W_zsl.shape[-2:] != delta_W_icl.shape[-2:] or W_zsl.shape[-2:] != (head_output.shape[-1], q.shape[-1]):
        raise ShapeError(
            "W_zsl and delta_W_icl must be (..., head, d_v, d_k), q (..., head, d_k) and head_output (..., head, "
            f"d_v); given {tuple(W_zsl.shape)}, {tuple(delta_W_icl.shape)}, {tuple(q.shape)} and "
            f"{tuple(head_output.shape)}."
        )
    output = widened(head_output)
    W = widened(W_zsl) + widened(delta_W_icl)
    linear = einsum(W, widened(q), "... d_v d_k, ... d_k -> ... d_v")
    agreement = cosine(output, linear)
    scale = ((output * linear).sum(-1) / (linear * linear).sum(-1)).clamp(min=0)
    residual = output - scale.unsqueeze(-1) * linear
    # From the residual, not from the cosine: 1 - cos^2 loses half the digits where the fit is good.
    error = torch.linalg.vector_norm(residual, dim=-1) / torch.linalg.vector_norm(output, dim=-1)
    dtype = result_dtype(W_zsl, delta_W_icl, q, head_output)
    return Relaxation(error.clamp(0, 1).to(dtype), agreement.to(dtype))


def _require_tokens(values: Tensor, keys: Tensor) -> None:
    if values.ndim < 2 or keys.ndim < 2 or values.shape[-2] != keys.shape[-2]:
        raise ShapeError(
            "values (..., pos, d_v) and keys (..., pos, d_k) must hold the same tokens; given "
            f"{tuple(values.shape)} and {tuple(keys.shape)}."
        )
