"""Which linears' output features are W_Q, W_K and W_V of a layer, and which linear is W_O: read off gradients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from dualform.models.structure.anatomy import LinearRows
from dualform.models.structure.observe import AttentionUse, LinearUse, ObservedForward


def head_repeats(key: Tensor, value: Tensor) -> int:
    """How many heads in a row are copies of the first, of keys and values alike."""
    n = key.shape[1]
    for repeats in range(n, 1, -1):
        if n % repeats == 0 and all(
            torch.equal(x, x[:, ::repeats].repeat_interleave(repeats, 1)) for x in (key, value)
        ):
            return repeats
    return 1


def rows_around(
    tensor: Tensor, seen: AttentionUse, observed: ObservedForward, names: Mapping[nn.Module, str], expected: int
) -> list[LinearRows]:
    """The rows that move a tensor: of linears in the attention module, else of those around it, the nearest first."""
    name = names[seen.module]
    modules = {other: module for module, other in names.items()}
    first: list[LinearRows] = []
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


def _rows_that_move(tensor: Tensor, outputs: Mapping[str, Tensor]) -> list[LinearRows]:
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
            rows.append(LinearRows(name, index, whole=bool(moved.all())))
    return rows


def _direction(like: Tensor) -> Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(0)).to(like)


def output_linear(
    names: Mapping[nn.Module, str], seen: AttentionUse, observed: ObservedForward
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


def _between(at: LinearUse, seen: AttentionUse) -> str:
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
