"""Repeated reading, compared with plain forwards that use a cache and a hand-written update."""

import re

import pytest
import torch
from transformers import DynamicCache

from dualform.errors import ConfigError, ModelError, NumericalError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.kv_momentum import KeyValueMomentum
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.reading.language_model import LanguageModel
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.tiny import WINDOW, tiny_model, tiny_tokenizer

STEP, MOMENTUM, PASSES = 0.3, 0.5, 4
# Several readings one after the other, in float32.
RTOL, ATOL = 1e-3, 1e-4


def learner(setting, **changes):
    settings = {"opening": setting.encoder.opening, "passes": PASSES, "step": STEP, "momentum": MOMENTUM}
    return KeyValueMomentum(**settings | changes)


def masks(family, n_before, n_own):
    """As transformers takes them: additive, for Gemma 3 one for each kind of layer."""
    row = torch.arange(n_before + n_own)
    distance = row[n_before:, None] - row

    def additive(visible):
        return torch.zeros(visible.shape).masked_fill(~visible, torch.finfo(torch.float32).min)[None, None]

    full = additive(distance >= 0)
    if family != "gemma3":
        return full
    return {"full_attention": full, "sliding_attention": additive((distance >= 0) & (distance < WINDOW))}


def cache_of(layers):
    cache = DynamicCache()
    for number, (key, value) in enumerate(layers):
        cache.update(key, value, number)
    return cache


def thought_over(family, model, prefix, n_fixed, passes, step, momentum):
    """Keys and values `(1, kv_head, pos, d_head)` of each layer after so many plain readings."""
    cache = DynamicCache()
    with torch.no_grad():
        model(input_ids=torch.tensor([prefix]), past_key_values=cache, use_cache=True)
    now = [[layer.keys, layer.values] for layer in cache.layers]
    velocity = [[0.0, 0.0] for _ in now]
    own = torch.tensor([prefix[n_fixed:]])
    positions = torch.arange(n_fixed, len(prefix))[None]
    for _ in range(passes - 1):
        cache = cache_of(now)
        with torch.no_grad():
            model(
                input_ids=own,
                position_ids=positions,
                attention_mask=masks(family, len(prefix), own.shape[1]),
                past_key_values=cache,
                use_cache=True,
            )
        for layer, (state, speed) in enumerate(zip(now, velocity, strict=True)):
            fresh_ones = (cache.layers[layer].keys, cache.layers[layer].values)
            for part in range(2):
                old = state[part][:, :, n_fixed:]
                speed[part] = fresh_ones[part][:, :, len(prefix) :] - old + momentum * speed[part]
                state[part] = torch.cat([state[part][:, :, :n_fixed], old + step * speed[part]], dim=2)
    return now


def scores_behind(model, layers, query):
    """Each answer by a plain forward of its own over the given keys and values."""
    scores = []
    for answer in query.answers:
        ids = torch.tensor([[*query.prompt, *answer]])
        with torch.no_grad():
            logits = model(input_ids=ids, past_key_values=cache_of(layers), use_cache=True).logits[0]
        table = logits.log_softmax(-1)
        first = len(query.prompt) - 1
        scores.append(torch.stack([table[first + j, token] for j, token in enumerate(answer)]).mean())
    return torch.stack(scores).double()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    @pytest.mark.parametrize("changes", [{"passes": 1}, {"step": 0.0}, {"step": 0.0, "passes": 9}])
    def test_one_pass_or_step_zero_is_in_context_learning_to_the_bit(self, family, changes):
        setting = fresh(family)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        adapted = learner(setting, **changes).adapt(setting.lm, setting.demonstrations)
        assert_same_readings(readings(adapted, setting), readings(icl, setting))
        assert adapted.n_prefix == icl.n_prefix

    def test_two_passes_are_no_longer_in_context_learning(self, family):
        setting = fresh(family)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        adapted = learner(setting, passes=2).adapt(setting.lm, setting.demonstrations)
        actual, expected = (answer_log_probabilities(model, setting.lm, setting.queries) for model in (adapted, icl))
        assert (actual - expected).abs().max() > 0.01

    def test_it_is_the_obvious_rereading(self, family):
        setting = fresh(family)
        model = tiny_model(family)
        prefix, n_fixed = setting.demonstrations.prefix, len(setting.encoder.opening)
        layers = thought_over(family, model, prefix, n_fixed, PASSES, STEP, MOMENTUM)
        adapted = learner(setting).adapt(setting.lm, setting.demonstrations)
        for actual, expected in zip(adapted.prefix.layers, layers, strict=True):
            for part in range(2):
                torch.testing.assert_close(actual[part], expected[part][0], rtol=RTOL, atol=ATOL)
        expected = torch.stack([scores_behind(model, layers, query) for query in setting.queries])
        actual = answer_log_probabilities(adapted, setting.lm, setting.queries)
        torch.testing.assert_close(actual, expected, rtol=RTOL, atol=ATOL)

    def test_the_opening_stays_and_all_else_moves(self, family):
        setting = fresh(family)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        adapted = learner(setting).adapt(setting.lm, setting.demonstrations)
        for actual, first in zip(adapted.prefix.layers, icl.prefix.layers, strict=True):
            assert all(torch.equal(actual[part][:, :1], first[part][:, :1]) for part in range(2))
        # The first layer's keys depend on the token alone, so there is nothing new in them.
        moved = adapted.prefix.layers[-1][1] - icl.prefix.layers[-1][1]
        assert (moved[:, 1:].abs().amax((0, 2)) > 1e-4).all()

    def test_the_model_is_as_before_and_no_gradient_is_ever_taken(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        enabled = []
        handle = setting.lm.model.register_forward_pre_hook(lambda *_: enabled.append(torch.is_grad_enabled()))
        readings(learner(setting).adapt(setting.lm, setting.demonstrations), setting)
        handle.remove()
        assert len(enabled) >= PASSES + 1
        assert not any(enabled)
        before.assert_restored(setting.lm.model)


def test_with_step_one_and_no_momentum_each_reading_replaces_the_last():
    setting = fresh("llama")
    prefix = setting.demonstrations.prefix
    layers = thought_over("llama", tiny_model("llama"), prefix, 1, 3, 1.0, 0.0)
    adapted = learner(setting, passes=3, step=1.0, momentum=0.0).adapt(setting.lm, setting.demonstrations)
    for actual, expected in zip(adapted.prefix.layers, layers, strict=True):
        torch.testing.assert_close(actual[1], expected[1][0], rtol=RTOL, atol=ATOL)


def test_both_routes_that_can_do_it_agree():
    setting = fresh("llama")
    masked = LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "llama", "packed-mask")
    first = learner(setting).adapt(setting.lm, setting.demonstrations)
    other = learner(setting).adapt(masked, setting.demonstrations)
    for a, b in zip(first.prefix.layers, other.prefix.layers, strict=True):
        torch.testing.assert_close(a, b, rtol=RTOL, atol=ATOL)


