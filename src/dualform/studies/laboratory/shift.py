"""What does a transformer that learned linear regression in context do outside of what it was trained on?

An exact predictor knows nothing of training: least squares on larger inputs is least squares. A trained transformer is
compared with such predictors on inputs, targets and lengths that it never saw; how many times it loses what the best of
them loses, more than as trained, is due to the shift.

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
    drawn,
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
"""Of inputs, and of weights, over those of training."""
CONDITIONS = (1.0, 3.0, 10.0, 30.0, 100.0)
"""Largest over smallest eigenvalue of the inputs' covariance."""
NOISES = (0.0, 0.125, 0.25, 0.5, 1.0)
LONGER = 3
"""Times as many points as in training."""

SHOWN = 20.0
"""The largest loss of an exact predictor that a chart has room for; tables have it all."""

Axis = Literal["input scale", "condition number", "weight scale", "noise"]
AXES: dict[Axis, tuple[float, ...]] = {
    "input scale": SCALES,
    "condition number": CONDITIONS,
    "weight scale": SCALES,
    "noise": NOISES,
}
AT_HOME: dict[Axis, float] = {"input scale": 1.0, "condition number": 1.0, "weight scale": 1.0, "noise": 0.0}
"""What the transformer was trained on."""

LEAST_SQUARES = "least squares"
GARG = "arXiv:2208.01066"
OSWALD = "arXiv:2212.07677"


@dataclass(frozen=True)
class ShiftLosses:
    """Losses on one distribution: squared error to the clean y over its mean square, by point."""

    own: Tensor
    """Of the transformers, `(seed, point)`."""
    exact: dict[str, Tensor]
    """Of exact predictors, each `(point,)`."""

    @property
    def own_mean(self) -> list[float]:
        """By seed, over points with an example before them."""
        return self.own[:, 1:].mean(1).tolist()

    def mean(self, name: str) -> float:
        """An exact predictor's, over points with an example before them."""
        return float(self.exact[name][1:].mean())

    @property
    def best(self) -> str:
        """The exact predictor of the least mean loss: least squares, or with noise Bayes, which knows how much."""
        return min(self.exact, key=self.mean)

    @property
    def ratios(self) -> list[float]:
        """By seed, the transformer's mean loss over that of the best exact predictor."""
        return [own / self.mean(self.best) for own in self.own_mean]

    def costs(self, at_home: "ShiftLosses") -> list[float]:
        """By seed, `ratios` over what they were as trained; above 1 the shift costs something."""
        return ratios(self.ratios, at_home.ratios)


def pieces(config: RegressionConfig) -> int:
    """One training, all seeds at once."""
    return 1


def shift(config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None]) -> LabStudy:
    """Train a transformer on linear functions of normal inputs, and read it where it was not trained.

    Args:
        config: Seeds and sizes; dimension and points are cut to what is learned in a minute.
        store: Keeps the finished training.
        advance: Called with 1 as the training is done.
    """
    home = tasks_of(config)
    model = trained(config, store, SHAPE, home, STEPS)
    advance(1.0, SHAPE.name)
    # Rates are chosen at home, on other sequences, and kept: an exact predictor does not know of the shift either.
    descent = best_rate(lambda rate: Descent(SHAPE.layers, rate), drawn(home, purpose="tuning"))
    predictors: dict[str, Predictor] = {
        LEAST_SQUARES: LeastSquares(),
        "ridge 0.1": Ridge(0.1),
        f"descent, {SHAPE.layers} steps": descent,
        "3 nearest neighbours": NearestNeighbours(3),
    }
    along = {
        axis: {strength: read(model, shifted(home, axis, strength), predictors) for strength in strengths}
        for axis, strengths in AXES.items()
    }
    targets = {
        "linear, as trained": read(model, home, predictors),
        f"sparse, {min(3, home.dimension - 1)} of {home.dimension}": read(model, sparse(home), predictors),
        "network": read(model, replace(home, target="network"), predictors),
    }
    blank = Decoders(model.config, config.seeds).requires_grad_(False)
    largest = shifted(home, "weight scale", max(SCALES))
    untrained = (read(blank, home, predictors), read(blank, largest, predictors))
    longer = read(model, replace(home, points=LONGER * (home.points - 1) + 1), predictors)
    return LabStudy(
        name="shift",
        question="What does a transformer trained on linear regression do on other inputs, targets and lengths?",
        answer=_answer(along, targets, longer, home),
        claims=[*_exact_claims(along), *_trained_claims(along, longer, untrained, home)],
        charts=[
            _ratio_chart(along),
            *(_axis_chart(axis, readings) for axis, readings in along.items()),
            _points_chart("Loss by examples in context, beyond training's length", longer, home.points - 1),
            *(
                _points_chart(f"Loss by examples in context, target {name}", reading, home.points - 1)
                for name, reading in targets.items()
                if reading is not targets["linear, as trained"]
            ),
        ],
        tables=[_table(along, targets, longer, home)],
        notes=[*notes_on_size(config), _NOTE],
    )


