import copy
import dataclasses
from typing import Any

import pytest
import torch
import transformers

import dualform
from dualform.errors import ModelError, NumericalError
from dualform.models.editing.momentum import apply_momentum
from dualform.models.loading.untouched import special_ids
from dualform.models.reading import self_check
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.packed import PackedRoute
from tests.models.reference import assert_no_hooks, naive_scores
from tests.studies.small import small_task
from tests.tiny import randomise_, save_tiny, tiny_model, tiny_tokenizer

COMMON = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GEMMA = {**COMMON, "num_key_value_heads": 2, "head_dim": 16}


def random_model(model_class, config):
    with torch.random.fork_rng(devices=[]):
        model = model_class(config)
    randomise_(model, 0)
    return model.eval()


def bidirectional(name):
    if name == "bert":
        return random_model(transformers.BertLMHeadModel, transformers.BertConfig(**COMMON, is_decoder=False))
    if name == "gemma3":
        config = transformers.Gemma3TextConfig(**GEMMA, use_bidirectional_attention=True)
        return random_model(transformers.Gemma3ForCausalLM, config)
    if name == "llama":
        return random_model(transformers.LlamaForCausalLM, transformers.LlamaConfig(**COMMON, is_causal=False))
    assert name == "one layer"
    model = tiny_model("llama", attn_implementation="eager")

    def see_all(module, args, kwargs):
        return args, {**kwargs, "attention_mask": torch.zeros_like(kwargs["attention_mask"])}

    model.model.layers[1].self_attn.register_forward_pre_hook(see_all, with_kwargs=True)
    return model


class TestAModelThatAttendsToLaterTokens:
    @pytest.mark.parametrize("route", [None, "naive"])
    @pytest.mark.parametrize("name", ["bert", "gemma3", "llama", "one layer"])
    def test_is_refused_on_every_route(self, name, route, tokenizer):
        with pytest.raises(ModelError, match=r"is not causal: changing the last token.*Choose a causal language model"):
            LanguageModel.wrap(bidirectional(name), tokenizer, name, route)

    def test_a_causal_model_changes_no_earlier_logit_at_all(self, tokenizer):
        # The same kernels on the same shapes: nothing may move, not even by rounding.
        result = LanguageModel.wrap(tiny_model("gemma3"), tokenizer, "gemma3").verification
        assert result is not None
        assert result.causality == 0


class TestTheNaiveRouteAgreesWithTheModelsOwnForward:
    @pytest.mark.parametrize(("family", "own"), [("llama", "sdpa"), ("gpt_neo", "eager"), ("mpt", "eager")])
    def test_by_rounding_alone(self, family, own, tokenizer):
        result = LanguageModel.wrap(tiny_model(family), tokenizer, family).verification
        assert result is not None
        assert result.implementation == own
        assert result.deviation < 2e-5
        assert result.unverified == ()

    def test_attention_that_is_off_by_a_little_is_an_error(self, tokenizer, monkeypatch):
        from dualform.models.reading import attention

        def off(call):
            return right(dataclasses.replace(call, scale=call.scale * 1.01))

        right = attention._softmax_attention
        monkeypatch.setattr(attention, "_softmax_attention", off)
        with pytest.raises(
            ModelError,
            match=r"log-probabilities with dualform's attention differ from those of the model's own forward \(sdpa",
        ):
            LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama")

    def test_a_wrapped_model_is_compared_with_what_it_was(self, tokenizer):
        model = tiny_model("llama", attn_implementation="eager")
        LanguageModel.wrap(model, tokenizer, "llama")
        assert model.config._attn_implementation == "dualform"
        again = LanguageModel.wrap(model, tokenizer, "llama")
        assert again.verification is not None
        assert again.verification.implementation == "eager"
        assert model.config._attn_implementation == "dualform"
        assert_no_hooks(model)

    def test_attention_that_is_dualforms_own_is_compared_with_itself(self, tokenizer):
        model = tiny_model("llama")
        apply_momentum(model, 0.3)
        result = LanguageModel.wrap(model, tokenizer, "llama").verification
        assert result is not None
        assert result.implementation == "dualform"

    def test_prompts_hold_special_tokens_and_both_ends_of_the_vocabulary(self):
        model = tiny_model("llama")
        assert special_ids(model, tiny_tokenizer())[:2] == (1, 0)
        assert {2, 3, 383} < set(special_ids(model))


