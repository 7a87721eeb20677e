"""Patching against plain forwards with the vector put in by hand."""

import dataclasses
import re
from typing import Any

import pytest
import torch

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.task_vector import TaskVector
from dualform.models.reading.layout import Query
from dualform.ops.agreement import kl_divergence
from tests.learners.setting import EVERYTHING, FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.tiny import LAYERS as N_LAYERS
from tests.tiny import tiny_model

BLOCKS = {"llama": "model.layers", "gpt2": "transformer.h", "xglm": "model.layers", "gemma3": "model.layers"}
# Two routes through a few layers, in float32.
RTOL, ATOL = 1e-4, 1e-5


def calibration(setting):
    """Texts that are neither demonstrations nor queries."""
    return tuple(setting.encoder.query(example) for example in setting.task.split("validation"))


def learner(setting, **changes):
    return TaskVector(**{"opening": setting.encoder.opening, "texts": calibration(setting)} | changes)


def states(family, model, ids):
    """Output of every block at the last token of a plain forward, `(layer, d_model)`."""
    results = []
    handles = [
        block.register_forward_hook(
            lambda module, args, out: results.append((out if torch.is_tensor(out) else out[0])[0, -1])
        )
        for block in model.get_submodule(BLOCKS[family])
    ]
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return torch.stack(results)


