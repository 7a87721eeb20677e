"""Causal models of in-context regression that differ only in their mixer: attention, or a fast-weight layer.

Tokens are (x_1, 0) (x_1, y_1) (x_2, 0) (x_2, y_2) ..., each with a mark that says whether y is in it. Models of one
seed begin with the same weights: what a mixer has beyond q, k, v and output projections begins constant, so that it
draws nothing.
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
"""Mixers that are no rule of `fast_weights`."""

Mixer = Attention | FastWeightRule
"""What carries information from one token to another."""

MIXERS: tuple[Mixer, ...] = (*get_args(Attention), *RULES)
"""`softmax`; `linear-attention`, without rates; `momentum`, softmax with a decaying sum of values; `heavy-ball`, linear
attention that descends with momentum; and the rules of `fast_weights`, with rates read from each token."""

_GATES: dict[Mixer, tuple[str, ...]] = {
    "linear": ("rate",),
    "delta": ("rate",),
    "gated-delta": ("rate", "decay"),
    "longhorn": ("rate",),
    "mesa": ("rate",),
    "ttt-linear": ("rate",),
    "titans": ("rate", "decay", "momentum"),
}
"""What each rule reads from each token. A function that does not change has little use for decay, and mesa with decay
solves a system at every token, three times as slow: it goes without."""

_STARTS = {"rate": 0.5, "decay": 0.98, "momentum": 0.5}
"""Where each begins, whatever the token."""

_ANY_RATE = ("linear", "longhorn")
"""Rules that no rate makes unstable: theirs is any positive number, others' below 1."""

_LEAST_RIDGE = 1e-3
"""Mesa's, with which its systems can be solved in float32 however few tokens there were."""

_NORMED = ("ttt-linear", "titans")
"""Rules with a LayerNorm of their own."""


