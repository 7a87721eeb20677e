"""Does momentum speed up in-context regression as it speeds up gradient descent?"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.lab.predictors import Ridge, by_point
from dualform.lab.regression import LinearTasks, best_descent, errors_by_point, train_regressor
from dualform.ops.streams import stream
from dualform.result import MomentumRegression, RegressionCurve
from dualform.studies.momentum.arms import prepare_for
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.pieces import Cells, Piece
from dualform.studies.seed_statistics import over_seeds, paired

CONDITIONS = (1.0, 10.0, 100.0)
TASKS = LinearTasks(dimension=5, points=16)
LAYERS = 3
"""Of the transformer, and steps of the descent that it is read beside: a layer can do a step at most."""

_ASKED = 2048
"""Sequences on which errors are measured."""


@dataclass(frozen=True)
class _Asked:
    x: Tensor
    y: Tensor


def regress(
    config: MomentumConfig, cells: Cells, advance: Callable[[float, str], None] = lambda amount, doing: None
) -> MomentumRegression:
    """Train every arm on in-context regression, seed by seed, and lay its errors beside exact predictors'.

    Args:
        config: Arms, seeds, steps.
        cells: Keeps each finished run.
        advance: Told the steps done and what is being trained.
    """
    asked = {condition: _sequences(condition) for condition in CONDITIONS}
    errors: dict[tuple[Arm, int], Tensor] = {}
    for seed in config.seeds:
        for arm in config.arms:
            name = f"regression, {arm.name}, seed {seed}"
            inputs = f"{TASKS} {CONDITIONS} {config.regression_steps}"
            piece = cells.get(name, inputs)
            if piece is None:
                piece = Piece(name, inputs, {"errors": _errors(config, arm, seed, asked)}, {})
                cells.put(piece)
            errors[arm, seed] = piece.tensors["errors"]
            advance(float(config.regression_steps), name)
    return MomentumRegression(
        dimension=TASKS.dimension,
        points=TASKS.points,
        steps=config.regression_steps,
        curves=[
            _curve(config, arm, number, condition, errors)
            for arm in config.arms
            for number, condition in enumerate(CONDITIONS)
        ],
        references=_references(asked),
    )


def _sequences(condition: float) -> _Asked:
    generator = stream("test", 0, round(condition))
    return _Asked(*TASKS.draw(_ASKED, condition, generator))


def _errors(config: MomentumConfig, arm: Arm, seed: int, asked: dict[float, _Asked]) -> Tensor:
    """Errors of one trained model, `(condition, point)`."""
    model = train_regressor(TASKS, CONDITIONS, steps=config.regression_steps, seed=seed, prepare=prepare_for(arm))
    with torch.no_grad():
        return torch.stack([errors_by_point(model(one.x, one.y), one.y) for one in asked.values()]).double()


def _curve(
    config: MomentumConfig, arm: Arm, number: int, condition: float, errors: dict[tuple[Arm, int], Tensor]
) -> RegressionCurve:
    own = torch.stack([errors[arm, seed][number] for seed in config.seeds])
    difference = None
    if arm.baseline is not None:
        beside = torch.stack([errors[arm.baseline, seed][number] for seed in config.seeds])
        # The first point has seen nothing, and no model can know better than another.
        logs = (own[:, 1:].log().mean(1).tolist(), beside[:, 1:].log().mean(1).tolist())
        difference = paired(config.seeds, *logs)
    return RegressionCurve(
        arm=arm.name,
        condition=condition,
        loss=[over_seeds(point) for point in own.T.tolist()],
        difference=difference,
    )


def _references(asked: dict[float, _Asked]) -> dict[str, list[RegressionCurve]]:
    """Exact predictors, told everything but the function itself."""
    predictors: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        # Hardly any ridge, so that too few points give the shortest solution.
        "least squares": lambda x, y: by_point(Ridge(1e-6), x, y),
        f"gradient descent, {LAYERS} steps": lambda x, y: best_descent(x, y, LAYERS, heavy_ball=False),
        f"heavy ball, {LAYERS} steps": lambda x, y: best_descent(x, y, LAYERS, heavy_ball=True),
    }
    found: dict[str, list[RegressionCurve]] = {}
    for name, predict in predictors.items():
        for condition, one in asked.items():
            errors = errors_by_point(predict(one.x.double(), one.y.double()), one.y.double())
            found.setdefault(name, []).append(
                RegressionCurve(
                    arm=name,
                    condition=condition,
                    loss=[over_seeds([error]) for error in errors.tolist()],
                    difference=None,
                )
            )
    return found
