"""Causal models of in-context regression that differ only in their mixer: attention, or a fast-weight layer.

Tokens are (x_1, 0) (x_1, y_1) (x_2, 0) (x_2, y_2) ..., each with a flag for whether it contains y. Models with the same
seed start with the same weights: parameters that only some mixers have start at constant values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from dualform.errors import ConfigError, ShapeError
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.training import AfterStep, Training, train
from dualform.ops.fast_weights import RULES, FastWeightRule, FastWeightState, fast_weights
from dualform.ops.momentum import momentum_chunked
from dualform.ops.momentum_dual import momentum_linear_attention
from dualform.ops.streams import stream_seed

Attention = Literal["softmax", "linear-attention", "momentum", "heavy-ball"]
"""Mixers that are not a rule of `fast_weights`."""

Mixer = Attention | FastWeightRule
"""The part of a block that carries information from one token to another."""

MIXERS: tuple[Mixer, ...] = (*get_args(Attention), *RULES)
"""`softmax`; `linear-attention`, without rates; `momentum`, softmax with a decaying sum of values; `heavy-ball`, linear
attention whose dual form is gradient descent with momentum; and the rules of `fast_weights`, with rates computed from
each token."""

_GATES: dict[Mixer, tuple[str, ...]] = {
    "linear": ("rate",),
    "delta": ("rate",),
    "gated-delta": ("rate", "decay"),
    "longhorn": ("rate",),
    "mesa": ("rate",),
    "ttt-linear": ("rate",),
    "titans": ("rate", "decay", "momentum"),
}
"""Gates of each rule, computed from each token. Mesa has no decay: it would be three times as slow, and a function that
does not change has little use for decay."""

_STARTS = {"rate": 0.5, "decay": 0.98, "momentum": 0.5}
"""Initial value of each gate, the same for all tokens."""

_ANY_RATE = ("linear", "longhorn")
"""Rules that are stable for any positive rate; the rates of the others are below 1."""

_LEAST_RIDGE = 1e-3
"""Smallest ridge of mesa, with which its systems can be solved in float32 after any number of tokens."""

_NORMED = ("ttt-linear", "titans")
"""Rules with a LayerNorm inside."""


@dataclass(frozen=True)
class SequenceModelConfig:
    """Shape of a sequence model."""

    mixer: Mixer
    dimension: int
    """Dimension of x."""
    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 0
    """Hidden units of the MLP after each mixer; 0 for no MLP."""
    chunk: int = 64
    """Tokens in a chunk, for mixers that work in chunks."""
    mini_batch: int = 2
    """Number of tokens for which ttt-linear and titans compute gradients at the same weights: the two of an example."""
    llama: bool = False
    """Whether to use the blocks of a Llama from transformers (with softmax), which can be edited like those of language
    models."""

    def __post_init__(self) -> None:
        if self.mixer not in MIXERS:
            raise ConfigError(f"mixer is {self.mixer!r}; expected one of {', '.join(map(repr, MIXERS))}.")
        least = {"dimension": 1, "width": 1, "layers": 1, "heads": 1, "mlp": 0, "chunk": 2, "mini_batch": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {bound} or more.")
        if self.width % self.heads:
            raise ConfigError(f"width is {self.width}; expected a multiple of {self.heads}, the number of heads.")
        if self.llama and (self.mixer != "softmax" or not self.mlp):
            raise ConfigError(
                f"mixer is {self.mixer!r} and mlp {self.mlp}; a Llama needs mixer 'softmax' and mlp 1 or more."
            )


class SequenceModel(nn.Module):
    """Pre-norm blocks of a mixer and an optional MLP; the model predicts y at each token (x, 0).

    x and y of an example share a token, as in arXiv:2212.07677, section 3, so that nothing has to be copied from token
    to token before the examples can be used. There are no positional embeddings.

    Args:
        config: Shape of the model.
        seed: Seed of the weights; weights that all mixers have are the same for all mixers.
    """

    def __init__(self, config: SequenceModelConfig, seed: int = 0) -> None:
        super().__init__()
        self.config = config
        self.seeds = (seed,)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(stream_seed("weights", seed))
            self.read_in = nn.Linear(config.dimension + 2, config.width)
            self.blocks = nn.ModuleList(
                [_LlamaBlocks(config)] if config.llama else [_Block(config) for _ in range(config.layers)]
            )
            self.norm = nn.LayerNorm(config.width)
            self.read_out = nn.Linear(config.width, 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Predictions of y at each point from the points before it, `(sequence, point)`.

        Args:
            x: Inputs, `(sequence, point, d)`.
            y: Targets, `(sequence, point)`.

        Raises:
            ShapeError: If a shape differs from these.
        """
        if x.ndim != 3 or x.shape[2] != self.config.dimension or y.shape != x.shape[:2]:
            raise ShapeError(
                f"x must be (sequence, point, {self.config.dimension}) and y (sequence, point); given "
                f"{tuple(x.shape)} and {tuple(y.shape)}."
            )
        states = self.read_in(_tokens(x, y))
        for block in self.blocks:
            states = block(states)
        predicted: Tensor = self.read_out(self.norm(states[:, ::2]))[..., 0]
        return predicted

    def losses(self, sequences: Sequence[Sequences]) -> Tensor:
        """Mean squared error over all points of one batch, `()`; see `training.InContextModel`."""
        (batch,) = sequences
        return F.mse_loss(self(batch.x, batch.y), batch.y)


