"""Training of self-attention on in-context regression, several seeds at once.

Models of several seeds are one batch of small matrices, so that five take little longer than one; each has its own
draws, its own gradient clipping and its own place in Adam's state, so that it is what it would be alone.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.errors import ConfigError, TrainingError
from dualform.lab.regression_tasks import RegressionTasks
from dualform.lab.schedule import set_rate_
from dualform.lab.self_attention import GRAM, InContextTransformer, SelfAttentionConfig, Weights, predict
from dualform.ops.streams import stream

BATCH = 64
QUERIES = 16
LEARNING_RATE = 0.01
CLIP = 1.0
FAR = 10.0
"""An error this many times the targets' root mean square counts by itself and no longer by its square. Layers that each
multiply by what they read explode on a rare sequence while they learn; no other error is as large."""
PATIENCE = 20
"""Steps in a row in which a model's loss may not be finite. Its gradient is then zero, and what moves it is Adam's
memory of earlier ones, which fades."""


@dataclass(frozen=True)
class Trained:
    """Models of several seeds, at several times of their training."""

    config: SelfAttentionConfig
    seeds: tuple[int, ...]
    at: tuple[int, ...]
    """Steps done when weights were kept, the last being all of them."""
    weights: Weights
    """By name, each `(time, seed, layer, ...)`."""

    def model(self, seed: int, time: int = -1) -> InContextTransformer:
        """The model of one seed after `at[time]` steps."""
        place = self.seeds.index(seed)
        return InContextTransformer(self.config, {name: value[time, place] for name, value in self.weights.items()})


def train_together(
    config: SelfAttentionConfig,
    tasks: RegressionTasks,
    *,
    steps: int,
    seeds: Sequence[int],
    batch: int = BATCH,
    queries: int = QUERIES,
    learning_rate: float = LEARNING_RATE,
    clip: float = CLIP,
    keep: Sequence[int] = (),
    after_step: Callable[[int, list[float]], None] = lambda step, losses: None,
) -> Trained:
    """Models of several seeds, trained on sequences that they never see twice.

    Args:
        config: Their shape.
        tasks: What the sequences are like; all points but the last are the context.
        steps: Of training, by Adam.
        seeds: Each of a model's weights, and of a stream of its own for its sequences.
        batch: Sequences of a step, for each model.
        queries: Inputs asked for of each sequence, instead of one: more of them is the same loss with less noise, at
            hardly any cost, because what is inferred from the examples is shared.
        learning_rate: Adam's highest, reached after a twentieth of the steps and gone down from along a cosine.
        clip: Greatest norm of a model's gradient.
        keep: Steps after which weights are kept besides the last; 0 for the first weights.
        after_step: Told the steps done and each model's loss, half the mean squared error.

    Raises:
        ConfigError: The tasks have other inputs than the model, or no example besides the query.
        TrainingError: A model's loss is NaN or infinite for more than `PATIENCE` steps in a row.
    """
    if tasks.dimension != config.dimension or tasks.points < 2:
        raise ConfigError(
            f"the model takes inputs of {config.dimension} and an example or more; the tasks have {tasks.dimension} "
            f"and {tasks.points - 1}."
        )
    asking = replace(tasks, points=tasks.points - 1 + queries)
    weights = _stacked([config.drawn(torch.Generator().manual_seed(seed), mean_gram(tasks)) for seed in seeds])
    generators = [stream("training", seed) for seed in seeds]
    for value in weights.values():
        value.requires_grad_()
    # The second moment must be forgotten soon: gradients grow by an order of magnitude once a model begins to learn.
    optimiser = torch.optim.Adam(weights.values(), lr=learning_rate, betas=(0.9, 0.98))
    warmup = max(1, steps // 20)
    kept: dict[int, Weights] = {}
    lost = [0 for _ in seeds]
    for step in range(steps + 1):
        if step in keep or step == steps:
            kept[step] = {name: value.detach().clone() for name, value in weights.items()}
        if step == steps:
            break
        set_rate_(optimiser, learning_rate, step, steps, warmup)
        x, y, asked, target = _drawn(asking, batch, tasks.points - 1, generators)
        losses = _losses(predict(config, weights, x, y, asked), target)
        told = losses.tolist()
        lost = [0 if math.isfinite(loss) else n + 1 for n, loss in zip(lost, told, strict=True)]
        if max(lost) > PATIENCE:
            raise TrainingError(
                f"step {step + 1}: the losses of seeds {list(seeds)} are {told}, expected numbers. Take fewer examples "
                "(--points), a smaller --dimension, or more --steps, the first of which are then smaller."
            )
        optimiser.zero_grad(set_to_none=True)
        losses.sum().backward()
        _clip(weights, clip, losses.isfinite())
        optimiser.step()
        after_step(step + 1, told)
    return Trained(config, tuple(seeds), tuple(kept), _stacked(list(kept.values())))


def mean_gram(tasks: RegressionTasks) -> float:
    """Mean trace of sum_j x_j x_j^T over all points but the last; `GRAM` where all inputs are zero."""
    variance = tasks.input_scale**2 * (1 / 12 if tasks.inputs == "uniform" else 1)
    return (tasks.points - 1) * tasks.dimension * variance or GRAM


def _drawn(
    tasks: RegressionTasks, batch: int, n_context: int, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Each seed's own sequences: x, y, asked and what the function is there, with a leading axis of seeds."""
    drawn = [tasks.draw(batch, generator) for generator in generators]
    x, y, clean = (torch.stack([getattr(one, name) for one in drawn]) for name in ("x", "y", "clean"))
    return x[:, :, :n_context], y[:, :, :n_context], x[:, :, n_context:], clean[:, :, n_context:]


def _losses(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error of each model, its growth cut off at `FAR`."""
    far = FAR * target.square().mean((1, 2), keepdim=True).sqrt()
    error = (predicted - target).abs()
    near = error.clamp(max=far)
    return (near.square() / 2 + far * (error - near)).mean((1, 2))


def _clip(weights: Weights, most: float, finite: Tensor) -> None:
    """Shorten each model's gradient by itself: one that explodes must not slow down the others.

    Args:
        weights: With their gradients.
        most: Greatest norm.
        finite: Which models have a loss; the others' gradients become zero.
    """
    gradients = [value.grad for value in weights.values() if value.grad is not None]
    for gradient in gradients:
        broken = ~finite.view(-1, *(1,) * (gradient.dim() - 1))
        gradient.masked_fill_(broken | ~gradient.isfinite(), 0.0)
    norms = torch.stack([gradient.flatten(1).square().sum(1) for gradient in gradients]).sum(0).sqrt()
    shares = (most / norms.clamp(min=1e-12)).clamp(max=1)
    for gradient in gradients:
        gradient.mul_(shares.view(-1, *(1,) * (gradient.dim() - 1)))


def _stacked(many: Sequence[Weights]) -> Weights:
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}
