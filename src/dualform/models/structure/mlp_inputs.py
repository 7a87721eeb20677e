"""Finding the input projections of each block's MLP by probing, without a table of family names.

One short forward shows which linears outside attention run first, and which norm computes their input. A second one
keeps the outputs of these linears fixed and changes attention's output: the block's output must then change exactly as
the residual stream at the MLP does. This shows that the MLP depends on its input only through these linears, and that
the rest of the block is the residual connection.
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
    """The input projections of one block's MLP.

    `a` is the MLP's input; `u` is the residual stream to which the MLP's output is added.
    """

    block: str
    """Name of the residual block."""
    linears: tuple[str, ...]
    """Names of the linears whose input is `a`, in execution order."""
    norm: str | None
    """Name of the norm that computes `a`; None if `a` is the residual stream itself."""
    parallel: bool
    """True if attention and MLP are parallel: both read the block's input, and attention does not affect the MLP of the
    same block."""
    W_O: str
    """Name of the linear that computes attention's output."""


LinearCallback = Callable[[int, str, Tensor, Tensor], Tensor | None]
"""Function of layer, name of the linear, `a` `(batch, pos, d_model)` and the linear's output `(batch, pos, d_out)`;
returns a replacement of the output or None."""

BlockCallback = Callable[[int, Tensor, Tensor], Tensor | None]
"""Function of layer, `u` and the block's output, both `(batch, pos, d_model)`; returns a replacement of the output or
None."""


def find_mlp_inputs(model: PreTrainedModel, anatomy: Anatomy) -> tuple[MLPInputs, ...]:
    """Find the MLP input projections of each block, in order, by probing a model in eval mode, and verify them.

    Raises:
        ModelError: The blocks or their attention are unknown, a block has no MLP or a mixture of experts, or its output
            is not the residual stream plus a function of the MLP's input.
    """
    names = block_names(model, anatomy)
    outside = [_outside_attention(model, anatomy, layer, name) for layer, name in enumerate(names)]
    with _observing_blocks(model, names, outside) as runs:
        _forward(model)
    inputs = []
    for layer, (name, run) in enumerate(zip(names, runs, strict=True)):
        if run.count != 1:
            raise ModelError(
                f"{name} ran {run.count} times in one forward; expected one run, so that layer {layer} has one MLP. "
                "Choose another model."
            )
        W_O = anatomy.layers[layer].W_O
        assert W_O is not None
        inputs.append(_describe(model, name, run, W_O))
    _check(model, inputs)
    return tuple(inputs)


@contextmanager
def hooked_mlps(
    model: PreTrainedModel, inputs: Sequence[MLPInputs], at_linear: LinearCallback, at_block: BlockCallback
) -> Iterator[None]:
    """Context manager that calls `at_linear` after each MLP input projection and `at_block` after each block."""
    with Hooks(model) as hooks:
        for layer, block_inputs in enumerate(inputs):
            _add_hooks(hooks, layer, block_inputs, at_linear, at_block)
        yield


def _add_hooks(hooks: Hooks, layer: int, inputs: MLPInputs, at_linear: LinearCallback, at_block: BlockCallback) -> None:
    # `x` is the block's input, `u` the residual stream to which the MLP's output is added.
    states: dict[str, Tensor] = {}

    def unflattened(tensor: Tensor) -> Tensor:
        # Some families (OPT, Falcon) flatten batch and position inside the block.
        return tensor.reshape(*states["x"].shape[:-1], tensor.shape[-1])

    def before_block(x: Any) -> None:
        states["x"] = _hidden_states(inputs.block, x)

    def after_attention(x: Tensor, out: Tensor) -> None:
        states["u"] = states["x"] + unflattened(out)

    def before_norm(x: Tensor) -> None:
        states["u"] = unflattened(x)

    def after_linear(name: str, x: Tensor, out: Tensor) -> Tensor | None:
        replacement = at_linear(layer, name, unflattened(x), unflattened(out))
        return None if replacement is None else replacement.reshape(out.shape)

    def after_block(x: Any, out: Tensor) -> Tensor | None:
        replacement = at_block(layer, states["u"], out)
        states.clear()
        return replacement

    hooks.before(inputs.block, before_block)
    if inputs.parallel:
        hooks.after(inputs.W_O, after_attention)
    else:
        hooks.before(inputs.linears[0] if inputs.norm is None else inputs.norm, before_norm)
    for name in inputs.linears:
        hooks.after(name, partial(after_linear, name))
    hooks.after(inputs.block, after_block)


def _hidden_states(block: str, x: Any) -> Tensor:
    """The input of a block, checked to be hidden states `(batch, pos, d_model)`."""
    if not (isinstance(x, Tensor) and x.dim() == 3):
        raise ModelError(
            f"the input of {block} is {type(x).__name__}; expected hidden states (batch, pos, d_model). Choose another "
            "model."
        )
    return x


@dataclass
class _BlockRun:
    """What one block computed in the probing forward; it holds the tensors, so that their memory is not reused."""

    count: int = 0
    """Number of runs."""
    input: Tensor | None = None
    calls: list[tuple[str, Tensor, Tensor]] = field(default_factory=list)
    """Name, input and output of every module outside attention that maps one tensor to one, in order of completion."""