def _tokens(x: Tensor, y: Tensor) -> Tensor:
    """Tokens `(sequence, token, d + 2)`, two for each point; the last features are y and the flag."""
    n, points, d = x.shape
    tokens = x.new_zeros(n, points, 2, d + 2)
    tokens[..., :d] = x[:, :, None]
    tokens[:, :, 1, d] = y
    tokens[:, :, 1, d + 1] = 1
    return tokens.flatten(1, 2)


class _Block(nn.Module):
    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(config.width)
        self.mixer = MixerLayer(config)
        self.mlp = None
        if config.mlp:
            self.mlp = nn.Sequential(
                nn.LayerNorm(config.width),
                nn.Linear(config.width, config.mlp),
                nn.GELU(),
                nn.Linear(config.mlp, config.width),
            )

    def forward(self, states: Tensor) -> Tensor:
        states = states + self.mixer(self.norm(states))
        return states if self.mlp is None else states + self.mlp(states)


class _LlamaBlocks(nn.Module):
    """All blocks of a Llama. Positions are rotary, so that there can be any number of tokens."""

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self.transformer: PreTrainedModel = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=8,
                hidden_size=config.width,
                intermediate_size=config.mlp,
                num_hidden_layers=config.layers,
                num_attention_heads=config.heads,
                num_key_value_heads=config.heads,
                tie_word_embeddings=True,
            )
        )

    def forward(self, states: Tensor) -> Tensor:
        output: Tensor = self.transformer.model(inputs_embeds=states, use_cache=False)[0]
        return output


