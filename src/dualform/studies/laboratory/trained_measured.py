"""Self-attention that was trained on in-context regression, next to descent: the numbers of the study `trained`."""

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
"""Losses of descent by steps and whether it is GD++, at d = N = 10, in the released code's units."""
SEQUENCES = 4096
"""New tasks on which models of a seed are measured, each with `QUERIES` inputs asked for."""
CHARTED = 1024
"""How many of them a curve's point is made from."""
TUNED = 16384
"""Tasks on which the best rates of descent are found, others than those on which it is then measured."""
EXPLODED = 1e6
"""Reported instead of any larger loss: layers that multiply what they read can reach any number on one sequence."""
Kind = tuple[int, bool]
"""Steps, and whether it is GD++."""
_FEW = 2048
"""Tasks on which `median_rates` looks for where to begin."""
_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


@dataclass(frozen=True)
class Architecture:
    """A model that is trained, and how."""

    name: str
    layers: int
    steps: int
    learning_rate: float = 0.003
    batch: int = BATCH
    recurrent: bool = False
    softmax: bool = False

    def config(self, dimension: int) -> SelfAttentionConfig:
        """The model's shape."""
        return SelfAttentionConfig(dimension, self.layers, recurrent=self.recurrent, softmax=self.softmax)

    @property
    def plus_plus(self) -> bool:
        """Whether its construction is GD++; one step of it is one of GD, as only later ones see other inputs."""
        return self.layers > 1


ONE = Architecture("1 layer", 1, 2000)
TWO = Architecture("2 layers, recurrent", 2, 4000, learning_rate=0.006, batch=3 * BATCH, recurrent=True)
FIVE = Architecture("5 layers", 5, 2000, learning_rate=0.002, batch=2 * BATCH)
SOFTMAX = Architecture("1 softmax layer", 1, 800, learning_rate=0.01, softmax=True)
ARCHITECTURES = (ONE, TWO, FIVE, SOFTMAX)
LINEAR = (ONE, TWO, FIVE)
INTERPOLATED = (ONE, TWO)
"""Those of which every layer is a step. Layers with weights of their own may share out the work in other ways, and are
then not on a line with the construction."""


@dataclass(frozen=True)
class NewTasks:
    """Tasks that no model of the seed was trained on."""

    x: Tensor
    y: Tensor
    asked: Tensor
    target: Tensor

    def few(self, n: int) -> "NewTasks":
        """The first of them."""
        return NewTasks(self.x[:n], self.y[:n], self.asked[:n], self.target[:n])

    @property
    def charted(self) -> "NewTasks":
        """As many as a curve's point is made from."""
        return self.few(CHARTED)

    def scaled(self, scale: float) -> "NewTasks":
        """Inputs this much larger, of the same functions."""
        return NewTasks(self.x * scale, self.y * scale, self.asked * scale, self.target * scale)

    def permuted(self) -> "NewTasks":
        """In context, each y with its neighbour's x."""
        return replace(self, y=self.y.roll(1, dims=1))

    def loss(self, predictor: PredictFunction) -> float:
        """Half the mean squared error, at most `EXPLODED`."""
        with torch.no_grad():
            return capped(float((predictor(self.x, self.y, self.asked) - self.target).square().mean()) / 2)

    def median_loss(self, predictor: PredictFunction) -> float:
        """That of the median sequence, which no rare one can move, at most `EXPLODED`."""
        with torch.no_grad():
            errors = (predictor(self.x, self.y, self.asked) - self.target).square().mean(1)
        return capped(float(errors.median()) / 2)

    def gain(self, best: PredictFunction) -> float:
        """What a predictor's loss is lower by than that of predicting 0."""
        return self.loss(Zero()) - self.loss(best)


def capped(number: float) -> float:
    """At most `EXPLODED`, which stands for NaN as well."""
    return number if number < EXPLODED else EXPLODED


@dataclass(frozen=True)
class PredictionDistance:
    """How far apart two predictors are on the same tasks."""

    prediction: float
    """Mean distance of predictions, |y - y'|."""
    cosine: float
    """Mean cosine of sensitivities dy/dx."""
    sensitivity: float
    """Mean L2 distance of sensitivities."""


def tasks_of(config: RegressionConfig) -> RegressionTasks:
    """The paper's, with the dimension and the examples that are asked for, and a query."""
    return replace(VON_OSWALD, dimension=config.dimension, points=config.points + 1)


def new_tasks(purpose: str, seed: int, tasks: RegressionTasks, *, many: bool = False) -> NewTasks:
    """Tasks of a stream of their own, so that none is one that was trained on, or drawn for another purpose.

    Args:
        purpose: Name of the stream.
        seed: Seed of the stream.
        tasks: What they are drawn from.
        many: `TUNED` rather than `SEQUENCES`.
    """
    context, n = tasks.points - 1, TUNED if many else SEQUENCES
    drawn = replace(tasks, points=context + QUERIES).draw(n, stream(purpose, seed), torch.float64)
    return NewTasks(drawn.x[:, :context], drawn.y[:, :context], drawn.x[:, context:], drawn.clean[:, context:])


def best_rates(tasks: RegressionTasks) -> dict[Kind, Descent | DescentPlusPlus]:
    """Descent of every kind in `ANCHORS`, with the rate (and gamma) that is best on tasks drawn for this alone."""
    new = new_tasks("tuning", 0, tasks, many=True)
    return {kind: best_descent(new.x, new.y, new.asked, new.target, *kind) for kind in ANCHORS}