@contextmanager
def _observing_blocks(
    model: PreTrainedModel, names: Sequence[str], outside: Sequence[Sequence[str]]
) -> Iterator[tuple[_BlockRun, ...]]:
    runs = tuple(_BlockRun() for _ in names)

    def begin(name: str, run: _BlockRun, x: Any) -> None:
        run.count += 1
        run.input = _hidden_states(name, x)

    def keep(name: str, run: _BlockRun, x: Any, out: Any) -> None:
        if isinstance(x, Tensor) and isinstance(out, Tensor):
            run.calls.append((name, x, out))

    with Hooks(model) as hooks:
        for name, inner_names, run in zip(names, outside, runs, strict=True):
            hooks.before(name, partial(begin, name, run))
            for inner in inner_names:
                hooks.after(inner, partial(keep, inner, run), whole=True)
        yield runs


def _describe(model: PreTrainedModel, block: str, run: _BlockRun, W_O: str) -> MLPInputs:
    linears = [(name, x) for name, x, _ in run.calls if is_linear(model.get_submodule(name))]
    if not linears:
        raise ModelError(
            f"{block} runs no linear outside its attention; expected an MLP. Choose a model with an MLP in every block."
        )
    a = linears[0][1]
    # Calls are in order of completion, so a norm comes before modules that contain it. A dropout in eval mode is
    # ignored, because it returns its input.
    norms = [(name, x) for name, x, out in run.calls if out is a and x is not a]
    norm, u = norms[0] if norms else (None, a)
    assert run.input is not None
    if u.numel() != run.input.numel():
        raise ModelError(
            f"{block}: its MLP reads a tensor of shape {tuple(u.shape)}; expected the residual stream, of shape "
            f"{tuple(run.input.shape)}. Choose another model."
        )
    names = tuple(name for name, x in linears if x is a)
    return MLPInputs(block, names, norm, parallel=u.data_ptr() == run.input.data_ptr(), W_O=W_O)


def _outside_attention(model: PreTrainedModel, anatomy: Anatomy, layer: int, block: str) -> list[str]:
    """Names of a block's modules that do not belong to attention.

    Raises:
        ModelError: W_O is unknown, or a module has a matrix but is not a linear.
    """
    attention = anatomy.layers[layer]
    if attention.W_O is None:
        raise ModelError(
            f"{attention.attention}: its W_O was not found ({'; '.join(attention.unclear)}), so the output of "
            f"attention in layer {layer} is unknown. Choose another model."
        )
    # If an unknown projection outside the attention module is taken for the MLP's, `_check` rejects the block.
    projections = (attention.W_Q, attention.W_K, attention.W_V)
    inside = {attention.W_O, *(rows.module for rows in projections if rows is not None)}
    names = []
    for name, module in model.get_submodule(block).named_modules(prefix=block):
        if name == block or f"{name}.".startswith(f"{attention.attention}.") or name in inside:
            continue
        for matrix, weight in module.named_parameters(recurse=False):
            if weight.dim() > 1 and not is_linear(module):
                raise ModelError(
                    f"{name}.{matrix} of shape {tuple(weight.shape)} is not the weight of a linear, so the MLP input "
                    f"projections of layer {layer} cannot be found. Choose a model without experts."
                )
        names.append(name)
    return names


def _check(model: PreTrainedModel, inputs: Sequence[MLPInputs]) -> None:
    """Check that with the projections' outputs fixed, a change of `u` changes the block's output by the same amount."""
    outputs: dict[str, Tensor] = {}
    before: dict[int, tuple[Tensor, Tensor]] = {}

    def keep_output(layer: int, name: str, a: Tensor, out: Tensor) -> None:
        outputs[name] = out.clone()

    def keep_block(layer: int, u: Tensor, out: Tensor) -> None:
        before[layer] = u.clone(), out.clone()

    def fixed(layer: int, name: str, a: Tensor, out: Tensor) -> Tensor:
        return outputs[name]

    def compare(layer: int, u: Tensor, out: Tensor) -> None:
        old_u, old_out = (old.double() for old in before[layer])
        moved_u, moved_out = u.double() - old_u, out.double() - old_out
        error = (moved_out - moved_u).abs()
        # Rounding errors are relative to the states, which can be far larger than their change.
        rounding = 8 * torch.finfo(model.dtype).eps * (old_u.abs() + old_out.abs())
        if not (error <= tolerance(model) * moved_u.abs().max() + rounding).all():
            block_inputs = inputs[layer]
            raise ModelError(
                f"{block_inputs.block}: with the outputs of {', '.join(block_inputs.linears)} fixed, its output should "
                f"change exactly as the residual stream at its MLP does, but differs by {float(error.max()):.1e} from "
                f"a change of {float(moved_u.abs().max()):.1e}. So the MLP does not read its input through these "
                "linears alone, and context cannot be written into them. Choose another model."
            )

    with hooked_mlps(model, inputs, keep_output, keep_block):
        _forward(model)
    with _nudged(model, inputs), hooked_mlps(model, inputs, fixed, compare):
        _forward(model)


@contextmanager
def _nudged(model: PreTrainedModel, inputs: Sequence[MLPInputs]) -> Iterator[None]:
    """Add random noise to attention's output, as large as the output itself."""
    generator = torch.Generator().manual_seed(0)

    def nudge(x: Tensor, out: Tensor) -> Tensor:
        noise = torch.randn(out.shape, generator=generator).to(out.device, out.dtype)
        return out + noise * out.float().square().mean().sqrt().to(out.dtype)

    with Hooks(model) as hooks:
        for block_inputs in inputs:
            hooks.after(block_inputs.W_O, nudge)
        yield


@torch.no_grad()
def _forward(model: PreTrainedModel) -> None:
    model(input_ids=probe_tokens(model), use_cache=False)
