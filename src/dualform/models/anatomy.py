"""Where a model keeps W_Q, W_K, W_V and W_O: found by probing, so that no table of families is kept.

One short forward shows each layer's attention: its query, key, value and output. Gradients from query, key and value
back to the output features of the linears around them tell which rows are W_Q, W_K and W_V, whether they are separate
modules, contiguous thirds (gpt2), interleaved by head (gpt_neox) or grouped (llama, phi3). No weight has a gradient, so
that quantized ones and those that lie elsewhere are found as well. W_O is the linear that reads the attention output.
Nudging W_K and W_V then shows that keys and values move, and nothing else does.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dualform.errors import ModelError
from dualform.models.attention import NAME, AttentionCall, plain_attention, tapped
from dualform.models.quantized import precision_of
from dualform.models.streaming import dropped_between, frozen, input_device, lent
from dualform.models.watch import AttentionWatch, SeenAttention


@dataclass(frozen=True)
class Rows:
    """Some output features of one linear."""

    module: str
    """Name of the linear in the model."""
    index: Tensor
    """Which output features, ascending, `(row,)`, on the CPU."""
    whole: bool
    """True when these are all output features of the linear."""


@dataclass(frozen=True)
class LayerAnatomy:
    """One attention layer. A projection that could not be found is None, and `unclear` says why."""

    attention: str
    """Name of the attention module."""
    W_Q: Rows | None
    W_K: Rows | None
    W_V: Rows | None
    W_O: str | None
    """Name of the linear that reads the joined heads."""
    n_heads: int
    n_kv_heads: int
    d_head: int
    unclear: tuple[str, ...] = ()


@dataclass(frozen=True)
class Anatomy:
    """All attention layers, first block first."""

    layers: tuple[LayerAnatomy, ...]
    registry: bool
    """True when attention is reached through transformers' registry, False when it is watched from underneath."""

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer."""
        return self.layers[0].n_heads

    @property
    def knows_outputs(self) -> bool:
        """Whether W_O of every layer is known, so that attention outputs can be recorded."""
        return all(layer.W_O is not None for layer in self.layers)

    @property
    def unclear(self) -> tuple[str, ...]:
        """What could not be found, in words."""
        return tuple(f"layer {i}: {word}" for i, layer in enumerate(self.layers) for word in layer.unclear)

    def require_key_value(self) -> None:
        """Check that W_K and W_V are known everywhere.

        Raises:
            ModelError: Some layer's could not be found.
        """
        missing = [i for i, layer in enumerate(self.layers) if layer.W_K is None or layer.W_V is None]
        if missing:
            raise ModelError(
                f"W_K and W_V were not found in layers {missing} ({'; '.join(self.unclear)}). "
                "This model can be read (zsl, icl) but not finetuned: leave out ft with --learners zsl,icl."
            )


def is_linear(module: nn.Module) -> bool:
    """True for a module that multiplies by a two-dimensional weight: Linear and its kin, or gpt2's Conv1D."""
    return isinstance(module, nn.Linear | Conv1D)


def row_axis(module: nn.Module) -> int:
    """The axis of `module.weight` that counts output features: 1 for gpt2's transposed Conv1D, else 0."""
    return 1 if isinstance(module, Conv1D) else 0


@dataclass
class _Seen:
    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    joined: Tensor
    """Heads joined, `(batch, q_pos, head * d_head)`."""


class _ProbeTap:
    builds_mask = True

    def __init__(self) -> None:
        self.seen: list[_Seen] = []

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        out = plain_attention(call)
        self.seen.append(_Seen(module, call.query, call.key, call.value, out.flatten(2)))
        return out


