"""Weights stored in fewer bits than they had: what such a model can still be used for, and what not."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from dualform.errors import ModelError

WHY = "what was rounded away cannot be compared"
"""Why updates of such weights are not measured: a step of finetuning is smaller than the rounding."""


def precision_of(model: Any) -> str | None:
    """`8 bit`, `4 bit` or a method's name where weights are quantized; None where they are plain numbers."""
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
    """Check that weights are plain numbers.

    Args:
        model: Whose.
        why: What follows where they are not, such as `so they cannot be trained`.

    Raises:
        ModelError: They are quantized.
    """
    precision = precision_of(model)
    if precision is not None:
        raise ModelError(
            f"{type(model).__name__}: its weights are stored in {precision}, {why}: {WHY}. Such a model answers "
            "zero-shot and with demonstrations (--learners zsl,icl); load it without --quantize for the rest."
        )


def compute_as_asked_(model: nn.Module) -> None:
    """Have 4-bit products on a CPU computed in the model's dtype.

    Some CPUs have a kernel for them that rounds every activation to bfloat16, others have not: answers would depend on
    the machine. bitsandbytes is asked not to say with every 8-bit product that inputs are rounded to half precision.
    """
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    for module in model.modules():
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False  # type: ignore[assignment] # a plain attribute


@contextmanager
def token_by_token(model: nn.Module) -> Iterator[None]:
    """A block in which 8-bit products treat every token by itself, so that two ways of reading can be compared.

    Otherwise inputs that are large for any token of a row are multiplied apart for all of them: what a row holds beside
    a token shows in it, by a few hundredths of a log-probability, and a wrong route could hide behind that.
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
def quietly() -> Iterator[None]:
    """A block without accelerate's remark that offloaded weights are offloaded, and bitsandbytes' on kernels."""
    loggers = [logging.getLogger(name) for name in ("accelerate.big_modeling", "bitsandbytes.backends.cpu.ops")]
    before = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, before, strict=True):
            logger.setLevel(level)
