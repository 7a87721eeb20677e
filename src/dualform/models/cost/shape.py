"""The shape of a model, and the floating-point operations that follow from it.

A shape is taken from a model with weights or from one on torch's meta device, so that operations can be counted for a
model that is too large for this machine. Counts include multiplications and additions in linears, in the experts that a
token is sent to, in attention and in the output head. Norms, activations and softmax are left out, because their time
is limited by memory bandwidth.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from dualform.errors import ModelError
from dualform.models.compat import can_set_attention
from dualform.models.cost.work import TrainedWeights
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.reading.self_check import window_of
from dualform.models.structure.anatomy import Anatomy, LayerAnatomy, LinearRows, is_linear, row_axis
from dualform.models.structure.blocks import block_of

# Last parts of the names of linears that contain W_K or W_V, alone or fused with others.
_KEY_VALUE = frozenset(
    {"k_proj", "v_proj", "key", "value", "key_proj", "value_proj", "kv_proj", "qkv_proj", "qkv", "c_attn", "Wqkv"}
    | {"query_key_value", "to_k", "to_v"}
)
_EIGENDECOMPOSITION = 9.0
"""Operations of the eigendecomposition of a symmetric matrix, divided by the cube of its width."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one attention layer and of the block around it."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    head_width: int
    """Width of a head's output; differs from `d_head` only in latent attention."""
    query: int
    """Number of weights of W_Q; 0 if unknown."""
    key: int
    """Number of weights of W_K; 0 if unknown."""
    value: int
    """Number of weights of W_V; 0 if unknown."""
    shares_key_value: bool
    """Keys and values are those of an earlier layer, so W_K and W_V are trained there."""
    d_out: int
    """Width of the output of W_O."""
    mlp: int
    """Number of weights of the block's linears outside attention."""
    mlp_input: int
    """Number of weights of those linears that read the MLP's input."""
    block: float
    """Number of weights of the whole block that one token is multiplied with."""

    def attention(self, pairs: float) -> float:
        """Operations for a number of query-key pairs: scores, and weighted sums of values."""
        return 2 * self.n_heads * (self.d_head + self.head_width) * pairs