def find_anatomy(model: PreTrainedModel) -> Anatomy:
    """Probe a model.

    Args:
        model: In eval mode; its attention implementation is set to dualform's where the family allows it, and to
            `eager` where no attention is seen otherwise. Weights are as before afterwards.

    Returns:
        The anatomy, verified; what could not be found is None with words.

    Raises:
        ModelError: No attention was seen at all.
    """
    registry = _use_registry(model)
    refusal: ModelError | None = None
    seen: list[_Seen] = []
    try:
        seen, at_linears = _observe(model, registry)
    except ModelError as error:
        refusal = error
    if not seen:
        # A fused kernel shows nothing, and some families ask for more than dualform's function knows (a soft cap):
        # their plain code can still be watched. It is not the first choice, because Falcon's adds ALiBi twice.
        registry = False
        _use_eager(model)
        seen, at_linears = _observe(model, registry)
    if not seen:
        raise refusal or ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform reads causal transformers with attention layers."
        )
    names = {module: name for name, module in model.named_modules()}
    layers = [_describe(names, one, at_linears) for one in seen]
    return Anatomy(tuple(_verified(model, registry, layers)), registry)


def _use_registry(model: PreTrainedModel) -> bool:
    if type(model)._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
        return True
    return False


def _use_eager(model: PreTrainedModel) -> None:
    """Have the family's plain code compute attention, with a softmax to be seen."""
    if type(model)._can_set_attn_implementation():
        model.set_attn_implementation("eager")
        return
    # The setter refuses such families, the config does not.
    model.config._attn_implementation = "eager"
    for module in model.modules():
        if hasattr(module, "_use_sdpa"):
            module._use_sdpa = False


@dataclass(frozen=True)
class _AtLinear:
    """What one linear read and wrote in the forward."""

    input: Tensor
    output: Tensor


def _observe(model: PreTrainedModel, registry: bool) -> tuple[list[_Seen], dict[nn.Module, _AtLinear]]:
    """One forward on a few tokens: every attention seen, and what passed through every linear."""
    passed: dict[nn.Module, _AtLinear] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        passed[module] = _AtLinear(args[0].detach(), out)

    def begin_graph(module: nn.Module, args: tuple[Any, ...], out: Tensor) -> Tensor:
        # Not the output itself: families that scale it in place may not do so to a leaf.
        return out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)

    linears = [module for module in model.modules() if is_linear(module)]
    handles = [module.register_forward_hook(keep) for module in linears]
    handles.append(model.get_input_embeddings().register_forward_hook(begin_graph))
    tap = _ProbeTap()
    try:
        with torch.enable_grad(), frozen(model), dropped_between(model):
            if registry:
                with tapped(tap):
                    model(input_ids=_probe_tokens(model), use_cache=False)
                seen = tap.seen
            else:
                seen = _watch_once(model)
    finally:
        for handle in handles:
            handle.remove()
    return seen, passed


def _watch_once(model: PreTrainedModel) -> list[_Seen]:
    seen: list[_Seen] = []

    def see(module: nn.Module, attention: SeenAttention) -> None:
        joined = attention.head_output.transpose(1, 2).flatten(2)
        seen.append(_Seen(module, attention.query, attention.key, attention.value, joined))

    with AttentionWatch([m for m in model.modules() if m is not model], 1, see):
        model(input_ids=_probe_tokens(model), use_cache=False)
    return seen


def _probe_tokens(model: PreTrainedModel) -> Tensor:
    size = model.get_input_embeddings().weight.shape[0]
    tokens = torch.arange(5) * 7919 % (size - 4) + 4
    return tokens[None].to(input_device(model))


