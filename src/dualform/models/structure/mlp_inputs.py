"""Where a residual block's MLP reads the residual stream: found by probing, so that no table of families is kept.

One short forward shows which linears outside attention are fed first, and which norm their input came from. A second
one holds what these linears answer and nudges attention's output: the block's output must then move exactly as the
residual stream at the MLP does. So all of the MLP depends on these linears, and the rest of the block is the residual.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.hooks import Hooks
from dualform.models.reading.self_check import tolerance
from dualform.models.structure.anatomy import Anatomy, is_linear
from dualform.models.structure.blocks import block_names
from dualform.models.structure.probing import probe_tokens


@dataclass(frozen=True)
class MLPInputs:
    """How one block's MLP reads. Its input is `a`; the residual stream that the MLP's output is added to is `u`."""

    block: str
    """Name of the residual block."""
    linears: tuple[str, ...]
    """Names of the linears that read `a`, in the order in which they run."""
    norm: str | None
    """Name of the norm whose output `a` is; None where the residual stream is read as it is."""
    parallel: bool
    """True where attention and MLP stand side by side: `a` comes from the block's own input, and what attention adds
    does not reach the MLP within the block."""
    W_O: str
    """Name of the linear that attention's output comes from."""


AtLinear = Callable[[int, str, Tensor, Tensor], Tensor | None]
"""From layer, name of the linear, `a` `(batch, pos, d_model)` and output `(batch, pos, d_out)` to another output."""

AtBlock = Callable[[int, Tensor, Tensor], Tensor | None]
"""From layer, `u` and the block's output, `(batch, pos, d_model)` each, to another output."""


def find_mlp_inputs(model: PreTrainedModel, anatomy: Anatomy) -> tuple[MLPInputs, ...]:
    """Probe a model.

    Args:
        model: In eval mode; not changed.
        anatomy: Its anatomy.

    Returns:
        What reads in each block, first block first; checked.

    Raises:
        ModelError: The inputs cannot be found: the blocks or their attention are not known, a block has no MLP or a
            mixture of experts, or its output is not the residual stream plus what the MLP makes of its input.
    """
    names = block_names(model, anatomy)
    outside = [_outside_attention(model, anatomy, layer, name) for layer, name in enumerate(names)]
    found = []
    with _noted(model, names, outside) as notes:
        _forward(model)
    for layer, (name, note) in enumerate(zip(names, notes, strict=True)):
        if note.runs != 1:
            raise ModelError(f"{name} ran {note.runs} times in one forward, so layer {layer} has no one MLP to read.")
        W_O = anatomy.layers[layer].W_O
        assert W_O is not None
        found.append(_describe(model, name, note, W_O))
    _check(model, found)
    return tuple(found)


@contextmanager
def at_mlps(
    model: PreTrainedModel, inputs: Sequence[MLPInputs], at_linear: AtLinear, at_block: AtBlock
) -> Iterator[None]:
    """Stand by at every MLP of every forward in the block, to look on (return None) or to answer instead.

    Args:
        model: The model.
        inputs: From `find_mlp_inputs`.
        at_linear: Called when a linear has read the MLP's input.
        at_block: Called when a block is done.
    """
    with Hooks(model) as hooks:
        for layer, one in enumerate(inputs):
            _stand_by(hooks, layer, one, at_linear, at_block)
        yield


def _stand_by(hooks: Hooks, layer: int, inputs: MLPInputs, at_linear: AtLinear, at_block: AtBlock) -> None:
    # `x` is the block's input, `u` the residual stream that the MLP is added to.
    now: dict[str, Tensor] = {}

    def shaped(states: Tensor) -> Tensor:
        # Some families (OPT, Falcon) flatten batch and position on the way.
        return states.reshape(*now["x"].shape[:-1], states.shape[-1])

    def begin(x: Any) -> None:
        now["x"] = _hidden_states(inputs.block, x)

    def attended(x: Tensor, out: Tensor) -> None:
        now["u"] = now["x"] + shaped(out)

    def normed(x: Tensor) -> None:
        now["u"] = shaped(x)

    def read(name: str, x: Tensor, out: Tensor) -> Tensor | None:
        answer = at_linear(layer, name, shaped(x), shaped(out))
        return None if answer is None else answer.reshape(out.shape)

    def end(x: Any, out: Tensor) -> Tensor | None:
        answer = at_block(layer, now["u"], out)
        now.clear()
        return answer

    hooks.before(inputs.block, begin)
    if inputs.parallel:
        hooks.after(inputs.W_O, attended)
    else:
        hooks.before(inputs.linears[0] if inputs.norm is None else inputs.norm, normed)
    for name in inputs.linears:
        hooks.after(name, partial(read, name))
    hooks.after(inputs.block, end)


def _hidden_states(block: str, x: Any) -> Tensor:
    """The hidden states that a block is given, `(batch, pos, d_model)`."""
    if not (isinstance(x, Tensor) and x.dim() == 3):
        raise ModelError(f"{block} is given {type(x).__name__} instead of hidden states (batch, pos, d_model).")
    return x


@dataclass
class _Note:
    """What one block did in the probing forward. Tensors are kept, so that no two of them can be taken for one."""

    runs: int = 0
    given: Tensor | None = None
    calls: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    """Name, input and output of every module outside attention that maps one tensor to one, as they finished."""


