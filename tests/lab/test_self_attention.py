"""Self-attention over joint tokens: the Gram matrix's way answers to the tokens', and training learns descent."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError, TrainingError
from dualform.lab.in_context_training import TrainedModels, _draw, mean_gram, self_attention_training, train_together
from dualform.lab.predictors import Descent, DescentPlusPlus, best_descent
from dualform.lab.regression_tasks import VON_OSWALD, RegressionTasks
from dualform.lab.self_attention import (
    GRAM,
    InContextTransformer,
    Products,
    SelfAttentionConfig,
    predict,
    predict_by_tokens,
    sensitivities,
)
from dualform.ops.constructions import LinearSelfAttention, descend_by_layers, gd_layer, gd_plus_plus_layer
from dualform.ops.streams import stream

D, N = 3, 5
TASKS = replace(VON_OSWALD, dimension=D, points=N + 1)
KINDS: dict[str, dict[str, Any]] = {
    "linear": {},
    "heads": {"heads": 2, "key_size": 2},
    "deep": {"layers": 3},
    "recurrent": {"layers": 3, "recurrent": True},
    "softmax": {"softmax": True, "layers": 2},
    "layer norm": {"layer_norm": True, "layers": 2},
    "mlp": {"mlp": 6, "layers": 2},
    "all": {"softmax": True, "layer_norm": True, "mlp": 6, "layers": 2, "heads": 2, "recurrent": True},
}
LINEAR = ("linear", "heads", "deep", "recurrent")


def shape(kind: str) -> SelfAttentionConfig:
    return SelfAttentionConfig(D, **KINDS[kind])


def model_of(kind: str, seed: int = 0) -> InContextTransformer:
    """In float64, with weights far from the first ones, in which W_Q and W_K would be equal."""
    generator = torch.Generator().manual_seed(seed)
    weights = shape(kind).draw_weights(generator)
    moved = {name: value + 0.3 * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
    return InContextTransformer(shape(kind), moved).double()


def examples(n: int = 4, queries: int = 2, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    tasks = RegressionTasks(D, N + queries)
    drawn = tasks.draw(n, torch.Generator().manual_seed(seed), torch.float64)
    return drawn.x[:, :N], drawn.y[:, :N], drawn.x[:, N:]


def slowly(model: InContextTransformer, x: Tensor, y: Tensor, query: Tensor) -> float:
    """One sequence with one query, a sum at a time: the equation at the head of the module."""
    config = model.config
    w = {name: value[0] for name, value in model.weights.items()}
    tokens = [torch.cat([x[j], y[j : j + 1]]) for j in range(len(x))] + [torch.cat([query, query.new_zeros(1)])]

    def normed(token: Tensor, name: str, layer: int) -> Tensor:
        if not config.layer_norm:
            return token
        centred = token - token.mean()
        return centred / (centred.square().mean() + 1e-5).sqrt() * w[f"{name}.weight"][layer] + w[f"{name}.bias"][layer]

    for step in range(config.layers):
        layer = 0 if config.recurrent else step
        read = [normed(token, "norm", layer) for token in tokens]
        after = []
        for token, own in zip(tokens, read, strict=True):
            new = token.clone()
            for h in range(config.heads):
                q = w["W_Q"][layer, h] @ own
                scores = torch.stack([q @ (w["W_K"][layer, h] @ e) for e in read[:-1]])
                if config.softmax:
                    scores = (scores / math.sqrt(config.width)).exp()
                    scores = scores / scores.sum()
                for score, e in zip(scores, read[:-1], strict=True):
                    new = new + w["P"][layer, h] @ (w["W_V"][layer, h] @ e) * score
            if config.mlp:
                hidden = w["mlp.in"][layer] @ normed(new, "mlp.norm", layer) + w["mlp.in_bias"][layer]
                gelu = hidden * (1 + torch.erf(hidden / math.sqrt(2))) / 2
                new = new + w["mlp.out"][layer] @ gelu + w["mlp.out_bias"][layer]
            after.append(new)
        tokens = after
    return -float(tokens[-1][-1])


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_those_of_the_equation(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = examples()
    with torch.no_grad():
        result = model.predict(x, y, queries)
        expected = [[slowly(model, x[n], y[n], query) for query in queries[n]] for n in range(len(x))]
    torch.testing.assert_close(result, torch.tensor(expected, dtype=torch.float64), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", LINEAR)
def test_the_gram_matrix_and_the_tokens_say_the_same_and_have_the_same_gradients(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = (tensor[None] for tensor in examples())
    result = []
    for way in (predict, predict_by_tokens):
        weights = {name: value.detach().requires_grad_() for name, value in model.weights.items()}
        predicted = way(model.config, weights, x, y, queries)
        result.append([predicted, *torch.autograd.grad(predicted.square().sum(), list(weights.values()))])
    for fast, slow in zip(*result, strict=True):
        torch.testing.assert_close(fast, slow, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", LINEAR)
def test_layers_are_those_of_the_constructions(kind: str) -> None:
    model = model_of(kind)
    w = {name: value[0] for name, value in model.weights.items()}
    which = [0] * model.config.layers if model.config.recurrent else range(model.config.layers)
    layers = [LinearSelfAttention(w["W_K"][i], w["W_Q"][i], w["W_V"][i], w["P"][i]) for i in which]
    x, y, queries = examples()
    torch.testing.assert_close(
        model.predict(x, y, queries), descend_by_layers(layers, x, y[..., None], queries)[..., 0]
    )


@pytest.mark.parametrize("kind", KINDS)
def test_every_weight_has_the_gradient_that_finite_differences_have(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = examples(2, 1)
    direction = torch.Generator().manual_seed(3)
    for parameter in model.parameters():
        along = torch.randn(parameter.shape, generator=direction, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(model.predict(x, y, queries).sum(), parameter)
        ends = []
        with torch.no_grad():
            for step in (1e-5, -2e-5):
                parameter.add_(step * along)
                ends.append(float(model.predict(x, y, queries).sum()))
            parameter.add_(1e-5 * along)
        # Central differences err by the step squared times a third derivative.
        assert float((gradient * along).sum()) == pytest.approx((ends[0] - ends[1]) / 2e-5, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_last_y_is_never_looked_at_and_examples_have_no_order(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = examples(queries=1)
    all_x, all_y = torch.cat([x, queries], 1), torch.cat([y, torch.ones(len(y), 1).double()], 1)
    result = model(all_x, all_y)
    assert result.shape == (4,)
    other = all_y.clone()
    other[:, -1] = 7
    assert torch.equal(model(all_x, other), result)
    torch.testing.assert_close(model.predict(x.flip(1), y.flip(1), queries)[:, 0], result)
    other[:, 0] += 1
    assert not torch.allclose(model(all_x, other), result)


@pytest.mark.parametrize("kind", KINDS)
def test_no_query_sees_another(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = examples(queries=3)
    together = model.predict(x, y, queries)
    torch.testing.assert_close(together[:, 1:2], model.predict(x, y, queries[:, 1:2]))


@pytest.mark.parametrize("layers", [1, 2, 4])
@pytest.mark.parametrize("gamma", [0.0, 0.02])
def test_constructed_products_do_descent(layers: int, gamma: float) -> None:
    x, y, queries = examples()
    eta = 0.4
    result = Products.of_descent(D, layers, eta, gamma, N)(x[None], y[None], queries[None])[0]
    exact = DescentPlusPlus(layers, eta, gamma) if gamma else Descent(layers, eta)
    torch.testing.assert_close(result, exact(x, y, queries), rtol=1e-12, atol=1e-12)
    W0 = torch.zeros(1, D, dtype=torch.float64)
    layer = gd_plus_plus_layer(W0, eta, gamma, N) if gamma else gd_layer(W0, eta, N)
    torch.testing.assert_close(result, descend_by_layers([layer] * layers, x, y[..., None], queries)[..., 0])
    wrong = Products.of_descent(D, layers, 2 * eta, gamma, N)(x[None], y[None], queries[None])[0]
    assert not torch.allclose(result, wrong)


@pytest.mark.parametrize("kind", ["linear", "deep", "recurrent"])
def test_balanced_products_do_the_same_and_interpolation_goes_from_one_to_the_other(kind: str) -> None:
    model = model_of(kind)
    x, y, queries = (tensor[None] for tensor in examples())
    own, built = model.products().balanced(), Products.of_descent(D, model.config.layers, 0.5, 0.0, N)
    torch.testing.assert_close(own(x, y, queries), model.products()(x, y, queries))
    torch.testing.assert_close(
        own.KQ[..., :D, :D].diagonal(dim1=-2, dim2=-1).mean(-1), torch.ones_like(own.KQ[..., 0, 0])
    )
    torch.testing.assert_close(own.towards(built, 0.0)(x, y, queries), own(x, y, queries))
    torch.testing.assert_close(own.towards(built, 1.0)(x, y, queries), built(x, y, queries))
    # Whatever scale P W_V and W_K^T W_Q trade, sign included, balanced ones are the same.
    other = Products(-5 * model.products().PV, -model.products().KQ / 5).balanced()
    torch.testing.assert_close((other.PV, other.KQ), (own.PV, own.KQ))


def test_a_linear_predictors_sensitivity_is_its_w() -> None:
    x, y, queries = examples()
    descent = Descent(1, 0.7)
    w = 0.7 / N * (y[..., None] * x).sum(1)
    torch.testing.assert_close(sensitivities(descent, x, y, queries), w[:, None].expand(-1, 2, -1))
    model = model_of("softmax")
    step = torch.tensor([1e-6, 0, 0]).double()
    difference = (model.predict(x, y, queries + step) - model.predict(x, y, queries - step)) / 2e-6
    torch.testing.assert_close(
        sensitivities(model.predict, x, y, queries)[..., 0], difference.detach(), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("kind", ["recurrent", "all"])
def test_seeds_trained_together_are_what_each_is_alone(kind: str) -> None:
    training = self_attention_training(4, batch=8)
    together = train_together(shape(kind), TASKS, training, (1, 2), keep=(0, 2))
    assert together.at == (0, 2, 4)
    for seed in (1, 2):
        alone = train_together(shape(kind), TASKS, training, (seed,)).model(seed)
        for name, value in together.model(seed).weights.items():
            # Sums of several models are taken in another order.
            torch.testing.assert_close(value, alone.weights[name], rtol=1e-3, atol=1e-5)
    first = together.model(1, 0).weights
    drawn = shape(kind).draw_weights(stream("weights", 1), mean_gram(TASKS))
    assert all(torch.equal(first[name][0], drawn[name]) for name in drawn)
    assert not torch.allclose(together.model(1).weights["P"], together.model(2).weights["P"], atol=1e-3)


def test_the_gram_matrix_that_first_weights_are_drawn_for_is_that_of_the_tasks() -> None:
    assert mean_gram(VON_OSWALD) == pytest.approx(GRAM)
    for tasks in (TASKS, RegressionTasks(D, N + 1, condition=9.0, input_scale=2.0)):
        x = tasks.draw(4000, torch.Generator().manual_seed(0)).x[:, :-1]
        assert mean_gram(tasks) == pytest.approx(float(x.square().sum((1, 2)).mean()), rel=0.03)


@pytest.mark.parametrize("kind", ["linear", "deep"])
def test_what_a_first_layer_does_is_the_same_however_many_the_examples(kind: str) -> None:
    changes = []
    for points in (10, 250):
        tasks = replace(VON_OSWALD, dimension=D, points=points + 1)
        weights = shape(kind).draw_weights(torch.Generator().manual_seed(0), mean_gram(tasks))
        drawn = tasks.draw(500, torch.Generator().manual_seed(1))
        x, y, queries = drawn.x[:, :-1], drawn.y[:, :-1], drawn.x[:, -1:]
        predicted = predict(
            shape(kind), {name: value[None] for name, value in weights.items()}, *_of_one(x, y, queries)
        )
        changes.append(float(predicted.square().mean().sqrt()))
    assert changes[1] == pytest.approx(changes[0], rel=0.5)


def _of_one(*tensors: Tensor) -> list[Tensor]:
    return [tensor[None] for tensor in tensors]


def test_sequences_of_a_seed_are_drawn_for_nothing_else() -> None:
    tasks = replace(TASKS, points=N + 16)
    (x, *_) = _draw(tasks, 2, N, [stream("training", seed) for seed in (1, 2)])
    assert not torch.equal(x[0], x[1])
    others = [torch.Generator().manual_seed(1), stream("test", 1), stream("tuning", 0), stream("training", 2**32 + 1)]
    for other in others:
        assert not torch.equal(tasks.draw(2, other).x[:, :N], x[0])


@pytest.mark.parametrize("kind", ["softmax", "layer norm", "mlp", "all"])
def test_other_kinds_learn_too(kind: str) -> None:
    tasks = RegressionTasks(D, N + 1)
    losses: list[float] = []
    training = self_attention_training(120, batch=32)
    train_together(shape(kind), tasks, training, (1,), after_step=lambda step: losses.append(step.loss))
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])


@pytest.fixture(scope="module")
def trained() -> TrainedModels:
    """In the paper's setting, for a tenth of a study's steps or so."""
    return train_together(SelfAttentionConfig(10), VON_OSWALD, self_attention_training(600), (1, 2))


@pytest.fixture(scope="module")
def new() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    drawn = replace(VON_OSWALD, points=26).draw(2000, torch.Generator().manual_seed(2**31), torch.float64)
    return drawn.x[:, :10], drawn.y[:, :10], drawn.x[:, 10:], drawn.clean[:, 10:]


def _loss(predicted: Tensor, target: Tensor) -> float:
    return float((predicted - target).square().mean()) / 2


@pytest.mark.parametrize("seed", [1, 2])
def test_a_trained_layer_is_a_step_of_descent(
    seed: int, trained: TrainedModels, new: tuple[Tensor, Tensor, Tensor, Tensor]
) -> None:
    x, y, queries, target = new
    model = trained.model(seed).double().requires_grad_(False)
    step = best_descent(x, y, queries, target, 1)
    assert isinstance(step, Descent)
    best = _loss(step(x, y, queries), target)
    # The weights' spread after so few steps adds a percent or two; the study trains until less than one is left.
    assert _loss(model.predict(x, y, queries), target) < 1.03 * best
    own, exact = sensitivities(model.predict, x, y, queries), sensitivities(step, x, y, queries)
    assert float(torch.cosine_similarity(own, exact, dim=-1).mean()) > 0.98
    # What is no such step: another rate, and a context in which each y stands beside another's x.
    assert _loss(replace(step, rate=2 * step.rate)(x, y, queries), target) > 1.1 * best
    assert _loss(model.predict(x, y.roll(1, 1), queries), target) > 1.1 * best


def test_what_cannot_be_is_named() -> None:
    with pytest.raises(ConfigError, match="layers is 0, expected 1 or more; mlp is -1"):
        SelfAttentionConfig(D, layers=0, mlp=-1)
    with pytest.raises(
        ConfigError, match="inputs of dimension 3 and at least one example; the tasks have dimension 4 and 5"
    ):
        train_together(shape("linear"), replace(TASKS, dimension=4), self_attention_training(1), (1,))
    with pytest.raises(ConfigError, match="not described by products"):
        model_of("softmax").products()
    x, y, queries = examples()
    with pytest.raises(ShapeError, match=r"queries \(sequence, query, 3\); given .*\(4, 2, 2\)"):
        model_of("linear").predict(x, y, queries[..., :2])
    with pytest.raises(TrainingError, match=r"step \d+: the loss of seed 1 is (nan|inf) .* fewer examples"):
        train_together(shape("deep"), TASKS, self_attention_training(30, learning_rate=1e9), (1,))
