"""A tiny mixture of experts, which `tests.tiny` does not have: its experts lie in parameters of three axes."""

from pathlib import Path

import torch
from transformers import MixtralConfig, MixtralForCausalLM

from tests.tiny import tiny_tokenizer

LAYERS, EXPERTS, SENT, WIDTH, INNER = 2, 8, 2, 32, 48


def tiny_mixture(experts: int = EXPERTS) -> MixtralForCausalLM:
    """Mixtral with random weights, each token sent to two experts."""
    config = MixtralConfig(
        vocab_size=len(tiny_tokenizer()),
        hidden_size=WIDTH,
        intermediate_size=INNER,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_local_experts=experts,
        num_experts_per_tok=SENT,
        max_position_embeddings=512,
        bos_token_id=0,
        eos_token_id=1,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return MixtralForCausalLM(config).eval()


def save_mixture(folder: Path) -> Path:
    """The model and a tokenizer as a checkpoint."""
    tiny_mixture().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder
