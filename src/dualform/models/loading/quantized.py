"""Quantized weights: what such a model can and cannot be used for."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dualform.errors import ModelError

UPDATES_LOST = "a finetuning step is smaller than the rounding error"
"""Why updates of quantized weights are not measured."""


def precision_of(model: Any) -> str | None:
    """How a model's weights are quantized: `8 bit`, `4 bit` or a method's name; None if they are not."""
    quantizer: Any = getattr(model, "hf_quantizer", None)
    settings = getattr(quantizer, "quantization_config", None)
    if settings is None or getattr(settings, "dequantize", False):
        return None
    for field, words in (("load_in_8bit", "8 bit"), ("load_in_4bit", "4 bit")):
        if getattr(settings, field, False):
            return words
    method = getattr(settings, "quant_method", "an unknown method")
    return str(getattr(method, "value", method))


def require_unquantized(model: nn.Module, why: str) -> None:
    """Check that a model's weights are not quantized.

    Args:
        model: The model.
        why: Consequence of quantization, for the message, such as `so they cannot be trained`.

    Raises:
        ModelError: They are quantized.
    """
    precision = precision_of(model)
    if precision is not None:
        raise ModelError(
            f"{type(model).__name__}: its weights are stored in {precision}, {why}: {UPDATES_LOST}. Use zero-shot and "
            "in-context learning only (--learners zsl,icl), or load the model without --quantize."
        )


def use_model_dtype_in_4bit_products_(model: nn.Module) -> None:
    """Compute 4-bit products on a CPU in the model's dtype.

    On some CPUs only, bitsandbytes uses a kernel that rounds activations to bfloat16, so results would depend on the
    machine. Its warning that inputs of 8-bit products are rounded to half precision is silenced.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # a plain attribute


@contextmanager
def token_by_token(model: nn.Module) -> Iterator[None]:
    """Treat every token separately in 8-bit products inside the block, so that two routes can be compared.

    Otherwise a feature that is an outlier for one token of a row is multiplied in higher precision for all of them.
    Other tokens of the row then change a log-probability by a few hundredths, which could hide an error in a route.
    """
    states: list[Any] = [
        module.state for module in model.modules() if hasattr(getattr(module, "state", None), "threshold")
    ]
    before = [state.threshold for state in states]
    try:
        for state in states:
            state.threshold = 0.0
        yield
    finally:
        for state, threshold in zip(states, before, strict=True):
            state.threshold = threshold


@contextmanager
def without_library_warnings() -> Iterator[None]:
    """Silence accelerate's warning about offloaded weights, and bitsandbytes' about kernels, inside the block."""
    loggers = [logging.getLogger(name) for name in ("accelerate.big_modeling", "bitsandbytes.backends.cpu.ops")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
