"""Decoders trained side by side: no seed knows of another, and no example of a question or of what comes after it."""

import math

import pytest
import torch
from torch import Tensor

from dualform.errors import ShapeError, TrainingError
from dualform.lab.decoder import DecoderConfig, Decoders, InContextPredictor
from dualform.lab.predictors import LeastSquares, by_point
from dualform.lab.regression_tasks import RegressionTasks
from dualform.lab.training import Training, train
from dualform.ops.streams import stream

SMALL = DecoderConfig(dimension=3, width=8, layers=2)
TASKS = RegressionTasks(dimension=3, points=6)


def sample_sequences(seeds: int = 2, n: int = 4) -> tuple[Tensor, Tensor]:
    batch = TASKS.draw(n, torch.Generator().manual_seed(7), torch.float64)
    return batch.x.expand(seeds, -1, -1, -1), batch.y.expand(seeds, -1, -1)


def fresh(seeds: tuple[int, ...] = (1, 2)) -> Decoders:
    """In float64, so that two ways to the same number agree to many digits."""
    return Decoders(SMALL, seeds).double().requires_grad_(False)


def test_a_prediction_by_point_is_what_is_said_when_asked_after_the_points_before() -> None:
    model, (x, y) = fresh(), sample_sequences()
    whole = model(x, y)
    for n in range(TASKS.points):
        predicted = model.predict(x[:, :, :n], y[:, :, :n], x[:, :, n : n + 1])
        torch.testing.assert_close(predicted[..., 0], whole[..., n], rtol=1e-10, atol=1e-12)


def test_what_comes_later_and_the_asked_y_itself_are_not_seen() -> None:
    model, (x, y) = fresh(), sample_sequences()
    changed = y.clone()
    changed[..., 3:] += 1
    own, other = model(x, y), model(x, changed)
    assert torch.equal(own[..., :4], other[..., :4])
    assert (own[..., 4:] - other[..., 4:]).abs().min() > 1e-6


def test_questions_do_not_see_each_other() -> None:
    model, (x, y) = fresh(), sample_sequences()
    together = model.predict(x, y, x.flip(2))
    alone = model.predict(x, y, x.flip(2)[:, :, 2:3])
    torch.testing.assert_close(together[..., 2:3], alone, rtol=1e-10, atol=1e-12)


def test_the_slow_obvious_transformer_says_the_same() -> None:
    model, (x, y) = fresh(), sample_sequences(n=2)
    for number in range(2):
        for sequence in range(2):
            for n in range(TASKS.points):
                by_hand = slowly(model, number, x[number, sequence, : n + 1], y[number, sequence, :n])
                assert by_hand == pytest.approx(float(model(x, y)[number, sequence, n]), rel=1e-9, abs=1e-12)


