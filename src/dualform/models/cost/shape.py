"""The shape of a model, and the floating-point operations that follow from it.

A shape is read off a model with weights, or off one on torch's meta device, which stores none, so that a model far too
large for this machine can be counted on it. All counts are of multiplications and additions in linears, in the experts
that a token is sent to, in attention and in the output head. Norms, activations and softmax are left out: they are
bound by memory, not by arithmetic.
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

# A linear whose last name is one of these holds W_K or W_V, alone or fused with others.
_KEY_VALUE = frozenset(
    {"k_proj", "v_proj", "key", "value", "key_proj", "value_proj", "kv_proj", "qkv_proj", "qkv", "c_attn", "Wqkv"}
    | {"query_key_value", "to_k", "to_v"}
)
_EIGENDECOMPOSITION = 9.0
"""Operations for each cube of the width of a symmetric matrix, by the usual count."""


@dataclass(frozen=True)
class LayerShape:
    """Sizes of one attention layer and of the block around it."""

    n_heads: int
    n_kv_heads: int
    d_head: int
    head_width: int
    """Width of a head's output, which is `d_head` but for latent attention."""
    query: int
    """Weights of W_Q, 0 where it is not known; the same of the following two."""
    key: int
    value: int
    shares_key_value: bool
    """Keys and values are those of an earlier layer, so that W_K and W_V are trained there."""
    d_out: int
    """Width of what W_O puts out."""
    mlp: int
    """Weights of the block's linears outside attention."""
    mlp_input: int
    """Of these, weights of linears that read the MLP's input."""
    block: float
    """Weights of the whole block that one token is multiplied with."""

    def attention(self, pairs: float) -> float:
        """Operations for pairs of a query and a key: the score, and the value's share."""
        return 2 * self.n_heads * (self.d_head + self.head_width) * pairs


