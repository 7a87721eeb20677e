"""Trained self-attention and descent: reports are of what was measured, and what is not descent is found not to be."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch

from dualform.errors import TrainingError
from dualform.lab.in_context_training import QUERIES, self_attention_training, train_together
from dualform.lab.predictors import Descent, DescentPlusPlus, best_descent
from dualform.lab.self_attention import InContextTransformer, SelfAttentionConfig
from dualform.lab.training import Training
from dualform.ops.streams import stream
from dualform.studies.laboratory import trained as study
from dualform.studies.laboratory import trained_measured as measured
from dualform.studies.laboratory.config import RegressionConfig, regression_config
from dualform.studies.laboratory.result import Claim, LabStudy
from dualform.studies.laboratory.trained import pieces, trained
from dualform.studies.laboratory.trained_measured import (
    ANCHORS,
    ARCHITECTURES,
    FIVE,
    INTERPOLATED,
    LINEAR,
    ONE,
    SOFTMAX,
    TWO,
    NewTasks,
    TrainedMeasurements,
    best_rates,
    between,
    construction,
    counterparts,
    median_rates,
    prediction_distance,
    tasks_of,
)
from dualform.studies.laboratory.trained_view import SCALES, SHARES
from dualform.studies.pieces import Piece
from dualform.studies.seed_statistics import over_seeds
from tests.studies.small import MemoryStore

SEEDS = (1, 2)


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measured, "SEQUENCES", 64)
        patch.setattr(measured, "CHARTED", 32)
        patch.setattr(measured, "TUNED", 128)
        yield


@pytest.fixture(scope="module")
def config() -> RegressionConfig:
    return regression_config(seeds=SEEDS, dimension=3, points=5, steps=2e-3)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def progress() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def result(config: RegressionConfig, store: MemoryStore, progress: list[tuple[float, str]]) -> LabStudy:
    return trained(config, store, lambda amount, doing: progress.append((amount, doing)))


def cells_of(result: LabStudy, table: int, row: str) -> list[Any]:
    (each,) = [each for each in result.tables[table].rows if each.name == row]
    return each.cells


def model_of(store: MemoryStore, place: int) -> InContextTransformer:
    """One layer, after its training."""
    weights = {name: value[-1, place] for name, value in store.pieces[ONE.name].tensors.items()}
    return InContextTransformer(SelfAttentionConfig(3), weights).double()


def new_tasks(config: RegressionConfig, seed: int, n: int = 64, purpose: str = "test") -> tuple[torch.Tensor, ...]:
    tasks = replace(tasks_of(config), points=5 + QUERIES)
    drawn = tasks.draw(n, stream(purpose, seed), torch.float64)
    return drawn.x[:, :5], drawn.y[:, :5], drawn.x[:, 5:], drawn.clean[:, 5:]


def test_rates_are_the_best_on_tasks_that_nothing_is_measured_on(config: RegressionConfig) -> None:
    x, y, queries, target = new_tasks(config, 0, 128, "tuning")
    result = best_rates(tasks_of(config))
    assert list(result) == list(ANCHORS)
    assert result[2, True] == best_descent(x, y, queries, target, 2, True)
    assert not torch.equal(x[:64], new_tasks(config, 0)[0])


def test_rates_for_the_median_task_are_better_on_it_and_worse_on_average(config: RegressionConfig) -> None:
    new = NewTasks(*new_tasks(config, 0, 128, "tuning"))
    mean = best_rates(tasks_of(config))[5, True]
    median = median_rates(tasks_of(config), mean)
    assert isinstance(median, DescentPlusPlus)
    assert new.median_loss(median) < 0.99 * new.median_loss(mean)
    assert new.loss(median) > new.loss(mean)
    # No grid of settings near it is better on the median task.
    for rate in (0.8, 0.9, 1.0, 1.1, 1.25):
        for gamma in (0.8, 0.9, 1.0, 1.1, 1.25):
            near = replace(median, rate=rate * median.rate, gamma=gamma * median.gamma)
            assert new.median_loss(near) > 0.97 * new.median_loss(median)


def test_each_architecture_is_a_piece(
    config: RegressionConfig, result: LabStudy, store: MemoryStore, progress: list[tuple[float, str]]
) -> None:
    assert progress == [(1.0, each.name) for each in ARCHITECTURES]
    assert store.put_names == [each.name for each in ARCHITECTURES]
    assert pieces(config) == len(progress)
    assert result.name == "trained"


def test_losses_are_those_of_the_trained_models_and_of_descent(
    config: RegressionConfig, result: LabStudy, store: MemoryStore
) -> None:
    losses, medians, steps, zeros, apart = [], [], [], [], []
    best = best_rates(tasks_of(config))[1, False]
    for place, seed in enumerate(SEEDS):
        x, y, queries, target = new_tasks(config, seed)
        with torch.no_grad():
            predicted = model_of(store, place).predict(x, y, queries)
        losses.append(float((predicted - target).square().mean()) / 2)
        medians.append(float((predicted - target).square().mean(1).median()) / 2)
        steps.append(float((best(x, y, queries) - target).square().mean()) / 2)
        zeros.append(float(target.square().mean()) / 2)
        apart.append(float((predicted - best(x, y, queries)).abs().mean()))
    row = cells_of(result, 0, ONE.name)
    assert (row[0], row[2:]) == (over_seeds(losses), [None, None])
    assert row[1] == over_seeds(medians)
    assert cells_of(result, 0, "GD, 1 step")[0] == over_seeds(steps)
    assert cells_of(result, 0, "zero")[0] == over_seeds(zeros)
    row = cells_of(result, 1, "1 layer, and GD, 1 step")
    assert row[0] == over_seeds(apart)
    assert row[3] == over_seeds([own / step for own, step in zip(losses, steps, strict=True)])


def test_every_model_is_compared_with_as_many_steps_as_it_has_layers(result: LabStudy) -> None:
    assert [row.name for row in result.tables[1].rows] == [
        "1 layer, and GD, 1 step",
        "2 layers, recurrent, and GD, 2 steps",
        "2 layers, recurrent, and GD++, 2 steps",
        "5 layers, and GD, 5 steps",
        "5 layers, and GD++, 5 steps",
        "1 softmax layer, and GD, 1 step",
    ]
    assert all(len(row.cells) == len(result.tables[1].columns) for row in result.tables[1].rows)
    assert [construction(each) for each in ARCHITECTURES] == [(1, False), (2, True), (5, True), (1, False)]
    assert {kind for each in ARCHITECTURES for kind in counterparts(each)} == set(ANCHORS)


def test_curves_begin_and_end_where_they_must(result: LabStudy) -> None:
    loss, cosine, weights, *scales = result.charts
    assert [curve.name for curve in weights.curves] == [
        "1 layer to GD, 1 step",
        "2 layers, recurrent to GD++, 2 steps",
    ]
    ends = {curve.name: curve.y[-1].mean for curve in loss.curves}
    for architecture, by_scale in zip(LINEAR, scales, strict=True):
        assert by_scale.curves[0].x == list(SCALES)
        at_home = [curve.y[SCALES.index(1.0)].mean for curve in by_scale.curves]
        assert at_home[0] == pytest.approx(ends[architecture.name])
        if architecture in INTERPOLATED:
            line = weights.curves[INTERPOLATED.index(architecture)]
            assert line.x == list(SHARES)
            assert line.y[0].mean == pytest.approx(at_home[0], rel=1e-4)
            assert line.y[-1].mean == pytest.approx(at_home[-1])
        assert [curve.reference for curve in by_scale.curves] == [False, *[True] * len(counterparts(architecture))]
    for chart in (loss, cosine):
        for curve in chart.curves:
            assert (curve.x[0], curve.x[-1]) == (0.0, 1.0)
            assert len(curve.x) == len(curve.y)
            assert {each.n for each in curve.y} == {len(SEEDS)}


def test_claims_come_with_cases_that_must_fail(result: LabStudy) -> None:
    says = {claim.says: claim for claim in result.claims}
    assert len(says) == len(result.claims) == 8
    assert sum(claim.must_fail for claim in result.claims) == 3
    own, step, zero = (cells_of(result, 0, name)[0].mean for name in (ONE.name, "GD, 1 step", "zero"))
    assert result.claims[0].found.mean == pytest.approx((own - step) / (zero - step), rel=0.05)
    assert result.claims[2].found == cells_of(result, 1, "2 layers, recurrent, and GD++, 2 steps")[3]
    assert result.claims[1].found == cells_of(result, 1, "1 layer, and GD, 1 step")[1]
    assert any("0.002 of the usual steps" in note for note in result.notes)
    assert any("10 dimensions and 10 examples" in note for note in result.notes)


def test_a_claim_must_be_true_of_every_seed_and_what_must_fail_of_none() -> None:
    for claim, near, far in (
        (study._same_loss, 0.009, 0.02),
        (study._same_loss, -0.009, -0.02),
        (study._same_direction, 0.991, 0.98),
    ):
        # Far enough on the other side, a mean over seeds would be near again.
        assert [claim("", [near, near], must_fail).holds for must_fail in (False, True)] == [True, True]
        assert [claim("", [near, far], must_fail).holds for must_fail in (False, True)] == [False, True]
        assert [claim("", [far, far], must_fail).holds for must_fail in (False, True)] == [False, False]
        empty = claim("", [])
        assert (empty.found.mean, empty.found.n, empty.holds) == (None, 0, False)
    assert not study._same_loss("", [-0.02, 0.02]).holds
    assert study._no_higher("", [0.5, 1.01]).holds
    assert not study._no_higher("", [0.5, 1.02]).holds
    assert not study._no_higher("", []).holds


def test_an_architecture_that_explodes_is_left_out_and_the_others_go_on(
    config: RegressionConfig, store: MemoryStore, result: LabStudy, monkeypatch: pytest.MonkeyPatch
) -> None:
    train = train_together
    kept = MemoryStore()
    kept.pieces = {name: piece for name, piece in store.pieces.items() if name not in (TWO.name, ONE.name)}

    def exploding(shape: SelfAttentionConfig, tasks: Any, training: Training, *args: Any, **settings: Any) -> Any:
        if shape.layers == 1:
            raise TrainingError("step 21: no numbers.")
        return train(shape, tasks, replace(training, steps=25, learning_rate=1e9), *args, **settings)

    monkeypatch.setattr(study, "train_together", exploding)
    left = trained(config, kept)
    assert f"{ONE.name}: step 21: no numbers. It is left out." in left.notes
    (note,) = [note for note in left.notes if note.startswith(f"{TWO.name}: step")]
    assert all(option in note for option in ("--points", "--dimension", "--steps"))
    assert cells_of(left, 0, ONE.name) == cells_of(left, 1, "1 layer, and GD, 1 step") == [None] * 4
    assert cells_of(left, 0, FIVE.name) == cells_of(result, 0, FIVE.name)
    assert len(left.claims) == len(result.claims)
    for before, after in zip(result.claims, left.claims, strict=True):
        if before.says.startswith((FIVE.name, "The derivative of a trained softmax")):
            assert after == before
        else:
            assert (after.found.mean, after.found.n, after.holds) == (None, 0, False), after.says
    assert f"their training failed: {ONE.name}; {TWO.name}." in left.answer
    assert not any(curve.name in (ONE.name, TWO.name) for chart in left.charts for curve in chart.curves)
    # It is kept as what it is: the run that goes on does not try again.
    monkeypatch.setattr(study, "train_together", None)
    assert trained(config, kept) == left


def test_as_many_examples_as_there_may_be_can_be_trained_on() -> None:
    config = regression_config(seeds=(1,), points=256)
    losses: list[float] = []
    train_together(
        TWO.config(10),
        tasks_of(config),
        self_attention_training(40, 16, TWO.learning_rate),
        (1,),
        after_step=lambda step: losses.append(step.loss),
    )
    assert all(map(math.isfinite, losses))
    assert losses[-1] < losses[0]


def test_it_goes_on_where_it_was_stopped(config: RegressionConfig, result: LabStudy, store: MemoryStore) -> None:
    half = MemoryStore()

    def put(piece: Piece) -> None:
        if len(half.put_names) == 2:
            raise KeyboardInterrupt
        MemoryStore.put(half, piece)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(half, "put", put)
        with pytest.raises(KeyboardInterrupt):
            trained(config, half)
    assert half.put_names == store.put_names[:2]
    assert trained(config, half) == result
    assert half.put_names == store.put_names


def test_the_distance_of_a_predictor_to_itself_is_zero_and_to_another_is_not(config: RegressionConfig) -> None:
    new = NewTasks(*new_tasks(config, 1))
    each, other = Descent(1, 0.5), Descent(3, 0.5)
    same, different = prediction_distance(each, each, new), prediction_distance(each, other, new)
    assert (same.prediction, same.sensitivity) == (0, 0)
    assert same.cosine == pytest.approx(1)
    assert different.prediction > 0.01
    assert different.cosine < 0.9999
    # Twice the rate is twice the sensitivity in the same direction: each of the three is there for a reason.
    longer = prediction_distance(each, Descent(1, 1.0), new)
    assert longer.cosine == pytest.approx(1)
    assert longer.sensitivity > 0.01


@pytest.fixture(scope="module")
def paper() -> TrainedMeasurements:
    """A seed in the paper's setting: one layer trained nearly as long as in the study, the others hardly at all."""
    config = regression_config(seeds=(1,))
    tasks = tasks_of(config)
    steps = {ONE: 1000, SOFTMAX: 200, TWO: 2, FIVE: 2}
    models = {
        each: train_together(each.config(10), tasks, self_attention_training(n, learning_rate=each.learning_rate), (1,))
        for each, n in steps.items()
    }
    with pytest.MonkeyPatch.context() as patch:
        # With fewer sequences chance alone moves losses by more than 2 %.
        patch.setattr(measured, "TUNED", 6000)
        patch.setattr(measured, "SEQUENCES", 6000)
        best = best_rates(tasks)
        return TrainedMeasurements(config, models, best, best[5, True], {1: measured.new_tasks("test", 1, tasks)})