def test_small_steps_survive_half_precision():
    setting = fresh("llama")
    lm = LanguageModel.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), "llama")
    icl = InContext().adapt(lm, setting.demonstrations)
    # bfloat16 keeps 8 bits: a thousandth of the way, taken at once, is rounded away from most entries.
    adapted = learner(setting, passes=30, step=0.001, momentum=0.9).adapt(lm, setting.demonstrations)
    actual, first = adapted.prefix.layers[-1][1], icl.prefix.layers[-1][1]
    assert actual.dtype == torch.bfloat16
    assert (actual != first)[:, 1:].float().mean() > 0.5


@pytest.mark.parametrize("opening", ["with", "without"])
def test_without_demonstrations_it_is_zero_shot(opening):
    setting = fresh("llama", k=0)
    zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    changes = {} if opening == "with" else {"opening": ()}
    adapted = learner(setting, **changes, step=0.0).adapt(setting.lm, setting.demonstrations)
    assert_same_readings(readings(adapted, setting), readings(zsl, setting))


def test_the_cost_counts_every_reading():
    setting = fresh("llama")
    lm, prefix = setting.lm, setting.demonstrations.prefix
    cost = learner(setting).adapt(lm, setting.demonstrations).cost
    n_own = len(prefix) - 1
    assert cost.tokens == len(prefix) + (PASSES - 1) * n_own
    assert cost.flops == pytest.approx(
        lm.shape.forward(len(prefix), scored=0) + (PASSES - 1) * lm.shape.forward(n_own, len(prefix), scored=0)
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"passes": 0}, "passes 0 must be at least 1"),
        ({"step": -0.1}, "step -0.1 must be 0 or more"),
        ({"step": float("nan")}, "step nan must be"),
        ({"momentum": 1.0}, "momentum 1.0 must be at least 0 and below 1"),
        ({"passes": -2, "momentum": -1.0}, "passes -2 must be at least 1, which is in-context learning; momentum -1.0"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named(changes, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        KeyValueMomentum((0,), **changes)


def test_another_opening_than_that_of_the_demonstrations_is_named():
    setting = fresh("llama")
    with pytest.raises(ConfigError, match=re.escape("begin with the tokens [0, ")):
        learner(setting, opening=(0, 5)).adapt(setting.lm, setting.demonstrations)


def test_a_route_that_takes_no_keys_and_values_is_named_unless_none_are_needed():
    setting = fresh("bloom")
    with pytest.raises(ModelError, match="bloom is read by the route 'repeated'"):
        learner(setting).adapt(setting.lm, setting.demonstrations)
    assert learner(setting, passes=1).adapt(setting.lm, setting.demonstrations).n_prefix > 1


def test_keys_that_become_infinite_are_found():
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    with pytest.raises(NumericalError, match=r"step 1e\+38, momentum 0.5: keys or values became infinite in pass"):
        learner(setting, step=1e38, passes=9).adapt(setting.lm, setting.demonstrations)
    before.assert_restored(setting.lm.model)
