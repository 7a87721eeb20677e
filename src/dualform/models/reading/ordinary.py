"""PyTorch's default modes, whatever block the caller is in."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def without_autocast() -> Iterator[None]:
    """Turn autocast off, so that a float32 model computes in float32. A context manager and decorator."""
    with ExitStack() as stack:
        for kind in ("cpu", "cuda", "mps"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextmanager
def ordinary_torch() -> Iterator[None]:
    """Enable gradients and turn autocast off. A context manager and decorator.

    Without it, finetuning would fail if the caller is inside `torch.no_grad()` or `torch.inference_mode()`.
    """
    with torch.inference_mode(False), torch.enable_grad(), without_autocast():
        yield
