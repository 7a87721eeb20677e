"""Finetuning as it is practised: AdamW in epochs of shuffled batches, on adapters, biases or all weights."""

import time
from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from torch import nn

from dualform.learners.adapted import AdaptedModel
from dualform.learners.base import AdaptationContext, Learner, Setup
from dualform.learners.batches import batch_work, train_in_batches
from dualform.learners.finetuned import require_learning_rate, trained_model
from dualform.learners.training_settings import TrainingSettings
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import TrainedWeights, Work
from dualform.models.editing.edit import AllWeightsTraining, BiasTraining, WeightDelta, require_trainable
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch


class OpenTraining(Protocol):
    """Weights while they are trained."""

    @property
    def parameters(self) -> Sequence[nn.Parameter]:
        """The trainable parameters."""
        ...

    def deltas(self) -> tuple[WeightDelta, ...]:
        """The change of each weight so far."""
        ...


class TrainableWeights(Protocol):
    """Some weights of a model."""

    @property
    def kind(self) -> TrainedWeights:
        """What they are, for the work of training them."""
        ...

    @property
    def rank(self) -> int:
        """Rank of adapters; 0 for other weights."""
        ...

    @property
    def targets(self) -> str:
        """Modules with adapters."""
        ...

    def open(self, lm: LanguageModel, seed: int) -> AbstractContextManager[OpenTraining]:
        """Make them trainable inside a block, after which the model is as before."""
        ...


@dataclass(frozen=True)
class BatchTrained:
    """Some weights, trained by AdamW in epochs of shuffled batches; see `TrainingSettings`."""

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    weights: TrainableWeights
    settings: TrainingSettings
    seed: int
    """Seed of the order of the examples, of adapters' initialisation, and of dropout."""
    name: str

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, compute the weight changes, and restore the weights.

        Raises:
            TrainingError: The loss became NaN or infinite.
            ModelError: The model does not have these weights, or they cannot be trained.
        """
        start = time.perf_counter()
        with self.weights.open(lm, self.seed) as training:
            losses = train_in_batches(
                lm, demonstrations, training.parameters, self.settings, self.learning_rate, self.seed
            )
            # Without a change the model is zero-shot bit for bit, also where changed weights are read another way.
            deltas = tuple(delta for delta in training.deltas() if delta.delta.any())
        seconds = time.perf_counter() - start
        return trained_model(self, lm, demonstrations, deltas, losses, seconds)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """The forwards and backwards of all batches."""
        return batch_work(
            demonstrations,
            self.settings,
            self.weights.kind,
            seed=self.seed,
            opening=len(self.opening),
            rank=self.weights.rank,
            targets=self.weights.targets,
        )


class BatchMethod(Protocol):
    """A training that a `BatchLearner` runs."""

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, and restore the weights."""
        ...

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Work of training."""
        ...


class BatchLearner(Learner):
    """A learner that trains some weights on all labelled examples, see `BatchTrained`."""

    changes_weights = True
    trains_on = "labelled"

    @abstractmethod
    def weights(self, config: Any) -> TrainableWeights:
        """The weights that are trained, with the settings of the study."""

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Train at the context's learning rate."""
        assert context.rate is not None
        return self.method(context).adapt(context.lm, context.encoded_labelled)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """Check that weights can be trained."""
        require_trainable(lm.model)

    def work(self, context: AdaptationContext) -> Work:
        """See `BatchTrained`."""
        return self.method(context).work(context.lm.shape, context.encoded_labelled)

    def method(self, context: AdaptationContext) -> BatchMethod:
        """The training with the settings of the study."""
        return BatchTrained(
            context.opening,
            context.rate or 0.0,
            self.weights(context.config),
            context.config.training,
            context.seed,
            self.name,
        )


@dataclass(frozen=True)
class AllWeights:
    """All weights, as weights that `BatchTrained` trains."""

    kind: ClassVar[TrainedWeights] = "all"
    rank: ClassVar[int] = 0
    targets: ClassVar[str] = ""

    def open(self, lm: LanguageModel, seed: int) -> AllWeightsTraining:
        """Copies of all weights."""
        return AllWeightsTraining(lm.model)


@dataclass(frozen=True)
class Biases:
    """All biases, as weights that `BatchTrained` trains."""

    kind: ClassVar[TrainedWeights] = "biases"
    rank: ClassVar[int] = 0
    targets: ClassVar[str] = ""

    def open(self, lm: LanguageModel, seed: int) -> BiasTraining:
        """Changes of all biases, or new biases."""
        return BiasTraining(lm.model)


class FullLearner(BatchLearner):
    """All weights, by `BatchTrained`."""

    name = "full"
    grid = "full_rates"

    def weights(self, config: Any) -> AllWeights:
        """All of them."""
        return AllWeights()

    def extra_bytes(self, setup: Setup) -> int:
        """A copy, gradients and AdamW's two averages, in float32; the change takes the place of a copy."""
        return 4 * 4 * setup.lm.shape.parameters


class BitFitLearner(BatchLearner):
    """All biases, by `BatchTrained`; see `BiasTraining`."""

    name = "bitfit"
    grid = "bitfit_rates"

    def weights(self, config: Any) -> Biases:
        """All of them."""
        return Biases()


FULL = FullLearner()
BITFIT = BitFitLearner()
