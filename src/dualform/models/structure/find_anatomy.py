"""Where a model keeps W_Q, W_K, W_V and W_O: found by probing, so that no table of families is kept.

One short forward shows each layer's attention: its query, key, value and output. Gradients from query, key and value
back to the output features of the linears around them tell which rows are W_Q, W_K and W_V, whether they are separate
modules, contiguous thirds (gpt2), interleaved by head (gpt_neox) or grouped (llama, phi3). No weight has a gradient, so
that quantized ones and those that lie elsewhere are found as well. W_O is the first linear whose input depends on the
heads' output, wherever in the model it lies: inside the attention module, next to it (BERT), or behind a gate or a norm
(Qwen3-Next, BitNet). Nudging W_K and W_V then shows that keys and values move, and nothing else does; with the heads
silenced, nothing about the tokens may reach W_O.
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
    """Probe a model.

    Args:
        model: In eval mode; its attention implementation is set to dualform's where the family allows it, and to
            `eager` where no attention is seen otherwise. Weights are as before afterwards.

    Returns:
        The anatomy, verified; what could not be found is None with words. Layers are empty where the model attends
        in a way that cannot be recorded: it can be read all the same.

    Raises:
        ModelError: The model has no attention at all.
    """
    registry = use_registry(model)
    refusal: ModelError | None = None
    observed = ObservedForward()
    try:
        observed = observe_forward(model, registry)
    except ModelError as error:
        refusal = error
    if not observed.seen:
        # A fused kernel shows nothing, and some families ask for more than dualform's function knows (a soft cap):
        # their plain code can still be watched. It is not the first choice, because Falcon's adds ALiBi twice.
        registry = False
        use_eager(model)
        observed = observe_forward(model, registry)
    if not observed.seen and not observed.unrecognised:
        raise refusal or ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform reads causal transformers with attention layers."
        )
    anatomy = _outputs_checked(model, _described(model, observed, registry))
    _verify(model, anatomy)
    return anatomy


def _described(model: PreTrainedModel, observed: ObservedForward, registry: bool) -> Anatomy:
    names = {module: name for name, module in model.named_modules()}
    tied = tied_linears(model)
    blocks = _blocks(model, [names[seen.module] for seen in observed.seen])
    layers: list[LayerAnatomy] = []
    described: list[AttentionUse] = []
    calls: list[tuple[str, int | None]] = []
    left_out: dict[str, None] = {}
    for number, seen in enumerate(observed.seen):
        name = names[seen.module]
        if reason := _not_a_layer(observed, number):
            calls.append((name, None))
            left_out[f"{name}: {reason}"] = None
            continue
        before = next((i for i, other in enumerate(described) if _same_keys(other, seen)), None)
        shared = None if before is None else (before, layers[before])
        layer = _describe(names, tied, seen, observed, shared, registry)
        calls.append((name, len(layers)))
        layers.append(replace(layer, block=blocks.get(name)))
        described.append(seen)
    for module, reason in observed.unrecognised.items():
        left_out[f"{names[module]}: {reason}"] = None
    if blocks and layers:
        for note in _blocks_without(model, observed, blocks, names):
            left_out[note] = None
    return Anatomy(tuple(layers), registry, tuple(calls), tuple(left_out))


def _not_a_layer(observed: ObservedForward, number: int) -> str | None:
    """Why a use of attention cannot be recorded as a layer; None where it can."""
    seen = observed.seen[number]
    n = observed.n_tokens
    positions = (seen.query.shape[2], seen.key.shape[2])
    if seen.query.shape[0] != 1 or positions != (n, n):
        return (
            f"attends from {seen.query.shape[0]} x {positions[0]} to {positions[1]} positions where the input has "
            f"{n} tokens (patches, chunks or another sequence), so that no position of it is a token's"
        )
    if not seen.out.requires_grad:
        return "works without gradients, beside the path from tokens to logits"
    run = observed.start(seen.module, seen.time)
    if sum(one.module is seen.module and observed.start(one.module, one.time) == run for one in observed.seen) > 1:
        return "computes attention in several parts, which are not put together here"
    return None


def _same_keys(other: AttentionUse, seen: AttentionUse) -> bool:
    return all(
        a is b or (a.shape == b.shape and a.data_ptr() == b.data_ptr() and torch.equal(a, b))
        for a, b in ((other.key, seen.key), (other.value, seen.value))
    )


def _blocks(model: PreTrainedModel, attentions: list[str]) -> dict[str, int]:
    """Index of the residual block of every attention module that lies in the list of blocks."""
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
    """Name of the list of blocks that most attention modules lie in; None where they lie in none."""
    counts: dict[str, int] = {}
    for name in attentions:
        parts = name.split(".")
        for depth in range(1, len(parts)):
            stack = ".".join(parts[:depth])
            if isinstance(model.get_submodule(stack), nn.ModuleList | nn.Sequential):
                counts[stack] = counts.get(stack, 0) + 1
                break
    return max(counts, key=lambda name: counts[name], default=None)


def _blocks_without(
    model: PreTrainedModel, observed: ObservedForward, blocks: Mapping[str, int], names: Mapping[nn.Module, str]
) -> Iterator[str]:
    """Blocks in which no attention was seen, each with what it has instead."""
    stack = _stack(model, list(blocks))
    assert stack is not None
    unrecognised = [names[module] for module in observed.unrecognised]
    for number, (child, block) in enumerate(model.get_submodule(stack).named_children()):
        prefix = f"{stack}.{child}."
        if number in blocks.values() or any(name.startswith(prefix) for name in unrecognised):
            continue
        inside = [type(module).__name__ for _, module in block.named_children()]
        yield f"block {number}: no softmax attention ({', '.join(dict.fromkeys(inside))})"


def _describe(
    names: Mapping[nn.Module, str],
    tied: Mapping[str, tuple[str, ...]],
    seen: AttentionUse,
    observed: ObservedForward,
    shared: tuple[int, LayerAnatomy] | None,
    registry: bool,
) -> LayerAnatomy:
    unclear: list[str] = []
    found: dict[str, LinearRows | None] = {}
    repeats = 1 if registry else head_repeats(seen.key, seen.value)
    key, value = seen.key[:, ::repeats], seen.value[:, ::repeats]
    for letter, tensor in (("W_Q", seen.query), ("W_K", key), ("W_V", value)):
        if shared is not None and letter != "W_Q":
            # The very keys and values of an earlier layer: the two layers have one W_K and one W_V.
            number, other = shared
            found[letter] = getattr(other, letter)
            if found[letter] is None:
                unclear.append(f"{letter} is that of layer {number}, where it was not found")
            continue
        expected = tensor.shape[1] * tensor.shape[3]
        rows = rows_around(tensor, seen, observed, names, expected)
        if len(rows) == 1 and len(rows[0].index) == expected:
            # A weight that several modules have is one weight, under the name of the first.
            name = rows[0].module
            found[letter] = replace(rows[0], module=tied.get(name, (name,))[0])
        else:
            found[letter] = None
            where = ", ".join(f"{len(r.index)} rows of {r.module}" for r in rows) or "no linear"
            unclear.append(f"{letter} should be {expected} rows of one linear, but {where} move it")
    W_O, use, between, problem = output_linear(names, seen, observed)
    if problem:
        unclear.append(problem)
    d_head, d_value = seen.query.shape[3], seen.joined.shape[-1] // seen.query.shape[1]
    return LayerAnatomy(
        attention=names[seen.module],
        W_Q=found["W_Q"],
        W_K=found["W_K"],
        W_V=found["W_V"],
        W_O=W_O,
        n_heads=seen.query.shape[1],
        n_kv_heads=key.shape[1],
        d_head=d_head,
        unclear=tuple(unclear),
        d_value=None if d_value == d_head else d_value,
        between=between,
        output_use=use,
        repeats=repeats,
        key_value_of=None if shared is None else shared[0],
    )


def _verify(model: PreTrainedModel, anatomy: Anatomy) -> None:
    """Nudge W_K, then W_V, of the first layer: only its keys, only its values may move, and all of them.

    Later layers see other inputs once the first has moved, so for them the gradients stand alone. Quantized weights
    cannot be nudged.

    Raises:
        ModelError: Something moves that should not, or does not that should.
    """
    if not anatomy.layers or anatomy.calls[0][1] != 0 or precision_of(model) is not None:
        return
    first = anatomy.layers[0]
    with torch.no_grad():
        before = _first_layer(model, anatomy.registry)
        if not all(tensor.isfinite().all() for tensor in before):
            # NaN cannot be seen to move; the checks of the routes report such weights.
            return
        if first.W_K is not None and first.W_V is not None:
            for letter, rows, moving in (("W_K", first.W_K, 1), ("W_V", first.W_V, 2)):
                _nudge_rows(model, anatomy.registry, before, letter, rows, moving)


def _nudge_rows(
    model: PreTrainedModel, registry: bool, before: tuple[Tensor, ...], letter: str, rows: LinearRows, moving: int
) -> None:
    axis = row_axis(model.get_submodule(rows.module))

    def nudged(weight: Tensor) -> Tensor:
        return weight.index_fill(axis, rows.index.to(weight.device), 0.01)

    read: list[bool] = []
    with Hooks(model) as hooks, patched(model, f"{rows.module}.weight", nudged):
        hooks.before(rows.module, lambda x: read.append(x is None or bool(x.any())))
        after = _first_layer(model, registry)
    if not any(read):
        # A norm of zeros in front of it (a layer that was switched off): no weight moves anything.
        return
    for i, (a, b) in enumerate(zip(before, after, strict=True)):
        # Every feature must move at some token; in half precision one may stay where it was at a single one.
        moved = (a != b).any(dim=-2)
        if (i == moving and not moved.all()) or (i != moving and moved.any()):
            raise ModelError(
                f"{type(model).__name__}: probing took {rows.module} for {letter} of layer 0, but nudging "
                "it did not move what it should. Please report this family."
            )


def _outputs_checked(model: PreTrainedModel, anatomy: Anatomy) -> Anatomy:
    """With every head's output set to zero, what W_O receives must be the same at every token: zero, or a norm's bias.

    A linear that reads the residual stream too (an MLP's first one, where W_O is no linear) still receives different
    rows.
    """
    if not any(layer.W_O for layer in anatomy.layers):
        return anatomy
    silent = observe_forward(model, anatomy.registry, nudge=torch.zeros_like)
    names = {module: name for name, module in model.named_modules()}
    read = {(names[at.module], at.use): at.input for at in silent.linears}
    layers = []
    for layer in anatomy.layers:
        states = None if layer.W_O is None else read.get((layer.W_O, layer.output_use))
        if layer.W_O is not None and (states is None or _tells_tokens_apart(states)):
            reason = f"W_O should read the heads alone, but the first linear behind them, {layer.W_O}, reads more"
            layer = replace(layer, W_O=None, between="", output_use=0, unclear=(*layer.unclear, reason))
        layers.append(layer)
    return replace(anatomy, layers=tuple(layers))


def _tells_tokens_apart(states: Tensor) -> bool:
    rows = states.detach().reshape(-1, states.shape[-1]).float()
    # Weights that are NaN decide nothing here; the checks of the routes report them.
    return bool((rows - rows[:1]).abs().max() > 1e-6 * rows.abs().max())


def _first_layer(model: PreTrainedModel, registry: bool) -> tuple[Tensor, Tensor, Tensor]:
    seen = observe_forward(model, registry).seen[0]
    return seen.query, seen.key, seen.value
