"""Does self-attention, trained on in-context regression, do what gradient descent on the examples does?

Trained linear self-attention stands beside as many steps of gradient descent as it has layers, on tasks that it was not
trained on: what each predicts, how the prediction moves with the query, what weights between the two do, and what
becomes of both where inputs are larger or smaller than any seen in training.

Source:
    arXiv:2212.07677v2, section 3 and appendix A, with the setting of the authors' released code: d = N = 10, inputs
    uniform in (-0.5, 0.5), weights of variance 1, loss half the mean squared error.
"""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from scipy import optimize
from torch import Tensor

from dualform.errors import TrainingError
from dualform.lab.in_context_training import BATCH, QUERIES, Trained, self_attention_training, train_together
from dualform.lab.predictors import Descent, DescentPlusPlus, Zero, best_descent
from dualform.lab.regression_tasks import VON_OSWALD, RegressionTasks
from dualform.lab.self_attention import (
    Asked,
    InContextTransformer,
    Products,
    SelfAttentionConfig,
    sensitivities,
)
from dualform.ops.streams import stream
from dualform.result import Estimate
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.result import Claim, LabChart, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.pieces import Cells, Piece
from dualform.studies.seed_statistics import over_seeds

SOURCE = "arXiv:2212.07677, section 3"
ANCHORS = {(1, False): 0.207, (2, False): 0.155, (5, False): 0.108, (2, True): 0.110, (5, True): 0.051}
"""Losses of descent by steps and whether it is GD++, at d = N = 10, in the released code's units."""

WITHIN = 0.01
"""How near a trained layer's loss must come to a step of descent, as a share of what the step gains on predicting 0. A
share of the loss itself would be met by anything where a step gains little. The loss of a step at c times the best rate
is further off by (c - 1)^2, whatever the tasks, so that this much is a rate that is wrong by a tenth."""
WRONG = 1.5
"""Times the best rate is a rate that must be told from it: off by a quarter of the gain, 25 times `WITHIN`. At twice
the best rate the loss would be that of predicting 0."""
COSINE = 0.99
ANCHORED_WITHIN = 0.02
"""How near descent must come to `ANCHORS`. Of 0.051 rounding alone may be 1 %, and rare tasks on which GD++ is far off
move a mean over tens of thousands by another."""

SEQUENCES = 4096
"""New tasks on which models of a seed are measured, each with `QUERIES` inputs asked for."""
CHARTED = 1024
"""How many of them a curve's point is made from."""
TUNED = 16384
"""Tasks on which the best rates of descent are found, others than those on which it is then measured."""
EXPLODED = 1e6
"""Told instead of any larger loss: layers that multiply what they read can reach any number on a single sequence."""
SHARES = tuple(round(0.1 * tenth, 1) for tenth in range(11))
SCALES = (0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)
KEPT = (0.0, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 0.9)
"""Shares of the training after which a model is looked at, besides the end."""


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

_Advance = Callable[[float, str], None]
Kind = tuple[int, bool]
"""Steps, and whether it is GD++."""


@dataclass(frozen=True)
class _New:
    """Tasks that no model of the seed was trained on."""

    x: Tensor
    y: Tensor
    asked: Tensor
    target: Tensor

    def few(self, n: int) -> "_New":
        return _New(self.x[:n], self.y[:n], self.asked[:n], self.target[:n])

    def scaled(self, scale: float) -> "_New":
        """Inputs this much larger, of the same functions."""
        return _New(self.x * scale, self.y * scale, self.asked * scale, self.target * scale)

    def permuted(self) -> "_New":
        """In context, each y beside its neighbour's x."""
        return replace(self, y=self.y.roll(1, dims=1))

    def loss(self, predictor: Asked) -> float:
        """Half the mean squared error, at most `EXPLODED`."""
        with torch.no_grad():
            return _told(float((predictor(self.x, self.y, self.asked) - self.target).square().mean()) / 2)

    def median_loss(self, predictor: Asked) -> float:
        """That of the median sequence, which no rare one can move, at most `EXPLODED`."""
        with torch.no_grad():
            errors = (predictor(self.x, self.y, self.asked) - self.target).square().mean(1)
        return _told(float(errors.median()) / 2)

    def gain(self, best: Asked) -> float:
        """What a predictor's loss is lower by than that of predicting 0."""
        return self.loss(Zero()) - self.loss(best)


