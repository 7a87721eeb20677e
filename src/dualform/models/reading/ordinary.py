"""PyTorch's modes as they are by default, whatever block the caller is in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def without_autocast() -> Iterator[None]:
    """A block, or a decorator of a function, in which a float32 model is computed in float32."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def ordinary_torch() -> Iterator[None]:
    """A block, or a decorator of a function, in which gradients can be computed and autocast is off.

    A caller may be inside `torch.no_grad()` or `torch.inference_mode()`, where finetuning would fail.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        yield
