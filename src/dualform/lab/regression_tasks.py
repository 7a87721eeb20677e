"""Sequences of examples (x, y) for in-context regression; each sequence has its own function.

A predictor must predict y at a point from the examples before it, so that it has to infer the function from these
examples. The kind of function, the inputs, their covariance, the noise and the length can be set.
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from dualform.errors import ConfigError

Target = Literal["linear", "sparse", "network"]
"""A linear function, a linear function of a few coordinates, a two-layer ReLU network."""

Inputs = Literal["normal", "uniform"]


@dataclass(frozen=True)
class Sequences:
    """A batch of sequences."""

    x: Tensor
    """Inputs, `(sequence, point, d)`."""
    y: Tensor
    """Targets with noise, `(sequence, point)`."""
    clean: Tensor
    """Targets without noise, `(sequence, point)`."""
    w: Tensor | None
    """Weights of the function, `(sequence, d)`; None for a network."""


@dataclass(frozen=True)
class RegressionTasks:
    """A distribution of sequences. By default E x_i^2 = 1 and E y^2 = 1.

    Source:
        Linear, sparse and network targets, skewed covariance and noise: arXiv:2208.01066. Uniform
        inputs with weights of variance 1: arXiv:2212.07677, whose setting is `VON_OSWALD`.
    """

    dimension: int
    """d, the dimension of inputs."""
    points: int
    """Number of examples in a sequence; the last is the query."""
    target: Target = "linear"
    inputs: Inputs = "normal"
    """Distribution of each coordinate: standard normal, or uniform in (-0.5, 0.5)."""
    noise: float = 0.0
    """Standard deviation of the noise added to each y, in units of y."""
    condition: float = 1.0
    """Condition number of the inputs' covariance, at least 1. The eigenvalues are spaced geometrically, their sum does
    not depend on the condition number, and each sequence has its own eigenvectors."""
    weight_scale: float | None = None
    """Standard deviation of each weight (including the zeros of a sparse function), or of the weights of a network's
    first layer; None for 1 / sqrt(d)."""
    input_scale: float = 1.0
    """Factor by which inputs are multiplied before targets are computed."""
    sparsity: int = 3
    """Number of non-zero weights of a sparse function, at most d."""
    hidden: int = 32
    """Number of hidden units of a network."""

    def __post_init__(self) -> None:
        problems = [
            f"{name} is {given!r}, expected one of {', '.join(map(repr, known))}"
            for name, given, known in (
                ("target", self.target, get_args(Target)),
                ("inputs", self.inputs, get_args(Inputs)),
            )
            if given not in known
        ]
        problems += [
            f"{name} is {getattr(self, name)}, expected 1 or more"
            for name in ("dimension", "points", "condition", "hidden")
            if not 1 <= getattr(self, name) < math.inf
        ]
        problems += [
            f"{name} is {getattr(self, name)}, expected 0 or more"
            for name in ("noise", "weight_scale", "input_scale")
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < math.inf
        ]
        if self.target == "sparse" and not 1 <= self.sparsity <= self.dimension:
            problems.append(f"sparsity is {self.sparsity}, expected 1 to {self.dimension}, the dimension")
        if problems:
            raise ConfigError("invalid regression tasks: " + "; ".join(problems) + ".")

    @property
    def weight_deviation(self) -> float:
        """tau, the standard deviation of each weight."""
        return 1 / math.sqrt(self.dimension) if self.weight_scale is None else self.weight_scale

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Sequences:
        """Draw sequences on the generator's device.

        Args:
            n: Number of sequences.
            generator: Source of randomness.
            dtype: Dtype of the sequences; the same seed gives different numbers in another dtype.
        """
        d, device = self.dimension, generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype, device=device)

        if self.condition == 1:
            x = self._isotropic(n, generator, dtype)
        else:
            # Only for skewed inputs: rotating uniform inputs would change their distribution.
            directions = random_directions(n, d, generator, dtype)
            x = stretched(self._isotropic(n, generator, dtype), self.condition, directions)
        x = x * self.input_scale
        w = None
        if self.target == "network":
            first = normal(n, d, self.hidden) * self.weight_deviation
            # The ReLU removes half of a unit's mean square.
            second = normal(n, self.hidden, 1) * math.sqrt(2 / self.hidden)
            clean = ((x @ first).relu() @ second)[..., 0]
        else:
            w = normal(n, d) * self.weight_deviation
            if self.target == "sparse":
                w = w * self._sparse_mask(n, generator).to(dtype) * math.sqrt(d / self.sparsity)
            clean = (x @ w[..., None])[..., 0]
        y = clean + self.noise * normal(n, self.points) if self.noise else clean
        return Sequences(x, y, clean, w)

    def _isotropic(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        shape = (n, self.points, self.dimension)
        if self.inputs == "uniform":
            return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 0.5
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)

    def _sparse_mask(self, n: int, generator: torch.Generator) -> Tensor:
        """True at `sparsity` random coordinates of each sequence, `(sequence, d)`."""
        ranks = torch.rand(n, self.dimension, generator=generator, device=generator.device).argsort(-1).argsort(-1)
        return ranks < self.sparsity


VON_OSWALD = RegressionTasks(dimension=10, points=11, inputs="uniform", weight_scale=1.0)
"""The setting of arXiv:2212.07677 in its authors' released code: d = N = 10, x ~ U(-0.5, 0.5), W ~ N(0, 1)."""


def random_directions(n: int, d: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Random orthogonal matrices, `(sequence, d, d)`."""
    normal = torch.randn(n, d, d, generator=generator, dtype=dtype, device=generator.device)
    directions, _ = torch.linalg.qr(normal)
    return directions


def stretched(x: Tensor, condition: float, directions: Tensor) -> Tensor:
    """Isotropic inputs transformed to a covariance with a condition number and the same trace, `(sequence, point, d)`.

    Args:
        x: Inputs with the same variance in all coordinates, `(sequence, point, d)`.
        condition: Largest divided by smallest eigenvalue; the eigenvalues are spaced geometrically.
        directions: Eigenvectors of the covariance as columns, largest eigenvalue first, `(sequence, d, d)`.
    """
    d = x.shape[-1]
    scale = torch.logspace(0, -math.log10(condition), d, dtype=x.dtype, device=x.device) if d > 1 else x.new_ones(1)
    scale = scale * d / scale.sum()
    return x * scale.sqrt() @ directions.mT