@contextmanager
def _noted(
    model: PreTrainedModel, names: Sequence[str], outside: Sequence[Sequence[str]]
) -> Iterator[tuple[_Note, ...]]:
    notes = tuple(_Note() for _ in names)

    def begin(name: str, note: _Note, x: Any) -> None:
        note.runs += 1
        note.given = _hidden_states(name, x)

    def keep(name: str, note: _Note, x: Any, out: Any) -> None:
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            note.calls.append((name, x, out))

    with Hooks(model) as hooks:
        for name, inner, note in zip(names, outside, notes, strict=True):
            hooks.before(name, partial(begin, name, note))
            for one in inner:
                hooks.after(one, partial(keep, one, note), whole=True)
        yield notes


def _describe(model: PreTrainedModel, block: str, note: _Note, W_O: str) -> MLPInputs:
    linears = [(name, given) for name, given, _ in note.calls if is_linear(model.get_submodule(name))]
    if not linears:
        raise ModelError(f"{block} has no linear outside its attention that is run, so there is no MLP to read.")
    a = linears[0][1]
    # What contains a norm finishes after it; a dropout in eval mode returns the very tensor that it is given.
    norms = [(name, given) for name, given, out in note.calls if out is a and given is not a]
    norm, u = norms[0] if norms else (None, a)
    assert note.given is not None
    if u.numel() != note.given.numel():
        raise ModelError(
            f"{block}: its MLP reads a tensor of shape {tuple(u.shape)}, the block one of {tuple(note.given.shape)}, "
            "so that is not the residual stream."
        )
    inputs = tuple(name for name, given in linears if given is a)
    return MLPInputs(block, inputs, norm, parallel=u.data_ptr() == note.given.data_ptr(), W_O=W_O)


def _outside_attention(model: PreTrainedModel, anatomy: Anatomy, layer: int, block: str) -> list[str]:
    """Modules of a block that are neither attention nor a part of it.

    Raises:
        ModelError: W_O is not known, or a module holds a matrix that no linear has.
    """
    found = anatomy.layers[layer]
    if found.W_O is None:
        raise ModelError(
            f"{found.attention}: its W_O was not found ({'; '.join(found.unclear)}), so what attention adds in layer "
            f"{layer} is not known. Choose another model."
        )
    # Should a projection that is not known lie elsewhere and be taken for the MLP's, the check refuses the block.
    inside = {found.W_O, *(rows.module for rows in (found.W_Q, found.W_K, found.W_V) if rows is not None)}
    names = []
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        if name == block or f"{name}.".startswith(f"{found.attention}.") or name in inside:
            continue
        for matrix, weight in module.named_parameters(recurse=False):
            if weight.dim() > 1 and not is_linear(module):
                raise ModelError(
                    f"{name}.{matrix} of shape {tuple(weight.shape)} is no linear's weight, so it is unknown what "
                    f"reads the input of the MLP of layer {layer}. Choose a model without experts."
                )
        names.append(name)
    return names


def _check(model: PreTrainedModel, inputs: Sequence[MLPInputs]) -> None:
    """Hold what the inputs answer and nudge attention: a block's output must move as its residual stream does."""
    answers: dict[str, Tensor] = {}
    before: dict[int, tuple[Tensor, Tensor]] = {}

    def keep_answer(layer: int, name: str, a: Tensor, out: Tensor) -> None:
        answers[name] = out.clone()

    def keep_block(layer: int, u: Tensor, out: Tensor) -> None:
        before[layer] = u.clone(), out.clone()

    def held(layer: int, name: str, a: Tensor, out: Tensor) -> Tensor:
        return answers[name]

    def compare(layer: int, u: Tensor, out: Tensor) -> None:
        old_u, old_out = (old.double() for old in before[layer])
        moved_u, moved_out = u.double() - old_u, out.double() - old_out
        error = (moved_out - moved_u).abs()
        # Rounding is that of the states, which can be far larger than what moves.
        rounding = 8 * torch.finfo(model.dtype).eps * (old_u.abs() + old_out.abs())
        if not (error <= tolerance(model) * moved_u.abs().max() + rounding).all():
            one = inputs[layer]
            raise ModelError(
                f"{one.block}: with the answers of {', '.join(one.linears)} held, its output does not move as the "
                f"residual stream at its MLP does (off by {float(error.max()):.1e} where that moves by "
                f"{float(moved_u.abs().max()):.1e}): it is not the residual stream plus what its MLP makes of these "
                "linears, so context cannot be written into them. Choose another model."
            )

    with at_mlps(model, inputs, keep_answer, keep_block):
        _forward(model)
    with _nudged(model, inputs), at_mlps(model, inputs, held, compare):
        _forward(model)


@contextmanager
def _nudged(model: PreTrainedModel, inputs: Sequence[MLPInputs]) -> Iterator[None]:
    """Attention's output moved at random, as far as it is long."""
    generator = torch.Generator().manual_seed(0)

    def nudge(x: Tensor, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        return out + noise * out.float().square().mean().sqrt().to(out.dtype)

    with Hooks(model) as hooks:
        for one in inputs:
            hooks.after(one.W_O, nudge)
        yield


@torch.no_grad()
def _forward(model: PreTrainedModel) -> None:
    model(input_ids=probe_tokens(model), use_cache=False)
