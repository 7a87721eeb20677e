"""Norms between W_O and the residual stream, and how to make a given change after such a norm.

Most families add W_O's output to the residual stream directly. Some (Gemma 2 and 3, OLMo 2) normalise it first, so that
a change of the residual stream must be converted to a change before the norm.
"""

import warnings
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from dualform.models.hooks import Hooks
from dualform.models.loading.offloading import runs_on
from dualform.models.reading.language_model import LanguageModel
from dualform.models.structure.anatomy import is_linear
from dualform.models.structure.blocks import Blocks

# Relative to the mean scale; it damps the inverse in channels whose gain is much smaller.
_DAMPING = 0.1


@dataclass(frozen=True)
class OutputNorm:
    """The norm between one layer's W_O and the residual stream, if any."""

    gain: Tensor | None = field(default=None, repr=False)
    """Gain of a root-mean-square norm, `(d_model,)`; None without a norm."""
    opaque: bool = False
    """True for a norm of another kind, for which changes cannot be converted."""

    def before(self, change: Tensor, output: Tensor) -> Tensor:
        """The change of W_O's output that changes the residual stream by `change`, to first order.

        The norm's scale is computed from `output`, assuming that the changed output has the same norm. The inverse is
        damped in channels with a very small gain.

        Args:
            change: Desired change of the residual stream, `(token, d_model)`.
            output: W_O's output at the same tokens, `(token, d_model)`.

        Returns:
            `(token, d_model)`; zeros for an opaque norm.
        """
        if self.opaque:
            return torch.zeros_like(change)
        if self.gain is None:
            return change
        size = output.square().mean(dim=-1, keepdim=True).sqrt().clamp(min=1e-12)
        scale = self.gain.to(size.device) / size
        least = _DAMPING * scale.abs().mean(dim=-1, keepdim=True)
        return change * scale / (scale.square() + least.square())


def find_output_norms(lm: LanguageModel, blocks: Blocks) -> tuple[OutputNorm, ...]:
    """The norm after each layer's W_O, found by one short forward; warns about norms that are not root-mean-square."""
    model = lm.model
    last: dict[int, Tensor] = {}
    norm_modules: dict[int, nn.Module] = {}
    with Hooks(model) as hooks:
        for number, (layer, block) in enumerate(zip(lm.anatomy.layers, blocks.names, strict=True)):
            assert layer.W_O is not None

            def keep(x: Tensor, out: Tensor, number: int = number) -> None:
                last[number] = out

            hooks.after(layer.W_O, keep)
            for _, module in model.get_submodule(block).named_modules():
                if is_linear(module) or list(module.children()) or not list(module.parameters(recurse=False)):
                    continue

                def check(x: Any, number: int = number, module: nn.Module = module) -> None:
                    if x is not None and x is last.get(number):
                        norm_modules[number] = module

                hooks.before(module, check)
        with torch.no_grad():
            size = model.get_input_embeddings().weight.shape[0]
            model(input_ids=torch.arange(5, 10, device=lm.device)[None] % size, use_cache=False)
    norms = tuple(_describe(norm_modules.get(number), model.config) for number in range(len(blocks.names)))
    if opaque := [number for number, norm in enumerate(norms) if norm.opaque]:
        warnings.warn(
            f"{lm.name}: the norm after W_O of layers {opaque} is not a root-mean-square norm, so the fold in these "
            "layers cannot correct errors of earlier layers",
            stacklevel=3,
        )
    return norms


def _describe(module: nn.Module | None, config: Any) -> OutputNorm:
    if module is None:
        return OutputNorm()
    weight = next(module.parameters(recurse=False))
    d_model = config.get_text_config().hidden_size
    with torch.no_grad():
        where = runs_on(module)
        ones = torch.ones(1, d_model, dtype=weight.dtype, device=where)
        try:
            gain = module(ones)[0]
        except Exception:
            # A module that needs further arguments is not a norm.
            return OutputNorm(opaque=True)
        slope = torch.linspace(-2, 3, d_model, dtype=weight.dtype, device=where)[None]
        expected = gain * slope / slope.square().mean().sqrt()
        error = (module(slope) - expected).norm() / expected.norm().clamp(min=1e-30)
    if not float(error) < (1e-3 if weight.dtype.itemsize >= 4 else 0.03):
        return OutputNorm(opaque=True)
    return OutputNorm(gain=gain)
