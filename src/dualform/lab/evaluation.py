"""Loss of a trained model on text, read in windows of any length."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from transformers import PreTrainedModel

from dualform.lab.corpus import Corpus
from dualform.lab.windows import gather_windows, spread_windows

TOKENS_AT_ONCE = 1 << 13
"""Largest number of tokens in a forward pass, which bounds the memory of logits for large vocabularies."""


@torch.no_grad()
def corpus_loss(model: PreTrainedModel, corpus: Corpus, length: int, most_tokens: int) -> float:
    """Mean loss on evenly spaced windows of a corpus, nats a token; the exponential is the perplexity.

    The windows are the same for every model, and each is read without the text before it.

    Args:
        model: Model in evaluation mode.
        corpus: Corpus in the model's tokens.
        length: Number of tokens in a window.
        most_tokens: Largest number of tokens in all windows together; there is always at least one window.

    Raises:
        ConfigError: If the corpus is shorter than a window.
    """
    starts = spread_windows(corpus.count, length, max(1, most_tokens // length))
    nats = []
    pieces = min(len(starts), math.ceil(len(starts) * length / TOKENS_AT_ONCE))
    for piece in np.array_split(starts, pieces):
        windows = gather_windows(corpus.ids, piece, length).to(model.device)
        logits = model(input_ids=windows[:, :-1], use_cache=False).logits.flatten(0, 1)
        logits = logits.float() if logits.dtype.itemsize < 4 else logits
        nats.append(float(F.cross_entropy(logits, windows[:, 1:].flatten(), reduction="sum")))
    return math.fsum(nats) / (len(starts) * length)
