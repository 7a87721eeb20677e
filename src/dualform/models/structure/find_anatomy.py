"""Finding W_Q, W_K, W_V and W_O of a model by probing, without a table of family names.

One short forward shows each layer's query, key, value and output of attention. Gradients from query, key and value to
the output features of the linears around them show which rows are W_Q, W_K and W_V, whether these are separate modules,
contiguous thirds (gpt2), interleaved by head (gpt_neox) or grouped (llama, phi3). Gradients of weights are not needed,
so this also works for quantized and offloaded weights. W_O is the first linear whose input depends on the heads'
output, wherever it is: inside the attention module, next to it (BERT), or after a gate or a norm (Qwen3-Next, BitNet).

The result is then checked: changing W_K and W_V must change keys and values and nothing else, and with the heads'
output set to zero, the input of W_O must not depend on the tokens.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import patched
from dualform.models.loading.quantized import precision_of
from dualform.models.structure.anatomy import Anatomy, LayerAnatomy, LinearRows, row_axis
from dualform.models.structure.observe import AttentionUse, ObservedForward, observe_forward, use_eager, use_registry
from dualform.models.structure.projections import head_repeats, output_linear, rows_around
from dualform.models.structure.tying import tied_linears


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Find the attention layers of a model by probing it.

    Args:
        model: In eval mode. Its attention implementation is set to dualform's if the family allows it, and to `eager`
            if no attention is recognised otherwise. Its weights are not changed.

    Returns:
        The verified anatomy. A projection that was not found is None, with a reason. `layers` is empty if the model's
        attention cannot be recorded; such a model can still be run.

    Raises:
        ModelError: The model has no softmax attention.
    """
    registry = use_registry(model)
    refusal: ModelError | None = None
    observed = ObservedForward()
    try:
        observed = observe_forward(model, registry)
    except ModelError as error:
        refusal = error
    if not observed.attention:
        # Some families use a fused kernel, or arguments that dualform's function does not support (a soft cap). Their
        # eager code can still be traced. It is not the first choice, because Falcon's eager code adds ALiBi twice.
        registry = False
        use_eager(model)
        observed = observe_forward(model, registry)
    if not observed.attention and not observed.unrecognised:
        raise refusal or ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform supports causal transformers with softmax attention. Choose another model."
        )
    anatomy = _check_outputs(model, _build_anatomy(model, observed, registry))
    _verify(model, anatomy)
    return anatomy


def _build_anatomy(model: PreTrainedModel, observed: ObservedForward, registry: bool) -> Anatomy:
    names = {module: name for name, module in model.named_modules()}
    tied = tied_linears(model)
    blocks = _block_indices(model, [names[use.module] for use in observed.attention])
    layers: list[LayerAnatomy] = []
    layer_uses: list[AttentionUse] = []
    calls: list[tuple[str, int | None]] = []
    left_out: dict[str, None] = {}
    for number, use in enumerate(observed.attention):
        name = names[use.module]
        if reason := _not_a_layer(observed, number):
            calls.append((name, None))
            left_out[f"{name}: {reason}"] = None
            continue
        source = next((i for i, other in enumerate(layer_uses) if _same_keys(other, use)), None)
        shared = None if source is None else (source, layers[source])
        layer = _describe_layer(names, tied, use, observed, shared, registry)
        calls.append((name, len(layers)))
        layers.append(replace(layer, block=blocks.get(name)))
        layer_uses.append(use)
    for module, reason in observed.unrecognised.items():
        left_out[f"{names[module]}: {reason}"] = None
    if blocks and layers:
        for reason in _blocks_without_attention(model, observed, blocks, names):
            left_out[reason] = None
    return Anatomy(tuple(layers), registry, tuple(calls), tuple(left_out))


def _not_a_layer(observed: ObservedForward, number: int) -> str | None:
    """Why a use of attention cannot be recorded as a layer; None if it can."""
    use = observed.attention[number]
    n = observed.n_tokens
    positions = (use.query.shape[2], use.key.shape[2])
    if use.query.shape[0] != 1 or positions != (n, n):
        return (
            f"attends from {use.query.shape[0]} x {positions[0]} to {positions[1]} positions for an input of {n} "
            "tokens (patches, chunks or another sequence), so its positions do not correspond to tokens"
        )
    if not use.out.requires_grad:
        return "has no gradient, so it is not on the path from tokens to logits"
    run = observed.start(use.module, use.call_index)
    same_run = [
        other.module is use.module and observed.start(other.module, other.call_index) == run
        for other in observed.attention
    ]
    if sum(same_run) > 1:
        return "computes attention in several parts, which dualform does not combine"
    return None