def _describe(names: dict[nn.Module, str], seen: _Seen, passed: dict[nn.Module, _AtLinear]) -> LayerAnatomy:
    linears = {name: module for name, module in seen.module.named_modules() if is_linear(module)}
    prefix = names[seen.module]
    outputs = {name: passed[module].output for name, module in linears.items() if module in passed}
    unclear: list[str] = []
    found: dict[str, Rows | None] = {}
    for letter, tensor in (("W_Q", seen.query), ("W_K", seen.key), ("W_V", seen.value)):
        rows = _rows_that_move(tensor, outputs, prefix)
        expected = tensor.shape[1] * tensor.shape[3]
        if len(rows) == 1 and len(rows[0].index) == expected:
            found[letter] = rows[0]
        else:
            found[letter] = None
            where = ", ".join(f"{len(r.index)} rows of {r.module}" for r in rows) or "no linear"
            unclear.append(f"{letter} should be {expected} rows of one linear, but {where} move it")
    output = [name for name, module in linears.items() if module in passed and _reads(passed[module], seen.joined)]
    if len(output) != 1:
        unclear.append(f"W_O should be the one linear that reads the joined heads, but {len(output)} do")
    return LayerAnatomy(
        attention=prefix,
        W_Q=found["W_Q"],
        W_K=found["W_K"],
        W_V=found["W_V"],
        W_O=f"{prefix}.{output[0]}" if len(output) == 1 else None,
        n_heads=seen.query.shape[1],
        n_kv_heads=seen.key.shape[1],
        d_head=seen.query.shape[3],
        unclear=tuple(unclear),
    )


def _rows_that_move(tensor: Tensor, outputs: dict[str, Tensor], prefix: str) -> list[Rows]:
    """The output features of linears that have a gradient from a random projection of `tensor`."""
    outputs = {name: output for name, output in outputs.items() if output.requires_grad}
    if not tensor.requires_grad or not outputs:
        return []
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(tensor.shape, generator=generator).to(tensor)
    gradients = torch.autograd.grad(
        (tensor * direction).sum(), list(outputs.values()), retain_graph=True, allow_unused=True
    )
    rows = []
    for name, gradient in zip(outputs, gradients, strict=True):
        if gradient is None:
            continue
        moved = gradient.abs().flatten(0, -2).amax(dim=0) > 0
        index = moved.nonzero()[:, 0].cpu()
        if len(index):
            rows.append(Rows(f"{prefix}.{name}", index, whole=bool(moved.all())))
    return rows


def _reads(at: _AtLinear, joined: Tensor) -> bool:
    return at.input.numel() == joined.numel() and torch.equal(at.input.reshape(joined.shape), joined)


def _verified(model: PreTrainedModel, registry: bool, layers: list[LayerAnatomy]) -> list[LayerAnatomy]:
    """Nudge W_K, then W_V, of the first layer: only its keys, only its values may move, and all of them.

    Later layers see other inputs once the first has moved, so for them the gradients stand alone. Quantized weights
    cannot be nudged.
    """
    first = layers[0]
    if first.W_K is None or first.W_V is None or precision_of(model) is not None:
        return layers
    with torch.no_grad():
        before = _first_layer(model, registry)
        if not all(seen.isfinite().all() for seen in before):
            # Numbers that are none cannot be seen to move; whoever reads the model will say so.
            return layers
        for letter, rows, moving in (("W_K", first.W_K, 1), ("W_V", first.W_V, 2)):
            axis = row_axis(model.get_submodule(rows.module))

            def nudged(weight: Tensor, axis: int = axis, index: Tensor = rows.index) -> Tensor:
                return weight.index_fill(axis, index.to(weight.device), 0.01)

            with lent(model, f"{rows.module}.weight", nudged):
                after = _first_layer(model, registry)
            for i, (a, b) in enumerate(zip(before, after, strict=True)):
                # Every feature must move at some token; in half precision one may stay where it was at a single one.
                moved = (a != b).any(dim=-2)
                if (i == moving and not moved.all()) or (i != moving and moved.any()):
                    raise ModelError(
                        f"{type(model).__name__}: probing took {rows.module} for {letter} of layer 0, but nudging "
                        "it did not move what it should. Please report this family."
                    )
    return layers


def _first_layer(model: PreTrainedModel, registry: bool) -> tuple[Tensor, Tensor, Tensor]:
    if registry:
        tap = _ProbeTap()
        with tapped(tap):
            model(input_ids=_probe_tokens(model), use_cache=False)
        seen = tap.seen[0]
    else:
        seen = _watch_once(model)[0]
    return seen.query, seen.key, seen.value
