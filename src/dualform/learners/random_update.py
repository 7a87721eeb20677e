"""A control for finetuning: random noise of the same size in the same weights."""

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.language_model import LanguageModel


def random_update(ft: AdaptedModel, lm: LanguageModel, opening: tuple[int, ...], seed: int) -> AdaptedModel:
    """Replace every weight change of a finetuned model by Gaussian noise of the same Frobenius norm.

    Args:
        ft: The finetuned model; it is not modified.
        lm: The model that it adapts.
        opening: Tokens before every query, as in zero-shot.
        seed: Seed of the noise.

    Returns:
        The model with noise, with a cost of 0. The norm is matched for each parameter, over the rows that were trained;
        a parameter that did not change gets no noise. `training_q` is that of finetuning.
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
    """Noise of the same norm, drawn on the CPU so that it is the same on every device."""
    # Drawn even if the norm is 0, so that later parameters get the same noise.
    noise = torch.randn(delta.shape, generator=generator, dtype=torch.float32).to(delta)
    norm = torch.linalg.vector_norm(delta, dtype=torch.float64)
    length = torch.linalg.vector_norm(noise, dtype=torch.float64)
    return noise * (norm / length).to(noise.dtype) if norm > 0 else torch.zeros_like(delta)
