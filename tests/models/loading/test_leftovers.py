"""Weights in a file that the model does not use: an error if they change its results, a note otherwise."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from dualform.errors import ModelError
from dualform.models.export.checkpoint import write_checkpoint
from dualform.models.loading.load import load_model
from dualform.models.structure.untrained import untrained
from tests.tiny import save_tiny, tiny_model, tiny_tokenizer

IDS = torch.arange(3, 40)[None]


def with_config(folder: Path, **changes: Any) -> Path:
    """The checkpoint with another config."""
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return folder


def with_more(folder: Path, **tensors: torch.Tensor) -> Path:
    """The checkpoint with more tensors, named with `/` for `.`."""
    weights = load_file(folder / "model.safetensors")
    more = {name.replace("__", "."): tensor for name, tensor in tensors.items()}
    save_file(weights | more, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


LAYERS: dict[str, str] = {"llama": "num_hidden_layers", "gpt2": "n_layer", "gpt_neox": "num_hidden_layers"}


@pytest.mark.parametrize("family", LAYERS)
def test_layers_beyond_the_config_are_an_error_that_names_the_field(family: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path, **{LAYERS[family]: 3})
    with pytest.raises(
        ModelError, match=rf"have 3 layers in .*, but its config says {LAYERS[family]}: 2, so .* ignored"
    ):
        load_model(str(with_config(folder, **{LAYERS[family]: 2})))


@pytest.mark.parametrize(
    ("family", "switch"), [("llama", "attention_bias"), ("llama", "mlp_bias"), ("gpt_neox", "attention_bias")]
)
def test_biases_that_a_switch_turns_off_are_refused_with_the_switch(family: str, switch: str, tmp_path: Path) -> None:
    folder = save_tiny(family, tmp_path, **{switch: True})
    assert load_model(str(folder)).notes == ()
    with pytest.raises(
        ModelError, match=rf"has no place for \d+ biases in the file .* have to be true in its config: .*{switch}"
    ):
        load_model(str(with_config(folder, **{switch: False})))


@pytest.mark.parametrize(
    "name",
    ["model__layers__0__self_attn__q_norm__weight", "model__norm__bias", "lm_head__bias",
     "model__layers__1__mlp__experts__0__up_proj__weight", "model__layers__0__self_attn__q_proj__weight_scale",
     "model__layers__0__self_attn__q_proj__lora_A__weight", "model__embed_tokens__scale"],
)  # fmt: skip
def test_other_weights_of_what_is_computed_with_are_refused(name: str, tmp_path: Path) -> None:
    folder = with_more(save_tiny("llama", tmp_path), **{name: torch.ones(8)})
    with pytest.raises(ModelError, match=name.replace("__", r"\.")):
        load_model(str(folder))


@pytest.mark.parametrize(
    "name",
    ["mtp__layers__0__weight", "model__mtp__fc__weight", "vision_tower__embed__weight", "v_head__summary__weight",
     "score__weight", "model__layers__0__self_attn__k_scale", "some__thing__else"],
)  # fmt: skip
def test_heads_for_other_purposes_are_noted(name: str, tmp_path: Path) -> None:
    folder = with_more(save_tiny("llama", tmp_path), **{name: torch.ones(8)})
    (note,) = load_model(str(folder)).notes
    assert "1 weight in the file" in note
    assert name.replace("__", ".") in note


def test_a_layer_that_predicts_further_tokens_is_noted(tmp_path: Path) -> None:
    layer = {
        "model__layers__2__eh_proj__weight": torch.ones(32, 64),
        "model__layers__2__mlp__up_proj__weight": torch.ones(8),
    }
    (note,) = load_model(str(with_more(save_tiny("llama", tmp_path), **layer))).notes
    assert "2 weights in the file" in note


def test_buffers_of_older_versions_are_passed_over(tmp_path: Path) -> None:
    more = {
        "model__layers__0__self_attn__rotary_emb__inv_freq": torch.ones(4),
        "model__rotary_emb__inv_freq": torch.ones(4),
        "model__position_ids": torch.arange(9),
    }
    assert load_model(str(with_more(save_tiny("llama", tmp_path), **more))).notes == ()
    weights = {"model__embed_positions__weights": torch.ones(8, 32), "model__decoder__version": torch.ones(1)}
    assert load_model(str(with_more(save_tiny("xglm", tmp_path / "xglm"), **weights))).notes == ()
    masks = {f"transformer__h__{i}__attn__bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    assert load_model(str(with_more(save_tiny("gptj", tmp_path / "gptj"), **masks))).notes == ()
    masks = {f"transformer__h__{i}__attn__bias": torch.ones(1, 1, 8, 8) for i in range(2)}
    assert load_model(str(with_more(save_tiny("gpt2", tmp_path / "gpt2"), **masks))).notes == ()


class TestHeads:
    """The config says that the output head is the embedding, and the file has another head."""

    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        return with_config(save_tiny("llama", tmp_path / "model"), tie_word_embeddings=True)

    def test_the_head_in_the_file_is_used_and_noted(self, folder: Path) -> None:
        lm = load_model(str(folder))
        (note,) = lm.notes
        assert "tie_word_embeddings" in note
        with torch.no_grad():
            expected = tiny_model("llama")(input_ids=IDS).logits
            torch.testing.assert_close(lm.model(input_ids=IDS).logits, expected)

    def test_what_is_written_has_both(self, folder: Path, tmp_path: Path) -> None:
        lm = load_model(str(folder))
        written = write_checkpoint(lm, [], tmp_path / "written", "a card")
        with torch.no_grad():
            again = transformers.AutoModelForCausalLM.from_pretrained(written)(input_ids=IDS).logits
            torch.testing.assert_close(again, lm.model(input_ids=IDS).logits, rtol=0, atol=0)
        assert load_model(str(written)).notes == ()

    def test_an_untrained_model_has_both(self, folder: Path) -> None:
        drawn = untrained(load_model(str(folder)), seed=1).model
        assert drawn.get_output_embeddings().weight is not drawn.get_input_embeddings().weight

    def test_equal_ones_stay_tied(self, tmp_path: Path) -> None:
        folder = save_tiny("llama", tmp_path, tie_word_embeddings=True)
        lm = load_model(str(folder))
        assert lm.notes == ()
        weights = load_file(folder / "model.safetensors")
        with_more(folder, lm_head__weight=weights["model.embed_tokens.weight"].clone())
        lm = load_model(str(folder))
        assert lm.notes == ()
        assert lm.model.get_output_embeddings().weight is lm.model.get_input_embeddings().weight


# GGUF, written by the gguf library.

Change = Callable[[gguf.GGUFWriter], object]


def save_gguf(path: Path, *changes: Change, layers: int = 2) -> Path:
    """A llama without a head of its own; its weights are random."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(2)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    vocabulary = tiny_tokenizer().get_vocab()
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(vocabulary, key=vocabulary.__getitem__))
    writer.add_token_merges(["Ġ p", "o s"])
    writer.add_token_types([1] * len(vocabulary))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    generator = np.random.default_rng(0)

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(name, generator.normal(size=shape, scale=0.25).astype(np.float32))

    add("token_embd.weight", len(vocabulary), 32)
    add("output_norm.weight", 32)
    for layer in range(layers):
        for name, *shape in (
            *(("attn_norm", 32), ("ffn_norm", 32), ("attn_q", 32, 32), ("attn_k", 16, 32), ("attn_v", 16, 32)),
            *(("attn_output", 32, 32), ("ffn_gate", 64, 32), ("ffn_up", 64, 32), ("ffn_down", 32, 64)),
        ):
            add(f"blk.{layer}.{name}.weight", *shape)
    for change in changes:
        change(writer)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def tensor(name: str, *shape: int, value: float = 0.5) -> Change:
    return lambda writer: writer.add_tensor(name, np.full(shape, value, dtype=np.float32))


