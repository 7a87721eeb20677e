"""What a context does to an MLP's input, written as a change of the matrix that reads this input.

A matrix W reads `a` without the context and `a + da` behind it. One change of rank one makes W do to `a` what it does
to `a + da`: exactly, and for this one `a` alone. The mean over many tokens is a change for all of them, and exact for
none.
"""

import torch
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.cosine import require_same_shape, result_dtype, widened


def rank_one_factors(W: Tensor, a: Tensor, da: Tensor) -> tuple[Tensor, Tensor]:
    """Two vectors whose outer product is `rank_one_update`: `left right^T`.

    Applied to any x, the update gives `left (right . x)`: the matrix itself need not be formed.

    Args:
        W: The matrix that reads, of shape `(d_out, d_in)`.
        a: Its input without context, of shape `(..., d_in)`.
        da: What context adds to it, of shape `(..., d_in)`.

    Returns:
        `left = W da` of shape `(..., d_out)` and `right = a / ||a||^2` of shape `(..., d_in)`, in the inputs' dtype;
        `right` is zero where `a` is.

    Raises:
        ShapeError: The shapes do not belong together.

    Source:
        As `rank_one_update`.
    """
    _require_inputs(W, a, da)
    return da @ W.mT, _over_squared_norm(a)


def rank_one_update(W: Tensor, a: Tensor, da: Tensor) -> Tensor:
    """The change of W that does to `a` what W does to `a + da`: `(W da) a^T / ||a||^2`.

    `(W + dW) a = W (a + da)`, because `a^T a / ||a||^2 = 1`. A vector at right angles to `a` is not touched, and
    another vector x moves by its share of `a`: `dW x = W da (a . x) / ||a||^2`.

    Args:
        W: The matrix that reads, of shape `(d_out, d_in)`.
        a: Its input without context, of shape `(..., d_in)`.
        da: What context adds to it, of shape `(..., d_in)`.

    Returns:
        Updates of rank one, of shape `(..., d_out, d_in)`, in the inputs' dtype. Zero where `a` is zero: no change of
        W moves `W 0`, so there the identity does not hold.

    Raises:
        ShapeError: The shapes do not belong together.

    Source:
        arXiv:2507.16003, the theorem on contextual blocks, with A(C without Y, x) for `a` and A(C, x) for
        `a + da`, where Y is the part of the context C that is written into W: here all of it.
    """
    left, right = rank_one_factors(W, a, da)
    return left[..., :, None] * right[..., None, :]


def rank_one_sum(a: Tensor, da: Tensor) -> Tensor:
    """Sum over tokens of `da a^T / ||a||^2`, to be added up batch by batch.

    Args:
        a: Inputs without context, of shape `(token, d_in)`.
        da: What context adds to them, of shape `(token, d_in)`.

    Returns:
        The sum, of shape `(d_in, d_in)`, float32 at least; a token whose `a` is zero adds nothing.

    Raises:
        ShapeError: The shapes differ or have other axes.

    Source:
        As `thought_matrix`.
    """
    require_same_shape("token d_in", a=a, da=da)
    dtype = result_dtype(a, da)
    return da.to(dtype).mT @ _over_squared_norm(a.to(dtype))


def thought_matrix(a: Tensor, da: Tensor) -> Tensor:
    """One matrix M for all tokens, in place of a change each: the mean of `da a^T / ||a||^2`.

    `W M` is then the mean of the tokens' rank-one updates of W. Were `da = M' a`, with `a` pointing in all directions
    alike, M would be `M' / d_in`; on real inputs it leans towards the directions that they share.

    Args:
        a: Inputs without context, of shape `(token, d_in)`.
        da: What context adds to them, of shape `(token, d_in)`.

    Returns:
        The mean, of shape `(d_in, d_in)`, float32 at least. A token whose `a` is zero counts, and adds nothing; NaN
        without tokens. For many tokens add up `rank_one_sum` and divide by their number.

    Raises:
        ShapeError: The shapes differ or have other axes.

    Source:
        Thought matrix of arXiv:2510.08734, there a sum with a factor lambda; ours is the mean, so that it does not
        depend on how many tokens were read.
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