def _same_keys(a: AttentionUse, b: AttentionUse) -> bool:
    return all(
        x is y or (x.shape == y.shape and x.data_ptr() == y.data_ptr() and torch.equal(x, y))
        for x, y in ((a.key, b.key), (a.value, b.value))
    )


def _block_indices(model: PreTrainedModel, attentions: list[str]) -> dict[str, int]:
    """Index of the residual block of every attention module that is in the list of blocks."""
    stack = _stack(model, attentions)
    if stack is None:
        return {}
    members = [f"{stack}.{child}" for child, _ in model.get_submodule(stack).named_children()]
    return {
        name: next(i for i, member in enumerate(members) if f"{name}.".startswith(f"{member}."))
        for name in attentions
        if name.startswith(f"{stack}.")
    }


def _stack(model: PreTrainedModel, attentions: list[str]) -> str | None:
    """Name of the module list that contains most attention modules; None if none does."""
    counts: dict[str, int] = {}
    for name in attentions:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            stack = ".".join(parts[:depth])
            if isinstance(model.get_submodule(stack), nn.ModuleList | nn.Sequential):
                counts[stack] = counts.get(stack, 0) + 1
                break
    return max(counts, key=lambda name: counts[name], default=None)


def _blocks_without_attention(
    model: PreTrainedModel, observed: ObservedForward, blocks: Mapping[str, int], names: Mapping[nn.Module, str]
) -> Iterator[str]:
    """Descriptions of the blocks in which no attention was recognised, with the modules that they have."""
    stack = _stack(model, list(blocks))
    assert stack is not None
    unrecognised = [names[module] for module in observed.unrecognised]
    for number, (child, block) in enumerate(model.get_submodule(stack).named_children()):
        prefix = f"{stack}.{child}."
        if number in blocks.values() or any(name.startswith(prefix) for name in unrecognised):
            continue
        inside = [type(module).__name__ for _, module in block.named_children()]
        yield f"block {number}: no softmax attention ({', '.join(dict.fromkeys(inside))})"


def _describe_layer(
    names: Mapping[nn.Module, str],
    tied: Mapping[str, tuple[str, ...]],
    use: AttentionUse,
    observed: ObservedForward,
    shared: tuple[int, LayerAnatomy] | None,
    registry: bool,
) -> LayerAnatomy:
    unclear: list[str] = []
    projections: dict[str, LinearRows | None] = {}
    repeats = 1 if registry else head_repeats(use.key, use.value)
    key, value = use.key[:, ::repeats], use.value[:, ::repeats]
    for letter, tensor in (("W_Q", use.query), ("W_K", key), ("W_V", value)):
        if shared is not None and letter != "W_Q":
            # The layer uses the keys and values of an earlier layer, so it shares that layer's W_K and W_V.
            number, other = shared
            projections[letter] = getattr(other, letter)
            if projections[letter] is None:
                unclear.append(f"{letter} is that of layer {number}, where it was not found")
            continue
        expected = tensor.shape[1] * tensor.shape[3]
        rows = rows_around(tensor, use, observed, names, expected)
        if len(rows) == 1 and len(rows[0].index) == expected:
            # A weight that several modules share goes by the name of the first module.
            name = rows[0].module
            projections[letter] = replace(rows[0], module=tied.get(name, (name,))[0])
        else:
            projections[letter] = None
            where = ", ".join(f"{len(r.index)} rows of {r.module}" for r in rows) or "no linear"
            unclear.append(f"{letter} should be {expected} rows of one linear, but it depends on {where}")
    W_O, output_use, between, problem = output_linear(names, use, observed)
    if problem:
        unclear.append(problem)
    d_head, d_value = use.query.shape[3], use.joined.shape[-1] // use.query.shape[1]
    return LayerAnatomy(
        attention=names[use.module],
        W_Q=projections["W_Q"],
        W_K=projections["W_K"],
        W_V=projections["W_V"],
        W_O=W_O,
        n_heads=use.query.shape[1],
        n_kv_heads=key.shape[1],
        d_head=d_head,
        unclear=tuple(unclear),
        d_value=None if d_value == d_head else d_value,
        between=between,
        output_use=output_use,
        repeats=repeats,
        key_value_of=None if shared is None else shared[0],
    )


