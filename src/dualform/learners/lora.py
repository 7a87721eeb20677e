"""LoRA by peft, as it is practised or in one pass as FT trains."""

import time
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import AdaptationContext, Setup
from dualform.learners.batch_trained import BatchLearner, BatchMethod
from dualform.learners.finetuned import LossOn, require_learning_rate, train, trained_model
from dualform.learners.training_settings import LoraSettings
from dualform.learners.training_work import training_work
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import TrainedWeights, Work
from dualform.models.editing.adapters import LoraTraining, adapted_modules
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


@dataclass(frozen=True)
class LoraWeights:
    """LoRA's adapters, as weights that `BatchTrained` trains."""

    settings: LoraSettings
    kind: ClassVar[TrainedWeights] = "adapters"

    @property
    def rank(self) -> int:
        """Rank of the adapters."""
        return self.settings.rank

    @property
    def targets(self) -> str:
        """Modules with adapters."""
        return self.settings.targets

    def open(self, lm: LanguageModel, seed: int) -> LoraTraining:
        """The adapters, initialised with a seed."""
        return LoraTraining(
            lm.model,
            lm.anatomy,
            self.settings.rank,
            seed,
            alpha=self.settings.scale,
            dropout=self.settings.dropout,
            targets=self.settings.targets,
        )


class LoraLearner(BatchLearner):
    """`BatchTrained` adapters, or `Lora` with the recipe one-pass."""

    name = "lora"
    grid = "lora_rates"

    def weights(self, config: Any) -> LoraWeights:
        """Adapters with the settings of the study."""
        return LoraWeights(config.lora)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """Check that the modules with adapters were found, and can be trained."""
        super().check(lm, config)
        if config.lora.recipe == "practised":
            adapted_modules(lm.model, lm.anatomy, config.lora.targets)
            return
        lm.anatomy.require_layers("LoRA")
        if missing := lm.anatomy.missing_projections("W_Q", "W_V"):
            raise ModelError(f"W_Q and W_V were not found in every layer ({first_few(missing)})")

    def extra_bytes(self, setup: Setup) -> int:
        """The changes of all adapted weights, as full matrices."""
        if setup.config.lora.recipe == "one-pass":
            return 0
        return 4 * setup.lm.shape.linears

    def method(self, context: AdaptationContext) -> BatchMethod:
        """The training with the settings of the study."""
        config = context.config
        if config.lora.recipe == "practised":
            return super().method(context)
        rate = context.rate or 0.0
        return Lora(context.opening, rate, config.lora.rank, loss_on=config.loss_on, seed=context.seed)


LORA = LoraLearner()
