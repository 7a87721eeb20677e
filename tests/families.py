"""Every causal language model type of the installed transformers, as a tiny random model built from its config.

Sizes are reduced by the names of fields, whatever the family; `HINTS` holds what some configs need beyond that.
"""

import copy
from collections.abc import Mapping
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from tests.tiny import VOCABULARY, randomise_

TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
"""All model types that `AutoModelForCausalLM` knows."""

LAYERS = 2

# Field of a config -> small value. Applied where a config, or a part of it, has the field.
_SMALL: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "n_embed": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "expert_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "shared_intermediate_size": 32,
    "dense_intermediate_size": 64,
    "ffn_hidden_size": 64,
    "intermediate_size_mlp": 64,
    "d_ff": 64,
    "dim_ff": 64,
    "ffn_dim": 64,
    "n_inner": None,
    "dff": 64,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "n_layer": LAYERS,
    "n_layers": LAYERS,
    "encoder_layers": 1,
    "decoder_layers": LAYERS,
    "num_encoder_layers": 1,
    "num_decoder_layers": LAYERS,
    "num_nextn_predict_layers": 0,
    "mtp_num_hidden_layers": 0,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_kv_heads": 2,
    "swa_num_key_value_heads": 2,
    "swa_num_attention_heads": 4,
    "swa_head_dim": 8,
    "swa_v_head_dim": 8,
    "num_global_key_value_heads": 2,
    "head_dim": 8,
    "v_head_dim": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "qk_head_dim": 12,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "o_lora_rank": 16,
    "kv_channels": 8,
    "attention_head_size": 8,
    "dim_head": 8,
    "global_head_dim": 16,
    "num_query_groups": 4,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "attention_hidden_size": 32,
    "rotary_dim": 4,
    "max_position_embeddings": 512,
    "n_positions": 512,
    "n_ctx": 512,
    "max_seq_len": 512,
    "max_target_positions": 512,
    "max_source_positions": 64,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "top_k_experts": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "zero_expert_num": 2,
    "attention_window_size": 512,
    "lru_width": 32,
    "mamba_d_state": 8,
    "mamba_d_conv": 4,
    "mamba_expand": 2,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "mamba_d_ssm": 64,
    "mamba_chunk_size": 16,
    "mamba_ngroups": 1,
    "n_mamba_heads": 2,
    "mamba_headdim": 16,
    "mamba_n_groups": 1,
    "mamba_dt_rank": 4,
    "n_groups": 1,
    "ssm_state_size": 8,
    "state_size": 8,
    "chunk_size": 16,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "hidden_size_per_layer_input": 8,
    "index_n_heads": 2,
    "index_head_dim": 8,
    "index_topk": 512,
    "adapter_rank": 8,
    "max_window_layers": 1,
    "laurel_rank": 8,
    "block_size": 128,
}


_INDEXED: Mapping[str, Any] = {
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 8,
    "indexer_budget": 512,
    "indexer_compress_ratio": 4,
}

