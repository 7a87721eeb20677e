import dataclasses

import peft
import pytest
import torch

from dualform.errors import ModelError
from dualform.models.editing.adapters import LoraTraining
from dualform.models.editing.edit import applied
from dualform.models.structure.anatomy import Anatomy, is_linear
from dualform.models.structure.tying import tied_linears
from tests.families import tiny_family
from tests.models.editing.test_edit import IDS, Snapshot, train
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import FAMILIES, tiny_model


def lora(family, model, rank=4, seed=0):
    return LoraTraining(model, wrapped(BY_NAME[family]).anatomy, rank, seed)


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_model_is_as_before_when_the_block_ends_and_when_it_raises(self, family):
        model = tiny_model(family)
        model.get_input_embeddings().weight.requires_grad_(False)
        before = Snapshot(model)
        random_state = torch.get_rng_state()
        with lora(family, model) as training:
            train(model, training, torch.optim.AdamW(training.parameters, lr=0.05))
        before.assert_restored(model)
        with pytest.raises(RuntimeError, match="in the middle"), lora(family, model):
            raise RuntimeError("in the middle")
        before.assert_restored(model)
        assert torch.equal(torch.get_rng_state(), random_state)

    def test_the_deltas_have_the_effect_of_the_adapters(self, family):
        model = tiny_model(family)
        untrained = model(IDS).logits
        with lora(family, model) as training:
            # peft starts the second matrix at zero, so that at first nothing changes.
            torch.testing.assert_close(model(IDS).logits, untrained, rtol=1e-5, atol=1e-5)
            train(model, training, torch.optim.AdamW(training.parameters, lr=0.05))
            trained = model(IDS).logits
            deltas = training.deltas()
        with applied(model, deltas):
            torch.testing.assert_close(model(IDS).logits, trained, rtol=1e-4, atol=1e-4)
        assert (trained - untrained).abs().max() > 0.01

    def test_adapters_are_on_the_modules_of_w_q_and_w_v_and_have_the_requested_rank(self, family):
        anatomy = wrapped(BY_NAME[family]).anatomy
        model = tiny_model(family)
        names = {rows.module for layer in anatomy.layers for rows in (layer.W_Q, layer.W_V)}
        with lora(family, model, rank=3) as training:
            assert len(training.parameters) == 2 * len(names)
            train(model, training, torch.optim.AdamW(training.parameters, lr=0.05))
            deltas = training.deltas()
        assert {delta.parameter for delta in deltas} == {f"{name}.weight" for name in names}
        for delta in deltas:
            assert delta.delta.shape == model.get_parameter(delta.parameter).shape
            # float32: whatever is below a millionth of the largest singular value is rounding.
            assert torch.linalg.matrix_rank(delta.delta, rtol=1e-5) == 3


# Families whose linears peft replaces or refuses by name where it knows the family.
@pytest.mark.parametrize("family", ["deepseek_v3", "glm4_moe", "qwen3_next", "falcon_h1", "nemotron_h"])
def test_all_linears_are_adapted_in_families_that_peft_treats_differently(family: str):
    model = tiny_family(family)
    tied = tied_linears(model)
    linears = {
        name
        for name, module in model.named_modules()
        if is_linear(module) and module is not model.get_output_embeddings() and tied.get(name, (name,))[0] == name
    }
    before = Snapshot(model)
    with LoraTraining(model, Anatomy((), False), 2, 0, targets="all-linear") as training:
        train(model, training, torch.optim.AdamW(training.parameters, lr=0.05))
        trained, deltas = model(IDS).logits, training.deltas()
    before.assert_restored(model)
    assert {delta.parameter for delta in deltas} == {f"{name}.weight" for name in linears}
    with applied(model, deltas):
        torch.testing.assert_close(model(IDS).logits, trained, rtol=1e-4, atol=1e-4)


def test_the_seed_decides_where_the_adapters_start():
    model = tiny_model("llama")
    starts = []
    for seed in (0, 0, 1):
        with lora("llama", model, seed=seed) as training:
            starts.append([parameter.clone() for parameter in training.parameters])
    assert all(torch.equal(a, b) for a, b in zip(starts[0], starts[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(starts[0], starts[2], strict=True))


def test_when_peft_fails_half_way_the_model_is_as_before(monkeypatch):
    model = tiny_model("llama")
    before = Snapshot(model)
    calls = []
    create = peft.LoraModel._create_and_replace

    def fails_at_the_third(self, *args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise RuntimeError("no more adapters")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(peft.LoraModel, "_create_and_replace", fails_at_the_third)
    with pytest.raises(RuntimeError, match="no more adapters"), lora("llama", model):
        pytest.fail("the block must not be entered")
    before.assert_restored(model)


def test_a_model_whose_queries_are_not_known_is_refused():
    anatomy = wrapped(BY_NAME["llama"]).anatomy
    lost = dataclasses.replace(anatomy.layers[1], W_Q=None, unclear=("W_Q is lost",))
    with pytest.raises(ModelError, match=r"not found in every layer \(layer 1: W_Q is lost\)\. Leave out lora"):
        LoraTraining(tiny_model("llama"), Anatomy((anatomy.layers[0], lost), True), 8, 0)
