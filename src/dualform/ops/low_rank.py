"""The nearest matrix of a given rank as a product of two factors, and the share of the norm that it keeps."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import ConfigError, NumericalError
from dualform.ops.cosine import require_same_shape, result_dtype, widened


@dataclass(frozen=True)
class LowRank:
    """`B @ A`, a matrix of at most the requested rank."""

    A: Tensor
    """The factor that is applied to the input first, `(rank, d_in)`."""
    B: Tensor
    """The factor that is applied to the result, `(d_out, rank)`."""
    kept: float
    """Squared Frobenius norm of the product divided by that of the original, in [0, 1]; NaN for a matrix of zeros."""

    @property
    def product(self) -> Tensor:
        """`B @ A`, `(d_out, d_in)`."""
        return self.B @ self.A


def low_rank(delta: Tensor, rank: int) -> LowRank:
    """The matrix of a given rank that is nearest to `delta`, as two factors.

    The singular value decomposition is truncated after the `rank` largest values. Each factor includes their square
    roots, so that both have entries of about the same size and lose equally little in half precision.

    Args:
        delta: A change of a weight, output features first, of shape `(d_out, d_in)`.
        rank: Columns of B and rows of A. Those beyond min(d_out, d_in) are zeros, since the others are exact.

    Returns:
        The factors, in the dtype of `delta` but at least float32, and the share of its squared norm that they keep.

    Raises:
        ConfigError: `rank` is below 1.
        ShapeError: `delta` is not a matrix.
        NumericalError: `delta` has an entry that is not finite.

    Source:
        Eckart and Young, The approximation of one matrix by another of lower rank, 1936. The factors' names are
        those of LoRA, arXiv:2106.09685, section 4.1, with its scale alpha / r equal to 1.
    """
    if rank < 1:
        raise ConfigError(f"rank is {rank}; expected 1 or more.")
    require_same_shape("d_out d_in", delta=delta)
    wide = widened(delta)
    if not bool(wide.isfinite().all()):
        raise NumericalError(
            f"{int((~wide.isfinite()).sum())} of {wide.numel()} entries of the change are not finite, so it has no "
            "singular values. Check how it was fitted."
        )
    n_full = min(wide.shape)
    n_kept = min(rank, n_full)
    # The singular vectors are the eigenvectors of the smaller Gram matrix, which takes about a quarter of the time. The
    # product is a projection of `delta` onto them, so it is exact to float64 even if the eigenvalues are not.
    turned = wide if wide.shape[0] <= wide.shape[1] else wide.T
    vectors = torch.linalg.eigh(turned @ turned.T).eigenvectors.flip(1)[:, :n_kept]
    projected = vectors.T @ turned
    values = torch.linalg.vector_norm(projected, dim=1)
    root = values.sqrt()
    left = vectors * root
    right = projected / torch.where(root > 0, root, 1)[:, None]
    if turned is not wide:
        left, right = right.T, left.T
    A = wide.new_zeros(rank, wide.shape[1])
    B = wide.new_zeros(wide.shape[0], rank)
    A[:n_kept] = right
    B[:, :n_kept] = left
    total = float(wide.square().sum())
    share = float(values.square().sum()) / total if total > 0 else math.nan
    # Because of rounding the share could exceed 1, or differ from 1 although nothing was truncated.
    kept = share if math.isnan(share) else 1.0 if n_kept == n_full else min(share, 1.0)
    dtype = result_dtype(delta)
    return LowRank(A.to(dtype), B.to(dtype), kept)
