"""Products with frozen weights on a CPU, through oneDNN's packed layout.

A plain product lays the weight out anew for every call, which costs most when few rows share it: finetuning on one
short sequence at a time runs at half of the machine's rate. Packed once for a block, the same weight serves every
forward and backward in it. The sums are taken in another order, so results differ by rounding.
"""

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from dualform.models.compat import has_packed_products, pack_weight, packed_product

# Packed copies, forwards and backwards, triple the memory of weights; beyond this size that is not worth its speed.
_MOST_BYTES = 2 << 30


class PackedProducts(TorchFunctionMode):
    """While active, products with the given weights are packed ones.

    The weights must not be written to inside the block. A parameter that is patched with other data
    (`edit.applied`) is noticed, and multiplied plainly for as long as that lasts.

    Args:
        weights: Two-dimensional, `(d_out, d_in)`, of `nn.Linear` modules.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self._packs = {id(weight): _Pack(weight) for weight in weights}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and not kwargs and len(args) >= 2:
            pack = self._packs.get(id(args[1]))
            x = args[0]
            if pack is not None and pack.fits(x):
                bias = args[2] if len(args) > 2 else None
                if torch.is_grad_enabled() and x.requires_grad:
                    out = _Product.apply(x, pack)  # type: ignore[no-untyped-call]
                    return out if bias is None else out + bias
                return pack.forward(x, bias)
        return func(*args, **(kwargs or {}))

    def __exit__(self, *details: Any) -> None:
        super().__exit__(*details)  # type: ignore[no-untyped-call]
        for pack in self._packs.values():
            pack.free()


def packable(weights: list[Tensor]) -> bool:
    """Whether these weights can be packed here: oneDNN at hand, a CPU, float32, and not too large."""
    if not has_packed_products():
        return False
    plain = all(weight.device.type == "cpu" and weight.dtype == torch.float32 for weight in weights)
    return plain and sum(weight.numel() * 4 for weight in weights) <= _MOST_BYTES


class _Pack:
    """One weight, packed when first used in either direction."""

    def __init__(self, weight: Tensor) -> None:
        # Held, so that its id stays its own.
        self._weight = weight
        self._address = weight.data_ptr()
        self._packed: dict[str, Tensor] = {}

    def fits(self, x: Tensor) -> bool:
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
    """x W^T with W frozen: only x has a gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, pack: _Pack) -> Tensor:
        ctx.pack = pack
        return pack.forward(x, None)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.pack.backward(gradients[0]), None
