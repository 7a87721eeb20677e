import pytest
import torch
import transformers

from dualform.errors import ModelError
from dualform.learners.kv_momentum import KeyValueMomentum
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import keys_values
from dualform.models.reading.language_model import LanguageModel
from tests.models.reference import OPENING, PREFIX
from tests.tiny import randomise_, tiny_model

COMMON = {
    "vocab_size": 384,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "num_experts_per_tok": 2,
}
LATENT = {
    "num_key_value_heads": 4, "moe_intermediate_size": 32, "n_routed_experts": 4, "n_shared_experts": 1,
    "kv_lora_rank": 16, "q_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 8, "v_head_dim": 8, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1,
}  # fmt: skip


def tiny_model_of(family, **settings):
    with torch.random.fork_rng(devices=[]):
        config = getattr(transformers, f"{family}Config")(**COMMON, **settings)
        model = getattr(transformers, f"{family}ForCausalLM")(config)
    randomise_(model, 0)
    return model.eval()


def test_latent_attention_returns_keys_and_values_whatever_is_in_its_cache(tokenizer):
    lm = LanguageModel.wrap(tiny_model_of("DeepseekV3", **LATENT), tokenizer, "deepseek")
    assert lm.route.name == "packed-mask"
    actual, expected = lm.encode(PREFIX).layers, keys_values(lm.model, lm.anatomy, PREFIX).layers
    assert [(key.shape, value.shape) for key, value in actual] == [((4, 42, 12), (4, 42, 8))] * 2
    for layer, pair in zip(actual, expected, strict=True):
        for a, b in zip(layer, pair, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


def test_entries_of_such_a_cache_are_not_used_as_keys(tokenizer):
    lm = LanguageModel.wrap(tiny_model_of("DeepseekV3", **LATENT), tokenizer, "deepseek")
    prefix = lm.encode(PREFIX)
    if prefix.attended is None:  # type: ignore[attr-defined]
        pytest.skip("this release of transformers caches keys and values of latent attention")
    demonstrations = EncodedDemonstrations(PREFIX, (), (), (), ())
    with pytest.raises(ModelError, match="does not cache keys and values"):
        KeyValueMomentum(OPENING).adapt(lm, demonstrations)


def test_an_ordinary_cache_is_kept_once(tokenizer):
    lm = LanguageModel.wrap(tiny_model("llama"), tokenizer, "llama", "repeated")
    assert lm.encode(PREFIX).attended is None  # type: ignore[attr-defined]


def test_a_family_that_merges_head_axes_uses_the_fast_route(tokenizer):
    model = tiny_model_of("JetMoe", num_key_value_heads=2, kv_channels=8, num_local_experts=4)
    assert LanguageModel.wrap(model, tokenizer, "jetmoe").route.name == "packed"
