"""Exact predictors are exact: each answers to its slow, obvious twin, to a theorem, or to published losses."""

from functools import cache

import pytest
import torch
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.neighbors import KNeighborsRegressor
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, ShapeError
from dualform.lab.predictors import (
    Bayes,
    Descent,
    DescentPlusPlus,
    LeastSquares,
    NearestNeighbours,
    OnePassSGD,
    Predictor,
    Ridge,
    Zero,
    best_descent,
    best_of,
    by_point,
    errors_by_point,
)
from dualform.lab.regression_tasks import VON_OSWALD, RegressionTasks, Sequences

TASKS = RegressionTasks(dimension=3, points=8, noise=0.2)

ALL: list[Predictor] = [
    Zero(),
    NearestNeighbours(),
    NearestNeighbours(k=2, weighted=False),
    OnePassSGD(0.1),
    Descent(3, 0.2),
    Descent(3, 0.2, momentum=0.4),
    DescentPlusPlus(3, 0.2, 0.01),
    Ridge(0.3),
    LeastSquares(),
    Bayes(0.2, 0.5),
    Bayes(0.0, 0.5),
]
LINEAR = [predictor for predictor in ALL if not isinstance(predictor, NearestNeighbours)]


def drawn(tasks: RegressionTasks = TASKS, n: int = 30) -> Sequences:
    return tasks.draw(n, torch.Generator().manual_seed(0), torch.float64)


def of(predictor: Predictor) -> str:
    return predictor.name


def fit_by_autograd(x: Tensor, y: Tensor, steps: int, rate: float, momentum: float = 0.0) -> Tensor:
    """w of one sequence, by descent on (1/2N) sum (w x - y)^2."""
    w = torch.zeros(x.shape[1], dtype=x.dtype, requires_grad=True)
    moved = torch.zeros_like(w)
    for _ in range(steps):
        (gradient,) = torch.autograd.grad((x @ w - y).square().sum() / (2 * len(y)), w)
        moved = momentum * moved - rate * gradient
        w = (w + moved).detach().requires_grad_()
    return w.detach()


def gd_plus_plus(x: Tensor, y: Tensor, query: Tensor, steps: int, rate: float, gamma: float) -> Tensor:
    """Prediction in one sequence, token by token: residuals, inputs and the query as they change."""
    residuals, predicted = y.clone(), query.new_zeros(())
    for _ in range(steps):
        step = rate / len(y) * (residuals[:, None] * x).sum(0)
        transform = torch.eye(x.shape[1]).to(x) - gamma * sum(torch.outer(row, row) for row in x)
        residuals, predicted = residuals - x @ step, predicted + query @ step
        x, query = x @ transform, transform @ query
    return predicted


@pytest.mark.parametrize("predictor", ALL, ids=of)
def test_by_point_asks_at_each_point_what_is_known_from_those_before(predictor: Predictor) -> None:
    batch = drawn()
    slow = [predictor(batch.x[:, :n], batch.y[:, :n], batch.x[:, n : n + 1]) for n in range(8)]
    torch.testing.assert_close(by_point(predictor, batch.x, batch.y), torch.cat(slow, 1), rtol=1e-8, atol=1e-10)
    assert by_point(predictor, batch.x, batch.y)[:, 0].eq(0).all(), "before an example nothing is known"
    single = by_point(predictor, batch.x[:, :1], batch.y[:, :1])
    assert single.equal(torch.zeros(30, 1).double())


@pytest.mark.parametrize("predictor", ALL, ids=of)
def test_sequences_and_queries_do_not_know_of_one_another(predictor: Predictor) -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :5], batch.y[:, :5], batch.x[:, 5:]
    together = predictor(x, y, queries)
    assert together.shape == (30, 3)
    torch.testing.assert_close(together[7:8, 1:2], predictor(x[7:8], y[7:8], queries[7:8, 1:2]))


@pytest.mark.parametrize("predictor", LINEAR, ids=of)
def test_these_are_linear_in_the_query_and_in_the_targets(predictor: Predictor) -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :5], batch.y[:, :5], batch.x[:, 5:]
    torch.testing.assert_close(predictor(x, -2 * y, 3 * queries), -6 * predictor(x, y, queries))


def test_nearest_neighbours_are_not_linear_in_the_query() -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :5], batch.y[:, :5], batch.x[:, 5:]
    assert (NearestNeighbours()(x, y, 3 * queries) - 3 * NearestNeighbours()(x, y, queries)).abs().max() > 0.5


