"""Which layer learns linear functions best in context: attention, or layers that do gradient descent at inference?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor

from dualform.errors import NumericalError
from dualform.lab.predictors import (
    Bayes,
    Descent,
    LeastSquares,
    OnePassSGD,
    Predictor,
    best_of,
    by_point,
    errors_by_point,
)
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.sequence_model import MIXERS, Mixer, SequenceModel, SequenceModelConfig, train_sequence_model
from dualform.lab.training import Training
from dualform.ops.streams import stream
from dualform.result import Estimate
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.laboratory.curves import exact_curve, seed_curve
from dualform.studies.laboratory.layer_equivalences import equivalence_claims, equivalence_errors
from dualform.studies.laboratory.result import Claim, LabChart, LabRow, LabStudy, LabTable
from dualform.studies.pieces import PieceContent, PieceStore, load_or_make
from dualform.studies.seed_statistics import over_seeds, paired_difference

STEPS = 400
"""Training steps, before the setting `steps` is applied."""

NOISES = (0.0, 0.5)
"""Standard deviations of the noise in y, in units of the function's; one setting each."""

_BASELINE: Mixer = "softmax"

_WIDTH, _LAYERS, _HEADS, _MLP, _BATCH, _RATE = 32, 2, 2, 64, 32, 5e-3

_TESTED = 2048
"""Number of sequences on which errors are measured, the same for all models."""

_RATES = torch.logspace(-2, 0.5, 26).tolist()
"""Rates tried for exact predictors that have one."""

_LARGEST_DIMENSION, _POINTS_A_DIMENSION = 5, 3


@dataclass(frozen=True)
class _Setting:
    """One distribution of tasks, and the sequences on which its models are tested."""

    tasks: RegressionTasks

    @property
    def name(self) -> str:
        return f"noise {self.tasks.noise:g}" if self.tasks.noise else "without noise"

    @cached_property
    def test(self) -> Sequences:
        return self._draw("test")

    @cached_property
    def tuning(self) -> Sequences:
        """Sequences on which the rates of exact predictors are chosen."""
        return self._draw("tuning")

    def _draw(self, purpose: str) -> Sequences:
        return self.tasks.draw(_TESTED, stream(purpose, 0, round(1000 * self.tasks.noise)))

    def errors(self, predicted: Tensor) -> Tensor:
        """Squared errors of predictions for `test`, divided by the mean square of the clean targets, `(point,)`."""
        return errors_by_point(predicted.double(), self.test.clean.double())

    def errors_of(self, predictor: Predictor) -> Tensor:
        """Errors of an exact predictor, `(point,)`."""
        return self.errors(by_point(predictor, self.test.x.double(), self.test.y.double()))

    def best(self, make: Callable[[float], Predictor]) -> Tensor:
        """Errors at the best rate, which is chosen on other sequences, as a model's weights are."""
        x, y, clean = (tensor.double() for tensor in (self.tuning.x, self.tuning.y, self.tuning.clean))
        return self.errors_of(best_of([make(rate) for rate in _RATES], x, y, clean))


@dataclass(frozen=True)
class _Runs:
    """Errors of the models of one setting."""

    setting: _Setting
    errors: dict[tuple[Mixer, int], Tensor]
    """Errors by mixer and seed, `(point,)`; trainings that diverged are missing."""
    parameters: dict[Mixer, int]

    def of(self, mixer: Mixer) -> dict[int, Tensor]:
        return {seed: errors for (name, seed), errors in self.errors.items() if name == mixer}


def pieces(config: RegressionConfig) -> int:
    """Number of pieces: one for each training, and one for the equivalences."""
    return len(NOISES) * len(MIXERS) * len(config.seeds) + 1


def layers(
    config: RegressionConfig, store: PieceStore, advance: Callable[[float, str], None] = lambda amount, doing: None
) -> LabStudy:
    """Train every mixer on linear tasks, seed by seed, and verify the formula that each is said to compute.

    Args:
        config: Settings of the laboratory; dimension is reduced to at most 5, points to at most 3 for each dimension.
        store: Stores each finished training.
        advance: Called with 1 and a name after each piece.
    """
    notes: list[str] = []
    settings = [_Setting(_tasks(config, noise)) for noise in NOISES]
    claims = _claims(config, settings[0], store)
    advance(1.0, "layers, equivalences")
    runs = [_trained(config, setting, store, advance, notes) for setting in settings]
    references = {each.setting.name: _references(each.setting) for each in runs}
    return LabStudy(
        name="layers",
        question="Which layer learns a linear function best from examples in context, and does each compute its "
        "formula?",
        answer=_answer(config, runs, references, claims),
        claims=claims,
        charts=[_chart(each, references[each.setting.name]) for each in runs],
        tables=[_table(config, each, references[each.setting.name]) for each in runs],
        notes=_notes_on_size(config) + notes + _cautions(config),
    )


