import dataclasses

import pytest
import torch
import transformers

from dualform.errors import ModelError
from dualform.models.editing.blockwise import require_editable_outputs
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure import projections as under_test
from dualform.models.structure.anatomy import Anatomy, LinearRows, is_linear, row_axis
from dualform.models.structure.find_anatomy import find_anatomy
from tests.models.reference import BY_NAME, CASES, assert_no_hooks, plain, route_id, wrapped
from tests.tiny import D_MODEL, FAMILIES, HEADS, randomise_, tiny_model

D_HEAD = D_MODEL // HEADS


def interleaved(heads, parts):
    """Output features of each part where the parts follow one another within every head."""
    per_head = torch.arange(heads * parts * D_HEAD).view(heads, parts, D_HEAD)
    return [per_head[:, part].flatten().tolist() for part in range(parts)]


def consecutive(*sizes):
    """Output features of parts that follow one another."""
    return [part.tolist() for part in torch.arange(sum(sizes)).split(list(sizes))]


def codegen():
    """CodeGen's weights lie in four blocks, each with its own Q, then V, then K (reshape to (4, -1), then split)."""
    q, v, k = interleaved(4, 3)
    return [q, k, v]


# Read off each family's code: module below the attention, and the rows of Q, K, V in it.
FUSED = {
    "gpt2": ("c_attn", consecutive(D_MODEL, D_MODEL, D_MODEL)),
    "gpt_neox": ("query_key_value", interleaved(HEADS, 3)),
    "bloom": ("query_key_value", interleaved(HEADS, 3)),
    "falcon-alibi": ("query_key_value", interleaved(HEADS, 3)),
    # Multi-query: four heads of queries, one of keys, one of values.
    "falcon": ("query_key_value", consecutive(D_MODEL, D_HEAD, D_HEAD)),
    "phi3": ("qkv_proj", consecutive(D_MODEL, 2 * D_HEAD, 2 * D_HEAD)),
    "mpt": ("Wqkv", consecutive(D_MODEL, D_MODEL, D_MODEL)),
    "codegen": ("qkv_proj", codegen()),
}
APART = [family for family in FAMILIES if family not in FUSED]
OUTPUT = {
    "gpt2": "c_proj",
    "gpt_neox": "dense",
    "bloom": "dense",
    "falcon": "dense",
    "falcon-alibi": "dense",
    "gpt_neo": "out_proj",
    "opt": "out_proj",
    "xglm": "out_proj",
    "gptj": "out_proj",
    "codegen": "out_proj",
    "mpt": "out_proj",
}


class TestRows:
    @pytest.mark.parametrize("family", FUSED)
    def test_in_a_fused_projection_they_lie_as_the_familys_code_says(self, family):
        module, expected = FUSED[family]
        for layer in wrapped(BY_NAME[family]).anatomy.layers:
            for rows, index in zip((layer.W_Q, layer.W_K, layer.W_V), expected, strict=True):
                assert rows is not None
                assert rows.module == f"{layer.attention}.{module}"
                assert rows.index.tolist() == index
                assert not rows.whole

    @pytest.mark.parametrize("family", APART)
    def test_separate_projections_are_found_whole(self, family):
        lm = wrapped(BY_NAME[family])
        for layer in lm.anatomy.layers:
            for letter, rows in (("q", layer.W_Q), ("k", layer.W_K), ("v", layer.W_V)):
                assert rows is not None
                assert rows.module.startswith(layer.attention)
                assert rows.module.endswith(f".{letter}_proj")
                assert rows.whole
                heads = layer.n_heads if letter == "q" else layer.n_kv_heads
                assert rows.index.tolist() == list(range(heads * layer.d_head))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_the_rows_are_those_that_make_queries_keys_and_values(self, family):
        # Zero the rows of W_V (and its bias): the attention output must be zero, whatever the layout.
        case = BY_NAME[family]
        layer = wrapped(case).anatomy.layers[0]
        assert layer.W_V is not None
        assert layer.W_O is not None
        model = case.model()
        module = model.get_submodule(layer.W_V.module)
        module.weight.data.index_fill_(row_axis(module), layer.W_V.index, 0.0)
        if module.bias is not None:
            module.bias.data.index_fill_(0, layer.W_V.index, 0.0)
        seen = []
        model.get_submodule(layer.W_O).register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        with torch.no_grad():
            model(torch.arange(5, 25)[None])
        assert (seen[0] == 0).all()


