"""Sequence models: mixers look back only, twins begin alike, and a layer can be made the step that it stands for."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import ConfigError, ShapeError, TrainingError
from dualform.lab.predictors import Descent, LeastSquares, OnePassSGD, Predictor, Ridge, by_point, errors_by_point
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.sequence_model import (
    MIXERS,
    Mixer,
    SequenceModel,
    SequenceModelConfig,
    train_sequence_model,
)
from dualform.lab.training import Training
from dualform.models.editing.momentum import apply_momentum
from dualform.ops.fast_weights import RULES
from dualform.ops.streams import stream

TASKS = RegressionTasks(dimension=3, points=7)


def shape(mixer: Mixer, **settings: Any) -> SequenceModelConfig:
    return SequenceModelConfig(mixer, dimension=3, **({"width": 8, "layers": 1, "heads": 2, "chunk": 4} | settings))


def drawn(n: int = 5) -> Sequences:
    return TASKS.draw(n, torch.Generator().manual_seed(0), dtype=torch.float64)


def trained_a_little(mixer: Mixer, **settings: int) -> SequenceModel:
    """Away from the start, where gates do not depend on the token yet."""
    model = train_sequence_model(shape(mixer, **settings), TASKS, Training(3, batch=4), seed=0)
    return model.double()


def layer_of(model: SequenceModel) -> Any:
    return model.blocks[0].mixer


def test_every_attention_and_every_rule_is_a_mixer() -> None:
    assert list(MIXERS) == ["softmax", "linear-attention", "momentum", "heavy-ball", *RULES]


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_prediction_sees_all_that_is_before_it_and_nothing_else(mixer: Mixer) -> None:
    model, batch = trained_a_little(mixer), drawn()
    with torch.no_grad():
        before = model(batch.x, batch.y)
        y, x = batch.y.clone(), batch.x.clone()
        y[:, 3:] += 1
        x[:, 4:] += 1
        after = model(x, y)
        changed = batch.y.clone()
        changed[:, 0] += 1
        from_first = model(batch.x, changed)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert bool(((after - before)[:, 4:].abs() > 1e-9).all())
    torch.testing.assert_close(from_first[:, 0], before[:, 0])
    assert bool(((from_first - before)[:, 1:].abs() > 1e-9).all())


@pytest.mark.parametrize("mixer", MIXERS)
def test_chunks_change_nothing_and_every_parameter_learns(mixer: Mixer) -> None:
    model, batch = trained_a_little(mixer, mlp=6, layers=2), drawn()
    predicted = model(batch.x, batch.y)
    (predicted - batch.y).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().max() > 0 for parameter in model.parameters())
    other = SequenceModel(replace(model.config, chunk=64)).double()
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(batch.x, batch.y), predicted, rtol=1e-9, atol=1e-9)


def test_models_of_a_seed_begin_with_the_same_weights_whatever_the_mixer() -> None:
    softmax = SequenceModel(shape("softmax", layers=2), seed=3).state_dict()
    for mixer in MIXERS:
        own = SequenceModel(shape(mixer, layers=2), seed=3).state_dict()
        assert all(torch.equal(own[name], value) for name, value in softmax.items())
        of_another_seed = SequenceModel(shape(mixer, layers=2), seed=4).state_dict()
        assert not torch.equal(of_another_seed["read_in.weight"], own["read_in.weight"])


def test_models_do_not_touch_the_global_generator() -> None:
    state = torch.get_rng_state()
    SequenceModel(shape("titans"))
    assert torch.equal(torch.get_rng_state(), state)


def test_gates_begin_constant_and_then_read_the_token() -> None:
    states = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0))
    layer = layer_of(SequenceModel(shape("titans")))
    assert set(layer.gates) == {"rate", "decay", "momentum"}
    starts = {name: gate(states) for name, gate in layer.gates.items()}
    for name, start in {"rate": 0.5, "decay": 0.98, "momentum": 0.5}.items():
        torch.testing.assert_close(starts[name], torch.full((2, 2, 5), start))
    after = layer_of(trained_a_little("titans").float())
    assert all(gate(states).std() > 0 for gate in after.gates.values())


def predicted_by_hand(mixer: Mixer, batch: Sequences, rate: float, ridge: float = 1.0) -> Tensor:
    """Of a layer alone on tokens (x, y, mark), with projections that pick x and y and gates that read the mark."""
    model = SequenceModel(SequenceModelConfig(mixer, dimension=3, width=5, layers=1, heads=1))
    layer = layer_of(model.double())
    tokens = batch.x.new_zeros(*batch.y.shape, 2, 5)
    tokens[..., :3] = batch.x[:, :, None]
    tokens[:, :, 1, 3], tokens[:, :, 1, 4] = batch.y, 1
    pick_x, pick_y = (torch.zeros(5, 5, dtype=torch.float64) for _ in range(2))
    pick_x[[0, 1, 2], [0, 1, 2]] = 1
    pick_y[0, 3] = 1
    with torch.no_grad():
        layer.project.weight.copy_(torch.cat([pick_x, pick_x, pick_y]))
        layer.put_out.weight.copy_(torch.eye(5))
        for gate in layer.gates.values():
            # Closed at (x, 0), which says nothing of y; at (x, y) it is `rate`.
            at = torch.tensor(rate, dtype=torch.float64)
            gate.weight[0, 4] = 60 + (at.expm1().log() if not gate.bounded else at.logit())
            gate.bias.fill_(-60)
        if mixer == "mesa":
            layer.ridge.fill_(float(torch.tensor(ridge - 1e-3, dtype=torch.float64).expm1().log()))
        return layer(tokens.flatten(1, 2))[:, ::2, 0]


@pytest.mark.parametrize(
    ("mixer", "predictor", "other"),
    [
        ("delta", OnePassSGD(0.3), OnePassSGD(0.4)),
        ("mesa", Ridge(0.2), LeastSquares()),
        ("linear", Descent(1, 1.0), Descent(2, 1.0)),
    ],
)
def test_a_layer_written_by_hand_is_the_predictor_that_it_stands_for(
    mixer: Mixer, predictor: Predictor, other: Predictor
) -> None:
    batch = drawn()
    # Of unit length, as these layers make their keys.
    batch = replace(batch, x=torch.nn.functional.normalize(batch.x, dim=-1))
    at = torch.arange(batch.y.shape[1], dtype=torch.float64)
    by_hand = predicted_by_hand(mixer, batch, rate={"delta": 0.3, "mesa": 0.7, "linear": 1.0}[mixer], ridge=0.2 * 0.7)
    if mixer == "linear":
        # Divided by the tokens so far, where the predictor divides by examples; scaled as softmax's queries are.
        by_hand = by_hand * (2 * at + 1) / at.clamp(min=1) * 5**0.5
    torch.testing.assert_close(by_hand, by_point(predictor, batch.x, batch.y), rtol=1e-9, atol=1e-9)
    assert not torch.allclose(by_hand, by_point(other, batch.x, batch.y), rtol=1e-2)


def test_attention_of_one_head_is_what_torch_says() -> None:
    layer = layer_of(SequenceModel(shape("softmax", heads=1)))
    states = torch.randn(2, 6, 8, generator=torch.Generator().manual_seed(0))
    q, k, v = layer.project(states).chunk(3, -1)
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(6, 6).triu(1).bool(), -torch.inf)
    torch.testing.assert_close(layer(states), layer.put_out(scores.softmax(-1) @ v))
    with_sum = layer_of(SequenceModel(shape("momentum", heads=1)))
    lag = (torch.arange(6)[:, None] - torch.arange(6)).float()
    weights = torch.where(lag > 0, 0.5**lag, 0)
    torch.testing.assert_close(with_sum(states), layer.put_out((scores.softmax(-1) + weights) @ v))


def test_training_learns() -> None:
    losses: list[float] = []
    model = train_sequence_model(
        shape("delta", width=16),
        TASKS,
        Training(80, batch=32, learning_rate=1e-2),
        seed=1,
        after_step=lambda step: losses.append(step.loss),
    )
    assert len(losses) == 80
    batch = TASKS.draw(500, torch.Generator().manual_seed(9))
    with torch.no_grad():
        errors = (model(batch.x, batch.y) - batch.y).square().mean(0)
    assert errors[-1] < 0.5 < errors[0]


@pytest.mark.parametrize("mixer", ["delta", "softmax"])
def test_equal_seeds_train_equal_models_on_sequences_that_the_mixer_has_no_part_in(mixer: Mixer) -> None:
    losses: list[float] = []
    generator = stream("training", 1)
    once = train_sequence_model(
        shape(mixer), TASKS, Training(2, batch=8), seed=1, after_step=lambda step: losses.append(step.loss)
    )
    batch = TASKS.draw(8, generator)
    with torch.no_grad():
        first = (SequenceModel(shape(mixer), seed=1)(batch.x, batch.y) - batch.y).square().mean()
    assert losses[0] == pytest.approx(float(first))
    again = train_sequence_model(shape(mixer), TASKS, Training(2, batch=8), seed=1)
    for a, b in zip(once.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_a_loss_that_is_no_number_is_named() -> None:
    with pytest.raises(
        TrainingError,
        match=r"step \d+: the (loss|gradient's norm) of softmax, seed 1 is (nan|inf) .*\. Lower the learning rate\.",
    ):
        train_sequence_model(shape("softmax"), TASKS, Training(20, batch=4, learning_rate=1e30), seed=1)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"mixer": "hopfield"}, "mixer is 'hopfield'; expected one of 'softmax', "),
        ({"llama": True}, "mixer is 'softmax' and mlp 0; a Llama needs"),
        ({"llama": True, "mixer": "delta", "mlp": 8}, "mixer is 'delta' and mlp 8"),
        ({"heads": 3}, "width is 8; expected a multiple of 3"),
        ({"layers": 0}, "layers is 0; expected 1 or more"),
        ({"chunk": 1}, "chunk is 1; expected 2 or more"),
        ({"mini_batch": 0}, "mini_batch is 0; expected 1 or more"),
    ],
)
def test_a_shape_that_cannot_be_is_named(settings: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        replace(shape("softmax"), **settings)  # type: ignore[arg-type]


def test_tensors_and_tasks_of_another_dimension_are_refused() -> None:
    model = SequenceModel(shape("softmax"))
    with pytest.raises(ShapeError, match=r"x must be \(sequence, point, 3\).*\(5, 7, 2\) and \(5, 7\)"):
        model(torch.zeros(5, 7, 2), torch.zeros(5, 7))
    with pytest.raises(ConfigError, match="dimension 3; the tasks have dimension 2"):
        train_sequence_model(shape("softmax"), RegressionTasks(2, 7), Training(1), seed=0)


LLAMA = replace(shape("softmax", width=16, layers=2), mlp=32, llama=True)


def test_a_llama_sees_what_is_before_and_nothing_else() -> None:
    model, batch = SequenceModel(LLAMA).double(), drawn()
    y = batch.y.clone()
    y[:, 3:] += 1
    with torch.no_grad():
        before, after = model(batch.x, batch.y), model(batch.x, y)
    torch.testing.assert_close(after[:, :4], before[:, :4])
    assert bool(((after - before)[:, 4:].abs() > 1e-9).all())


def test_an_edited_llama_begins_with_the_weights_and_sequences_of_its_twin() -> None:
    mixture = [replace(TASKS, condition=condition) for condition in (1.0, 10.0)]
    first: dict[str, list[float]] = {"plain": [], "edited": [], "one task": []}

    def begin(name: str, tasks: Any = mixture, **more: Any) -> SequenceModel:
        kept = first[name]
        return train_sequence_model(
            LLAMA, tasks, Training(3, batch=16), seed=1, after_step=lambda step: kept.append(step.loss), **more
        )

    plain = begin("plain")
    edited = begin("edited", prepare=lambda transformer: apply_momentum(transformer, 1e-9))
    begin("one task", mixture[0])
    assert first["edited"] == pytest.approx(first["plain"], abs=1e-5)
    for weight, other in zip(plain.parameters(), edited.parameters(), strict=True):
        torch.testing.assert_close(weight, other, rtol=0, atol=1e-4)
    # The second batch of the mixture is of another condition number.
    assert first["plain"][0] == pytest.approx(first["one task"][0])
    assert first["plain"][1] != pytest.approx(first["one task"][1], abs=1e-3)


def test_a_llama_learns_to_regress() -> None:
    tasks = RegressionTasks(dimension=1, points=6)
    model = train_sequence_model(replace(LLAMA, dimension=1), tasks, Training(120, 32, 1e-2), seed=1)
    batch = tasks.draw(400, torch.Generator().manual_seed(5))
    with torch.no_grad():
        assert float(errors_by_point(model(batch.x, batch.y), batch.y)[-1]) < 0.6
