"""How strong the ridge is that a predictor is nearest to, and the ridge that errs least."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.lab.predictors import Ridge, by_point
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.studies.laboratory.causal_transformers import distance


@dataclass(frozen=True)
class RidgeProfile:
    """How far transformers are from ridge, by its strength."""

    strengths: list[float]
    """lambda, rising by a factor of 2^(1/4)."""
    apart: Tensor
    """SPD, `(strength, seed)`."""

    @property
    def nearest(self) -> list[float]:
        """By seed, the strength at which SPD is least; at the grid's ends a bound, as `at_most` and `at_least` say."""
        return [self.strengths[i] for i in self.apart.argmin(0).tolist()]

    @property
    def at_most(self) -> bool:
        """Whether in some seed no weaker ridge was tried than the nearest."""
        return min(self.nearest) == self.strengths[0]

    @property
    def at_least(self) -> bool:
        """Whether in some seed no stronger ridge was tried than the nearest."""
        return max(self.nearest) == self.strengths[-1]

    @property
    def bound(self) -> str:
        """Words before the mean of `nearest` where it is a bound; else empty."""
        if self.at_most and self.at_least:
            return "anything, for both ends of the grid are met, about "
        return "at most " if self.at_most else "at least " if self.at_least else ""


def ridge_profile(own: Tensor, sequences: Sequences, tasks: RegressionTasks) -> RidgeProfile:
    """SPD to ridge over points with an example before them, for strengths from d / 1024 to 16 d.

    Args:
        own: Predictions, `(seed, sequence, point)`.
        sequences: What was predicted.
        tasks: What they are drawn from.
    """
    strengths = [tasks.dimension * 2 ** (step / 4) for step in range(-40, 17)]
    apart = [
        distance(own, by_point(Ridge(strength), sequences.x, sequences.y))[:, 1:].mean(1) for strength in strengths
    ]
    return RidgeProfile(strengths, torch.stack(apart))


def best_strength(sequences: Sequences, about: float) -> float:
    """The lambda at which ridge errs least on these sequences, measured: by its squared error to the clean y.

    Errors are measured over points with an example before them, from a sixteenth of `about` to four times as much, by
    factors of 2^(1/4). Through the least and its two neighbours goes a parabola in log lambda, whose lowest place is
    the strength; a least at the grid's end is given as it is, a bound.

    Args:
        sequences: Noisy y and what they are without.
        about: Where to look.
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
    # Errors that are all one number have no lowest place between them.
    shift = (below - above) / (2 * curvature) if curvature > 0 else 0.0
    return math.exp(logs[least] + shift * (logs[1] - logs[0]))
