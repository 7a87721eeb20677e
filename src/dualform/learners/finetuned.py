"""Finetuning of W_K and W_V by gradient descent, one pass over the demonstrations, as arXiv:2212.10559 does it."""

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualform.errors import ConfigError, TrainingError
from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.models.edit import KeyValueTraining, WeightDelta, applied
from dualform.models.encoding import EncodedDemonstrations
from dualform.models.flops import key_value_training_flops
from dualform.models.forward import forward_rows, watching
from dualform.models.language_model import LanguageModel

LossOn = Literal["all", "label"]
"""Which tokens of a training sequence are learned: all of them (the paper's choice) or the label word's."""


@dataclass(frozen=True)
class Finetuned:
    """W_K and W_V of every layer, weights and biases; SGD without momentum or decay, constant rate, batch of one.

    The rest of the model stays frozen; the deltas are float32 whatever the model's dtype; dropout is off.

    Source:
        arXiv:2212.10559v3, section 4.1 and appendix: same demonstrations in the same order as ICL, one epoch, loss
        over all tokens of the sequence.
    """

    opening: tuple[int, ...]
    """Tokens before every query, as in zero-shot."""
    learning_rate: float
    loss_on: LossOn = "all"
    name: str = "ft"

    def __post_init__(self) -> None:
        require_learning_rate(self.learning_rate)

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> AdaptedModel:
        """Train, read off the deltas, put the weights back.

        Raises:
            TrainingError: The loss became NaN or infinite; the message names rate and step.
            ModelError: W_K and W_V of this model are not known.
        """
        start = time.perf_counter()
        with KeyValueTraining(lm.model, lm.anatomy) as training:
            optimiser = torch.optim.SGD(training.parameters, lr=self.learning_rate)
            losses, training_q = train(lm, demonstrations, optimiser, self.loss_on, self.learning_rate)
            deltas = training.deltas()
        seconds = time.perf_counter() - start
        return trained_model(self, lm, demonstrations, deltas, losses, seconds, training_q)


class Trained(Protocol):
    """Settings that every learner by gradients has."""

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
        """Of the optimiser."""
        ...

    @property
    def loss_on(self) -> LossOn:
        """Which tokens were learned."""
        ...


def trained_model(
    learner: Trained,
    lm: LanguageModel,
    demonstrations: EncodedDemonstrations,
    deltas: tuple[WeightDelta, ...],
    losses: list[float],
    seconds: float,
    training_q: Tensor | None = None,
    weight_gradients: bool = True,
) -> AdaptedModel:
    """What a training run leaves behind, with its cost.

    Args:
        learner: Whose run it was.
        lm: The model, its weights as before.
        demonstrations: What was trained on.
        deltas: The changes of weight.
        losses: Before each step.
        seconds: The run took.
        training_q: See `AdaptedModel.training_q`.
        weight_gradients: Whether those of W_K and W_V were computed.

    Raises:
        TrainingError: A weight became NaN or infinite.
    """
    if not all(torch.isfinite(delta.delta).all() for delta in deltas):
        raise TrainingError(f"learning rate {learner.learning_rate:g}: the weights became infinite. Use a lower one.")
    # Even the opening token's keys and values change with the weights.
    with applied(lm.model, deltas):
        prefix = lm.encode(learner.opening)
    flops = sum(
        key_value_training_flops(
            lm.model, lm.anatomy, len(ids), len(_learned(ids, n, learner.loss_on)), weight_gradients
        )
        for ids, n in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    )
    cost = AdaptationCost(seconds, sum(map(len, demonstrations.sequences)), flops)
    return AdaptedModel(learner.name, lm, prefix, cost, deltas, tuple(losses), training_q)


# float32 ends at 3e38, and AdamW's first step takes ten times the rate.
LARGEST_RATE = 1e37


def require_learning_rate(rate: float) -> None:
    """Check that an optimiser can use it.

    Raises:
        ConfigError: It is negative, or too large for float32.
    """
    if not 0 <= rate <= LARGEST_RATE:
        raise ConfigError(f"learning rate {rate} must lie between 0 and {LARGEST_RATE:g}")


def train(
    lm: LanguageModel,
    demonstrations: EncodedDemonstrations,
    optimiser: torch.optim.Optimizer,
    loss_on: LossOn,
    learning_rate: float,
) -> tuple[list[float], Tensor | None]:
    """One pass of the optimiser over the demonstrations, one sequence a step.

    Args:
        lm: Its trainable parameters are those of `optimiser`.
        demonstrations: In the order of training.
        optimiser: Any of torch's.
        loss_on: Which tokens count.
        learning_rate: For the error message.

    Returns:
        The loss before each step, and the attention queries seen on the way, `(layer, demo_pos, head, d_head)`
        (None without demonstrations).

    Raises:
        TrainingError: The loss became NaN or infinite.
    """
    losses: list[float] = []
    seen: list[Tensor] = []
    n_layers = len(lm.anatomy.layers)
    for step, (ids, n_answer) in enumerate(
        zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True), start=1
    ):
        layers: dict[int, Tensor] = {}

        def keep(layer: int, query: Tensor, key: Tensor, value: Tensor, into: dict[int, Tensor] = layers) -> None:
            into[layer] = query.detach()

        tokens = torch.tensor([ids], device=lm.device)
        learned = torch.tensor(list(_learned(ids, n_answer, loss_on)), device=lm.device)
        with watching(lm.model, lm.anatomy, keep):
            logits, _ = forward_rows(lm.model, learned - 1, gradients=True, input_ids=tokens, use_cache=False)
        loss = F.cross_entropy(logits.float() if logits.dtype.itemsize < 4 else logits, tokens[0, learned])
        losses.append(float(loss.detach()))
        if not math.isfinite(losses[-1]):
            raise TrainingError(
                f"learning rate {learning_rate:g}: the loss is {losses[-1]} at step {step} of "
                f"{len(demonstrations.sequences)}. Use a lower one."
            )
        optimiser.zero_grad()
        torch.autograd.backward([loss], inputs=list(_parameters(optimiser)))
        optimiser.step()
        opening = len(ids) - _n_content(demonstrations, step - 1)
        seen.append(torch.stack([layers[i][:, opening:].transpose(0, 1) for i in range(n_layers)]))
    return losses, torch.cat(seen, dim=1) if seen else None


def _parameters(optimiser: torch.optim.Optimizer) -> Iterable[nn.Parameter]:
    for parameters in optimiser.param_groups:
        yield from parameters["params"]


def _n_content(demonstrations: EncodedDemonstrations, number: int) -> int:
    return demonstrations.demonstration_of.count(number)


def _learned(ids: tuple[int, ...], n_answer: int, loss_on: LossOn) -> range:
    """Positions of the tokens to be predicted; the first token has nothing before it."""
    return range(1 if loss_on == "all" else max(1, len(ids) - n_answer), len(ids))
