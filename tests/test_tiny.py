import pytest
import torch
import transformers

from tests.tiny import (
    BOS,
    EOS,
    EOS_ID,
    FAMILIES,
    POSITIONS,
    VOCABULARY,
    WINDOW,
    save_tiny,
    tiny_model,
    tiny_tokenizer,
)

PROMPT = "Review: a warm and funny film Sentiment: positive"


def token_ids(text: str = PROMPT) -> torch.Tensor:
    return torch.tensor([tiny_tokenizer()(text)["input_ids"]])


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_the_same_seed_gives_the_same_weights_and_another_seed_others(self, family):
        first, again, other = (tiny_model(family, seed=seed).state_dict() for seed in (0, 0, 1))
        assert all(torch.equal(first[name], again[name]) for name in first)
        assert not any(torch.equal(first[name], other[name]) for name, _ in tiny_model(family).named_parameters())

    def test_the_global_random_state_is_left_alone(self, family):
        before = torch.get_rng_state()
        tiny_model(family)
        assert torch.equal(before, torch.get_rng_state())

    def test_it_answers_and_the_context_decides_the_answer(self, family):
        model = tiny_model(family)
        ids = token_ids()
        assert model.config.vocab_size == VOCABULARY
        assert not model.training
        changed = ids.clone()
        changed[0, -4] = (changed[0, -4] + 1) % VOCABULARY  # within every window
        with torch.no_grad():
            logits, moved = model(ids).logits, model(changed).logits
        assert logits.shape == (1, ids.shape[1], VOCABULARY)
        assert logits.isfinite().all()
        torch.testing.assert_close(logits[:, :-4], moved[:, :-4])  # causal
        assert (logits[:, -1] - moved[:, -1]).abs().max() > 0.1

    def test_attention_is_far_from_uniform(self, family):
        model = tiny_model(family, attn_implementation="eager")
        with torch.no_grad():
            maps = model(token_ids(), output_attentions=True).attentions
        assert len(maps) == model.config.num_hidden_layers
        for layer in maps:
            last = layer[0, :, -1]  # (head, k_pos)
            assert torch.allclose(last.sum(-1), torch.ones(last.shape[0]))
            assert last.amax(-1).mean() > 2.5 / last.shape[-1]

    def test_no_bias_and_no_norm_is_at_its_starting_value(self, family):
        for name, parameter in tiny_model(family).named_parameters():
            assert not (parameter == 0).any(), name
            assert not (parameter == 1).any(), name

    def test_training_mode_changes_nothing_because_there_is_no_dropout(self, family):
        model = tiny_model(family)
        with torch.no_grad():
            assert torch.equal(model(token_ids()).logits, model.train()(token_ids()).logits)

    def test_float64_agrees_with_float32(self, family):
        if family == "xglm":
            pytest.skip("transformers' xglm overflows in float64 when it masks")
        with torch.no_grad():
            single = tiny_model(family)(token_ids()).logits
            double = tiny_model(family, dtype=torch.float64)(token_ids()).logits
        assert double.dtype == torch.float64
        # float32 resolution times the logits' size, with room for a few layers of sums
        torch.testing.assert_close(single.double(), double, rtol=1e-3, atol=1e-3)

    def test_what_is_saved_is_what_loads(self, family, tmp_path):
        folder = save_tiny(family, tmp_path / family)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
        assert torch.equal(ids, token_ids())
        assert type(model) is type(tiny_model(family))
        assert sorted(path.suffix for path in folder.iterdir() if path.suffix != ".json") == [".safetensors"]
        with torch.no_grad():
            assert torch.equal(model(ids).logits, tiny_model(family)(ids).logits)


def test_a_misspelt_config_field_is_named():
    with pytest.raises(AssertionError, match=r"LlamaConfig has no field num_key_value_head$"):
        tiny_model("llama", num_key_value_head=2)


def test_a_family_whose_parameter_count_is_off_is_named(monkeypatch):
    monkeypatch.setattr("tests.tiny.D_MODEL", 64)
    monkeypatch.setattr("tests.tiny._COMMON", {"vocab_size": VOCABULARY, "hidden_size": 64})
    with pytest.raises(AssertionError, match=r"llama has \d+ parameters, expected \d+"):
        tiny_model("llama")


@pytest.mark.parametrize(
    ("family", "overrides", "reach"),
    [
        ("mistral", {}, None),
        ("mistral", {"sliding_window": WINDOW}, 2 * (WINDOW - 1)),
        ("gpt_neo", {"attention_types": [[["local"], 2]]}, 2 * (WINDOW - 1)),
        ("gpt_neo", {}, None),
        ("gemma3", {}, None),
        ("gemma3", {"layer_types": ["sliding_attention"] * 3}, 3 * (WINDOW - 1)),
    ],
)
def test_sliding_windows_end_where_they_should(family, overrides, reach):
    model = tiny_model(family, **overrides)
    ids = torch.arange(2, 98)[None]
    changed = ids.clone()
    changed[0, 0] = 200
    with torch.no_grad():
        moved = (model(ids).logits - model(changed).logits).abs().amax(-1)[0] > 0
    assert moved[0]
    last = int(moved.nonzero().max())
    assert last == (ids.shape[1] - 1 if reach is None else reach)


def test_label_words_are_one_token_and_lukewarm_is_several():
    tokenizer = tiny_tokenizer()
    assert len(tokenizer.encode(" positive")) == 1
    assert len(tokenizer.encode(" negative")) == 1
    assert len(tokenizer.encode(" lukewarm")) > 2


def test_the_tokenizer_adds_nothing_and_loses_nothing():
    tokenizer = tiny_tokenizer()
    text = " Ünïcode, tabs\tand\n\nnew lines 🙂 in  double spaces "
    assert len(tokenizer) == VOCABULARY
    assert tokenizer.decode(tokenizer.encode(text)) == text
    assert BOS not in tokenizer.tokenize(text)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (BOS, EOS, EOS)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, EOS_ID)
    assert tokenizer.model_max_length == POSITIONS


def test_two_tokenizers_are_equal():
    assert tiny_tokenizer().get_vocab() == tiny_tokenizer().get_vocab()