def test_a_whole_gguf_file_loads_without_notes(tmp_path: Path) -> None:
    lm = load_model(str(save_gguf(tmp_path / "model.gguf")))
    assert lm.notes == ()
    assert lm.anatomy.layers[0].n_kv_heads == 2


def test_the_head_of_a_gguf_file_is_no_leftover(tmp_path: Path) -> None:
    lm = load_model(str(save_gguf(tmp_path / "model.gguf", tensor("output.weight", 384, 32))))
    assert lm.notes == ()
    assert float(lm.model.get_output_embeddings().weight.detach()[0, 0]) == 0.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (tensor("rope_freqs.weight", 4, value=8.0), "scales rotary positions .*rope_freqs.* every answer"),
        (
            tensor("blk.0.attn_q.bias", 32),
            r"has no place for 1 biases in the file .*blk\.0\.attn_q\.bias.*attention_bias",
        ),
        (tensor("blk.1.attn_q_norm.weight", 8), r"blk\.1\.attn_q_norm\.weight"),
        (tensor("output_norm.bias", 32), r"output_norm\.bias"),
        (tensor("position_embd.weight", 512, 32), r"position_embd\.weight"),
        (
            lambda writer: [
                writer.add_rope_scaling_type(gguf.RopeScalingType.YARN),
                writer.add_rope_scaling_factor(4.0),
            ],
            r"scales rotary positions \(yarn, factor 4\)",
        ),
    ],
)
def test_a_gguf_file_that_loses_parts_in_its_conversion_is_refused(
    change: Change, message: str, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=message):
        load_model(str(save_gguf(tmp_path / "model.gguf", change)))


def test_layers_of_a_gguf_file_beyond_its_count_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"has no place for 9 weights in the file .*blk\.2\."):
        load_model(str(save_gguf(tmp_path / "model.gguf", layers=3)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (tensor("blk.1.nextn.eh_proj.weight", 32, 32), "blk.1.nextn.eh_proj.weight"),
        (lambda writer: writer.add_sliding_window(64), "attention.sliding_window = 64"),
    ],
)
def test_what_may_matter_in_a_gguf_file_is_noted(change: Change, words: str, tmp_path: Path) -> None:
    (note,) = load_model(str(save_gguf(tmp_path / "model.gguf", change))).notes
    assert words in note


def test_rotary_factors_of_one_are_none(tmp_path: Path) -> None:
    path = save_gguf(tmp_path / "model.gguf", tensor("rope_freqs.weight", 4, value=1.0))
    assert load_model(str(path)).notes == ()


def test_the_place_in_transformers_where_names_are_seen_is_still_there() -> None:
    # If this fails, `recorded_gguf_names` must look elsewhere.
    assert callable(importlib.import_module("transformers.modeling_gguf_pytorch_utils").get_gguf_hf_weights_map)
