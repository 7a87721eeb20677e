import json

import huggingface_hub.errors
import pytest
import torch
import transformers
from huggingface_hub import HfApi

from dualform.errors import ConfigError, HubError, ModelError, StorageError
from dualform.models.loading.load import load_model
from dualform.models.loading.packaged import PACKAGED_MODELS, is_local, packaged_model
from dualform.models.reading.layout import Query
from tests.tiny import save_tiny, tiny_model


@pytest.fixture
def checkpoint(tmp_path):
    return save_tiny("gpt2", tmp_path / "checkpoint")


class TestFolders:
    @pytest.mark.parametrize("family", ["gpt2", "llama", "xglm"])
    def test_a_checkpoint_loads_with_its_weights_and_tokenizer(self, family, tmp_path):
        folder = save_tiny(family, tmp_path)
        lm = load_model(str(folder))
        assert lm.name == str(folder)
        assert lm.route.name == ("packed-mask" if family == "xglm" else "packed")
        assert not lm.model.training
        assert lm.bos == 0
        state = lm.model.state_dict()
        assert all(torch.equal(state[name], weight) for name, weight in tiny_model(family).state_dict().items())
        assert lm.tokenizer(" positive", add_special_tokens=False)["input_ids"] != []

    def test_the_requested_dtype_and_route_are_used(self, checkpoint):
        lm = load_model(str(checkpoint), dtype="float64", route="naive", device="cpu")
        assert lm.model.dtype == torch.float64
        assert lm.route.name == "naive"
        assert load_model(str(checkpoint), dtype="bfloat16").model.dtype == torch.bfloat16

    def test_a_missing_folder_is_named(self, tmp_path):
        with pytest.raises(ModelError, match=f"no model folder at {tmp_path}/nowhere. Check the path."):
            load_model(f"{tmp_path}/nowhere")
        with pytest.raises(ModelError, match="no model folder at some/deep/folder"):
            load_model("some/deep/folder")

    def test_a_folder_that_is_no_checkpoint_is_named(self, tmp_path):
        with pytest.raises(ModelError, match=f"{tmp_path} contains neither config.json"):
            load_model(str(tmp_path))

    @pytest.mark.parametrize(
        ("text", "reason"),
        [
            ("{no", "config.json is not a valid JSON file"),
            ("{}", "Unrecognized model .* Should have a `model_type` key"),
            ("[]", "must be a mapping, not list"),
            ('{"model_type": "gpt99"}', "model type `gpt99`"),
        ],
    )
    def test_a_corrupt_config_is_an_error_with_the_reason(self, checkpoint, text, reason):
        (checkpoint / "config.json").write_text(text)
        with pytest.raises(
            ModelError, match=f"{checkpoint} could not be loaded as a causal language model: .*{reason}"
        ):
            load_model(str(checkpoint))

    @pytest.mark.parametrize("kept", [0, 5, 1000, 100_000])
    def test_a_truncated_weight_file_is_an_error(self, checkpoint, kept):
        weights = checkpoint / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:kept])
        with pytest.raises(ModelError, match=f"{checkpoint} could not be loaded as a causal language model: .*header"):
            load_model(str(checkpoint))

    def test_weights_that_do_not_fit_the_config_are_an_error(self, checkpoint):
        config = json.loads((checkpoint / "config.json").read_text())
        (checkpoint / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
        with pytest.raises(
            ModelError, match=f"{checkpoint}: the weights do not match the config: .*c_attn.bias has shape"
        ):
            load_model(str(checkpoint))

    def test_weights_that_are_missing_are_an_error_instead_of_random_numbers(self, tmp_path):
        # A base model without an output head: transformers would start one at random and go on.
        save_tiny("llama", tmp_path)
        tiny_model("llama").model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
        with pytest.raises(ModelError, match=r"1 weights of LlamaForCausalLM are missing \(lm_head.weight\)"):
            load_model(str(tmp_path))

    def test_a_tied_output_head_is_not_missing(self, tmp_path):
        save_tiny("llama", tmp_path, tie_word_embeddings=True)
        assert load_model(str(tmp_path)).model.config.tie_word_embeddings

    def test_a_folder_without_weights_or_tokenizer_is_an_error(self, checkpoint):
        (checkpoint / "tokenizer.json").rename(checkpoint / "away")
        with pytest.raises(ModelError, match=r"could not be loaded .*: Couldn't instantiate the backend tokenizer"):
            load_model(str(checkpoint))
        (checkpoint / "away").rename(checkpoint / "tokenizer.json")
        (checkpoint / "model.safetensors").unlink()
        with pytest.raises(ModelError, match=r"no file named model.safetensors"):
            load_model(str(checkpoint))

    def test_pickled_weights_are_refused(self, checkpoint):
        (checkpoint / "model.safetensors").unlink()
        torch.save(tiny_model("gpt2").state_dict(), checkpoint / "pytorch_model.bin")
        with pytest.raises(ModelError, match=f"{checkpoint} could not be loaded as a causal language model"):
            load_model(str(checkpoint))

    def test_a_model_without_an_output_head_is_an_error(self, checkpoint, monkeypatch):
        monkeypatch.setattr(transformers.GPT2LMHeadModel, "get_output_embeddings", lambda self: None)
        with pytest.raises(ModelError, match=r"\(GPT2LMHeadModel\) has no output head, so it cannot score answers"):
            load_model(str(checkpoint))

    def test_a_model_without_attention_is_an_error(self, tmp_path):
        save_tiny("gpt2", tmp_path)
        config = transformers.MambaConfig(vocab_size=384, hidden_size=32, state_size=4, num_hidden_layers=2)
        with torch.random.fork_rng(devices=[]):
            transformers.MambaForCausalLM(config).save_pretrained(tmp_path)
        with pytest.raises(ModelError, match="MambaForCausalLM: no softmax attention was seen"):
            load_model(str(tmp_path))


class TestGguf:
    def test_a_file_that_is_not_there_is_named(self, tmp_path):
        with pytest.raises(ModelError, match=f"no GGUF file at {tmp_path}/weights.gguf. Check the path."):
            load_model(f"{tmp_path}/weights.gguf")

    @pytest.mark.parametrize("content", [b"", b"rubbish" * 99, b"GGUF\3\0\0\0" + b"\0" * 16])
    def test_a_file_that_is_something_else_is_an_error(self, tmp_path, content):
        file = tmp_path / "weights.gguf"
        file.write_bytes(content)
        with pytest.raises(ModelError, match=f"{file} could not be loaded as a causal language model: "):
            load_model(str(file))


class TestNames:
    @pytest.fixture(autouse=True)
    def _offline(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    def test_an_unknown_name_without_network_names_the_nearest_and_the_remedy(self):
        with pytest.raises(HubError) as caught:
            load_model("smollm2-135")
        message = str(caught.value)
        assert message.startswith(
            "'smollm2-135' is neither a packaged model (smollm2-135m, gemma3-270m) nor a local folder, and the model "
            "hub could not be reached ("
        )
        assert "offline mode is enabled" in message
        remedy = "Give a checkpoint folder, or try again with a network connection."
        assert message.endswith(f"Did you mean smollm2-135m? {remedy}")

    def test_a_name_like_no_other_gets_no_hint(self):
        with pytest.raises(HubError, match="'qwerty/uiop' is neither a packaged model") as caught:
            load_model("qwerty/uiop")
        assert "Did you mean" not in str(caught.value)

    @pytest.mark.parametrize("name", ["what is this?", "org/--bad", "a" * 200])
    def test_a_name_that_the_hub_could_not_have_is_an_error(self, name):
        with pytest.raises(ModelError, match="unknown model '") as caught:
            load_model(name)
        assert name in str(caught.value)

    @pytest.mark.parametrize(
        ("error", "expected", "message"),
        [
            ("RepositoryNotFoundError", ModelError, "unknown model 'some/model'. Give a packaged name"),
            ("GatedRepoError", ModelError, "model 'some/model' is gated: accept its terms"),
        ],
    )
    def test_what_the_hub_says_is_passed_on(self, error, expected, message, monkeypatch):
        kind = getattr(huggingface_hub.errors, error)

        def refuse(self, name, timeout):
            raise kind.__new__(kind, "no")  # its __init__ wants a whole response

        monkeypatch.setattr(HfApi, "model_info", refuse)
        with pytest.raises(expected, match=message):
            load_model("some/model")


class TestSettings:
    def test_an_unknown_dtype_is_named_before_anything_is_loaded(self):
        with pytest.raises(
            ConfigError, match="unknown dtype 'float8': choose one of float32, bfloat16, float16, float64"
        ):
            load_model("nowhere/at/all", dtype="float8")

    @pytest.mark.parametrize("device", ["quantum", "cuda:99"])
    def test_a_device_that_is_not_there_is_named_before_anything_is_loaded(self, device):
        with pytest.raises(ConfigError, match=rf"device '{device}' cannot be used \(.+\); try --device cpu"):
            load_model("nowhere/at/all", device=device)

    def test_an_unknown_route_is_named(self, checkpoint):
        with pytest.raises(
            ModelError, match="unknown route 'fast': choose one of packed, packed-mask, repeated, naive"
        ):
            load_model(str(checkpoint), route="fast")


REVIEWS = (
    ("a warm, funny film that never loses its way", "positive"),
    ("tedious from the first minute to the last", "negative"),
    ("the cast is wonderful and the story moves along", "positive"),
    ("a muddle of half-finished ideas and bad jokes", "negative"),
    ("beautifully shot, and sad in all the right places", "positive"),
    ("I wanted my evening back before it was half over", "negative"),
    ("clever without being cold", "positive"),
    ("loud, long and quite without charm", "negative"),
    ("one of the most moving films of the year", "positive"),
    ("nothing in it is worth the price of a ticket", "negative"),
    ("an honest portrait, told with patience and wit", "positive"),
)


@pytest.mark.real
def test_the_packaged_model_reads_real_text_as_plain_forwards_do():
    actual, expected = {}, {}
    for dtype in ("float32", "float64"):
        lm = load_model("smollm2-135m", dtype=dtype)
        assert lm.route.name == "packed"
        assert lm.refused == ()
        prefix, queries = real_text(lm)
        # Double precision is slow, and three queries are enough to see ten digits.
        queries = queries if dtype == "float32" else queries[:3]
        actual[dtype] = lm.log_probabilities(lm.encode(prefix), queries)
        plain = transformers.AutoModelForCausalLM.from_pretrained(packaged_model("smollm2-135m"), dtype=lm.model.dtype)
        expected[dtype] = torch.stack([one_forward(plain.eval(), prefix, query) for query in queries])
    assert sum(p.numel() for p in lm.model.parameters()) == PACKAGED_MODELS["smollm2-135m"].parameters
    assert is_local("smollm2-135m")
    torch.testing.assert_close(actual["float64"], expected["float64"], rtol=1e-10, atol=0)
    # 30 layers make a few 1e-5 nats out of float32's roundings, for a plain forward as for ours (2e-6 of -0.2 is
    # beyond them). So a plain forward's own error is the yardstick: two that err no more than it are this near.
    own_error = float((expected["float32"][:3] - expected["float64"]).abs().max())
    assert own_error < 5e-5
    torch.testing.assert_close(actual["float32"], expected["float32"], rtol=0, atol=2 * own_error)
    torch.testing.assert_close(actual["float32"][:3], expected["float64"], rtol=0, atol=2 * own_error)


def one_forward(model, prefix, query):
    """Scores of an answer of one token and one of two, `(answer,)`: both can be read off the longer sequence."""
    (token,), (first, second) = query.answers
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*prefix, *query.prompt, first]]), use_cache=False).logits[0, -2:]
    label, after = torch.log_softmax(logits, dim=-1)
    return torch.stack([label[token], (label[first] + after[second]) / 2]).double()


def real_text(lm):
    """Eleven demonstrations and eight queries with answers of one and two tokens."""

    def ids(text):
        return tuple(lm.tokenizer(text, add_special_tokens=False)["input_ids"])

    prefix = (lm.bos, *ids("".join(f"Review: {text}\nSentiment: {word}\n\n" for text, word in REVIEWS)))
    assert 150 < len(prefix) < 300
    texts = ["so dull", "a joy", "good in parts", "it fails", "see it", "not for me at all, I fear", "fine", "awful"]
    queries = [Query(ids(f"Review: {text}\nSentiment:"), (ids(" positive"), ids(" not good"))) for text in texts]
    assert [len(answer) for answer in queries[0].answers] == [1, 2]
    return prefix, queries


@pytest.mark.real
def test_a_cache_below_a_file_cannot_be_written_and_says_what_to_set(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(
        StorageError, match=r"cannot write .*/file/cache: a part of the path is a file. Set DUALFORM_CACHE"
    ):
        load_model("smollm2-135m")


@pytest.mark.parametrize("address", ["https://example.org/owner/name", "s3://bucket/model"])
def test_an_address_is_no_model(address):
    with pytest.raises(ModelError, match=f"^{address} is a URL.*Give a hub id"):
        load_model(address)
