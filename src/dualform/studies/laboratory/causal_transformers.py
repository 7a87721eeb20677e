"""Causal transformers that learn linear regression in context: trained once for all seeds, kept, and read."""

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
"""Beyond these a transformer that a core trains in a minute has not learned to regress, and nothing could be read."""
BATCH = 32
LEARNING_RATE = 4e-3
HEADS = 2
SEQUENCES = 1024
"""On which predictors are compared, the same for all transformers; none was trained on them."""


@dataclass(frozen=True)
class TransformerShape:
    """Of a transformer, and the noise that it learned with."""

    layers: int
    width: int
    noise: float = 0.0

    @property
    def name(self) -> str:
        """Such as `4 layers of width 32, noise 0.5`."""
        shape = f"{layers_in_words(self.layers)} of width {self.width}"
        return f"{shape}, noise {self.noise:g}" if self.noise else shape


def tasks_of(config: RegressionConfig, noise: float = 0.0) -> RegressionTasks:
    """Linear functions of normal inputs, of few enough dimensions to be learned in a minute; the last point asks."""
    return RegressionTasks(
        min(config.dimension, LARGEST_DIMENSION), min(config.points, LARGEST_POINTS) + 1, noise=noise
    )


def notes_on_size(config: RegressionConfig) -> list[str]:
    """What of the settings was cut, if anything."""
    tasks = tasks_of(config)
    given, taken = (config.dimension, config.points), (tasks.dimension, tasks.points - 1)
    if given == taken:
        return []
    return [
        f"Trained on {taken[0]} dimensions and {taken[1]} examples rather than {given[0]} and {given[1]}: "
        "small transformers learn to regress on few dimensions in minutes, on more in hours."
    ]


def trained(
    config: RegressionConfig, store: PieceStore, shape: TransformerShape, tasks: RegressionTasks, steps: int
) -> Decoders:
    """The transformers of a shape, one for each seed: kept from before, or trained now and kept.

    Args:
        config: Seeds, and the share of the steps that is taken.
        store: Keeps them.
        shape: Layers, width and noise.
        tasks: What they learn.
        steps: Steps of a whole training.
    """
    decoder = DecoderConfig(tasks.dimension, shape.width, shape.layers, HEADS)
    training = Training(config.scaled(steps), BATCH, LEARNING_RATE, betas=(0.9, 0.98))
    model = Decoders(decoder, config.seeds)

    def make() -> PieceContent:
        train(model, tasks, training)
        return dict(model.state_dict()), {}

    model.load_state_dict(load_or_make(store, shape.name, f"{decoder} {tasks} {training} {config.seeds}", make).tensors)
    return model.eval().requires_grad_(False)


def drawn(tasks: RegressionTasks, n: int | None = None, purpose: Literal["test", "tuning"] = "test") -> Sequences:
    """`SEQUENCES` or `n` sequences that no transformer was trained on, in float64, the same in every run.

    Args:
        tasks: What they are drawn from.
        n: How many.
        purpose: What results are reported on, or what an exact predictor's rate is chosen on.
    """
    return tasks.draw(n or SEQUENCES, stream(purpose, 0), torch.float64)


def predictions(model: Decoders, sequences: Sequences) -> Tensor:
    """Every seed's predictions at each point from the points before, `(seed, sequence, point)`, in float64."""
    seeds = len(model.seeds)
    x, y = sequences.x.float(), sequences.y.float()
    return torch.cat(
        [
            # A share at a time: attention over all sequences and seeds at once takes more memory than the rest.
            model(some.expand(seeds, -1, -1, -1), targets.expand(seeds, -1, -1)).double()
            for some, targets in zip(x.split(256), y.split(256), strict=True)
        ],
        dim=1,
    )


def distance(own: Tensor, exact: Tensor) -> Tensor:
    """SPD at each point, `(seed, point)`.

    Args:
        own: `(seed, sequence, point)`.
        exact: `(sequence, point)`.

    Source:
        arXiv:2211.15661, section 4.
    """
    return (own - exact).square().mean(1)


def best_rate(make: Callable[[float], Predictor], sequences: Sequences) -> Predictor:
    """The predictor with the rate that is best over all points of these sequences, to 5 %.

    They should not be those that its loss is then reported on: `drawn(tasks, purpose="tuning")`.
    """
    rates = torch.logspace(-2, 0.5, 52).tolist()
    return best_of([make(rate) for rate in rates], sequences.x, sequences.y, sequences.clean)


def layers_in_words(layers: int) -> str:
    """Such as `1 layer`."""
    return "1 layer" if layers == 1 else f"{layers} layers"
