"""Measurements of the study `trained`: self-attention trained on in-context regression, and gradient descent."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor

from dualform.lab.in_context_training import BATCH, QUERIES, TrainedModels
from dualform.lab.predictors import Descent, DescentPlusPlus, Zero, best_descent
from dualform.lab.regression_tasks import VON_OSWALD, RegressionTasks
from dualform.lab.self_attention import (
    InContextTransformer,
    PredictFunction,
    Products,
    SelfAttentionConfig,
    sensitivities,
)
from dualform.ops.streams import stream
from dualform.studies.laboratory.config import RegressionConfig

ANCHORS = {(1, False): 0.207, (2, False): 0.155, (5, False): 0.108, (2, True): 0.110, (5, True): 0.051}
"""Published losses of gradient descent, by (steps, whether it is GD++), for d = N = 10 in the released code's units."""
SEQUENCES = 4096
"""Number of new tasks on which the models of a seed are evaluated, each with `QUERIES` queries."""
CHARTED = 1024
"""Number of these tasks used for each point of a chart."""
TUNED = 16384
"""Number of tasks on which rates are chosen; losses are measured on others."""
EXPLODED = 1e6
"""Largest loss that is reported: layers that multiply by their inputs can produce any number on a rare sequence."""
Kind = tuple[int, bool]
"""Number of steps, and whether it is GD++."""
_FEW = 2048
"""Number of tasks on which `median_rates` searches for its starting point."""
_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


@dataclass(frozen=True)
class Architecture:
    """A model to be trained, with its training settings."""

    name: str
    layers: int
    steps: int
    learning_rate: float = 0.003
    batch: int = BATCH
    recurrent: bool = False
    softmax: bool = False

    def config(self, dimension: int) -> SelfAttentionConfig:
        """Shape of the model for inputs of a dimension."""
        return SelfAttentionConfig(dimension, self.layers, recurrent=self.recurrent, softmax=self.softmax)

    @property
    def plus_plus(self) -> bool:
        """Whether its construction is GD++. With one layer GD and GD++ are the same."""
        return self.layers > 1


ONE = Architecture("1 layer", 1, 2000)
TWO = Architecture("2 layers, recurrent", 2, 4000, learning_rate=0.006, batch=3 * BATCH, recurrent=True)
FIVE = Architecture("5 layers", 5, 2000, learning_rate=0.002, batch=2 * BATCH)
SOFTMAX = Architecture("1 softmax layer", 1, 800, learning_rate=0.01, softmax=True)
ARCHITECTURES = (ONE, TWO, FIVE, SOFTMAX)
LINEAR = (ONE, TWO, FIVE)
INTERPOLATED = (ONE, TWO)
"""Architectures whose weights are interpolated with the construction's. Five layers with separate weights may divide
the work differently, so that interpolating them has no meaning."""


@dataclass(frozen=True)
class NewTasks:
    """Tasks that no model of the seed was trained on."""

    x: Tensor
    """Inputs in context, `(sequence, point, d)`."""
    y: Tensor
    """Targets in context, `(sequence, point)`."""
    queries: Tensor
    """Query inputs, `(sequence, query, d)`."""
    target: Tensor
    """Targets of the queries, `(sequence, query)`."""

    def first(self, n: int) -> "NewTasks":
        """The first `n` tasks."""
        return NewTasks(self.x[:n], self.y[:n], self.queries[:n], self.target[:n])

    @property
    def charted(self) -> "NewTasks":
        """The first `CHARTED` tasks."""
        return self.first(CHARTED)

    def scaled(self, scale: float) -> "NewTasks":
        """The same functions with inputs multiplied by `scale`."""
        return NewTasks(self.x * scale, self.y * scale, self.queries * scale, self.target * scale)

    def permuted(self) -> "NewTasks":
        """The same tasks with each y in context paired with the next point's x."""
        return replace(self, y=self.y.roll(1, dims=1))

    def loss(self, predictor: PredictFunction) -> float:
        """Half the mean squared error, at most `EXPLODED`."""
        with torch.no_grad():
            return capped(float((predictor(self.x, self.y, self.queries) - self.target).square().mean()) / 2)

    def median_loss(self, predictor: PredictFunction) -> float:
        """Loss on the median sequence, which rare sequences do not affect; at most `EXPLODED`."""
        with torch.no_grad():
            errors = (predictor(self.x, self.y, self.queries) - self.target).square().mean(1)
        return capped(float(errors.median()) / 2)

    def gain(self, best: PredictFunction) -> float:
        """How much lower a predictor's loss is than that of predicting 0."""
        return self.loss(Zero()) - self.loss(best)


