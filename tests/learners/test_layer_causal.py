"""Layer-causal descent against each layer's loss taken by hand, and against finetuning, which is not layer-causal."""

import copy
import re
import weakref
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import dualform.learners.layer_causal as under_test
from dualform.errors import ConfigError, ModelError, TrainingError
from dualform.learners.finetuned import Finetuned, token_loss
from dualform.learners.layer_causal import LayerCausal
from dualform.learners.prompting import ZeroShot
from dualform.models.editing.edit import applied
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.anatomy import row_axis
from dualform.models.structure.find_anatomy import find_anatomy
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot, key_value_rows
from tests.tiny import FAMILIES as ALL_FAMILIES
from tests.tiny import tiny_model, tiny_tokenizer

RATE = 0.05
# Gradients of four steps, each through one layer and a head, in float32.
RTOL, ATOL = 1e-4, 2e-6

# Layers, and what stands behind them, for the four families of the learners' tests: here, by hand.
LAYERS = {"llama": "model.layers", "gpt2": "transformer.h", "xglm": "model.layers", "gemma3": "model.layers"}
NORM = {"llama": "model.norm", "gpt2": "transformer.ln_f", "xglm": "model.layer_norm", "gemma3": "model.norm"}


def layer_gradients(family, model, ids, n_answer, loss_on, layer):
    """Gradients of one layer's weights from its own loss alone: that layer is run by itself on what it was given."""
    block = model.get_submodule(f"{LAYERS[family]}.{layer}")
    given = []
    handle = block.register_forward_pre_hook(lambda _, args, kwargs: given.append((args, kwargs)), with_kwargs=True)
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    handle.remove()
    ((args, kwargs),) = given
    out = block(*args, **kwargs)
    logits = model.lm_head(model.get_submodule(NORM[family])(out if torch.is_tensor(out) else out[0]))[0, :-1]
    targets = ids[0, 1:]
    if loss_on == "label":
        logits, targets = logits[-n_answer:], targets[-n_answer:]
    loss = F.cross_entropy(logits, targets)
    names = [name for name, _ in block.named_parameters(prefix=f"{LAYERS[family]}.{layer}")]
    gradients = torch.autograd.grad(loss, [model.get_parameter(name) for name in names], allow_unused=True)
    return float(loss.detach()), dict(zip(names, gradients, strict=True))


def twin(family, setting, rate, loss_on):
    """A simple reference: a separate forward for each layer, then one step for all layers."""
    model = copy.deepcopy(tiny_model(family))
    rows = key_value_rows(setting.lm.anatomy)
    losses = []
    for ids, n_answer in zip(setting.demonstrations.sequences, setting.demonstrations.n_answer_tokens, strict=True):
        gradients: dict[str, Any] = {}
        for layer in range(len(setting.lm.anatomy.layers)):
            loss, actual = layer_gradients(family, model, torch.tensor([ids]), n_answer, loss_on, layer)
            gradients |= actual
        losses.append(loss)
        with torch.no_grad():
            for name, index in rows.items():
                module = model.get_submodule(name)
                index = torch.tensor(sorted(index))
                for kind, axis in (("weight", row_axis(module)), ("bias", 0)):
                    weight = getattr(module, kind)
                    if weight is not None:
                        gradient = gradients[f"{name}.{kind}"].index_select(axis, index)
                        weight.index_add_(axis, index, gradient, alpha=-rate)
    return model, losses


def by_name(adapted):
    return {change.parameter: change.delta for change in adapted.deltas}