@dataclass(frozen=True)
class ModelShape:
    """Sizes from which operations, bytes and seconds are computed. Build it with `shape_of`."""

    layers: tuple[LayerShape, ...]
    parameters: int
    """Weights of the model, tied ones once."""
    linears: int
    """Weights of all linears but the output head."""
    unpacked: int
    """Weights of linears that are multiplied plainly: those that hold W_K or W_V, and gpt2's transposed ones."""
    head: int
    """Weights of the output head."""
    vocabulary: int
    d_model: int
    d_inner: int
    """Width inside the MLP."""
    n_linears: int
    """Modules."""
    window: int
    """Tokens that layers with a sliding window look back; 0 without any."""
    n_windowed: int
    """Layers that have one."""
    registry: bool
    """Attention is reached through transformers' registry, so that the packed route can be taken."""
    packable: bool
    """Some weights can be packed (`models.reading.products`): all linears but the unpacked, and the head."""
    experts: int = 0
    """Weights of a mixture's experts, which lie in one parameter of three axes instead of a linear each."""
    experts_share: float = 0.0
    """Of these, the share that one token is multiplied with."""
    uncounted: int = 0
    """Weights outside of linears whose operations are not counted, because their use is not known."""

    @property
    def n_layers(self) -> int:
        """Attention layers."""
        return len(self.layers)

    @property
    def n_heads(self) -> int:
        """Heads of the first layer; of all layers in nearly every family. The same holds for the next two."""
        return self.layers[0].n_heads if self.layers else 0

    @property
    def n_kv_heads(self) -> int:
        """Key-value heads."""
        return self.layers[0].n_kv_heads if self.layers else 0

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return self.layers[0].d_head if self.layers else 0

    @property
    def key_value(self) -> int:
        """Weights of W_K and W_V of all layers."""
        return self.trained("key_value")[0]

    @property
    def multiplied(self) -> float:
        """Weights that one token is multiplied with, the output head left out."""
        return self.linears + self.experts * self.experts_share

    def trained(self, weights: TrainedWeights) -> tuple[int, int]:
        """How many weights a step trains, and the first layer that holds any of them."""
        if weights == "key_value":
            # The gradient of a weight that several layers share is computed in each of them.
            return sum(layer.key + layer.value for layer in self.layers if not layer.shares_key_value), 0
        if weights == "value_one_layer":
            middle = self.n_layers // 2
            return self.layers[middle].value, middle
        if weights == "mlp":
            return sum(layer.mlp for layer in self.layers), 0
        return 0, 0

    def forward(self, own: float, prefix: float = 0, scored: float = 1) -> float:
        """Operations of reading one sequence behind a prefix whose keys and values are at hand.

        Query-key and probability-value products are counted over the tokens that see one another (causal attention,
        so about half of the square); layers with a sliding window are counted as if they saw all.

        Args:
            own: Tokens that are read.
            prefix: Tokens before them that were read earlier.
            scored: Tokens at which the output head is applied.
        """
        pairs = own * prefix + own * (own + 1) / 2
        return 2.0 * self.multiplied * own + self._attention(pairs) + 2.0 * self.head * scored

    def training(self, tokens: float, scored: float, weights: TrainedWeights = "key_value") -> float:
        """Operations of one step on one sequence: forward, backward, and gradients of the trained weights.

        The backward repeats the products of the first trained layer and of all behind it once for activations (twice
        for attention's own two products), though the first layer needs only those behind its trained weights: an upper
        bound by less than one layer's share.

        Args:
            tokens: Tokens of the sequence.
            scored: Tokens that are learned, at which the output head is applied.
            weights: What is trained.
        """
        trained, first = self.trained(weights)
        pairs = tokens * (tokens + 1) / 2
        passed = self.multiplied - sum(layer.block for layer in self.layers[:first])
        backward = 2.0 * tokens * (passed + trained) + 2 * self._attention(pairs, first) + 2.0 * self.head * scored
        return self.forward(tokens, scored=scored) + backward

    def layer_causal_training(self, tokens: float, scored: float) -> float:
        """Operations of one step of layer-causal descent: forward, each layer's head, backward within each layer.

        Nothing flows into a layer's input, so the backward leaves out the products with W_Q, W_K and W_V and, of the
        four in attention, the one that leads to the queries. An MLP parallel to attention (gptj) is
        counted all the same, though no gradient passes through it.
        """
        pairs = tokens * (tokens + 1) / 2
        spared = sum(
            2.0 * tokens * (layer.query + layer.key + layer.value) + 2.0 * layer.n_heads * layer.d_head * pairs
            for layer in self.layers
        )
        return self.training(tokens, scored) - spared + (self.n_layers - 1) * 4.0 * self.head * scored

    def full_training(self, tokens: float, scored: float) -> float:
        """Operations of one step that trains all weights on one sequence: three forwards."""
        return 3.0 * self.forward(tokens, scored=scored)

    def ridge_equations(self, lengths: Sequence[int], layer: int) -> float:
        """Operations of one layer's ridge fold on top of the forwards: a second look at attention, and Gram matrices.

        Args:
            lengths: Tokens of each text.
            layer: Index of the layer.
        """
        one, tokens = self.layers[layer], sum(lengths)
        pairs = sum(n * (n + 1) / 2 for n in lengths)
        width = one.n_heads * one.head_width
        projections = one.d_out * (2 * one.n_heads + 2 * one.n_kv_heads) * one.d_head
        return 2.0 * projections * tokens + 4.0 * width * pairs + 2.0 * tokens * width * (width + one.d_out)

    def ridge_solution(self, layer: int) -> float:
        """Operations of solving one layer's ridge regression: an eigendecomposition and the products with it."""
        one = self.layers[layer]
        width = one.n_heads * one.head_width
        return _EIGENDECOMPOSITION * width**3 + 4.0 * width**2 * one.d_out

    def thought_matrices(self, tokens: float) -> float:
        """Operations of thought matrices: each token's rank-one change summed, and weights multiplied with the sums."""
        d = self.d_model
        return sum(2.0 * tokens * d * d + 2.0 * layer.mlp_input * d for layer in self.layers)

    def _attention(self, pairs: float, first: int = 0) -> float:
        return sum(layer.attention(pairs) for layer in self.layers[first:])