class TestOtherTests:
    @pytest.mark.parametrize("family", FAMILIES)
    def test_heads_output_and_registry_are_right(self, family):
        lm = wrapped(BY_NAME[family])
        config = lm.model.config
        assert lm.anatomy.registry == BY_NAME[family].registry
        assert len(lm.anatomy.layers) == config.num_hidden_layers
        assert lm.anatomy.unclear == ()
        assert lm.anatomy.n_heads == HEADS
        kv_heads = 1 if family == "falcon" else getattr(config, "num_key_value_heads", HEADS)
        for number, layer in enumerate(lm.anatomy.layers):
            assert f".{number}." in layer.attention
            assert (layer.n_heads, layer.n_kv_heads) == (HEADS, kv_heads)
            assert layer.d_head == (16 if family in ("qwen3", "gemma3") else D_HEAD)
            assert f"{layer.attention}.{OUTPUT.get(family, 'o_proj')}" == layer.W_O
        lm.anatomy.require_key_value()

    @pytest.mark.parametrize("case", CASES, ids=route_id)
    def test_probing_leaves_the_model_as_it_was(self, case):
        model = case.model()
        model.get_input_embeddings().weight.requires_grad_(False)
        required = [weight.requires_grad for weight in model.parameters()]
        pointers = [weight.data_ptr() for weight in model.parameters()]
        find_anatomy(model)
        for weight, expected in zip(model.parameters(), plain(case).parameters(), strict=True):
            assert torch.equal(weight, expected)
            assert weight.grad is None
        assert [weight.requires_grad for weight in model.parameters()] == required
        assert [weight.data_ptr() for weight in model.parameters()] == pointers
        assert_no_hooks(model)

    def test_conv1d_counts_its_outputs_on_the_other_axis(self):
        conv, linear = transformers.pytorch_utils.Conv1D(6, 4), torch.nn.Linear(4, 6)
        assert is_linear(conv)
        assert is_linear(linear)
        assert not is_linear(torch.nn.LayerNorm(4))
        assert conv.weight.shape[row_axis(conv)] == linear.weight.shape[row_axis(linear)] == 6


