"""Measurements of the study `phases`: transformers of each depth, width and noise, and exact predictors."""

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
from dualform.studies.laboratory.causal_transformers import (
    TransformerShape,
    best_rate,
    distance,
    draw_sequences,
    predictions,
)

DEPTHS = (1, 2, 4)
WIDTHS = (16, 32)
NOISES = (0.5, 1.0)
"""Standard deviations of the noise, in units of y. The deepest and widest shape is also trained with each of them."""
SHAPES = tuple(TransformerShape(layers, width) for width in WIDTHS for layers in DEPTHS)
NOISY = tuple(TransformerShape(max(DEPTHS), max(WIDTHS), noise) for noise in NOISES)


@dataclass(frozen=True)
class PhaseComparison:
    """A transformer's predictions and those of exact predictors on the same sequences."""

    shape: TransformerShape
    tasks: RegressionTasks
    sequences: Sequences
    own: Tensor
    """Predictions of the transformers, `(seed, sequence, point)`."""
    predictors: dict[str, Predictor]
    """Exact predictors by name."""
    exact: dict[str, Tensor]
    """Predictions of the exact predictors, each `(sequence, point)`."""

    @property
    def theory(self) -> float:
        """sigma^2 / tau^2, the strength lambda at which ridge is the Bayes predictor."""
        return self.shape.noise**2 / self.tasks.weight_deviation**2

    def spd(self, name: str) -> list[float]:
        """By seed, mean squared difference to an exact predictor over points with at least one example before them."""
        return distance(self.own, self.exact[name])[:, 1:].mean(1).tolist()

    def nearest(self, seed: int | None = None) -> str:
        """The exact predictor with the least SPD, averaged over seeds or for the seed with this index."""
        spd = {name: self.spd(name) for name in self.exact}
        return min(spd, key=lambda name: math.fsum(spd[name]) if seed is None else spd[name][seed])


def compare(model: Decoders, shape: TransformerShape, tasks: RegressionTasks) -> PhaseComparison:
    """Compare trained transformers with all exact predictors on test sequences."""
    sequences, tuning = draw_sequences(tasks), draw_sequences(tasks, purpose="tuning")
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
    exact = {name: by_point(predictor, sequences.x, sequences.y) for name, predictor in predictors.items()}
    return PhaseComparison(shape, tasks, sequences, predictions(model, sequences), predictors, exact)


def _steps(k: int) -> str:
    return "1 step" if k == 1 else f"{k} steps"


def widest(comparisons: Sequence[PhaseComparison]) -> list[PhaseComparison]:
    """Comparisons of the largest width."""
    return [comparison for comparison in comparisons if comparison.shape.width == max(WIDTHS)]
