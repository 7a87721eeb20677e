"""Cosines that do not overflow, stay in [-1, 1], and are NaN for a zero vector."""

import torch
from torch import Tensor

from dualform.errors import ShapeError


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Cosine of the angle between two vectors, over the last axis.

    Args:
        a: Vectors, of shape `(..., d_model)`; leading axes broadcast against those of `b`.
        b: Vectors, of shape `(..., d_model)`.

    Returns:
        Cosines in [-1, 1], of shape `(...)`; NaN where either vector is zero, because a zero vector has no
        direction, or contains a NaN or an infinity. Computed in float64; the dtype is that of the
        inputs, but at least float32.

    Raises:
        ShapeError: The last axes differ in length, or the leading ones do not broadcast.

    Source:
        Elementary; the similarities of arXiv:2212.10559v3, sections 4.4 and 4.5, are cosines.
    """
    if a.shape[-1:] != b.shape[-1:] or not _broadcast(a.shape, b.shape):
        raise ShapeError(
            f"a cosine needs vectors of one length and leading axes that broadcast; given {tuple(a.shape)} and "
            f"{tuple(b.shape)}."
        )
    if a.shape[-1] == 0:
        return a.new_full(torch.broadcast_shapes(a.shape, b.shape)[:-1], torch.nan, dtype=result_dtype(a, b))
    unit_a, unit_b = unit(widened(a)), unit(widened(b))
    return (unit_a * unit_b).sum(-1).clamp(-1, 1).to(result_dtype(a, b))


def unit(x: Tensor) -> Tensor:
    """Vectors scaled to length 1, over the last axis.

    Args:
        x: Vectors, of shape `(..., d_model)`.

    Returns:
        Vectors of L2 norm 1, of shape `(..., d_model)`; NaN for a zero vector.

    Source:
        Elementary; the L2 normalisation of arXiv:2212.10559v3, section 4.4.
    """
    # The largest entry is divided out first: squares of very small or very large entries leave the range of floats.
    x = x / x.abs().amax(-1, keepdim=True)
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def widened(x: Tensor) -> Tensor:
    """The tensor in float64 if its device supports it.

    Updates are small differences of large outputs, and cosines near 1 differ only in the last digits of float32.

    Args:
        x: Any tensor, of shape `(...)`.

    Returns:
        The same numbers, of shape `(...)`, in float64; in float32 on Apple's `mps`, which has no float64.
    """
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def result_dtype(*tensors: Tensor) -> torch.dtype:
    """The dtype in which a measure of these tensors is returned.

    Args:
        tensors: Tensors of any shape `(...)`.

    Returns:
        Their common dtype, but at least float32: the three digits of bfloat16 are too few for a similarity.
    """
    dtype = torch.float32
    for tensor in tensors:
        dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def require_same_shape(axes: str, **tensors: Tensor) -> None:
    """Check that tensors have the named axes and the same shape.

    Args:
        axes: Names of the axes in order, separated by spaces; `"... label"` allows any leading ones.
        tensors: The tensors of shape `(...)`, by their names in the caller, for the message.

    Raises:
        ShapeError: A shape differs from the first, or has another number of axes than `axes`.
    """
    names = axes.split()
    n_named = len([name for name in names if name != "..."])
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    first = next(iter(shapes.values()))
    fits = len(first) >= n_named if "..." in names else len(first) == n_named
    if not fits or any(shape != first for shape in shapes.values()):
        given = ", ".join(f"{name} {shape}" for name, shape in shapes.items())
        same = " and be equal" if len(shapes) > 1 else ""
        raise ShapeError(f"shapes must be ({', '.join(names)}){same}; given {given}.")


def _broadcast(a: torch.Size, b: torch.Size) -> bool:
    try:
        torch.broadcast_shapes(a, b)
    except RuntimeError:
        return False
    return True
