"""Norms between W_O and the residual stream: which change before the norm makes a wanted change behind it.

Most families add W_O's output to the residual stream as it is. Some (Gemma 2 and 3, OLMo 2) normalise it first; a
change that is wanted in the stream must then be made through that norm.
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

# A channel whose gain is below this part of the mean is not pushed as hard as the inverse would have it.
_DAMPING = 0.1


@dataclass(frozen=True)
class OutputNorm:
    """What stands between one layer's W_O and the residual stream."""

    gain: Tensor | None = field(default=None, repr=False)
    """Of a root-mean-square norm, `(d_model,)`; None where nothing stands there."""
    opaque: bool = False
    """A norm stands there, but not one of root mean squares: no change can be made through it."""

    def before(self, change: Tensor, output: Tensor) -> Tensor:
        """What W_O's output must change by so that the residual stream changes by `change`, to first order.

        The norm's scale is taken from `output`: what it becomes is meant to be as long. Channels that the norm all
        but closes are changed less than the inverse says.

        Args:
            change: Wanted in the residual stream, `(token, d_model)`.
            output: W_O's output there, `(token, d_model)`.

        Returns:
            `(token, d_model)`; zeros behind an opaque norm.
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
    """What stands behind each layer's W_O, seen in one small forward.

    Args:
        lm: The model.
        blocks: Its residual blocks.

    Returns:
        One for each layer. A warning says where a norm was found that is not of root mean squares.
    """
    model = lm.model
    last: dict[int, Tensor] = {}
    found: dict[int, nn.Module] = {}
    with Hooks(model) as hooks:
        for number, (layer, block) in enumerate(zip(lm.anatomy.layers, blocks.names, strict=True)):
            assert layer.W_O is not None

            def keep(x: Tensor, out: Tensor, number: int = number) -> None:
                last[number] = out

            hooks.after(layer.W_O, keep)
            for _, module in model.get_submodule(block).named_modules():
                if is_linear(module) or list(module.children()) or not list(module.parameters(recurse=False)):
                    continue

                def meet(x: Any, number: int = number, module: nn.Module = module) -> None:
                    if x is not None and x is last.get(number):
                        found[number] = module

                hooks.before(module, meet)
        with torch.no_grad():
            size = model.get_input_embeddings().weight.shape[0]
            model(input_ids=torch.arange(5, 10, device=lm.device)[None] % size, use_cache=False)
    norms = tuple(_describe(found.get(number), model.config) for number in range(len(blocks.names)))
    if opaque := [number for number, norm in enumerate(norms) if norm.opaque]:
        warnings.warn(
            f"{lm.name}: behind W_O of layers {opaque} stands a norm that is not of root mean squares, so a fold there "
            "cannot make good for what earlier layers missed",
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
            # A module that reads more than what it is called with first is no norm of it alone.
            return OutputNorm(opaque=True)
        slope = torch.linspace(-2, 3, d_model, dtype=weight.dtype, device=where)[None]
        expected = gain * slope / slope.square().mean().sqrt()
        error = (module(slope) - expected).norm() / expected.norm().clamp(min=1e-30)
    if not float(error) < (1e-3 if weight.dtype.itemsize >= 4 else 0.03):
        return OutputNorm(opaque=True)
    return OutputNorm(gain=gain)
