"""One explicit gradient step, computed from the demonstrations' vectors and applied to the layer's entries only."""

import dataclasses

import pytest
import torch

from dualform.errors import ConfigError
from dualform.lab.constructed_model import ConstructedModel, ConstructedWeights, construct
from dualform.lab.token_world import TokenWorld
from dualform.learners.gradient_step import GradientStep
from dualform.learners.prompting import ZeroShot
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.tasks.demonstrations import draw_demonstrations
from tests.learners.setting import EVERYTHING
from tests.models.editing.test_edit import Snapshot

K, RATE = 5, 0.4
WORLD = TokenWorld.draw(3, 30, seed=2)
LAYER = ConstructedWeights.draw(WORLD, 4, seed=2)
TASK = WORLD.task(seed=2, remembering=True)
CHOSEN = draw_demonstrations(TASK, K, seed=2)


@pytest.fixture
def lm() -> LanguageModel:
    model = construct(WORLD, LAYER, rate=1.0, n_demonstrations=K, positions=32)
    return LanguageModel.wrap(model, WORLD.tokenizer(), "constructed")


def encoded(lm: LanguageModel) -> EncodedDemonstrations:
    return Encoder(lm, TASK).demonstrations(CHOSEN)


def learner(lm: LanguageModel, rate: float = RATE) -> GradientStep:
    assert isinstance(lm.model, ConstructedModel)
    kept = lm.model.embedded_linear
    inputs = WORLD.vectors(torch.arange(len(WORLD.vocabulary)))
    return GradientStep((0,), rate, kept.parameter, kept.rows, kept.columns, inputs, LAYER.readout)


def test_the_change_is_the_mean_of_errors_times_inputs(lm):
    before = Snapshot(lm.model)
    adapted = learner(lm).adapt(lm, encoded(lm))
    before.assert_restored(lm.model)
    x = torch.stack([WORLD.x[example.row] for example in CHOSEN.examples])
    y = torch.stack([LAYER.readout[WORLD.label_ids[label]] for label in CHOSEN.labels])
    errors = x @ LAYER.W_0.mT - y
    (change,) = adapted.deltas
    expected = torch.zeros_like(change.delta)
    expected[lm.model.embedded_linear.rows, lm.model.embedded_linear.columns] = -RATE / K * errors.mT @ x
    assert change.delta.dtype == torch.float64
    torch.testing.assert_close(change.delta, expected, rtol=1e-12, atol=1e-15)
    assert adapted.losses == (pytest.approx(float(errors.square().sum() / (2 * K))),)
    assert (adapted.learner, adapted.cost.tokens, adapted.n_prefix) == ("gd", 3 * K, 1)
    assert adapted.cost.flops == 4 * K * 12


def test_queries_are_those_at_the_demonstrations_words_and_labels(lm):
    actual = learner(lm).adapt(lm, encoded(lm)).training_q
    assert actual is not None
    assert actual.shape == (2, 2 * K, 1, lm.anatomy.layers[0].d_head)
    for number, example in enumerate(CHOSEN.examples):
        for place in (2 * number, 2 * number + 1):
            assert torch.equal(actual[1, place, 0, :3], WORLD.x[example.row])
            assert not actual[1, place, 0, 3:].any()


def test_a_step_of_no_length_is_zero_shot_bit_for_bit(lm):
    queries = [Encoder(lm, TASK).query(example) for example in TASK.split("test")]
    indices = range(len(queries))
    still = learner(lm, 0.0).adapt(lm, encoded(lm)).read_group(queries, indices, EVERYTHING)
    moved = learner(lm).adapt(lm, encoded(lm)).read_group(queries, indices, EVERYTHING)
    zsl = ZeroShot((0,)).adapt(lm, encoded(lm)).read_group(queries, indices, EVERYTHING)
    assert torch.equal(still.next_token, zsl.next_token)
    assert (moved.next_token - zsl.next_token).abs().max() > 1e-2


def test_what_it_cannot_learn_from_is_refused(lm):
    nothing = EncodedDemonstrations((0,), (), (), (), ())
    with pytest.raises(ConfigError, match="answers of one token each; given: 0 demonstrations"):
        learner(lm).adapt(lm, nothing)
    longer = dataclasses.replace(encoded(lm), n_answer_tokens=(2,) + (1,) * (K - 1))
    with pytest.raises(ConfigError, match=r"given: 5 demonstrations, with answers of \[1, 2\] tokens"):
        learner(lm).adapt(lm, longer)
    with pytest.raises(ConfigError, match="learning rate -1"):
        learner(lm, -1.0)