class MixerLayer(nn.Module):
    """One mixer between learned projections, with its gates.

    Keys and queries of fast weights other than `linear` are normalised to unit length; otherwise even a rate below 1
    could be unstable. Mixers that only add up tokens (`linear-attention`, `heavy-ball`, `linear`) divide the sum by the
    number of tokens, like the 1 / N of a gradient step on a mean.

    Args:
        config: Shape of the model.

    Source:
        Rates from the token: arXiv:2102.11174, section 4.2; decays: arXiv:2412.06464; momentum: arXiv:2501.00663.
        Learned ridge: arXiv:2506.05233. Learned initial weights: arXiv:2407.04620, without its residual connection and
        second LayerNorm. The LayerNorm in titans and the initial values are choices of this library.
    """

    def __init__(self, config: SequenceModelConfig) -> None:
        super().__init__()
        self.config = config
        d_head = config.width // config.heads
        self.project = nn.Linear(config.width, 3 * config.width, bias=False)
        self.put_out = nn.Linear(config.width, config.width, bias=False)
        mixer, heads = config.mixer, config.heads
        if mixer in ("momentum", "heavy-ball"):
            self.eta = nn.Parameter(torch.full((heads,), _logit(_STARTS["momentum"])))
        self.gates = nn.ModuleDict()
        for name in _GATES.get(mixer, ()):
            self.gates[name] = _Gate(config, _STARTS[name], bounded=not (name == "rate" and mixer in _ANY_RATE))
        if mixer == "mesa":
            self.ridge = nn.Parameter(torch.full((heads, d_head), _inverse_softplus(1.0)))
        if mixer in _NORMED:
            self.norm_weight = nn.Parameter(torch.ones(heads, d_head))
            self.norm_bias = nn.Parameter(torch.zeros(heads, d_head))
            # Not zero, where a LayerNorm has no useful gradient.
            self.start = nn.Parameter(torch.eye(d_head).repeat(1, heads, 1, 1))

    def forward(self, states: Tensor) -> Tensor:
        """Output of the mixer, `(sequence, token, width)`.

        Args:
            states: Input of the mixer, `(sequence, token, width)`.
        """
        heads = self.config.heads
        q, k, v = rearrange(self.project(states), "n t (three h d) -> three n h t d", three=3, h=heads)
        return self.put_out(rearrange(self._mix(q, k, v, states), "n h t d -> n t (h d)"))

    def _mix(self, q: Tensor, k: Tensor, v: Tensor, states: Tensor) -> Tensor:
        mixer, chunk = self.config.mixer, self.config.chunk
        if mixer == "softmax":
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        if mixer == "momentum":
            attended = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            return attended + momentum_chunked(v, self.eta.sigmoid(), chunk=chunk).term
        # The scale of softmax attention, so that initial outputs are of similar size.
        scaled = q / math.sqrt(q.shape[-1])
        if mixer == "linear-attention":
            return _mean(momentum_linear_attention(scaled, k, v, 0.0, kind="none", chunk=chunk))
        if mixer == "heavy-ball":
            return _mean(momentum_linear_attention(scaled, k, v, self.eta.sigmoid(), chunk=chunk))
        options: dict[str, Any] = {name: gate(states) for name, gate in self.gates.items()}
        if mixer == "linear":
            return _mean(fast_weights("linear", scaled, k, v, chunk=chunk, **options).output)
        if mixer == "mesa":
            options["ridge"] = _LEAST_RIDGE + F.softplus(self.ridge)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if mixer in _NORMED:
            options["norm"] = (self.norm_weight, self.norm_bias)
            options["state"] = FastWeightState(mixer, self.start.expand(len(q), -1, -1, -1))
            options["mini_batch"] = self.config.mini_batch
        return fast_weights(mixer, q, k, v, chunk=chunk, **options).output


class _Gate(nn.Module):
    """A positive number for each head and token: `(n, t, width)` -> `(n, h, t)`; initially the same for all tokens."""

    def __init__(self, config: SequenceModelConfig, start: float, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.weight = nn.Parameter(torch.zeros(config.heads, config.width))
        self.bias = nn.Parameter(torch.full((config.heads,), _logit(start) if bounded else _inverse_softplus(start)))

    def forward(self, states: Tensor) -> Tensor:
        logits = F.linear(states, self.weight, self.bias).mT
        return logits.sigmoid() if self.bounded else F.softplus(logits)


def _mean(sums: Tensor) -> Tensor:
    return sums / torch.arange(1, sums.shape[2] + 1, device=sums.device, dtype=sums.dtype)[:, None]


def _logit(share: float) -> float:
    return math.log(share / (1 - share))


def _inverse_softplus(value: float) -> float:
    return math.log(math.expm1(value))


def train_sequence_model(
    config: SequenceModelConfig,
    tasks: RegressionTasks | Sequence[RegressionTasks],
    training: Training,
    seed: int,
    *,
    prepare: Callable[[PreTrainedModel], None] | None = None,
    after_step: AfterStep = lambda step: None,
) -> SequenceModel:
    """A model trained to predict every point of a sequence from the points before it.

    Args:
        config: Shape of the model.
        tasks: Distribution of the sequences (see `training.train`), with the model's dimension.
        training: Training settings.
        seed: Seed of weights and sequences, which are the same for all mixers.
        prepare: Function that edits the Llama of the blocks before training.
        after_step: Called after each step.

    Raises:
        ConfigError: If the dimensions of model and tasks differ.
        TrainingError: If the loss or its gradient is NaN or infinite.
    """
    for each in [tasks] if isinstance(tasks, RegressionTasks) else tasks:
        if config.dimension != each.dimension:
            raise ConfigError(
                f"the model expects x of dimension {config.dimension}; the tasks have dimension {each.dimension}."
            )
    model = SequenceModel(config, seed)
    if prepare is not None:
        prepare(model.blocks[0].transformer)
    train(model.train(), tasks, training, name=config.mixer, after_step=after_step)
    return model.eval()