@dataclass(frozen=True)
class ModelShape:
    """Sizes from which operations, bytes and seconds are computed. Build it with `shape_of`."""

    layers: tuple[LayerShape, ...]
    parameters: int
    """Number of weights of the model; tied weights count once."""
    linears: int
    """Number of weights of all linears except the output head."""
    unpacked: int
    """Number of weights of linears that cannot be packed: those with W_K or W_V, and gpt2's transposed ones."""
    head: int
    """Number of weights of the output head."""
    vocabulary: int
    d_model: int
    d_inner: int
    """Width inside the MLP."""
    n_linears: int
    """Number of linear modules, without the output head."""
    window: int
    """Size of the sliding window, tokens; 0 without one."""
    n_windowed: int
    """Number of layers with a sliding window."""
    registry: bool
    """Attention is reached through transformers' registry, so the packed route can be used."""
    packable: bool
    """Some weights can be packed (`models.reading.products`)."""
    experts: int = 0
    """Number of weights of a mixture's experts that are stored in parameters with three axes."""
    experts_share: float = 0.0
    """Share of the experts that one token is sent to."""
    uncounted: int = 0
    """Number of weights whose operations are not counted, because their use is unknown."""
    sides: int = 0
    """Number of inputs and outputs of all linears except the output head, added up."""

    @property
    def n_layers(self) -> int:
        """Number of attention layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Number of heads of the first layer; the same in all layers of nearly every family."""
        return self.layers[0].n_heads if self.layers else 0

    @property
    def n_kv_heads(self) -> int:
        """Number of key-value heads of the first layer."""
        return self.layers[0].n_kv_heads if self.layers else 0

    @property
    def d_head(self) -> int:
        """Width of a head of the first layer."""
        return self.layers[0].d_head if self.layers else 0

    @property
    def key_value(self) -> int:
        """Number of weights of W_K and W_V in all layers."""
        return self.trained("key_value")[0]

    @property
    def multiplied(self) -> float:
        """Number of weights that one token is multiplied with, without the output head."""
        return self.linears + self.experts * self.experts_share

    def trained(self, weights: TrainedWeights) -> tuple[int, int]:
        """Number of weights that a step trains, and index of the first layer with any of them."""
        if weights == "key_value":
            # Layers with the keys and values of an earlier layer have no W_K and W_V of their own to train.
            return sum(layer.key + layer.value for layer in self.layers if not layer.shares_key_value), 0
        if weights == "value_one_layer":
            middle = self.n_layers // 2
            return self.layers[middle].value, middle
        if weights == "mlp":
            return sum(layer.mlp for layer in self.layers), 0
        return 0, 0

    def adapters(self, rank: int, targets: str) -> float:
        """Number of weights of low-rank adapters.

        Args:
            rank: Their rank.
            targets: Where they are: `all-linear` (every linear but the output head), `attention` (W_Q, W_K, W_V and
                W_O) or `query-value` (W_Q and W_V; for a fused linear an estimate).
        """
        if targets == "all-linear":
            return rank * self.sides
        d = self.d_model
        query_value = sum((layer.query + layer.value) / d + 2 * d for layer in self.layers)
        if targets == "query-value":
            return rank * query_value
        others = sum(layer.key / d + d + layer.n_heads * layer.head_width + layer.d_out for layer in self.layers)
        return rank * (query_value + others)

    def forward(self, own: float, prefix: float = 0, scored: float = 1) -> float:
        """Operations of a forward pass over one sequence after a cached prefix.

        Products in attention are counted for pairs of tokens of which one may attend to the other (about half of all
        pairs). Sliding windows are ignored.

        Args:
            own: Number of tokens in the sequence.
            prefix: Number of tokens before it, whose keys and values are cached.
            scored: Number of tokens at which the output head is applied.
        """
        pairs = own * prefix + own * (own + 1) / 2
        return 2.0 * self.multiplied * own + self._attention(pairs) + 2.0 * self.head * scored

    def training(self, tokens: float, scored: float, weights: TrainedWeights = "key_value") -> float:
        """Operations of one training step on one sequence: forward, backward, and gradients of the trained weights.

        For the first trained layer and all later ones, the backward pass counts each product once more (those in
        attention twice). The first layer needs fewer, so this is an upper bound, by less than one layer.

        Args:
            tokens: Number of tokens in the sequence.
            scored: Number of tokens in the loss, at which the output head is applied.
            weights: The weights that are trained.
        """
        trained, first = self.trained(weights)
        pairs = tokens * (tokens + 1) / 2
        passed = self.multiplied - sum(layer.block for layer in self.layers[:first])
        backward = 2.0 * tokens * (passed + trained) + 2 * self._attention(pairs, first) + 2.0 * self.head * scored
        return self.forward(tokens, scored=scored) + backward

    def layer_causal_training(self, tokens: float, scored: float) -> float:
        """Operations of one step of layer-causal descent: forward, each layer's head, backward within each layer.

        No gradient flows into a layer's input, so the backward pass has no products with W_Q, W_K and W_V, and of the
        four in attention not the one for the queries. An MLP parallel to attention (gptj) is counted although no
        gradient passes through it.
        """
        pairs = tokens * (tokens + 1) / 2
        spared = sum(
            2.0 * tokens * (layer.query + layer.key + layer.value) + 2.0 * layer.n_heads * layer.d_head * pairs
            for layer in self.layers
        )
        return self.training(tokens, scored) - spared + (self.n_layers - 1) * 4.0 * self.head * scored

    def full_training(self, tokens: float, scored: float) -> float:
        """Operations of one step that trains all weights on one sequence: three times a forward pass."""
        return 3.0 * self.forward(tokens, scored=scored)

    def ridge_equations(self, lengths: Sequence[int], layer: int) -> float:
        """Operations of one layer's ridge regression apart from the forwards: attention once more, and Gram matrices.

        Args:
            lengths: Number of tokens of each text.
            layer: Index of the layer, 0 for the first.
        """
        sizes, tokens = self.layers[layer], sum(lengths)
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        width = sizes.n_heads * sizes.head_width
        projections = sizes.d_out * (2 * sizes.n_heads + 2 * sizes.n_kv_heads) * sizes.d_head
        return 2.0 * projections * tokens + 4.0 * width * pairs + 2.0 * tokens * width * (width + sizes.d_out)

    def ridge_solution(self, layer: int) -> float:
        """Operations of solving one layer's ridge regression: an eigendecomposition and the products with it."""
        sizes = self.layers[layer]
        width = sizes.n_heads * sizes.head_width
        return _EIGENDECOMPOSITION * width**3 + 4.0 * width**2 * sizes.d_out

    def thought_matrices(self, tokens: float) -> float:
        """Operations of thought matrices: sums of rank-one changes, and products of weights with the sums."""
        d = self.d_model
        return sum(2.0 * tokens * d * d + 2.0 * layer.mlp_input * d for layer in self.layers)

    def _attention(self, pairs: float, first: int = 0) -> float:
        return sum(layer.attention(pairs) for layer in self.layers[first:])


