"""Exact predictors of in-context regression, with which trained models are compared.

Each takes the examples of a context and predicts y at query inputs. Linear ones predict w x, where w depends on the
context only through its size N, its Gram matrix G = sum x x^T and its moment m = sum y x. All prefixes of a sequence
are therefore fitted at once, from running sums.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from einops import einsum
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, ShapeError


class Predictor(Protocol):
    """A function from context examples and query inputs to predictions."""

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        ...

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`.

        Args:
            x: Inputs in context, `(sequence, point, d)`; there may be no point.
            y: Targets in context, `(sequence, point)`.
            queries: Query inputs, whose y is predicted, `(sequence, query, d)`.
        """
        ...


class _Linear(ABC):
    """Predicts w x, where w is computed from the context's size, Gram matrix and moment."""

    @abstractmethod
    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """w, `(..., d)`.

        Args:
            G: Sum of x x^T, `(..., d, d)`.
            m: Sum of y x, `(..., d)`.
            N: Number of examples in these sums, at least 1, broadcast to `(..., 1)`.
        """

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        _require_examples(x, y, queries)
        if x.shape[1] == 0:
            return queries.new_zeros(queries.shape[:2])
        m = einsum(y, x, "sequence point, sequence point d -> sequence d")
        w = self.weights(x.mT @ x, m, x.new_tensor([x.shape[1]]))
        return einsum(queries, w, "sequence query d, sequence d -> sequence query")

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions at each point from the points before it, all prefixes at once (see `by_point`)."""
        predicted = torch.zeros_like(y)
        if x.shape[1] > 1:
            before, y_before = x[:, :-1], y[:, :-1]
            G = (before[..., :, None] * before[..., None, :]).cumsum(1)
            m = (before * y_before[..., None]).cumsum(1)
            N = torch.arange(1, x.shape[1], device=x.device).to(x)[:, None]
            predicted[:, 1:] = (x[:, 1:] * self.weights(G, m, N)).sum(-1)
        return predicted


@dataclass(frozen=True)
class Zero:
    """Predicts zero, the best prediction before any example is known."""

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return "zero"

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        _require_examples(x, y, queries)
        return queries.new_zeros(queries.shape[:2])


@dataclass(frozen=True)
class NearestNeighbours:
    """The mean y of the k examples with the nearest inputs, or of all examples if there are fewer.

    Source:
        arXiv:2211.15661, k = 3; weights are scikit-learn's "distance", as in the authors' released code.
    """

    k: int = 3
    weighted: bool = True
    """Weight by 1 / distance; examples at distance zero then take all the weight."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; expected 1 or more neighbours.")

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return f"{self.k} nearest neighbours" + ("" if self.weighted else ", unweighted")

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        _require_examples(x, y, queries)
        if x.shape[1] == 0:
            return queries.new_zeros(queries.shape[:2])
        # Without matrix products: their rounding errors would give equal inputs a distance above zero.
        distances = torch.cdist(queries, x, compute_mode="donot_use_mm_for_euclid_dist")
        nearest, indices = distances.topk(min(self.k, x.shape[1]), dim=-1, largest=False)
        values = y[:, None].expand(*distances.shape).gather(-1, indices)
        if not self.weighted:
            return values.mean(-1)
        same = nearest == 0
        weights = torch.where(same.any(-1, keepdim=True), same.to(nearest), 1 / nearest)
        return (values * weights).sum(-1) / weights.sum(-1)


