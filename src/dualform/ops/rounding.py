"""Changes of numbers by one unit in the last place."""

import torch
from torch import Tensor


def unit_in_last_place(x: Tensor) -> Tensor:
    """Distance from each number to the next larger one (in magnitude) in its dtype, of the shape of `x`.

    Args:
        x: Floating point, of any shape. The result is 0 for zeros, so that exact zeros stay zero.

    Returns:
        eps * 2^floor(log2|x|), in float32, or in float64 if `x` is float64.
    """
    wide = at_least_float32(x)
    _, exponent = torch.frexp(wide)
    # frexp's mantissa lies in [1/2, 1), so the leading bit of x is worth 2^(exponent - 1).
    spacing = torch.ldexp(torch.full_like(wide, torch.finfo(x.dtype).eps), exponent - 1)
    return spacing.masked_fill(wide == 0, 0.0)


def at_least_float32(x: Tensor) -> Tensor:
    """The tensor in float32 if its dtype is narrower; otherwise unchanged."""
    return x if x.dtype.itemsize >= 4 else x.float()


def last_place_move(x: Tensor, generator: torch.Generator) -> Tensor:
    """One unit in the last place of each number, with a random sign: the smallest change that is not rounded away.

    Args:
        x: Floating point, of any shape.
        generator: Draws the signs; on the CPU, so that they are the same on every device.

    Returns:
        The change, to be added to `x`, in float32, or in float64 if `x` is float64.
    """
    signs = torch.randint(0, 2, x.shape, generator=generator, dtype=torch.int8).to(x.device)
    spacing = unit_in_last_place(x)
    return torch.where(signs == 1, spacing, -spacing)
