"""The strength of the ridge predictor nearest to a transformer, and the strength with the least error."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.lab.predictors import Ridge, by_point
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.studies.laboratory.causal_transformers import distance


@dataclass(frozen=True)
class RidgeProfile:
    """Distance of transformers to ridge, as a function of its strength."""

    strengths: list[float]
    """Values of lambda, increasing by factors of 2^(1/4)."""
    distances: Tensor
    """SPD to ridge, `(strength, seed)`."""

    @property
    def nearest(self) -> list[float]:
        """By seed, the strength with the least SPD. At an end of the grid it is a bound: see `at_most`, `at_least`."""
        return [self.strengths[i] for i in self.distances.argmin(0).tolist()]

    @property
    def at_most(self) -> bool:
        """Whether in some seed the nearest ridge is the weakest of the grid."""
        return min(self.nearest) == self.strengths[0]

    @property
    def at_least(self) -> bool:
        """Whether in some seed the nearest ridge is the strongest of the grid."""
        return max(self.nearest) == self.strengths[-1]

    @property
    def bound(self) -> str:
        """Words to put before the mean of `nearest` if it is only a bound; else empty."""
        if self.at_most and self.at_least:
            return "undetermined (both ends of the grid were reached), about "
        return "at most " if self.at_most else "at least " if self.at_least else ""


def ridge_profile(own: Tensor, sequences: Sequences, tasks: RegressionTasks) -> RidgeProfile:
    """SPD to ridge over points with an example before them, for strengths from d / 1024 to 16 d.

    Args:
        own: Predictions of the transformers, `(seed, sequence, point)`.
        sequences: Sequences that were predicted.
        tasks: Distribution of these sequences.
    """
    strengths = [tasks.dimension * 2 ** (step / 4) for step in range(-40, 17)]
    distances = [
        distance(own, by_point(Ridge(strength), sequences.x, sequences.y))[:, 1:].mean(1) for strength in strengths
    ]
    return RidgeProfile(strengths, torch.stack(distances))


def best_strength(sequences: Sequences, about: float) -> float:
    """The lambda at which ridge has the least squared error to the clean y, measured on these sequences.

    Errors are means over points with an example before them, on a grid from `about` / 16 to 4 `about` by factors of
    2^(1/4). The result is the minimum of the parabola in log lambda through the least error and its two neighbours. If
    the least error is at an end of the grid, that end is returned.

    Args:
        sequences: Sequences with noisy and clean y.
        about: Expected strength, the reference of the grid.
    """
    logs = [math.log(about) + step / 4 * math.log(2) for step in range(-16, 9)]

    def error(log: float) -> float:
        predicted = by_point(Ridge(math.exp(log)), sequences.x, sequences.y)
        return float((predicted - sequences.clean)[:, 1:].square().mean())

    errors = [error(log) for log in logs]
    least = min(range(len(logs)), key=errors.__getitem__)
    if least in (0, len(logs) - 1):
        return math.exp(logs[least])
    below, at, above = errors[least - 1 : least + 2]
    curvature = below - 2 * at + above
    # Three equal errors have no minimum.
    shift = (below - above) / (2 * curvature) if curvature > 0 else 0.0
    return math.exp(logs[least] + shift * (logs[1] - logs[0]))