def _tasks(config: RegressionConfig, noise: float) -> RegressionTasks:
    dimension = min(config.dimension, _LARGEST_DIMENSION)
    points = min(config.points, _POINTS_A_DIMENSION * dimension)
    return RegressionTasks(dimension=dimension, points=points + 1, noise=noise)


def _notes_on_size(config: RegressionConfig) -> list[str]:
    """A note if the dimension or the number of examples was reduced, else nothing."""
    tasks = _tasks(config, 0.0)
    requested, used = (config.dimension, config.points), (tasks.dimension, tasks.points - 1)
    if requested == used:
        return []
    return [
        f"Trained on {used[0]} dimensions and {used[1]} examples instead of {requested[0]} and {requested[1]}: "
        f"training {len(MIXERS)} layers in every setting and seed takes minutes in few dimensions, hours in more."
    ]


def _claims(config: RegressionConfig, setting: _Setting, store: PieceStore) -> list[Claim]:
    """Claims of equivalence. Their errors are stored, because rounding errors differ from run to run."""
    name, inputs = "layers, equivalences", f"{config.seeds} {setting.tasks}"
    piece = load_or_make(store, name, inputs, lambda: ({"errors": equivalence_errors(config.seeds, setting.tasks)}, {}))
    return equivalence_claims(piece.tensors["errors"])


def _shape(mixer: Mixer, tasks: RegressionTasks) -> SequenceModelConfig:
    return SequenceModelConfig(
        mixer,
        dimension=tasks.dimension,
        width=_WIDTH,
        layers=_LAYERS,
        heads=_HEADS,
        mlp=_MLP,
        chunk=2 * tasks.points,
    )


def _trained(
    config: RegressionConfig,
    setting: _Setting,
    store: PieceStore,
    advance: Callable[[float, str], None],
    notes: list[str],
) -> _Runs:
    errors: dict[tuple[Mixer, int], Tensor] = {}
    parameters: dict[Mixer, int] = {}
    for seed in config.seeds:
        for mixer in MIXERS:
            shape = _shape(mixer, setting.tasks)
            name = f"layers, {setting.name}, {mixer}, seed {seed}"
            inputs = f"{shape} {setting.tasks} {config.scaled(STEPS)} {_BATCH} {_RATE} {_TESTED}"
            piece = load_or_make(store, name, inputs, partial(_train, config, shape, seed, setting))
            if piece.about["failed"]:
                notes.append(f"{setting.name}, seed {seed}: {piece.about['failed']} It is left out.")
            else:
                errors[mixer, seed] = piece.tensors["errors"]
            parameters[mixer] = piece.about["parameters"]
            advance(1.0, name)
    return _Runs(setting, errors, parameters)


def _train(config: RegressionConfig, shape: SequenceModelConfig, seed: int, setting: _Setting) -> PieceContent:
    """Errors of a trained model, or the reason why the training failed."""
    parameters = sum(parameter.numel() for parameter in SequenceModel(shape).parameters())
    failed = ""
    errors = torch.full((setting.tasks.points,), math.nan, dtype=torch.float64)
    try:
        model = train_sequence_model(shape, setting.tasks, Training(config.scaled(STEPS), _BATCH, _RATE), seed)
        with torch.no_grad():
            errors = setting.errors(model(setting.test.x, setting.test.y))
        if not bool(errors.isfinite().all()):
            failed = f"{shape.mixer}: its predictions are not finite."
    except NumericalError as error:
        # A failed training must not stop the others.
        failed = str(error)
    return {"errors": errors}, {"failed": failed, "parameters": parameters}


def _references(setting: _Setting) -> dict[str, Tensor]:
    """Errors of exact predictors by name, `(point,)`; the Bayes predictor comes first."""
    tasks = setting.tasks
    errors = {"Bayes": setting.errors_of(Bayes(tasks.noise, tasks.weight_deviation))}
    if tasks.noise:
        errors["least squares"] = setting.errors_of(LeastSquares())
    else:
        # Without noise both are the same predictor.
        errors = {"least squares = Bayes": errors["Bayes"]}
    errors["one pass of SGD"] = setting.best(OnePassSGD)
    errors["one step of descent"] = setting.best(lambda rate: Descent(1, rate))
    return errors


def _mean(errors: Tensor) -> float:
    """Mean over all points but the first, which has no examples before it."""
    return float(errors[1:].mean())


def _chart(runs: _Runs, references: dict[str, Tensor]) -> LabChart:
    tasks = runs.setting.tasks
    points = [float(n) for n in range(tasks.points)]
    curves = [exact_curve(name, points, errors.tolist()) for name, errors in references.items()]
    for mixer in MIXERS:
        own = list(runs.of(mixer).values())
        if own:
            curves.append(seed_curve(mixer, points, torch.stack(own)))
    return LabChart(
        title=f"Error by examples in context, {runs.setting.name}, d = {tasks.dimension}, N = {tasks.points - 1}",
        x="examples in context",
        y="mean squared error / mean square of the function",
        # With noise, least squares has a very large error where there are as many examples as dimensions.
        log_y=bool(tasks.noise),
        curves=curves,
        note="Errors are relative to the function itself, without the noise of the examples. One pass of SGD and one "
        "step of descent use the best rate on average over other sequences.",
    )


