"""Training of self-attention on in-context regression, several seeds at once.

Models of several seeds are one batch of small matrices, so that five take little longer than one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.errors import ConfigError
from dualform.lab.regression_tasks import RegressionTasks
from dualform.lab.self_attention import GRAM, InContextTransformer, SelfAttentionConfig, Weights, predict
from dualform.lab.training import AfterStep, Training, TrainingStep, fit
from dualform.ops.streams import stream

BATCH = 64
QUERIES = 16
FAR = 10.0
"""An error this many times the targets' root mean square counts by itself and no longer by its square. Layers that each
multiply by what they read explode on a rare sequence while they learn; no other error is as large."""
PATIENCE = 20
"""Steps in a row in which a model's loss or gradient need not be finite, see `training.fit`."""


def self_attention_training(steps: int, batch: int = BATCH, learning_rate: float = 0.01) -> Training:
    """How self-attention is trained.

    The second moment must be forgotten soon: gradients grow by an order of magnitude once a model begins to learn.
    """
    return Training(steps, batch, learning_rate, warmup=0.05, betas=(0.9, 0.98))


@dataclass(frozen=True)
class TrainedModels:
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
    training: Training,
    seeds: Sequence[int],
    *,
    queries: int = QUERIES,
    keep: Sequence[int] = (),
    after_step: AfterStep = lambda step: None,
) -> TrainedModels:
    """Models of several seeds, trained on sequences that they never see twice.

    Args:
        config: Their shape.
        tasks: What the sequences are like; all points but the last are the context.
        training: How.
        seeds: Each of a model's weights, and of a stream of its own for its sequences.
        queries: Inputs predicted for each sequence, instead of one: more of them is the same loss with less noise, at
            hardly any cost, because what is inferred from the examples is shared.
        keep: Steps after which weights are kept besides the last; 0 for the first weights.
        after_step: Called after each step; losses are half the mean squared error.

    Raises:
        ConfigError: The tasks have other inputs than the model, or no example besides the query.
        TrainingError: A model's loss or gradient is NaN or infinite for more than `PATIENCE` steps in a row.
    """
    if tasks.dimension != config.dimension or tasks.points < 2:
        raise ConfigError(
            f"the model takes inputs of {config.dimension} and an example or more; the tasks have {tasks.dimension} "
            f"and {tasks.points - 1}."
        )
    asking = replace(tasks, points=tasks.points - 1 + queries)
    weights = _stacked([config.drawn(stream("weights", seed), mean_gram(tasks)) for seed in seeds])
    generators = [stream("training", seed) for seed in seeds]
    kept: dict[int, Weights] = {}

    def keep_weights(step: int) -> None:
        if step in keep or step == training.steps:
            kept[step] = {name: value.detach().clone() for name, value in weights.items()}

    def losses(step: int) -> Tensor:
        x, y, asked, target = _drawn(asking, training.batch, tasks.points - 1, generators)
        return _losses(predict(config, weights, x, y, asked), target)

    def done(step: TrainingStep) -> None:
        keep_weights(step.number)
        after_step(step)

    keep_weights(0)
    fit(
        [value.requires_grad_() for value in weights.values()],
        losses,
        training,
        patience=PATIENCE,
        models=[f"seed {seed}" for seed in seeds],
        remedy="Take fewer examples (--points), a smaller --dimension, or more --steps, the first of which are then "
        "smaller.",
        after_step=done,
    )
    return TrainedModels(config, tuple(seeds), tuple(kept), _stacked(list(kept.values())))


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


def _stacked(many: Sequence[Weights]) -> Weights:
    return {name: torch.stack([one[name] for one in many]) for name in many[0]}
