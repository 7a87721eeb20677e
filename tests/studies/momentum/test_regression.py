"""In-context regression of all arms: twins begin alike, and errors are laid baseline the baseline's point by point."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.lab.predictors import Ridge, by_point, errors_by_point
from dualform.lab.regression_tasks import RegressionTasks
from dualform.lab.sequence_model import train_sequence_model
from dualform.lab.training import Training
from dualform.ops.streams import stream
from dualform.studies.momentum import regression as study
from dualform.studies.momentum.arms import prepare_for
from dualform.studies.momentum.config import Arm, MomentumConfig
from dualform.studies.momentum.regression import CONDITIONS, LAYERS, SHAPE, TASKS, regress
from dualform.studies.momentum.result import MomentumRegression, RegressionCurve
from dualform.studies.pieces import Piece
from dualform.studies.seed_statistics import over_seeds, paired_difference
from tests.studies.momentum_setting import small_momentum, write_texts
from tests.studies.small import MemoryStore

STEPS = 4


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return write_texts(tmp_path_factory.mktemp("texts"))


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "_TESTED", 64)
        yield


@pytest.fixture(scope="module")
def study_config(texts: dict[str, Any]) -> MomentumConfig:
    return small_momentum(texts, etas=(1e-9, 0.3), controls=("heavy-ball",), regress=True, regression_steps=STEPS)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def result(study_config: MomentumConfig, store: MemoryStore) -> MomentumRegression:
    return regress(study_config, store)


def curve(result: MomentumRegression, arm: str, condition: float) -> RegressionCurve:
    (each,) = [each for each in result.curves if (each.arm, each.condition) == (arm, condition)]
    return each


def errors_of(store: MemoryStore, arm: str) -> Tensor:
    """`(seed, condition, point)`."""
    return torch.stack([store.pieces[f"regression, {arm}, seed {seed}"].tensors["errors"] for seed in (1, 2)])


def test_every_arm_has_a_curve_for_each_condition_number(result: MomentumRegression) -> None:
    names = ["vanilla", "momentum 1e-09", "momentum 0.3", "linear", "heavy-ball 0.3"]
    assert [(each.arm, each.condition) for each in result.curves] == [(name, c) for name in names for c in CONDITIONS]
    assert (result.dimension, result.points, result.steps) == (5, 16, STEPS)
    assert all(len(each.loss) == 16 for each in result.curves)


def test_errors_are_those_of_the_trained_models(result: MomentumRegression, store: MemoryStore) -> None:
    arm = Arm("momentum", 0.3)
    mixture = [RegressionTasks(5, 16, condition=condition) for condition in CONDITIONS]
    model = train_sequence_model(SHAPE, mixture, Training(STEPS), 2, prepare=prepare_for(arm))
    for number, condition in enumerate(CONDITIONS):
        test = mixture[number].draw(64, stream("test", 0, round(condition)))
        with torch.no_grad():
            errors = errors_by_point(model(test.x, test.y), test.y)
        torch.testing.assert_close(errors_of(store, arm.name)[1, number], errors.double())
        for point, estimate in enumerate(curve(result, arm.name, condition).loss):
            assert estimate == over_seeds(errors_of(store, arm.name)[:, number, point].tolist())


def test_arms_of_a_seed_begin_alike_and_see_the_same(result: MomentumRegression, store: MemoryStore) -> None:
    vanilla, hardly, much = (errors_of(store, name) for name in ("vanilla", "momentum 1e-09", "momentum 0.3"))
    torch.testing.assert_close(hardly, vanilla, rtol=1e-3, atol=1e-4)
    assert (much - vanilla).abs().max() > 1e-2
    assert (vanilla[0] - vanilla[1]).abs().max() > 1e-2


@pytest.mark.parametrize(("arm", "baseline"), [("momentum 0.3", "vanilla"), ("heavy-ball 0.3", "linear")])
def test_differences_are_of_log_errors_but_for_the_first_point(
    result: MomentumRegression, store: MemoryStore, arm: str, baseline: str
) -> None:
    for number, condition in enumerate(CONDITIONS):
        logs = [errors_of(store, name)[:, number, 1:].log().mean(1).tolist() for name in (arm, baseline)]
        assert curve(result, arm, condition).difference == paired_difference((1, 2), *logs)
        assert curve(result, baseline, condition).difference is None


def test_exact_predictors_are_references(result: MomentumRegression) -> None:
    steps = f"{LAYERS} steps"
    assert list(result.references) == ["least squares", f"gradient descent, {steps}", f"heavy ball, {steps}"]
    for name, curves in result.references.items():
        assert [each.condition for each in curves] == list(CONDITIONS)
        for each in curves:
            assert (each.arm, each.difference) == (name, None)
            # Before an example has been seen zero is as good as anything.
            assert each.loss[0].mean == pytest.approx(1.0, abs=0.6)
            assert {point.n for point in each.loss} == {1}
    test = TASKS[10.0].draw(64, stream("test", 0, 10))
    x, y = test.x.double(), test.y.double()
    expected = errors_by_point(by_point(Ridge(1e-6), x, y), y).tolist()
    assert [point.mean for point in result.references["least squares"][1].loss] == pytest.approx(expected)
    assert expected[-1] < 1e-6
    # Momentum cannot be worse: none is one of its choices.
    descent, ball = (result.references[f"{name}, {steps}"][2] for name in ("gradient descent", "heavy ball"))
    assert sum(p.mean or 0 for p in ball.loss) <= sum(p.mean or 0 for p in descent.loss) + 1e-9


def test_it_goes_on_where_it_was_stopped(
    study_config: MomentumConfig, result: MomentumRegression, store: MemoryStore
) -> None:
    half = MemoryStore()

    def put(piece: Piece) -> None:
        if len(half.put_names) == 3:
            raise KeyboardInterrupt
        MemoryStore.put(half, piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "put", put)
        with pytest.raises(KeyboardInterrupt):
            regress(study_config, half)
    assert half.put_names == store.put_names[:3]
    steps: list[float] = []
    assert regress(study_config, half, lambda amount, doing: steps.append(amount)) == result
    assert half.put_names == store.put_names
    assert sum(steps) == 5 * 2 * STEPS


def test_other_numbers_of_steps_make_other_pieces(texts: dict[str, Any], store: MemoryStore, tmp_path: Path) -> None:
    config = small_momentum(texts, etas=(), seeds=(1,), regress=True, regression_steps=1)
    n = len(store.put_names)
    regress(config, store)
    assert store.put_names[n:] == ["regression, vanilla, seed 1"]
