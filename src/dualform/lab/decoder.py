"""Causal transformers of one shape, one for each seed, trained together on in-context regression.

For models this small the overhead of each operation dominates. The models of all seeds therefore share every operation:
their weights are stacked along a leading axis, and the models stay independent.
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
    """Dimension of the inputs."""
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
    """Softmax transformers, one for each seed, that predict y at each point from the points before it.

    An example is one token (x, y, 1), as in arXiv:2212.07677, and a query another, (x, 0, 0). Each token attends
    to itself and to the examples before it. No token attends to a query, so queries do not affect other predictions,
    and there are no positions, so there may be more examples than in training. Blocks are pre-norm (RMSNorm), with an
    MLP of four times the width and GELU.

    Args:
        config: Shape of each model.
        seeds: Seeds of the initial weights, one for each model.
    """

    def __init__(self, config: DecoderConfig, seeds: Sequence[int]) -> None:
        super().__init__()
        self.config = config
        self.seeds = tuple(seeds)
        width, d = config.width, config.dimension
        # Scaled as in GPT-2, so that the size of the residual stream does not grow with the number of blocks.
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
        """Predictions of y at each point from the points before it, `(seed, sequence, point)`.

        Args:
            x: Inputs, `(seed, sequence, point, d)`.
            y: Targets, `(seed, sequence, point)`.

        Raises:
            ShapeError: If a shape differs from these.
        """
        before = torch.ones(x.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device).tril(-1)
        return self._predict(x, y, x, before)

    def predict(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions of y at query inputs, each from all examples, `(seed, sequence, query)`.

        Args:
            x: Inputs in context, `(seed, sequence, point, d)`; there may be no point.
            y: Targets in context, `(seed, sequence, point)`.
            queries: Query inputs, `(seed, sequence, query, d)`.

        Raises:
            ShapeError: If a shape differs from these.
        """
        every_example = torch.ones(queries.shape[-2], x.shape[-2], dtype=torch.bool, device=x.device)
        return self._predict(x, y, queries, every_example)

    def losses(self, sequences: Sequence[Sequences]) -> Tensor:
        """Mean squared error to the noisy y over all points, `(seed,)`; see `training.InContextModel`."""
        x, y = torch.stack([each.x for each in sequences]), torch.stack([each.y for each in sequences])
        return (self(x, y) - y).square().mean((1, 2))

    def only(self, seed: int) -> "Decoders":
        """A copy of the model of one seed, for evaluation."""
        number = self.seeds.index(seed)
        alone = Decoders(self.config, [seed])
        alone.load_state_dict({name: value[number : number + 1] for name, value in self.state_dict().items()})
        return alone.eval().requires_grad_(False)

    def _predict(self, x: Tensor, y: Tensor, queries: Tensor, visible: Tensor) -> Tensor:
        """Predictions at `queries`; `visible`, `(query, point)`, is True where a query attends to an example."""
        self._require(x, y, queries)
        seeds, n, points, _ = x.shape
        examples = torch.cat([x, y[..., None], torch.ones_like(y)[..., None]], dim=-1)
        tokens = torch.cat([examples, F.pad(queries, (0, 2))], dim=2)
        states = self._linear("read_in", tokens.flatten(1, 2))
        mask = _mask(visible)
        for layer in range(self.config.layers):
            q, k, v = (
                part.unflatten(1, (n, -1)).unflatten(-1, (self.config.heads, -1)).flatten(0, 1).transpose(1, 2)
                for part in self._linear(f"attend_{layer}", _norm(states)).chunk(3, dim=-1)
            )
            if layer == self.config.layers - 1:
                # The last layer needs only the queries' states.
                q, mask, states = q[:, :, points:], mask[points:], self._query_states(states, n, points)
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
            mixed = mixed.transpose(1, 2).flatten(2).unflatten(0, (seeds, n)).flatten(1, 2)
            states = states + self._linear(f"attended_{layer}", mixed)
            hidden = F.gelu(self._linear(f"mlp_in_{layer}", _norm(states)))
            states = states + self._linear(f"mlp_out_{layer}", hidden)
        return self._linear("read_out", _norm(states)).view(seeds, n, -1)

    @staticmethod
    def _query_states(states: Tensor, n: int, points: int) -> Tensor:
        return states.unflatten(1, (n, -1))[:, :, points:].flatten(1, 2)

    def _require(self, x: Tensor, y: Tensor, queries: Tensor) -> None:
        expected = (len(self.seeds), self.config.dimension)
        valid = all(inputs.dim() == 4 and inputs.shape[::3] == expected for inputs in (x, queries))
        if not valid or y.shape != x.shape[:3] or queries.shape[1] != x.shape[1]:
            raise ShapeError(
                f"x {tuple(x.shape)}, y {tuple(y.shape)} and queries {tuple(queries.shape)}: expected (seed, sequence, "
                f"point, d), (seed, sequence, point) and (seed, sequence, query, d) with {expected[0]} seeds and d = "
                f"{expected[1]}."
            )

    def _linear(self, name: str, states: Tensor) -> Tensor:
        return torch.baddbmm(self.biases[name], states, self.weights[name])


@dataclass(frozen=True)
class InContextPredictor:
    """A trained model of one seed as a `Predictor`, to be compared with exact predictors."""

    name: str
    model: Decoders
    """The model of one seed, from `Decoders.only`."""

    def __call__(self, x: Tensor, y: Tensor, queries: Tensor) -> Tensor:
        """Predictions, `(sequence, query)`, in the dtype of `queries`.

        Args:
            x: Inputs in context, `(sequence, point, d)`.
            y: Targets in context, `(sequence, point)`.
            queries: Query inputs, `(sequence, query, d)`.
        """
        with torch.no_grad():
            return self.model.predict(x[None].float(), y[None].float(), queries[None].float())[0].to(queries.dtype)

    def by_point(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions at each point from the points before it, `(sequence, point)`."""
        with torch.no_grad():
            predicted: Tensor = self.model(x[None].float(), y[None].float())[0]
            return predicted.to(y.dtype)


def _mask(visible: Tensor) -> Tensor:
    """Attention mask over examples, then queries: True where the row's token attends to the column's token.

    Args:
        visible: Whether each query attends to each example, `(query, point)`.
    """
    queries, points = visible.shape
    causal = torch.ones(points, points, dtype=torch.bool, device=visible.device).tril()
    itself = torch.eye(queries, dtype=torch.bool, device=visible.device)
    return torch.cat([F.pad(causal, (0, queries)), torch.cat([visible, itself], dim=1)])


def _norm(states: Tensor) -> Tensor:
    return F.rms_norm(states, states.shape[-1:])