def _told(number: float) -> float:
    """At most `EXPLODED`, which is told for NaN as well."""
    return number if number < EXPLODED else EXPLODED


@dataclass(frozen=True)
class Beside:
    """Two predictors on the same tasks."""

    prediction: float
    """Mean distance of predictions, |y - y'|."""
    cosine: float
    """Mean cosine of sensitivities dy/dx."""
    sensitivity: float
    """Mean L2 distance of sensitivities."""


def pieces(config: RegressionConfig) -> int:
    """Trainings, each of all seeds at once."""
    return len(ARCHITECTURES)


def trained(config: RegressionConfig, cells: Cells, advance: _Advance = lambda amount, doing: None) -> LabStudy:
    """Train every architecture, and lay it beside descent.

    Args:
        config: Seeds, dimension, points, and the share of the steps that is taken.
        cells: Keeps each finished training.
        advance: Told of each.
    """
    tasks = tasks_of(config)
    models, failed = {}, []
    for architecture in ARCHITECTURES:
        done = _models(config, cells, architecture, tasks)
        if isinstance(done, str):
            failed.append(f"{architecture.name}: {done} It is left out.")
        else:
            models[architecture] = done
        advance(1.0, architecture.name)
    new = {seed: _new("test", seed, tasks, SEQUENCES) for seed in config.seeds}
    best = best_rates(tasks)
    found = _Found(config, models, best, median_rates(tasks, best[construction(FIVE)]), new)
    claims = [*_anchors(found), *_claims(found), *_failing(found)]
    return LabStudy(
        name="trained",
        question="Does self-attention that is trained on in-context regression do gradient descent?",
        answer=_answer(found),
        claims=claims,
        charts=[chart for chart in _charts(found) if chart.curves],
        tables=[_losses(found), _beside_descent(found)],
        notes=failed + _notes(found),
    )


def _charts(found: "_Found") -> list[LabChart]:
    return [
        _while_training(found, "loss"),
        _while_training(found, "cosine"),
        _between(found),
        *(_by_scale(found, architecture) for architecture in LINEAR),
    ]


def tasks_of(config: RegressionConfig) -> RegressionTasks:
    """The paper's, with the dimension and the examples that are asked for, and a query."""
    return replace(VON_OSWALD, dimension=config.dimension, points=config.points + 1)


def _models(
    config: RegressionConfig, cells: Cells, architecture: Architecture, tasks: RegressionTasks
) -> Trained | str:
    """Models of all seeds; or why there are none, which must not keep the other architectures from having theirs."""
    shape, steps = architecture.config(tasks.dimension), config.scaled(architecture.steps)
    keep = sorted({round(share * steps) for share in KEPT} | {steps})
    inputs = (
        f"{shape} {tasks} {steps} {keep} {architecture.learning_rate} {architecture.batch} {QUERIES} {config.seeds}"
    )
    piece = cells.get(architecture.name, inputs)
    if piece is None:
        try:
            training = self_attention_training(steps, architecture.batch, architecture.learning_rate)
            done = train_together(shape, tasks, training, config.seeds, keep=keep)
            piece = Piece(architecture.name, inputs, done.weights, {"failed": ""})
        except TrainingError as error:
            piece = Piece(architecture.name, inputs, {}, {"failed": str(error)})
        cells.put(piece)
    if piece.about["failed"]:
        return str(piece.about["failed"])
    return Trained(shape, config.seeds, tuple(keep), piece.tensors)


def _new(purpose: str, seed: int, tasks: RegressionTasks, n: int) -> _New:
    """Tasks of a stream of their own, so that none is one that was trained on, or drawn for another purpose."""
    context = tasks.points - 1
    drawn = replace(tasks, points=context + QUERIES).draw(n, stream(purpose, seed), torch.float64)
    return _New(drawn.x[:, :context], drawn.y[:, :context], drawn.x[:, context:], drawn.clean[:, context:])


def best_rates(tasks: RegressionTasks) -> dict[Kind, Descent | DescentPlusPlus]:
    """Descent of every kind in `ANCHORS`, with the rate (and gamma) that is best on tasks drawn for this alone."""
    new = _new("tuning", 0, tasks, TUNED)
    return {kind: best_descent(new.x, new.y, new.asked, new.target, *kind) for kind in ANCHORS}