def shape_of(model: PreTrainedModel, anatomy: Anatomy | None = None) -> ModelShape:
    """The shape of a model.

    Args:
        model: With weights, or on the meta device.
        anatomy: Its projections. Without it, sizes are taken from the config and assumed equal in all layers; this is
            the only way for a model on the meta device.

    Raises:
        ModelError: There is no anatomy, and the config has no attention heads.
    """
    head = model.get_output_embeddings()
    linears = {name: module for name, module in model.named_modules() if is_linear(module) and module is not head}
    sizes = {name: _size(module) for name, module in linears.items()}
    experts, share, uncounted = _experts(model)
    if anatomy is None:
        layers = _layers_of_config(model, sizes, experts, share)
    else:
        layers = _layers(model, anatomy, sizes, experts, share)
    # gpt2's transposed linears cannot be packed.
    unpacked = {name for name, module in linears.items() if type(module) is not nn.Linear or _contains_key_value(name)}
    config = model.config.get_text_config()
    d_model = int(model.get_input_embeddings().weight.shape[1])
    types = getattr(config, "layer_types", None) or ()
    window = window_of(model)
    widest = max((max(module.get_parameter("weight").shape) for module in linears.values()), default=d_model)
    return ModelShape(
        layers=layers,
        parameters=sum(weight.numel() for weight in model.parameters()),
        linears=sum(sizes.values()),
        unpacked=sum(sizes[name] for name in unpacked),
        head=_size(head),
        vocabulary=int(head.weight.shape[0]),
        d_model=d_model,
        d_inner=max(widest, round(sum(experts.values()) * share / (3 * d_model * max(1, len(layers))))),
        n_linears=len(linears),
        window=window,
        n_windowed=sum("sliding" in str(kind) for kind in types) if types else (len(layers) if window else 0),
        registry=can_set_attention(model),
        packable=type(head) is nn.Linear or len(unpacked) < len(linears),
        experts=sum(experts.values()),
        experts_share=share,
        uncounted=uncounted,
        sides=sum(_sides(module) for module in linears.values()),
    )


def shape_of_config(config: PreTrainedConfig) -> ModelShape:
    """The shape of the model that a config describes."""
    return shape_of(meta_device_model(config, torch.float32))


def _layers(
    model: PreTrainedModel, anatomy: Anatomy, sizes: Mapping[str, int], experts: Mapping[str, int], share: float
) -> tuple[LayerShape, ...]:
    """The shape of every layer, from its anatomy."""
    d_model = model.get_input_embeddings().weight.shape[1]

    def of_rows(rows: LinearRows | None) -> int:
        if rows is None:
            return 0
        module = model.get_submodule(rows.module)
        return len(rows.index) * int(module.get_parameter("weight").shape[1 - row_axis(module)])

    def layer_shape(layer: LayerAnatomy) -> LayerShape:
        block = f"{block_of(model, layer.attention) or layer.attention}."
        inside = {name: n for name, n in sizes.items() if name.startswith(block)}
        mlp = {name: n for name, n in inside.items() if not f"{name}.".startswith(f"{layer.attention}.")}
        sent = share * sum(n for name, n in experts.items() if name.startswith(block))
        return LayerShape(
            n_heads=layer.n_heads,
            n_kv_heads=layer.n_kv_heads,
            d_head=layer.d_head,
            head_width=layer.head_width,
            query=of_rows(layer.W_Q),
            key=of_rows(layer.W_K),
            value=of_rows(layer.W_V),
            shares_key_value=layer.key_value_of is not None,
            d_out=0 if layer.W_O is None else sizes[layer.W_O] // (layer.n_heads * layer.head_width),
            mlp=sum(mlp.values()),
            mlp_input=sum(n for name, n in mlp.items() if _width(model, name) == d_model),
            block=sum(inside.values()) + sent,
        )

    return tuple(layer_shape(layer) for layer in anatomy.layers)


