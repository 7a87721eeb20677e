"""Transformers beside exact predictors: distances are of what is predicted, and what is exact needs no training."""

import math
from functools import partial
from typing import Any

import pytest
import torch

from dualform.lab.decoder import DecoderConfig, Decoders, InContextPredictor
from dualform.lab.predictor_distance import ilwd
from dualform.lab.predictors import Bayes, Descent, LeastSquares, OnePassSGD, Ridge, by_point
from dualform.lab.regression_tasks import RegressionTasks
from dualform.result import Estimate, LabStudy
from dualform.studies import regression_phases as study
from dualform.studies.regression_config import RegressionConfig, regression_config
from dualform.studies.regression_phases import (
    NOISES,
    NOISY,
    SHAPES,
    best_rate,
    best_strength,
    distance,
    drawn,
    expected_loss,
    phases,
    pieces,
    predictions,
    ridge_profile,
    tasks_of,
    wholly_below,
)
from dualform.studies.seed_statistics import over_seeds
from tests.studies.small import Kept

SEEDS = (1, 2)


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(study, "SEQUENCES", 48)
        patch.setattr(study, "CONTEXTS", 16)
        yield


@pytest.fixture(scope="module")
def config() -> RegressionConfig:
    return regression_config(seeds=SEEDS, dimension=3, points=5, steps=1e-3)


@pytest.fixture(scope="module")
def cells() -> Kept:
    return Kept()


@pytest.fixture(scope="module")
def told() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def found(config: RegressionConfig, cells: Kept, told: list[tuple[float, str]]) -> LabStudy:
    return phases(config, cells, lambda amount, doing: told.append((amount, doing)))


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.mean is not None
    return estimate.mean


def numbers(study: LabStudy) -> list[float]:
    return [mean(cell) for table in study.tables for row in table.rows for cell in row.cells]


def model_of(cells: Kept, number: int) -> Decoders:
    shape = (*SHAPES, *NOISY)[number]
    model = Decoders(DecoderConfig(3, shape.width, shape.layers, study.HEADS), SEEDS)
    model.load_state_dict(cells.pieces[shape.name].tensors)
    return model.requires_grad_(False)


def test_every_shape_is_trained_once_and_told(
    found: LabStudy, config: RegressionConfig, cells: Kept, told: list[tuple[float, str]]
) -> None:
    names = [shape.name for shape in (*SHAPES, *NOISY)]
    assert cells.put_names == names
    assert told == [(1.0, name) for name in names]
    assert pieces(config) == len(names)


def test_distances_are_those_of_the_trained_models_predictions(
    found: LabStudy, config: RegressionConfig, cells: Kept
) -> None:
    number = 4
    model, tasks = model_of(cells, number), tasks_of(config)
    sequences = tasks.draw(48, torch.Generator().manual_seed(2**33), torch.float64)
    table = found.tables[0]
    row = table.rows[number]
    assert row.name == SHAPES[number].name
    for name, predictor in (("least squares", LeastSquares()), ("ridge 0.1", Ridge(0.1))):
        expected = []
        for seed in SEEDS:
            own = by_point(InContextPredictor("own", model.only(seed)), sequences.x, sequences.y)
            apart = (own - by_point(predictor, sequences.x, sequences.y)).square()
            expected.append(float(apart[:, 1:].mean()))
        assert mean(row.cells[table.columns.index(name)]) == pytest.approx(mean(over_seeds(expected)), rel=1e-4)


def test_implied_weights_are_as_far_apart_as_ilwd_says(found: LabStudy, config: RegressionConfig, cells: Kept) -> None:
    sequences = drawn(tasks_of(config, NOISES[-1]), 48)
    x, y = sequences.x[:16, :-1], sequences.y[:16, :-1]
    asked = torch.randn(16, 12, 3, generator=torch.Generator().manual_seed(2**35), dtype=torch.float64)
    table = found.tables[3]
    model = model_of(cells, len(SHAPES) + len(NOISY) - 1)
    bayes = Bayes(NOISES[-1], 1 / math.sqrt(3))
    expected = [float(ilwd(InContextPredictor("own", model.only(seed)), bayes, x, y, asked)) for seed in SEEDS]
    cell = table.rows[-1].cells[table.columns.index("Bayes")]
    assert mean(cell) == pytest.approx(mean(over_seeds(expected)), rel=1e-4)


def test_exact_claims_hold_however_short_the_training_and_the_wrong_one_does_not(found: LabStudy) -> None:
    exact = [claim for claim in found.claims if claim.says.startswith("Ridge errs least")]
    assert [(claim.holds, claim.must_fail) for claim in exact] == [(True, False)] * len(NOISES) + [(False, True)]
    # Weights twice as large need a ridge a quarter as strong.
    assert mean(exact[-1].found) == pytest.approx(0.25, rel=1e-6)
    controls = [claim for claim in found.claims if claim.must_fail and claim.says.startswith("An untrained")]
    assert [claim.holds for claim in controls] == [False]


def test_the_answer_is_made_of_the_tables_numbers(found: LabStudy) -> None:
    strengths = found.tables[1]
    column = strengths.columns.index("lambda of the nearest ridge")
    for row, noise in zip(strengths.rows, NOISES, strict=True):
        assert f"{mean(row.cells[column]):.2g} [" in found.answer
        assert f"at noise {noise:g}, where sigma^2 / tau^2 is {noise**2 * 3:.2g}" in found.answer


