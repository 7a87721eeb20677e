"""How many floating-point operations a forward takes: the bound that speed is measured against, and a cost."""

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.models.structure.anatomy import Anatomy, LayerAnatomy, is_linear, row_axis
from dualform.models.structure.blocks import block_of


@dataclass(frozen=True)
class Beside:
    """Weights that tokens are multiplied with outside of linears: those of experts, above all."""

    experts: Mapping[str, int]
    """Parameter -> weights of all experts."""
    share: float
    """Of the experts, those that one token is sent to."""
    uncounted: int
    """Weights of which it is not known how they are used, so that their operations are not counted."""

    @property
    def used(self) -> float:
        """Weights of experts that one token is multiplied with."""
        return sum(self.experts.values()) * self.share


def beside_linears(model: PreTrainedModel) -> Beside:
    """Experts of a mixture, whose weights lie in one parameter of three axes instead of a linear each.

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
    return Beside(experts, sent / n if n and sent else 0.0, uncounted)


def _number(config: object, names: tuple[str, ...]) -> int:
    """The first of some settings that is a number; 0 without."""
    return next((found for name in names if type(found := getattr(config, name, None)) is int), 0)


def forward_flops(model: PreTrainedModel, anatomy: Anatomy, own: int, prefix: int = 0, scored: int = 1) -> float:
    """Operations of one sequence's forward, with its prefix's keys and values at hand.

    Counts multiplications and additions of the linears, of the experts that a token is sent to, of query-key and
    probability-value products over the tokens really seen (causal, so half of the square), and of the output head at
    the scored tokens. Norms, activations and softmax are left out: they are bound by memory, not by arithmetic.

    Args:
        model: The model.
        anatomy: Its anatomy.
        own: Tokens that are read now.
        prefix: Tokens before them that were read earlier.
        scored: Tokens at which the head is applied.

    Returns:
        Floating-point operations.
    """
    head = model.get_output_embeddings()
    linears = _multiplied(model)
    pairs = own * prefix + own * (own + 1) / 2
    attention = sum(_attention(layer) * pairs for layer in anatomy.layers)
    return 2.0 * linears * own + attention + 2.0 * _size(head) * scored


def key_value_training_flops(
    model: PreTrainedModel, anatomy: Anatomy, tokens: int, scored: int, weight_gradients: bool = True
) -> float:
    """Operations of one step that trains W_K and W_V on one sequence: forward, backward, gradients of those two.

    The backward repeats the forward's products once for activations (twice for attention's own two products);
    gradients of weights are needed for W_K and W_V alone, and with `weight_gradients` off not for these either.
    """
    head = model.get_output_embeddings()
    linears = _multiplied(model)
    trained = 0
    for layer in anatomy.layers:
        # The gradient of a weight that several layers share is computed in each of them.
        for rows in (layer.W_K, layer.W_V) if layer.key_value_of is None else ():
            if rows is not None and weight_gradients:
                module = model.get_submodule(rows.module)
                trained += len(rows.index) * module.get_parameter("weight").shape[1 - row_axis(module)]
    pairs = tokens * (tokens + 1) / 2
    attention = sum(_attention(layer) * pairs for layer in anatomy.layers)
    return tokens * (4.0 * linears + 2.0 * trained) + 3 * attention + 4.0 * _size(head) * scored


def training_flops(
    model: PreTrainedModel,
    anatomy: Anatomy,
    tokens: int,
    scored: int,
    rows: Mapping[str, Tensor | None],
    first_layer: int = 0,
) -> float:
    """Operations of one step that trains some rows of some linears on one sequence: forward, backward, their gradients.

    The forward is counted whole, gradients of weights for the trained rows alone. The backward repeats the products of
    the first trained layer and of all behind it, though the first layer needs only those behind its trained weights:
    an upper bound by less than one layer's share. Of W_K and W_V it is `key_value_training_flops`.

    Args:
        model: The model.
        anatomy: Its anatomy.
        tokens: Of the sequence.
        scored: Tokens at which the head is applied.
        rows: What is trained, as `edit.WeightTraining` takes it.
        first_layer: The first layer that holds any of it.

    Returns:
        Floating-point operations.
    """
    head = model.get_output_embeddings()
    below = tuple(f"{block_of(model, layer.attention) or layer.attention}." for layer in anatomy.layers[:first_layer])
    passed = _multiplied(model, below)
    trained = 0
    for name, index in rows.items():
        module = model.get_submodule(name)
        weight = module.get_parameter("weight")
        trained += weight.numel() if index is None else len(index) * weight.shape[1 - row_axis(module)]
    pairs = tokens * (tokens + 1) / 2
    attention = sum(
        2 * layer.n_heads * (layer.d_head + layer.head_width) * pairs for layer in anatomy.layers[first_layer:]
    )
    backward = 2.0 * tokens * (passed + trained) + 2 * attention + 2.0 * _size(head) * scored
    return forward_flops(model, anatomy, own=tokens, scored=scored) + backward


def layer_causal_training_flops(model: PreTrainedModel, anatomy: Anatomy, tokens: int, scored: int) -> float:
    """Operations of one step of layer-causal descent: forward, each layer's head, backward within each layer.

    Nothing flows into a layer's input, so the backward leaves out the products with W_Q, W_K and W_V and, of the four
    in attention, the one that leads to the queries. An MLP beside attention instead of behind it (gptj) is counted all
    the same, though no gradient passes through it.

    Args:
        model: The model.
        anatomy: Its anatomy, with W_K and W_V known.
        tokens: Of the sequence.
        scored: Tokens at which every layer's loss is taken.

    Returns:
        Floating-point operations.
    """
    head = model.get_output_embeddings()
    whole = key_value_training_flops(model, anatomy, tokens, scored)
    pairs = tokens * (tokens + 1) / 2
    spared = 0.0
    for layer in anatomy.layers:
        for rows in (layer.W_Q, layer.W_K, layer.W_V):
            if rows is not None:
                module = model.get_submodule(rows.module)
                width = module.get_parameter("weight").shape[1 - row_axis(module)]
                spared += 2.0 * tokens * len(rows.index) * width
        spared += 2.0 * layer.n_heads * layer.d_head * pairs
    return whole - spared + (len(anatomy.layers) - 1) * 4.0 * _size(head) * scored


def _attention(layer: LayerAnatomy) -> int:
    """Operations of a layer for each pair of a query and a key: the score, and the value's share."""
    return 2 * layer.n_heads * (layer.d_head + layer.head_width)


def _multiplied(model: PreTrainedModel, below: tuple[str, ...] = ()) -> float:
    """Weights that a token is multiplied with, the head's and those of blocks that begin as `below` says left out."""
    head = model.get_output_embeddings()
    linears = sum(
        _size(module)
        for name, module in model.named_modules()
        if is_linear(module) and module is not head and not name.startswith(below)
    )
    beside = beside_linears(model)
    return linears + beside.share * sum(n for name, n in beside.experts.items() if not name.startswith(below))


def _size(module: nn.Module) -> int:
    """Entries of a linear's weight: in 4 bits two of them are stored as one."""
    if isinstance(module, nn.Linear):
        return module.in_features * module.out_features
    return module.get_parameter("weight").numel()
