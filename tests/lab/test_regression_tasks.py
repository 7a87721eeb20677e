"""Sequences are what they are said to be: targets, inputs, covariance, noise."""

import math

import pytest
import torch

from dualform.errors import ConfigError
from dualform.lab.regression_tasks import (
    VON_OSWALD,
    Inputs,
    RegressionTasks,
    Sequences,
    Target,
    random_directions,
    stretched,
)

TASKS = RegressionTasks(dimension=4, points=9)


def drawn(tasks: RegressionTasks, n: int = 4000, seed: int = 0) -> Sequences:
    return tasks.draw(n, torch.Generator().manual_seed(seed), torch.float64)


def mean_square(values: torch.Tensor) -> float:
    return float(values.square().mean())


@pytest.mark.parametrize("target", ["linear", "sparse", "network"])
def test_at_the_defaults_inputs_and_targets_are_of_unit_size(target: Target) -> None:
    # Of 4,000 functions the mean square of y is known to a few percent.
    batch = drawn(RegressionTasks(dimension=8, points=9, target=target, hidden=16))
    assert batch.x.shape == (4000, 9, 8)
    assert batch.y.shape == (4000, 9)
    assert mean_square(batch.x) == pytest.approx(1.0, abs=0.02)
    assert mean_square(batch.clean) == pytest.approx(1.0, abs=0.08)
    assert batch.y.equal(batch.clean)


def test_linear_targets_are_w_x() -> None:
    batch = drawn(TASKS)
    assert batch.w is not None
    torch.testing.assert_close((batch.x * batch.w[:, None]).sum(-1), batch.clean)
    assert float(batch.w.std()) == pytest.approx(0.5, rel=0.03)


def test_a_sparse_function_hangs_on_few_inputs_and_any_as_often_as_another() -> None:
    batch = drawn(RegressionTasks(dimension=6, points=4, target="sparse", sparsity=2))
    assert batch.w is not None
    kept = batch.w != 0
    assert (kept.sum(-1) == 2).all()
    # A third of 4,000 each, give or take three standard deviations.
    torch.testing.assert_close(kept.double().mean(0), torch.full((6,), 1 / 3).double(), atol=0.023, rtol=0)
    # The scale is that of each weight, zeros among them.
    assert mean_square(batch.w) == pytest.approx(1 / 6, rel=0.05)
    torch.testing.assert_close((batch.x * batch.w[:, None]).sum(-1), batch.clean)


def test_no_weights_explain_a_network_but_those_of_linear_functions_do() -> None:
    residuals = {}
    for target in ("linear", "network"):
        batch = drawn(RegressionTasks(dimension=3, points=64, target=target, hidden=8), 50)
        w = torch.linalg.lstsq(batch.x, batch.clean[..., None]).solution
        residuals[target] = mean_square((batch.x @ w)[..., 0] - batch.clean) / mean_square(batch.clean)
    assert residuals["linear"] < 1e-25
    assert residuals["network"] > 0.1
    assert drawn(RegressionTasks(dimension=3, points=4, target="network"), 2).w is None


def test_a_network_is_homogeneous_as_relu_is() -> None:
    tasks = RegressionTasks(dimension=3, points=5, target="network")
    doubled = RegressionTasks(dimension=3, points=5, target="network", input_scale=2.0)
    torch.testing.assert_close(drawn(doubled, 9).clean, 2 * drawn(tasks, 9).clean)


def test_uniform_inputs_keep_to_their_cube_and_are_not_turned() -> None:
    batch = drawn(RegressionTasks(dimension=3, points=50, inputs="uniform", input_scale=3.0), 400)
    assert float(batch.x.abs().max()) <= 1.5
    assert float(batch.x.abs().max()) > 1.49
    assert mean_square(batch.x) == pytest.approx(9 / 12, rel=0.02)
    # A uniform variable's kurtosis, which sums of several (a turned cube) do not have.
    assert float((batch.x**4).mean()) / mean_square(batch.x) ** 2 == pytest.approx(1.8, abs=0.03)


@pytest.mark.parametrize("inputs", ["normal", "uniform"])
@pytest.mark.parametrize("condition", [1.0, 10.0, 100.0])
def test_inputs_have_the_covariance_that_was_asked_for(inputs: Inputs, condition: float) -> None:
    tasks = RegressionTasks(dimension=3, points=4000, inputs=inputs, condition=condition)
    x = drawn(tasks, 8).x
    eigenvalues = torch.linalg.eigvalsh(x.mT @ x / 4000)
    variance = 1.0 if inputs == "normal" else 1 / 12
    assert torch.allclose(eigenvalues.sum(1), torch.tensor(3 * variance).double(), rtol=0.1)
    logs = eigenvalues.log()
    assert float((logs[:, -1] - logs[:, 0]).mean()) == pytest.approx(math.log(condition), abs=0.25)
    assert float((logs[:, -1] - logs[:, 1]).mean()) == pytest.approx(math.log(condition) / 2, abs=0.25)


def test_each_sequence_is_skewed_in_directions_of_its_own() -> None:
    x = drawn(RegressionTasks(dimension=3, points=4000, condition=100.0), 2).x
    first, second = torch.linalg.eigh(x.mT @ x).eigenvectors[:, :, -1]
    assert abs(float(first @ second)) < 0.95
    directions = random_directions(5, 3, torch.Generator().manual_seed(0), torch.float64)
    torch.testing.assert_close(directions @ directions.mT, torch.eye(3).double().expand(5, 3, 3))
    ones = torch.ones(2, 4, 1).double()
    assert stretched(ones, 10.0, ones[:, :1]).equal(ones), "one dimension has no shape"


def test_noise_is_added_to_what_is_shown_and_not_to_the_function() -> None:
    noisy = drawn(RegressionTasks(dimension=4, points=9, noise=0.3))
    silent = drawn(TASKS)
    assert noisy.clean.equal(silent.clean), "noise changes no other draw"
    added = noisy.y - noisy.clean
    assert float(added.std()) == pytest.approx(0.3, rel=0.02)
    assert abs(float((added * noisy.clean).mean())) < 0.01


def test_equal_generators_draw_the_same_and_others_do_not() -> None:
    again, other = drawn(TASKS, 5), drawn(TASKS, 5, seed=1)
    assert drawn(TASKS, 5).x.equal(again.x)
    assert drawn(TASKS, 5).y.equal(again.y)
    assert not other.x.equal(again.x)
    assert TASKS.draw(2, torch.Generator()).x.dtype == torch.float32


def test_predicting_zero_in_von_oswalds_setting_has_the_loss_of_the_paper() -> None:
    batch = drawn(VON_OSWALD, 8000)
    assert batch.x.shape[1:] == (11, 10)
    # Half of d Var(x) Var(w) = 10 / 12.
    assert mean_square(batch.y) / 2 == pytest.approx(0.417, rel=0.02)


def test_errors_name_every_mistake() -> None:
    with pytest.raises(
        ConfigError, match=r"target is 'cubic', expected one of 'linear', 'sparse', 'network'; .*noise is -1"
    ):
        RegressionTasks(dimension=2, points=2, target="cubic", noise=-1.0)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"dimension is 0, expected 1 or more; condition is 0\.5, expected 1 or more"):
        RegressionTasks(dimension=0, points=2, condition=0.5)
    with pytest.raises(ConfigError, match="sparsity is 3, expected 1 to 2, the dimension"):
        RegressionTasks(dimension=2, points=2, target="sparse")