def capped(number: float) -> float:
    """The number, or `EXPLODED` if it is larger or NaN."""
    return number if number < EXPLODED else EXPLODED


@dataclass(frozen=True)
class PredictionDistance:
    """Distances between two predictors on the same tasks."""

    prediction: float
    """Mean distance of predictions, |y - y'|."""
    cosine: float
    """Mean cosine of sensitivities dy/dx."""
    sensitivity: float
    """Mean L2 distance of sensitivities."""


def tasks_of(config: RegressionConfig) -> RegressionTasks:
    """The paper's distribution of tasks, with the dimension and number of examples of the settings, and one query."""
    return replace(VON_OSWALD, dimension=config.dimension, points=config.points + 1)


def new_tasks(purpose: str, seed: int, tasks: RegressionTasks, *, many: bool = False) -> NewTasks:
    """Tasks from their own random stream, so that none is used for training or for another purpose.

    Args:
        purpose: Name of the stream.
        seed: Seed of the stream.
        tasks: Distribution of the tasks.
        many: Whether to draw `TUNED` tasks instead of `SEQUENCES`.
    """
    context, n = tasks.points - 1, TUNED if many else SEQUENCES
    sequences = replace(tasks, points=context + QUERIES).draw(n, stream(purpose, seed), torch.float64)
    x, y, clean = sequences.x, sequences.y, sequences.clean
    return NewTasks(x[:, :context], y[:, :context], x[:, context:], clean[:, context:])


def best_rates(tasks: RegressionTasks) -> dict[Kind, Descent | DescentPlusPlus]:
    """Gradient descent of each kind in `ANCHORS`, with the best rate (and gamma) on tasks drawn for this purpose."""
    new = new_tasks("tuning", 0, tasks, many=True)
    return {kind: best_descent(new.x, new.y, new.queries, new.target, *kind) for kind in ANCHORS}


def median_rates(tasks: RegressionTasks, start: Descent | DescentPlusPlus) -> Descent | DescentPlusPlus:
    """The same descent with the rate (and gamma) that has the least loss on the median of the tasks of `best_rates`.

    On average over tasks the best rate is limited by rare tasks on which a higher rate diverges; on the median task it
    is not.

    Args:
        tasks: Distribution of the tasks.
        start: Descent that is best on average. The search covers about a third to three times its rate and gamma.
    """
    new = new_tasks("tuning", 0, tasks, many=True)
    few = new.first(_FEW)
    names = ("rate", "gamma") if isinstance(start, DescentPlusPlus) else ("rate",)

    def scaled(factors: Sequence[float]) -> Descent | DescentPlusPlus:
        changed = {name: getattr(start, name) * factor for name, factor in zip(names, factors, strict=True)}
        return replace(start, **changed)

    grid = itertools.product(_FACTORS, repeat=len(names))
    first = min(grid, key=lambda factors: few.median_loss(scaled(factors)))
    # Nelder-Mead needs no gradient; the median is only piecewise smooth.
    minimum = optimize.minimize(
        lambda factors: new.median_loss(scaled(factors)),
        first,
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-6, "maxfev": 60},
    )
    return scaled([float(factor) for factor in minimum.x])


