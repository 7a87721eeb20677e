"""Causal transformers that learn linear regression in context: training for all seeds together, and predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from dualform.lab.decoder import DecoderConfig, Decoders
from dualform.lab.predictors import Predictor, best_of
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.training import Training, train
from dualform.ops.streams import stream
from dualform.studies.laboratory.config import RegressionConfig
from dualform.studies.pieces import PieceContent, PieceStore, load_or_make

LARGEST_DIMENSION = 5
LARGEST_POINTS = 10
"""Larger sizes are reduced to these, because a transformer that one core trains in a minute would not learn them."""
BATCH = 32
LEARNING_RATE = 4e-3
HEADS = 2
SEQUENCES = 1024
"""Number of test sequences on which predictors are compared; the same for all transformers."""


@dataclass(frozen=True)
class TransformerShape:
    """Shape of a transformer, and the noise of its training tasks."""

    layers: int
    width: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Such as `4 layers of width 32, noise 0.5`."""
        shape = f"{layers_in_words(self.layers)} of width {self.width}"
        return f"{shape}, noise {self.noise:g}" if self.noise else shape


def tasks_of(config: RegressionConfig, noise: float = 0.0) -> RegressionTasks:
    """Linear functions of normal inputs, small enough to be learned in a minute; the last point is a query."""
    return RegressionTasks(
        min(config.dimension, LARGEST_DIMENSION), min(config.points, LARGEST_POINTS) + 1, noise=noise
    )


def notes_on_size(config: RegressionConfig) -> list[str]:
    """A note if the dimension or the number of examples was reduced, else nothing."""
    tasks = tasks_of(config)
    requested, used = (config.dimension, config.points), (tasks.dimension, tasks.points - 1)
    if requested == used:
        return []
    return [
        f"Trained on {used[0]} dimensions and {used[1]} examples instead of {requested[0]} and {requested[1]}: "
        "small transformers learn regression in few dimensions within minutes, in more within hours."
    ]


def trained(
    config: RegressionConfig, store: PieceStore, shape: TransformerShape, tasks: RegressionTasks, steps: int
) -> Decoders:
    """Trained transformers of a shape, one for each seed, from the store or trained now.

    Args:
        config: Settings of the laboratory.
        store: Stores the trained models.
        shape: Layers, width and noise.
        tasks: Distribution of the training tasks.
        steps: Steps of a full training.
    """
    decoder = DecoderConfig(tasks.dimension, shape.width, shape.layers, HEADS)
    training = Training(config.scaled(steps), BATCH, LEARNING_RATE, betas=(0.9, 0.98))
    model = Decoders(decoder, config.seeds)

    def make() -> PieceContent:
        train(model, tasks, training)
        return dict(model.state_dict()), {}

    model.load_state_dict(load_or_make(store, shape.name, f"{decoder} {tasks} {training} {config.seeds}", make).tensors)
    return model.eval().requires_grad_(False)


def draw_sequences(
    tasks: RegressionTasks, n: int | None = None, purpose: Literal["test", "tuning"] = "test"
) -> Sequences:
    """Sequences that no transformer was trained on, in float64, the same in every run.

    Args:
        tasks: Distribution of the sequences.
        n: Number of sequences; `SEQUENCES` by default.
        purpose: `test` for reported results, `tuning` to choose the rate of an exact predictor.
    """
    return tasks.draw(n or SEQUENCES, stream(purpose, 0), torch.float64)


def predictions(model: Decoders, sequences: Sequences) -> Tensor:
    """Every seed's predictions at each point from the points before it, `(seed, sequence, point)`, in float64."""
    seeds = len(model.seeds)
    x, y = sequences.x.float(), sequences.y.float()
    return torch.cat(
        [
            # In chunks, because attention over all sequences and seeds at once takes most of the memory.
            model(inputs.expand(seeds, -1, -1, -1), targets.expand(seeds, -1, -1)).double()
            for inputs, targets in zip(x.split(256), y.split(256), strict=True)
        ],
        dim=1,
    )


def distance(own: Tensor, exact: Tensor) -> Tensor:
    """Squared prediction difference (SPD) at each point, `(seed, point)`.

    Args:
        own: Predictions of the transformers, `(seed, sequence, point)`.
        exact: Predictions of an exact predictor, `(sequence, point)`.

    Source:
        arXiv:2211.15661, section 4.
    """
    return (own - exact).square().mean(1)


def best_rate(make: Callable[[float], Predictor], sequences: Sequences) -> Predictor:
    """The predictor with the best rate over all points of these sequences, to 5 %.

    Use other sequences than those on which results are reported: `draw_sequences(tasks, purpose="tuning")`.
    """
    rates = torch.logspace(-2, 0.5, 52).tolist()
    return best_of([make(rate) for rate in rates], sequences.x, sequences.y, sequences.clean)


def layers_in_words(layers: int) -> str:
    """Such as `1 layer`."""
    return "1 layer" if layers == 1 else f"{layers} layers"