def median_rates(tasks: RegressionTasks, start: Descent | DescentPlusPlus) -> Descent | DescentPlusPlus:
    """The same descent with the rate (and gamma) whose loss on the median of the tasks of `best_rates` is least.

    A rate that is best on average is held back by rare tasks, on which a higher one diverges; the median is not.

    Args:
        tasks: What they are like.
        start: Descent that is best on average; all between a third of its settings and three times them is looked at.
    """
    new = _new("tuning", 0, tasks, TUNED)
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


_FEW = 2048
"""Tasks on which `median_rates` looks for where to begin."""
_FACTORS = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0, 2.8)


@dataclass
class _Found:
    """Everything that was measured, each number once."""

    config: RegressionConfig
    models: Mapping[Architecture, Trained]
    """None of an architecture whose training failed."""
    best: Mapping[Kind, Descent | DescentPlusPlus]
    for_median: Descent | DescentPlusPlus
    """The construction of `FIVE`, best on the median task."""
    new: Mapping[int, _New]

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

    def off(self, losses: Sequence[float], wanted: Asked, few: int | None = None) -> list[float]:
        """How far losses, one a seed, are above those that are wanted, over what one step of descent gains.

        Args:
            losses: None where nothing was trained.
            wanted: What should have these losses.
            few: How many of the tasks they are of; None: all.
        """
        if not losses:
            return []
        measured = [new if few is None else new.few(few) for new in self.new.values()]
        best = self.best[1, False]
        return [(loss - new.loss(wanted)) / new.gain(best) for loss, new in zip(losses, measured, strict=True)]


def counterparts(architecture: Architecture) -> list[Kind]:
    """The descents with as many steps as there are layers."""
    return [(architecture.layers, plus_plus) for plus_plus in (False, True) if plus_plus <= architecture.plus_plus]


def construction(architecture: Architecture) -> Kind:
    """The best descent that as many layers can do."""
    return architecture.layers, architecture.plus_plus


def beside(one: Asked, other: Asked, new: _New) -> Beside:
    """Two predictors compared as in the paper, means over sequences and queries."""
    with torch.no_grad():
        predictions = [predictor(new.x, new.y, new.asked) for predictor in (one, other)]
    own, others = (sensitivities(predictor, new.x, new.y, new.asked) for predictor in (one, other))
    return Beside(
        prediction=_told(float((predictions[0] - predictions[1]).abs().mean())),
        cosine=float(F.cosine_similarity(own, others, dim=-1).mean()),
        sensitivity=_told(float((own - others).norm(dim=-1).mean())),
    )


def between(model: InContextTransformer, kind: Descent | DescentPlusPlus, n_context: int, share: float) -> Asked:
    """The predictor whose products of weights are a share of the way from the trained to the constructed ones.

    P W_V and W_K^T W_Q of each layer are interpolated and not their factors, of which many do the same; the scale that
    the two can trade is fixed by `Products.balanced` first.
    """
    gamma = kind.gamma if isinstance(kind, DescentPlusPlus) else 0.0
    layers = model.config.layers
    built = Products.of_descent(model.config.dimension, layers, kind.rate, gamma, n_context)
    mixed = model.products().balanced().towards(built, share)
    return lambda x, y, asked: mixed(x[None], y[None], asked[None])[0]


def _ratios(above: Sequence[float], below: Sequence[float]) -> list[float]:
    """By seed; none where there is nothing above."""
    return [a / b for a, b in zip(above, below, strict=True)] if above else []


def _mean(found: Estimate) -> float:
    return math.nan if found.mean is None else found.mean


def _descent_name(kind: Kind) -> str:
    layers, plus_plus = kind
    return f"{'GD++' if plus_plus else 'GD'}, {layers} {'step' if layers == 1 else 'steps'}"