@pytest.mark.parametrize("weighted", [True, False])
@pytest.mark.parametrize("examples", [1, 2, 7])
def test_nearest_neighbours_are_scikit_learns(weighted: bool, examples: int) -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :examples], batch.y[:, :examples], batch.x[:, 7:].repeat(1, 2, 1)
    queries[:, 1] = x[:, 0]
    predicted = NearestNeighbours(k=3, weighted=weighted)(x, y, queries)
    for sequence in range(5):
        twin = KNeighborsRegressor(min(3, examples), weights="distance" if weighted else "uniform")
        expected = twin.fit(x[sequence].numpy(), y[sequence].numpy()).predict(queries[sequence].numpy())
        torch.testing.assert_close(predicted[sequence], torch.from_numpy(expected))


def test_ridge_is_scikit_learns_at_the_same_strength() -> None:
    batch = drawn()
    predicted = Ridge(0.7)(batch.x[:, :6], batch.y[:, :6], batch.x[:, 6:])
    for sequence in range(5):
        twin = SklearnRidge(alpha=0.7, fit_intercept=False).fit(
            batch.x[sequence, :6].numpy(), batch.y[sequence, :6].numpy()
        )
        torch.testing.assert_close(predicted[sequence], torch.from_numpy(twin.predict(batch.x[sequence, 6:].numpy())))


@pytest.mark.parametrize("momentum", [0.0, 0.4])
def test_descent_is_descent_by_autograd(momentum: float) -> None:
    batch = drawn()
    for examples in (1, 4):
        x, y, queries = batch.x[:, :examples], batch.y[:, :examples], batch.x[:, 7:]
        predicted = Descent(3, 0.2, momentum)(x, y, queries)
        other = Descent(3, 0.25, momentum)(x, y, queries)
        for sequence in range(5):
            w = fit_by_autograd(x[sequence], y[sequence], 3, 0.2, momentum)
            torch.testing.assert_close(predicted[sequence], queries[sequence] @ w)
        assert (other - predicted).abs().max() > 0.01, "the rate matters"


def test_one_pass_of_sgd_takes_examples_one_at_a_time_in_their_order() -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :5], batch.y[:, :5], batch.x[:, 7:]
    predicted = OnePassSGD(0.2)(x, y, queries)
    for sequence in range(5):
        w = torch.zeros(3, dtype=torch.float64)
        for example, target in zip(x[sequence], y[sequence], strict=True):
            w = w + fit_by_autograd(example[None], (target - example @ w)[None], 1, 0.2)
        torch.testing.assert_close(predicted[sequence], queries[sequence] @ w)
    assert (OnePassSGD(0.2)(x.flip(1), y.flip(1), queries) - predicted).abs().max() > 0.01, "order matters"


def test_gd_plus_plus_is_its_tokens_told_one_by_one() -> None:
    batch = drawn()
    x, y, queries = batch.x[:, :5], batch.y[:, :5], batch.x[:, 7:]
    predicted = DescentPlusPlus(3, 0.4, 0.05)(x, y, queries)
    for sequence in range(5):
        expected = gd_plus_plus(x[sequence], y[sequence], queries[sequence, 0], 3, 0.4, 0.05)
        torch.testing.assert_close(predicted[sequence, 0], expected)
    torch.testing.assert_close(DescentPlusPlus(3, 0.4, 0.0)(x, y, queries), Descent(3, 0.4)(x, y, queries))
    # One step ends before what it transforms is used.
    torch.testing.assert_close(DescentPlusPlus(1, 0.4, 0.05)(x, y, queries), Descent(1, 0.4)(x, y, queries))


def test_many_steps_of_descent_end_at_least_squares_and_few_do_not() -> None:
    batch = drawn(RegressionTasks(dimension=3, points=21, noise=0.2))
    x, y, queries = batch.x[:, :20], batch.y[:, :20], batch.x[:, 20:]
    exact = LeastSquares()(x, y, queries)
    torch.testing.assert_close(Descent(500, 0.5)(x, y, queries), exact, atol=1e-6, rtol=1e-6)
    assert (Descent(3, 0.3)(x, y, queries) - exact).abs().max() > 0.1


def test_least_squares_is_the_limit_of_ridge_and_the_shortest_where_many_fit() -> None:
    batch = drawn()
    for examples in (1, 2, 3, 7):
        x, y = batch.x[:, :examples], batch.y[:, :examples]
        queries = torch.eye(3).double().expand(30, 3, 3)
        w = LeastSquares()(x, y, queries)
        torch.testing.assert_close(w, (torch.linalg.pinv(x) @ y[..., None])[..., 0])
        torch.testing.assert_close(w, Ridge(1e-9)(x, y, queries), atol=1e-4, rtol=1e-4)
    # An example told twice adds nothing.
    once, twice = (LeastSquares()(x[:, [0] * n], y[:, [0] * n], queries) for n in (1, 2))
    torch.testing.assert_close(twice, once)


