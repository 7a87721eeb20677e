"""The windows of a corpus that make up each batch, as a pure function of seed and step.

Two models trained with the same seed read the same windows in the same order, and an interrupted run resumes with the
batch that would have come next.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dualform.errors import ConfigError

Ids = np.ndarray[tuple[int], np.dtype[np.integer[Any]]]


@dataclass(frozen=True)
class Windows:
    """Windows of a corpus in random order, epoch after epoch.

    A window has `length` tokens and the token after them, so that every position has a token to predict; the next
    window begins with that last token. Each epoch has its own order and its own offset of the windows.
    """

    count: int
    """Number of tokens in the corpus."""
    length: int
    """Number of tokens read in a window."""
    seed: int
    """Seed of the order."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.count <= self.length:
            raise ConfigError(
                f"a corpus of {self.count:,} tokens has no window of {self.length} tokens and one to predict. Use more "
                "text or a smaller length."
            )

    @property
    def per_epoch(self) -> int:
        """Number of windows in an epoch, the same for every offset."""
        return max(1, (self.count - self.length) // self.length)

    def starts(self, first: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """First tokens of `n` windows from window number `first` on, `(n,)`; numbers count from 0 over all epochs."""
        numbers = np.arange(first, first + n)
        epochs = numbers // self.per_epoch
        starts = np.empty(n, np.int64)
        for epoch in np.unique(epochs):
            these = epochs == epoch
            offset, order = _epoch(self, int(epoch))
            starts[these] = offset + self.length * order[numbers[these] % self.per_epoch]
        return starts

    def batch(self, ids: Ids, step: int, sequences: int, share: int = 0, shares: int = 1) -> Tensor:
        """The batch of a step, or one process's share of it.

        Args:
            ids: Tokens of the corpus, `(count,)`.
            step: Index of the step, counted from 0.
            sequences: Number of sequences in the whole batch.
            share: Index of the share, counted from 0.
            shares: Number of equal shares, which together make up the whole batch.

        Returns:
            Token ids `(sequence, length + 1)`, int64. All but the last of a row are inputs, all but the first targets.
        """
        n = sequences // shares
        return gather_windows(ids, self.starts(step * sequences + share * n, n), self.length)


@lru_cache(maxsize=4)
def _epoch(windows: Windows, epoch: int) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """First token of an epoch and the order of its windows; cached, because every batch of the epoch needs them."""
    generator = np.random.default_rng([windows.seed, epoch])
    spare = windows.count - 1 - windows.per_epoch * windows.length
    offset = int(generator.integers(min(spare, windows.length - 1) + 1))
    return offset, generator.permutation(windows.per_epoch)


def spread_windows(count: int, length: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """First tokens of at most `most` evenly spaced windows, the same in each call, for a validation loss.

    Raises:
        ConfigError: If the corpus is shorter than one window.
    """
    n_windows = (Windows(count, length, seed=0).count - 1) // length
    n = min(most, n_windows)
    return length * (np.arange(n) * n_windows // n)


def gather_windows(ids: Ids, starts: np.ndarray[tuple[int], np.dtype[np.int64]], length: int) -> Tensor:
    """Windows as one tensor, `(sequence, length + 1)`, int64."""
    rows = np.empty((len(starts), length + 1), np.int64)
    for row, start in zip(rows, starts, strict=True):
        row[:] = ids[start : start + length + 1]
    return torch.from_numpy(rows)