def _verify(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Check that changing W_K (W_V) of the first layer changes all of its keys (values) and nothing else.

    Later layers cannot be checked like this, because their inputs change, too. Quantized weights cannot be changed.

    Raises:
        ModelError: Something else changes, or not all of it does.
    """
    if not anatomy.layers or anatomy.calls[0][1] != 0 or precision_of(model) is not None:
        return
    first = anatomy.layers[0]
    with torch.no_grad():
        before = _first_layer(model, anatomy)
        if not all(tensor.isfinite().all() for tensor in before):
            # NaN always compares as changed; the route's self-check reports such weights.
            return
        if first.W_K is not None and first.W_V is not None:
            for letter, rows, moving in (("W_K", first.W_K, 1), ("W_V", first.W_V, 2)):
                _nudge_rows(model, anatomy, before, letter, rows, moving)


def _nudge_rows(
    model: PreTrainedModel, anatomy: Anatomy, before: tuple[Tensor, ...], letter: str, rows: LinearRows, moving: int
) -> None:
    axis = row_axis(model.get_submodule(rows.module))

    def nudged(weight: Tensor) -> Tensor:
        return weight.index_fill(axis, rows.index.to(weight.device), 0.01)

    nonzero: list[bool] = []
    with Hooks(model) as hooks, patched(model, f"{rows.module}.weight", nudged):
        hooks.before(rows.module, lambda x: nonzero.append(x is None or bool(x.any())))
        after = _first_layer(model, anatomy)
    if not any(nonzero):
        # The input is zero (a disabled layer has a norm of zeros), so the weight has no effect.
        return
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        # Every feature must change at some token; in half precision it may stay the same at a single one.
        moved = (a != b).any(dim=-2)
        if (i == moving and not moved.all()) or (i != moving and moved.any()):
            raise ModelError(
                f"{type(model).__name__}: probing identified {rows.module} as {letter} of layer 0, but changing it did "
                f"not change exactly the {'keys' if letter == 'W_K' else 'values'}. Please report this family."
            )


def _check_outputs(model: PreTrainedModel, anatomy: Anatomy) -> Anatomy:
    """The anatomy without those W_O whose input still depends on the token when the heads' output is set to zero.

    Such a linear also reads the residual stream: it is the MLP's first linear in a layer whose W_O is not a linear.
    """
    if not any(layer.W_O for layer in anatomy.layers):
        return anatomy
    observed = observe_forward(model, anatomy.registry, nudge=torch.zeros_like)
    names = {module: name for name, module in model.named_modules()}
    inputs = {(names[linear.module], linear.use): linear.input for linear in observed.linears}
    layers = []
    for layer in anatomy.layers:
        states = None if layer.W_O is None else inputs.get((layer.W_O, layer.output_use))
        if layer.W_O is not None and (states is None or _differs_between_tokens(states)):
            reason = (
                f"W_O should read only the heads' output, but the first linear after the heads, {layer.W_O}, reads more"
            )
            layer = replace(layer, W_O=None, between="", output_use=0, unclear=(*layer.unclear, reason))
        layers.append(layer)
    return replace(anatomy, layers=tuple(layers))


def _differs_between_tokens(states: Tensor) -> bool:
    rows = states.detach().reshape(-1, states.shape[-1]).float()
    # With NaN weights the comparison is False; the route's self-check reports them.
    return bool((rows - rows[:1]).abs().max() > 1e-6 * rows.abs().max())


def _first_layer(model: PreTrainedModel, anatomy: Anatomy) -> tuple[Tensor, Tensor, Tensor]:
    """Query, key and value of the first attention; the forward stops after it."""
    name, _ = anatomy.calls[0]
    use = observe_forward(model, anatomy.registry, stop_after=name).attention[0]
    return use.query, use.key, use.value
