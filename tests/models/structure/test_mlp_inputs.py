"""What reads an MLP's input, found without names, against what each family's source says."""

from dataclasses import replace

import pytest
import torch
import transformers

from dualform.errors import ModelError
from dualform.models.structure import mlp_inputs as under_test
from dualform.models.structure.find_anatomy import find_anatomy
from dualform.models.structure.mlp_inputs import find_mlp_inputs, hooked_mlps
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import BY_NAME, CASES, assert_no_hooks, wrapped
from tests.tiny import randomise_, tiny_model

IDS = torch.arange(5, 30)[None]

# Linears and norm by their names within a block, and whether attention and MLP stand side by side.
GATED = ("mlp.gate_proj", "mlp.up_proj")
IN_SOURCE = {
    "gpt2": (("mlp.c_fc",), "ln_2", False),
    "gpt_neox": (("mlp.dense_h_to_4h",), "post_attention_layernorm", True),
    "llama": (GATED, "post_attention_layernorm", False),
    "qwen3": (GATED, "post_attention_layernorm", False),
    "gemma3": (GATED, "pre_feedforward_layernorm", False),
    "phi3": (("mlp.gate_up_proj",), "post_attention_layernorm", False),
    "opt": (("fc1",), "final_layer_norm", False),
    "mistral": (GATED, "post_attention_layernorm", False),
    "olmo2": (GATED, None, False),
    "xglm": (("fc1",), "final_layer_norm", False),
    "bloom": (("mlp.dense_h_to_4h",), "post_attention_layernorm", False),
    "gptj": (("mlp.fc_in",), "ln_1", True),
    "falcon": (("mlp.dense_h_to_4h",), "input_layernorm", True),
    "falcon-alibi": (("mlp.dense_h_to_4h",), "post_attention_layernorm", False),
    "gpt_neo": (("mlp.c_fc",), "ln_2", False),
    "mpt": (("ffn.up_proj",), "norm_2", False),
    "codegen": (("mlp.fc_in",), "ln_1", True),
}


def short(block_inputs):
    """Names within the block."""
    start = len(block_inputs.block) + 1
    norm = None if block_inputs.norm is None else block_inputs.norm[start:]
    return tuple(name[start:] for name in block_inputs.linears), norm, block_inputs.parallel


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryFamily:
    def test_input_projections_are_those_of_the_source_code(self, case):
        lm = wrapped(case)
        inputs = find_mlp_inputs(lm.model, lm.anatomy)
        assert len(inputs) == len(lm.anatomy.layers)
        for block_inputs, layer in zip(inputs, lm.anatomy.layers, strict=True):
            assert short(block_inputs) == IN_SOURCE[case.family]
            assert layer.attention.startswith(f"{block_inputs.block}.")
            assert block_inputs.W_O == layer.W_O

    def test_the_norm_of_u_is_a(self, case):
        lm = wrapped(case)
        inputs = find_mlp_inputs(lm.model, lm.anatomy)
        a, u = {}, {}
        with (
            torch.no_grad(),
            hooked_mlps(lm.model, inputs, lambda i, name, x, out: a.update({i: x}), lambda i, x, out: u.update({i: x})),
        ):
            lm.model(input_ids=IDS, use_cache=False)
        for layer, block_inputs in enumerate(inputs):
            assert u[layer].shape == a[layer].shape == (*IDS.shape, 32)
            if block_inputs.parallel:
                # There u is what attention has been added to, and that the MLP does not read.
                assert not torch.allclose(lm.model.get_submodule(block_inputs.norm)(u[layer]), a[layer], atol=1e-2)
            elif block_inputs.norm is None:
                assert torch.equal(a[layer], u[layer])
            else:
                torch.testing.assert_close(lm.model.get_submodule(block_inputs.norm)(u[layer]), a[layer])

    def test_hooks_change_no_bit_and_leave_nothing(self, case):
        model = case.model()
        anatomy = find_anatomy(model)
        before = Snapshot(model)
        with torch.no_grad():
            expected = model(input_ids=IDS, use_cache=False).logits
        inputs = find_mlp_inputs(model, anatomy)
        with torch.no_grad(), hooked_mlps(model, inputs, lambda *seen: None, lambda *seen: None):
            assert torch.equal(model(input_ids=IDS, use_cache=False).logits, expected)
        before.assert_restored(model)

    def test_a_replacement_is_used_for_linears_and_blocks(self, case):
        lm = wrapped(case)
        inputs = find_mlp_inputs(lm.model, lm.anatomy)
        last = len(inputs) - 1

        def logits(by_linear, by_block):
            def at_linear(layer, name, a, out):
                return out * by_linear if layer == last else None

            def at_block(layer, u, out):
                return out * by_block if layer == last else None

            with torch.no_grad(), hooked_mlps(lm.model, inputs, at_linear, at_block):
                return lm.model(input_ids=IDS, use_cache=False).logits

        as_it_is = logits(1, 1)
        assert (as_it_is - logits(0, 1)).abs().max() > 0.1
        # Hidden states of zero are alike at every position.
        nothing = logits(1, 0)
        assert (nothing - nothing[:, :1]).abs().max() < 1e-6