@dataclass(frozen=True)
class OnePassSGD:
    """One gradient step for each example, in order, on half its squared error, starting from w = 0.

    Source:
        arXiv:2211.15661. The released code does not halve the squared error, so its rate is half of this one.
    """

    rate: float

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return f"one pass of SGD, rate {self.rate:.3g}"

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        _require_examples(x, y, queries)
        w = x.new_zeros(x.shape[0], x.shape[2])
        for point in range(x.shape[1]):
            w = self._step(w, x[:, point], y[:, point])
        return einsum(queries, w, "sequence query d, sequence d -> sequence query")

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions at each point from the points before it, in one pass (see `by_point`)."""
        predicted = []
        w = x.new_zeros(x.shape[0], x.shape[2])
        for point in range(x.shape[1]):
            predicted.append((w * x[:, point]).sum(-1))
            w = self._step(w, x[:, point], y[:, point])
        return torch.stack(predicted, dim=1)

    def _step(self, w: Tensor, x: Tensor, y: Tensor) -> Tensor:
        return w + self.rate * ((y - (w * x).sum(-1))[:, None] * x)


@dataclass(frozen=True)
class Descent(_Linear):
    """Steps of gradient descent from w = 0 on (1/2N) sum (w x - y)^2."""

    steps: int
    rate: float
    momentum: float = 0.0
    """Momentum of the heavy-ball method: the share of the previous step that is added to each step."""

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        ball = f", momentum {self.momentum:.3g}" if self.momentum else ""
        return f"gradient descent, {_steps(self.steps)}, rate {self.rate:.3g}{ball}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """Weights w, `(..., d)` (see `_Linear.weights`)."""
        w = torch.zeros_like(m)
        moved = torch.zeros_like(m)
        for _ in range(self.steps):
            moved = self.momentum * moved - self.rate * (_times(G, w) - m) / N
            w = w + moved
        return w


@dataclass(frozen=True)
class DescentPlusPlus(_Linear):
    """GD++: gradient descent in which each step also transforms all inputs, x <- (I - gamma sum x x^T) x.

    Each step is one gradient step on the current residuals and transformed inputs; the transform then reduces the
    curvature for the next step. All transforms are polynomials in G, so they commute and the result is a single w:
    with H the product of the transforms so far, w <- w + (rate / N) H^2 (m - G w) and H <- (I - gamma H^2 G) H.

    Source:
        arXiv:2212.07677, GD++. The paper leaves three conventions open: here queries are transformed like examples,
        step and transform both use the inputs of the previous step, and all steps share gamma. Of the conventions
        tried, only this one has the published losses, .110 with 2 steps and .051 with 5 (`VON_OSWALD`, half the mean
        squared error). Not dividing gamma by N only changes its unit.
    """

    steps: int
    rate: float
    gamma: float

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return f"GD++, {_steps(self.steps)}, rate {self.rate:.3g}, gamma {self.gamma:.3g}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """Weights w, `(..., d)` (see `_Linear.weights`)."""
        w = torch.zeros_like(m)
        H = torch.eye(G.shape[-1]).to(G).expand_as(G)
        for _ in range(self.steps):
            w = w + self.rate / N * _times(H, _times(H, m - _times(G, w)))
            H = H - self.gamma * H @ H @ G @ H
        return w


@dataclass(frozen=True)
class Ridge(_Linear):
    """Ridge regression: the w that minimises sum (w x - y)^2 + strength |w|^2."""

    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise ConfigError(
                f"the strength of ridge is {self.strength}; expected above 0. For 0 use LeastSquares() instead."
            )

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return f"ridge {self.strength:.3g}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """Weights w, `(..., d)` (see `_Linear.weights`)."""
        return torch.linalg.solve(G + self.strength * torch.eye(G.shape[-1]).to(G), m[..., None])[..., 0]


@dataclass(frozen=True)
class LeastSquares:
    """The w of minimum norm that minimises sum (w x - y)^2: the limit of ridge as its strength goes to 0."""

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return "least squares"

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        _require_examples(x, y, queries)
        if x.shape[1] == 0:
            return queries.new_zeros(queries.shape[:2])
        return einsum(queries, shortest_fit(x, y), "sequence query d, sequence d -> sequence query")


@dataclass(frozen=True)
class Bayes:
    """The posterior mean for y = w x + noise with normal w: ridge with strength sigma^2 / tau^2."""

    noise: float
    """sigma, the standard deviation of the noise in y."""
    weight_scale: float
    """tau, the standard deviation of each weight."""

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.weight_scale > 0):
            raise ConfigError(
                f"noise is {self.noise} and weight_scale {self.weight_scale}; expected noise of 0 or more and a "
                "weight_scale above 0."
            )

    @property
    def name(self) -> str:
        """Name in tables and legends."""
        return "Bayes"

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)` (see `Predictor`)."""
        return self._exact(x, y, queries)

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions at each point from the points before it (see `by_point`)."""
        return by_point(self._exact, x, y)

    @property
    def _exact(self) -> Ridge | LeastSquares:
        return Ridge(self.noise**2 / self.weight_scale**2) if self.noise else LeastSquares()


def by_point(predictor: Predictor, x: Tensor, y: Tensor) -> Tensor:
    """Predictions at each point from the points before it, `(sequence, point)`; the first point has no examples.

    Args:
        predictor: Called once for each point, unless it has its own method `by_point`.
        x: Inputs, `(sequence, point, d)`.
        y: Targets, `(sequence, point)`.
    """
    _require_examples(x, y, x)
    own: Callable[[Tensor, Tensor], Tensor] | None = getattr(predictor, "by_point", None)
    if own is not None:
        return own(x, y)
    return torch.cat([predictor(x[:, :n], y[:, :n], x[:, n : n + 1]) for n in range(x.shape[1])], dim=1)


def errors_by_point(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error at each point, divided by the mean square of the targets, `(..., point)`.

    Args:
        predicted: Predictions, `(..., sequence, point)`; a leading axis may hold several seeds.
        target: Targets, `(sequence, point)`.
    """
    return (predicted - target).square().mean(-2) / target.square().mean()