def _layers_of_config(
    model: PreTrainedModel, sizes: Mapping[str, int], experts: Mapping[str, int], share: float
) -> tuple[LayerShape, ...]:
    """Equal layers, from the number and width of the heads in the config."""
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        # The same message as in `find_anatomy`, which runs a forward.
        raise ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform supports causal transformers with softmax attention. Choose another model."
        )
    d_model = int(model.get_input_embeddings().weight.shape[1])
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or getattr(config, "kv_channels", None) or d_model // n_heads)
    n_kv_heads = _kv_heads(config, n_heads)
    n_layers = int(config.num_hidden_layers)
    query, key = n_heads * d_head * d_model, n_kv_heads * d_head * d_model
    # W_Q and W_O, W_K and W_V; all other linears in numbered blocks belong to the MLP.
    attention = 2 * query + 2 * key
    in_blocks = {name: n for name, n in sizes.items() if any(part.isdigit() for part in name.split("."))}
    blocks = sum(in_blocks.values())
    reading = sum(n for name, n in in_blocks.items() if _width(model, name) == d_model)
    # W_O reads the concatenated heads, which are often as wide as the residual stream.
    reading -= n_layers * (attention if n_heads * d_head == d_model else attention - query)
    layer = LayerShape(
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        d_head=d_head,
        head_width=d_head,
        query=query,
        key=key,
        value=key,
        shares_key_value=False,
        d_out=d_model,
        mlp=max(0, blocks // n_layers - attention),
        mlp_input=max(0, reading // n_layers),
        block=(blocks + share * sum(experts.values())) / n_layers,
    )
    return (layer,) * n_layers


def _experts(model: PreTrainedModel) -> tuple[dict[str, int], float, int]:
    """Number of expert weights by parameter, the share of experts that a token is sent to, and other uncounted weights.

    The number of experts for each token is taken from the config. Routers are left out because they are small.
    """
    config = model.config.get_text_config()
    n = _number(config, ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"))
    sent = _number(config, ("num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "top_k_experts"))
    experts: dict[str, int] = {}
    uncounted = 0
    for place, module in model.named_modules():
        if is_linear(module) or isinstance(module, nn.Embedding):
            continue
        for name, weight in module.named_parameters(recurse=False):
            if weight.dim() < 3:
                continue
            if n and sent and weight.shape[0] == n and weight.dim() == 3:
                experts[f"{place}.{name}"] = weight.numel()
            else:
                uncounted += weight.numel()
    return experts, sent / n if n and sent else 0.0, uncounted


def _number(config: object, names: tuple[str, ...]) -> int:
    """The first of these settings that is an integer; 0 if none is."""
    return next((value for name in names if type(value := getattr(config, name, None)) is int), 0)


def _width(model: PreTrainedModel, name: str) -> int:
    """Input features of a linear."""
    module = model.get_submodule(name)
    return int(module.get_parameter("weight").shape[1 - row_axis(module)])


def _size(module: nn.Module) -> int:
    """Number of weights of a linear; its stored tensor is smaller in 4 bits, where two weights share a byte."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return module.get_parameter("weight").numel()


def _sides(module: nn.Module) -> int:
    """Number of inputs and outputs of a linear."""
    if isinstance(module, nn.Linear):
        return module.in_features + module.out_features
    return sum(module.get_parameter("weight").shape)


def _contains_key_value(name: str) -> bool:
    return name.rpartition(".")[2] in _KEY_VALUE


def _kv_heads(config: Any, n_heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        # The first generation of Falcon has one key-value head.
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return n_heads