class TestIdsThatAFamilyTreatsUnlikeOthers:
    @pytest.mark.parametrize("family", ["Roberta", "Camembert", "XLMRobertaXL", "Data2VecText"])
    def test_positions_that_leave_out_padding_are_the_familys_own(self, family, tokenizer):
        # They are counted over ids that are not padding, so that no route may pass its own.
        config = getattr(transformers, f"{family}Config")(**COMMON, is_decoder=True)
        model = random_model(getattr(transformers, f"{family}ForCausalLM"), config)
        lm = LanguageModel.wrap(copy.deepcopy(model), tokenizer, family)
        prefix, query = (0, 30, 1, 31, 1, 32), Query((33, 1, 34), ((40, 41), (42,)))
        row = lm.log_probabilities(lm.encode(prefix), [query])[0]
        torch.testing.assert_close(row, naive_scores(model, prefix, query).double(), rtol=2e-6, atol=0)

    @pytest.mark.parametrize("padding", [0, 1, 2, 5])
    def test_whatever_the_id_that_positions_are_counted_from(self, padding, tokenizer):
        # With id 0, the offset of one and one padding token in front of a query cancel.
        config = transformers.RobertaConfig(**{**COMMON, "pad_token_id": padding}, is_decoder=True)
        model = random_model(transformers.RobertaForCausalLM, config)
        lm = LanguageModel.wrap(copy.deepcopy(model), tokenizer, "roberta")
        query = Query((33, padding, 34), ((40, 41), (42,)))
        for prefix in ((), (10, 30, 31), (10, padding, 31)):
            row = lm.log_probabilities(lm.encode(prefix), [query])[0]
            torch.testing.assert_close(row, naive_scores(model, prefix, query).double(), rtol=2e-6, atol=0)


class TestNumbersThatAreNone:
    def test_damaged_weights_are_named(self, tokenizer):
        model = tiny_model("llama")
        with torch.no_grad():
            model.model.layers[1].mlp.up_proj.weight[3, 4] = torch.nan
        with pytest.raises(
            NumericalError, match=r"1 of 2048 numbers in model\.layers\.1\.mlp\.up_proj\.weight are NaN"
        ):
            LanguageModel.wrap(model, tokenizer, "llama")

    def test_half_precision_is_named_where_weights_are_finite(self, tokenizer):
        model = tiny_model("llama", dtype=torch.float16)
        with torch.no_grad():
            model.model.layers[0].mlp.up_proj.weight.mul_(1e4)
            model.model.layers[0].mlp.down_proj.weight.mul_(1e4)
        with pytest.raises(NumericalError, match=r"in float16: the weights are finite.*--dtype float32"):
            LanguageModel.wrap(model, tokenizer, "llama")

    def test_a_token_that_is_ruled_out_everywhere_is_no_fault(self, tokenizer):
        model = tiny_model("gpt2")
        bias = torch.zeros(384)
        bias[7] = -torch.inf
        model.lm_head.register_forward_hook(lambda module, args, out: out + bias)
        assert LanguageModel.wrap(model, tokenizer, "gpt2").route.name == "packed"


class TestGradientsThatTheCallerHasSwitchedOff:
    @pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
    def test_do_not_matter_to_loading(self, block, tmp_path):
        save_tiny("llama", tmp_path)
        with block():
            lm = dualform.load_model(str(tmp_path), device="cpu")
        assert lm.route.name == "packed"
        assert lm.anatomy.unclear == ()
        assert not any(weight.is_inference() for weight in lm.model.parameters())

    @pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
    def test_do_not_matter_to_a_comparison(self, block, tokenizer):
        lm = LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama")
        settings: dict[str, Any] = {"k": 2, "seeds": (1,), "limit": 2, "selection_limit": 2, "resamples": 10}
        settings |= {"explore": 0, "learners": ("zsl", "icl", "ft"), "controls": (), "rates": (1e-3,)}
        config = dualform.comparison_config("llama", "made-up", **settings)
        outside = dualform.compare(config, lm=lm, task=small_task())
        with block():
            inside = dualform.compare(config, lm=lm, task=small_task())
        assert inside.result.accuracy == outside.result.accuracy
        assert inside.result.similarity == outside.result.similarity

    def test_neither_does_autocast(self, tokenizer):
        model = tiny_model("llama")
        expected = naive_scores(model, (10, 30), Query((33, 34), ((40, 41),)))
        with torch.autocast("cpu", torch.bfloat16):
            lm = LanguageModel.wrap(copy.deepcopy(model), tokenizer, "llama")
            row = lm.log_probabilities(lm.encode((10, 30)), [Query((33, 34), ((40, 41),))])[0]
        assert lm.route.name == "packed"
        torch.testing.assert_close(row, expected.double(), rtol=2e-6, atol=0)

    def test_weights_made_without_them_are_named(self, tokenizer):
        with torch.inference_mode():
            model = tiny_model("llama")
        with pytest.raises(ModelError, match=r"created inside torch\.inference_mode\(\)"):
            LanguageModel.wrap(model, tokenizer, "llama")


class TestRoutesThatAFamilyCannotTake:
    @pytest.mark.parametrize(
        "error", [AttributeError("no such thing"), KeyError("x"), AssertionError(), IndexError("y")]
    )
    def test_are_skipped_on_any_error_of_its_code(self, error, tokenizer, monkeypatch):
        def fails(self, prefix, queries, layout, want):
            raise error

        monkeypatch.setattr(PackedRoute, "read", fails)
        lm = LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama")
        assert lm.route.name == "packed-mask"
        assert lm.refused[0].startswith(f"packed: {type(error).__name__}")

    def test_where_even_the_naive_one_fails_one_line_says_so(self, tokenizer, monkeypatch):
        lm = LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama")

        def fails(model, route):
            raise AssertionError

        monkeypatch.setattr(self_check, "check_readings", fails)
        with pytest.raises(ModelError, match=r"not even on the naive route: AssertionError without a message$"):
            self_check.choose_route(lm.model, lm.anatomy)