def best_of(predictors: Iterable[Predictor], x: Tensor, y: Tensor, target: Tensor) -> Predictor:
    """The predictor with the least mean squared error over all points, each predicted from the points before it.

    Report errors on other sequences than these.

    Args:
        predictors: Candidates, such as gradient descent with several rates.
        x: Inputs, `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        target: Values that should be predicted, `(sequence, point)`.
    """

    def error(predictor: Predictor) -> float:
        mse = (by_point(predictor, x, y) - target).square().mean()
        # Too large a rate overflows and must never be chosen.
        return float(mse) if mse.isfinite() else math.inf

    return min(predictors, key=error)


def shortest_fit(x: Tensor, y: Tensor) -> Tensor:
    """Least-squares weights of minimum norm, `(sequence, d)`.

    Args:
        x: Inputs, `(sequence, point, d)`.
        y: Targets, `(sequence, point)`.
    """
    # LAPACK's fastest driver that gives the minimum norm for rank-deficient x; it runs on CPU only.
    return torch.linalg.lstsq(x.cpu(), y[..., None].cpu(), driver="gelsy").solution[..., 0].to(x)


def best_descent(
    x: Tensor, y: Tensor, queries: Tensor, target: Tensor, steps: int, plus_plus: bool = False
) -> Descent | DescentPlusPlus:
    """Gradient descent or GD++ with the rate (and gamma) whose mean squared error over all sequences is least.

    Args:
        x: Inputs in context, `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        queries: Query inputs, whose y is predicted, `(sequence, query, d)`.
        target: Values that should be predicted, `(sequence, query)`.
        steps: Number of steps; all share one rate (and gamma).
        plus_plus: Whether to use GD++ instead of plain gradient descent.

    Raises:
        ShapeError: If there are no queries or no examples, or shapes do not match.
        NumericalError: If all inputs are zero or NaN, so that no rate is better than another.
    """
    if not queries.numel() or not x.numel():
        raise ShapeError(
            f"x {tuple(x.shape)} or queries {tuple(queries.shape)} is empty; the best rate needs examples and queries."
        )
    _require_examples(x, y, queries)
    if target.shape != queries.shape[:2]:
        raise ShapeError(f"target must be (sequence, query), {tuple(queries.shape[:2])}; given {tuple(target.shape)}.")
    x, y, queries, target = (tensor.detach().double() for tensor in (x, y, queries, target))
    N = x.shape[1]
    # In the eigenbasis of the Gram matrix a step is elementwise, so that evaluating a rate is cheap.
    eigenvalues, directions = torch.linalg.eigh(x.mT @ x)
    if not eigenvalues.mean() > 0:
        raise NumericalError("all inputs in context are zero or NaN, so that no rate is better than another.")
    m = einsum(x, y, directions, "sequence point d, sequence point, sequence d direction -> sequence direction")
    reach = (queries @ directions) * m[:, None]
    error = _ErrorOfDescent(eigenvalues, reach, target, steps, plus_plus)
    # The error of GD++ has several local minima: the search starts from each minimum of a coarse grid, on a subset of
    # the sequences.
    subset = _ErrorOfDescent(eigenvalues[:_FEW], reach[:_FEW], target[:_FEW], steps, plus_plus)
    rates = torch.logspace(-2, 1, 61 if plus_plus else 25).double()
    gammas = torch.cat([torch.zeros(1), torch.logspace(-2, 0, 25)]).double() if plus_plus else torch.zeros(1).double()
    grid = torch.cartesian_prod(rates, gammas)
    errors = torch.stack([subset(settings) for settings in grid]).nan_to_num(nan=math.inf)
    starts = grid[_local_minima(errors.reshape(len(rates), len(gammas)), most=6)]
    best = min((subset.minimise(start) for start in starts), key=lambda settings: float(error(settings)))
    rate, gamma = (error.minimise(best) / eigenvalues.mean()).tolist()
    return DescentPlusPlus(steps, rate * N, gamma) if plus_plus else Descent(steps, rate * N)


