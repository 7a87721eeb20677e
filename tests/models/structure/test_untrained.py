"""An untrained model: other weights, everything else the same."""

import copy
import dataclasses

import pytest
import torch
from torch import nn
from transformers import GgufConfig

import dualform.models.structure.untrained as under_test
from dualform.errors import ModelError
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.untrained import untrained
from tests.models.reference import BY_NAME, CASES, OPENING, QUERIES, naive_scores, wrapped
from tests.tiny import tiny_model, tiny_tokenizer

CONSTANT = ("norm", "ln_", "bias")
"""Parts of names of weights that start at one or zero, whatever the seed."""


def weights(lm):
    return dict(lm.model.named_parameters())


@pytest.mark.parametrize("case", CASES, ids=str)
class TestEveryFamily:
    def test_every_weight_differs_from_the_trained_ones_and_comes_back_with_the_seed(self, case):
        lm = wrapped(case)
        first, again, other = (untrained(lm, seed=seed) for seed in (1, 1, 2))
        trained = weights(lm)
        assert weights(first).keys() == trained.keys()
        for name, weight in weights(first).items():
            assert weight.shape == trained[name].shape
            assert weight.dtype == trained[name].dtype
            assert not torch.equal(weight, trained[name]), name
            assert torch.equal(weight, weights(again)[name]), name
            assert torch.equal(weight, weights(other)[name]) == any(part in name for part in CONSTANT), name

    def test_it_is_initialised_as_by_transformers(self, case):
        lm = wrapped(case)
        fresh = untrained(lm, seed=1)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            expected = type(lm.model)(copy.deepcopy(fresh.model.config))
        for name, weight in expected.named_parameters():
            assert torch.equal(weights(fresh)[name], weight), name

    def test_only_embeddings_equal_the_trained_ones_bit_for_bit(self, case):
        lm = wrapped(case)
        drawn, kept = untrained(lm, seed=1), untrained(lm, seed=1, keep_embeddings=True)
        head = lm.model.get_output_embeddings()
        expected = {
            f"{name}.{kind}"
            for name, module in lm.model.named_modules()
            if isinstance(module, nn.Embedding) or module is head
            for kind, _ in module.named_parameters(recurse=False)
        } & weights(lm).keys()
        assert expected
        for name, weight in weights(kept).items():
            assert torch.equal(weight, weights(lm)[name]) == (name in expected), name
            assert torch.equal(weight, weights(drawn)[name]) == (name not in expected), name
        tied = lm.model.get_input_embeddings().weight is head.weight
        model = kept.model
        assert (model.get_input_embeddings().weight is model.get_output_embeddings().weight) == tied

    def test_the_trained_model_and_the_global_random_state_are_left_alone(self, case):
        lm = wrapped(case)
        before = {name: tensor.clone() for name, tensor in lm.model.state_dict().items()}
        config, state = lm.model.config.to_json_string(), torch.get_rng_state()
        implementation = lm.model.config._attn_implementation
        fresh = untrained(lm, seed=1, keep_embeddings=True)
        assert torch.equal(torch.get_rng_state(), state)
        assert lm.model.config.to_json_string() == config
        assert lm.model.config._attn_implementation == implementation
        assert fresh.model.config is not lm.model.config
        with torch.no_grad():
            for weight in fresh.model.parameters():
                weight.zero_()
        assert all(torch.equal(tensor, before[name]) for name, tensor in lm.model.state_dict().items())

    def test_it_has_the_anatomy_and_route_of_the_trained_model(self, case):
        lm = wrapped(case)
        fresh = untrained(lm, seed=1)
        assert fresh.name == f"{lm.name}-untrained-1"
        assert fresh.route.name == lm.route.name
        assert fresh.refused == lm.refused
        assert fresh.tokenizer is lm.tokenizer
        assert not fresh.model.training
        for first, other in zip(fresh.anatomy.layers, lm.anatomy.layers, strict=True):
            assert first.W_O == other.W_O
            for letter in ("W_Q", "W_K", "W_V"):
                assert getattr(first, letter).module == getattr(other, letter).module
                assert torch.equal(getattr(first, letter).index, getattr(other, letter).index)

    def test_it_answers_as_a_plain_forward_of_its_weights_does(self, case):
        fresh = untrained(wrapped(case), seed=1, keep_embeddings=True)
        plain = case.model()
        plain.load_state_dict(fresh.model.state_dict())
        table = fresh.log_probabilities(fresh.encode(OPENING), QUERIES)
        for row, query in zip(table, QUERIES, strict=True):
            scores = naive_scores(plain, OPENING, query).double()
            torch.testing.assert_close(row[: len(scores)], scores, rtol=1e-5, atol=1e-5)


