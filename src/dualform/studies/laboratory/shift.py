"""What does a transformer trained on linear regression in context do outside its training distribution?

Exact predictors do not depend on any training distribution. A trained transformer is compared with them on inputs,
targets and lengths that it never saw. The cost of a shift is the ratio of its loss to that of the best exact predictor,
divided by the same ratio on the training distribution.

Source:
    arXiv:2208.01066, sections 4 and 5, and arXiv:2212.07677, section 3, for the shifts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from dualform.lab.decoder import Decoders
from dualform.lab.predictors import (
    Bayes,
    Descent,
    LeastSquares,
    NearestNeighbours,
    Predictor,
    Ridge,
    by_point,
    errors_by_point,
)
from dualform.lab.regression_tasks import RegressionTasks
from dualform.studies.laboratory.causal_transformers import (
    TransformerShape,
    best_rate,
    draw_sequences,
    notes_on_size,
    predictions,
    tasks_of,
    trained,
)
from dualform.studies.laboratory.claims import holds_above, holds_below, mean, ratios
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.curves import LEAST_SHOWN, exact_curve, seed_curve
from dualform.studies.laboratory.result import Claim, LabChart, LabCurve, LabRow, LabStudy, LabTable
from dualform.studies.pieces import PieceStore
from dualform.studies.seed_statistics import over_seeds

SHAPE = TransformerShape(layers=4, width=32)
STEPS = 1500
SCALES = (0.25, 0.5, 1.0, 2.0, 4.0)
"""Scales of inputs and of weights, relative to training."""
CONDITIONS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Condition numbers: largest divided by smallest eigenvalue of the inputs' covariance."""
NOISES = (0.0, 0.125, 0.25, 0.5, 1.0)
LONGER = 3
"""The longest sequences have this many times as many examples as in training."""

LARGEST_DRAWN = 20.0
"""Largest loss of an exact predictor that is drawn in charts; tables have all."""

Axis = Literal["input scale", "condition number", "weight scale", "noise"]
AXES: dict[Axis, tuple[float, ...]] = {
    "input scale": SCALES,
    "condition number": CONDITIONS,
    "weight scale": SCALES,
    "noise": NOISES,
}
AS_TRAINED: dict[Axis, float] = {"input scale": 1.0, "condition number": 1.0, "weight scale": 1.0, "noise": 0.0}
"""Values on which the transformer was trained."""

LEAST_SQUARES = "least squares"
GARG = "arXiv:2208.01066"
OSWALD = "arXiv:2212.07677"


@dataclass(frozen=True)
class ShiftLosses:
    """Losses on one distribution by point: squared error to the clean y divided by the mean square of the clean y."""

    own: Tensor
    """Losses of the transformers, `(seed, point)`."""
    exact: dict[str, Tensor]
    """Losses of exact predictors, each `(point,)`."""

    @property
    def own_mean(self) -> list[float]:
        """By seed, the transformer's mean loss over all points but the first."""
        return self.own[:, 1:].mean(1).tolist()

    def mean(self, name: str) -> float:
        """An exact predictor's mean loss over all points but the first."""
        return float(self.exact[name][1:].mean())

    @property
    def best(self) -> str:
        """The exact predictor with the least mean loss: least squares, or with noise Bayes, which knows its size."""
        return min(self.exact, key=self.mean)

    @property
    def ratios(self) -> list[float]:
        """By seed, the transformer's mean loss divided by that of the best exact predictor."""
        return [own / self.mean(self.best) for own in self.own_mean]

    def costs(self, as_trained: "ShiftLosses") -> list[float]:
        """By seed, `ratios` divided by the ratios on the training distribution; above 1 the shift has a cost."""
        return ratios(self.ratios, as_trained.ratios)


def pieces(config: RegressionConfig) -> int:
    """Number of trainings: one, of all seeds at once."""
    return 1