_NOTE = (
    "Losses are to the clean y, over its mean square under the same shift. Ratios compare means over all points with "
    "an example before them, because least squares without noise is exact once there are as many examples as "
    "dimensions. With noise or a network's targets it errs without bound there."
)


def shifted(home: RegressionTasks, axis: Axis, strength: float) -> RegressionTasks:
    """The tasks of training with one thing changed: scales are over training's, noise in units of y."""
    if axis == "input scale":
        return replace(home, input_scale=strength)
    if axis == "condition number":
        return replace(home, condition=strength)
    if axis == "weight scale":
        return replace(home, weight_scale=home.weight_deviation * strength)
    return replace(home, noise=strength)


def sparse(home: RegressionTasks) -> RegressionTasks:
    """Linear functions of three coordinates, or of all but one where there are no more."""
    return replace(home, target="sparse", sparsity=min(3, home.dimension - 1))


def read(model: Decoders, tasks: RegressionTasks, predictors: dict[str, Predictor]) -> ShiftLosses:
    """Losses of the transformers and of exact predictors on sequences that none was made for."""
    sequences = drawn(tasks)
    own = errors_by_point(predictions(model, sequences), sequences.clean)
    tried: dict[str, Predictor] = dict(predictors)
    if tasks.noise:
        tried["Bayes, which knows the noise"] = Bayes(tasks.noise, tasks.weight_deviation)
    exact = {
        name: errors_by_point(by_point(one, sequences.x, sequences.y), sequences.clean) for name, one in tried.items()
    }
    return ShiftLosses(own, exact)


Along = dict[Axis, dict[float, ShiftLosses]]


def _exact_claims(along: Along) -> list[Claim]:
    """What holds of exact predictors without chance: least squares commutes with scales, ridge does not."""
    claims = []
    axis: Axis
    for axis in ("input scale", "weight scale"):
        for name in (LEAST_SQUARES, "ridge 0.1"):
            if axis == "weight scale" and name != LEAST_SQUARES:
                # Ridge is linear in y, and so indifferent to its scale.
                continue
            losses = [reading.mean(name) for reading in along[axis].values()]
            spread = max(losses) / min(losses) - 1
            claims.append(
                Claim(
                    says=f"The relative loss of {name} does not depend on the {axis}.",
                    expected="largest over smallest loss, less 1: below 1e-6",
                    found=over_seeds([spread]),
                    holds=spread < 1e-6,
                    must_fail=name != LEAST_SQUARES,
                )
            )
    return claims


def _trained_claims(
    along: Along, longer: ShiftLosses, untrained: tuple[ShiftLosses, ShiftLosses], home: RegressionTasks
) -> list[Claim]:
    """What training leaves: a transformer loses more where it was not trained.

    Not of skewed inputs: with fewer directions that matter there is less to lose, and that says nothing of training.
    """
    claims = []
    axis: Axis
    for axis, source in (
        ("input scale", f"{OSWALD}, section 3"),
        ("weight scale", f"{GARG}, section 4"),
    ):
        furthest = max(along[axis])
        at_home, away = along[axis][AT_HOME[axis]], along[axis][furthest]
        claims.append(_loses_more("A trained transformer", f"{axis} {furthest:g}", at_home, away, source))
    # What has learned nothing has nothing to lose: larger targets only make what it says matter less.
    scale = f"weight scale {max(SCALES):g}"
    claims.append(_loses_more("An untrained transformer", scale, *untrained, f"{GARG}, section 4", must_fail=True))
    learned, beyond = (longer.own[:, n].tolist() for n in (home.points - 1, -1))
    gained = over_seeds(ratios(beyond, learned))
    claims.append(
        Claim(
            says=f"A trained transformer goes on to learn from {LONGER} times as many examples as in training.",
            expected="loss after all of them over loss after as many as in training: below 1 with its interval",
            found=gained,
            holds=holds_below(gained, 1.0),
            source=f"{GARG}, section 4",
        )
    )
    return claims


def _loses_more(
    who: str, where: str, at_home: ShiftLosses, away: ShiftLosses, source: str, must_fail: bool = False
) -> Claim:
    found = over_seeds(ratios(away.own_mean, at_home.own_mean))
    return Claim(
        says=f"{who} loses more at {where} than as trained.",
        expected="loss over the mean square of y, there over as trained: above 1 with its interval",
        found=found,
        holds=holds_above(found, 1.0, must_fail),
        must_fail=must_fail,
        source=source,
    )


