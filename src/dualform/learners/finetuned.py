"""Finetuning by gradient descent in one pass over the demonstrations, as in arXiv:2212.10559.

By default W_K and W_V are trained, with one step for each demonstration. Other parts of the model, or a single step,
serve to find out what the similarity to in-context learning depends on.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from typing import Any, Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualform.errors import ConfigError, TrainingError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.options import LARGEST_RATE as LARGEST_RATE
from dualform.learners.options import LossOn as LossOn
from dualform.learners.training_work import learned_positions, training_work
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.editing.edit import (
    WeightDelta,
    WeightTraining,
    applied,
    key_value_rows,
    mlp_rows,
    require_trainable,
    value_rows,
)
from dualform.models.reading.capture import stack_layers
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.forward import forward_rows, observing_attention
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.ops.rounding import at_least_float32

TrainedPart = Literal["key_value", "value_one_layer", "mlp"]
"""Weights and biases that are trained: W_K and W_V of every layer (as in the paper); W_V of the middle layer only, the
setting of the theory's single head; or every MLP, with attention frozen."""

Steps = Literal["sequential", "batch"]
"""One step for each demonstration, or a single step along the sum of all gradients at the initial weights. To first
order in the rate, both change the weights equally."""

Losses = Callable[[LanguageModel, Tensor, Tensor, AbstractContextManager[None]], Iterator[Tensor]]
"""Function from the model, one sequence `(1, pos)`, the positions of its tokens in the loss `(learned,)`, and a context
in which to run the forward pass, to one or more losses in nats per token. The first is the model's own loss."""


