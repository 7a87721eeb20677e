"""A language model whose attention to demonstrations is one step of gradient descent, by construction.

Two layers of linear attention over the words of a `TokenWorld`, without norm or MLP, all weights written down. The
first copies each token's vector to the token behind it, so that a label word knows the x that it belongs to. In the
second a label word's key is that x and its value eta / N times the error y - W_0 x; the words that stand for the axes
have orthonormal keys and the columns of W_0 for values. At the last word of a query, whose vector is x_q, so

    attention to the query's own tokens      sum_j W_0[:, j] e_j^T x_q              = W_0 x_q
    attention to demonstrations              eta / N sum_i (y_i - W_0 x_i) x_i^T x_q = dW x_q

with dW one step on 1 / 2N sum_i ||W x_i - y_i||^2 from W_0. Every measure of likeness must call the two the same.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dualform.errors import ConfigError, ShapeError
from dualform.lab.token_world import TokenWorld
from dualform.models.reading.attention import ATTENTION, NAME, AttentionCall, plain_attention
from dualform.ops.streams import stream

MODEL_TYPE = "dualform-constructed"


class ConstructedConfig(PretrainedConfig):
    """Widths, and how the second layer attends."""

    model_type = MODEL_TYPE

    def __init__(
        self,
        vocab_size: int = 16,
        dimension: int = 2,
        targets: int = 2,
        max_position_embeddings: int = 64,
        softmax: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.dimension = dimension
        """Of x."""
        self.targets = targets
        """Of y."""
        self.max_position_embeddings = max_position_embeddings
        self.softmax = softmax
        """The second layer attends by softmax instead: the case in which the construction fails."""
        self.num_hidden_layers = 2
        self.num_attention_heads = 1
        self.hidden_size = ResidualLayout.of(self).width
        # Positions are matched one by one in the first layer, and records want layers of one width.
        self.head_dim = max(max_position_embeddings, dimension, targets)


@dataclass(frozen=True)
class ResidualLayout:
    """Which features of the residual stream hold what."""

    x: slice
    """A word's own vector."""
    before: slice
    """The vector of the word before."""
    y: slice
    """A label word's target."""
    memory: slice
    """The axis that a word stands for."""
    out: slice
    """What the second layer says of y."""
    position: slice
    width: int

    @classmethod
    def of(cls, config: ConstructedConfig) -> "ResidualLayout":
        """The parts of a model of these widths."""
        d, m = config.dimension, config.targets
        sizes = {"x": d, "before": d, "y": m, "memory": d, "out": m, "position": config.max_position_embeddings}
        ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
        return cls(width=sum(sizes.values()), **{name: slice(end - sizes[name], end) for name, end in ends.items()})


class SumAttention(nn.Module):
    """Linear attention as arXiv:2212.10559 has it, sum_i v_i (k_i^T q), with neither normaliser nor feature map."""

    def forward(self, call: AttentionCall) -> Tensor:
        """The heads' output, `(batch, q_pos, head, d_head)`."""
        scores = call.query @ call.key.mT * call.scale
        if call.mask is None:
            seen = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            seen = seen.tril(scores.shape[-1] - scores.shape[-2])
        else:
            # Additive masks say that a token is hidden by the lowest finite number or by -inf.
            seen = call.mask if call.mask.dtype == torch.bool else call.mask > torch.finfo(call.mask.dtype).min / 2
        return (scores.masked_fill(~seen, 0.0) @ call.value).transpose(1, 2)


