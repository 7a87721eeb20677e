"""Where a model keeps W_Q, W_K, W_V and W_O: found by probing, so that no table of families is kept.

One short forward shows each layer's attention: its query, key, value and output. Gradients from query, key and value
back to the output features of the linears around them tell which rows are W_Q, W_K and W_V, whether they are separate
modules, contiguous thirds (gpt2), interleaved by head (gpt_neox) or grouped (llama, phi3). No weight has a gradient, so
that quantized ones and those that lie elsewhere are found as well. W_O is the first linear whose input depends on the
heads' output, wherever in the model it lies: inside the attention module, beside it (BERT), or behind a gate or a norm
(Qwen3-Next, BitNet). Nudging W_K and W_V then shows that keys and values move, and nothing else does; with the heads
silenced, nothing about the tokens may reach W_O.

A layer is one use of attention in a forward, in the order in which they run. A hybrid has fewer layers than blocks, and
a module that several blocks share (Zamba), or that runs in a loop, is as many layers as it has uses.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from dualform.errors import ModelError
from dualform.models.compat import can_set_attention, own_parameters, set_config_attention
from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import frozen, patched, read_again_backward
from dualform.models.loading.quantized import precision_of
from dualform.models.reading.attention import NAME, AttentionCall, plain_attention, tapped
from dualform.models.reading.watch import AttentionWatch, SeenAttention
from dualform.models.structure.probing import probe_tokens
from dualform.models.structure.tying import tied_linears


@dataclass(frozen=True)
class Rows:
    """Some output features of one linear."""

    module: str
    """Name of the linear in the model; of the first one where several have the same weight."""
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
    """Name of the linear that reads the heads' output."""
    n_heads: int
    n_kv_heads: int
    d_head: int
    unclear: tuple[str, ...] = ()
    d_value: int | None = None
    """Width of a head's output, where it is not `d_head` (latent attention)."""
    block: int | None = None
    """Index of the residual block; None where the attention module lies in no list of blocks."""
    between: str = ""
    """What stands between the heads' output and W_O, in words; empty where nothing does."""
    output_use: int = 0
    """Which use of W_O's linear in a forward this layer is: 0 unless several layers share the linear."""
    repeats: int = 1
    """How often the family's code repeats each key-value head before attention, as seen by `AttentionWatch`."""
    key_value_of: int | None = None
    """The earlier layer whose keys and values this one reads, with no W_K and W_V of its own."""

    @property
    def head_width(self) -> int:
        """Width of a head's output."""
        return self.d_head if self.d_value is None else self.d_value


@dataclass(frozen=True)
class Anatomy:
    """All attention layers, in the order in which they run."""

    layers: tuple[LayerAnatomy, ...]
    registry: bool
    """True when attention is reached through transformers' registry, False when it is watched from underneath."""
    calls: tuple[tuple[str, int | None], ...] = ()
    """Every use of attention in a forward, in order: name of the module, and layer (None where it is no layer, see
    `left_out`)."""
    left_out: tuple[str, ...] = ()
    """Attention modules and blocks that are no layers here, and why, in words."""

    @property
    def n_heads(self) -> int:
        """Attention heads of a layer; of the layer with most, where they differ."""
        return max((layer.n_heads for layer in self.layers), default=0)

    @property
    def knows_outputs(self) -> bool:
        """Whether W_O of every layer is known, so that attention outputs can be recorded."""
        return bool(self.layers) and all(layer.W_O is not None for layer in self.layers)

    @property
    def unclear(self) -> tuple[str, ...]:
        """What could not be found, in words, layer by layer; then what is no layer here."""
        found = tuple(f"{self.title(i)}: {word}" for i, layer in enumerate(self.layers) for word in layer.unclear)
        return found + self.left_out

    def title(self, layer: int) -> str:
        """How messages call a layer: with its block, where the two are counted differently."""
        block = self.layers[layer].block
        return f"layer {layer}" if block is None or block == layer else f"layer {layer} (block {block})"

    def without(self, *letters: str) -> tuple[str, ...]:
        """Layers where one of these projections was not found, with the reasons.

        Args:
            letters: Of `W_Q`, `W_K`, `W_V` and `W_O`.

        Returns:
            Such as `layer 3: W_O ...`; empty where all are known.
        """
        found = []
        for i, layer in enumerate(self.layers):
            if missing := [letter for letter in letters if getattr(layer, letter) is None]:
                words = [word for word in layer.unclear if word.split(" ")[0] in missing] or list(layer.unclear)
                found.append(f"{self.title(i)}: {'; '.join(words or [f'{letter} is unknown' for letter in missing])}")
        return tuple(found)

    def require_layers(self, purpose: str) -> None:
        """Check that there is any layer to look into.

        Args:
            purpose: What needs it, for the message.

        Raises:
            ModelError: There is none.
        """
        if not self.layers:
            raise ModelError(f"{purpose} needs attention that can be recorded: {'; '.join(self.left_out)}.")

    def require_key_value(self) -> None:
        """Check that W_K and W_V are known everywhere.

        Raises:
            ModelError: Some layer's could not be found.
        """
        self.require_layers("finetuning W_K and W_V")
        if missing := self.without("W_K", "W_V"):
            raise ModelError(
                f"W_K and W_V were not found everywhere ({_few(missing)}). This model can be read (zsl, icl, probe) "
                "but not finetuned: leave out ft with --learners zsl,icl,probe."
            )


