"""Ridge regression from sums over batches of rows, without storing the rows.

Only the number, means and second moments of the rows are needed, so memory depends only on the widths of inputs and
outputs. Sums are in float64, because the condition number of a Gram matrix is the square of that of its rows.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, ShapeError

STRENGTHS = tuple(10.0 ** (exponent / 2) for exponent in range(-10, 3))
"""Candidates for `NormalEquations.cross_validated`: 1e-5 to 10, two for each power of ten."""

_LEAST_FREE = 0.1
"""Smallest share of residual degrees of freedom, of all rows, with which a strength is considered."""
_ROUNDING = 1e-6
"""Rounding error of sums of products in single precision, relative to the outputs' sum of squares."""


@dataclass(frozen=True)
class RidgeFit:
    """The fitted linear map, y = W x + c."""

    W: Tensor
    """`(d_out, d_in)`, float64."""
    c: Tensor
    """`(d_out,)`, float64; zeros if no intercept was requested."""
    strength: float
    """Penalty on the squared entries of W, in units of the mean squared deviation of an input."""
    explained: float
    """Share of the outputs' weighted sum of squares that the fit explains on the rows it was fitted to, at most 1; NaN
    if all outputs are zero."""


class NormalEquations:
    """The sums over rows from which ridge regressions are fitted.

    Args:
        d_in: Width of an input.
        d_out: Width of an output.
        intercept: Whether to fit an intercept, which is not penalised.
        device: Device of the sums.
    """

    def __init__(self, d_in: int, d_out: int, *, intercept: bool = True, device: torch.device | str = "cpu") -> None:
        self._intercept = intercept

        def zeros(*shape: int) -> Tensor:
            return torch.zeros(*shape, dtype=torch.float64, device=device)

        self._xx, self._xy, self._yy = zeros(d_in, d_in), zeros(d_in, d_out), zeros(d_out)
        self._x, self._y = zeros(d_in), zeros(d_out)
        self.weight = 0.0
        """Sum of the rows' weights."""
        self.rows = 0
        """Number of rows for cross-validation, without those added with `known`."""

    def add(self, x: Tensor, y: Tensor | None, weight: float = 1.0, *, known: bool = False) -> None:
        """Add some rows.

        Args:
            x: Inputs, `(row, d_in)`.
            y: Outputs, `(row, d_out)`; None for rows whose outputs should be zero.
            weight: Weight of each of these rows.
            known: Whether the rows were added before and only get more weight now; they are then not counted again.

        Raises:
            ShapeError: Widths or numbers of rows do not fit.
        """
        if x.dim() != 2 or x.shape[1] != len(self._xx) or (y is not None and y.shape != (len(x), len(self._yy))):
            given = None if y is None else tuple(y.shape)
            raise ShapeError(
                f"rows of shape {tuple(x.shape)} and {given} do not fit a map from {len(self._xx)} to {len(self._yy)}"
            )
        # Products in single precision at least (half would leave no Gram matrix that has an inverse), their sums over
        # batches in float64.
        if x.dtype.itemsize < 4:
            x = x.float()
        if y is not None and y.dtype != x.dtype:
            y = y.to(x.dtype)
        self.rows += 0 if known else len(x)
        self._xx += weight * (x.T @ x).double()
        self._x += weight * x.sum(0, dtype=torch.float64)
        self.weight += weight * len(x)
        if y is not None:
            self._xy += weight * (x.T @ y).double()
            self._yy += weight * y.double().square().sum(0)
            self._y += weight * y.sum(0, dtype=torch.float64)

    def solve(self, strength: float) -> RidgeFit:
        """The fit with the least weighted squared error plus the penalty `strength * s * ||W||^2`.

        Here s is the weighted sum of squares of an input, averaged over the inputs' dimensions. With an intercept the
        squares are taken around the inputs' mean, and the intercept itself is not penalised.

        Args:
            strength: Factor of the penalty, at least 0. With 0 and inputs that do not vary in some direction, the
                solution of least norm is returned.

        Raises:
            ConfigError: No rows were added, or the strength is negative or NaN.
            NumericalError: The solution is not finite or is not a fit, because rounding errors dominate: the inputs are
                too strongly correlated for this strength.
        """
        if not strength >= 0:
            raise ConfigError(f"ridge strength {strength} must be 0 or more")
        gram, cross, _ = self._centred()
        penalty = strength * float(gram.diagonal().mean())
        shifted = gram + penalty * torch.eye(len(gram), dtype=gram.dtype, device=gram.device)
        factor, failed = torch.linalg.cholesky_ex(shifted)
        if failed:
            # The inputs do not vary in some direction and there is no penalty: take the solution of least norm.
            return self._fit(torch.linalg.pinv(shifted, hermitian=True) @ cross, strength)
        return self._fit(torch.cholesky_solve(cross, factor), strength)

    def cross_validated(self, strengths: tuple[float, ...] = STRENGTHS) -> RidgeFit:
        """The fit whose strength has the least generalised cross-validation error, summed over outputs.

        Each row counts once, whatever its weight, since a weight adds no information. Rows of one text are not
        independent, so the chosen penalty tends to be too small. Strengths with residual degrees of freedom below a
        tenth of the rows are skipped, because their error is a quotient of two numbers near zero.

        Args:
            strengths: Candidates, as `solve` takes them.

        Raises:
            ConfigError: No candidates, or no rows were added.

        Source:
            Golub, Heath and Wahba, "Generalized cross-validation as a method for choosing a good ridge parameter",
            Technometrics 21 (1979): n RSS / (n - df)^2, df the trace of the hat matrix.
        """
        if not strengths:
            raise ConfigError("no ridge strengths to choose from")
        gram, cross, total = self._centred()
        values, vectors = torch.linalg.eigh(gram)
        values = values.clamp(min=0.0)
        rotated = vectors.T @ cross
        power = rotated.square().sum(1)
        scale = float(values.mean())
        n = float(self.rows)
        # The residual is a difference of two large sums; below their rounding error it is meaningless.
        least = _ROUNDING * float(total)
        errors = []
        for strength in strengths:
            shifted = values + max(strength * scale, 1e-300)
            residual = float(total - (power * (2 / shifted - values / shifted.square())).sum())
            freedom = float((values / shifted).sum()) + self._intercept
            left = n - freedom
            errors.append(n * max(residual, least) / left**2 if left > _LEAST_FREE * n else float("inf"))
        # If all candidates are skipped, the largest strength is used.
        best = max(strengths)
        if min(errors) < float("inf"):
            best = strengths[min(range(len(strengths)), key=errors.__getitem__)]
        return self._fit(vectors @ (rotated / (values + max(best * scale, 1e-300))[:, None]), best)

    def _centred(self) -> tuple[Tensor, Tensor, Tensor]:
        """Gram matrix, cross products and outputs' sum of squares, around the means where there is an intercept."""
        if self.weight <= 0:
            raise ConfigError("a ridge fit needs rows, but none were added")
        if not self._intercept:
            return self._xx, self._xy, self._yy.sum()
        x, y = self._x / self.weight, self._y / self.weight
        return (
            self._xx - self.weight * torch.outer(x, x),
            self._xy - self.weight * torch.outer(x, y),
            self._yy.sum() - self.weight * y.square().sum(),
        )

    def _fit(self, coefficients: Tensor, strength: float) -> RidgeFit:
        c = torch.zeros_like(self._y)
        if self._intercept:
            c = (self._y - self._x @ coefficients) / self.weight
        # Error of y = S'x + c from the sums, around zero so that a mean that is explained counts as explained.
        fitted = (coefficients * self._xy).sum() + (c * self._y).sum()
        quadratic = (coefficients * (self._xx @ coefficients)).sum()
        quadratic = quadratic + 2 * (self._x @ coefficients * c).sum() + self.weight * c.square().sum()
        total = self._yy.sum()
        explained = float((2 * fitted - quadratic) / total) if total > 0 else float("nan")
        if not torch.isfinite(coefficients).all() or explained > 1.05:
            raise NumericalError(
                f"a ridge fit of {self.rows} rows at strength {strength:g} is no fit: it explains {explained:.3g} of "
                "what it was fitted to. Raise the strength, or use float32."
            )
        return RidgeFit(coefficients.T.contiguous(), c, strength, explained)