HINTS: Mapping[str, Mapping[str, Any]] = {
    "bamba": {"attn_layer_indices": [1], "layers_block_type": None, "layer_types": None},
    "bert": {"is_decoder": True},
    "bert-generation": {"is_decoder": True},
    "big_bird": {"is_decoder": True, "attention_type": "original_full"},
    "camembert": {"is_decoder": True},
    "data2vec-text": {"is_decoder": True},
    "electra": {"is_decoder": True},
    "ernie": {"is_decoder": True},
    "megatron-bert": {"is_decoder": True},
    "rembert": {"is_decoder": True},
    "roberta": {"is_decoder": True},
    "roberta-prelayernorm": {"is_decoder": True},
    "roformer": {"is_decoder": True},
    "xlm-roberta": {"is_decoder": True},
    "xlm-roberta-xl": {"is_decoder": True},
    "prophetnet": {"is_decoder": True},
    "roc_bert": {
        "is_decoder": True,
        "pronunciation_embed_dim": 8,
        "pronunciation_vocab_size": 32,
        "shape_embed_dim": 8,
        "shape_vocab_size": 32,
    },
    "reformer": {
        "is_decoder": True,
        "axial_pos_shape": [16, 32],
        "axial_pos_embds_dim": [8, 24],
        "feed_forward_size": 64,
        "attn_layers": ["local", "lsh"],
        "num_buckets": 8,
    },
    "xmod": {"is_decoder": True, "default_language": "en_XX"},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni", "d_head": 8, "d_inner": 64},
    "xlstm": {"embedding_dim": 32, "num_blocks": LAYERS, "num_heads": 2},
    "blt": {
        "encoder_hash_byte_group_vocab": 64,
        "encoder_hash_byte_group_size": [3, 4],
        "encoder_config": {"vocab_size": 260, "cross_attn_k": 2, "hidden_size_global": 64},
        "decoder_config": {"vocab_size": 260, "cross_attn_k": 2, "hidden_size_global": 64},
        "patcher_config": {"vocab_size": 260},
        "global_config": {"hidden_size": 64, "intermediate_size": 64, "head_dim": 16},
        "vocab_size": 260,
    },
    "bailing_hybrid": {"num_expert_group": 1, "n_group": 1},
    "dots3_note_text": {"per_layer_config": {"01": {"head_dim": 12, "num_key_value_heads": 4}}},
    "gemma4_text": {"per_layer_config": {"01": {"head_dim": 16}}},
    "gemma4_unified_text": {"per_layer_config": {"01": {"head_dim": 16}}},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "num_kv_shared_layers": 2,
        "intermediate_size": [64] * 4,
        "activation_sparsity_pattern": [0.0] * 4,
    },
    "cohere_compass_text": {"rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "dory": {
        "num_hidden_layers": 8,
        "n_input_layers": 2,
        "n_recurrent_layers": 4,
        "n_output_layers": 2,
        "layer_types": ["full_attention", "mlp"] * 4,
    },
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": ["global", "local"]},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"], "layers_block_type": ["mamba", "attention"]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "layers_block_type": None, "layer_types": None},
    "recurrent_gemma": {"num_hidden_layers": 3},
    "inkling2_loop_text": {"unpadded_vocab_size": VOCABULARY, "rel_extent": 64},
    "inkling2_text": {"unpadded_vocab_size": VOCABULARY, "rel_extent": 64},
    "inkling_text": {"unpadded_vocab_size": VOCABULARY},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "mamba2": {"head_dim": 16},
    "qwen4_exp": {"text_config": {"hc_lowrank": 8, "ple_embed_dim": 32, "ngram_vocab_size_base": 64, **_INDEXED}},
    "qwen4_exp_text": {"hc_lowrank": 8, "ple_embed_dim": 32, "ngram_vocab_size_base": 64, **_INDEXED},
    "zamba": {
        "num_hidden_layers": 6,
        "layers_block_type": [*["linear_attention", "linear_attention", "hybrid"] * 2],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "hybrid_layer_ids": [1, 3],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "num_query_groups": 4,
        "n_mamba_heads": 4,
        "use_mamba_kernels": False,
    },
    "zaya": {"num_experts_per_tok": 1, "router_hidden_size": 16},
}
"""Model type -> fields that its config needs beyond the sizes; a dict is merged into the part of that name, and
None leaves a field to its default."""


def tiny_config(model_type: str, hints: Mapping[str, Any] | None = None) -> transformers.PreTrainedConfig:
    """The config of a model type with all sizes reduced."""
    config_class = CONFIG_MAPPING[model_type]
    given = _reduced(config_class().to_dict())
    for name, value in (HINTS.get(model_type, {}) if hints is None else hints).items():
        if value is None:
            given.pop(name, None)
        elif isinstance(value, Mapping) and isinstance(given.get(name), dict):
            given[name] = {**given[name], **value}
        else:
            given[name] = copy.deepcopy(value)
    given.pop("transformers_version", None)
    return config_class.from_dict(given)


def _reduced(config: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    depths = {
        config[name] for name in ("num_hidden_layers", "n_layer", "num_layers") if isinstance(config.get(name), int)
    }
    for name, value in config.items():
        if isinstance(value, dict) and (name.endswith("_config") or name in ("decoder", "encoder")):
            small[name] = _layers_only(value) if name == "per_layer_config" else _reduced(value)
        elif isinstance(value, list) and len(value) in depths and len(value) > LAYERS:
            # One entry for each layer.
            small[name] = _sampled([_SMALL["num_attention_heads"] if "heads" in name else each for each in value])
        elif name in _SMALL and value is not None and not isinstance(value, list | dict):
            small[name] = _SMALL[name]
        elif "drop" in name and isinstance(value, float):
            small[name] = 0.0
        elif name.endswith("_token_id") and isinstance(value, int):
            small[name] = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 1}.get(name, 2)
        elif name.endswith("_token_id") and isinstance(value, list):
            small[name] = 1
        else:
            small[name] = value
    heads = config.get("num_attention_heads")
    if "num_key_value_heads" in small and heads is not None and config["num_key_value_heads"] in (heads, None):
        small["num_key_value_heads"] = small["num_attention_heads"]
    if "head_dim" in small and config["head_dim"] == config.get("qk_rope_head_dim", 0):
        small["head_dim"] = small["qk_rope_head_dim"]
    for name, value in _UNSET.items():
        if name in small and small[name] is None:
            small[name] = value
    return small