_FEW = 2048
"""Sequences on which `best_descent` searches for local minima."""


@dataclass(frozen=True)
class _ErrorOfDescent:
    """Mean squared error as a function of rate / N and gamma, both in units of 1 / (mean eigenvalue)."""

    eigenvalues: Tensor
    """Eigenvalues of the Gram matrices, `(sequence, d)`."""
    reach: Tensor
    """Query inputs in the eigenbasis, times the moment, `(sequence, query, d)`; a prediction is `reach @ w`."""
    target: Tensor
    """Values that should be predicted, `(sequence, query)`."""
    steps: int
    plus_plus: bool

    def __call__(self, settings: Tensor) -> Tensor:
        rate, gamma = settings
        curvature = self.eigenvalues / self.eigenvalues.mean()
        w, H = torch.zeros_like(curvature), torch.ones_like(curvature)
        for _ in range(self.steps):
            w = w + rate * H * H * (1 - curvature * w)
            if self.plus_plus:
                H = H - gamma * H * H * H * curvature
        predicted = (self.reach @ w[..., None])[..., 0] / self.eigenvalues.mean()
        return (predicted - self.target).square().mean()

    def minimise(self, start: Tensor) -> Tensor:
        """Settings at the local minimum near `start`."""
        with torch.enable_grad():
            settings = start.clone().requires_grad_()
            optimizer = torch.optim.LBFGS([settings], max_iter=60, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                optimizer.zero_grad()
                loss = self(settings)
                loss.backward()
                return loss

            optimizer.step(closure)
        # Keep the start if the search diverged to where errors overflow.
        return settings.detach() if float(self(settings.detach())) <= float(self(start)) else start


def _local_minima(errors: Tensor, most: int) -> Tensor:
    """Indices into the flattened grid of entries no higher than their neighbours, the lowest first."""
    around = -F.max_pool2d(-errors.nan_to_num(posinf=1e300)[None], 3, stride=1, padding=1)[0]
    lowest = (errors <= around).flatten().nonzero()[:, 0]
    return lowest[errors.flatten()[lowest].argsort()[:most]]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _steps(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _require_examples(x: Tensor, y: Tensor, queries: Tensor) -> None:
    if x.dim() != 3 or y.shape != x.shape[:2] or queries.dim() != 3 or queries.shape[::2] != x.shape[::2]:
        raise ShapeError(
            "x must be (sequence, point, d), y (sequence, point) and queries (sequence, query, d); given "
            f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(queries.shape)}."
        )