def test_the_bounds_of_a_row_and_the_dtype_are_those_of_the_trained_model():
    lm = LanguageModel.wrap(tiny_model("llama", dtype=torch.bfloat16), tiny_tokenizer(), "llama")
    lm = dataclasses.replace(lm, max_row=77, max_examples=5)
    fresh = untrained(lm, seed=1)
    assert (fresh.max_row, fresh.max_examples) == (77, 5)
    assert fresh.model.dtype == torch.bfloat16
    assert untrained(lm, seed=1, keep_embeddings=True).name == "llama-untrained-1-embeddings-kept"


def test_weights_that_the_trained_model_keeps_in_another_dtype_are_in_it_here_too():
    model = tiny_model("llama", dtype=torch.bfloat16)
    model.model.norm.float()
    fresh = under_test._initialise(model, 1)
    assert fresh.model.norm.weight.dtype == torch.float32
    assert fresh.lm_head.weight.dtype == torch.bfloat16


def test_the_config_of_a_dequantized_file_is_accepted():
    model = tiny_model("llama")
    model.config.quantization_config = GgufConfig(dequantize=True)
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    fresh = untrained(lm, seed=1)
    assert not hasattr(fresh.model.config, "quantization_config")
    assert hasattr(lm.model.config, "quantization_config")


def test_if_the_route_is_refused_another_is_chosen():
    lm = wrapped(BY_NAME["mpt"])
    astray = dataclasses.replace(lm, route=wrapped(BY_NAME["llama"]).route)
    assert astray.route.name == "packed"
    fresh = untrained(astray, seed=1)
    # With weights this small the self-check may let more pass than with trained ones; never the one it refused.
    assert fresh.route.name != "packed"
    assert any(word.startswith("packed: ") for word in fresh.refused) or not fresh.anatomy.registry


def test_a_model_that_its_config_does_not_describe_is_refused():
    model = tiny_model("llama")
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    model.config.intermediate_size = 48
    words = r"model\.layers\.0\.mlp\.gate_proj\.weight has shape \(48, 32\) instead of \(64, 32\)"
    with pytest.raises(ModelError, match=words):
        untrained(lm, seed=1)


def test_weights_that_the_config_does_not_know_are_named():
    model = tiny_model("llama")
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "llama")
    model.model.register_parameter("extra", nn.Parameter(torch.zeros(3)))
    with pytest.raises(ModelError, match=r"model\.extra has shape none instead of \(3,\)"):
        untrained(lm, seed=1)


@pytest.mark.real
def test_a_packaged_model_has_an_untrained_twin():
    from dualform.models.loading.load import load_model

    lm = load_model("smollm2-135m", device="cpu")
    fresh = untrained(lm, seed=0, keep_embeddings=True)
    assert fresh.route.name == lm.route.name
    assert torch.equal(fresh.model.get_input_embeddings().weight, lm.model.get_input_embeddings().weight)
    std = float(fresh.model.model.layers[3].mlp.up_proj.weight.detach().std())
    assert std == pytest.approx(lm.model.config.initializer_range, rel=0.01)