def shift(config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]) -> LabStudy:
    """Train a transformer on linear functions of normal inputs and measure it on shifted distributions.

    Args:
        config: Settings of the laboratory; dimension and points are reduced to what is learned in a minute.
        store: Stores the finished training.
        advance: Called with 1 after the training.
    """
    training_tasks = tasks_of(config)
    model = trained(config, store, SHAPE, training_tasks, STEPS)
    advance(1.0, SHAPE.name)
    # The rate is chosen on the training distribution and kept under every shift, as the transformer is.
    descent = best_rate(lambda rate: Descent(SHAPE.layers, rate), draw_sequences(training_tasks, purpose="tuning"))
    predictors: dict[str, Predictor] = {
        LEAST_SQUARES: LeastSquares(),
        "ridge 0.1": Ridge(0.1),
        f"descent, {SHAPE.layers} steps": descent,
        "3 nearest neighbours": NearestNeighbours(3),
    }
    by_axis = {
        axis: {strength: read(model, shifted(training_tasks, axis, strength), predictors) for strength in strengths}
        for axis, strengths in AXES.items()
    }
    targets = {
        "linear, as trained": read(model, training_tasks, predictors),
        f"sparse, {min(3, training_tasks.dimension - 1)} of {training_tasks.dimension}": read(
            model, sparse(training_tasks), predictors
        ),
        "network": read(model, replace(training_tasks, target="network"), predictors),
    }
    blank = Decoders(model.config, config.seeds).requires_grad_(False)
    largest = shifted(training_tasks, "weight scale", max(SCALES))
    untrained = (read(blank, training_tasks, predictors), read(blank, largest, predictors))
    longer = read(model, replace(training_tasks, points=LONGER * (training_tasks.points - 1) + 1), predictors)
    return LabStudy(
        name="shift",
        question="What does a transformer trained on linear regression do on other inputs, targets and lengths?",
        answer=_answer(by_axis, targets, longer, training_tasks),
        claims=[*_exact_claims(by_axis), *_trained_claims(by_axis, longer, untrained, training_tasks)],
        charts=[
            _ratio_chart(by_axis),
            *(_axis_chart(axis, readings) for axis, readings in by_axis.items()),
            _points_chart("Loss by examples in context, beyond training's length", longer, training_tasks.points - 1),
            *(
                _points_chart(f"Loss by examples in context, target {name}", reading, training_tasks.points - 1)
                for name, reading in targets.items()
                if reading is not targets["linear, as trained"]
            ),
        ],
        tables=[_table(by_axis, targets, longer, training_tasks)],
        notes=[*notes_on_size(config), _NOTE],
    )


_NOTE = (
    "Losses are squared errors to the clean y, divided by its mean square under the same shift. Ratios compare means "
    "over all points but the first. At a single point they would not exist: without noise, least squares is exact once "
    "there are as many examples as dimensions; with noise or network targets its error there is unbounded."
)


def shifted(training_tasks: RegressionTasks, axis: Axis, strength: float) -> RegressionTasks:
    """The training tasks with one property changed; scales are relative to training, noise is in units of y."""
    if axis == "input scale":
        return replace(training_tasks, input_scale=strength)
    if axis == "condition number":
        return replace(training_tasks, condition=strength)
    if axis == "weight scale":
        return replace(training_tasks, weight_scale=training_tasks.weight_deviation * strength)
    return replace(training_tasks, noise=strength)


def sparse(training_tasks: RegressionTasks) -> RegressionTasks:
    """Linear functions of three coordinates, or of all but one if there are no more than three."""
    return replace(training_tasks, target="sparse", sparsity=min(3, training_tasks.dimension - 1))


def read(model: Decoders, tasks: RegressionTasks, predictors: dict[str, Predictor]) -> ShiftLosses:
    """Losses of the transformers and of exact predictors on new sequences."""
    sequences = draw_sequences(tasks)
    own = errors_by_point(predictions(model, sequences), sequences.clean)
    predictors = dict(predictors)
    if tasks.noise:
        predictors["Bayes, which knows the noise"] = Bayes(tasks.noise, tasks.weight_deviation)
    exact = {
        name: errors_by_point(by_point(predictor, sequences.x, sequences.y), sequences.clean)
        for name, predictor in predictors.items()
    }
    return ShiftLosses(own, exact)


LossesByAxis = dict[Axis, dict[float, ShiftLosses]]


def _exact_claims(by_axis: LossesByAxis) -> list[Claim]:
    """Claims about exact predictors: least squares does not depend on scales, ridge does."""
    claims = []
    axis: Axis
    for axis in ("input scale", "weight scale"):
        for name in (LEAST_SQUARES, "ridge 0.1"):
            if axis == "weight scale" and name != LEAST_SQUARES:
                # Ridge is linear in y, so that its relative loss does not depend on the scale of the weights either.
                continue
            losses = [reading.mean(name) for reading in by_axis[axis].values()]
            spread = max(losses) / min(losses) - 1
            claims.append(
                Claim(
                    says=f"The relative loss of {name} does not depend on the {axis}.",
                    expected="largest / smallest loss, minus 1: below 1e-6",
                    found=over_seeds([spread]),
                    holds=spread < 1e-6,
                    must_fail=name != LEAST_SQUARES,
                )
            )
    return claims


