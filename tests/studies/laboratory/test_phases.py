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
from dualform.ops.streams import stream
from dualform.result import Estimate
from dualform.studies.laboratory import causal_transformers, phases_view
from dualform.studies.laboratory import phases as study
from dualform.studies.laboratory.causal_transformers import (
    HEADS,
    best_rate,
    distance,
    draw_sequences,
    predictions,
    tasks_of,
)
from dualform.studies.laboratory.claims import (
    geometric,
    holds_above,
    holds_below,
    holds_within,
    wholly_above,
    wholly_below,
)
from dualform.studies.laboratory.config import RegressionConfig, regression_config
from dualform.studies.laboratory.phases import phases, pieces
from dualform.studies.laboratory.phases_compared import NOISES, NOISY, SHAPES
from dualform.studies.laboratory.result import LabStudy
from dualform.studies.laboratory.ridge_strength import RidgeProfile, best_strength, ridge_profile
from dualform.studies.seed_statistics import over_seeds
from tests.studies.small import MemoryStore

SEEDS = (1, 2)


@pytest.fixture(autouse=True, scope="module")
def _few_sequences() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(causal_transformers, "SEQUENCES", 48)
        patch.setattr(phases_view, "CONTEXTS", 16)
        patch.setattr(study, "STRENGTH_SEQUENCES", 1024)
        yield


@pytest.fixture(scope="module")
def config() -> RegressionConfig:
    return regression_config(seeds=SEEDS, dimension=3, points=5, steps=1e-3)


@pytest.fixture(scope="module")
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(scope="module")
def progress() -> list[tuple[float, str]]:
    return []


@pytest.fixture(scope="module")
def result(config: RegressionConfig, store: MemoryStore, progress: list[tuple[float, str]]) -> LabStudy:
    return phases(config, store, lambda amount, doing: progress.append((amount, doing)))


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.mean is not None
    return estimate.mean


def numbers(study: LabStudy) -> list[float]:
    return [mean(cell) for table in study.tables for row in table.rows for cell in row.cells]


def model_of(store: MemoryStore, number: int) -> Decoders:
    shape = (*SHAPES, *NOISY)[number]
    model = Decoders(DecoderConfig(3, shape.width, shape.layers, HEADS), SEEDS)
    model.load_state_dict(store.pieces[shape.name].tensors)
    return model.requires_grad_(False)


def test_every_shape_is_trained_once_and_told(
    result: LabStudy, config: RegressionConfig, store: MemoryStore, progress: list[tuple[float, str]]
) -> None:
    names = [shape.name for shape in (*SHAPES, *NOISY)]
    assert store.put_names == names
    assert progress == [(1.0, name) for name in names]
    assert pieces(config) == len(names)


def test_distances_are_those_of_the_trained_models_predictions(
    result: LabStudy, config: RegressionConfig, store: MemoryStore
) -> None:
    number = 4
    model, tasks = model_of(store, number), tasks_of(config)
    sequences = tasks.draw(48, stream("test", 0), torch.float64)
    table = result.tables[0]
    row = table.rows[number]
    assert row.name == SHAPES[number].name
    for name, predictor in (("least squares", LeastSquares()), ("ridge 0.1", Ridge(0.1))):
        expected = []
        for seed in SEEDS:
            own = by_point(InContextPredictor("own", model.only(seed)), sequences.x, sequences.y)
            apart = (own - by_point(predictor, sequences.x, sequences.y)).square()
            expected.append(float(apart[:, 1:].mean()))
        assert mean(row.cells[table.columns.index(name)]) == pytest.approx(mean(over_seeds(expected)), rel=1e-4)


def test_implied_weights_are_as_far_apart_as_ilwd_says(
    result: LabStudy, config: RegressionConfig, store: MemoryStore
) -> None:
    sequences = draw_sequences(tasks_of(config, NOISES[-1]), 48)
    x, y = sequences.x[:16, :-1], sequences.y[:16, :-1]
    queries = torch.randn(16, 12, 3, generator=stream("queries", 0), dtype=torch.float64)
    table = result.tables[3]
    model = model_of(store, len(SHAPES) + len(NOISY) - 1)
    bayes = Bayes(NOISES[-1], 1 / math.sqrt(3))
    expected = [float(ilwd(InContextPredictor("own", model.only(seed)), bayes, x, y, queries)) for seed in SEEDS]
    cell = table.rows[-1].cells[table.columns.index("Bayes")]
    assert mean(cell) == pytest.approx(mean(over_seeds(expected)), rel=1e-4)


def test_the_measured_strength_is_that_of_theory_and_with_other_weights_is_not(result: LabStudy) -> None:
    exact = [claim for claim in result.claims if claim.says.startswith("Ridge has the least error")]
    assert [(claim.holds, claim.must_fail) for claim in exact] == [(True, False)] * len(NOISES) + [(False, True)]
    # Weights twice as large need a ridge a quarter as strong.
    assert mean(exact[-1].found) == pytest.approx(0.25, rel=0.1)
    # It is measured, and so it is not the number of theory to every digit.
    assert all(abs(mean(claim.found) - 1) > 1e-6 for claim in exact)