def _ratio_chart(along: Along) -> LabChart:
    """All axes in one: the transformer alone, by how far the shift goes, on an axis of each curve's own units."""
    return LabChart(
        title="The transformer's loss over that of the best exact predictor, by shift",
        x="scale over training's, or condition number, or noise in units of y",
        y="loss over the best exact predictor's",
        log_x=True,
        log_y=True,
        curves=[
            LabCurve(
                name=axis,
                # Noise 0, as trained, has no place on a logarithmic axis; the other curves show the ratio as trained.
                x=[strength for strength in readings if strength > 0],
                y=[over_seeds(one.ratios) for strength, one in readings.items() if strength > 0],
            )
            for axis, readings in along.items()
        ],
        note="The best is least squares, with noise Bayes, which knows how much. Trained at scales and condition "
        "number 1, without noise.",
    )


def _axis_chart(axis: Axis, readings: dict[float, ShiftLosses]) -> LabChart:
    """Losses themselves; Bayes has none where there is no noise."""
    names = list(dict.fromkeys(name for one in readings.values() for name in one.exact))
    drawn_losses = {
        name: {
            strength: one.mean(name)
            for strength, one in readings.items()
            if name in one.exact and one.mean(name) <= SHOWN
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
            LabCurve(name="transformer", x=list(readings), y=[over_seeds(one.own_mean) for one in readings.values()]),
            *(exact_curve(name, list(losses), list(losses.values())) for name, losses in drawn_losses.items()),
        ],
        note=f"Mean over points with an example before them. Trained at {AT_HOME[axis]:g}. Losses above {SHOWN:g}, of "
        "descent that diverges or of least squares that meets noise, are left out.",
    )


def _axis_label(axis: Axis) -> str:
    if axis == "condition number":
        return "condition number of the inputs' covariance"
    if axis == "noise":
        return "standard deviation of the noise, in units of y"
    return f"{axis}, over training's"


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
        note=f"Trained on up to {in_training} examples. Errors below {LEAST_SHOWN:g} are drawn there.",
    )


def _table(along: Along, targets: dict[str, ShiftLosses], longer: ShiftLosses, home: RegressionTasks) -> LabTable:
    readings = {f"target {name}": reading for name, reading in targets.items()}
    readings |= {
        f"{axis} {strength:g}": reading
        for axis, row in along.items()
        for strength, reading in row.items()
        if strength != AT_HOME[axis]
    }
    readings[f"{longer.own.shape[1] - 1} examples rather than {home.points - 1}"] = longer
    at_home = targets["linear, as trained"]
    names = list(at_home.exact)
    return LabTable(
        title="Loss of the transformer and of exact predictors, by shift",
        columns=[
            "transformer",
            *names,
            "transformer over the best",
            "of this, over as trained",
            "transformer after all examples",
        ],
        rows=[
            LabRow(
                name=name,
                cells=[
                    over_seeds(reading.own_mean),
                    *(over_seeds([reading.mean(exact)]) for exact in names),
                    over_seeds(reading.ratios),
                    over_seeds(reading.costs(at_home)),
                    over_seeds(reading.own[:, -1].tolist()),
                ],
            )
            for name, reading in readings.items()
        ],
        note="Means over points with an example before them, but for the last column. The best is the exact predictor "
        "of the least loss, with noise Bayes, which knows how much. What is over as trained is a ratio of ratios, "
        "seed by seed: above 1 is what the shift costs.",
    )


def _answer(along: Along, targets: dict[str, ShiftLosses], longer: ShiftLosses, home: RegressionTasks) -> str:
    at_home, *others = targets.values()
    times = {
        f"{axis} {strength:g}": mean(reading.costs(at_home))
        for axis, readings in along.items()
        if axis != "noise"
        for strength, reading in readings.items()
        if strength != AT_HOME[axis]
    }
    _, *names = targets
    elsewhere = ", ".join(f"{name} {mean(one.costs(at_home)):.2f}" for name, one in zip(names, others, strict=True))
    inside, beyond = (mean(longer.own[:, n].tolist()) for n in (home.points - 1, -1))
    return (
        f"As trained, a transformer's loss is {mean(at_home.ratios):.2f} times that of the best exact predictor. "
        f"{_dearest(times)} On other targets it is, over as trained: {elsewhere}. After {home.points - 1} examples, as "
        f"many as in training, its loss is {inside:.3g}, after {longer.own.shape[1] - 1} {beyond:.3g}."
    )


def _dearest(times: dict[str, float]) -> str:
    """Which shifts multiply that ratio most and least; only what is above 1 is a cost."""
    *_, worst = ranked = sorted(times, key=lambda name: times[name])
    least = ranked[0]
    if times[worst] <= 1:
        return (
            f"No shift of inputs and weights costs anything: at most it is {times[worst]:.3g} times this, at {worst}."
        )
    most = f"Of the shifts of inputs and weights {worst} costs most ({times[worst]:.3g} times this)"
    if times[least] > 1:
        return f"{most} and {least} least ({times[least]:.3g} times)."
    free = sum(value <= 1 for value in times.values())
    return f"{most}; {free} of {len(times)} cost nothing, {least} the least of them ({times[least]:.3g} times)."