def _table(config: RegressionConfig, runs: _Runs, references: dict[str, Tensor]) -> LabTable:
    rows = []
    for mixer in MIXERS:
        own = list(runs.of(mixer).values())
        rows.append(
            LabRow(
                name=mixer,
                cells=[
                    over_seeds([_mean(errors) for errors in own]) if own else None,
                    over_seeds([float(errors[-1]) for errors in own]) if own else None,
                    _difference(config, runs, mixer),
                    over_seeds([float(runs.parameters[mixer])]),
                ],
            )
        )
    rows += [
        LabRow(name=name, cells=[over_seeds([_mean(errors)]), over_seeds([float(errors[-1])]), None, None])
        for name, errors in references.items()
    ]
    n = runs.setting.tasks.points - 1
    return LabTable(
        title=f"Layers, {runs.setting.name}",
        columns=[
            f"mean error after 1 to {n} examples",
            f"error after {n} examples",
            f"mean error minus {_BASELINE}'s, seed by seed",
            "parameters",
        ],
        rows=rows,
        note="Mean squared errors, divided by the mean square of the function; exact predictors last.",
    )


def _difference(config: RegressionConfig, runs: _Runs, mixer: Mixer) -> Estimate | None:
    """Paired difference of mean errors from the baseline, over seeds with both; None if there are none."""
    own, baseline = runs.of(mixer), runs.of(_BASELINE)
    seeds = [seed for seed in config.seeds if seed in own and seed in baseline]
    if mixer == _BASELINE or not seeds:
        return None
    difference = paired_difference(
        seeds, [_mean(own[seed]) for seed in seeds], [_mean(baseline[seed]) for seed in seeds]
    )
    return Estimate(mean=difference.mean, ci95=difference.ci95, n=difference.n)


def _answer(
    config: RegressionConfig, runs: Sequence[_Runs], references: dict[str, dict[str, Tensor]], claims: Sequence[Claim]
) -> str:
    sentences = [_ranking(config, each, references[each.setting.name]) for each in runs]
    equal, wrong = ([claim for claim in claims if claim.must_fail == must_fail] for must_fail in (False, True))
    sentences.append(
        f"{sum(claim.holds for claim in equal)} of {len(equal)} equivalences hold numerically, and "
        f"{sum(not claim.holds for claim in wrong)} of {len(wrong)} cases that must fail do fail."
    )
    return " ".join(sentences)


def _ranking(config: RegressionConfig, runs: _Runs, references: dict[str, Tensor]) -> str:
    setting = runs.setting.name[0].upper() + runs.setting.name[1:]
    means = {mixer: math.fsum(map(_mean, own.values())) / len(own) for mixer in MIXERS if (own := runs.of(mixer))}
    if not means:
        return f"{setting}: no model could be trained."
    best = min(means, key=lambda mixer: means[mixer])
    baseline = f", {_BASELINE} {means[_BASELINE]:.3f}" if _BASELINE in means and best != _BASELINE else ""
    exact, bayes = next(iter(references.items()))
    intervals = {mixer: each.ci95 for mixer in MIXERS if (each := _difference(config, runs, mixer)) is not None}
    lower = [mixer for mixer, (_, high) in intervals.items() if high is not None and high < 0]
    higher = [mixer for mixer, (low, _) in intervals.items() if low is not None and low > 0]
    compared = ""
    if any(low is not None for low, _ in intervals.values()):
        compared = f" Significantly lower than {_BASELINE}: {_listed(lower)}; significantly higher: {_listed(higher)}."
    return (
        f"{setting}, {best} has the least mean error, {means[best]:.3f} ({exact} {_mean(bayes):.3f}{baseline})."
        f"{compared}"
    )


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) or "none"


def _cautions(config: RegressionConfig) -> list[str]:
    notes = [
        f"All models have width {_WIDTH}, {_LAYERS} layers, {_HEADS} heads and an MLP of {_MLP}, and are trained for "
        f"{config.scaled(STEPS)} steps of {_BATCH} sequences with the same learning rate, tuned for none of them.",
        "ttt-linear and titans fit through a LayerNorm, whose output has the same length for any y, and compute their "
        "gradients at the weights before each example; mesa has no decay.",
        f"Intervals of differences from {_BASELINE} are not adjusted for {len(MIXERS) - 1} comparisons.",
    ]
    if len(config.seeds) == 1:
        notes.append("One seed has no interval, so no layer is shown to be better.")
    return notes
