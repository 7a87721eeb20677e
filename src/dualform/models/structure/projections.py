"""Identifying W_Q, W_K, W_V and W_O of an observed attention layer from gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dualform.models.structure.anatomy import LinearRows
from dualform.models.structure.observe import AttentionUse, LinearUse, ObservedForward


def head_repeats(key: Tensor, value: Tensor) -> int:
    """How often each head is repeated, in both keys and values; 1 without repeats."""
    n = key.shape[1]
    for repeats in range(n, 1, -1):
        if n % repeats == 0 and all(
            torch.equal(x, x[:, ::repeats].repeat_interleave(repeats, 1)) for x in (key, value)
        ):
            return repeats
    return 1


def rows_around(
    tensor: Tensor, use: AttentionUse, observed: ObservedForward, names: Mapping[nn.Module, str], expected: int
) -> list[LinearRows]:
    """The rows that a tensor depends on, of linears in the attention module, else of those in the modules around it.

    The search ends at the first module in which exactly `expected` rows of one linear are found.
    """
    name = names[use.module]
    modules = {other: module for module, other in names.items()}
    first: list[LinearRows] = []
    while name:
        inner = set(modules[name].modules())
        # Outputs of earlier runs of the module, in a loop or in another layer, do not count.
        start = observed.start(modules[name], use.call_index)
        outputs = {
            names[linear.module]: linear.output
            for linear in observed.linears
            if start <= linear.call_index < use.call_index and linear.module in inner
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


def _rows_that_move(tensor: Tensor, outputs: Mapping[str, Tensor]) -> list[LinearRows]:
    """The output features with a gradient from a random projection of `tensor`."""
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
            rows.append(LinearRows(name, index, whole=bool(moved.all())))
    return rows


def _direction(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)


def output_linear(
    names: Mapping[nn.Module, str], use: AttentionUse, observed: ObservedForward
) -> tuple[str | None, int, str, str | None]:
    """W_O: name, index of the linear's run, description of the operation before it, and the problem if not found."""
    later = sorted(
        (linear for linear in observed.linears if linear.call_index > use.call_index),
        key=lambda linear: linear.call_index,
    )
    for linear in later:
        if not linear.input.requires_grad:
            continue
        (gradient,) = torch.autograd.grad(
            (linear.input * _direction(linear.input)).sum(), [use.out], retain_graph=True, allow_unused=True
        )
        if gradient is None or not (gradient != 0).any():
            continue
        name = names[linear.module]
        if linear.input.numel() != use.joined.numel():
            problem = (
                f"W_O should read the heads' {use.joined.shape[-1]} features, but the first linear after the heads, "
                f"{name}, reads {linear.input.shape[-1]}"
            )
            return None, 0, "", problem
        return name, linear.use, _operation_before(linear, use), None
    return None, 0, "", "W_O should be a linear that reads the heads' output, but no linear does"


def _operation_before(linear: LinearUse, use: AttentionUse) -> str:
    """Description of the operation between the heads' output and W_O; empty if there is none."""
    inputs = linear.input.reshape(use.joined.shape)
    if torch.equal(inputs, use.joined):
        return ""
    # Find the heads' features that one feature of W_O's input depends on, at one token.
    token, n_heads = use.joined.shape[1] - 1, use.query.shape[1]
    for feature in range(use.joined.shape[-1]):
        (gradient,) = torch.autograd.grad(inputs[0, token, feature], [use.out], retain_graph=True, allow_unused=True)
        if gradient is None or not (gradient != 0).any():
            # A closed gate or an inactive rectifier.
            continue
        if use.heads_first:
            gradient = gradient.reshape(1, n_heads, -1, gradient.shape[-1]).transpose(1, 2)
        moved = (gradient.reshape(use.joined.shape) != 0)[0]
        width = use.joined.shape[-1] // n_heads
        head = slice(feature // width * width, (feature // width + 1) * width)
        if moved[:token].any():
            return "an operation across tokens"
        if int(moved.sum()) == 1 and bool(moved[token, feature]):
            return "a factor for each feature, such as a gate or a sink"
        if int(moved[token, head].sum()) == int(moved.sum()):
            return "an operation within each head, such as a norm"
        return "an operation across heads, such as a norm"
    return "an unknown operation"