def test_least_squares_knows_the_function_once_it_has_seen_as_many_points_as_dimensions() -> None:
    batch = drawn(RegressionTasks(dimension=3, points=8), 2000)
    errors = errors_by_point(by_point(LeastSquares(), batch.x, batch.y), batch.y)
    # Isotropic inputs: n points tell n / d of what there is to know.
    for point, expected in enumerate((1.0, 2 / 3, 1 / 3)):
        assert float(errors[point]) == pytest.approx(expected, abs=0.08)
    assert float(errors[3:].max()) < 1e-12


NOISE = 0.5
NOISY = RegressionTasks(dimension=5, points=9, noise=NOISE)
STRENGTH = NOISE**2 / NOISY.weight_deviation**2


@cache
def noisy() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    batch = NOISY.draw(20_000, torch.Generator().manual_seed(1), torch.float64)
    return batch.x[:, :-1], batch.y[:, :-1], batch.x[:, -1:], batch.clean[:, -1:]


def error(predictor: Predictor) -> float:
    x, y, queries, target = noisy()
    return float((predictor(x, y, queries) - target).square().mean())


def test_no_ridge_is_better_than_bayes_and_the_best_has_its_strength() -> None:
    steps = (-3.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 3.0)
    errors = {step: error(Ridge(STRENGTH * 2**step)) for step in steps}
    assert min(errors, key=errors.__getitem__) == 0.0
    assert error(Bayes(NOISE, NOISY.weight_deviation)) == errors[0.0]
    assert all(errors[0.0] < other for step, other in errors.items() if step)
    everything: list[Predictor] = [
        Zero(),
        LeastSquares(),
        NearestNeighbours(),
        OnePassSGD(0.1),
        Descent(5, 0.5),
        DescentPlusPlus(2, 1, 0.02),
    ]
    assert all(errors[0.0] < error(other) for other in everything)


def test_bayes_told_of_other_noise_is_not_the_best() -> None:
    right = error(Bayes(NOISE, NOISY.weight_deviation))
    for wrong in (Bayes(2 * NOISE, NOISY.weight_deviation), Bayes(NOISE, 3.0), Bayes(0.0, 1.0)):
        assert error(wrong) > 1.02 * right


def test_bayes_is_right_about_its_own_error() -> None:
    x, _, queries, _ = noisy()
    precision = x.mT @ x / NOISE**2 + torch.eye(5) / NOISY.weight_deviation**2
    expected = float((queries @ torch.linalg.inv(precision) @ queries.mT).mean())
    assert error(Bayes(NOISE, NOISY.weight_deviation)) == pytest.approx(expected, rel=0.03)


