"""Numbers moved by the smallest step that their precision can express."""

import torch
from torch import Tensor


def unit_in_last_place(x: Tensor) -> Tensor:
    """Distance from each number to the next larger one of its precision (in magnitude), of the shape of `x`.

    Args:
        x: Floating point, of any shape. Zeros get 0, so that an exact zero stays one.

    Returns:
        eps * 2^floor(log2|x|), in float32, or in float64 where `x` is.
    """
    wide = at_least_float32(x)
    _, exponent = torch.frexp(wide)
    # frexp's mantissa lies in [1/2, 1), so the leading bit of x is worth 2^(exponent - 1).
    spacing = torch.ldexp(torch.full_like(wide, torch.finfo(x.dtype).eps), exponent - 1)
    return spacing.masked_fill(wide == 0, 0.0)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 where its dtype is narrower; others as they are."""
    return x if x.dtype.itemsize >= 4 else x.float()


def last_place_move(x: Tensor, generator: torch.Generator) -> Tensor:
    """One unit in the last place of each number, up or down at random: the least change of `x` that is a change.

    Args:
        x: Floating point, of any shape.
        generator: Decides the signs; on the CPU, so that every device gets the same ones.

    Returns:
        The change, to be added to `x`, in float32, or in float64 where `x` is.
    """
    signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8).to(x.device)
    spacing = unit_in_last_place(x)
    return torch.where(signs == 1, spacing, -spacing)