def slowly(model: Decoders, number: int, x: Tensor, y: Tensor) -> float:
    """One seed, one question (the last x), one token and one head at a time."""
    tokens = [torch.cat([a, b[None], torch.ones(1).double()]) for a, b in zip(x, y, strict=False)]
    tokens.append(torch.cat([x[-1], torch.zeros(2).double()]))

    def linear(name: str, token: Tensor) -> Tensor:
        return token @ model.weights[name][number] + model.biases[name][number, 0]

    def norm(token: Tensor) -> Tensor:
        return token / (token.square().mean() + torch.finfo(token.dtype).eps).sqrt()

    states = [linear("read_in", token) for token in tokens]
    for layer in range(SMALL.layers):
        parts = [linear(f"attend_{layer}", norm(state)).chunk(3) for state in states]
        mixed = []
        for i, (q, _, _) in enumerate(parts):
            heads = []
            for h in range(SMALL.heads):
                own = slice(h * SMALL.width // SMALL.heads, (h + 1) * SMALL.width // SMALL.heads)
                scores = torch.stack([q[own] @ k[own] for _, k, _ in parts[: i + 1]])
                weights = (scores / math.sqrt(SMALL.width // SMALL.heads)).softmax(0)
                heads.append(sum(w * v[own] for w, (_, _, v) in zip(weights, parts[: i + 1], strict=True)))
            mixed.append(torch.cat([torch.as_tensor(head) for head in heads]))
        states = [s + linear(f"attended_{layer}", m) for s, m in zip(states, mixed, strict=True)]
        states = [
            s + linear(f"mlp_out_{layer}", torch.nn.functional.gelu(linear(f"mlp_in_{layer}", norm(s)))) for s in states
        ]
    return float(linear("read_out", norm(states[-1])))


def trained(seeds: tuple[int, ...], steps: int) -> Decoders:
    model = Decoders(SMALL, seeds)
    train(model, TASKS, Training(steps, batch=8))
    return model.requires_grad_(False)


def test_a_seed_learns_the_same_whichever_seeds_learn_beside_it() -> None:
    steps = 12
    together, alone = trained((1, 2, 3), steps), trained((2,), steps)
    x, y = (tensor.float() for tensor in sample_sequences(1, 16))
    expected = alone(x, y)
    torch.testing.assert_close(together.only(2)(x, y), expected, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(
        together(x.expand(3, -1, -1, -1), y.expand(3, -1, -1))[1], expected[0], rtol=1e-3, atol=1e-4
    )
    assert (together.only(1)(x, y) - expected).abs().max() > 1e-2


def test_training_learns_to_regress() -> None:
    losses: list[float] = []
    model = Decoders(DecoderConfig(dimension=1, width=16, layers=2), (1,))
    tasks = RegressionTasks(dimension=1, points=5)
    train(model, tasks, Training(120, 32, 6e-3), after_step=lambda step: losses.append(step.loss))
    model.requires_grad_(False)
    assert len(losses) == 120
    batch = tasks.draw(256, torch.Generator().manual_seed(3), torch.float64)
    predictor = InContextPredictor("trained", model.only(1))
    error = (by_point(predictor, batch.x, batch.y) - batch.y).square()[:, 1:].mean()
    untrained = InContextPredictor("untrained", Decoders(model.config, (1,)))
    assert float(error) < 0.4
    assert float((by_point(untrained, batch.x, batch.y) - batch.y).square()[:, 1:].mean()) > 0.8


def test_a_trained_model_is_asked_as_exact_predictors_are() -> None:
    predictor = InContextPredictor("mine", Decoders(SMALL, (4,)))
    batch = TASKS.draw(3, torch.Generator().manual_seed(1), torch.float64)
    own = by_point(predictor, batch.x, batch.y)
    assert own.dtype == batch.y.dtype
    assert own.shape == by_point(LeastSquares(), batch.x, batch.y).shape
    for n in range(TASKS.points):
        predicted = predictor(batch.x[:, :n], batch.y[:, :n], batch.x[:, n : n + 1])
        torch.testing.assert_close(predicted[:, 0], own[:, n], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changes", [{"width": 9}, {"layers": 0}, {"dimension": 0}, {"heads": 3}])
def test_shapes_that_cannot_be_are_named(changes: dict[str, int]) -> None:
    with pytest.raises(ShapeError, match=str(next(iter(changes.values())))):
        DecoderConfig(**({"dimension": 3, "width": 8, "layers": 2} | changes))


def test_sequences_of_another_shape_are_named() -> None:
    x, y = sample_sequences()
    with pytest.raises(ShapeError, match="2 seeds and d = 3"):
        fresh()(x[:1], y[:1])
    with pytest.raises(ShapeError, match=r"\(2, 4, 5\)"):
        fresh()(x, y[..., :5])
    with pytest.raises(ShapeError, match="queries"):
        fresh().predict(x, y, x[:, :2])


def test_first_weights_are_of_a_stream_of_their_own() -> None:
    first = Decoders(SMALL, (1,)).weights["read_in"][0] * math.sqrt(5)
    torch.testing.assert_close(first, torch.randn(5, 8, generator=stream("weights", 1)))


def test_a_loss_that_is_no_number_is_named() -> None:
    model = Decoders(SMALL, (1, 2))
    with torch.no_grad():
        model.weights["read_out"][1] = math.nan
    with pytest.raises(TrainingError, match=r"step 1: the loss of small, seed 2 is nan"):
        train(model, TASKS, Training(2, batch=2), name="small")
