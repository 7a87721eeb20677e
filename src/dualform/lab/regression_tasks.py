"""Sequences of examples (x, y) of a function that is another in each sequence: what in-context regression learns from.

A predictor is shown the examples before a point and asked for the point's y, so that what it knows of the function is
what those examples have shown. Targets, inputs, their covariance, noise and length are free.
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
    """What was drawn."""

    x: Tensor
    """Inputs, `(sequence, point, d)`."""
    y: Tensor
    """What is shown of the targets, `(sequence, point)`, with noise."""
    clean: Tensor
    """The function itself at each input, `(sequence, point)`; `y` without its noise."""
    w: Tensor | None
    """Its weights, `(sequence, d)`; None for a network, which has no such vector."""


@dataclass(frozen=True)
class RegressionTasks:
    """A distribution of sequences; at the defaults inputs and targets have E x_i^2 = 1 and E y^2 = 1.

    Source:
        Linear, sparse and network targets, skewed covariance and noise: arXiv:2208.01066. Uniform
        inputs with weights of variance 1: arXiv:2212.07677, whose setting is `VON_OSWALD`.
    """

    dimension: int
    """d, of inputs."""
    points: int
    """Examples of a sequence, the last being the query."""
    target: Target = "linear"
    inputs: Inputs = "normal"
    """Standard normal, or uniform in (-0.5, 0.5), each coordinate by itself."""
    noise: float = 0.0
    """Standard deviation of what is added to each y, in units of y; `Sequences.clean` is without."""
    condition: float = 1.0
    """Largest over smallest eigenvalue of the inputs' covariance, at least 1. The others lie between on a geometric
    scale, in directions of each sequence's own, and their sum is as at 1."""
    weight_scale: float | None = None
    """Standard deviation of each weight, a sparse function's zeros included; None: 1 / sqrt(d). Of a network, that of
    its first layer's weights."""
    input_scale: float = 1.0
    """Inputs are multiplied by this, and their targets are those of the inputs so multiplied."""
    sparsity: int = 3
    """Weights of a sparse function that are not zero, at most d."""
    hidden: int = 32
    """Units of a network."""

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
            raise ConfigError("no such tasks: " + "; ".join(problems) + ".")

    @property
    def weight_deviation(self) -> float:
        """tau, the standard deviation of each weight."""
        return 1 / math.sqrt(self.dimension) if self.weight_scale is None else self.weight_scale

    def draw(self, n: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Sequences:
        """Sequences, each with a function and directions of its own, on the generator's device.

        Args:
            n: How many.
            generator: Draws.
            dtype: Of what is drawn; equal generators give other numbers in another dtype.
        """
        d, device = self.dimension, generator.device

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=dtype, device=device)

        if self.condition == 1:
            x = self._isotropic(n, generator, dtype)
        else:
            # Uniform inputs must not be turned where nothing is skewed: a turned cube is another distribution.
            directions = random_directions(n, d, generator, dtype)
            x = stretched(self._isotropic(n, generator, dtype), self.condition, directions)
        x = x * self.input_scale
        w = None
        if self.target == "network":
            first = normal(n, d, self.hidden) * self.weight_deviation
            # Half of a unit's mean square is cut off by the ReLU.
            second = normal(n, self.hidden, 1) * math.sqrt(2 / self.hidden)
            clean = ((x @ first).relu() @ second)[..., 0]
        else:
            w = normal(n, d) * self.weight_deviation
            if self.target == "sparse":
                w = w * self._kept(n, generator).to(dtype) * math.sqrt(d / self.sparsity)
            clean = (x @ w[..., None])[..., 0]
        y = clean + self.noise * normal(n, self.points) if self.noise else clean
        return Sequences(x, y, clean, w)

    def _isotropic(self, n: int, generator: torch.Generator, dtype: torch.dtype) -> Tensor:
        shape = (n, self.points, self.dimension)
        if self.inputs == "uniform":
            return torch.rand(shape, generator=generator, dtype=dtype, device=generator.device) - 0.5
        return torch.randn(shape, generator=generator, dtype=dtype, device=generator.device)

    def _kept(self, n: int, generator: torch.Generator) -> Tensor:
        """True at `sparsity` coordinates of each sequence, any as likely as another, `(sequence, d)`."""
        ranks = torch.rand(n, self.dimension, generator=generator, device=generator.device).argsort(-1).argsort(-1)
        return ranks < self.sparsity


VON_OSWALD = RegressionTasks(dimension=10, points=11, inputs="uniform", weight_scale=1.0)
"""The setting of arXiv:2212.07677 in its authors' released code: d = N = 10, x ~ U(-0.5, 0.5), W ~ N(0, 1)."""


def random_directions(n: int, d: int, generator: torch.Generator, dtype: torch.dtype = torch.float32) -> Tensor:
    """Orthogonal matrices, `(sequence, d, d)`, whose columns point anywhere."""
    drawn = torch.randn(n, d, d, generator=generator, dtype=dtype, device=generator.device)
    directions, _ = torch.linalg.qr(drawn)
    return directions


def stretched(x: Tensor, condition: float, directions: Tensor) -> Tensor:
    """Isotropic inputs with a covariance of a given condition number, its trace as before.

    Args:
        x: `(sequence, point, d)`, of one variance in all coordinates.
        condition: Largest over smallest eigenvalue; the others lie between on a geometric scale.
        directions: The covariance's eigenvectors, largest first, as columns, `(sequence, d, d)`.

    Returns:
        `(sequence, point, d)`.
    """
    d = x.shape[-1]
    scale = torch.logspace(0, -math.log10(condition), d, dtype=x.dtype, device=x.device) if d > 1 else x.new_ones(1)
    scale = scale * d / scale.sum()
    return x * scale.sqrt() @ directions.mT
