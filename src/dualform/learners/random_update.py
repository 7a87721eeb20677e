"""The control for what finetuning writes into the weights: noise as large, in the same places."""

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.language_model import LanguageModel


def random_update(ft: AdaptedModel, lm: LanguageModel, opening: tuple[int, ...], seed: int) -> AdaptedModel:
    """A finetuned model whose every change of weight is replaced by Gaussian noise of the same Frobenius norm.

    Args:
        ft: What finetuning made. Its changes are not changed.
        lm: The model that it adapts.
        opening: Tokens before every query, as in zero-shot.
        seed: Of the noise; equal seeds give equal noise.

    Returns:
        The model with noise instead, at no cost. The norm is matched parameter by parameter, on the rows that were
        trained; where nothing changed, nothing is added. `training_q` is finetuning's own: noise saw no
        demonstrations.
    """
    generator = torch.Generator().manual_seed(seed)
    deltas = tuple(
        WeightDelta(change.parameter, change.axis, change.index, _noise_like(change.delta, generator))
        for change in ft.deltas
    )
    with applied(lm.model, deltas):
        prefix = lm.encode(opening)
    return AdaptedModel("random_update", lm, prefix, AdaptationCost(0.0, 0, 0.0), deltas, (), ft.training_q)


def _noise_like(delta: Tensor, generator: torch.Generator) -> Tensor:
    """Drawn on the CPU, so that every device has the same, even where it is scaled to nothing."""
    noise = torch.randn(delta.shape, generator=generator, dtype=torch.float32).to(delta)
    norm = torch.linalg.vector_norm(delta, dtype=torch.float64)
    length = torch.linalg.vector_norm(noise, dtype=torch.float64)
    return noise * (norm / length).to(noise.dtype) if norm > 0 else torch.zeros_like(delta)
