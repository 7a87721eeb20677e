"""Learners without gradients give the same results on a model on disk as in memory, bit for bit."""

from typing import Any

import pytest
import torch

from dualform.errors import ModelError
from dualform.learners.finetuned import Finetuned
from dualform.learners.folded import Folded
from dualform.learners.kv_momentum import KeyValueMomentum
from dualform.learners.layer_causal import LayerCausal
from dualform.learners.lora import Lora
from dualform.learners.mezo import MezoAtRate
from dualform.learners.thought import Thought
from dualform.models.loading.load import load_model
from dualform.models.loading.offloading import hook_of, named_weights, weight_of
from tests.learners.setting import assert_same_readings, readings, setting_of
from tests.tiny import save_tiny

# Separate and fused projections, tied and free heads, a norm behind W_O, in and outside the attention registry.
FAMILIES = ("llama", "gpt2", "gpt_neox", "gemma3", "xglm")
RATE = 1e-2
LEARNERS: dict[str, Any] = {
    "fold": lambda opening, texts: Folded(opening, texts, plain=((5, 6, 7, 8), (9, 10, 11))),
    "mezo": lambda opening, texts: MezoAtRate(opening, RATE, steps=4),
    "thought": lambda opening, texts: Thought(opening, texts, form="matrix"),
}


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Family -> its model on disk and in memory."""
    results = {}
    for family in FAMILIES:
        folder = str(save_tiny(family, tmp_path_factory.mktemp(family)))
        results[family] = [setting_of(load_model(folder, device_map=where)) for where in ({"": "disk"}, None)]
    return results


def state(lm):
    return {name: weight_of(lm.model, name).clone() for name, _ in named_weights(lm.model)}


def assert_as_before(lm, expected):
    actual = state(lm)
    assert actual.keys() == expected.keys()
    assert all(torch.equal(actual[name], expected[name]) for name in expected)
    assert all(weight.requires_grad for weight in lm.model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in lm.model.modules())
    assert not any(hook._changes or hook._unpatched for hook in map(hook_of, lm.model.modules()) if hook is not None)


@pytest.mark.parametrize(
    ("family", "name"),
    [(family, "fold") for family in FAMILIES] + [("llama", "mezo"), ("llama", "thought")],
)
def test_changes_losses_and_readings_are_the_same(family, name, pairs):
    results = []
    for setting in pairs[family]:
        before = state(setting.lm)
        learner = LEARNERS[name](setting.encoder.opening, setting.queries * 2)
        adapted = learner.adapt(setting.lm, setting.demonstrations)
        results.append((adapted, readings(adapted, setting)))
        assert_as_before(setting.lm, before)
    (on_disk, read), (in_memory, expected) = results
    assert on_disk.losses == in_memory.losses
    assert len(on_disk.deltas) == len(in_memory.deltas)
    assert any(change.delta.any() for change in on_disk.deltas)
    for first, second in zip(on_disk.deltas, in_memory.deltas, strict=True):
        assert first.parameter == second.parameter
        assert torch.equal(first.delta, second.delta)
    assert on_disk.cost.flops == in_memory.cost.flops
    assert_same_readings(read, expected)


def test_a_prefix_with_momentum_is_the_same_too(pairs):
    results = []
    for setting in pairs["llama"]:
        adapted = KeyValueMomentum(setting.encoder.opening, passes=3).adapt(setting.lm, setting.demonstrations)
        results.append(readings(adapted, setting))
    assert_same_readings(*results)


@pytest.mark.parametrize(
    "learner",
    [
        lambda opening: Finetuned(opening, RATE),
        lambda opening: Finetuned(opening, RATE, part="mlp", steps="batch"),
        lambda opening: Lora(opening, RATE),
        lambda opening: LayerCausal(opening, RATE),
    ],
)
def test_learners_by_gradients_refuse_and_leave_the_model_as_it_was(learner, pairs):
    setting = pairs["llama"][0]
    before = state(setting.lm)
    with pytest.raises(ModelError, match="offloaded to disk or CPU and cannot be trained there"):
        learner(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
    assert_as_before(setting.lm, before)


def test_no_weight_stays_in_memory_after_a_fold(pairs):
    setting = pairs["llama"][0]
    LEARNERS["fold"](setting.encoder.opening, setting.queries * 2).adapt(setting.lm, setting.demonstrations)
    assert all(weight.is_meta for weight in setting.lm.model.parameters())