@dataclass
class TrainedMeasurements:
    """All measurements of the study, computed once; lists have one value a seed."""

    config: RegressionConfig
    models: Mapping[Architecture, TrainedModels]
    """Trained models; an architecture whose training failed is missing."""
    best: Mapping[Kind, Descent | DescentPlusPlus]
    """Gradient descent of each kind, best on average over tasks."""
    for_median: Descent | DescentPlusPlus
    """The construction of `FIVE`, best on the median task."""
    new: Mapping[int, NewTasks]
    """New tasks of each seed."""

    def __post_init__(self) -> None:
        self.loss: dict[Architecture, list[float]] = {}
        self.median: dict[Architecture, list[float]] = {}
        self.distances: dict[tuple[Architecture, Kind], list[PredictionDistance]] = {}
        for architecture in self.models:
            predictors = {seed: self.model(architecture, seed).predict for seed in self.new}
            self.loss[architecture] = [new.loss(predictors[seed]) for seed, new in self.new.items()]
            self.median[architecture] = [new.median_loss(predictors[seed]) for seed, new in self.new.items()]
            for kind in counterparts(architecture):
                self.distances[architecture, kind] = [
                    prediction_distance(predictors[seed], self.best[kind], new) for seed, new in self.new.items()
                ]
        self.descent = {kind: [new.loss(best) for new in self.new.values()] for kind, best in self.best.items()}
        self.descent_median = [new.median_loss(self.for_median) for new in self.new.values()]

    def model(self, architecture: Architecture, seed: int, time: int = -1) -> InContextTransformer:
        """The model of a seed in float64; `time` is an index into `TrainedModels.at`."""
        return self.models[architecture].model(seed, time).double().eval().requires_grad_(False)

    def cosine(self, architecture: Architecture) -> list[float]:
        """Cosine of sensitivities to the construction's, by seed; empty if the architecture was not trained."""
        return [distance.cosine for distance in self.distances.get((architecture, construction(architecture)), [])]

    def excess(self, losses: Sequence[float], predictor: PredictFunction, charted: bool = False) -> list[float]:
        """By seed, loss minus the loss of a predictor, as a share of what one step of descent gains on predicting 0.

        Args:
            losses: One a seed; empty if nothing was trained.
            predictor: Predictor whose losses are subtracted.
            charted: Whether the losses were measured on the first `CHARTED` tasks only.
        """
        if not losses:
            return []
        measured = [new.charted if charted else new for new in self.new.values()]
        best = self.best[1, False]
        return [(loss - new.loss(predictor)) / new.gain(best) for loss, new in zip(losses, measured, strict=True)]


def counterparts(architecture: Architecture) -> list[Kind]:
    """Kinds of descent with as many steps as the architecture has layers."""
    return [(architecture.layers, plus_plus) for plus_plus in (False, True) if plus_plus <= architecture.plus_plus]


def construction(architecture: Architecture) -> Kind:
    """The kind of descent that the architecture's layers can be constructed to do."""
    return architecture.layers, architecture.plus_plus


def prediction_distance(a: PredictFunction, b: PredictFunction, new: NewTasks) -> PredictionDistance:
    """Distances between two predictors as in the paper, means over sequences and queries."""
    with torch.no_grad():
        predictions = [predictor(new.x, new.y, new.queries) for predictor in (a, b)]
    own, others = (sensitivities(predictor, new.x, new.y, new.queries) for predictor in (a, b))
    return PredictionDistance(
        prediction=capped(float((predictions[0] - predictions[1]).abs().mean())),
        cosine=float(F.cosine_similarity(own, others, dim=-1).mean()),
        sensitivity=capped(float((own - others).norm(dim=-1).mean())),
    )


def between(
    model: InContextTransformer, kind: Descent | DescentPlusPlus, n_context: int, share: float
) -> PredictFunction:
    """The predictor whose weights are interpolated between the trained and the constructed ones.

    The products P W_V and W_K^T W_Q of each layer are interpolated, because many different factors have the same
    product. Their relative scale is fixed by `Products.balanced` first.
    """
    gamma = kind.gamma if isinstance(kind, DescentPlusPlus) else 0.0
    layers = model.config.layers
    constructed = Products.of_descent(model.config.dimension, layers, kind.rate, gamma, n_context)
    products = model.products().balanced().towards(constructed, share)
    return lambda x, y, queries: products(x[None], y[None], queries[None])[0]


def between_loss(measurements: TrainedMeasurements, architecture: Architecture, share: float) -> list[float]:
    """Loss of `between` on `CHARTED` tasks, by seed; empty if the architecture was not trained."""
    if architecture not in measurements.models:
        return []
    best, n = measurements.best[construction(architecture)], measurements.config.points
    return [
        new.charted.loss(between(measurements.model(architecture, seed), best, n, share))
        for seed, new in measurements.new.items()
    ]


def descent_name(kind: Kind) -> str:
    """Such as `GD++, 2 steps`."""
    layers, plus_plus = kind
    return f"{'GD++' if plus_plus else 'GD'}, {layers} {'step' if layers == 1 else 'steps'}"
