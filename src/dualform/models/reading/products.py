"""Matrix products with frozen weights on a CPU, through oneDNN's packed layout.

A plain product converts the weight to this layout in every call, which is expensive if few rows share it: finetuning on
one short sequence at a time runs at half of the machine's speed. Here a weight is packed once for all forwards and
backwards in a block. Sums are taken in another order, so results differ by rounding.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dualform.models.compat import has_packed_products, pack_weight, packed_product

# The packed copies for forward and backward triple the memory of the weights, which is not worth it beyond this size.
_MAX_BYTES = 2 << 30


class PackedProducts(TorchFunctionMode):
    """While active, products with the given weights use their packed copies.

    The weights must not be written to inside the block. A parameter that is temporarily patched with other data
    (`edit.applied`) is detected and multiplied without packing.

    Args:
        weights: Weights of `nn.Linear` modules, `(d_out, d_in)`.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._packs = {id(weight): _Pack(weight) for weight in weights}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) >= 2:
            pack = self._packs.get(id(args[1]))
            x = args[0]
            if pack is not None and pack.can_multiply(x):
                bias = args[2] if len(args) > 2 else None
                if torch.is_grad_enabled() and (x.requires_grad or (bias is not None and bias.requires_grad)):
                    out = _Product.apply(x, pack)  # type: ignore[no-untyped-call]
                    return out if bias is None else out + bias
                return pack.forward(x, bias)
        return func(*args, **(kwargs or {}))

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for pack in self._packs.values():
            pack.free()


def packable(weights: list[Tensor]) -> bool:
    """Whether these weights can be packed: oneDNN is available, and they are float32, on the CPU and not too large."""
    if not has_packed_products():
        return False
    supported = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return supported and sum(weight.numel() * 4 for weight in weights) <= _MAX_BYTES


class _Pack:
    """One weight, packed on first use in each direction."""

    def __init__(self, weight: Tensor) -> None:
        # The reference keeps the weight alive, so that no other tensor gets its id.
        self._weight = weight
        self._address = weight.data_ptr()
        self._packed: dict[str, Tensor] = {}

    def can_multiply(self, x: Tensor) -> bool:
        weight = self._weight
        frozen = not (torch.is_grad_enabled() and weight.requires_grad)
        return frozen and weight.data_ptr() == self._address and x.dtype == weight.dtype and x.numel() > 0

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return self._multiply("forward", x, bias)

    def backward(self, gradient: Tensor) -> Tensor:
        return self._multiply("backward", gradient, None)

    def free(self) -> None:
        self._packed.clear()

    def _multiply(self, direction: str, x: Tensor, bias: Tensor | None) -> Tensor:
        if direction not in self._packed:
            weight = self._weight.detach()
            weight = weight if direction == "forward" else weight.t()
            self._packed[direction] = pack_weight(weight.contiguous())
        return packed_product(x.contiguous(), self._packed[direction], bias)


class _Product(torch.autograd.Function):
    """x W^T with a frozen W: only x gets a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pack: _Pack) -> Tensor:
        ctx.pack = pack
        return pack.forward(x, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.pack.backward(gradients[0]), None