def test_descent_has_the_losses_of_the_paper(paper: TrainedMeasurements, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "TUNED", 16384)
    claims = study._anchors(paper)
    assert len(claims) == len(ANCHORS)
    for claim, anchor in zip(claims, ANCHORS.values(), strict=True):
        assert claim.found.mean == pytest.approx(anchor, rel=0.02), claim.says
        assert claim.holds


def test_a_trained_layer_is_a_step_of_descent_and_what_is_none_is_not(paper: TrainedMeasurements) -> None:
    trained_claims = study._claims(paper)
    claims: list[Claim] = [*trained_claims[:2], trained_claims[-1], *study._must_fail_claims(paper)]
    assert [claim.must_fail for claim in claims] == [False] * 3 + [True] * 3
    for claim in claims:
        assert claim.holds != claim.must_fail, (claim.says, claim.found)


def test_halfway_to_other_weights_is_no_descent(paper: TrainedMeasurements) -> None:
    new, best, model = paper.new[1], paper.best[1, False], paper.model(ONE, 1)
    wrong = replace(best, rate=4 * best.rate)
    assert new.loss(between(model, best, 10, 0.5)) < 1.02 * new.loss(best)
    assert not math.isclose(new.loss(between(model, wrong, 10, 0.5)), new.loss(best), rel_tol=0.1)
