"""A language model whose attention to demonstrations is one step of gradient descent, by construction.

Two layers of linear attention over the words of a `TokenWorld`, without norm or MLP, with explicit weights. The first
layer copies each token's vector to the next token, so that a label word contains the x that it belongs to. In the
second layer a label word has this x as its key and eta / N times the error y - W_0 x as its value; memory words, one
for each axis, have orthonormal keys and the columns of W_0 as values. At the last word of a query, with vector x_q,
therefore

    attention to the query's own tokens      sum_j W_0[:, j] e_j^T x_q              = W_0 x_q
    attention to demonstrations              eta / N sum_i (y_i - W_0 x_i) x_i^T x_q = dW x_q

where dW is one gradient step on 1 / 2N sum_i ||W x_i - y_i||^2 from W_0. Every measure of similarity between in-context
learning and this step must give its perfect score.
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
from dualform.models.reading.attention import NAME, REPLACED_ATTENTION, AttentionCall, plain_attention
from dualform.ops.streams import stream

MODEL_TYPE = "dualform-constructed"


class ConstructedConfig(PretrainedConfig):
    """Widths of the model, and the kind of attention of its second layer."""

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
        """Dimension of x."""
        self.targets = targets
        """Dimension of y."""
        self.max_position_embeddings = max_position_embeddings
        self.softmax = softmax
        """Whether the second layer has softmax attention instead, with which the construction fails."""
        self.num_hidden_layers = 2
        self.num_attention_heads = 1
        self.hidden_size = ResidualLayout.of(self).width
        # The first layer needs a feature for each position, and all layers must have the same width.
        self.head_dim = max(max_position_embeddings, dimension, targets)


@dataclass(frozen=True)
class ResidualLayout:
    """Features of the residual stream, by content."""

    x: slice
    """Vector of the word."""
    before: slice
    """Vector of the previous word."""
    y: slice
    """Target of a label word."""
    memory: slice
    """Axis of a memory word."""
    out: slice
    """Prediction of y by the second layer."""
    position: slice
    """Position of the token."""
    width: int
    """Total number of features."""

    @classmethod
    def of(cls, config: ConstructedConfig) -> "ResidualLayout":
        """Layout for the widths of a config."""
        d, m = config.dimension, config.targets
        sizes = {"x": d, "before": d, "y": m, "memory": d, "out": m, "position": config.max_position_embeddings}
        ends = dict(zip(sizes, accumulate(sizes.values()), strict=True))
        return cls(width=sum(sizes.values()), **{name: slice(end - sizes[name], end) for name, end in ends.items()})


class SumAttention(nn.Module):
    """Linear attention of arXiv:2212.10559, sum_i v_i (k_i^T q), without normaliser or feature map."""

    def forward(self, call: AttentionCall) -> Tensor:
        """Output of the heads, `(batch, q_pos, head, d_head)`."""
        scores = call.query @ call.key.mT * call.scale
        if call.mask is None:
            visible = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device)
            visible = visible.tril(scores.shape[-1] - scores.shape[-2])
        else:
            # Additive masks hide a token by the lowest finite number or by -inf.
            visible = call.mask if call.mask.dtype == torch.bool else call.mask > torch.finfo(call.mask.dtype).min / 2
        return (scores.masked_fill(~visible, 0.0) @ call.value).transpose(1, 2)


class ConstructedAttention(nn.Module):
    """Attention with one head; linear, except in the second layer if the config has `softmax`."""

    def __init__(self, config: ConstructedConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.q_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.head_dim, bias=False)
        self.o_proj = nn.Linear(config.head_dim, config.hidden_size, bias=False)
        if layer_idx == 0 or not config.softmax:
            self.add_module(REPLACED_ATTENTION, SumAttention())

    def forward(self, states: Tensor, mask: Tensor | None, cache: DynamicCache | None) -> Tensor:
        """Output of the layer, `(batch, q_pos, d_model)`."""
        query, key, value = (proj(states)[:, None] for proj in (self.q_proj, self.k_proj, self.v_proj))
        if cache is not None:
            key, value = cache.update(key, value, self.layer_idx)
        # Any other entry of the registry would silently be softmax attention.
        attend = ALL_ATTENTION_FUNCTIONS.get_interface(NAME, plain_attention)
        out, _ = attend(self, query, key, value, mask, scaling=1.0)
        update: Tensor = self.o_proj(out.flatten(2))
        return update


class ConstructedModel(PreTrainedModel):
    """The constructed model; `construct` sets its weights."""

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
        """Embedding of tokens."""
        return self.tokens

    def get_output_embeddings(self) -> nn.Module:
        """Head over the vocabulary."""
        return self.lm_head

    @property
    def parts(self) -> ResidualLayout:
        """Layout of the residual stream."""
        return ResidualLayout.of(self.config)

    @property
    def embedded_linear(self) -> "EmbeddedLinear":
        """Location of W_0: the columns of the second layer's W_V that read the axis of a memory word."""
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
        """Logits, in the form of any causal language model of transformers.

        Args:
            input_ids: Token ids, `(batch, pos)`.
            attention_mask: `(batch, pos of keys)` with 0 for padding, or a mask with four axes, used unchanged.
            position_ids: Positions, `(batch, pos)`.
            cache: Keys and values of earlier tokens, to which those of the present tokens are added.
            use_cache: Ignored: keys and values are stored only if a cache is given.
            **kwargs: Ignored.
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
    """Location of a linear layer in a block of a larger weight."""

    parameter: str
    """Full name of the larger weight."""
    rows: slice
    columns: slice


@dataclass(frozen=True)
class ConstructedWeights:
    """Weights from which a model is constructed."""

    W_0: Tensor
    """Linear function of the model without demonstrations, `(d_y, d)`."""
    readout: Tensor
    """Output head, `(vocab, d_y)`; the row of a label word is its target y."""

    @classmethod
    def draw(cls, world: TokenWorld, targets: int, seed: int) -> "ConstructedWeights":
        """Random weights: orthonormal targets of label words, everything else normal."""
        generator = stream("layer", seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        if targets < len(world.label_ids):
            raise ConfigError(f"targets is {targets}; expected at least {len(world.label_ids)}, the number of labels")
        # W_0 x is half as long as y on average, so that both W_0 and the demonstrations affect the step.
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
    """The constructed model (see the module), in float64.

    Args:
        world: Words and their vectors.
        layer: W_0 and targets.
        rate: eta of the step.
        n_demonstrations: N of the step; with another number of demonstrations the length of the step is scaled by it.
        softmax: Use softmax attention in the second layer, with the same weights.
        positions: Length of the longest sequence in tokens.

    Raises:
        ShapeError: If the shapes of `layer` do not match `world`.

    Source:
        arXiv:2212.07677v2, proposition 1, with the opposite sign of W_V, so that the output is the prediction and not
        its negative. The copying first layer is from its section on whether self-attention layers build regression
        tasks. There W_0 x_q is stored in the query's token; here it is the attention to the query's own tokens, as in
        equation (11) of arXiv:2212.10559v3.
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

    copy_layer: Any = model.layers[0]
    copy_layer.k_proj.weight[:n, parts.position] = places
    # The token at position p attends to p - 1; the first token attends to nothing.
    copy_layer.q_proj.weight[: n - 1, parts.position] = places[1:]
    copy_layer.v_proj.weight[:d, parts.x] = axes
    copy_layer.o_proj.weight[parts.before, :d] = axes

    step_layer: Any = model.layers[1]
    step_layer.q_proj.weight[:d, parts.x] = axes
    step_layer.k_proj.weight[:d, parts.memory] = axes
    for proj in (step_layer.q_proj, step_layer.k_proj):
        # Words of the demonstrations have the same keys and queries as their labels, but no value, so that the two
        # rankings that Kendall's tau compares are equal.
        proj.weight[:d, parts.x] = axes
        proj.weight[:d, parts.before] = axes
    step_layer.v_proj.weight[:m, parts.y] = share * targets
    step_layer.v_proj.weight[:m, parts.before] = -share * layer.W_0
    step_layer.v_proj.weight[:m, parts.memory] = layer.W_0
    step_layer.o_proj.weight[parts.out, :m] = targets

    model.lm_head.weight[:, parts.out] = layer.readout


AutoConfig.register(MODEL_TYPE, ConstructedConfig, exist_ok=True)
AutoModelForCausalLM.register(ConstructedConfig, ConstructedModel, exist_ok=True)
