"""Transformers of every depth, width and noise, compared with exact predictors: the numbers of the study `phases`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from dualform.lab.decoder import Decoders
from dualform.lab.predictors import (
    Bayes,
    Descent,
    LeastSquares,
    NearestNeighbours,
    OnePassSGD,
    Predictor,
    Ridge,
    by_point,
)
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.studies.laboratory.causal_transformers import TransformerShape, best_rate, distance, drawn, predictions

DEPTHS = (1, 2, 4)
WIDTHS = (16, 32)
NOISES = (0.5, 1.0)
"""Standard deviations of the noise, in units of y; as many transformers of the deepest, widest shape learn with it."""
SHAPES = tuple(TransformerShape(layers, width) for width in WIDTHS for layers in DEPTHS)
NOISY = tuple(TransformerShape(max(DEPTHS), max(WIDTHS), noise) for noise in NOISES)


@dataclass(frozen=True)
class PhaseComparison:
    """A transformer's predictions and those of exact predictors on the same sequences."""

    shape: TransformerShape
    tasks: RegressionTasks
    sequences: Sequences
    own: Tensor
    """`(seed, sequence, point)`."""
    predictors: dict[str, Predictor]
    exact: dict[str, Tensor]
    """Their predictions, each `(sequence, point)`."""

    @property
    def theory(self) -> float:
        """sigma^2 / tau^2, lambda of the ridge that is Bayes."""
        return self.shape.noise**2 / self.tasks.weight_deviation**2

    def spd(self, name: str) -> list[float]:
        """Mean squared difference to a predictor over points with an example before them, by seed."""
        return distance(self.own, self.exact[name])[:, 1:].mean(1).tolist()

    def nearest(self, seed: int | None = None) -> str:
        """The exact predictor to which SPD is least, on average or for the seed of a number."""
        spd = {name: self.spd(name) for name in self.exact}
        return min(spd, key=lambda name: math.fsum(spd[name]) if seed is None else spd[name][seed])


def compare(model: Decoders, shape: TransformerShape, tasks: RegressionTasks) -> PhaseComparison:
    """Predictions of trained transformers and of all exact predictors."""
    sequences, tuning = drawn(tasks), drawn(tasks, purpose="tuning")
    predictors: dict[str, Predictor] = {
        "3 nearest neighbours": NearestNeighbours(3),
        "one pass of SGD": best_rate(OnePassSGD, tuning),
        **{f"descent, {_steps(k)}": best_rate(partial(Descent, k), tuning) for k in DEPTHS},
        "ridge 0.1": Ridge(0.1),
        "ridge 1": Ridge(1.0),
        "least squares": LeastSquares(),
    }
    if shape.noise:
        predictors["Bayes"] = Bayes(shape.noise, tasks.weight_deviation)
    exact = {name: by_point(one, sequences.x, sequences.y) for name, one in predictors.items()}
    return PhaseComparison(shape, tasks, sequences, predictions(model, sequences), predictors, exact)


def _steps(k: int) -> str:
    return "1 step" if k == 1 else f"{k} steps"


def widest(silent: Sequence[PhaseComparison]) -> list[PhaseComparison]:
    """Those of the largest width."""
    return [one for one in silent if one.shape.width == max(WIDTHS)]
