import copy
import dataclasses

import pytest
import torch
import transformers

from dualform.errors import ModelError
from dualform.models.structure import bias
from dualform.models.structure.anatomy import Anatomy
from dualform.models.structure.bias import BiasForm, output_bias, output_linears, skeleton, switched
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, wrapped
from tests.tiny import FAMILIES, tiny_model

PRESENT = ("gpt2", "gpt_neox", "opt", "xglm", "bloom", "falcon-alibi", "gpt_neo")
SWITCHES = {
    "llama": "attention_bias",
    "qwen3": "attention_bias",
    "gemma3": "attention_bias",
    "olmo2": "attention_bias",
    "falcon": "bias",
}
"""A test may keep a table of families."""


def form_of(family):
    lm = wrapped(BY_NAME[family])
    return output_bias(lm.model, lm.anatomy)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_form_of_every_family_is_found(family):
    form = form_of(family)
    kind = "present" if family in PRESENT else "switch" if family in SWITCHES else "none"
    assert (form.kind, form.switch) == (kind, SWITCHES.get(family))
    if kind != "switch":
        assert form == BiasForm(form.kind, None, (), ())


@pytest.mark.parametrize("family", SWITCHES)
def test_the_switch_brings_a_bias_of_every_w_o_and_zeros_leave_the_model_as_it_is(family):
    lm = wrapped(BY_NAME[family])
    form = form_of(family)
    assert set(form.new) == {f"{layer.W_O}.bias" for layer in lm.anatomy.layers}
    assert form.others
    assert not set(form.new) & set(form.others)
    base = tiny_model(family)
    state = base.state_dict()
    model = type(base)._from_config(switched(base.config, form.switch)).eval()
    result = model.load_state_dict(state, strict=False)
    assert set(result.missing_keys) == {*form.new, *form.others}
    assert not result.unexpected_keys
    with torch.no_grad():
        for name in result.missing_keys:
            model.get_parameter(name).zero_()
        ids = torch.arange(5, 30)[None]
        torch.testing.assert_close(model(ids).logits, base(ids).logits, rtol=1e-5, atol=1e-5)
        # It is a bias that is read: one that is not zero shows. (The same number everywhere would be normed away.)
        model.get_parameter(form.new[0])[::2] = 1.0
        assert (model(ids).logits - base(ids).logits).abs().max() > 0.01


def test_a_switch_that_also_brings_biases_of_the_mlp_is_not_taken_for_attentions_own():
    # llama has `mlp_bias` too, which gives W_O nothing.
    form = form_of("llama")
    assert not any(".mlp." in name for name in form.others)
    assert {name.split(".")[-2] for name in form.others} == {"q_proj", "k_proj", "v_proj"}


def test_finding_the_form_changes_neither_the_model_nor_its_config_nor_the_random_state():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    config = copy.deepcopy(model.config.to_dict())
    attention = model.config._attn_implementation
    parameters = dict(model.named_parameters())
    state = torch.random.get_rng_state()
    output_bias(model, anatomy)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert model.config.to_dict() == config
    assert model.config._attn_implementation == attention == "dualform"
    assert all(weight is parameters[name] for name, weight in model.named_parameters())


def test_a_model_is_built_without_weights():
    model = tiny_model("llama", dtype=torch.bfloat16)
    built = skeleton(model, switched(model.config, "attention_bias"))
    assert all(weight.is_meta for weight in built.parameters())
    assert built.dtype == torch.bfloat16
    assert not model.config.attention_bias
    assert built.config.attention_bias


def test_a_config_with_a_text_part_is_switched_there():
    text = tiny_model("gemma3").config.to_dict()
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 16, "patch_size": 8}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision, mm_tokens_per_image=4)
    with torch.random.fork_rng(devices=[]):
        model = transformers.Gemma3ForConditionalGeneration._from_config(config).eval()
    prefix = "model.language_model.layers"
    lm = wrapped(BY_NAME["gemma3"])
    layers = tuple(
        dataclasses.replace(layer, W_O=f"{prefix}.{i}.self_attn.o_proj") for i, layer in enumerate(lm.anatomy.layers)
    )
    form = output_bias(model, Anatomy(layers, True))
    assert (form.kind, form.switch) == ("switch", "attention_bias")
    assert form.new == tuple(f"{prefix}.{i}.self_attn.o_proj.bias" for i in range(3))
    assert not any("vision" in name for name in form.others)
    assert switched(config, "attention_bias").text_config.attention_bias
    assert not config.text_config.attention_bias


def test_a_switch_whose_model_cannot_be_built_or_that_adds_more_than_biases_is_not_taken(monkeypatch):
    lm = wrapped(BY_NAME["llama"])
    build = bias.skeleton

    def with_an_extra_matrix(model, config):
        built = build(model, config)
        if config.attention_bias:
            built.extra = torch.nn.Linear(2, 2, device="meta")
        return built

    monkeypatch.setattr(bias, "skeleton", with_an_extra_matrix)
    assert output_bias(lm.model, lm.anatomy).kind == "none"

    def refuses(model, config):
        raise ValueError("not with this flag")

    monkeypatch.setattr(bias, "skeleton", refuses)
    assert output_bias(lm.model, lm.anatomy).kind == "none"


def test_an_output_projection_that_was_not_found_is_named():
    anatomy = wrapped(BY_NAME["llama"]).anatomy
    lost = dataclasses.replace(anatomy.layers[1], W_O=None, unclear=("W_O is lost",))
    with pytest.raises(ModelError, match=r"not found in every layer \(layer 1: W_O is lost\)"):
        output_linears(Anatomy((anatomy.layers[0], lost), True))