def median_rates(tasks: RegressionTasks, start: Descent | DescentPlusPlus) -> Descent | DescentPlusPlus:
    """The same descent with the rate (and gamma) whose loss on the median of the tasks of `best_rates` is least.

    A rate that is best on average is held back by rare tasks, on which a higher one diverges; the median is not.

    Args:
        tasks: What they are like.
        start: Descent that is best on average; all between a third of its settings and three times them is looked at.
    """
    new = new_tasks("tuning", 0, tasks, many=True)
    few = new.few(_FEW)
    names = ("rate", "gamma") if isinstance(start, DescentPlusPlus) else ("rate",)

    def times(factors: Sequence[float]) -> Descent | DescentPlusPlus:
        changed = {name: getattr(start, name) * factor for name, factor in zip(names, factors, strict=True)}
        return replace(start, **changed)

    grid = itertools.product(_FACTORS, repeat=len(names))
    first = min(grid, key=lambda factors: few.median_loss(times(factors)))
    # Nelder and Mead's search needs no gradient, which a median has only between its kinks.
    found = optimize.minimize(
        lambda factors: new.median_loss(times(factors)),
        first,
        method="Nelder-Mead",
        options={"xatol": 1e-3, "fatol": 1e-6, "maxfev": 60},
    )
    return times([float(factor) for factor in found.x])


@dataclass
class TrainedMeasurements:
    """Everything that was measured, each number once."""

    config: RegressionConfig
    models: Mapping[Architecture, TrainedModels]
    """None of an architecture whose training failed."""
    best: Mapping[Kind, Descent | DescentPlusPlus]
    for_median: Descent | DescentPlusPlus
    """The construction of `FIVE`, best on the median task."""
    new: Mapping[int, NewTasks]

    def __post_init__(self) -> None:
        self.loss = {
            one: [new.loss(self.model(one, seed).ask) for seed, new in self.new.items()] for one in self.models
        }
        self.median = {
            one: [new.median_loss(self.model(one, seed).ask) for seed, new in self.new.items()] for one in self.models
        }
        self.descent = {kind: [new.loss(best) for new in self.new.values()] for kind, best in self.best.items()}
        self.descent_median = [new.median_loss(self.for_median) for new in self.new.values()]
        self.beside = {
            (one, kind): [beside(self.model(one, seed).ask, self.best[kind], new) for seed, new in self.new.items()]
            for one in self.models
            for kind in counterparts(one)
        }

    def model(self, architecture: Architecture, seed: int, time: int = -1) -> InContextTransformer:
        """In float64, so that only training is inexact."""
        return self.models[architecture].model(seed, time).double().eval().requires_grad_(False)

    def cosine(self, architecture: Architecture) -> list[float]:
        """To its construction, by seed; none of one that was not trained."""
        return [one.cosine for one in self.beside.get((architecture, construction(architecture)), [])]

    def off(self, losses: Sequence[float], wanted: PredictFunction, charted: bool = False) -> list[float]:
        """How far losses, one a seed, are above those of a predictor, over what one step of descent gains.

        Args:
            losses: None where nothing was trained.
            wanted: The predictor that should have these losses.
            charted: Whether they are of as many tasks as a curve's point is made from, instead of all.
        """
        if not losses:
            return []
        measured = [new.charted if charted else new for new in self.new.values()]
        best = self.best[1, False]
        return [(loss - new.loss(wanted)) / new.gain(best) for loss, new in zip(losses, measured, strict=True)]


def counterparts(architecture: Architecture) -> list[Kind]:
    """The descents with as many steps as there are layers."""
    return [(architecture.layers, plus_plus) for plus_plus in (False, True) if plus_plus <= architecture.plus_plus]


def construction(architecture: Architecture) -> Kind:
    """The best descent that as many layers can do."""
    return architecture.layers, architecture.plus_plus


def beside(one: PredictFunction, other: PredictFunction, new: NewTasks) -> PredictionDistance:
    """Two predictors compared as in the paper, means over sequences and queries."""
    with torch.no_grad():
        predictions = [predictor(new.x, new.y, new.asked) for predictor in (one, other)]
    own, others = (sensitivities(predictor, new.x, new.y, new.asked) for predictor in (one, other))
    return PredictionDistance(
        prediction=capped(float((predictions[0] - predictions[1]).abs().mean())),
        cosine=float(F.cosine_similarity(own, others, dim=-1).mean()),
        sensitivity=capped(float((own - others).norm(dim=-1).mean())),
    )


def between(
    model: InContextTransformer, kind: Descent | DescentPlusPlus, n_context: int, share: float
) -> PredictFunction:
    """The predictor whose products of weights are a share of the way from the trained to the constructed ones.

    P W_V and W_K^T W_Q of each layer are interpolated and not their factors, of which many do the same; the scale that
    the two can trade is fixed by `Products.balanced` first.
    """
    gamma = kind.gamma if isinstance(kind, DescentPlusPlus) else 0.0
    layers = model.config.layers
    built = Products.of_descent(model.config.dimension, layers, kind.rate, gamma, n_context)
    mixed = model.products().balanced().towards(built, share)
    return lambda x, y, asked: mixed(x[None], y[None], asked[None])[0]


def between_loss(found: TrainedMeasurements, architecture: Architecture, share: float) -> list[float]:
    """Loss of `between` on `CHARTED` tasks, by seed; none of an architecture that was not trained."""
    if architecture not in found.models:
        return []
    best, n = found.best[construction(architecture)], found.config.points
    return [
        new.charted.loss(between(found.model(architecture, seed), best, n, share)) for seed, new in found.new.items()
    ]


def descent_name(kind: Kind) -> str:
    """Such as `GD++, 2 steps`."""
    layers, plus_plus = kind
    return f"{'GD++' if plus_plus else 'GD'}, {layers} {'step' if layers == 1 else 'steps'}"