def shape_of(model: PreTrainedModel, anatomy: Anatomy | None = None) -> ModelShape:
    """The shape of a model.

    Args:
        model: With weights, or on the meta device.
        anatomy: Where its projections lie. Without it they are taken to be those that the config describes, the same in
            every layer, which a model on the meta device cannot be probed for.

    Raises:
        ModelError: Without an anatomy: the config names no attention heads.
    """
    head = model.get_output_embeddings()
    linears = {name: one for name, one in model.named_modules() if is_linear(one) and one is not head}
    sizes = {name: _size(one) for name, one in linears.items()}
    experts, share, uncounted = _experts(model)
    if anatomy is None:
        layers = _layers_of_config(model, sizes, experts, share)
    else:
        layers = _layers(model, anatomy, sizes, experts, share)
    # gpt2's transposed linears are not packed, whatever they hold.
    plain = {name for name, one in linears.items() if type(one) is not nn.Linear or _holds_key_value(name)}
    config = model.config.get_text_config()
    d_model = int(model.get_input_embeddings().weight.shape[1])
    types = getattr(config, "layer_types", None) or ()
    window = window_of(model)
    widest = max((max(one.get_parameter("weight").shape) for one in linears.values()), default=d_model)
    return ModelShape(
        layers=layers,
        parameters=sum(weight.numel() for weight in model.parameters()),
        linears=sum(sizes.values()),
        unpacked=sum(sizes[name] for name in plain),
        head=_size(head),
        vocabulary=int(head.weight.shape[0]),
        d_model=d_model,
        d_inner=max(widest, round(sum(experts.values()) * share / (3 * d_model * max(1, len(layers))))),
        n_linears=len(linears),
        window=window,
        n_windowed=sum("sliding" in str(kind) for kind in types) if types else (len(layers) if window else 0),
        registry=can_set_attention(model),
        packable=type(head) is nn.Linear or len(plain) < len(linears),
        experts=sum(experts.values()),
        experts_share=share,
        uncounted=uncounted,
    )


def shape_of_config(config: PreTrainedConfig) -> ModelShape:
    """The shape of a model that is yet to be made from a config."""
    return shape_of(meta_device_model(config, torch.float32))


def _layers(
    model: PreTrainedModel, anatomy: Anatomy, sizes: Mapping[str, int], experts: Mapping[str, int], share: float
) -> tuple[LayerShape, ...]:
    """Every layer as its anatomy has it."""
    d_model = model.get_input_embeddings().weight.shape[1]

    def of_rows(rows: LinearRows | None) -> int:
        if rows is None:
            return 0
        module = model.get_submodule(rows.module)
        return len(rows.index) * int(module.get_parameter("weight").shape[1 - row_axis(module)])

    def one(layer: LayerAnatomy) -> LayerShape:
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

    return tuple(one(layer) for layer in anatomy.layers)


def _layers_of_config(
    model: PreTrainedModel, sizes: Mapping[str, int], experts: Mapping[str, int], share: float
) -> tuple[LayerShape, ...]:
    """Equal layers, from what the config says of heads."""
    config = model.config.get_text_config()
    if not getattr(config, "num_attention_heads", None):
        # As `find_anatomy`, which sees it in a forward.
        raise ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform reads causal transformers with attention layers."
        )
    d_model = int(model.get_input_embeddings().weight.shape[1])
    n_heads = int(config.num_attention_heads)
    d_head = int(getattr(config, "head_dim", None) or getattr(config, "kv_channels", None) or d_model // n_heads)
    n_kv_heads = _kv_heads(config, n_heads)
    n_layers = int(config.num_hidden_layers)
    query, key = n_heads * d_head * d_model, n_kv_heads * d_head * d_model
    # W_Q and W_O, W_K and W_V; the rest of the linears in numbered blocks is the MLP's.
    attention = 2 * query + 2 * key
    in_blocks = {name: n for name, n in sizes.items() if any(part.isdigit() for part in name.split("."))}
    blocks = sum(in_blocks.values())
    reading = sum(n for name, n in in_blocks.items() if _width(model, name) == d_model)
    # W_O reads the joined heads, which often are as wide as the residual stream.
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
    """Parameter -> weights of all experts in it, the share of experts that one token is sent to, and other weights.

    How many experts a token is sent to stands in the config. What routes tokens is left out: it is small.
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
    """The first of some settings that is a number; 0 without."""
    return next((value for name in names if type(value := getattr(config, name, None)) is int), 0)


def _width(model: PreTrainedModel, name: str) -> int:
    """Input features of a linear."""
    module = model.get_submodule(name)
    return int(module.get_parameter("weight").shape[1 - row_axis(module)])


def _size(module: nn.Module) -> int:
    """Entries of a linear's weight: in 4 bits two of them are stored as one."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return module.get_parameter("weight").numel()


def _holds_key_value(name: str) -> bool:
    return name.rpartition(".")[2] in _KEY_VALUE


def _kv_heads(config: Any, n_heads: int) -> int:
    if getattr(config, "multi_query", False) and not getattr(config, "new_decoder_architecture", False):
        # Falcon's first generation: one head of keys and values for all.
        return 1
    for name in ("num_key_value_heads", "num_kv_heads"):
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    return n_heads