@pytest.mark.parametrize("family", FAMILIES)
class TestFourFamilies:
    @pytest.mark.parametrize("loss_on", ["all", "label"])
    def test_it_is_each_layers_descent_of_its_own_loss(self, family, loss_on):
        setting = fresh(family)
        expected, losses = twin(family, setting, RATE, loss_on)
        adapted = LayerCausal(setting.encoder.opening, RATE, loss_on).adapt(setting.lm, setting.demonstrations)
        assert adapted.learner == "lcgd"
        assert adapted.losses == pytest.approx(losses, rel=1e-5)
        original = tiny_model(family).state_dict()
        moved = 0.0
        with applied(setting.lm.model, adapted.deltas):
            actual = setting.lm.model.state_dict()
            for name, weight in expected.state_dict().items():
                torch.testing.assert_close(actual[name], weight, rtol=RTOL, atol=ATOL)
                moved = max(moved, float((weight - original[name]).abs().max()))
        assert moved > 1000 * ATOL

    def test_a_layer_learns_nothing_of_what_comes_after_it_but_finetuning_does(self, family):
        changes = {}
        for learner in (LayerCausal, Finetuned):
            for spoilt in (False, True):
                setting = fresh(family, k=1)
                if spoilt:
                    later = setting.lm.model.get_submodule(f"{LAYERS[family]}.1")
                    with torch.no_grad():
                        for weight in later.parameters():
                            weight.mul_(-1.5)
                adapted: Any = learner(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
                changes[learner, spoilt] = by_name(adapted)
        first = [name for name in changes[LayerCausal, False] if name.startswith(f"{LAYERS[family]}.0.")]
        assert first
        for name in first:
            assert torch.equal(changes[LayerCausal, False][name], changes[LayerCausal, True][name])
            if name.endswith(".weight"):
                normal, other = changes[Finetuned, False][name], changes[Finetuned, True][name]
                assert (normal - other).abs().max() > 0.1 * normal.abs().max()

    def test_learning_rate_zero_is_zero_shot_to_the_bit(self, family):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        adapted = LayerCausal(setting.encoder.opening, 0.0).adapt(setting.lm, setting.demonstrations)
        assert not any(change.delta.any() for change in adapted.deltas)
        assert_same_readings(readings(adapted, setting), readings(zsl, setting))

    def test_the_queries_seen_are_finetunings_until_the_weights_part(self, family):
        setting = fresh(family)
        ft: Any = Finetuned(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations).training_q
        lcgd: Any = LayerCausal(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations).training_q
        owner = torch.tensor(setting.demonstrations.demonstration_of)
        assert lcgd.shape == ft.shape
        assert not lcgd.requires_grad
        assert torch.equal(lcgd[:, owner == 0], ft[:, owner == 0])
        assert (lcgd[:, owner == 3] - ft[:, owner == 3]).abs().max() > 1e-3

    def test_a_loss_of_a_layer_that_is_no_number_names_the_rate_and_the_step(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        calls = []

        def spoilt(logits, targets):
            calls.append(targets)
            n_layers = len(setting.lm.anatomy.layers)
            # The first layer's, which is the last of its step.
            return F.cross_entropy(logits, targets) * (float("nan") if len(calls) == 3 * n_layers else 1.0)

        monkeypatch.setattr(under_test, "token_loss", spoilt)
        words = r"learning rate 0\.05: the loss is nan at step 3 of 4\. Use a lower one\."
        with pytest.raises(TrainingError, match=words):
            LayerCausal(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)


@pytest.mark.parametrize("family", ALL_FAMILIES)
class TestEveryFamily:
    def test_the_last_layer_learns_as_in_finetuning_and_no_other_does(self, family):
        setting = fresh(family, k=1)
        before = Snapshot(setting.lm.model)
        ft, lcgd = (
            by_name(learner(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations))
            for learner in (Finetuned, LayerCausal)
        )
        before.assert_restored(setting.lm.model)
        assert ft.keys() == lcgd.keys()
        last = setting.lm.anatomy.layers[-1].attention
        for name in ft:
            if name.startswith(f"{last}."):
                torch.testing.assert_close(lcgd[name], ft[name], rtol=1e-5, atol=1e-8)
            elif name.endswith(".weight"):
                assert (lcgd[name] - ft[name]).abs().max() > 0.1 * ft[name].abs().max(), name
                assert lcgd[name].any()


def test_with_a_single_layer_it_is_finetuning_to_the_bit():
    model = tiny_model("llama", num_hidden_layers=1)
    setting = fresh("llama")
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    ft, lcgd = (
        learner(setting.encoder.opening, RATE).adapt(lm, setting.demonstrations) for learner in (Finetuned, LayerCausal)
    )
    for first, second in zip(ft.deltas, lcgd.deltas, strict=True):
        assert torch.equal(first.delta, second.delta)
        assert first.delta.any()
    assert lcgd.losses == ft.losses


def test_one_layers_logits_are_held_at_a_time(monkeypatch):
    setting = fresh("gemma3")
    alive: list[Any] = []
    most = 0

    def watched(logits, targets):
        nonlocal most
        most = max(most, sum(reference() is not None for reference in alive))
        alive.append(weakref.ref(logits))
        return token_loss(logits, targets)

    monkeypatch.setattr(under_test, "token_loss", watched)
    LayerCausal(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    assert len(alive) == 3 * 4
    assert most == 0


def test_the_cost_counts_every_layers_head():
    setting = fresh("llama")
    adapted = LayerCausal(setting.encoder.opening, RATE).adapt(setting.lm, setting.demonstrations)
    assert adapted.cost.tokens == sum(map(len, setting.demonstrations.sequences))
    assert adapted.cost.flops == sum(
        setting.lm.shape.layer_causal_training(len(ids), len(ids) - 1) for ids in setting.demonstrations.sequences
    )


@pytest.mark.parametrize("rate", [-0.1, float("nan"), 1e39])
def test_a_learning_rate_that_is_none_is_named(rate):
    with pytest.raises(ConfigError, match=f"learning rate {re.escape(str(rate))} must lie between 0 and 1e\\+37"):
        LayerCausal((0,), rate)


def test_a_model_that_cannot_be_read_layer_by_layer_is_refused_and_left_as_it_was():
    model = tiny_model("llama")
    embedded = []
    setting = fresh("llama")
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    handles = [
        model.model.embed_tokens.register_forward_hook(lambda module, args, out: embedded.append(out)),
        model.model.norm.register_forward_hook(lambda module, args, out: out + embedded[-1]),
    ]
    with pytest.raises(ModelError, match="logits cannot be computed layer by layer"):
        LayerCausal(setting.encoder.opening, RATE).adapt(lm, setting.demonstrations)
    for handle in handles:
        handle.remove()
    assert find_anatomy(model).registry
    assert all(weight.requires_grad for weight in model.parameters())