def _anchors(found: _Found) -> list[Claim]:
    """Descent's own losses, where the paper's code has them."""
    if (found.config.dimension, found.config.points) != (10, 10):
        return []
    # Many more tasks than models are measured on, for the sake of the rare ones.
    tasks = tasks_of(found.config)
    losses: dict[Kind, list[float]] = {kind: [] for kind in ANCHORS}
    for seed in found.new:
        new = _new("anchors", seed, tasks, TUNED)
        for kind in ANCHORS:
            losses[kind].append(new.loss(found.best[kind]))
    claims = []
    for kind, anchor in ANCHORS.items():
        loss = over_seeds(losses[kind])
        claims.append(
            Claim(
                says=f"{_descent_name(kind)}, with the best shared rate{' and gamma' if kind[1] else ''}, has the loss "
                "that it has in the paper's released code.",
                expected=f"{anchor} within {ANCHORED_WITHIN:.0%}, half the mean squared error, mean over seeds",
                found=loss,
                holds=abs(_mean(loss) / anchor - 1) <= ANCHORED_WITHIN,
                source=SOURCE,
            )
        )
    return claims


def _claims(found: _Found) -> list[Claim]:
    two, five = construction(TWO), construction(FIVE)
    midway = _between_loss(found, ONE, 0.5)
    return [
        _same_loss(
            "A trained linear layer has the loss of one optimal step of gradient descent.",
            found.off(found.loss.get(ONE, []), found.best[1, False]),
        ),
        _same_direction(
            "A trained linear layer's prediction moves with the query as that of one step of gradient descent.",
            found.cosine(ONE),
        ),
        _no_higher(
            f"{TWO.name}, trained: the mean loss is that of {_descent_name(two)}, or lower.",
            _ratios(found.loss.get(TWO, []), found.descent[two]),
        ),
        # The deepest model, which multiplies what it reads five times over, may explode on one sequence in thousands.
        _no_higher(
            f"{FIVE.name}, trained: on the median task the loss is that of {_descent_name(five)} with the rate and "
            "gamma that are best on the median task, or lower.",
            _ratios(found.median.get(FIVE, []), found.descent_median),
        ),
        _same_loss(
            "Weights halfway between a trained linear layer's and the construction's have the loss of the step too.",
            found.off(midway, found.best[1, False], CHARTED),
        ),
    ]


def _failing(found: _Found) -> list[Claim]:
    """Cases that are not gradient descent: a comparison that passed them too would say nothing."""
    best = found.best[1, False]
    permuted = []
    if ONE in found.models:
        permuted = [new.permuted().loss(found.model(ONE, seed).ask) for seed, new in found.new.items()]
    return [
        _same_direction(
            "A softmax layer, trained alike: its prediction moves with the query as that of one step of gradient "
            "descent.",
            found.cosine(SOFTMAX),
            must_fail=True,
        ),
        _same_loss(
            f"A trained linear layer has the loss of one step of gradient descent at {WRONG:g} times the best rate.",
            found.off(found.loss.get(ONE, []), replace(best, rate=WRONG * best.rate)),
            must_fail=True,
        ),
        _same_loss(
            "A trained linear layer has the loss of one optimal step of gradient descent although each y in its "
            "context stands beside another's x.",
            found.off(permuted, best),
            must_fail=True,
        ),
    ]