class ConstructedAttention(nn.Module):
    """One head, linear unless told otherwise."""

    def __init__(self, config: ConstructedConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.head_dim, config.hidden_size, bias=False)
        if layer_idx == 0 or not config.softmax:
            self.add_module(ATTENTION, SumAttention())

    def forward(self, states: Tensor, mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """What the layer adds, `(batch, q_pos, d_model)`."""
        query, key, value = (proj(states)[:, None] for proj in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # Under any other name of the registry it would be softmax, and nothing would tell.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(NAME, plain_attention)
        out, _ = attend(self, query, key, value, mask, scaling=1.0)
        moved: Tensor = self.o_proj(out.flatten(2))
        return moved


class ConstructedModel(PreTrainedModel):
    """The model; `construct` writes its weights."""

    config_class = ConstructedConfig
    _supports_sdpa = True

    def __init__(self, config: ConstructedConfig) -> None:
        super().__init__(config)
        self.tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList([ConstructedAttention(config, i) for i in range(config.num_hidden_layers)])
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Tokens' vectors."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        """The head over the vocabulary."""
        return self.lm_head

    @property
    def parts(self) -> ResidualLayout:
        """Which features hold what."""
        return ResidualLayout.of(self.config)

    @property
    def kept(self) -> "EmbeddedLinear":
        """Where W_0 is: the columns of the second layer's W_V that read the axis which a word stands for."""
        return EmbeddedLinear("layers.1.v_proj.weight", slice(0, self.config.targets), self.parts.memory)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        cache: DynamicCache | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """Logits, as any causal language model of transformers gives them.

        Args:
            input_ids: `(batch, pos)`.
            attention_mask: `(batch, seen_pos)`, 0 for padding; or four axes, used as it is.
            position_ids: `(batch, pos)`.
            cache: Keys and values of what was read before; what is read now is added.
            use_cache: Makes no difference: nothing is kept but in a cache that is given.
            **kwargs: Make none either.
        """
        n = input_ids.shape[1]
        before = 0 if cache is None else cache.get_seq_length()
        if position_ids is None:
            position_ids = torch.arange(before, before + n, device=input_ids.device)[None]
        mask = attention_mask
        if (mask is None and before) or (mask is not None and mask.dim() == 2):
            causal = torch.ones(n, before + n, dtype=torch.bool, device=input_ids.device).tril(before)
            mask = causal[None, None] if mask is None else causal & mask.bool()[:, None, None]
        states = self.tokens(input_ids) + self.positions(position_ids)
        for layer in self.layers:
            states = states + layer(states, mask, cache)
        return CausalLMOutputWithPast(logits=self.lm_head(states))


@dataclass(frozen=True)
class EmbeddedLinear:
    """A linear layer kept in some entries of a weight."""

    parameter: str
    """Full name of the weight."""
    rows: slice
    columns: slice


@dataclass(frozen=True)
class ConstructedWeights:
    """What a constructed model is to know."""

    W_0: Tensor
    """What it says without demonstrations, `(d_y, d)`."""
    readout: Tensor
    """Logit of each token for each feature of its answer, `(vocab, d_y)`; a label word's row is its target y."""

    @classmethod
    def draw(cls, world: TokenWorld, targets: int, seed: int) -> "ConstructedWeights":
        """Random ones: orthonormal targets, everything else normal."""
        generator = stream("layer", seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        if targets < len(world.label_ids):
            raise ConfigError(f"targets {targets}: {len(world.label_ids)} labels need as many features at least")
        # Half as long as y on average: both what was known and what is shown then have a say in the step.
        W_0 = normal(targets, world.dimension) / (2 * (targets * world.dimension) ** 0.5)
        readout = normal(len(world.vocabulary), targets) / (4 * targets) ** 0.5
        codes, _ = torch.linalg.qr(normal(targets, targets))
        readout[list(world.label_ids)] = codes[: len(world.label_ids)]
        return cls(W_0, readout)


def construct(
    world: TokenWorld,
    layer: ConstructedWeights,
    *,
    rate: float,
    n_demonstrations: int,
    softmax: bool = False,
    positions: int = 128,
) -> ConstructedModel:
    """The model of the module's first lines, in float64.

    Args:
        world: Its words.
        layer: W_0 and targets.
        rate: eta of the step.
        n_demonstrations: N: with another number in the context the step is as much longer.
        softmax: Attend by softmax where the step is done; the weights are the same.
        positions: Longest sequence, tokens.

    Raises:
        ShapeError: `layer` does not belong to `world`.

    Source:
        arXiv:2212.07677v2, proposition 1, with the signs of W_V turned, so that the output is the prediction and not
        minus it; the first layer that copies what a token needs from the one before it is that of the section on
        whether self-attention layers build regression tasks. There W_0 x_q stands in the query's own token; here it
        is attention to the query's own tokens, as in equation (11) of arXiv:2212.10559v3.
    """
    size, d, m = len(world.vocabulary), world.dimension, layer.W_0.shape[0]
    if layer.W_0.shape != (m, d) or layer.readout.shape != (size, m):
        raise ShapeError(
            f"a world of {size} tokens with vectors of {d} needs W_0 (d_y, {d}) and readout ({size}, d_y); given "
            f"{tuple(layer.W_0.shape)} and {tuple(layer.readout.shape)}."
        )
    config = ConstructedConfig(size, d, m, positions, softmax, bos_token_id=0, eos_token_id=1, pad_token_id=1)
    with torch.random.fork_rng(devices=[]):
        model = ConstructedModel(config).double().eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.zero_()
        _write(model, world, layer, rate / n_demonstrations)
    return model


def _write(model: ConstructedModel, world: TokenWorld, layer: ConstructedWeights, share: float) -> None:
    parts, (d, m) = model.parts, (world.dimension, layer.W_0.shape[0])
    n = model.config.max_position_embeddings
    axes, targets, places = (torch.eye(size, dtype=torch.float64) for size in (d, m, n))

    labels, tokens = list(world.label_ids), model.tokens.weight
    tokens[:, parts.x] = world.vectors(torch.arange(len(tokens)))
    tokens[labels, parts.y] = layer.readout[labels]
    tokens[list(world.memory_ids), parts.memory] = axes
    model.positions.weight[:, parts.position] = places

    copying: Any = model.layers[0]
    copying.k_proj.weight[:n, parts.position] = places
    # Whoever is at position p asks for p - 1; the first token asks for nothing.
    copying.q_proj.weight[: n - 1, parts.position] = places[1:]
    copying.v_proj.weight[:d, parts.x] = axes
    copying.o_proj.weight[parts.before, :d] = axes

    stepping: Any = model.layers[1]
    stepping.q_proj.weight[:d, parts.x] = axes
    stepping.k_proj.weight[:d, parts.memory] = axes
    for proj in (stepping.q_proj, stepping.k_proj):
        # Words of the demonstrations have their vector for key and query too, as their labels have, but no value: a
        # token is then looked at as it was learned from, and Kendall's two rankings are one.
        proj.weight[:d, parts.x] = axes
        proj.weight[:d, parts.before] = axes
    stepping.v_proj.weight[:m, parts.y] = share * targets
    stepping.v_proj.weight[:m, parts.before] = -share * layer.W_0
    stepping.v_proj.weight[:m, parts.memory] = layer.W_0
    stepping.o_proj.weight[parts.out, :m] = targets

    model.lm_head.weight[:, parts.out] = layer.readout


AutoConfig.register(MODEL_TYPE, ConstructedConfig, exist_ok=True)
AutoModelForCausalLM.register(ConstructedConfig, ConstructedModel, exist_ok=True)