def test_an_untrained_transformer_is_further_from_bayes_with_its_whole_interval(result: LabStudy) -> None:
    (control,) = [claim for claim in result.claims if claim.says.startswith("An untrained")]
    assert control.must_fail
    assert not control.holds
    assert control.found.n == len(SEEDS)
    assert wholly_above(control.found, 1.0)


def test_each_noise_is_read_against_the_other_noises_strength_too(result: LabStudy) -> None:
    strengths = [claim for claim in result.claims if claim.says.startswith("With noise")]
    assert [claim.must_fail for claim in strengths] == [False, True, False, True]
    own, other = strengths[:2]
    assert mean(own.found) / mean(other.found) == pytest.approx(NOISES[1] ** 2 / NOISES[0] ** 2)


def test_the_answer_is_made_of_the_tables_numbers(result: LabStudy) -> None:
    strengths = result.tables[1]
    column = strengths.columns.index("lambda of the nearest ridge")
    for row, noise in zip(strengths.rows, NOISES, strict=True):
        assert f"{mean(row.cells[column]):.2g} (95% CI " in result.answer
        assert f"at noise {noise:g}, where sigma^2 / tau^2 is {noise**2 * 3:.2g}" in result.answer


def test_charts_have_a_number_at_each_place(result: LabStudy, config: RegressionConfig) -> None:
    for chart in result.charts:
        assert chart.curves
        for curve in chart.curves:
            assert len(curve.x) == len(curve.y) > 1
            assert all(y.n == (1 if curve.reference else len(SEEDS)) for y in curve.y)
    assert len({chart.title for chart in result.charts}) == len(result.charts)
    (note,) = result.notes
    assert note.startswith("Noise 0.25 was tried")


def test_larger_tasks_are_reduced_with_a_note() -> None:
    config = regression_config(dimension=20, points=40)
    assert (tasks_of(config).dimension, tasks_of(config).points) == (5, 11)
    (note,) = causal_transformers.notes_on_size(config)
    assert "5 dimensions and 10 examples instead of 20 and 40" in note


def test_it_goes_on_where_it_was_stopped(result: LabStudy, config: RegressionConfig, store: MemoryStore) -> None:
    before = list(store.put_names)
    again = phases(config, store, lambda amount, doing: None)
    assert store.put_names == before
    assert (again.answer, [claim.holds for claim in again.claims]) == (
        result.answer,
        [claim.holds for claim in result.claims],
    )
    # Where a tensor lies in memory can change the last digit.
    assert numbers(again) == pytest.approx(numbers(result), rel=1e-6)


def test_ridge_is_nearest_to_itself() -> None:
    tasks = RegressionTasks(3, 6, noise=0.5)
    sequences = draw_sequences(tasks, 32)
    strength = 3 * 2**-2.75
    own = by_point(Ridge(strength), sequences.x, sequences.y)
    permuted = by_point(Ridge(strength), sequences.x, sequences.y[:, torch.tensor([3, 1, 4, 0, 2, 5])])
    profile = ridge_profile(torch.stack([own, permuted]), sequences, tasks)
    assert profile.nearest[0] == pytest.approx(strength)
    assert float(profile.distances[:, 0].min()) < 1e-20
    # It fits other labels, and no strength is near.
    assert float(profile.distances[:, 1].min()) > 1e-2


def test_a_nearest_ridge_at_an_end_of_the_grid_is_reported_as_a_bound() -> None:
    strengths = [0.5, 1.0, 2.0]
    inside, low, high = ([2.0, 1.0, 2.0], [1.0, 2.0, 3.0], [3.0, 2.0, 1.0])

    def profile(*seeds: list[float]) -> RidgeProfile:
        return RidgeProfile(strengths, torch.tensor(seeds).T)

    assert profile(inside, inside).bound == ""
    assert profile(inside, low).bound == "at most "
    assert profile(high, inside).bound == "at least "
    assert "both ends" in profile(high, low).bound
    # A bound on the claim's side decides nothing; one on the other side says less than is true.
    names = ("1 layer", "4 layers")
    undecided = study._weaker_claim(profile(inside, inside), profile(low, low), names)
    assert (undecided.found.mean, undecided.holds) == (None, False)
    bound = study._weaker_claim(profile(low, low), profile(inside, inside), names)
    assert bound.holds
    assert "a bound" in bound.expected
    plain = study._weaker_claim(profile(inside, inside), profile(inside, inside), names)
    assert not plain.holds
    assert "bound" not in plain.expected


