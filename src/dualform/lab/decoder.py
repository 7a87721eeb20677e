"""Causal transformers of one shape, one for each seed, trained together on in-context regression.

Models this small spend their time between operations rather than in them, so the seeds of a study share every
operation: their weights are stacked along a leading axis, and what one of them learns never touches another.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dualform.errors import ShapeError
from dualform.lab.regression_tasks import Sequences
from dualform.ops.streams import stream


@dataclass(frozen=True)
class DecoderConfig:
    """Shape of a causal transformer over examples (x, y)."""

    dimension: int
    """Of inputs."""
    width: int
    layers: int
    heads: int = 2

    def __post_init__(self) -> None:
        if min(self.dimension, self.width, self.layers, self.heads) < 1 or self.width % self.heads:
            raise ShapeError(
                f"a decoder of width {self.width}, {self.layers} layers and {self.heads} heads on inputs of "
                f"{self.dimension} numbers: all must be 1 or more, and the width a multiple of the heads."
            )


class Decoders(nn.Module):
    """Softmax transformers that say what y is at each point from the points before, one for each seed.

    An example is one token (x, y, 1), as in arXiv:2212.07677, and a question is another (x, 0, 0). A question sees
    itself and the examples before it, an example itself and those before it. No example sees a question, so asking
    changes nothing, and there are no positions, so that there can be more examples than in training.
    Pre-norm blocks (RMSNorm), attention, and an MLP of four times the width with GELU.

    Args:
        config: Shape of each.
        seeds: Of their weights.
    """

    def __init__(self, config: DecoderConfig, seeds: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.seeds = tuple(seeds)
        width, d = config.width, config.dimension
        # What a residual stream of `layers` blocks takes in is kept of one size, as in GPT-2.
        deep = 1 / math.sqrt(2 * config.layers)
        sizes = {"read_in": (d + 2, width, 1.0), "read_out": (width, 1, 1.0)}
        for layer in range(config.layers):
            sizes |= {
                f"attend_{layer}": (width, 3 * width, 1.0),
                f"attended_{layer}": (width, width, deep),
                f"mlp_in_{layer}": (width, 4 * width, 1.0),
                f"mlp_out_{layer}": (4 * width, width, deep),
            }
        generators = [stream("weights", seed) for seed in self.seeds]
        self.weights = nn.ParameterDict()
        self.biases = nn.ParameterDict()
        for name, (fan_in, fan_out, scale) in sizes.items():
            drawn = [torch.randn(fan_in, fan_out, generator=generator) for generator in generators]
            self.weights[name] = nn.Parameter(torch.stack(drawn) * scale / math.sqrt(fan_in))
            self.biases[name] = nn.Parameter(torch.zeros(len(self.seeds), 1, fan_out))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of y at each point from the points before, `(seed, sequence, point)`.

        Args:
            x: `(seed, sequence, point, d)`: each seed's own sequences, or the same for all, expanded.
            y: `(seed, sequence, point)`.

        Raises:
            ShapeError: They are not of these shapes.
        """
        before = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril(-1)
        return self._ask(x, y, x, before)

    def predict(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions of y at inputs of one's own, each from all examples, `(seed, sequence, query)`.

        Args:
            x: `(seed, sequence, point, d)`; there may be no point.
            y: `(seed, sequence, point)`.
            asked: `(seed, sequence, query, d)`.

        Raises:
            ShapeError: They are not of these shapes.
        """
        everything = torch.ones(asked.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device)
        return self._ask(x, y, asked, everything)

    def losses(self, drawn: Sequence[Sequences]) -> Tensor:
        """Mean squared error to y, with its noise, over all points, `(seed,)`; see `training.InContextModel`."""
        x, y = torch.stack([one.x for one in drawn]), torch.stack([one.y for one in drawn])
        return (self(x, y) - y).square().mean((1, 2))

    def only(self, seed: int) -> "Decoders":
        """The model of one seed by itself."""
        number = self.seeds.index(seed)
        alone = Decoders(self.config, [seed])
        alone.load_state_dict({name: value[number : number + 1] for name, value in self.state_dict().items()})
        return alone.eval().requires_grad_(False)

    def _ask(self, x: Tensor, y: Tensor, asked: Tensor, sees: Tensor) -> Tensor:
        """Predictions at `asked`, where `sees` `(query, point)` says which examples each question sees."""
        self._require(x, y, asked)
        seeds, n, points, _ = x.shape
        examples = torch.cat([x, y[..., None], torch.ones_like(y)[..., None]], dim=-1)
        tokens = torch.cat([examples, F.pad(asked, (0, 2))], dim=2)
        states = self._linear("read_in", tokens.flatten(1, 2))
        mask = _mask(sees)
        for layer in range(self.config.layers):
            q, k, v = (
                part.unflatten(1, (n, -1)).unflatten(-1, (self.config.heads, -1)).flatten(0, 1).transpose(1, 2)
                for part in self._linear(f"attend_{layer}", _norm(states)).chunk(3, dim=-1)
            )
            if layer == self.config.layers - 1:
                # Nobody reads what becomes of the examples in the last layer.
                q, mask, states = q[:, :, points:], mask[points:], self._questions(states, n, points)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, (seeds, n)).flatten(1, 2)
            states = states + self._linear(f"attended_{layer}", mixed)
            hidden = F.gelu(self._linear(f"mlp_in_{layer}", _norm(states)))
            states = states + self._linear(f"mlp_out_{layer}", hidden)
        return self._linear("read_out", _norm(states)).view(seeds, n, -1)

    @staticmethod
    def _questions(states: Tensor, n: int, points: int) -> Tensor:
        return states.unflatten(1, (n, -1))[:, :, points:].flatten(1, 2)

    def _require(self, x: Tensor, y: Tensor, asked: Tensor) -> None:
        whole = (len(self.seeds), self.config.dimension)
        fits = all(one.dim() == 4 and one.shape[::3] == whole for one in (x, asked))
        if not fits or y.shape != x.shape[:3] or asked.shape[1] != x.shape[1]:
            raise ShapeError(
                f"x {tuple(x.shape)}, y {tuple(y.shape)} and asked {tuple(asked.shape)}: expected (seed, sequence, "
                f"point, d), (seed, sequence, point) and (seed, sequence, query, d) with {whole[0]} seeds and d = "
                f"{whole[1]}."
            )

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[name], states, self.weights[name])


@dataclass(frozen=True)
class InContextPredictor:
    """One seed's model as a predictor, so that it is asked and compared as those that are exact."""

    name: str
    model: Decoders
    """Of one seed: `Decoders.only`."""

    def __call__(self, x: Tensor, y: Tensor, asked: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`, in the dtype of what was asked.

        Args:
            x: Inputs in context, `(sequence, point, d)`.
            y: Their targets, `(sequence, point)`.
            asked: Inputs whose y is asked for, `(sequence, query, d)`.
        """
        with torch.no_grad():
            return self.model.predict(x[None].float(), y[None].float(), asked[None].float())[0].to(asked.dtype)

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions at each point from the points before, `(sequence, point)`."""
        with torch.no_grad():
            predicted: Tensor = self.model(x[None].float(), y[None].float())[0]
            return predicted.to(y.dtype)


def _mask(sees: Tensor) -> Tensor:
    """Which tokens (columns) each token (rows) sees: examples, then questions.

    Args:
        sees: Which examples each question sees, `(query, point)`.
    """
    queries, points = sees.shape
    example = torch.ones(points, points, dtype=torch.bool, device=sees.device).tril()
    itself = torch.eye(queries, dtype=torch.bool, device=sees.device)
    return torch.cat([F.pad(example, (0, queries)), torch.cat([sees, itself], dim=1)])


def _norm(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:])
