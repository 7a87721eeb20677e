"""Families whose attention differs, each next to the untouched model: answers, what W_O receives, what is named."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import pytest
import torch

from dualform.errors import ModelError
from dualform.learners.finetuned import Finetuned
from dualform.models.editing.adapters import LoraTraining
from dualform.models.editing.blockwise import require_editable_outputs
from dualform.models.editing.edit import KeyValueTraining, applied, key_value_rows
from dualform.models.loading.doctor import examine
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel, joined_readings
from tests.families import PREFIX, QUERIES, answers_off, heads_off, tiny_family
from tests.tiny import tiny_tokenizer

GATE = "a factor for each feature, such as a gate or a sink"

# One of each kind: model type -> what stands between heads and W_O in the first layer, and its block.
KINDS = {
    "bert": ("", 0),  # W_O beside the attention module
    "qwen3_next": (GATE, 1),  # an output gate, behind a recurrent block
    "afmoe": (GATE, 0),  # an output gate
    "bitnet": ("an operation across heads, such as a norm", 0),
    "bamba": ("", 1),  # state-space blocks between
    "zamba2": ("", 1),  # one block in several places
    "gemma4_text": ("", 0),  # heads of two widths
    "laguna": ("a factor for each feature, such as a gate or a sink", 0),
    "gpt_oss": ("", 0),  # a sink
    "deepseek_v3": ("", 0),  # latent keys and values
    "gemma3n_text": ("", 0),  # keys and values shared by layers
    "dory": ("an operation across heads, such as a norm", 0),  # blocks in a loop
    "roberta": ("", 0),  # positions counted from the pad id
}


@cache
def read(model_type: str) -> LanguageModel:
    return LanguageModel.wrap(tiny_family(model_type), tiny_tokenizer(), model_type)


@pytest.mark.parametrize("model_type", KINDS)
def test_answers_and_inputs_of_w_o_are_those_of_the_unmodified_model(model_type):
    lm, plain = read(model_type), tiny_family(model_type)
    between, block = KINDS[model_type]
    assert answers_off(lm, plain) < 2e-4
    off = heads_off(lm, plain)
    assert off is not None
    assert off < 2e-4
    assert lm.anatomy.layers[0].between == between
    assert lm.anatomy.layers[0].block == block


@pytest.mark.parametrize("model_type", ["bitnet", "qwen3_next", "gpt_oss", "gemma4_text", "deepseek_v3"])
def test_softmax_of_the_scores_times_values_is_the_input_of_a_gate(model_type):
    lm = read(model_type)
    examination = examine(lm)
    (check,) = [check for check in examination.checks if check.name.startswith("softmax")]
    assert check.passed
    between = lm.anatomy.layers[0].between
    assert examination.facts.get("between heads and W_O", "").startswith(between)


class TestBlocksWithoutAttention:
    def test_are_named_with_what_they_have_instead(self):
        anatomy = read("qwen3_next").anatomy
        assert len(anatomy.layers) == 1
        assert anatomy.left_out[0].startswith("block 0: no softmax attention (Qwen3NextGatedDeltaNet")
        assert examine(read("qwen3_next")).facts["layers"] == "1, at blocks 1"

    def test_the_state_of_blocks_without_attention_is_kept_in_a_row(self):
        # Recurrent state cannot be packed: a route that shares rows would mix the queries' states.
        lm = read("bamba")
        assert lm.route.name == "naive"
        alone = lm.log_probabilities(lm.encode(PREFIX), QUERIES[:1])
        beside = lm.log_probabilities(lm.encode(PREFIX), QUERIES)
        assert torch.equal(alone[0], beside[0])


class TestAWeightOfSeveralLayers:
    def test_has_one_delta(self):
        lm = read("zamba2")
        layers = lm.anatomy.layers
        assert len(layers) == 2
        assert layers[0].attention != layers[1].attention
        rows = key_value_rows(lm.model, lm.anatomy)
        assert len(rows) == 2
        with KeyValueTraining(lm.model, lm.anatomy) as training:
            assert len(training.parameters) == 2

    def test_is_trained_as_autograd_trains_the_tied_weight(self):
        model, twin = tiny_family("zamba2"), tiny_family("zamba2")
        lm = LanguageModel.wrap(model, tiny_tokenizer(), "zamba2")
        ids = (0, 17, 301, 45, 208, 9, 61)
        before = {name: weight.clone() for name, weight in model.named_parameters()}
        ft = Finetuned((0,), 0.05).adapt(lm, demonstrations(ids))
        names = key_value_rows(lm.model, lm.anatomy)
        weights = [twin.get_submodule(name).weight for name in names]
        twin.requires_grad_(False)
        for weight in weights:
            weight.requires_grad_(True)
        loss = twin(input_ids=torch.tensor([ids]), labels=torch.tensor([ids]), use_cache=False).loss
        gradients = torch.autograd.grad(loss, weights)
        for delta, gradient in zip(ft.deltas, gradients, strict=True):
            torch.testing.assert_close(delta.delta, -0.05 * gradient, rtol=2e-3, atol=1e-6)
        with torch.no_grad(), applied(lm.model, ft.deltas):
            changed = model(input_ids=torch.tensor([ids]), use_cache=False).logits
        with torch.no_grad():
            for weight, gradient in zip(weights, gradients, strict=True):
                weight -= 0.05 * gradient
            expected = twin(input_ids=torch.tensor([ids]), use_cache=False).logits
        torch.testing.assert_close(changed, expected, rtol=1e-4, atol=1e-4)
        assert all(torch.equal(weight, before[name]) for name, weight in model.named_parameters())
        # Still one parameter under both of its names.
        first, second = (layer.attention for layer in lm.anatomy.layers)
        assert model.get_submodule(first).k_proj.weight is model.get_submodule(second).k_proj.weight

    def test_has_one_adapter(self):
        lm = read("zamba2")
        with LoraTraining(lm.model, lm.anatomy, 2, 0) as training:
            # A and B of W_Q and of W_V.
            assert len(training.parameters) == 4
            assert len(training.deltas()) == 2

    def test_is_not_folded_into(self):
        with pytest.raises(ModelError, match=r"o_proj is W_O of 2 layers at once"):
            require_editable_outputs(read("zamba2"))


class TestLayersOfDifferentShapes:
    def test_are_padded_with_zeros_and_have_their_sizes_recorded(self):
        lm = read("gemma4_text")
        assert [layer.d_head for layer in lm.anatomy.layers] == [8, 16]
        want = Recording(q=True, head_output=True, update=True)
        trace = lm.read_group(lm.encode(PREFIX), QUERIES, [0, 1], want).trace
        assert trace is not None
        assert trace.sizes is not None
        assert [size.d_head for size in trace.sizes] == [8, 16]
        for record in (trace.q, trace.head_output, trace.update):
            assert record is not None
            assert record.shape[-1] == 16
            assert (record[:, 0, ..., 8:] == 0).all()
            assert (record[:, 0, ..., :8] != 0).any()

    def test_can_be_finetuned(self):
        lm = read("gemma4_text")
        ft = Finetuned((0,), 0.01).adapt(lm, demonstrations((0, 17, 301, 45, 208)))
        assert ft.training_q is not None
        assert ft.training_q.shape == (2, 4, 4, 16)


def test_latent_attention_returns_the_keys_and_values_that_it_attends_to():
    lm = read("deepseek_v3")
    assert lm.route.name == "packed-mask"
    layer = lm.anatomy.layers[0]
    for key, value in lm.encode(PREFIX).layers:
        assert key.shape == (layer.n_kv_heads, len(PREFIX), layer.d_head)
        assert value.shape == (layer.n_kv_heads, len(PREFIX), layer.head_width)


def test_layers_that_read_an_earlier_ones_keys_have_its_projections():
    layers = read("gemma3n_text").anatomy.layers
    assert [layer.key_value_of for layer in layers] == [None, None, 0, 1]
    assert layers[2].W_K is not None
    assert layers[0].W_K is not None
    assert layers[2].W_K.module == layers[0].W_K.module


def test_a_sink_takes_part_in_attention_on_every_route():
    lm = read("gpt_oss")
    assert lm.route.name == "packed"
    trace = lm.read_group(lm.encode(PREFIX), QUERIES, [0], Recording(scores=True)).trace
    assert trace is not None
    assert trace.sinks is not None
    sinks = [layer.self_attn.sinks for layer in lm.model.model.layers]
    assert all(torch.equal(row, sink) for row, sink in zip(trace.sinks, sinks, strict=True))


class TestAttentionThatCannotBeRecorded:
    @pytest.mark.parametrize(
        ("model_type", "reason"),
        [
            ("diffllama", "computes attention in several parts"),
            ("xlnet", "multiplies queries with keys by einsum"),
            ("reformer", "normalises its scores without softmax"),
            ("cpmant", "attends from 1 x 37 to 37 positions for an input of 5 tokens"),
        ],
    )
    def test_is_named_and_answers_are_still_read(self, model_type, reason):
        try:
            lm = read(model_type)
        except ModelError as error:
            # Some of these are no causal models.
            assert "is not causal" in str(error)  # noqa: PT017 # the other outcome is checked below
            return
        assert lm.anatomy.layers == ()
        assert all(reason in line for line in lm.anatomy.left_out)
        assert answers_off(lm, tiny_family(model_type)) < 2e-4
        with pytest.raises(ModelError, match="finetuning W_K and W_V needs attention layers that can be recorded"):
            key_value_rows(lm.model, lm.anatomy)

    def test_a_context_without_a_limit_is_none(self):
        # XLNet's config gives -1 as the number of its positions.
        lm = read("xlnet")
        assert lm.model.config.max_position_embeddings == -1
        assert lm.max_positions is None

    def test_a_head_that_predicts_several_tokens_is_refused_in_one_sentence(self):
        with pytest.raises(ModelError, match="predicts more than the next token") as caught:
            read("prophetnet")
        assert "zip" not in str(caught.value)

    def test_a_layer_whose_w_o_is_missing_is_named(self):
        lm = read("bert")
        lost = dataclasses.replace(lm.anatomy.layers[1], W_O=None, unclear=("W_O is lost",))
        anatomy = dataclasses.replace(lm.anatomy, layers=(lm.anatomy.layers[0], lost))
        assert not anatomy.knows_outputs
        assert anatomy.missing_projections("W_O") == ("layer 1: W_O is lost",)


def demonstrations(ids: tuple[int, ...]) -> EncodedDemonstrations:
    """One sequence, its last token the answer."""
    demonstrations: EncodedDemonstrations = SimpleNamespace(  # type: ignore[assignment] # all that training reads
        sequences=(ids,), n_answer_tokens=(1,), demonstration_of=(0,) * (len(ids) - 1), content=(), prefix=ids
    )
    return demonstrations


def test_rows_that_are_read_separately_are_joined_with_the_sizes_of_their_layers():
    lm = read("gemma4_text")
    want = Recording(q=True)
    parts = [lm.read_group(lm.encode(PREFIX), QUERIES, [index], want) for index in (1, 0)]
    joined = joined_readings(parts, (0, 1)).trace
    assert joined is not None
    assert parts[1].trace is not None
    assert joined.sizes == parts[1].trace.sizes
    assert joined.q is not None
    assert parts[1].trace.q is not None
    assert torch.equal(joined.q[0], parts[1].trace.q[0])