@dataclass(frozen=True)
class Finetuned:
    """SGD at a constant rate without momentum or weight decay, by default on W_K and W_V of every layer, batch size 1.

    The rest of the model is frozen and dropout is off. Weight changes are float32, or float64 for a float64 model.

    Source:
        arXiv:2212.10559v3, section 4.1 and appendix: the same demonstrations in the same order as for ICL, one epoch,
        loss over all tokens of the sequence.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    loss_on: LossOn = "all"
    name: str = "ft"
    part: TrainedPart = "key_value"
    steps: Steps = "sequential"
    moved: int | None = None
    """Seed of a perturbation of every trained weight by one unit in its last place before training, which is included
    in the weight change; None trains the original weights. Shows how much a training depends on rounding."""

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)
        for field, value, known in (("part", self.part, TrainedPart), ("steps", self.steps, Steps)):
            if value not in get_args(known):
                raise ConfigError(f"{field} {value!r} is unknown: choose one of {', '.join(get_args(known))}")

    @ordinary_torch()
    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, compute the weight changes, and restore the weights.

        Raises:
            TrainingError: The loss became NaN or infinite; the message names rate and step.
            ModelError: The weights of this part were not found in this model, or cannot be trained separately.
        """
        start = time.perf_counter()
        if self.part == "key_value":
            rows = key_value_rows(lm.model, lm.anatomy)
        elif self.part == "value_one_layer":
            rows = value_rows(lm.model, lm.anatomy, len(lm.anatomy.layers) // 2)
        else:
            rows = mlp_rows(lm.model, lm.anatomy)
        with WeightTraining(lm.model, rows) as training:
            if self.moved is not None:
                training.move_by_rounding_(torch.Generator().manual_seed(self.moved))
            optimiser = torch.optim.SGD(training.parameters, lr=self.learning_rate)
            losses, training_q = train(lm, demonstrations, optimiser, self.loss_on, self.learning_rate, self.steps)
            deltas = training.deltas()
        seconds = time.perf_counter() - start
        return trained_model(self, lm, demonstrations, deltas, losses, seconds, training_q)

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """A training step for every demonstration."""
        return training_work(demonstrations, self.loss_on, self.part, opening=len(self.opening))


class FinetuningLearner(Learner):
    """See `Finetuned`."""

    name = "ft"
    changes_weights = True
    trains_on = "labelled"
    grid = "rates"
    can_repeat = True

    def adapt(self, context: AdaptationContext) -> AdaptedModel:
        """Train W_K and W_V at the context's learning rate."""
        assert context.rate is not None
        learner = Finetuned(context.opening, context.rate, context.config.loss_on, moved=context.rounding_seed)
        return learner.adapt(context.lm, context.encoded_labelled)

    def check(self, lm: LanguageModel, config: Any) -> None:
        """Check that W_K and W_V were found in every layer, and can be trained."""
        key_value_rows(lm.model, lm.anatomy)
        require_trainable(lm.model)


FINETUNING = FinetuningLearner()


class GradientTraining(Protocol):
    """Attributes that every gradient-based learner has."""

    @property
    def name(self) -> str:
        """Short name, as in results."""
        ...

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens before every query."""
        ...

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimiser."""
        ...

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Work of training."""
        ...


def trained_model(
    learner: GradientTraining,
    lm: LanguageModel,
    demonstrations: EncodedDemonstrations,
    deltas: tuple[WeightDelta, ...],
    losses: list[float],
    seconds: float,
    training_q: Tensor | None = None,
) -> AdaptedModel:
    """Build the adapted model from the outcome of a training run.

    Args:
        learner: The learner that ran it.
        lm: The model with its original weights.
        demonstrations: The training data.
        deltas: The weight changes.
        losses: Loss before each step.
        seconds: Duration of the run.
        training_q: See `AdaptedModel.training_q`.

    Raises:
        TrainingError: A weight became NaN or infinite.
    """
    if not all(torch.isfinite(delta.delta).all() for delta in deltas):
        raise TrainingError(f"learning rate {learner.learning_rate:g}: the weights became infinite. Use a lower one.")
    # Keys and values of the opening depend on the weights.
    with applied(lm.model, deltas):
        prefix = lm.encode(learner.opening)
    cost = AdaptationCost.of(learner.work(lm.shape, demonstrations), lm.shape, seconds)
    return AdaptedModel(learner.name, lm, prefix, cost, deltas, tuple(losses), training_q)


def require_learning_rate(rate: float) -> None:
    """Check that a learning rate is in range.

    Raises:
        ConfigError: It is negative, or too large for float32.
    """
    if not 0 <= rate <= LARGEST_RATE:
        raise ConfigError(f"learning rate {rate} must lie between 0 and {LARGEST_RATE:g}")


def model_loss(
    lm: LanguageModel, tokens: Tensor, learned: Tensor, watch: AbstractContextManager[None]
) -> Iterator[Tensor]:
    """The model's own loss; see `Losses`."""
    with watch:
        logits, _ = forward_rows(lm.model, learned - 1, gradients=True, input_ids=tokens, use_cache=False)
    yield token_loss(logits, tokens[0, learned])


def token_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Mean cross-entropy, nats per token, of logits `(learned, vocab)` and ids `(learned,)`, in float32 at least."""
    return F.cross_entropy(at_least_float32(logits), targets)


def train(
    lm: LanguageModel,
    demonstrations: EncodedDemonstrations,
    optimiser: torch.optim.Optimizer,
    loss_on: LossOn,
    learning_rate: float,
    steps: Steps = "sequential",
    losses_of: Losses = model_loss,
) -> tuple[list[float], Tensor | None]:
    """Make one pass of the optimiser over the demonstrations.

    Args:
        lm: The model, with the parameters of `optimiser` trainable.
        demonstrations: The training data, in order.
        optimiser: Any optimiser of torch.
        loss_on: Which tokens count in the loss.
        learning_rate: Learning rate, for the error message.
        steps: One step for each sequence, or a single one along the sum of all gradients.
        losses_of: Computes the losses, whose gradients are summed.

    Returns:
        The model's own loss on each sequence (before its step if steps are sequential), nats per token; and the
        attention queries during training, `(layer, demo_pos, head, d_head)` (None without demonstrations).

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    losses: list[float] = []
    training_q: list[Tensor] = []
    optimiser.zero_grad()
    n_layers = len(lm.anatomy.layers)
    for step, (ids, n_answer) in enumerate(
        zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True), start=1
    ):
        layers: dict[int, Tensor] = {}

        def keep(layer: int, query: Tensor, key: Tensor, value: Tensor, into: dict[int, Tensor] = layers) -> None:
            into[layer] = query.detach()

        tokens = torch.tensor([ids], device=lm.device)
        learned = torch.tensor(list(learned_positions(ids, n_answer, loss_on)), device=lm.device)
        parts = losses_of(lm, tokens, learned, observing_attention(lm.model, lm.anatomy, keep))
        own = next(parts)
        losses.append(float(own.detach()))
        if steps == "sequential":
            optimiser.zero_grad()
        for loss in chain((own,), parts):
            if not math.isfinite(loss.detach()):
                raise TrainingError(
                    f"learning rate {learning_rate:g}: the loss is {float(loss.detach())} at step {step} of "
                    f"{len(demonstrations.sequences)}. Use a lower one."
                )
            torch.autograd.backward([loss], inputs=list(_parameters(optimiser)))
        if steps == "sequential":
            optimiser.step()
        opening = len(ids) - _n_content(demonstrations, step - 1)
        if layers:
            queries = [layers[i][:, opening:].transpose(0, 1).to(lm.device) for i in range(n_layers)]
            training_q.append(stack_layers(queries, dim=0))
    if steps == "batch" and losses:
        optimiser.step()
    return losses, torch.cat(training_q, dim=1) if training_q else None


def _parameters(optimiser: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    for parameters in optimiser.param_groups:
        yield from parameters["params"]


def _n_content(demonstrations: EncodedDemonstrations, number: int) -> int:
    return demonstrations.demonstration_of.count(number)
