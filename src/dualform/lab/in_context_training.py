"""Training of self-attention on in-context regression, several seeds at once.

The models of all seeds form one batch of small matrices, so that training five takes little longer than training one.
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
"""Errors above this many times the targets' root mean square enter the loss linearly, not squared. During training,
layers that multiply by their inputs explode on rare sequences; no other errors are as large."""
PATIENCE = 20
"""Number of consecutive steps in which a model's loss or gradient may be NaN or infinite (see `training.fit`)."""


def self_attention_training(steps: int, batch: int = BATCH, learning_rate: float = 0.01) -> Training:
    """Training settings for self-attention.

    The second moment decays fast, because gradients grow by an order of magnitude once a model begins to learn.
    """
    return Training(steps, batch, learning_rate, warmup=0.05, betas=(0.9, 0.98))


@dataclass(frozen=True)
class TrainedModels:
    """Models of several seeds, at several times of the training."""

    config: SelfAttentionConfig
    seeds: tuple[int, ...]
    at: tuple[int, ...]
    """Numbers of steps after which weights were stored; the last is the whole training."""
    weights: Weights
    """Weights by name, each `(time, seed, layer, ...)`."""

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
    """Models of several seeds, trained on new sequences in every step.

    Args:
        config: Shape of the models.
        tasks: Distribution of the sequences; all points but the last are the context.
        training: Training settings.
        seeds: One for each model; determines its initial weights and its sequences.
        queries: Number of inputs predicted for each sequence. More of them reduce the noise of the loss at almost no
            cost, because the work on the examples is shared.
        keep: Numbers of steps after which weights are stored, besides the last; 0 for the initial weights.
        after_step: Called after each step; losses are half the mean squared error.

    Raises:
        ConfigError: If the tasks have another dimension than the model, or no example besides the query.
        TrainingError: If a model's loss or gradient is NaN or infinite for more than `PATIENCE` steps in a row.
    """
    if tasks.dimension != config.dimension or tasks.points < 2:
        raise ConfigError(
            f"the model expects inputs of dimension {config.dimension} and at least one example; the tasks have "
            f"dimension {tasks.dimension} and {tasks.points - 1} examples."
        )
    all_points = replace(tasks, points=tasks.points - 1 + queries)
    weights = _stack([config.draw_weights(stream("weights", seed), mean_gram(tasks)) for seed in seeds])
    generators = [stream("training", seed) for seed in seeds]
    kept: dict[int, Weights] = {}

    def keep_weights(step: int) -> None:
        if step in keep or step == training.steps:
            kept[step] = {name: value.detach().clone() for name, value in weights.items()}

    def losses(step: int) -> Tensor:
        x, y, query_inputs, target = _draw(all_points, training.batch, tasks.points - 1, generators)
        return _losses(predict(config, weights, x, y, query_inputs), target)

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
        remedy="Use fewer examples (--points), a smaller --dimension, or more --steps, which makes the first steps "
        "smaller.",
        after_step=done,
    )
    return TrainedModels(config, tuple(seeds), tuple(kept), _stack(list(kept.values())))


def mean_gram(tasks: RegressionTasks) -> float:
    """Mean trace of sum_j x_j x_j^T over all points but the last; `GRAM` if all inputs are zero."""
    variance = tasks.input_scale**2 * (1 / 12 if tasks.inputs == "uniform" else 1)
    return (tasks.points - 1) * tasks.dimension * variance or GRAM


def _draw(
    tasks: RegressionTasks, batch: int, n_context: int, generators: Sequence[torch.Generator]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sequences for each seed: x, y, query inputs and their clean targets, each with a leading axis of seeds."""
    sequences = [tasks.draw(batch, generator) for generator in generators]
    x, y, clean = (torch.stack([getattr(each, name) for each in sequences]) for name in ("x", "y", "clean"))
    return x[:, :, :n_context], y[:, :, :n_context], x[:, :, n_context:], clean[:, :, n_context:]


def _losses(predicted: Tensor, target: Tensor) -> Tensor:
    """Half the mean squared error of each model, with errors beyond `FAR` counted linearly."""
    far = FAR * target.square().mean((1, 2), keepdim=True).sqrt()
    error = (predicted - target).abs()
    near = error.clamp(max=far)
    return (near.square() / 2 + far * (error - near)).mean((1, 2))


def _stack(models: Sequence[Weights]) -> Weights:
    return {name: torch.stack([weights[name] for weights in models]) for name in models[0]}