@pytest.mark.parametrize(
    ("family", "overrides", "expected"),
    [
        ("gpt_neox", {"use_parallel_residual": False}, (("mlp.dense_h_to_4h",), "post_attention_layernorm", False)),
        (
            "falcon",
            {"new_decoder_architecture": True, "num_kv_heads": 2},
            (("mlp.dense_h_to_4h",), "ln_mlp", True),
        ),
    ],
    ids=["sequential gpt_neox", "falcon with two norms"],
)
def test_settings_within_a_family_are_distinguished(family, overrides, expected):
    model = tiny_model(family, **overrides)
    assert {short(block_inputs) for block_inputs in find_mlp_inputs(model, find_anatomy(model))} == {expected}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3", "gpt_neox"])
def test_other_dtypes_are_checked_as_well(family, dtype):
    lm = wrapped(BY_NAME[family], None, dtype)
    assert short(find_mlp_inputs(lm.model, lm.anatomy)[0]) == IN_SOURCE[family]


def test_no_gradient_is_ever_enabled():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    enabled = []
    handle = model.register_forward_pre_hook(lambda *seen: enabled.append(torch.is_grad_enabled()))
    find_mlp_inputs(model, anatomy)
    handle.remove()
    assert enabled
    assert not any(enabled)


@pytest.mark.parametrize(
    ("family", "overrides"),
    [
        ("bloom", {"apply_residual_connection_post_layernorm": True}),
        ("opt", {"do_layer_norm_before": False}),
    ],
    ids=["residual behind the norm", "norm behind the sum"],
)
def test_a_block_that_is_not_residual_stream_plus_mlp_is_refused(family, overrides):
    model = tiny_model(family, **overrides)
    anatomy = find_anatomy(model)
    with pytest.raises(ModelError) as raised:
        find_mlp_inputs(model, anatomy)
    linear = {"bloom": "h.0.mlp.dense_h_to_4h", "opt": "layers.0.fc1"}[family]
    assert f"{linear} fixed, its output should change exactly as the residual stream at its MLP does" in str(
        raised.value
    )
    assert str(raised.value).endswith("Choose another model.")
    assert_no_hooks(model)


def test_a_path_around_the_input_projections_is_detected():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    mlp = model.model.layers[1].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(x) + x
    with pytest.raises(ModelError, match=r"model\.layers\.1: with the outputs of .*up_proj fixed, its output should"):
        find_mlp_inputs(model, anatomy)
    assert_no_hooks(model)


def test_experts_are_refused():
    config = transformers.MixtralConfig(
        vocab_size=384,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=2,
    )
    model = transformers.MixtralForCausalLM._from_config(config)
    randomise_(model, 0)
    model.eval()
    anatomy = find_anatomy(model)
    with pytest.raises(ModelError, match=r"is not the weight of a linear, .* Choose a model without experts"):
        find_mlp_inputs(model, anatomy)


def test_a_block_without_an_mlp_is_refused():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    model.model.layers[1].mlp.forward = lambda x: x * 0
    with pytest.raises(ModelError, match=r"model\.layers\.1 runs no linear outside its attention"):
        find_mlp_inputs(model, anatomy)


def test_attention_whose_output_is_not_known_is_refused():
    lm = wrapped(BY_NAME["llama"])
    layers = (lm.anatomy.layers[0], replace(lm.anatomy.layers[1], W_O=None, unclear=("not seen",)))
    with pytest.raises(ModelError, match=r"layers\.1\.self_attn: its W_O was not found \(not seen\), so the"):
        find_mlp_inputs(lm.model, replace(lm.anatomy, layers=layers))


def test_a_block_that_runs_twice_is_refused():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    block = model.model.layers[0]
    plain = block.forward
    block.forward = lambda *args, **kwargs: plain(*args, **kwargs)
    twice = model.model.forward

    def again(*args, **kwargs):
        twice(*args, **kwargs)
        return twice(*args, **kwargs)

    model.model.forward = again
    with pytest.raises(ModelError, match=r"model\.layers\.0 ran 2 times in one forward"):
        find_mlp_inputs(model, anatomy)


def test_an_mlp_of_another_width_than_the_block_is_refused():
    model = tiny_model("llama")
    anatomy = find_anatomy(model)
    mlp = model.model.layers[0].mlp
    plain = mlp.forward
    mlp.forward = lambda x: plain(torch.cat([x, x], dim=1))[:, : x.shape[1]]
    with pytest.raises(
        ModelError, match=r"of shape \(1, 10, 32\); expected the residual stream, of shape \(1, 5, 32\)"
    ):
        find_mlp_inputs(model, anatomy)


def test_a_block_without_hidden_states_is_named():
    with pytest.raises(
        ModelError, match=r"the input of a\.block is NoneType; expected hidden states \(batch, pos, d_model\)"
    ):
        under_test._hidden_states("a.block", None)


def test_hooks_are_gone_also_when_the_body_raises():
    lm = wrapped(BY_NAME["gpt2"])
    inputs = find_mlp_inputs(lm.model, lm.anatomy)
    with (
        pytest.raises(RuntimeError, match="half-way"),
        hooked_mlps(lm.model, inputs, lambda *seen: None, lambda *seen: None),
    ):
        raise RuntimeError("half-way")
    assert_no_hooks(lm.model)