def _few(words: tuple[str, ...], most: int = 3) -> str:
    """The first of several reasons."""
    more = len(words) - most
    return "; ".join(words[:most]) + (f"; and {more} more layers" if more > 0 else "")


def is_linear(module: nn.Module) -> bool:
    """True for a module that multiplies by a two-dimensional weight: Linear and its kin, or gpt2's Conv1D.

    Not where the weight is computed from others (weight norm and other parametrizations), and cannot be written to.
    """
    return isinstance(module, nn.Linear | Conv1D) and "weight" in own_parameters(module)


def row_axis(module: nn.Module) -> int:
    """The axis of `module.weight` that counts output features: 1 for gpt2's transposed Conv1D, else 0."""
    return 1 if isinstance(module, Conv1D) else 0


@dataclass
class _Seen:
    """One use of attention in the probing forward."""

    module: nn.Module
    query: Tensor
    key: Tensor
    value: Tensor
    out: Tensor
    """What the family's own code goes on with, in its graph."""
    joined: Tensor
    """Heads joined, `(batch, q_pos, head * d_value)`."""
    time: int
    """When it ran, counted in linears and uses of attention."""
    heads_first: bool = False
    """Whether `out` has heads in front of positions: `(batch, head, q_pos, d_value)`, the first two perhaps joined."""


@dataclass
class _AtLinear:
    """One use of a linear."""

    module: nn.Module
    input: Tensor
    output: Tensor
    time: int
    use: int
    """How often the linear had run before."""


@dataclass
class _Observed:
    """What passed in one forward on a few tokens."""

    seen: list[_Seen] = field(default_factory=list)
    linears: list[_AtLinear] = field(default_factory=list)
    unrecognised: dict[nn.Module, str] = field(default_factory=dict)
    """Modules with a softmax that is not attention as it is known here, and what is different."""
    n_tokens: int = 0
    starts: dict[nn.Module, list[int]] = field(default_factory=dict)
    """When each module began to run."""

    def start(self, module: nn.Module, time: int) -> int:
        """When the run of a module began that was in progress at a time; 0 for one that never was."""
        return max((start for start in self.starts.get(module, ()) if start <= time), default=0)

    @property
    def now(self) -> int:
        return len(self.seen) + len(self.linears)


class _ProbeTap:
    builds_mask = True

    def __init__(self, observed: _Observed, nudge: Callable[[Tensor], Tensor] | None = None) -> None:
        self._observed = observed
        self._nudge = nudge

    def attend(self, module: nn.Module, call: AttentionCall) -> Tensor:
        out = plain_attention(call)
        if self._nudge is not None:
            out = self._nudge(out)
        self._observed.seen.append(
            _Seen(module, call.query, call.key, call.value, out, out.flatten(2), self._observed.now)
        )
        return out


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
    registry = _use_registry(model)
    refusal: ModelError | None = None
    observed = _Observed()
    try:
        observed = _observe(model, registry)
    except ModelError as error:
        refusal = error
    if not observed.seen:
        # A fused kernel shows nothing, and some families ask for more than dualform's function knows (a soft cap):
        # their plain code can still be watched. It is not the first choice, because Falcon's adds ALiBi twice.
        registry = False
        _use_eager(model)
        observed = _observe(model, registry)
    if not observed.seen and not observed.unrecognised:
        raise refusal or ModelError(
            f"{type(model).__name__}: no softmax attention was seen in its forward, so there is nothing to compare. "
            "dualform reads causal transformers with attention layers."
        )
    anatomy = _outputs_checked(model, _described(model, observed, registry))
    _verify(model, anatomy)
    return anatomy


def _use_registry(model: PreTrainedModel) -> bool:
    if not can_set_attention(model):
        return False
    model.set_attn_implementation(NAME)
    return True


def _use_eager(model: PreTrainedModel) -> None:
    """Have the family's plain code compute attention, with a softmax to be seen."""
    if can_set_attention(model):
        model.set_attn_implementation("eager")
    else:
        # The setter refuses such families, the config does not.
        set_config_attention(model.config, "eager")


