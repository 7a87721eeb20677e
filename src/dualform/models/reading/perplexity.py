"""Loss and perplexity of a model on plain text."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.errors import ConfigError, NumericalError
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel


def text_losses(lm: LanguageModel, opening: Sequence[int], texts: Sequence[Sequence[int]]) -> Tensor:
    """Loss of each text; the first token of a text is predicted only if there is an opening token before it.

    Args:
        lm: The model, with any changes that are applied to it.
        opening: Tokens before each text; they are not predicted.
        texts: Token ids of each text; opening and text must not be longer than the context.

    Returns:
        `(text, 2)`, float64: negative log-likelihood in nats, and number of predicted tokens.

    Raises:
        NumericalError: A loss is NaN or infinite.
    """
    losses = []
    for text in texts:
        ids = torch.tensor([[*opening, *text]], device=lm.device)
        first = max(len(opening), 1)
        predictors = torch.arange(first - 1, ids.shape[1] - 1, device=lm.device)
        with torch.no_grad():
            logits, _ = forward_rows(lm.model, predictors, input_ids=ids, use_cache=False)
        loss = float(F.cross_entropy(logits.double(), ids[0, first:], reduction="sum"))
        if not math.isfinite(loss):
            raise NumericalError(
                f"{lm.name} in {lm.model.dtype}: the loss on plain text is {loss}. Use --dtype float32."
            )
        losses.append((loss, float(len(predictors))))
    return torch.tensor(losses, dtype=torch.float64).reshape(-1, 2)


def perplexity(losses: Tensor) -> float:
    """Exponential of the mean loss per token.

    Args:
        losses: From `text_losses`, `(text, 2)`.

    Raises:
        ConfigError: No token was predicted.
    """
    nats, tokens = losses.sum(0).tolist()
    if not tokens:
        raise ConfigError("no token was predicted: perplexity needs texts of at least two tokens. Give a longer text.")
    return math.exp(nats / tokens)
