"""In-context regression: its sequences are what they are said to be, and exact predictors are exact."""

import copy

import pytest
import torch
from transformers import PreTrainedModel

from dualform.lab.regression import (
    InContextRegressor,
    LinearTasks,
    best_descent,
    errors_by_point,
    train_regressor,
)
from dualform.models.editing.momentum import apply_momentum

TASKS = LinearTasks(dimension=3, points=8)


def drawn(n: int = 400, condition: float = 1.0, tasks: LinearTasks = TASKS) -> tuple[torch.Tensor, torch.Tensor]:
    x, y = tasks.draw(n, condition, torch.Generator().manual_seed(0))
    return x.double(), y.double()


@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_inputs_have_the_covariance_that_was_asked_for(condition: float) -> None:
    tasks = LinearTasks(dimension=3, points=4000)
    x, _ = drawn(8, condition, tasks)
    eigenvalues = torch.linalg.eigvalsh(x.mT @ x / 4000)
    assert torch.allclose(eigenvalues.sum(1), torch.tensor(3.0).double(), rtol=0.1)
    torch.testing.assert_close(
        (eigenvalues[:, -1] / eigenvalues[:, 0]).log().mean(), torch.tensor(condition).double().log(), atol=0.25, rtol=0
    )


def test_targets_are_linear_and_of_unit_size() -> None:
    x, y = drawn(4000)
    assert float(y.square().mean()) == pytest.approx(1.0, abs=0.1)
    w = torch.linalg.lstsq(x[:, :3], y[:, :3, None]).solution
    torch.testing.assert_close((x @ w)[..., 0], y, atol=1e-2, rtol=1e-2)


def test_heavy_ball_is_ahead_of_descent_where_the_condition_is_bad() -> None:
    x, y = drawn(400, 100.0)

    def error(heavy_ball: bool) -> float:
        return float(errors_by_point(best_descent(x, y, 6, heavy_ball), y)[1:].log().mean())

    assert error(True) < error(False) - 0.02


def test_a_prediction_looks_at_nothing_behind_it() -> None:
    model = InContextRegressor(TASKS, width=16, layers=2, heads=2).eval()
    x, y = (t.float() for t in drawn(2))
    with torch.no_grad():
        before = model(x, y)
        changed = y.clone()
        changed[:, 3:] += 1
        after = model(x, changed)
    torch.testing.assert_close(before[:, :4], after[:, :4])
    assert not torch.allclose(before[:, 4:], after[:, 4:])


def _with_momentum(transformer: PreTrainedModel) -> None:
    apply_momentum(transformer, 1e-9)


def test_training_learns_and_twins_begin_alike() -> None:
    seen: list[float] = []
    model = train_regressor(TASKS, (1.0,), steps=150, seed=1, batch=32, after_step=lambda step, loss: seen.append(loss))
    x, y = (t.float() for t in drawn())
    with torch.no_grad():
        errors = errors_by_point(model(x, y), y)
    assert float(errors[-1]) < 0.6
    first: list[float] = []
    with_momentum = train_regressor(
        TASKS,
        (1.0,),
        steps=2,
        seed=1,
        batch=32,
        prepare=lambda transformer: _with_momentum(transformer),
        after_step=lambda step, loss: first.append(loss),
    )
    assert first[0] == pytest.approx(seen[0], abs=1e-5)
    again = train_regressor(TASKS, (1.0,), steps=2, seed=1, batch=32)
    assert all(
        torch.allclose(a, b, atol=1e-5) for a, b in zip(again.parameters(), with_momentum.parameters(), strict=True)
    )
    assert not torch.equal(copy.deepcopy(model).read_out.weight, again.read_out.weight)
