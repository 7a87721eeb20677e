"""LoRA by peft: the usual way to finetune in practice, as a reference."""

import time
from dataclasses import dataclass
from typing import Any

import torch

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.finetuned import LossOn, require_learning_rate, train, trained_model
from dualform.learners.training_work import training_work
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.editing.adapters import LoraTraining
from dualform.models.editing.edit import require_trainable
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.plain_text import first_few


@dataclass(frozen=True)
class Lora:
    """Low-rank updates of the modules that contain W_Q and W_V, by AdamW, one pass, batch size 1.

    Source:
        arXiv:2106.09685, sections 4.1 and 4.2 (adapters on W_q and W_v).
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    rank: int = 8
    loss_on: LossOn = "all"
    seed: int = 0
    """Seed of the adapters' initialisation."""
    name: str = "lora"

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)
        if self.rank < 1:
            raise ConfigError(f"LoRA rank {self.rank} must be at least 1")

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train adapters, convert them to weight changes, and remove them.

        Raises:
            TrainingError: The loss became NaN or infinite.
            ModelError: W_Q and W_V were not found in this model.
        """
        start = time.perf_counter()
        with LoraTraining(lm.model, lm.anatomy, self.rank, self.seed) as training:
            optimiser = torch.optim.AdamW(training.parameters, lr=self.learning_rate, weight_decay=0.0)
            losses, _ = train(lm, demonstrations, optimiser, self.loss_on, self.learning_rate)
            deltas = training.deltas()
        seconds = time.perf_counter() - start
        return trained_model(self, lm, demonstrations, deltas, losses, seconds)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """A training step for every demonstration."""
        return training_work(demonstrations, self.loss_on, "adapters", opening=len(self.opening))


class LoraLearner(Learner):
    """See `Lora`."""

    name = "lora"
    changes_weights = True
    trains_on = "labelled"
    grid = "lora_rates"

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Train adapters at the context's learning rate."""
        assert context.rate is not None
        return self._method(context).adapt(context.lm, context.encoded_labelled)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """Check that W_Q and W_V were found in every layer, and can be trained."""
        require_trainable(lm.model)
        lm.anatomy.require_layers("LoRA")
        if missing := lm.anatomy.missing_projections("W_Q", "W_V"):
            raise ModelError(f"W_Q and W_V were not found in every layer ({first_few(missing)})")

    def work(self, context: AdaptationContext) -> Work:
        """See `Lora`."""
        return self._method(context).work(context.lm.shape, context.encoded_labelled)

    def _method(self, context: AdaptationContext) -> Lora:
        return Lora(context.opening, context.rate or 0.0, loss_on=context.config.loss_on, seed=context.seed)


LORA = LoraLearner()