def _observe(model: PreTrainedModel, registry: bool, nudge: Callable[[Tensor], Tensor] | None = None) -> _Observed:
    """One forward on a few tokens: every attention seen, and what passed through every linear.

    Args:
        model: The model.
        registry: Where to look for attention.
        nudge: Changes the heads' output, on its way to the model.
    """
    observed = _Observed()
    uses: dict[nn.Module, int] = {}

    def keep(module: nn.Module, x: Any, out: Any) -> None:
        use = uses.get(module, 0)
        uses[module] = use + 1
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            observed.linears.append(_AtLinear(module, x, out, observed.now, use))

    def begin(module: nn.Module, x: Any) -> None:
        observed.starts.setdefault(module, []).append(observed.now)

    def begin_graph(x: Any, out: Tensor) -> Tensor:
        # Not the output itself: families that scale it in place may not do so to a leaf.
        return out + torch.zeros((), dtype=out.dtype, device=out.device, requires_grad=True)

    ids = probe_tokens(model)
    observed.n_tokens = ids.shape[1]
    with Hooks(model) as hooks:
        for module in model.modules():
            if is_linear(module):
                hooks.after(module, partial(keep, module), whole=True)
            else:
                hooks.before(module, partial(begin, module))
        hooks.after(model.get_input_embeddings(), begin_graph)
        with torch.enable_grad(), frozen(model), read_again_backward(model), _looking(model, registry, observed, nudge):
            model(input_ids=ids, use_cache=False)
    return observed


@contextmanager
def _looking(
    model: PreTrainedModel, registry: bool, observed: _Observed, nudge: Callable[[Tensor], Tensor] | None
) -> Iterator[None]:
    if registry:
        with tapped(_ProbeTap(observed, nudge)):
            yield
        return

    def see(module: nn.Module, attention: SeenAttention) -> None:
        joined = attention.head_output.transpose(1, 2).flatten(2)
        out = attention.head_output if attention.passed_on is None else attention.passed_on
        observed.seen.append(
            _Seen(module, attention.query, attention.key, attention.value, out, joined, observed.now, heads_first=True)
        )

    watch = AttentionWatch([m for m in model.modules() if m is not model], 1, see, nudge=nudge)
    with watch:
        yield
    observed.unrecognised = dict(watch.unrecognised)


def _described(model: PreTrainedModel, observed: _Observed, registry: bool) -> Anatomy:
    names = {module: name for name, module in model.named_modules()}
    tied = tied_linears(model)
    blocks = _blocks(model, [names[seen.module] for seen in observed.seen])
    layers: list[LayerAnatomy] = []
    described: list[_Seen] = []
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


def _not_a_layer(observed: _Observed, number: int) -> str | None:
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


def _same_keys(other: _Seen, seen: _Seen) -> bool:
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
    model: PreTrainedModel, observed: _Observed, blocks: Mapping[str, int], names: Mapping[nn.Module, str]
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
    seen: _Seen,
    observed: _Observed,
    shared: tuple[int, LayerAnatomy] | None,
    registry: bool,
) -> LayerAnatomy:
    unclear: list[str] = []
    found: dict[str, Rows | None] = {}
    repeats = 1 if registry else _repeats(seen.key, seen.value)
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
        rows = _rows_around(tensor, seen, observed, names, expected)
        if len(rows) == 1 and len(rows[0].index) == expected:
            # A weight that several modules have is one weight, under the name of the first.
            name = rows[0].module
            found[letter] = replace(rows[0], module=tied.get(name, (name,))[0])
        else:
            found[letter] = None
            where = ", ".join(f"{len(r.index)} rows of {r.module}" for r in rows) or "no linear"
            unclear.append(f"{letter} should be {expected} rows of one linear, but {where} move it")
    W_O, use, between, problem = _output_linear(names, seen, observed)
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


def _repeats(key: Tensor, value: Tensor) -> int:
    """How many heads in a row are copies of the first, of keys and values alike."""
    n = key.shape[1]
    for repeats in range(n, 1, -1):
        if n % repeats == 0 and all(
            torch.equal(x, x[:, ::repeats].repeat_interleave(repeats, 1)) for x in (key, value)
        ):
            return repeats
    return 1


def _rows_around(
    tensor: Tensor, seen: _Seen, observed: _Observed, names: Mapping[nn.Module, str], expected: int
) -> list[Rows]:
    """The rows that move a tensor: of linears in the attention module, else of those around it, the nearest first."""
    name = names[seen.module]
    modules = {other: module for module, other in names.items()}
    first: list[Rows] = []
    while name:
        inner = set(modules[name].modules())
        # A module may have run before, in a loop or in another layer: its outputs of then are not meant.
        start = observed.start(modules[name], seen.time)
        outputs = {
            names[at.module]: at.output
            for at in observed.linears
            if start <= at.time < seen.time and at.module in inner
        }
        rows = _rows_that_move(tensor, outputs)
        if len(rows) == 1 and len(rows[0].index) == expected:
            return rows
        first = first or rows
        if rows:
            break
        name = name.rpartition(".")[0]
        if name and isinstance(modules[name], nn.ModuleList):
            break
    return first