@dataclass(frozen=True)
class SequenceModelConfig:
    """A model's shape."""

    mixer: Mixer
    dimension: int
    """Of x."""
    width: int = 32
    layers: int = 2
    heads: int = 2
    mlp: int = 0
    """Hidden units of the MLP after each mixer; 0 for none."""
    chunk: int = 64
    """Tokens a chunk, in mixers that have them."""
    mini_batch: int = 2
    """Tokens that share the weights at which ttt-linear and titans take gradients: the two of an example."""
    llama: bool = False
    """The blocks are those of a Llama of transformers, with softmax, so that edits of language models can be made to
    them."""

    def __post_init__(self) -> None:
        if self.mixer not in MIXERS:
            raise ConfigError(f"mixer is {self.mixer!r}; expected one of {', '.join(map(repr, MIXERS))}.")
        least = {"dimension": 1, "width": 1, "layers": 1, "heads": 1, "mlp": 0, "chunk": 2, "mini_batch": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ConfigError(f"{name} is {getattr(self, name)}; expected {bound} or more.")
        if self.width % self.heads:
            raise ConfigError(f"width {self.width} cannot be shared out among {self.heads} heads; give a multiple.")
        if self.llama and (self.mixer != "softmax" or not self.mlp):
            raise ConfigError(
                f"mixer is {self.mixer!r} and mlp {self.mlp}; expected 'softmax' and 1 or more, as a Llama has them."
            )


class SequenceModel(nn.Module):
    """Pre-norm blocks of a mixer and, where asked for, an MLP; at each (x, 0) it predicts y.

    x and y of an example share a token, as in arXiv:2212.07677, section 3: nothing has to be copied from one token to
    the next before the examples can be used. Tokens have no positions but their order.

    Args:
        config: The model's shape.
        seed: Of its weights; those that all mixers have are the same for all of them.
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
        """Predictions of y at each point from the points before, `(sequence, point)`.

        Args:
            x: `(sequence, point, d)`.
            y: `(sequence, point)`.

        Raises:
            ShapeError: They are of other shapes.
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

    def losses(self, drawn: Sequence[Sequences]) -> Tensor:
        """Mean squared error over all points of one batch, `()`; see `training.InContextModel`."""
        (one,) = drawn
        return F.mse_loss(self(one.x, one.y), one.y)


def _tokens(x: Tensor, y: Tensor) -> Tensor:
    """`(sequence, token, x y mark)`, two tokens a point."""
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
    """All blocks of a Llama; positions are rotary, so that there can be any number of tokens."""

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
        read: Tensor = self.transformer.model(inputs_embeds=states, use_cache=False)[0]
        return read


class MixerLayer(nn.Module):
    """One mixer between learned projections, with what its rule reads from each token.

    Keys and queries of fast weights other than `linear` have unit length, without which a rate below 1 may still be too
    large for the step that it scales. What sums over all tokens without ever taking away (`linear-attention`,
    `heavy-ball`, `linear`) is divided by their number, the 1 / N of a gradient step on a mean.

    Args:
        config: Width, heads, mixer.

    Source:
        Rates from the token: arXiv:2102.11174, section 4.2; decays: arXiv:2412.06464; momentum: arXiv:2501.00663.
        Learned ridge: arXiv:2506.05233. Learned first weights: arXiv:2407.04620, which adds a residual and another
        LayerNorm to what is read, as we do not. A LayerNorm in titans, and where everything begins, is this library's.
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
            # A LayerNorm has no useful gradient at zero.
            self.start = nn.Parameter(torch.eye(d_head).repeat(1, heads, 1, 1))

    def forward(self, states: Tensor) -> Tensor:
        """What each token receives, `(sequence, token, width)`.

        Args:
            states: `(sequence, token, width)`.
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
        # As softmax has it; here so that the model begins no further from zero.
        scaled = q / math.sqrt(q.shape[-1])
        if mixer == "linear-attention":
            return _mean(momentum_linear_attention(scaled, k, v, 0.0, kind="none", chunk=chunk))
        if mixer == "heavy-ball":
            return _mean(momentum_linear_attention(scaled, k, v, self.eta.sigmoid(), chunk=chunk))
        read: dict[str, Any] = {name: gate(states) for name, gate in self.gates.items()}
        if mixer == "linear":
            return _mean(fast_weights("linear", scaled, k, v, chunk=chunk, **read).output)
        if mixer == "mesa":
            read["ridge"] = _LEAST_RIDGE + F.softplus(self.ridge)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        if mixer in _NORMED:
            read["norm"] = (self.norm_weight, self.norm_bias)
            read["state"] = FastWeightState(mixer, self.start.expand(len(q), -1, -1, -1))
            read["mini_batch"] = self.config.mini_batch
        return fast_weights(mixer, q, k, v, chunk=chunk, **read).output


class _Gate(nn.Module):
    """A positive number a head, read from each token: `(n, t, width)` -> `(n, h, t)`; at first the same for all."""

    def __init__(self, config: SequenceModelConfig, start: float, bounded: bool) -> None:
        super().__init__()
        self.bounded = bounded
        self.weight = nn.Parameter(torch.zeros(config.heads, config.width))
        self.bias = nn.Parameter(torch.full((config.heads,), _logit(start) if bounded else _inverse_softplus(start)))

    def forward(self, states: Tensor) -> Tensor:
        read = F.linear(states, self.weight, self.bias).mT
        return read.sigmoid() if self.bounded else F.softplus(read)


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
    """A model trained to predict every point of a sequence from those before.

    Args:
        config: The model's shape.
        tasks: What the sequences are drawn from, see `training.train`; their dimension is the model's.
        training: How.
        seed: Of weights and sequences: equal seeds begin alike and see the same sequences, whatever the mixer.
        prepare: Edits the Llama that the blocks belong to, before it is trained.
        after_step: Called after each step.

    Raises:
        ConfigError: The dimensions of model and tasks differ.
        TrainingError: The loss or its gradient is NaN or infinite.
    """
    for one in [tasks] if isinstance(tasks, RegressionTasks) else tasks:
        if config.dimension != one.dimension:
            raise ConfigError(f"the model takes x of dimension {config.dimension}, the tasks have {one.dimension}.")
    model = SequenceModel(config, seed)
    if prepare is not None:
        prepare(model.blocks[0].transformer)
    train(model.train(), tasks, training, name=config.mixer, after_step=after_step)
    return model.eval()
