"""How well a model predicts plain text."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from dualform.errors import ConfigError, NumericalError
from dualform.models.reading.forward import forward_rows
from dualform.models.reading.language_model import LanguageModel


def text_losses(lm: LanguageModel, opening: Sequence[int], texts: Sequence[Sequence[int]]) -> Tensor:
    """Loss of each text, its first token included where there is an opening to predict it from.

    Args:
        lm: The model, with whatever changes are applied to it.
        opening: Tokens before each text; not predicted themselves.
        texts: Token ids, together with the opening no longer than the context.

    Returns:
        `(text, 2)`, float64: negative log-likelihood in nats, and the number of tokens predicted.

    Raises:
        NumericalError: A loss is NaN or infinite.
    """
    found = []
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
        found.append((loss, float(len(predictors))))
    return torch.tensor(found, dtype=torch.float64).reshape(-1, 2)


def perplexity(losses: Tensor) -> float:
    """Exponential of the mean loss of a token.

    Args:
        losses: From `text_losses`, `(text, 2)`.

    Raises:
        ConfigError: No token was predicted.
    """
    nats, tokens = losses.sum(0).tolist()
    if not tokens:
        raise ConfigError("perplexity needs text of at least two tokens, but there is none")
    return math.exp(nats / tokens)