_UNSET = {
    # Some classes need what their configs leave open.
    "head_dim": 8,
    "num_experts_per_tok": 2,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "shared_expert_intermediate_size": 32,
    "moe_intermediate_size": 32,
}


def _layers_only(given: dict[str, Any]) -> dict[str, Any]:
    """Settings of single layers: those of the first such layer, for the last that is left."""
    first = next(iter(given.values()), None)
    return {} if first is None else {f"{LAYERS - 1:02d}": _reduced(first)}


def _sampled(kinds: list[Any]) -> list[Any]:
    """As many kinds as there is room for."""
    different = [kind for place, kind in enumerate(kinds) if kind not in kinds[:place]]
    return (different + [kinds[-1]] * LAYERS)[:LAYERS]


def tiny_family(model_type: str, seed: int = 0, **hints: Any) -> transformers.PreTrainedModel:
    """A random model of a type, in evaluation mode, in the attention implementation of the family's own choice."""
    config = tiny_config(model_type, hints or None)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = transformers.AutoModelForCausalLM.from_config(config)
    randomise_(model, seed)
    return model.float().eval()


# Every id of the tokenizer's special tokens is among them, the pad id in the middle of a prompt too.
PREFIX = (0, 17, 301, 1, 45, 208, 9)
QUERIES = (
    Query((61, 1, 350, 12), ((88,), (23, 140), (7, 1, 19))),
    Query((5, 91, 260, 33, 2), ((44, 3), (170,))),
)


@torch.no_grad()
def answers_off(lm: LanguageModel, plain: transformers.PreTrainedModel) -> float:
    """Largest deviation of an answer's mean log-probability, nats."""
    table = lm.log_probabilities(lm.encode(PREFIX), QUERIES)
    worst = 0.0
    for found, query in zip(table, QUERIES, strict=True):
        for value, answer in zip(found, query.answers, strict=False):
            logits = plain(input_ids=torch.tensor([[*PREFIX, *query.prompt, *answer]]), use_cache=False).logits[0]
            at = range(len(PREFIX) + len(query.prompt) - 1, logits.shape[0] - 1)
            said = torch.log_softmax(logits.double(), -1)[list(at), list(answer)].mean()
            worst = max(worst, abs(float(said - value)))
    return worst


@torch.no_grad()
def heads_off(lm: LanguageModel, plain: transformers.PreTrainedModel) -> float | None:
    """Largest relative deviation of what W_O receives at the probe; None where no W_O is known."""
    known = [(i, layer.W_O) for i, layer in enumerate(lm.anatomy.layers) if layer.W_O is not None]
    if not known or len(known) < len(lm.anatomy.layers):
        return None
    readings = lm.read_group(lm.encode(PREFIX), QUERIES, [0, 1], Recording(head_output=True, output=True))
    trace: Any = readings.trace
    worst = 0.0
    for row, query in enumerate(QUERIES):
        kept = at_linears(plain, [name for _, name in known], [*PREFIX, *query.prompt])
        for layer, name in known:
            read, gave = kept[name][lm.anatomy.layers[layer].output_use]
            for recorded, seen in ((trace.head_output, read), (trace.output, gave)):
                if recorded is None:
                    continue
                expected = seen.reshape(-1, seen.shape[-1])[-1].double()
                value = recorded[row][layer].double()
                if recorded is trace.head_output:
                    value = value[: lm.anatomy.layers[layer].n_heads, : lm.anatomy.layers[layer].head_width]
                value = value.flatten()[: len(expected)]
                worst = max(worst, float((value - expected).abs().max() / expected.abs().max()))
    return worst


def at_linears(
    plain: transformers.PreTrainedModel, names: list[str], ids: list[int]
) -> dict[str, list[tuple[Tensor, Tensor]]]:
    """What some linears of the untouched model read and gave, use by use."""
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in names}
    handles = []
    for name, uses in kept.items():

        def keep(module: Any, args: Any, out: Any, uses: list[tuple[Tensor, Tensor]] = uses) -> None:
            uses.append((args[0], out))

        handles.append(plain.get_submodule(name).register_forward_hook(keep))
    plain(input_ids=torch.tensor([ids]), use_cache=False)
    for handle in handles:
        handle.remove()
    return kept
