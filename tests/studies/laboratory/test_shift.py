"""A transformer read where it was not trained: each shift changes one thing, and exact predictors know of none."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from dualform.lab.decoder import DecoderConfig, Decoders, InContextPredictor
from dualform.lab.predictors import Bayes, LeastSquares, Ridge, by_point
from dualform.lab.regression_tasks import RegressionTasks
from dualform.result import Estimate
from dualform.studies.laboratory import causal_transformers
from dualform.studies.laboratory.causal_transformers import draw_sequences
from dualform.studies.laboratory.config import RegressionConfig, regression_config
from dualform.studies.laboratory.result import LabStudy
from dualform.studies.laboratory.shift import (
    AS_TRAINED,
    AXES,
    LEAST_SQUARES,
    LONGER,
    SHAPE,
    ShiftLosses,
    _describe_costs,
    pieces,
    read,
    shift,
    shifted,
    sparse,
)
from tests.studies.small import MemoryStore

SEEDS = (1, 2)
HOME = RegressionTasks(3, 6)


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_transformers, "SEQUENCES", 48)
        yield


@pytest.fixture(scope="module")
def config() -> RegressionConfig:
    return regression_config(seeds=SEEDS, dimension=3, points=5, steps=1e-3)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def result(config: RegressionConfig, store: MemoryStore) -> LabStudy:
    progress: list[float] = []
    study = shift(config, store, lambda amount, doing: progress.append(amount))
    assert progress == [1.0] * pieces(config)
    return study


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.mean is not None
    return estimate.mean


def numbers(study: LabStudy) -> list[float]:
    return [mean(cell) for table in study.tables for row in table.rows for cell in row.cells]


def test_losses_in_the_table_are_those_of_the_trained_models(result: LabStudy, store: MemoryStore) -> None:
    model = Decoders(DecoderConfig(3, SHAPE.width, SHAPE.layers, causal_transformers.HEADS), SEEDS)
    model.load_state_dict(store.pieces[SHAPE.name].tensors)
    sequences = draw_sequences(replace(HOME, input_scale=2.0), 48)
    expected = []
    for seed in SEEDS:
        own = by_point(InContextPredictor("own", model.only(seed)), sequences.x, sequences.y)
        expected.append(float((own - sequences.clean).square()[:, 1:].mean() / sequences.clean.square().mean()))
    (row,) = [row for row in result.tables[0].rows if row.name == "input scale 2"]
    assert mean(row.cells[0]) == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_exact_claims_hold_however_short_the_training_and_the_wrong_ones_do_not(result: LabStudy) -> None:
    exact = [claim for claim in result.claims if claim.says.startswith("The relative loss of")]
    assert [claim.holds for claim in exact] == [not claim.must_fail for claim in exact]
    assert sum(claim.must_fail for claim in exact) == 1
    (untrained,) = [claim for claim in result.claims if claim.says.startswith("An untrained")]
    assert untrained.must_fail
    assert not untrained.holds


def test_every_shift_has_a_row_and_every_axis_a_chart(result: LabStudy) -> None:
    rows = {row.name for row in result.tables[0].rows}
    for axis, strengths in AXES.items():
        assert {f"{axis} {s:g}" for s in strengths if s != AS_TRAINED[axis]} <= rows
        assert f"Loss by {axis}" in {chart.title for chart in result.charts}
    assert f"{LONGER * 5} examples rather than 5" in rows
    for chart in result.charts:
        for curve in chart.curves:
            assert len(curve.x) == len(curve.y)
            assert not (chart.log_x and min(curve.x, default=1.0) <= 0)
            assert all(mean(y) > 0 for y in curve.y)


def test_the_answer_is_made_of_the_tables_numbers(result: LabStudy) -> None:
    table = result.tables[0]
    column = table.columns.index("transformer / best")
    rows = {row.name: mean(row.cells[column]) for row in table.rows}
    assert f"{rows['target linear, as trained']:.2f} times" in result.answer
    column = table.columns.index("relative to as trained")
    rows = {row.name: mean(row.cells[column]) for row in table.rows}
    assert rows["target linear, as trained"] == 1
    moved = {name: ratio for name, ratio in rows.items() if name.startswith(("input", "weight", "condition"))}
    worst = max(moved, key=lambda name: moved[name])
    assert f"{worst} raises this ratio most (by a factor of {moved[worst]:.3g})" in result.answer


def test_only_what_is_above_one_is_said_to_cost() -> None:
    assert "a raises this ratio most (by a factor of 3) and b least (1.2)" in _describe_costs(
        {"a": 3.0, "b": 1.2, "c": 2.0}
    )
    assert (
        "a raises this ratio most (by a factor of 3); 2 of 3 do not raise it (lowest factor 0.5, at c)"
        in _describe_costs({"a": 3.0, "b": 0.9, "c": 0.5})
    )
    assert _describe_costs({"a": 0.9, "b": 0.5}).startswith("No shift of inputs or weights raises this ratio")


def test_costs_are_relative_to_as_trained_seed_by_seed() -> None:
    def reading(*own: float) -> ShiftLosses:
        return ShiftLosses(torch.tensor([[9.0, each] for each in own]), {LEAST_SQUARES: torch.tensor([9.0, 0.5])})

    assert reading(3.0, 4.0).costs(reading(1.0, 2.0)) == [3.0, 2.0]


def test_it_goes_on_where_it_was_stopped(result: LabStudy, config: RegressionConfig, store: MemoryStore) -> None:
    again = shift(config, store, lambda amount, doing: None)
    assert store.put_names == [SHAPE.name]
    assert again.answer == result.answer
    # Where a tensor lies in memory can change the last digit.
    assert numbers(again) == pytest.approx(numbers(result), rel=1e-6)


def test_a_shift_changes_one_thing() -> None:
    assert shifted(HOME, "input scale", 2.0) == replace(HOME, input_scale=2.0)
    assert shifted(HOME, "condition number", 10.0) == replace(HOME, condition=10.0)
    assert shifted(HOME, "noise", 0.5) == replace(HOME, noise=0.5)
    assert shifted(HOME, "weight scale", 2.0).weight_deviation == pytest.approx(2 * HOME.weight_deviation)
    assert sparse(HOME).sparsity == 2
    for axis, strength in AS_TRAINED.items():
        own, same = (draw_sequences(tasks, 4) for tasks in (HOME, shifted(HOME, axis, strength)))
        torch.testing.assert_close(own.y, same.y)


def test_the_best_exact_predictor_is_least_squares_without_noise_and_bayes_with() -> None:
    model = Decoders(DecoderConfig(3, 8, 1), (1,)).requires_grad_(False)
    predictors: dict[str, Any] = {LEAST_SQUARES: LeastSquares(), "ridge 0.1": Ridge(0.1)}
    assert read(model, HOME, predictors).best == LEAST_SQUARES
    noisy = read(model, replace(HOME, noise=0.5), predictors)
    assert noisy.best == "Bayes, which knows the noise"
    sequences = draw_sequences(replace(HOME, noise=0.5), 48)
    lost = (by_point(Bayes(0.5, HOME.weight_deviation), sequences.x, sequences.y) - sequences.clean).square()
    assert noisy.mean(noisy.best) == pytest.approx(float(lost[:, 1:].mean() / sequences.clean.square().mean()))
    assert noisy.ratios == pytest.approx([noisy.own_mean[0] / noisy.mean(noisy.best)])
