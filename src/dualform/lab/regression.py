"""In-context regression: examples of a linear function one after the other, and models that learn to go on from them.

Each sequence has a function of its own, so what a model knows of it is what the examples before have shown. The inputs'
covariance has a given condition number: the larger it is, the slower gradient descent on the examples, and the more
momentum would help it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dualform.errors import TrainingError
from dualform.lab.predictors import Descent, by_point
from dualform.lab.regression_tasks import random_directions, stretched
from dualform.lab.schedule import set_rate_
from dualform.ops.streams import stream, stream_seed


@dataclass(frozen=True)
class LinearTasks:
    """y = w x with w drawn anew for each sequence; inputs normal, mean 0, trace of their covariance `dimension`.

    Source:
        arXiv:2208.01066, section 3 (isotropic); skewed covariances there in section 4.
    """

    dimension: int
    points: int
    """Examples of a sequence, the last of which only its y is asked for."""

    def draw(self, n: int, condition: float, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Sequences.

        Args:
            n: How many.
            condition: Largest over smallest eigenvalue of the covariance, at least 1; the others lie between on a
                geometric scale, in directions of each sequence's own.
            generator: Draws.

        Returns:
            x `(sequence, point, d)` and y `(sequence, point)`, with E y^2 = 1 on average over functions.
        """
        d = self.dimension
        # Turned at condition 1 too, where it changes nothing but the numbers drawn: those of finished runs.
        directions = random_directions(n, d, generator)
        x = stretched(torch.randn(n, self.points, d, generator=generator), condition, directions)
        w = torch.randn(n, d, 1, generator=generator) / math.sqrt(d)
        return x, (x @ w)[..., 0]


class InContextRegressor(nn.Module):
    """A small transformer over sequences (x_1, 0) (x_1, y_1) (x_2, 0) (x_2, y_2) ...; at each (x, 0) it says what y is.

    x and y of an example share a token, as in arXiv:2212.07677: nothing has to be copied from one token to the next
    before the examples can be used, which a sum over the last few values would make easier than it is for softmax.

    Args:
        tasks: What the sequences are like.
        width: Of the transformer.
        layers: Of the transformer.
        heads: Of the transformer.
        seed: Of its weights.
    """

    def __init__(self, tasks: LinearTasks, width: int = 64, layers: int = 3, heads: int = 4, seed: int = 0) -> None:
        super().__init__()
        config = LlamaConfig(
            vocab_size=8,
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            num_key_value_heads=heads,
            max_position_embeddings=2 * tasks.points,
            tie_word_embeddings=True,
        )
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed("weights", seed))
            self.transformer: PreTrainedModel = LlamaForCausalLM(config)
            self.read_in = nn.Linear(tasks.dimension + 1, width)
            self.read_out = nn.Linear(width, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of y at each point from the points before, `(sequence, point)`.

        Args:
            x: `(sequence, point, d)`.
            y: `(sequence, point)`.
        """
        n, points, d = x.shape
        tokens = x.new_zeros(n, points, 2, d + 1)
        tokens[..., :d] = x[:, :, None]
        tokens[:, :, 1, d] = y
        states = self.transformer.model(inputs_embeds=self.read_in(tokens.flatten(1, 2)), use_cache=False)[0]
        predicted: Tensor = self.read_out(states[:, ::2])[..., 0]
        return predicted


def train_regressor(
    tasks: LinearTasks,
    conditions: tuple[float, ...],
    *,
    steps: int,
    seed: int,
    prepare: Callable[[PreTrainedModel], None] | None = None,
    batch: int = 64,
    learning_rate: float = 3e-3,
    after_step: Callable[[int, float], None] = lambda step, loss: None,
) -> InContextRegressor:
    """A model trained on sequences that it never sees twice, each batch of one condition number, in turn.

    Args:
        tasks: What the sequences are like.
        conditions: Of the covariances that it trains on.
        steps: Of training.
        seed: Of weights and sequences: equal seeds begin alike and see the same sequences, whatever `prepare` does.
        prepare: Changes how it attends, before it is trained.
        batch: Sequences of a step.
        learning_rate: AdamW's highest, reached after a tenth of the steps and gone down from along a cosine.
        after_step: Told the steps done and the loss.

    Raises:
        TrainingError: The loss is NaN or infinite.
    """
    model = InContextRegressor(tasks, seed=seed)
    if prepare is not None:
        prepare(model.transformer)
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.0)
    warmup = max(1, steps // 10)
    generator = stream("training", seed)
    model.train()
    for step in range(steps):
        set_rate_(optimiser, learning_rate, step, steps, warmup)
        x, y = tasks.draw(batch, conditions[step % len(conditions)], generator)
        loss = F.mse_loss(model(x, y), y)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise TrainingError(f"step {step + 1}: the loss is {value}. Lower the learning rate.")
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        after_step(step + 1, value)
    return model.eval()


def errors_by_point(predicted: Tensor, y: Tensor) -> Tensor:
    """Mean squared error at each point over that of predicting zero, `(point,)`.

    Args:
        predicted: `(sequence, point)`.
        y: `(sequence, point)`.
    """
    return (predicted - y).square().mean(0) / y.square().mean()


def best_descent(x: Tensor, y: Tensor, steps: int, heavy_ball: bool) -> Tensor:
    """Predictions by descent at each point, with the rate (of heavy ball, momentum too) that is best over all points.

    Args:
        x: `(sequence, point, d)`.
        y: `(sequence, point)`.
        steps: Of descent on the examples before the point.
        heavy_ball: Try momentum too.

    Returns:
        `(sequence, point)`.
    """
    found, least = None, math.inf
    for momentum in (0.0, 0.3, 0.5, 0.7, 0.9) if heavy_ball else (0.0,):
        for rate in torch.logspace(-2, 0.5, 16).tolist():
            predicted = by_point(Descent(steps, rate, momentum), x, y)
            error = float((predicted - y).square().mean())
            if error < least:
                found, least = predicted, error
    assert found is not None
    return found
