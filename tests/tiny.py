"""Tiny models of many families, and a tiny tokenizer, built in code: no network, milliseconds each.

All weights are random and large, so that attention is far from uniform and the context decides the output; all
biases and norms are random too, so that a forgotten one shows.
"""

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tokenizers
import torch
import transformers

VOCABULARY = 384
POSITIONS = 512
D_MODEL = 32
HEADS = 4
LAYERS = 2
BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
WINDOW = 16  # of the layers that look back only so far; shorter than any prompt of a test with demonstrations

# With normalised inputs of 32 numbers, scores spread by about 2: some keys get most of the attention.
_SCALE = 0.25

# Qwen3 and Gemma 3 have heads of their own size, not d_model / n_heads: code that divides instead of looking is
# wrong there. Gemma 3 also scales its scores by something else than the size of a head.
_FAMILIES: Mapping[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2", {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS}),
    "gpt_neox": (
        "GPTNeoX",
        {
            "hidden_size": D_MODEL,
            "num_hidden_layers": LAYERS,
            "num_attention_heads": HEADS,
            "intermediate_size": 2 * D_MODEL,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "llama": ("Llama", {"num_key_value_heads": 2}),
    "qwen3": ("Qwen3", {"num_key_value_heads": 2, "head_dim": 16}),
    "gemma3": (
        "Gemma3",
        {
            "num_key_value_heads": 2,
            "head_dim": 16,
            "query_pre_attn_scalar": 24,
            "num_hidden_layers": 3,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        },
    ),
    "phi3": ("Phi3", {"num_key_value_heads": 2, "original_max_position_embeddings": POSITIONS}),
    "opt": ("OPT", {"ffn_dim": 2 * D_MODEL}),
    "mistral": ("Mistral", {"num_key_value_heads": 2, "sliding_window": None}),
    "olmo2": ("Olmo2", {"num_key_value_heads": 2}),
    "xglm": (
        "XGLM",
        {
            "d_model": D_MODEL,
            "ffn_dim": 2 * D_MODEL,
            "num_layers": LAYERS,
            "attention_heads": HEADS,
            "max_position_embeddings": POSITIONS,
            "decoder_start_token_id": EOS_ID,
        },
    ),
    "bloom": ("Bloom", {"hidden_size": D_MODEL, "n_layer": LAYERS, "n_head": HEADS}),
    "gptj": (
        "GPTJ",
        {"n_embd": D_MODEL, "n_layer": LAYERS, "n_head": HEADS, "n_positions": POSITIONS, "rotary_dim": 4},
    ),
    "falcon": ("Falcon", {"alibi": False, "new_decoder_architecture": False, "multi_query": True}),
    "falcon-alibi": (
        "Falcon",
        {
            "alibi": True,
            "new_decoder_architecture": False,
            "multi_query": False,
            "parallel_attn": False,
            "bias": True,
        },
    ),
    "gpt_neo": (
        "GPTNeo",
        {
            "hidden_size": D_MODEL,
            "num_layers": LAYERS,
            "num_heads": HEADS,
            "attention_types": [[["global", "local"], 1]],
            "window_size": WINDOW,
            "intermediate_size": 2 * D_MODEL,
            "max_position_embeddings": POSITIONS,
        },
    ),
    "mpt": (
        "Mpt",
        {"d_model": D_MODEL, "n_layers": LAYERS, "n_heads": HEADS, "expansion_ratio": 2, "max_seq_len": POSITIONS},
    ),
    "codegen": (
        "CodeGen",
        {
            "n_embd": D_MODEL,
            "n_layer": LAYERS,
            "n_head": HEADS,
            "n_positions": POSITIONS,
            "n_ctx": POSITIONS,
            "rotary_dim": 4,
        },
    ),
}

FAMILIES = tuple(_FAMILIES)

# Applied where the family's config has the field and the table above does not set it.
_COMMON: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": D_MODEL,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * D_MODEL,
    "max_position_embeddings": POSITIONS,
    "bos_token_id": BOS_ID,
    "eos_token_id": EOS_ID,
    "pad_token_id": EOS_ID,
}

# A misspelt config field is ignored in silence and leaves a default behind; the count of parameters shows it.
PARAMETERS: Mapping[str, int] = {
    "gpt2": 54144,
    "gpt_neox": 41728,
    "llama": 43168,
    "qwen3": 49376,
    "gemma3": 49664,
    "phi3": 43168,
    "opt": 45888,
    "mistral": 43168,
    "olmo2": 43264,
    "xglm": 29440,
    "bloom": 37824,
    "gptj": 50048,
    "falcon": 33984,
    "falcon-alibi": 37760,
    "gpt_neo": 45632,
    "mpt": 37024,
    "codegen": 50048,
}


def tiny_model(
    family: str,
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    attn_implementation: str | None = None,
    **overrides: Any,
) -> transformers.PreTrainedModel:
    """A random model of `family` with 2 or 3 layers, in evaluation mode and without dropout.

    Equal arguments give equal weights, and the global random state is left as it was.

    Args:
        family: One of `FAMILIES`.
        seed: Decides the weights.
        dtype: Of the weights; every dtype starts from the same float32 numbers. (transformers' xglm cannot run in
            float64: it overflows when it masks.)
        attn_implementation: Such as `"eager"`; None is the family's own choice. The families outside the attention
            registry (falcon among them) take it here only, not by `set_attn_implementation`.
        **overrides: Fields of the family's config, such as `sliding_window=16` for mistral.
    """
    prefix, settings = _FAMILIES[family]
    config_class, model_class = _classes(prefix)
    fields = inspect.signature(config_class.__init__).parameters
    common = {name: value for name, value in _COMMON.items() if name in fields}
    no_dropout = {name: 0.0 for name in fields if "drop" in name}
    chosen = {**common, **no_dropout, **settings, **overrides}
    unknown = sorted(set(chosen) - set(fields))
    assert not unknown, f"{config_class.__name__} has no field {', '.join(unknown)}"

    with torch.random.fork_rng(devices=[]):
        model = model_class._from_config(config_class(**chosen), attn_implementation=attn_implementation)
    randomise_(model, seed)
    if not overrides:
        count = sum(parameter.numel() for parameter in model.parameters())
        assert count == PARAMETERS[family], f"{family} has {count} parameters, expected {PARAMETERS[family]}"
    return model.to(dtype).eval()


@torch.no_grad()
def randomise_(model: torch.nn.Module, seed: int) -> None:
    """Give every matrix new random entries, and move every bias and norm away from where it starts."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        noise = _SCALE * torch.randn(parameter.shape, generator=generator)
        if parameter.ndim >= 2:
            parameter.copy_(noise)
        else:
            parameter.add_(noise)


def tiny_tokenizer() -> transformers.PreTrainedTokenizerFast:
    """A byte-level BPE of 384 tokens that adds no special tokens of its own accord.

    ` positive` and ` negative` are one token each, ` lukewarm` is several. Padding is `</s>`.
    """
    backend = tokenizers.Tokenizer(tokenizers.models.BPE())
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[BOS, EOS],
        initial_alphabet=sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(_SENTENCES, trainer)
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, eos_token=EOS, pad_token=EOS, model_max_length=POSITIONS
    )


def save_tiny(family: str, folder: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write the model and the tokenizer to `folder`, as a user's own checkpoint would lie there."""
    tiny_model(family, seed=seed, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def _classes(prefix: str) -> tuple[Any, Any]:
    config = {"Gemma3": "Gemma3TextConfig"}.get(prefix, f"{prefix}Config")
    head = "LMHeadModel" if prefix == "GPT2" else "ForCausalLM"
    return getattr(transformers, config), getattr(transformers, prefix + head)


# The label words come often, so that they become single tokens; the rest gives the BPE something to merge.
_SENTENCES = (
    "Review: a warm and funny film Sentiment: positive",
    "Review: a cold and tedious film Sentiment: negative",
    "Review: the acting is fine and the story is good Sentiment: positive",
    "Review: the acting is poor and the story is bad Sentiment: negative",
    "Input: nothing here works, neither the plot nor the players Type: negative",
    "Input: everything works here, the plot and the players alike Type: positive",
    "Sentence: a dull and lifeless story, told without charm or wit Label: negative",
    "Sentence: a lively and charming story, told with wit and grace Label: positive",
    "Sentence: one of the best films of the year Label: positive",
    "Sentence: one of the worst films of the year Label: negative",
    "positive negative positive negative positive negative",
    " positive negative positive negative positive negative",
)