def patched_scores(family, model, layer, vector, opening, query):
    """Each answer by a plain forward of its own, the vector put in at the prompt's last token."""
    place = len(opening) + len(query.prompt) - 1

    def put(module, args, out):
        hidden = (out if torch.is_tensor(out) else out[0]).clone()
        hidden[0, place] = vector
        return hidden if torch.is_tensor(out) else (hidden, *out[1:])

    handle = model.get_submodule(BLOCKS[family])[layer].register_forward_hook(put)
    scores = []
    for answer in query.answers:
        ids = torch.tensor([[*opening, *query.prompt, *answer]])
        with torch.no_grad():
            table = model(input_ids=ids, use_cache=False).logits[0].log_softmax(-1)
        scores.append(torch.stack([table[place + j, token] for j, token in enumerate(answer)]).mean())
    handle.remove()
    return torch.stack(scores).double()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_it_is_the_mean_state_after_the_demonstrations_patched_into_plain_forwards(self, family):
        setting = fresh(family)
        model = tiny_model(family)
        texts, opening = calibration(setting), setting.encoder.opening
        mean = torch.stack([states(family, model, (*setting.demonstrations.prefix, *text.prompt)) for text in texts])
        for layer, vector in enumerate(mean.mean(0)):
            adapted = learner(setting, layer=layer).adapt(setting.lm, setting.demonstrations)
            torch.testing.assert_close(adapted.vector, vector, rtol=RTOL, atol=ATOL)
            expected = torch.stack(
                [patched_scores(family, model, layer, vector, opening, query) for query in setting.queries]
            )
            actual = answer_log_probabilities(adapted, setting.lm, setting.queries)
            torch.testing.assert_close(actual, expected, rtol=RTOL, atol=ATOL)
            zsl = answer_log_probabilities(ZeroShot(opening).adapt(setting.lm, setting.demonstrations), setting.lm,
                                           setting.queries)  # fmt: skip
            assert (actual - zsl).abs().max() > 0.01
            assert adapted.n_prefix == len(opening)
            assert adapted.agreement == ()

    def test_at_the_last_layer_one_text_alone_is_answered_as_in_context(self, family):
        setting = fresh(family)
        texts = calibration(setting)[:1]
        last = len(setting.lm.anatomy.layers) - 1
        icl = InContext().adapt(setting.lm, setting.demonstrations).read_group(texts, [0]).next_token
        adapted = learner(setting, texts=texts, layer=last).adapt(setting.lm, setting.demonstrations)
        torch.testing.assert_close(adapted.read_group(texts, [0]).next_token, icl, rtol=RTOL, atol=ATOL)
        # A mean over several texts is no one's own state, and at an earlier layer the demonstrations are missed.
        for changed in (learner(setting, layer=last), learner(setting, texts=texts, layer=0)):
            other = changed.adapt(setting.lm, setting.demonstrations).read_group(texts, [0]).next_token
            assert (other - icl).abs().max() > 0.01

    def test_a_texts_own_zero_shot_state_changes_nothing(self, family):
        setting = fresh(family, k=0)
        texts = calibration(setting)[:1]
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations).read_group(texts, [0])
        for layer in range(len(setting.lm.anatomy.layers)):
            adapted = learner(setting, texts=texts, layer=layer).adapt(setting.lm, setting.demonstrations)
            torch.testing.assert_close(adapted.read_group(texts, [0]).log_probabilities, zsl.log_probabilities)
        # Another text's state does.
        other = learner(setting, texts=calibration(setting)[1:2], layer=0).adapt(setting.lm, setting.demonstrations)
        assert (other.read_group(texts, [0]).log_probabilities - zsl.log_probabilities).abs().max() > 0.01

    def test_the_layer_is_the_one_that_answers_most_as_in_context(self, family):
        setting = fresh(family)
        texts = calibration(setting)
        icl = answer_log_probabilities(InContext().adapt(setting.lm, setting.demonstrations), setting.lm, texts)
        ranked = []
        for layer in range(len(setting.lm.anatomy.layers)):
            model = learner(setting, layer=layer).adapt(setting.lm, setting.demonstrations)
            actual = answer_log_probabilities(model, setting.lm, texts)
            same = float((actual.argmax(1) == icl.argmax(1)).double().mean())
            ranked.append((-same, float(kl_divergence(icl, actual).mean()), layer))
        adapted = learner(setting).adapt(setting.lm, setting.demonstrations)
        assert adapted.layer == min(ranked)[2]
        assert adapted.agreement == tuple(-same for same, _, _ in ranked)
        assert adapted.divergence == pytest.approx([divergence for _, divergence, _ in ranked], rel=1e-4, abs=1e-9)

    def test_the_model_is_as_before_and_no_gradient_is_ever_taken(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
        adapted = learner(setting).adapt(setting.lm, setting.demonstrations)
        readings(adapted, setting)
        handle.remove()
        assert enabled
        # find_blocks runs under no_grad too.
        assert not any(enabled)
        before.assert_restored(setting.lm.model)


def test_the_same_token_is_replaced_wherever_the_probe_is():
    setting = fresh("llama")
    adapted = learner(setting, layer=0).adapt(setting.lm, setting.demonstrations)
    first, second = (adapted.read_group(setting.queries, [0, 1, 2], probe=probe) for probe in ("prompt", "label0"))
    torch.testing.assert_close(first.log_probabilities, second.log_probabilities, rtol=RTOL, atol=ATOL)


def test_the_mean_does_not_depend_on_how_texts_are_grouped():
    setting, alone = fresh("llama"), fresh("llama", max_examples=1)
    first, second = (learner(each).adapt(each.lm, each.demonstrations) for each in (setting, alone))
    torch.testing.assert_close(first.vector, second.vector, rtol=RTOL, atol=ATOL)
    assert first.layer == second.layer


def test_only_the_first_texts_choose_the_layer_but_all_are_averaged():
    setting = fresh("llama")
    few = learner(setting, search_texts=1).adapt(setting.lm, setting.demonstrations)
    all_of_them = learner(setting).adapt(setting.lm, setting.demonstrations)
    assert set(few.agreement) <= {0.0, 1.0}
    same = learner(setting, layer=few.layer).adapt(setting.lm, setting.demonstrations)
    assert torch.equal(few.vector, same.vector)
    assert few.cost.tokens < all_of_them.cost.tokens


def test_texts_with_different_numbers_of_answers_choose_a_layer_all_the_same():
    setting = fresh("llama")
    texts = calibration(setting)
    odd = (*texts[:2], Query(texts[2].prompt, (*texts[2].answers, (7, 8))))
    adapted = learner(setting, texts=odd, search_texts=2).adapt(setting.lm, setting.demonstrations)
    assert all(0 <= share <= 1 for share in adapted.agreement)
    assert all(0 <= actual < 100 for actual in learner(setting, texts=odd).adapt(setting.lm, setting.demonstrations)
               .divergence)  # fmt: skip


def test_recording_sees_the_patched_model_and_a_failing_reading_leaves_no_hook():
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    adapted = learner(setting, layer=0).adapt(setting.lm, setting.demonstrations)
    zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    trace: Any = adapted.read_group(setting.queries, [0, 1], EVERYTHING).trace
    plain: Any = zsl.read_group(setting.queries, [0, 1], EVERYTHING).trace
    assert torch.equal(trace.output[:, 0], plain.output[:, 0])
    assert not torch.allclose(trace.output[:, 1], plain.output[:, 1])
    broken = dataclasses.replace(adapted, vector=torch.zeros(3))
    with pytest.raises(RuntimeError):
        broken.read_group(setting.queries, [0])
    before.assert_restored(setting.lm.model)
    assert_same_readings(readings(zsl, setting), readings(zsl, setting))


def test_the_cost_counts_demonstrations_once_and_every_text_after_them():
    setting = fresh("llama")
    shape, opening = setting.lm.shape, setting.encoder.opening
    texts, prefix = calibration(setting), setting.demonstrations.prefix
    given = learner(setting, layer=1).adapt(setting.lm, setting.demonstrations).cost
    widths = [text.width() for text in texts]
    assert given.tokens == len(prefix) + len(opening) + sum(widths)
    expected = shape.forward(len(prefix), scored=0) + shape.forward(1, scored=0)
    for text in texts:
        n_branch = sum(len(answer) - 1 for answer in text.answers)
        expected += shape.forward(text.width(), len(prefix), scored=1 + n_branch)
    assert given.flops == pytest.approx(expected)
    searched = learner(setting).adapt(setting.lm, setting.demonstrations).cost
    assert searched.tokens == given.tokens + N_LAYERS * sum(widths)
    assert searched.flops > given.flops


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"texts": ()}, "texts is empty: give at least one"),
        ({"texts": (Query((3,), ()),)}, "a layer cannot be chosen on texts without answers"),
        ({"layer": -1}, "layer -1 must be 0"),
        ({"search_texts": 0}, "search_texts 0 must be at least 1"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        TaskVector(**{"opening": (0,), "texts": (Query((3,), ((4,),)),)} | changes)


def test_a_layer_that_the_model_lacks_is_named():
    setting = fresh("llama")
    with pytest.raises(ConfigError, match="layer 2 does not exist: llama has layers 0 to 1"):
        learner(setting, layer=2).adapt(setting.lm, setting.demonstrations)


def test_a_route_that_spreads_queries_over_rows_is_named():
    setting = fresh("bloom")
    with pytest.raises(ModelError, match="bloom is read by the route 'repeated'"):
        learner(setting).adapt(setting.lm, setting.demonstrations)
