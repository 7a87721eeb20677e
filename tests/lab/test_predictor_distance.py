"""Distances between predictors: zero where they agree, known where theory knows them."""

import pytest
import torch
from torch import Tensor

from dualform.errors import ShapeError
from dualform.lab.predictor_distance import ilwd, implied_weights, spd
from dualform.lab.predictors import (
    Descent,
    DescentPlusPlus,
    LeastSquares,
    NearestNeighbours,
    OnePassSGD,
    Predictor,
    Ridge,
    Zero,
)
from dualform.lab.regression_tasks import RegressionTasks

PREDICTORS: list[Predictor] = [
    Zero(),
    NearestNeighbours(),
    OnePassSGD(0.1),
    Descent(2, 0.5),
    Ridge(0.5),
    LeastSquares(),
]


def contexts(n: int = 2000, examples: int = 6, queries: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    tasks = RegressionTasks(dimension=3, points=examples + queries, noise=0.3)
    batch = tasks.draw(n, torch.Generator().manual_seed(0), torch.float64)
    return batch.x[:, :examples], batch.y[:, :examples], batch.x[:, examples:]


@pytest.mark.parametrize("predictor", PREDICTORS, ids=lambda predictor: predictor.name)
def test_a_predictor_is_at_no_distance_from_itself_and_at_the_same_from_another_both_ways(predictor: Predictor) -> None:
    data = contexts(50)
    for distance in (spd, ilwd):
        for other in PREDICTORS:
            apart = float(distance(predictor, other, *data))
            # How LAPACK rounds may depend on where its arguments lie.
            assert apart == pytest.approx(float(distance(other, predictor, *data)), abs=1e-25)
            assert apart < 1e-25 if other is predictor else apart > 1e-4


def test_to_zero_it_is_the_mean_square_of_what_is_predicted() -> None:
    x, y, queries = contexts(50)
    assert float(spd(Ridge(1.0), Zero(), x, y, queries)) == pytest.approx(
        float(Ridge(1.0)(x, y, queries).square().mean())
    )


def test_weights_of_a_linear_predictor_are_found_exactly_from_what_it_predicts() -> None:
    x, y, queries = contexts(50, queries=5)
    unit = torch.eye(3).double().expand(50, 3, 3)
    for predictor in (Ridge(0.5), Descent(2, 0.5), OnePassSGD(0.1)):
        torch.testing.assert_close(implied_weights(predictor(x, y, queries), queries), predictor(x, y, unit))


def test_isotropic_queries_make_the_two_distances_one() -> None:
    x, y, queries = contexts()
    for a, b in ((Ridge(0.5), LeastSquares()), (Descent(1, 0.5), Ridge(2.0))):
        # E (w x)^2 = |w|^2 where E x x^T = I; 24,000 queries, whose mean is known to a percent or two.
        assert float(spd(a, b, x, y, queries)) == pytest.approx(float(ilwd(a, b, x, y, queries)), rel=0.05)


def test_on_other_queries_they_differ() -> None:
    x, y, queries = contexts()
    a, b = Ridge(0.5), LeastSquares()
    assert float(spd(a, b, x, y, 3 * queries)) == pytest.approx(9 * float(spd(a, b, x, y, queries)))
    assert float(ilwd(a, b, x, y, 3 * queries)) == pytest.approx(float(ilwd(a, b, x, y, queries)))


def test_descent_comes_nearer_to_least_squares_with_every_step_and_two_of_gd_plus_plus_are_nearer_than_two() -> None:
    data = contexts(500, examples=12)
    apart = [float(ilwd(Descent(steps, 0.5), LeastSquares(), *data)) for steps in (0, 1, 2, 4, 8, 16)]
    assert apart == sorted(apart, reverse=True)
    assert float(ilwd(DescentPlusPlus(2, 0.9, 0.012), LeastSquares(), *data)) < apart[2]


def test_the_strength_of_a_ridge_is_found_back_as_the_nearest() -> None:
    data = contexts(200)
    strengths = (0.1, 0.3, 1.0, 3.0)
    for distance in (spd, ilwd):
        apart = {strength: float(distance(Ridge(0.35), Ridge(strength), *data)) for strength in strengths}
        assert min(apart, key=apart.__getitem__) == 0.3


def test_too_few_queries_imply_no_weights() -> None:
    x, y, queries = contexts(5)
    with pytest.raises(ShapeError, match="2 queries do not determine w in 3 dimensions; give 3 or more"):
        ilwd(Zero(), Ridge(1.0), x, y, queries[:, :2])
