"""The laboratory's training loop, with its learning-rate schedule and gradient clipping.

Training takes a function that computes the loss of a step, and a schedule: a `Training` or a `Recipe`. Several models
of one shape can be trained at once. Their weights then have a leading axis of models, and each model has its own loss
and clipping, so that it learns the same as it would alone.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dualform.errors import TrainingError
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.ops.streams import stream


class Schedule(Protocol):
    """Number of steps, learning rates and clipping of a training."""

    @property
    def steps(self) -> int:
        """Total number of optimiser steps."""
        ...

    @property
    def betas(self) -> tuple[float, float]:
        """Decay rates of Adam's averages of gradients and of squared gradients."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest norm of a model's gradient; None for no clipping."""
        ...

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        ...


@dataclass(frozen=True)
class Training:
    """Training settings of small models: Adam without weight decay."""

    steps: int
    batch: int = 64
    """Sequences in a step, for each model."""
    learning_rate: float = 3e-3
    """Highest learning rate."""
    warmup: float = 0.1
    """Share of the steps (at least one step) in which the rate rises linearly to its highest value."""
    final: float = 0.0
    """Share of the highest rate to which it then falls along a cosine; 1 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        # The cosine ends one step after the last, because the last step would otherwise have a rate of 0.
        return self.learning_rate * rate_share(step, max(1, int(self.warmup * self.steps)), self.steps, self.final)


def rate_share(step: int, warmup: int, last: int, final: float = 0.0) -> float:
    """Learning rate as a share of the highest: a linear rise, then a fall along a cosine.

    Args:
        step: Index of the step, counted from 0.
        warmup: Number of steps of the rise, the last of which has the highest rate; 0 for none.
        last: Step at which `final` is reached.
        final: Share at the end of the cosine.
    """
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, last - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * progress)) / 2


@dataclass(frozen=True)
class TrainingStep:
    """Numbers of a step after it was taken."""

    number: int
    """Number of steps done, including this one."""
    losses: list[float]
    """Loss of each model before the step."""
    norms: list[float]
    """L2 norm of each model's gradient, before clipping."""
    rate: float
    """Learning rate."""
    seconds: float
    """Duration of the step, without `after_step`."""

    @property
    def loss(self) -> float:
        """Loss of the only model, or of the first."""
        return self.losses[0]


AfterStep = Callable[[TrainingStep], None]


def fit(
    parameters: Iterable[Tensor],
    losses: Callable[[int], Tensor],
    schedule: Schedule,
    *,
    optimiser: torch.optim.Optimizer | None = None,
    first: int = 0,
    patience: int = 0,
    models: Sequence[str] = (),
    remedy: str = "Lower the learning rate.",
    after_step: AfterStep = lambda step: None,
) -> None:
    """Train weights in place.

    Args:
        parameters: Weights to train; with a leading axis of models if `losses` has one.
        losses: Function from the index of a step, counted from 0, to the loss, `()` or `(model,)`. If the loss has no
            graph, the function must have computed the gradients itself.
        schedule: A `Training` or a `Recipe`.
        optimiser: Optimiser, whose learning rate is set at every step; Adam on all parameters by default.
        first: Number of steps already done, to resume a training.
        patience: Number of consecutive steps in which a model's loss or the norm of its gradient may be NaN or
            infinite. In such a step its gradient is set to zero.
        models: Names of the models for error messages.
        remedy: Last sentence of an error message.
        after_step: Called after each step.

    Raises:
        TrainingError: If a loss or the norm of a gradient is NaN or infinite for more than `patience` consecutive
            steps.
    """
    parameters = list(parameters)
    if optimiser is None:
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        optimiser = torch.optim.Adam(parameters, betas=schedule.betas, fused=fused)
    broken_for: list[int] = []
    for number in range(first, schedule.steps):
        begin, rate = time.perf_counter(), schedule.rate(number)
        loss_tensor = losses(number)
        if loss_tensor.requires_grad:
            loss_tensor.sum().backward()
        loss_tensor = loss_tensor.detach()
        if patience:
            _drop_broken_(parameters, loss_tensor.isfinite())
        norms = clip_(parameters, schedule.clip, together=loss_tensor.dim() > 0)
        by_model, lengths = (tensor.reshape(-1).tolist() for tensor in (loss_tensor, norms))
        finite = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(by_model, lengths, strict=True)]
        broken_for = [0 if good else n + 1 for n, good in zip(broken_for or [0] * len(finite), finite, strict=True)]
        for place, (steps, loss, norm) in enumerate(zip(broken_for, by_model, lengths, strict=True)):
            if steps > patience:
                quantity, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
                name = f" of {models[place]}" if models else ""
                raise TrainingError(
                    f"step {number + 1}: the {quantity}{name} is {value} at a learning rate of {rate:g}. {remedy}"
                )
        if not all(finite):
            # The norm may overflow even if all gradients are finite.
            _drop_broken_(parameters, norms.isfinite())
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after_step(TrainingStep(number + 1, by_model, lengths, rate, time.perf_counter() - begin))


def clip_(parameters: Sequence[Tensor], most: float | None, together: bool = False) -> Tensor:
    """Clip gradients in place, separately for each model, and return the norms before clipping, `()` or `(model,)`.

    Args:
        parameters: Parameters with gradients.
        most: Largest norm over all weights of a model; None for no clipping.
        together: Whether the first axis of each parameter is one of models.
    """
    most = math.inf if most is None else most
    if not together:
        return nn.utils.clip_grad_norm_(parameters, most)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    shares = (most / norms.clamp(min=1e-12)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(_like(shares, gradient))
    return norms


def _drop_broken_(parameters: Sequence[Tensor], finite: Tensor) -> None:
    """Set gradients to zero where they are not finite, and all gradients of models whose loss is not finite."""
    for gradient in (parameter.grad for parameter in parameters):
        if gradient is not None:
            broken = ~(_like(finite, gradient) if finite.dim() else finite)
            gradient.masked_fill_(broken | ~gradient.isfinite(), 0.0)


def _like(by_model: Tensor, tensor: Tensor) -> Tensor:
    """One number for each model, reshaped to broadcast with a parameter."""
    return by_model.view(-1, *(1,) * (tensor.dim() - 1))


class InContextModel(Protocol):
    """Models of one shape, one for each seed, that are trained on sequences of examples."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each model's weights and sequences."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """Weights to train."""
        ...

    def losses(self, sequences: Sequence[Sequences]) -> Tensor:
        """Loss of each model, `(model,)`, or `()` for a single model.

        Args:
            sequences: One batch for each model.
        """
        ...


def train(
    model: InContextModel,
    tasks: RegressionTasks | Sequence[RegressionTasks],
    training: Training,
    *,
    name: str = "",
    after_step: AfterStep = lambda step: None,
) -> None:
    """Train models in place on new sequences in every step.

    Args:
        model: Models to train. Equal seeds get equal sequences, for any model.
        tasks: Distribution of the sequences; several distributions alternate from batch to batch.
        training: Training settings.
        name: Name of the model for error messages.
        after_step: Called after each step.

    Raises:
        TrainingError: If a loss or a gradient is NaN or infinite.
    """
    mixture = [tasks] if isinstance(tasks, RegressionTasks) else list(tasks)
    generators = [stream("training", seed) for seed in model.seeds]

    def losses(step: int) -> Tensor:
        own = mixture[step % len(mixture)]
        return model.losses([own.draw(training.batch, generator) for generator in generators])

    names = [", ".join(part for part in (name, f"seed {seed}") if part) for seed in model.seeds]
    fit(model.parameters(), losses, training, models=names, after_step=after_step)