def _rows_that_move(tensor: Tensor, outputs: Mapping[str, Tensor]) -> list[Rows]:
    """The output features of linears that have a gradient from a random projection of `tensor`."""
    outputs = {name: output for name, output in outputs.items() if output.requires_grad}
    if not tensor.requires_grad or not outputs:
        return []
    gradients = torch.autograd.grad(
        (tensor * _direction(tensor)).sum(), list(outputs.values()), retain_graph=True, allow_unused=True
    )
    rows = []
    for name, gradient in zip(outputs, gradients, strict=True):
        if gradient is None:
            continue
        moved = gradient.abs().flatten(0, -2).amax(dim=0) > 0
        index = moved.nonzero()[:, 0].cpu()
        if len(index):
            rows.append(Rows(name, index, whole=bool(moved.all())))
    return rows


def _direction(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)


def _output_linear(
    names: Mapping[nn.Module, str], seen: _Seen, observed: _Observed
) -> tuple[str | None, int, str, str | None]:
    """W_O: its name, which use of the linear it is, what stands in front of it; or what is unclear."""
    later = sorted((at for at in observed.linears if at.time > seen.time), key=lambda at: at.time)
    for at in later:
        if not at.input.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(
            (at.input * _direction(at.input)).sum(), [seen.out], retain_graph=True, allow_unused=True
        )
        if gradient is None or not (gradient != 0).any():
            continue
        name = names[at.module]
        if at.input.numel() != seen.joined.numel():
            return (
                None,
                0,
                "",
                f"W_O should read the heads' {seen.joined.shape[-1]} features, but the first linear behind them, "
                f"{name}, reads {at.input.shape[-1]}",
            )
        return name, at.use, _between(at, seen), None
    return None, 0, "", "W_O should be a linear that reads the heads, but no linear does"


def _between(at: _AtLinear, seen: _Seen) -> str:
    """What happens to the heads' output on its way into W_O."""
    read = at.input.reshape(seen.joined.shape)
    if torch.equal(read, seen.joined):
        return ""
    # One token and one feature of W_O's input: which of the heads' features does it depend on?
    token, n_heads = seen.joined.shape[1] - 1, seen.query.shape[1]
    for feature in range(seen.joined.shape[-1]):
        (gradient,) = torch.autograd.grad(read[0, token, feature], [seen.out], retain_graph=True, allow_unused=True)
        if gradient is None or not (gradient != 0).any():
            # A gate may be shut, or a rectifier at rest.
            continue
        if seen.heads_first:
            gradient = gradient.reshape(1, n_heads, -1, gradient.shape[-1]).transpose(1, 2)
        moved = (gradient.reshape(seen.joined.shape) != 0)[0]
        width = seen.joined.shape[-1] // n_heads
        head = slice(feature // width * width, (feature // width + 1) * width)
        if moved[:token].any():
            return "an operation across tokens"
        if int(moved.sum()) == 1 and bool(moved[token, feature]):
            return "a factor for each feature, such as a gate or a sink"
        if int(moved[token, head].sum()) == int(moved.sum()):
            return "an operation within each head, such as a norm"
        return "an operation across heads, such as a norm"
    return "an operation that is not known"


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
            # Numbers that are none cannot be seen to move; whoever reads the model will say so.
            return
        if first.W_K is not None and first.W_V is not None:
            for letter, rows, moving in (("W_K", first.W_K, 1), ("W_V", first.W_V, 2)):
                _nudge_rows(model, anatomy.registry, before, letter, rows, moving)


def _nudge_rows(
    model: PreTrainedModel, registry: bool, before: tuple[Tensor, ...], letter: str, rows: Rows, moving: int
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

    A linear that reads the residual stream too (an MLP's first one, where W_O is no linear) still tells tokens apart.
    """
    if not any(layer.W_O for layer in anatomy.layers):
        return anatomy
    silent = _observe(model, anatomy.registry, nudge=torch.zeros_like)
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
    # Weights that are NaN tell nothing; whoever reads the model will say so.
    return bool((rows - rows[:1]).abs().max() > 1e-6 * rows.abs().max())


def _first_layer(model: PreTrainedModel, registry: bool) -> tuple[Tensor, Tensor, Tensor]:
    seen = _observe(model, registry).seen[0]
    return seen.query, seen.key, seen.value