class TestModelsThatCannotBeProbed:
    @pytest.mark.parametrize(
        ("config", "model_class"),
        [
            (
                transformers.MambaConfig(vocab_size=384, hidden_size=32, state_size=4, num_hidden_layers=2),
                transformers.MambaForCausalLM,
            ),
            (
                transformers.RwkvConfig(
                    vocab_size=384, hidden_size=32, num_hidden_layers=2, bos_token_id=0, eos_token_id=1
                ),
                transformers.RwkvForCausalLM,
            ),
        ],
        ids=["mamba", "rwkv"],
    )
    def test_a_model_without_softmax_attention_is_refused_by_name(self, config, model_class):
        with torch.random.fork_rng(devices=[]):
            model = model_class(config)
        randomise_(model, 0)
        with pytest.raises(ModelError, match=f"{model_class.__name__}: no softmax attention was seen in its forward"):
            find_anatomy(model.eval())
        assert_no_hooks(model)

    @pytest.mark.parametrize(("wrong", "letter"), [(1, "W_K"), (2, "W_V")])
    @pytest.mark.parametrize("family", ["gpt2", "bloom", "falcon"])
    def test_nudging_detects_misread_gradients(self, family, wrong, letter, monkeypatch):
        probed = under_test._rows_that_move
        calls = []

        def mistaken(tensor, linears):
            # Queries, keys and values of a layer come in this order; keys and values change places.
            (rows,) = probed(tensor, linears)
            calls.append(rows)
            part = (len(calls) - 1) % 3
            if part != wrong:
                return [rows]
            other = torch.tensor(FUSED[family][1][3 - wrong])
            return [LinearRows(rows.module, other, rows.whole)]

        monkeypatch.setattr(under_test, "_rows_that_move", mistaken)
        model = tiny_model(family)
        expected = [weight.clone() for weight in model.parameters()]
        with pytest.raises(
            ModelError, match=rf"probing identified .+{FUSED[family][0]} as {letter} of layer 0, but changing it"
        ):
            find_anatomy(model)
        assert all(torch.equal(weight, before) for weight, before in zip(model.parameters(), expected, strict=True))

    @pytest.mark.parametrize("missing", [3, 5])
    def test_nudging_detects_a_missing_row(self, missing, monkeypatch):
        probed = under_test._rows_that_move

        def shortened(tensor, linears):
            (rows,) = probed(tensor, linears)
            # The last entry twice, so that the number of rows stays the same.
            kept = torch.cat([rows.index[:missing], rows.index[missing + 1 :], rows.index[-1:]])
            return [LinearRows(rows.module, kept, False)]

        monkeypatch.setattr(under_test, "_rows_that_move", shortened)
        model = tiny_model("gpt2")
        with pytest.raises(ModelError, match="as W_K of layer 0, but changing it did not change exactly the keys"):
            find_anatomy(model)

    def test_a_projection_made_by_two_linears_has_a_reason(self):
        class Sum(torch.nn.Module):
            def __init__(self, a):
                super().__init__()
                self.a = a
                self.b = torch.nn.Linear(a.in_features, a.out_features)

            def forward(self, x):
                return self.a(x) + self.b(x)

        model = tiny_model("llama")
        attention = model.model.layers[1].self_attn
        attention.k_proj = Sum(attention.k_proj)
        anatomy = find_anatomy(model)
        assert anatomy.layers[1].W_K is None
        assert anatomy.layers[1].W_V is not None
        (sentence,) = anatomy.unclear
        assert sentence == (
            "layer 1: W_K should be 16 rows of one linear, but it depends on 16 rows of "
            "model.layers.1.self_attn.k_proj.a, 16 rows of model.layers.1.self_attn.k_proj.b"
        )
        with pytest.raises(ModelError, match=r"W_K and W_V were not found in every layer \(layer 1: W_K should be 16"):
            anatomy.require_key_value()

    def test_a_missing_output_projection_has_a_reason(self):
        model = tiny_model("llama")
        model.model.layers[0].self_attn.o_proj = torch.nn.Identity()
        anatomy = find_anatomy(model)
        assert anatomy.layers[0].W_O is None
        assert anatomy.unclear == (
            "layer 0: W_O should read only the heads' output, but the first linear after the heads, "
            "model.layers.0.mlp.gate_proj, reads more",
        )
        anatomy.require_key_value()  # W_O is not needed for finetuning

    def test_a_layer_without_keys_can_still_be_described(self):
        layer = dataclasses.replace(wrapped(BY_NAME["llama"]).anatomy.layers[0], W_K=None, unclear=("W_K is lost",))
        with pytest.raises(ModelError, match=r"Without them this model cannot be finetuned"):
            Anatomy((layer,), True).require_key_value()


def test_a_weight_that_is_computed_from_others_cannot_be_changed(tokenizer):
    model = tiny_model("llama")
    torch.nn.utils.parametrizations.weight_norm(model.model.layers[0].self_attn.o_proj)
    lm = LanguageModel.wrap(model, tokenizer, "llama")
    assert lm.anatomy.layers[0].W_O is None
    assert any("layer 0: W_O" in line for line in lm.anatomy.unclear)
    with pytest.raises(ModelError, match="W_O was not found in every layer"):
        require_editable_outputs(lm)


def test_a_first_layer_with_zero_input_is_not_an_error(tokenizer):
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.layers[0].input_layernorm.weight.zero_()
    lm = LanguageModel.wrap(model, tokenizer, "llama")
    assert lm.anatomy.unclear == ()
    W_K = lm.anatomy.layers[0].W_K
    assert W_K is not None
    assert W_K.module == "model.layers.0.self_attn.k_proj"
    assert_no_hooks(model)
