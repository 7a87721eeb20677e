"""How well a trained model predicts text, at whatever length it is read."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from dualform.lab.corpus import Corpus
from dualform.lab.windows import gathered, spread_windows

TOKENS_AT_ONCE = 1 << 13
"""Bounds the memory: of a large vocabulary, so many rows of logits are gigabytes."""


@torch.no_grad()
def corpus_loss(model: PreTrainedModel, corpus: Corpus, length: int, most_tokens: int) -> float:
    """Mean loss of a corpus read in windows of one length, the same windows for every model.

    Each window is read by itself, so that shorter windows show the model less of what came before.

    Args:
        model: In evaluation mode.
        corpus: Of the model's tokenizer.
        length: Tokens of a window.
        most_tokens: Windows are spread evenly over the corpus, as many as hold so many tokens, and one at least.

    Returns:
        Nats a token; its exponential is the perplexity.

    Raises:
        ConfigError: The corpus is shorter than a window.
    """
    starts = spread_windows(corpus.count, length, max(1, most_tokens // length))
    nats = []
    pieces = min(len(starts), math.ceil(len(starts) * length / TOKENS_AT_ONCE))
    for piece in np.array_split(starts, pieces):
        windows = gathered(corpus.ids, piece, length).to(model.device)
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        nats.append(float(F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")))
    return math.fsum(nats) / (len(starts) * length)