def _trained_claims(
    by_axis: LossesByAxis,
    longer: ShiftLosses,
    untrained: tuple[ShiftLosses, ShiftLosses],
    training_tasks: RegressionTasks,
) -> list[Claim]:
    """Claims that a transformer's loss is larger outside its training distribution.

    Skewed inputs are left out: with fewer effective dimensions the task itself is easier.
    """
    claims = []
    axis: Axis
    for axis, source in (
        ("input scale", f"{OSWALD}, section 3"),
        ("weight scale", f"{GARG}, section 4"),
    ):
        furthest = max(by_axis[axis])
        as_trained, shifted_losses = by_axis[axis][AS_TRAINED[axis]], by_axis[axis][furthest]
        claims.append(_larger_loss("A trained transformer", f"{axis} {furthest:g}", as_trained, shifted_losses, source))
    # An untrained transformer must fail: larger targets only make its output less important.
    scale = f"weight scale {max(SCALES):g}"
    claims.append(_larger_loss("An untrained transformer", scale, *untrained, f"{GARG}, section 4", must_fail=True))
    learned, beyond = (longer.own[:, n].tolist() for n in (training_tasks.points - 1, -1))
    ratio = over_seeds(ratios(beyond, learned))
    claims.append(
        Claim(
            says=f"A trained transformer's loss still falls with {LONGER} times as many examples as in training.",
            expected="ratio of the loss after all examples and after as many as in training: whole interval below 1",
            found=ratio,
            holds=holds_below(ratio, 1.0),
            source=f"{GARG}, section 4",
        )
    )
    return claims


def _larger_loss(
    model: str, shift: str, as_trained: ShiftLosses, shifted_losses: ShiftLosses, source: str, must_fail: bool = False
) -> Claim:
    ratio = over_seeds(ratios(shifted_losses.own_mean, as_trained.own_mean))
    return Claim(
        says=f"{model} has a larger relative loss at {shift} than on the training distribution.",
        expected="ratio of relative losses, shifted / as trained: whole interval above 1",
        found=ratio,
        holds=holds_above(ratio, 1.0, must_fail),
        must_fail=must_fail,
        source=source,
    )


def _ratio_chart(by_axis: LossesByAxis) -> LabChart:
    """The transformer's ratios for all axes in one chart; each curve has its own unit on the x axis."""
    return LabChart(
        title="Loss of the transformer divided by that of the best exact predictor, by shift",
        x="scale relative to training, or condition number, or noise in units of y",
        y="loss / best exact predictor's loss",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=axis,
                # Noise 0 cannot be drawn on a log axis; the other curves show the ratio on the training distribution.
                x=[strength for strength in readings if strength > 0],
                y=[over_seeds(losses.ratios) for strength, losses in readings.items() if strength > 0],
            )
            for axis, readings in by_axis.items()
        ],
        note="The best exact predictor is least squares, or with noise Bayes, which knows its size. The transformer "
        "was trained at scales and condition number 1, without noise.",
    )


def _axis_chart(axis: Axis, readings: dict[float, ShiftLosses]) -> LabChart:
    """Losses along one axis; Bayes has a curve only where there is noise."""
    names = list(dict.fromkeys(name for losses in readings.values() for name in losses.exact))
    exact_losses = {
        name: {
            strength: losses.mean(name)
            for strength, losses in readings.items()
            if name in losses.exact and losses.mean(name) <= LARGEST_DRAWN
        }
        for name in names
    }
    return LabChart(
        title=f"Loss by {axis}",
        x=_axis_label(axis),
        y="squared error to the clean y, in units of its mean square",
        log_x=axis != "noise",
        log_y=True,
        curves=[
            LabCurve(
                name="transformer",
                x=list(readings),
                y=[over_seeds(losses.own_mean) for losses in readings.values()],
            ),
            *(exact_curve(name, list(losses), list(losses.values())) for name, losses in exact_losses.items()),
        ],
        note=f"Mean over all points but the first. Trained at {AS_TRAINED[axis]:g}. Losses above {LARGEST_DRAWN:g} (of "
        "diverging descent, or of least squares with noise) are left out.",
    )


def _axis_label(axis: Axis) -> str:
    if axis == "condition number":
        return "condition number of the inputs' covariance"
    if axis == "noise":
        return "standard deviation of the noise, in units of y"
    return f"{axis}, relative to training"


def _points_chart(title: str, reading: ShiftLosses, in_training: int) -> LabChart:
    points = [float(n) for n in range(reading.own.shape[1])]
    return LabChart(
        title=title,
        x="examples in context",
        y="squared error to the clean y, in units of its mean square",
        log_y=True,
        curves=[
            seed_curve("transformer", points, reading.own),
            *(exact_curve(name, points, loss.tolist(), LEAST_SHOWN) for name, loss in reading.exact.items()),
        ],
        note=f"Trained on up to {in_training} examples. Errors below {LEAST_SHOWN:g} are drawn at {LEAST_SHOWN:g}.",
    )


def _table(
    by_axis: LossesByAxis, targets: dict[str, ShiftLosses], longer: ShiftLosses, training_tasks: RegressionTasks
) -> LabTable:
    readings = {f"target {name}": reading for name, reading in targets.items()}
    readings |= {
        f"{axis} {strength:g}": reading
        for axis, row in by_axis.items()
        for strength, reading in row.items()
        if strength != AS_TRAINED[axis]
    }
    readings[f"{longer.own.shape[1] - 1} examples rather than {training_tasks.points - 1}"] = longer
    as_trained = targets["linear, as trained"]
    names = list(as_trained.exact)
    return LabTable(
        title="Loss of the transformer and of exact predictors, by shift",
        columns=[
            "transformer",
            *names,
            "transformer / best",
            "relative to as trained",
            "transformer after all examples",
        ],
        rows=[
            LabRow(
                name=name,
                cells=[
                    over_seeds(reading.own_mean),
                    *(over_seeds([reading.mean(exact)]) for exact in names),
                    over_seeds(reading.ratios),
                    over_seeds(reading.costs(as_trained)),
                    over_seeds(reading.own[:, -1].tolist()),
                ],
            )
            for name, reading in readings.items()
        ],
        note="Means over all points but the first, except in the last column. The best is the exact predictor with the "
        "least loss; with noise it is Bayes, which knows its size. The column relative to as trained divides the "
        "ratio by that on the training distribution, seed by seed; above 1 the shift has a cost.",
    )


def _answer(
    by_axis: LossesByAxis, targets: dict[str, ShiftLosses], longer: ShiftLosses, training_tasks: RegressionTasks
) -> str:
    as_trained, *others = targets.values()
    times = {
        f"{axis} {strength:g}": mean(reading.costs(as_trained))
        for axis, readings in by_axis.items()
        if axis != "noise"
        for strength, reading in readings.items()
        if strength != AS_TRAINED[axis]
    }
    _, *names = targets
    on_others = ", ".join(
        f"{name} {mean(losses.costs(as_trained)):.2f}" for name, losses in zip(names, others, strict=True)
    )
    inside, beyond = (mean(longer.own[:, n].tolist()) for n in (training_tasks.points - 1, -1))
    return (
        "On the training distribution a transformer's loss is "
        f"{mean(as_trained.ratios):.2f} times that of the best exact predictor. {_describe_costs(times)} Other targets "
        f"multiply this ratio by: {on_others}. Its loss is {inside:.3g} after {training_tasks.points - 1} examples, as "
        f"many as in training, and {beyond:.3g} after {longer.own.shape[1] - 1}."
    )


def _describe_costs(times: dict[str, float]) -> str:
    """Sentence naming the shifts that multiply the ratio most and least; only a factor above 1 is a cost."""
    *_, worst = ranked = sorted(times, key=lambda name: times[name])
    least = ranked[0]
    if times[worst] <= 1:
        return f"No shift of inputs or weights raises this ratio; the largest factor is {times[worst]:.3g}, at {worst}."
    most = f"Among shifts of inputs and weights, {worst} raises this ratio most (by a factor of {times[worst]:.3g})"
    if times[least] > 1:
        return f"{most} and {least} least ({times[least]:.3g})."
    harmless = sum(value <= 1 for value in times.values())
    return f"{most}; {harmless} of {len(times)} do not raise it (lowest factor {times[least]:.3g}, at {least})."
