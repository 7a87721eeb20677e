"""The laboratory's training loop: one optimiser, one learning-rate schedule, one way to clip, stop and report.

A model is trained by a function that computes its loss at a step and by a `Training` (or a `Recipe`) that says how long
and how fast. Several models of one shape can be trained at once: their weights then have a leading axis of models, and
each has its own loss, its own clipping and its own place in Adam's averages, so that it learns what it would alone.
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
    """How long, how fast and how carefully weights are moved."""

    @property
    def steps(self) -> int:
        """Optimiser steps in all."""
        ...

    @property
    def betas(self) -> tuple[float, float]:
        """Decay of Adam's averages of gradients and of their squares."""
        ...

    @property
    def clip(self) -> float | None:
        """Largest norm of a model's gradient; None for any."""
        ...

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        ...


@dataclass(frozen=True)
class Training:
    """How small models are trained, by Adam without weight decay."""

    steps: int
    batch: int = 64
    """Sequences of a step, for each model."""
    learning_rate: float = 3e-3
    """Highest learning rate."""
    warmup: float = 0.1
    """Share of the steps, one step at least, in which the rate rises linearly to its highest."""
    final: float = 0.0
    """Share of the highest rate to which it falls along a cosine; 1 keeps it constant."""
    betas: tuple[float, float] = (0.9, 0.999)
    clip: float | None = 1.0

    def rate(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
        # The end of the cosine lies one step behind the last, which would otherwise be taken at a rate of 0.
        return self.learning_rate * rate_share(step, max(1, int(self.warmup * self.steps)), self.steps, self.final)


def rate_share(step: int, warmup: int, last: int, final: float = 0.0) -> float:
    """Learning rate as a share of the highest: linearly up, then down along a cosine.

    Args:
        step: Counted from 0.
        warmup: Steps of the rise, the last of which is taken at the highest rate; 0 for none.
        last: Step at which `final` is reached.
        final: Share at the end of the cosine.
    """
    if step < warmup:
        return (step + 1) / warmup
    way = (step - warmup) / max(1, last - warmup)
    return final + (1 - final) * (1 + math.cos(math.pi * way)) / 2


@dataclass(frozen=True)
class TrainingStep:
    """What is known of a step once it was taken."""

    number: int
    """Steps done, this one included."""
    losses: list[float]
    """Of each model, before the step."""
    norms: list[float]
    """L2 norm of each model's gradient, before clipping."""
    rate: float
    """Learning rate."""
    seconds: float
    """Duration of the step, without what is done after it."""

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
        parameters: What is trained; with an axis of models in front where `losses` has one.
        losses: Loss at a step, counted from 0: `()` of one model, or `(model,)`. It is differentiated here, unless it
            comes without a graph: then the function has left gradients at the parameters itself.
        schedule: A `Training` or a `Recipe`.
        optimiser: Adam on all parameters where there is none; its learning rate is set at every step.
        first: Steps that were done before, for a training that goes on.
        patience: Steps in a row in which a model's loss, or the norm of its gradient, may be NaN or infinite. Its
            gradient is then zero, and what moves it is Adam's average of earlier ones, which fades.
        models: Names of the models, for errors.
        remedy: Last sentence of an error.
        after_step: Called after each step.

    Raises:
        TrainingError: A loss or a gradient's norm is NaN or infinite for more than `patience` steps in a row; the last
            of these steps is not taken.
    """
    parameters = list(parameters)
    if optimiser is None:
        fused = all(parameter.device.type in ("cpu", "cuda") for parameter in parameters)
        optimiser = torch.optim.Adam(parameters, betas=schedule.betas, fused=fused)
    broken_for: list[int] = []
    for number in range(first, schedule.steps):
        begin, rate = time.perf_counter(), schedule.rate(number)
        found = losses(number)
        if found.requires_grad:
            found.sum().backward()
        found = found.detach()
        if patience:
            _drop_broken_(parameters, found.isfinite())
        norms = clip_(parameters, schedule.clip, together=found.dim() > 0)
        by_model, lengths = (one.reshape(-1).tolist() for one in (found, norms))
        finite = [math.isfinite(loss) and math.isfinite(norm) for loss, norm in zip(by_model, lengths, strict=True)]
        broken_for = [0 if good else n + 1 for n, good in zip(broken_for or [0] * len(finite), finite, strict=True)]
        for place, (steps, loss, norm) in enumerate(zip(broken_for, by_model, lengths, strict=True)):
            if steps > patience:
                what, value = ("gradient's norm", norm) if math.isfinite(loss) else ("loss", loss)
                name = f" of {models[place]}" if models else ""
                raise TrainingError(
                    f"step {number + 1}: the {what}{name} is {value} at a learning rate of {rate:g}. {remedy}"
                )
        if not all(finite):
            # Of a gradient that is finite itself, the squares may overflow.
            _drop_broken_(parameters, norms.isfinite())
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after_step(TrainingStep(number + 1, by_model, lengths, rate, time.perf_counter() - begin))


def clip_(parameters: Sequence[Tensor], most: float | None, together: bool = False) -> Tensor:
    """Shorten gradients to a norm, each model's by itself: one that explodes must not slow down the others.

    Args:
        parameters: With their gradients.
        most: Largest norm over all weights of a model; None for any.
        together: Whether the first axis of each parameter is one of models.

    Returns:
        Norms before clipping, `()` or `(model,)`.
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
    """Set gradients to zero where they are not finite, and all of them of models whose loss is not."""
    for gradient in (parameter.grad for parameter in parameters):
        if gradient is not None:
            broken = ~(_like(finite, gradient) if finite.dim() else finite)
            gradient.masked_fill_(broken | ~gradient.isfinite(), 0.0)


def _like(by_model: Tensor, tensor: Tensor) -> Tensor:
    """One number a model, ready to be broadcast."""
    return by_model.view(-1, *(1,) * (tensor.dim() - 1))


class InContextModel(Protocol):
    """Models of one shape, one for each seed, that learn from sequences of examples."""

    @property
    def seeds(self) -> tuple[int, ...]:
        """Seed of each model's weights, and of its sequences."""
        ...

    def parameters(self) -> Iterable[nn.Parameter]:
        """What is trained."""
        ...

    def losses(self, drawn: Sequence[Sequences]) -> Tensor:
        """Loss on sequences, `(model,)`, or `()` where there is one alone.

        Args:
            drawn: One batch for each model.
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
    """Train models in place on sequences that they never see twice.

    Args:
        model: What is trained: equal seeds see equal sequences, whatever the model.
        tasks: What the sequences are drawn from; of several, one after the other, a batch each.
        training: How.
        name: Of the model, for errors.
        after_step: Called after each step.

    Raises:
        TrainingError: A loss or its gradient is NaN or infinite.
    """
    mixture = [tasks] if isinstance(tasks, RegressionTasks) else list(tasks)
    generators = [stream("training", seed) for seed in model.seeds]

    def losses(step: int) -> Tensor:
        own = mixture[step % len(mixture)]
        return model.losses([own.draw(training.batch, generator) for generator in generators])

    names = [", ".join(part for part in (name, f"seed {seed}") if part) for seed in model.seeds]
    fit(model.parameters(), losses, training, models=names, after_step=after_step)
