import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeCV

from dualform.errors import ConfigError, NumericalError, ShapeError
from dualform.ops.dual_form import outer_product_update
from dualform.ops.ridge import STRENGTHS, NormalEquations

DOUBLE = torch.float64


def rows(n=60, d_in=7, d_out=4, noise=0.3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = (
        torch.randn(n, d_in, generator=generator, dtype=DOUBLE) @ torch.diag(torch.linspace(0.2, 3, d_in, dtype=DOUBLE))
        + 1
    )
    truth = torch.randn(d_out, d_in, generator=generator, dtype=DOUBLE)
    y = x @ truth.T + noise * torch.randn(n, d_out, generator=generator, dtype=DOUBLE) - 2
    return x, y, truth


def gathered(x, y, **options):
    equations = NormalEquations(x.shape[1], y.shape[1], **options)
    equations.add(x, y)
    return equations


def penalty(x, strength, intercept):
    """What scikit-learn calls alpha."""
    centred = x - x.mean(0) if intercept else x
    return strength * float(centred.square().sum(0).mean())


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize("strength", [0.0, 1e-3, 0.1, 10.0])
def test_the_fit_is_that_of_scikit_learn_on_all_rows_at_once(strength, intercept):
    x, y, _ = rows()
    fit = gathered(x, y, intercept=intercept).solve(strength)
    twin = Ridge(alpha=penalty(x, strength, intercept), fit_intercept=intercept, solver="svd").fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(fit.W.numpy(), twin.coef_, atol=1e-9)
    np.testing.assert_allclose(fit.c.numpy(), np.broadcast_to(twin.intercept_, 4), atol=1e-9)


def test_another_penalty_gives_another_fit():
    x, y, _ = rows()
    equations = gathered(x, y)
    assert not torch.allclose(equations.solve(0.01).W, equations.solve(1.0).W, atol=1e-2)


def test_batches_give_what_all_rows_at_once_give():
    x, y, _ = rows()
    whole = gathered(x, y).solve(0.1)
    parts = NormalEquations(7, 4)
    for start in range(0, 60, 13):
        parts.add(x[start : start + 13], y[start : start + 13])
    assert torch.allclose(parts.solve(0.1).W, whole.W, atol=1e-12)
    assert torch.allclose(parts.solve(0.1).c, whole.c, atol=1e-12)


def test_a_weight_counts_a_row_so_many_times():
    x, y, _ = rows(20)
    weighed = NormalEquations(7, 4)
    weighed.add(x[:10], y[:10], weight=3)
    weighed.add(x[10:], y[10:])
    repeated = gathered(torch.cat([x[:10], x[:10], x[:10], x[10:]]), torch.cat([y[:10], y[:10], y[:10], y[10:]]))
    assert torch.allclose(weighed.solve(0.1).W, repeated.solve(0.1).W, atol=1e-10)
    assert weighed.weight == repeated.weight == 40


def test_rows_without_an_output_are_rows_whose_output_is_zero():
    x, y, _ = rows(40)
    silent = gathered(x[:20], y[:20])
    silent.add(x[20:], None)
    spoken = gathered(x, torch.cat([y[:20], torch.zeros(20, 4, dtype=DOUBLE)]))
    assert torch.allclose(silent.solve(0.1).W, spoken.solve(0.1).W, atol=1e-12)
    assert silent.solve(0.1).explained == pytest.approx(spoken.solve(0.1).explained, abs=1e-12)
    # They do pull the map towards nothing.
    assert silent.solve(0.1).W.norm() < gathered(x[:20], y[:20]).solve(0.1).W.norm()


@pytest.mark.parametrize("intercept", [True, False])
def test_explained_is_the_share_of_the_squares_that_the_fit_takes_away(intercept):
    x, y, _ = rows()
    fit = gathered(x, y, intercept=intercept).solve(0.1)
    left = y - x @ fit.W.T - fit.c
    assert fit.explained == pytest.approx(float(1 - left.square().sum() / y.square().sum()), abs=1e-12)
    assert fit.explained < 1


def test_outputs_that_are_all_zero_have_no_share_to_explain():
    x, _, _ = rows()
    fit = gathered(x, torch.zeros(60, 4, dtype=DOUBLE)).solve(0.1)
    assert fit.explained != fit.explained
    assert not fit.W.any()


def test_a_linear_relation_without_noise_is_found_exactly_without_penalty():
    x, y, truth = rows(noise=0.0)
    fit = gathered(x, y).solve(0.0)
    assert torch.allclose(fit.W, truth, atol=1e-10)
    assert torch.allclose(fit.c, torch.full((4,), -2.0, dtype=DOUBLE), atol=1e-9)
    assert fit.explained == pytest.approx(1.0, abs=1e-12)


def test_inputs_that_never_vary_in_some_direction_get_the_shortest_map():
    x, y, _ = rows(5)
    fit = gathered(x, y).solve(0.0)
    centred = x - x.mean(0)
    shortest = torch.linalg.pinv(centred, rtol=1e-8) @ (y - y.mean(0))
    assert torch.allclose(fit.W, shortest.T, atol=1e-5)


def test_cross_validation_chooses_as_leaving_rows_out_by_the_hat_matrix_does():
    x, y, _ = rows(30, noise=3.0)
    found = gathered(x, y).cross_validated()
    centred, outputs = x - x.mean(0), y - y.mean(0)
    errors = []
    for strength in STRENGTHS:
        alpha = penalty(x, strength, True)
        hat = centred @ torch.linalg.solve(centred.T @ centred + alpha * torch.eye(7, dtype=DOUBLE), centred.T)
        residual = (outputs - hat @ outputs).square().sum()
        errors.append(float(30 * residual / (30 - hat.trace() - 1) ** 2))
    best = STRENGTHS[int(np.argmin(errors))]
    assert found.strength == best
    assert torch.allclose(found.W, gathered(x, y).solve(best).W, atol=1e-9)


def test_cross_validation_wants_more_penalty_the_more_noise_there_is():
    clean, noisy = (gathered(*rows(30, noise=noise)[:2]).cross_validated().strength for noise in (0.01, 10.0))
    assert clean < noisy


def test_cross_validation_is_near_leave_one_out():
    x, y, _ = rows(200, d_out=1, noise=5.0)
    alphas = [penalty(x, strength, True) for strength in STRENGTHS]
    twin = RidgeCV(alphas=alphas).fit(x.numpy(), y[:, 0].numpy())
    chosen = STRENGTHS.index(gathered(x, y).cross_validated().strength)
    assert abs(chosen - int(np.argmin(np.abs(np.array(alphas) - twin.alpha_)))) <= 1


def heads(softmax, n_demonstrations=6, n_queries=40, d=5):
    """Change of a head's output through demonstrations, for many queries of the same text: `(q, change, update)`."""
    generator = torch.Generator().manual_seed(3)
    K, V, own_k, own_v = (
        torch.randn(n, d, generator=generator, dtype=DOUBLE) for n in (n_demonstrations, n_demonstrations, 4, 4)
    )
    q = torch.randn(n_queries, d, generator=generator, dtype=DOUBLE)

    def output(keys, values):
        scores = q @ keys.T
        return (scores.softmax(-1) if softmax else scores) @ values

    change = output(torch.cat([K, own_k]), torch.cat([V, own_v])) - output(own_k, own_v)
    return q, change, outer_product_update(V[None], K[None])[0]


def test_the_fold_of_linear_attention_is_exact():
    q, change, update = heads(softmax=False)
    fit = gathered(q, change, intercept=False).solve(0.0)
    assert torch.allclose(fit.W, update, atol=1e-10)
    assert torch.allclose(q @ fit.W.T, change, atol=1e-10)


def test_the_fold_of_softmax_attention_is_not():
    q, change, update = heads(softmax=True)
    fit = gathered(q, change, intercept=True).solve(0.0)
    assert (q @ fit.W.T + fit.c - change).norm() > 0.1 * change.norm()
    assert (fit.W - update).norm() > 0.1 * update.norm()


def test_mistakes_are_named():
    x, y, _ = rows()
    equations = NormalEquations(7, 4)
    with pytest.raises(ConfigError, match="needs rows"):
        equations.solve(0.1)
    with pytest.raises(ShapeError, match=r"\(60, 7\) and \(60, 3\) do not fit a map from 7 to 4"):
        equations.add(x, y[:, :3])
    with pytest.raises(ShapeError, match="from 7 to 4"):
        equations.add(x[:, :2], None)
    equations.add(x, y)
    with pytest.raises(ConfigError, match=r"-0\.5"):
        equations.solve(-0.5)
    with pytest.raises(ConfigError, match="no ridge strengths"):
        equations.cross_validated(())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rows_in_half_precision_are_fitted_as_in_single(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    # Directions of very different size, as the joined heads of a model have them.
    x = (torch.randn(3000, 200, generator=generator) * torch.logspace(1, -2, 200)).to(dtype)
    y = (x.float() @ torch.randn(200, 20, generator=generator) + torch.randn(3000, 20, generator=generator)).to(dtype)
    fits = []
    for given in ((x, y), (x.float(), y.float())):
        equations = NormalEquations(200, 20)
        equations.add(*given)
        fits.append(equations.cross_validated())
    assert fits[0].strength == fits[1].strength
    torch.testing.assert_close(fits[0].W, fits[1].W)
    assert fits[0].explained <= 1


@pytest.mark.parametrize("weight", [1.0, 10.0])
def test_weights_do_not_make_noise_look_like_something(weight: float) -> None:
    """Fewer rows than inputs: the weakest penalty fits the noise whole, and must not be chosen for it."""
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(100, width, generator=generator) for width in (200, 20))
    equations = NormalEquations(200, 20)
    equations.add(x, y)
    if weight > 1:
        equations.add(x[:10], y[:10], weight - 1, known=True)
    equations.add(torch.ones(160, 200), None, known=True)
    fit = equations.cross_validated()
    assert fit.strength >= 1
    assert fit.explained < 0.7


def test_a_fit_that_is_none_is_told() -> None:
    equations = NormalEquations(2, 1)
    equations.add(torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(2, 1))
    # As overflow in the rows would leave it.
    equations._xy += torch.nan
    with pytest.raises(NumericalError, match=r"a ridge fit of 2 rows at strength 0\.1 is no fit"):
        equations.solve(0.1)
