"""Random directions in place of an update, as a control: dualform's, and those of the released code."""

import torch
from torch import Tensor

from dualform.ops.cosine import result_dtype, unit, widened


def matched_random(update: Tensor, generator: torch.Generator) -> Tensor:
    """Random updates with the lengths of the given ones.

    Each is drawn from a Gaussian of mean zero and scaled to the norm of its update. Raw SimAOU with such an update has
    mean 0 and standard deviation 1 / sqrt(d_model).

    Args:
        update: Attention output updates, of shape `(..., d_model)`.
        generator: Source of randomness; drawn on its own device, then moved.

    Returns:
        Random vectors, of shape `(..., d_model)`, on the device and in the dtype of `update`; zero where it is zero.

    Source:
        SimAOU (Random) of arXiv:2212.10559v3, section 4.4, which does not describe how the random update is drawn;
        `released_random` follows the released code. Ours has mean zero and the norm of the update.
    """
    drawn_in = torch.promote_types(torch.float32, result_dtype(update))
    direction = torch.randn(update.shape, generator=generator, device=generator.device, dtype=drawn_in)
    norm = torch.linalg.vector_norm(widened(update), dim=-1, keepdim=True)
    return (unit(widened(direction.to(update.device))) * norm).to(update.dtype)


def released_random(update: Tensor, generator: torch.Generator) -> Tensor:
    """Random updates as the code released with arXiv:2212.10559 draws them: uniform on [0, 1).

    All entries are at least 0, and the norm does not depend on that of the update. The cosine with an update u is
    therefore about sqrt(3) / 2 times the cosine of u with the vector of ones, which is near 0 if the mean of u's
    entries is.

    Args:
        update: Updates to replace, of shape `(..., d_model)`.
        generator: Source of randomness; drawn on its own device, then moved. The released code is not seeded.

    Returns:
        Random vectors, of shape `(..., d_model)`, on the device and in the dtype of `update`.

    Source:
        SimAOU (Random) of arXiv:2212.10559v3, section 4.4, as in the released code.
    """
    drawn_in = torch.promote_types(torch.float32, result_dtype(update))
    drawn = torch.rand(update.shape, generator=generator, device=generator.device, dtype=drawn_in)
    return drawn.to(update.device, update.dtype)
