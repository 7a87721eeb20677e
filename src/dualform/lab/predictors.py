"""Exact predictors of in-context regression: what a model in context may turn out to do.

Each takes the examples of a context and predicts y at some inputs. Those that end in weights w, so that they
predict w x, know of the context only its size N, its Gram matrix G = sum x x^T and its moment m = sum y x; so all
prefixes of a sequence are fitted at once, from running sums.
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
    """A rule that goes from examples to predictions."""

    @property
    def name(self) -> str:
        """What it is called beside a curve."""
        ...

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`.

        Args:
            x: Inputs in context, `(sequence, point, d)`; there may be no point.
            y: Their targets, `(sequence, point)`.
            asked: Inputs whose y is asked for, `(sequence, query, d)`.
        """
        ...


class _Linear(ABC):
    """Predicts w x, with w from the context's size, Gram matrix and moment."""

    @abstractmethod
    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """w, `(..., d)`.

        Args:
            G: Sum of x x^T, `(..., d, d)`.
            m: Sum of y x, `(..., d)`.
            N: Examples in these sums, at least 1, broadcast to `(..., 1)`.
        """

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        _require_examples(x, y, asked)
        if x.shape[1] == 0:
            return asked.new_zeros(asked.shape[:2])
        m = einsum(y, x, "sequence point, sequence point d -> sequence d")
        w = self.weights(x.mT @ x, m, x.new_tensor([x.shape[1]]))
        return einsum(asked, w, "sequence query d, sequence d -> sequence query")

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """As the function `by_point`, all prefixes at once."""
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
    """Predicts zero, as nothing is known before an example is seen."""

    @property
    def name(self) -> str:
        """Beside a curve."""
        return "zero"

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        _require_examples(x, y, asked)
        return asked.new_zeros(asked.shape[:2])