def _same_loss(says: str, off: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"a loss off by at most {WITHIN:.0%} of what the best step gains on predicting 0"
    return _in_every_seed(says, expected, off, [abs(one) <= WITHIN for one in off], must_fail)


def _no_higher(says: str, ratios: Sequence[float]) -> Claim:
    return _in_every_seed(
        says, f"a ratio of losses of at most {1 + WITHIN:g}", ratios, [one <= 1 + WITHIN for one in ratios]
    )


def _same_direction(says: str, cosines: Sequence[float], must_fail: bool = False) -> Claim:
    expected = f"a mean cosine of dy/dx of {COSINE} or more"
    return _in_every_seed(says, expected, cosines, [one >= COSINE for one in cosines], must_fail)


def _in_every_seed(
    says: str, expected: str, values: Sequence[float], met: Sequence[bool], must_fail: bool = False
) -> Claim:
    """A claim must be true of every seed, and what must fail of none. Without seeds nothing holds."""
    return Claim(
        says=says,
        expected=f"{expected}, in {'any' if must_fail else 'every'} seed",
        found=over_seeds(values),
        holds=any(met) if must_fail else bool(met) and all(met),
        must_fail=must_fail,
        source=SOURCE,
    )


def _between_loss(found: _Found, architecture: Architecture, share: float) -> list[float]:
    """On `CHARTED` tasks, by seed; none of an architecture that was not trained."""
    if architecture not in found.models:
        return []
    best, n = found.best[construction(architecture)], found.config.points
    return [
        new.few(CHARTED).loss(between(found.model(architecture, seed), best, n, share))
        for seed, new in found.new.items()
    ]


def _losses(found: _Found) -> LabTable:
    def median(predictor: Asked) -> Estimate:
        return over_seeds([new.median_loss(predictor) for new in found.new.values()])

    rows = [
        LabRow(name=one.name, cells=[over_seeds(found.loss[one]), over_seeds(found.median[one]), None, None])
        if one in found.models
        else LabRow(name=one.name, cells=[None] * 4)
        for one in ARCHITECTURES
    ]
    for kind, loss in found.descent.items():
        best = found.best[kind]
        gamma = over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None
        rows.append(
            LabRow(name=_descent_name(kind), cells=[over_seeds(loss), median(best), over_seeds([best.rate]), gamma])
        )
    rows.append(_row_for_median(found))
    zero = over_seeds([new.loss(Zero()) for new in found.new.values()])
    rows.append(LabRow(name=Zero().name, cells=[zero, median(Zero()), None, None]))
    return LabTable(
        title="Loss on new tasks",
        columns=["half the mean squared error", "that of the median task", "best rate", "best gamma"],
        rows=rows,
        note="Trained models and descent on the same tasks, each seed with its own. Descent's steps share one rate "
        "(and gamma), the best on average over other tasks, and in one row on the median of these.",
    )


def _row_for_median(found: _Found) -> LabRow:
    best = found.for_median
    return LabRow(
        name=f"{_descent_name(construction(FIVE))}, best on the median task",
        cells=[
            over_seeds([new.loss(best) for new in found.new.values()]),
            over_seeds(found.descent_median),
            over_seeds([best.rate]),
            over_seeds([best.gamma]) if isinstance(best, DescentPlusPlus) else None,
        ],
    )


def _beside_descent(found: _Found) -> LabTable:
    rows = []
    for architecture in ARCHITECTURES:
        for kind in counterparts(architecture):
            cells: list[Estimate | None] = [None] * 4
            if architecture in found.models:
                seeds = found.beside[architecture, kind]
                cells = [
                    over_seeds([one.prediction for one in seeds]),
                    over_seeds([one.cosine for one in seeds]),
                    over_seeds([one.sensitivity for one in seeds]),
                    over_seeds(_ratios(found.loss[architecture], found.descent[kind])),
                ]
            rows.append(LabRow(name=f"{architecture.name}, beside {_descent_name(kind)}", cells=cells))
    return LabTable(
        title="Trained models beside descent",
        columns=[
            "L2 distance of predictions",
            "cosine of sensitivities",
            "L2 distance of sensitivities",
            "ratio of mean losses",
        ],
        rows=rows,
        note="Sensitivity: dy/dx, how the prediction moves with the query's input. Means over new tasks.",
    )


def _while_training(found: _Found, what: str) -> LabChart:
    curves = []
    for architecture, models in found.models.items():
        kind, steps = construction(architecture), models.at[-1]
        by_time = []
        for time in range(len(models.at)):
            values = []
            for seed, new in found.new.items():
                ask, few = found.model(architecture, seed, time).ask, new.few(CHARTED)
                values.append(few.loss(ask) if what == "loss" else beside(ask, found.best[kind], few).cosine)
            by_time.append(over_seeds(values))
        curves.append(LabCurve(name=architecture.name, x=[at / steps for at in models.at], y=by_time))
    if what == "loss":
        for kind, loss in found.descent.items():
            y = [over_seeds(loss)] * 2
            curves.append(LabCurve(name=_descent_name(kind), x=[0.0, 1.0], y=y, reference=True))
    return LabChart(
        title="Loss while training" if what == "loss" else "Cosine of sensitivities while training",
        x="share of the training steps",
        y="half the mean squared error" if what == "loss" else "cosine of dy/dx to the construction's",
        log_y=what == "loss",
        curves=curves,
        note=""
        if what == "loss"
        else "Beside one step of GD for one layer, and beside as many steps of GD++ as there are layers for more.",
    )


def _between(found: _Found) -> LabChart:
    return LabChart(
        title="Between trained and constructed weights",
        x="share of the constructed weights",
        y="half the mean squared error",
        log_y=True,
        curves=[
            LabCurve(
                name=f"{architecture.name} to {_descent_name(construction(architecture))}",
                x=list(SHARES),
                y=[over_seeds(_between_loss(found, architecture, share)) for share in SHARES],
            )
            for architecture in INTERPOLATED
            if architecture in found.models
        ],
        note="Products P W_V and W_K^T W_Q of each layer are interpolated, once the trained ones are rescaled so that "
        "the diagonal of W_K^T W_Q over the inputs has mean 1, as in the construction.",
    )


def _by_scale(found: _Found, architecture: Architecture) -> LabChart:
    few = {seed: new.few(CHARTED) for seed, new in found.new.items()}

    def curve(name: str, ask: Callable[[int], Asked], reference: bool) -> LabCurve:
        losses = [over_seeds([new.scaled(scale).loss(ask(seed)) for seed, new in few.items()]) for scale in SCALES]
        return LabCurve(name=name, x=list(SCALES), y=losses, reference=reference)

    def descent(kind: Kind) -> LabCurve:
        return curve(_descent_name(kind), lambda seed: found.best[kind], reference=True)

    own = [architecture] if architecture in found.models else []
    return LabChart(
        title=f"Inputs of another scale: {architecture.name}",
        x="scale of the inputs, over that in training",
        y="half the mean squared error",
        log_y=True,
        curves=[
            *(curve(one.name, lambda seed: found.model(architecture, seed).ask, reference=False) for one in own),
            *(descent(kind) for kind in counterparts(architecture)),
        ],
        note="Rates (and gamma) are those that are best at scale 1.",
    )


def _answer(found: _Found) -> str:
    sentences = []
    if ONE in found.models:
        ratio = _mean(over_seeds(_ratios(found.loss[ONE], found.descent[1, False])))
        sentences.append(
            f"One trained linear layer has {ratio:.3f} times the mean loss of one optimal step of gradient descent, "
            f"and its sensitivities have cosine {_mean(over_seeds(found.cosine(ONE))):.3f} to that step's."
        )
    if SOFTMAX in found.models:
        sentences.append(f"A softmax layer's have cosine {_mean(over_seeds(found.cosine(SOFTMAX))):.3f} to it.")
    if TWO in found.models:
        own, beside = (_mean(over_seeds(one)) for one in (found.loss[TWO], found.descent[construction(TWO)]))
        sentences.append(
            f"Mean loss of two recurrent layers: {own:.3f}, beside {beside:.3f} of {_descent_name(construction(TWO))}, "
            "best on average."
        )
    if FIVE in found.models:
        own, beside = (_mean(over_seeds(one)) for one in (found.median[FIVE], found.descent_median))
        sentences.append(
            f"Loss of five layers on the median task: {own:.3f}, beside {beside:.3f} of "
            f"{_descent_name(construction(FIVE))}, best on the median task."
        )
    dead = [one.name for one in ARCHITECTURES if one not in found.models]
    if dead:
        sentences.append(f"Without numbers, as their training failed: {'; '.join(dead)}.")
    return " ".join(sentences)


def _notes(found: _Found) -> list[str]:
    steps = ", ".join(f"{one.name} {found.config.scaled(one.steps):,} of {one.batch}" for one in ARCHITECTURES)
    notes = [
        f"Steps of training, and sequences of each: {steps}, with {QUERIES} queries a sequence. The paper's released "
        "code takes 10,000 steps of 512 with one query, unless told otherwise.",
        "W_Q begins as a copy of W_K. Where each was drawn by itself, about a quarter of seeds stayed for thousands of "
        "steps where some directions of W_K^T W_Q had the wrong sign.",
    ]
    for architecture, losses in found.loss.items():
        far = sum(loss > 10 * median for loss, median in zip(losses, found.median[architecture], strict=True))
        if far:
            notes.append(
                f"{architecture.name}: of {far} of {len(losses)} models the mean loss is over ten times the median "
                "task's. A few sequences on which what layers multiply explodes make up most of it."
            )
    if found.config.steps < 1:
        notes.append(
            f"Trained for {found.config.steps:g} of the usual steps: claims about trained models may not hold."
        )
    if (found.config.dimension, found.config.points) != (10, 10):
        notes.append("The paper's losses of descent are for 10 dimensions and 10 examples, and are not compared with.")
    return notes