def test_charts_have_a_number_at_each_place(found: LabStudy, config: RegressionConfig) -> None:
    for chart in found.charts:
        assert chart.curves
        for curve in chart.curves:
            assert len(curve.x) == len(curve.y) > 1
            assert all(y.n == (1 if curve.reference else len(SEEDS)) for y in curve.y)
    assert len({chart.title for chart in found.charts}) == len(found.charts)
    assert found.notes == []


def test_larger_tasks_are_cut_and_it_is_said() -> None:
    config = regression_config(dimension=20, points=40)
    assert (tasks_of(config).dimension, tasks_of(config).points) == (5, 11)
    (note,) = study.notes_on_size(config)
    assert "5 dimensions and 10 examples rather than 20 and 40" in note


def test_it_goes_on_where_it_was_stopped(found: LabStudy, config: RegressionConfig, cells: Kept) -> None:
    before = list(cells.put_names)
    again = phases(config, cells, lambda amount, doing: None)
    assert cells.put_names == before
    assert (again.answer, [claim.holds for claim in again.claims]) == (
        found.answer,
        [claim.holds for claim in found.claims],
    )
    # Where a tensor lies in memory can change the last digit.
    assert numbers(again) == pytest.approx(numbers(found), rel=1e-6)


def test_ridge_is_nearest_to_itself() -> None:
    tasks = RegressionTasks(3, 6, noise=0.5)
    sequences = drawn(tasks, 32)
    strength = 3 * 2**-2.5
    own = by_point(Ridge(strength), sequences.x, sequences.y)
    permuted = by_point(Ridge(strength), sequences.x, sequences.y[:, torch.tensor([3, 1, 4, 0, 2, 5])])
    profile = ridge_profile(torch.stack([own, permuted]), sequences, tasks)
    assert profile.nearest[0] == pytest.approx(strength)
    assert float(profile.apart[:, 0].min()) < 1e-20
    # It fits other labels, and no strength is near.
    assert float(profile.apart[:, 1].min()) > 1e-2


def test_expected_loss_is_what_sequences_lose_on_average() -> None:
    tasks = RegressionTasks(2, 4, noise=0.7, weight_scale=1.3)
    generator = torch.Generator().manual_seed(0)
    x = tasks.draw(1, generator, torch.float64).x[:, :-1]
    n = 40_000
    w = 1.3 * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    y = (x @ w[..., None])[..., 0] + 0.7 * torch.randn(n, 3, generator=generator, dtype=torch.float64)
    asked = torch.eye(2, dtype=torch.float64).expand(n, -1, -1)
    lost = (Ridge(0.4)(x.expand(n, -1, -1), y, asked) - w).square().sum(-1)
    eigenvalues = torch.linalg.eigvalsh(x.mT @ x)
    expected = float(expected_loss(torch.tensor(0.4, dtype=torch.float64), eigenvalues, 0.7, 1.3))
    # Five standard errors.
    assert float(lost.mean()) == pytest.approx(expected, abs=5 * float(lost.std()) / math.sqrt(n))


@pytest.mark.parametrize(("noise", "scale"), [(0.1, 1.0), (0.5, 0.4), (2.0, 0.7)])
def test_no_strength_is_better_than_noise_over_weights(noise: float, scale: float) -> None:
    x = torch.randn(5, 4, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    eigenvalues = torch.linalg.eigvalsh(x.mT @ x)
    best = best_strength(eigenvalues, noise, scale)
    assert best == pytest.approx(noise**2 / scale**2, rel=1e-9)
    at = partial(expected_loss, eigenvalues=eigenvalues, noise=noise, weight_scale=scale)
    least = float(at(torch.tensor(best, dtype=torch.float64)))
    for times in (0.5, 0.9, 1.1, 2.0):
        assert float(at(torch.tensor(best * times, dtype=torch.float64))) > least


def test_no_rate_of_the_grid_is_better_than_the_best() -> None:
    sequences = drawn(RegressionTasks(3, 6), 64)

    def loss(predictor: Any) -> float:
        return float((by_point(predictor, sequences.x, sequences.y) - sequences.clean).square().mean())

    for make in (OnePassSGD, partial(Descent, 1), partial(Descent, 4)):
        best = loss(best_rate(make, sequences))
        assert all(loss(make(rate)) > 0.98 * best for rate in (0.01, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0))


def test_sequences_are_read_in_parts_as_in_whole() -> None:
    model = Decoders(DecoderConfig(3, 8, 2), SEEDS).requires_grad_(False)
    sequences = drawn(RegressionTasks(3, 6), 300)
    x, y = (one.float().expand(2, *one.shape) for one in (sequences.x, sequences.y))
    torch.testing.assert_close(predictions(model, sequences).float(), model(x, y), rtol=1e-4, atol=1e-5)


def test_a_distance_is_of_each_point_and_seed() -> None:
    own = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert distance(own, torch.zeros(2, 2)).tolist() == [[0.0, 5.0], [1.0, 0.0]]


def test_below_is_of_the_interval_and_of_the_mean_where_there_is_none() -> None:
    assert wholly_below(over_seeds([0.5]), 1.0)
    assert wholly_below(over_seeds([0.5, 0.51]), 1.0)
    assert not wholly_below(over_seeds([0.2, 0.9]), 1.0)
    assert not wholly_below(over_seeds([]), 1.0)
