"""In-context regression with all arms: does momentum speed it up as it speeds up gradient descent?"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from dualform.lab.predictors import Descent, Predictor, Ridge, best_of, by_point, errors_by_point
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.sequence_model import SequenceModel, SequenceModelConfig, train_sequence_model
from dualform.lab.training import Training
from dualform.ops.streams import stream
from dualform.studies.momentum.arms import prepare_for
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.result import MomentumRegression, RegressionCurve
from dualform.studies.pieces import Piece, PieceStore
from dualform.studies.seed_statistics import over_seeds, paired_difference

CONDITIONS = (1.0, 10.0, 100.0)
"""Condition numbers of the inputs' covariance; training batches alternate between them."""
TASKS = {condition: RegressionTasks(dimension=5, points=16, condition=condition) for condition in CONDITIONS}
LAYERS = 3
"""Layers of the transformer, and steps of exact descent: a layer can do at most one step."""
SHAPE = SequenceModelConfig("softmax", dimension=5, width=64, layers=LAYERS, heads=4, mlp=256, llama=True)
"""A Llama, so that arms change its attention in the same way as in language models."""

_TESTED = 2048
"""Number of sequences on which errors are measured."""
_RATES = torch.logspace(-2, 0.5, 16).tolist()
_MOMENTA = (0.0, 0.3, 0.5, 0.7, 0.9)


def regress(
    config: MomentumConfig, pieces: PieceStore, advance: Callable[[float, str], None] = lambda amount, doing: None
) -> MomentumRegression:
    """Train every arm on in-context regression, seed by seed, and compare its errors with those of exact predictors.

    Args:
        config: Settings of the comparison.
        pieces: Stores the errors of each finished run.
        advance: Called with the number of steps and a name after each training.
    """
    test = {condition: _sequences(condition) for condition in CONDITIONS}
    errors: dict[tuple[Arm, int], Tensor] = {}
    for seed in config.seeds:
        for arm in config.arms:
            name = f"regression, {arm.name}, seed {seed}"
            inputs = f"{SHAPE} {TASKS} {config.regression_steps}"
            piece = pieces.get(name, inputs)
            if piece is None:
                piece = Piece(name, inputs, {"errors": _errors(train_arm(config, arm, seed), test)}, {})
                pieces.put(piece)
            errors[arm, seed] = piece.tensors["errors"]
            advance(float(config.regression_steps), name)
    return MomentumRegression(
        dimension=SHAPE.dimension,
        points=TASKS[1.0].points,
        steps=config.regression_steps,
        curves=[
            _curve(config, arm, number, condition, errors)
            for arm in config.arms
            for number, condition in enumerate(CONDITIONS)
        ],
        references=_references(test),
    )


def _sequences(condition: float) -> Sequences:
    return TASKS[condition].draw(_TESTED, stream("test", 0, round(condition)))


def train_arm(config: MomentumConfig, arm: Arm, seed: int) -> SequenceModel:
    """Train the model of one arm and seed."""
    training = Training(config.regression_steps)
    return train_sequence_model(SHAPE, list(TASKS.values()), training, seed, prepare=prepare_for(arm))


def _errors(model: SequenceModel, test: dict[float, Sequences]) -> Tensor:
    """Errors of one trained model, `(condition, point)`."""
    with torch.no_grad():
        errors = [errors_by_point(model(sequences.x, sequences.y), sequences.y) for sequences in test.values()]
        return torch.stack(errors).double()


def _curve(
    config: MomentumConfig, arm: Arm, number: int, condition: float, errors: dict[tuple[Arm, int], Tensor]
) -> RegressionCurve:
    own = torch.stack([errors[arm, seed][number] for seed in config.seeds])
    difference = None
    if arm.baseline is not None:
        baseline = torch.stack([errors[arm.baseline, seed][number] for seed in config.seeds])
        # The first point has no examples before it, so that no model can be better than another.
        logs = (own[:, 1:].log().mean(1).tolist(), baseline[:, 1:].log().mean(1).tolist())
        difference = paired_difference(config.seeds, *logs)
    return RegressionCurve(
        arm=arm.name,
        condition=condition,
        loss=[over_seeds(point) for point in own.T.tolist()],
        difference=difference,
    )


def _references(test: dict[float, Sequences]) -> dict[str, list[RegressionCurve]]:
    """Curves of exact predictors, with the best rates on the test tasks."""
    candidates: dict[str, Iterable[Predictor]] = {
        # A tiny ridge, so that too few points give the solution of minimum norm.
        "least squares": [Ridge(1e-6)],
        f"gradient descent, {LAYERS} steps": [Descent(LAYERS, rate) for rate in _RATES],
        f"heavy ball, {LAYERS} steps": [Descent(LAYERS, rate, momentum) for momentum in _MOMENTA for rate in _RATES],
    }

    def curve(name: str, predictors: Iterable[Predictor], condition: float) -> RegressionCurve:
        x, y = test[condition].x.double(), test[condition].y.double()
        errors = errors_by_point(by_point(best_of(predictors, x, y, y), x, y), y)
        loss = [over_seeds([error]) for error in errors.tolist()]
        return RegressionCurve(arm=name, condition=condition, loss=loss, difference=None)

    return {
        name: [curve(name, predictors, condition) for condition in CONDITIONS]
        for name, predictors in candidates.items()
    }