@pytest.mark.parametrize(("noise", "scale"), [(0.5, 0.6), (1.0, 0.6), (0.7, 1.3)])
def test_ridge_has_the_least_error_at_noise_over_weights_and_at_no_other_strength(noise: float, scale: float) -> None:
    tasks = RegressionTasks(3, 6, noise=noise, weight_scale=scale)
    sequences = tasks.draw(4096, torch.Generator().manual_seed(0), torch.float64)
    theory = noise**2 / scale**2
    best = best_strength(sequences, theory)
    assert best == pytest.approx(theory, rel=0.1)
    # Looked for elsewhere it is found again, and where it is not within reach an end is given.
    assert best_strength(sequences, 3 * theory) == pytest.approx(best, rel=0.01)
    assert best_strength(sequences, 100 * theory) == pytest.approx(100 * theory / 16)

    def error(strength: float) -> float:
        return float((by_point(Ridge(strength), sequences.x, sequences.y) - sequences.clean)[:, 1:].square().mean())

    assert all(error(best * times) > error(best) for times in (0.5, 0.8, 1.25, 2.0))


def test_rates_are_found_on_other_sequences_than_are_reported_on() -> None:
    tasks = RegressionTasks(3, 6)
    test, tuning = draw_sequences(tasks, 300), draw_sequences(tasks, 300, "tuning")
    assert torch.equal(test.x, draw_sequences(tasks, 300).x)
    both = torch.stack([test.x.flatten(), tuning.x.flatten()])
    assert abs(float(torch.corrcoef(both)[0, 1])) < 0.1


def test_no_rate_of_the_grid_is_better_than_the_best() -> None:
    sequences = draw_sequences(RegressionTasks(3, 6), 64)

    def loss(predictor: Any) -> float:
        return float((by_point(predictor, sequences.x, sequences.y) - sequences.clean).square().mean())

    for make in (OnePassSGD, partial(Descent, 1), partial(Descent, 4)):
        best = loss(best_rate(make, sequences))
        assert all(loss(make(rate)) > 0.98 * best for rate in (0.01, 0.1, 0.2, 0.3, 0.5, 0.8, 1.0))


def test_sequences_are_read_in_parts_as_in_whole() -> None:
    model = Decoders(DecoderConfig(3, 8, 2), SEEDS).requires_grad_(False)
    sequences = draw_sequences(RegressionTasks(3, 6), 300)
    x, y = (each.float().expand(2, *each.shape) for each in (sequences.x, sequences.y))
    torch.testing.assert_close(predictions(model, sequences).float(), model(x, y), rtol=1e-4, atol=1e-5)


def test_a_distance_is_of_each_point_and_seed() -> None:
    own = torch.tensor([[[0.0, 1.0], [0.0, 3.0]], [[1.0, 0.0], [1.0, 0.0]]])
    assert distance(own, torch.zeros(2, 2)).tolist() == [[0.0, 5.0], [1.0, 0.0]]


def test_below_and_above_are_of_the_interval_and_of_the_mean_where_there_is_none() -> None:
    assert wholly_below(over_seeds([0.5]), 1.0)
    assert wholly_below(over_seeds([0.5, 0.51]), 1.0)
    assert not wholly_below(over_seeds([0.2, 0.9]), 1.0)
    assert not wholly_below(over_seeds([]), 1.0)
    assert wholly_above(over_seeds([2.0]), 1.0)
    assert wholly_above(over_seeds([2.0, 2.01]), 1.0)
    assert not wholly_above(over_seeds([1.1, 1.9]), 1.0)
    assert not wholly_above(over_seeds([]), 1.0)


@pytest.mark.parametrize(
    ("values", "below", "above"),
    [
        ([2.0, 2.01], (False, False), (True, True)),
        ([0.5, 0.51], (True, True), (False, False)),
        # Too wide to tell: no claim holds, and no case that must fail may count as having failed.
        ([0.5, 2.0], (False, True), (False, True)),
        ([2.0], (False, True), (True, True)),
        ([0.5], (True, True), (False, True)),
        ([], (False, True), (False, True)),
        ([math.nan, 2.0], (False, True), (False, True)),
    ],
)
def test_what_must_fail_fails_only_with_its_whole_interval_on_the_other_side(
    values: list[float], below: tuple[bool, bool], above: tuple[bool, bool]
) -> None:
    result = over_seeds(values)
    assert tuple(holds_below(result, 1.0, must_fail) for must_fail in (False, True)) == below
    assert tuple(holds_above(result, 1.0, must_fail) for must_fail in (False, True)) == above


@pytest.mark.parametrize(
    ("ratios", "holds", "holds_that_must_fail"),
    [
        ([1.4, 0.8], True, True),
        ([0.2, 0.21], False, False),
        ([4.0, 4.2], False, False),
        # One seed is near, the interval reaches in, there is no interval, there is nothing.
        ([1.4, 4.0], False, True),
        ([2.1, 9.0], False, True),
        ([4.0], False, True),
        ([], False, True),
    ],
)
def test_within_a_factor_is_of_every_seed(ratios: list[float], holds: bool, holds_that_must_fail: bool) -> None:
    assert holds_within(ratios, 2.0) is holds
    assert holds_within(ratios, 2.0, must_fail=True) is holds_that_must_fail


def test_a_geometric_mean_treats_halves_as_doubles() -> None:
    result = geometric([0.5, 2.0])
    assert mean(result) == pytest.approx(1.0)
    low, high = result.ci95
    assert low is not None
    assert high is not None
    assert low * high == pytest.approx(1.0)
    assert geometric([]).mean is None