@cache
def von_oswald(contexts: int = 2048) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Contexts, each with weights and a query that stand for all, in an order of chance.

    Descent errs by q^T M w with M of the Gram matrix's eigenvectors u_i, so that w and q of the right length along each
    u_i in turn have the mean square that N(0, 1) weights and uniform queries have. It leaves the spread of contexts
    alone, without which a tolerance of 2 % would ask for a hundred times as many.
    """
    d = VON_OSWALD.dimension
    batch = VON_OSWALD.draw(contexts, torch.Generator().manual_seed(1), torch.float64)
    order = torch.randperm(contexts * d, generator=torch.Generator().manual_seed(1))
    x = batch.x[:, :-1]
    directions = torch.linalg.eigh(x.mT @ x).eigenvectors.mT.flatten(0, 1)[order, :, None]
    x = x.repeat_interleave(d, 0)[order]
    queries = directions.mT / 12**0.5
    w = directions * d**0.5
    return x, (x @ w)[..., 0], queries, (queries @ w)[..., 0]


def half_error(predictor: Predictor, x: Tensor, y: Tensor, queries: Tensor, target: Tensor) -> float:
    return float((predictor(x, y, queries) - target).square().mean() / 2)


@cache
def _best(steps: int, plus_plus: bool) -> tuple[Descent | DescentPlusPlus, float]:
    data = von_oswald()
    best = best_descent(*data, steps=steps, plus_plus=plus_plus)
    return best, half_error(best, *data)


@pytest.mark.parametrize(
    ("steps", "plus_plus", "published"),
    [(1, False, 0.207), (2, False, 0.155), (5, False, 0.108), (2, True, 0.110), (5, True, 0.051)],
)
def test_the_best_shared_rates_have_the_losses_known_of_them(steps: int, plus_plus: bool, published: float) -> None:
    best, loss = _best(steps, plus_plus)
    assert loss == pytest.approx(published, rel=0.02)
    assert isinstance(best, DescentPlusPlus) == plus_plus
    assert best.steps == steps


def test_the_best_rate_of_one_step_is_the_one_known() -> None:
    data = von_oswald()
    best, loss = _best(1, False)
    assert best.rate == pytest.approx(6.06, rel=0.02)
    assert half_error(Zero(), *data) == pytest.approx(0.417, abs=0.0005)
    for wrong in (0.8, 1.25):
        assert half_error(Descent(1, wrong * best.rate), *data) > 1.02 * loss
    # One step's error is a parabola of the rate.
    torch.testing.assert_close(best.rate, _best_single_rate(*data), rtol=1e-6, atol=0)


def _best_single_rate(x: Tensor, y: Tensor, queries: Tensor, target: Tensor) -> float:
    unit = Descent(1, 1.0)(x, y, queries)
    return float((unit * target).sum() / unit.square().sum())


@pytest.mark.parametrize(("steps", "plus_plus"), [(2, False), (3, True)])
def test_no_rate_nearby_is_better_than_the_best(steps: int, plus_plus: bool) -> None:
    batch = drawn(RegressionTasks(dimension=3, points=7, condition=10.0), 500)
    data = batch.x[:, :-1], batch.y[:, :-1], batch.x[:, -1:], batch.clean[:, -1:]
    best = best_descent(*data, steps=steps, plus_plus=plus_plus)
    least = half_error(best, *data)
    for factor in (0.97, 1.03):
        others: list[Predictor] = [
            DescentPlusPlus(steps, factor * best.rate, best.gamma)
            if isinstance(best, DescentPlusPlus)
            else Descent(steps, factor * best.rate)
        ]
        if isinstance(best, DescentPlusPlus):
            assert best.gamma > 0
            others.append(DescentPlusPlus(steps, best.rate, factor * best.gamma))
        assert all(half_error(other, *data) > least for other in others)


def test_names_tell_predictors_apart() -> None:
    assert len({predictor.name for predictor in ALL}) == len(ALL) - 1, "only the two of Bayes share one"
    assert Descent(1, 0.5).name == "gradient descent, 1 step, rate 0.5"


def test_errors_name_what_was_given() -> None:
    with pytest.raises(ConfigError, match=r"strength of ridge is 0\.0; expected above 0\. For 0 use LeastSquares\(\)"):
        Ridge(0.0)
    with pytest.raises(ConfigError, match="k is 0"):
        NearestNeighbours(k=0)
    with pytest.raises(ConfigError, match=r"noise is -1 and weight_scale 1"):
        Bayes(-1, 1)
    x, y = torch.zeros(2, 3, 4), torch.zeros(2, 3)
    for predictor in ALL:
        with pytest.raises(ShapeError, match=r"given \(2, 3, 4\), \(2, 2\) and \(2, 3, 4\)"):
            predictor(x, y[:, :2], x)
    with pytest.raises(ShapeError, match=r"given \(2, 3, 4\), \(3,\) and"):
        by_point(Zero(), x, y[0])
    with pytest.raises(ShapeError, match="is empty; the best rate needs"):
        best_descent(x, y, x[:, :0], y[:, :0], 1)
    with pytest.raises(ShapeError, match=r"target must be \(sequence, query\), \(2, 3\); given \(2, 1\)"):
        best_descent(x, y, x, y[:, :1], 1)
    with pytest.raises(NumericalError, match="zero or NaN"):
        best_descent(x, y, x, y, 1)


def test_heavy_ball_is_ahead_of_descent_where_the_condition_is_bad() -> None:
    x, y = (
        t.double()
        for t in (lambda each: (each.x, each.y))(
            RegressionTasks(3, 8, condition=100.0).draw(400, torch.Generator().manual_seed(0))
        )
    )
    rates = torch.logspace(-2, 0.5, 16).tolist()

    def error(momenta: tuple[float, ...]) -> float:
        best = best_of([Descent(6, rate, momentum) for momentum in momenta for rate in rates], x, y, y)
        return float(errors_by_point(by_point(best, x, y), y)[1:].log().mean())

    assert error((0.0, 0.3, 0.5, 0.7, 0.9)) < error((0.0,)) - 0.02


def test_the_best_of_several_predictors_has_the_least_error_and_one_that_overflows_is_none() -> None:
    batch = RegressionTasks(3, 6).draw(50, torch.Generator().manual_seed(0), torch.float64)
    tried: list[Predictor] = [Descent(400, 1e9), Ridge(1.0), LeastSquares(), Ridge(0.01), Descent(1, 0.1)]
    assert best_of(tried, batch.x, batch.y, batch.y) == LeastSquares()
    assert best_of(tried[:1], batch.x, batch.y, batch.y) == tried[0]
    assert best_of(tried, batch.x, batch.y, by_point(Ridge(0.01), batch.x, batch.y)) == Ridge(0.01)


def test_errors_by_point_are_over_that_of_predicting_zero() -> None:
    target = torch.tensor([[2.0, 0.0], [0.0, 2.0]])
    predicted = torch.tensor([[[2.0, 0.0], [2.0, 2.0]], [[0.0, 0.0], [0.0, 0.0]]])
    # The mean square of what should be predicted is 2.
    assert errors_by_point(predicted, target).tolist() == [[1.0, 0.0], [1.0, 1.0]]