@dataclass(frozen=True)
class NearestNeighbours:
    """The mean y of the k examples whose inputs are nearest; of all where there are fewer.

    Source:
        arXiv:2211.15661, k = 3; weights are scikit-learn's "distance", which the authors' released code asks for.
    """

    k: int = 3
    weighted: bool = True
    """By 1 / distance; an example at distance zero is then the only one that counts."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise ConfigError(f"k is {self.k}; expected 1 or more neighbours.")

    @property
    def name(self) -> str:
        """Beside a curve."""
        return f"{self.k} nearest neighbours" + ("" if self.weighted else ", unweighted")

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        _require_examples(x, y, asked)
        if x.shape[1] == 0:
            return asked.new_zeros(asked.shape[:2])
        # Not by matrix products, whose rounding would keep equal inputs from being at distance zero.
        apart = torch.cdist(asked, x, compute_mode="donot_use_mm_for_euclid_dist")
        near, which = apart.topk(min(self.k, x.shape[1]), dim=-1, largest=False)
        values = y[:, None].expand(*apart.shape).gather(-1, which)
        if not self.weighted:
            return values.mean(-1)
        same = near == 0
        weights = torch.where(same.any(-1, keepdim=True), same.to(near), 1 / near)
        return (values * weights).sum(-1) / weights.sum(-1)


@dataclass(frozen=True)
class OnePassSGD:
    """One step of gradient descent an example, in their order, on half its squared error, from w = 0.

    Source:
        arXiv:2211.15661, whose released code descends the whole squared error: its rate is half of this one.
    """

    rate: float

    @property
    def name(self) -> str:
        """Beside a curve."""
        return f"one pass of SGD, rate {self.rate:.3g}"

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        _require_examples(x, y, asked)
        w = x.new_zeros(x.shape[0], x.shape[2])
        for point in range(x.shape[1]):
            w = self._step(w, x[:, point], y[:, point])
        return einsum(asked, w, "sequence query d, sequence d -> sequence query")

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """As the function `by_point`, in one pass."""
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
    """Heavy ball's share of the last step that is taken again."""

    @property
    def name(self) -> str:
        """Beside a curve."""
        ball = f", momentum {self.momentum:.3g}" if self.momentum else ""
        return f"gradient descent, {_steps(self.steps)}, rate {self.rate:.3g}{ball}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """w, as of every linear predictor."""
        w = torch.zeros_like(m)
        moved = torch.zeros_like(m)
        for _ in range(self.steps):
            moved = self.momentum * moved - self.rate * (_times(G, w) - m) / N
            w = w + moved
        return w


@dataclass(frozen=True)
class DescentPlusPlus(_Linear):
    """GD++: descent on inputs that each step also transforms, x <- (I - gamma sum x x^T) x, the asked ones with them.

    A step moves the predictions by one step of descent on what the examples' inputs and residuals have become, and
    curvature is taken out of the inputs for the next. All transforms are polynomials in G, so that they commute and
    the whole is one w: with H the product of the transforms so far, w <- w + (rate / N) H^2 (m - G w) and
    H <- (I - gamma H^2 G) H.

    Source:
        arXiv:2212.07677, GD++. What it leaves open was found by experiment: queries are transformed as examples are,
        step and transform are both of the inputs that come in, gamma is shared by all steps. Of the conventions tried
        only this one has the losses known of it, .110 with 2 steps and .051 with 5 (`VON_OSWALD`, half the mean squared
        error). That gamma is not divided by N is a matter of units alone.
    """

    steps: int
    rate: float
    gamma: float

    @property
    def name(self) -> str:
        """Beside a curve."""
        return f"GD++, {_steps(self.steps)}, rate {self.rate:.3g}, gamma {self.gamma:.3g}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """w, as of every linear predictor."""
        w = torch.zeros_like(m)
        H = torch.eye(G.shape[-1]).to(G).expand_as(G)
        for _ in range(self.steps):
            w = w + self.rate / N * _times(H, _times(H, m - _times(G, w)))
            H = H - self.gamma * H @ H @ G @ H
        return w


@dataclass(frozen=True)
class Ridge(_Linear):
    """The w that has the least sum (w x - y)^2 + strength |w|^2."""

    strength: float

    def __post_init__(self) -> None:
        if not 0 < self.strength < math.inf:
            raise ConfigError(f"the strength of ridge is {self.strength}; expected above 0. At 0 it is LeastSquares().")

    @property
    def name(self) -> str:
        """Beside a curve."""
        return f"ridge {self.strength:.3g}"

    def weights(self, G: Tensor, m: Tensor, N: Tensor) -> Tensor:
        """w, as of every linear predictor."""
        return torch.linalg.solve(G + self.strength * torch.eye(G.shape[-1]).to(G), m[..., None])[..., 0]


@dataclass(frozen=True)
class LeastSquares:
    """The w that has the least sum (w x - y)^2, and of those the shortest: ridge as its strength goes to 0."""

    @property
    def name(self) -> str:
        """Beside a curve."""
        return "least squares"

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        _require_examples(x, y, asked)
        if x.shape[1] == 0:
            return asked.new_zeros(asked.shape[:2])
        return einsum(asked, shortest_fit(x, y), "sequence query d, sequence d -> sequence query")


@dataclass(frozen=True)
class Bayes:
    """The posterior mean for y = w x + noise with normal w: ridge at noise variance over the weights'."""

    noise: float
    """sigma, standard deviation of the noise in y."""
    weight_scale: float
    """tau, standard deviation of each weight."""

    def __post_init__(self) -> None:
        if not (self.noise >= 0 and self.weight_scale > 0):
            raise ConfigError(
                f"noise is {self.noise} and weight_scale {self.weight_scale}; expected 0 or more and above 0."
            )

    @property
    def name(self) -> str:
        """Beside a curve."""
        return "Bayes"

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, as of every `Predictor`."""
        return self._exact(x, y, asked)

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """As the function `by_point`."""
        return by_point(self._exact, x, y)

    @property
    def _exact(self) -> Ridge | LeastSquares:
        return Ridge(self.noise**2 / self.weight_scale**2) if self.noise else LeastSquares()


def by_point(predictor: Predictor, x: Tensor, y: Tensor) -> Tensor:
    """Predictions at each point from the points before it, `(sequence, point)`; the first from none.

    Args:
        predictor: Called at every point; one with a `by_point` of its own is called once.
        x: `(sequence, point, d)`.
        y: `(sequence, point)`.
    """
    _require_examples(x, y, x)
    own: Callable[[Tensor, Tensor], Tensor] | None = getattr(predictor, "by_point", None)
    if own is not None:
        return own(x, y)
    return torch.cat([predictor(x[:, :n], y[:, :n], x[:, n : n + 1]) for n in range(x.shape[1])], dim=1)


def errors_by_point(predicted: Tensor, target: Tensor) -> Tensor:
    """Mean squared error at each point over that of predicting zero, `(..., point)`.

    Args:
        predicted: `(..., sequence, point)`, such as of several seeds.
        target: `(sequence, point)`.
    """
    return (predicted - target).square().mean(-2) / target.square().mean()


def best_of(predictors: Iterable[Predictor], x: Tensor, y: Tensor, target: Tensor) -> Predictor:
    """The predictor with the least mean squared error over all points, each predicted from the points before.

    Errors should then be reported on other sequences than these.

    Args:
        predictors: Such as descent at several rates.
        x: `(sequence, point, d)`.
        y: Targets in context, `(sequence, point)`.
        target: What should be predicted, `(sequence, point)`.
    """

    def error(predictor: Predictor) -> float:
        found = (by_point(predictor, x, y) - target).square().mean()
        # A rate too large overflows; no number is worse.
        return float(found) if found.isfinite() else math.inf

    return min(predictors, key=error)


def shortest_fit(x: Tensor, y: Tensor) -> Tensor:
    """Least squares' w, and of several the shortest, `(sequence, d)`.

    Args:
        x: `(sequence, point, d)`.
        y: `(sequence, point)`.
    """
    # Of LAPACK's drivers the fastest that gives the shortest w where rows depend on one another; it runs on CPU only.
    return torch.linalg.lstsq(x.cpu(), y[..., None].cpu(), driver="gelsy").solution[..., 0].to(x)


def best_descent(
    x: Tensor, y: Tensor, asked: Tensor, target: Tensor, steps: int, plus_plus: bool = False
) -> Descent | DescentPlusPlus:
    """Descent with the rate, and GD++ with the rate and gamma, whose predictions are best on average over sequences.

    Args:
        x: Inputs in context, `(sequence, point, d)`.
        y: Their targets, `(sequence, point)`.
        asked: Inputs whose y is asked for, `(sequence, query, d)`.
        target: What is compared with, `(sequence, query)`.
        steps: Of descent; all share one rate (and gamma).
        plus_plus: GD++.

    Raises:
        ShapeError: There is nothing to predict, or nothing to predict it from.
        NumericalError: All inputs are zero, so that no rate is better than another.
    """
    if not asked.numel() or not x.numel():
        raise ShapeError(f"no rate is best for x {tuple(x.shape)} and asked {tuple(asked.shape)}; give some of each.")
    _require_examples(x, y, asked)
    if target.shape != asked.shape[:2]:
        raise ShapeError(f"target must be (sequence, query), {tuple(asked.shape[:2])}; given {tuple(target.shape)}.")
    x, y, asked, target = (tensor.detach().double() for tensor in (x, y, asked, target))
    N = x.shape[1]
    # In the Gram matrix's own directions every step is a product of numbers, so that a rate is tried in no time.
    eigenvalues, directions = torch.linalg.eigh(x.mT @ x)
    if not eigenvalues.mean() > 0:
        raise NumericalError("all inputs in context are zero or NaN, where no rate of descent is best.")
    m = einsum(x, y, directions, "sequence point d, sequence point, sequence d direction -> sequence direction")
    reach = (asked @ directions) * m[:, None]
    error = _ErrorOfDescent(eigenvalues, reach, target, steps, plus_plus)
    # Of GD++ the error has several valleys: each that a coarse grid shows is gone down, on some of the sequences.
    few = _ErrorOfDescent(eigenvalues[:_FEW], reach[:_FEW], target[:_FEW], steps, plus_plus)
    rates = torch.logspace(-2, 1, 61 if plus_plus else 25).double()
    gammas = torch.cat([torch.zeros(1), torch.logspace(-2, 0, 25)]).double() if plus_plus else torch.zeros(1).double()
    grid = torch.cartesian_prod(rates, gammas)
    errors = torch.stack([few(settings) for settings in grid]).nan_to_num(nan=math.inf)
    valleys = grid[_lowest_of_neighbours(errors.reshape(len(rates), len(gammas)), most=6)]
    found = min((few.descended(valley) for valley in valleys), key=lambda settings: float(error(settings)))
    rate, gamma = (error.descended(found) / eigenvalues.mean()).tolist()
    return DescentPlusPlus(steps, rate * N, gamma) if plus_plus else Descent(steps, rate * N)


_FEW = 2048
"""Sequences on which `best_descent` looks for valleys."""


@dataclass(frozen=True)
class _ErrorOfDescent:
    """Mean squared error by rate / N and gamma, each in units of one over the mean eigenvalue."""

    eigenvalues: Tensor
    """Of the Gram matrices, `(sequence, d)`."""
    reach: Tensor
    """What a weight of 1 in each direction adds to a prediction, over the moment there, `(sequence, query, d)`."""
    target: Tensor
    """`(sequence, query)`."""
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

    def descended(self, settings: Tensor) -> Tensor:
        """The bottom of the valley that these settings lie in."""
        with torch.enable_grad():
            found = settings.clone().requires_grad_()
            search = torch.optim.LBFGS([found], max_iter=60, line_search_fn="strong_wolfe")

            def again() -> Tensor:
                search.zero_grad()
                loss = self(found)
                loss.backward()
                return loss

            search.step(again)
        # A step out of the valley, to where errors overflow, is not taken.
        return found.detach() if float(self(found.detach())) <= float(self(settings)) else settings


def _lowest_of_neighbours(errors: Tensor, most: int) -> Tensor:
    """Which entries of a grid are no higher than those around them, as of its flattened form, the lowest first."""
    around = -F.max_pool2d(-errors.nan_to_num(posinf=1e300)[None], 3, stride=1, padding=1)[0]
    lowest = (errors <= around).flatten().nonzero()[:, 0]
    return lowest[errors.flatten()[lowest].argsort()[:most]]


def _times(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]


def _steps(steps: int) -> str:
    return "1 step" if steps == 1 else f"{steps} steps"


def _require_examples(x: Tensor, y: Tensor, asked: Tensor) -> None:
    if x.dim() != 3 or y.shape != x.shape[:2] or asked.dim() != 3 or asked.shape[::2] != x.shape[::2]:
        raise ShapeError(
            "x must be (sequence, point, d), y (sequence, point) and asked (sequence, query, d); given "
            f"{tuple(x.shape)}, {tuple(y.shape)} and {tuple(asked.shape)}."
        )
