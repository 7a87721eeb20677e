"""The effect of a context on an MLP's input, written as a change of the MLP's input projection.

A projection W is applied to `a` without the context and to `a + da` after it. One change of rank one makes W map `a` to
what it maps `a + da` to. This is exact, but only for this `a`. The mean over many tokens is one change for all of them,
but exact for none.
"""

import torch
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened


def rank_one_factors(W: Tensor, a: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors whose outer product is `rank_one_update`: `left right^T`.

    Applied to any x, the update gives `left (right . x)`: the matrix itself need not be formed.

    Args:
        W: The projection, of shape `(d_out, d_in)`.
        a: Its input without context, of shape `(..., d_in)`.
        da: Change of the input by the context, of shape `(..., d_in)`.

    Returns:
        `left = W da` of shape `(..., d_out)` and `right = a / ||a||^2` of shape `(..., d_in)`, in the inputs' dtype;
        `right` is zero where `a` is zero.

    Raises:
        ShapeError: The shapes do not match.

    Source:
        See `rank_one_update`.
    """
    _require_inputs(W, a, da)
    return da @ W.mT, _over_squared_norm(a)


def rank_one_update(W: Tensor, a: Tensor, da: Tensor) -> Tensor:
    """The change dW with `(W + dW) a = W (a + da)`: `(W da) a^T / ||a||^2`.

    The equation holds because `a^T a / ||a||^2 = 1`. For another vector x, `dW x = W da (a . x) / ||a||^2`, which is
    zero if x is orthogonal to `a`.

    Args:
        W: The projection, of shape `(d_out, d_in)`.
        a: Its input without context, of shape `(..., d_in)`.
        da: Change of the input by the context, of shape `(..., d_in)`.

    Returns:
        Updates of rank one, of shape `(..., d_out, d_in)`, in the inputs' dtype. Zero where `a` is zero; the
        equation cannot hold there, because `W 0 = 0` for every W.

    Raises:
        ShapeError: The shapes do not match.

    Source:
        arXiv:2507.16003, the theorem on contextual blocks, with A(C without Y, x) for `a` and A(C, x) for
        `a + da`, where Y is the part of the context C that is written into W: here all of it.
    """
    left, right = rank_one_factors(W, a, da)
    return left[..., :, None] * right[..., None, :]


def rank_one_sum(a: Tensor, da: Tensor) -> Tensor:
    """Sum over tokens of `da a^T / ||a||^2`; the sums of several batches can be added.

    Args:
        a: Inputs without context, of shape `(token, d_in)`.
        da: Changes of the inputs by the context, of shape `(token, d_in)`.

    Returns:
        The sum, of shape `(d_in, d_in)`, at least float32; a token whose `a` is zero adds nothing.

    Raises:
        ShapeError: The shapes differ or are not `(token, d_in)`.

    Source:
        See `thought_matrix`.
    """
    require_same_shape("token d_in", a=a, da=da)
    dtype = result_dtype(a, da)
    return da.to(dtype).mT @ _over_squared_norm(a.to(dtype))


def thought_matrix(a: Tensor, da: Tensor) -> Tensor:
    """One matrix M for all tokens instead of one change for each: the mean of `da a^T / ||a||^2`.

    `W M` is then the mean of the tokens' rank-one updates of W. If `da = M' a` and the directions of
    `a` are uniformly distributed, M is `M' / d_in`; on real inputs, directions that they share have a larger weight.

    Args:
        a: Inputs without context, of shape `(token, d_in)`.
        da: Changes of the inputs by the context, of shape `(token, d_in)`.

    Returns:
        The mean, of shape `(d_in, d_in)`, at least float32. A token whose `a` is zero counts but adds nothing;
        NaN without tokens. For many tokens, add up `rank_one_sum` over batches and divide by their number.

    Raises:
        ShapeError: The shapes differ or are not `(token, d_in)`.

    Source:
        Thought matrix of arXiv:2510.08734, which defines it as a sum with a factor lambda; ours is the mean, so
        that it does not depend on the number of tokens.
    """
    return rank_one_sum(a, da) / a.shape[0] if a.shape[0] else rank_one_sum(a, da) * torch.nan


def _over_squared_norm(a: Tensor) -> Tensor:
    # In double precision squares of float32 numbers neither overflow nor vanish.
    wide = widened(a)
    squared = wide.square().sum(-1, keepdim=True)
    return torch.where(squared > 0, wide / squared, 0.0).to(a.dtype)


def _require_inputs(W: Tensor, a: Tensor, da: Tensor) -> None:
    require_same_shape("... d_in", a=a, da=da)
    if W.dim() != 2 or W.shape[1] != a.shape[-1]:
        raise ShapeError(f"W must be (d_out, d_in) with d_in that of a; given W {tuple(W.shape)}, a {tuple(a.shape)}.")
