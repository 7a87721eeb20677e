"""Which tokens make up which batch: a pure function of seed and step, so that there is no state to lose.

Two models trained with one seed see the same windows in the same order, and a run that was interrupted goes on with the
very batch that it would have seen.
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
    """Windows of a corpus, in random order, epoch after epoch.

    A window is `length` tokens and the one after them, so every position in it has a token to predict; the next window
    begins with that last token. Each epoch shuffles anew and begins at another token, so that the cuts fall elsewhere.
    """

    count: int
    """Tokens in the corpus."""
    length: int
    """Tokens read in a window."""
    seed: int
    """Decides the order."""

    def __post_init__(self) -> None:
        if self.length < 1 or self.count <= self.length:
            raise ConfigError(
                f"a corpus of {self.count:,} tokens holds no window of {self.length} tokens and one to predict. Take "
                "more text or a smaller length."
            )

    @property
    def per_epoch(self) -> int:
        """Windows in an epoch, the same for every epoch's beginning."""
        return max(1, (self.count - self.length) // self.length)

    def starts(self, first: int, n: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """Where the windows number `first`, `first + 1`, ... begin, `(n,)`; counted from 0 through all epochs."""
        numbers = np.arange(first, first + n)
        epochs = numbers // self.per_epoch
        found = np.empty(n, np.int64)
        for epoch in np.unique(epochs):
            these = epochs == epoch
            offset, order = _epoch(self, int(epoch))
            found[these] = offset + self.length * order[numbers[these] % self.per_epoch]
        return found

    def batch(self, ids: Ids, step: int, sequences: int, share: int = 0, shares: int = 1) -> Tensor:
        """The batch of a step, or one process's share of it.

        Args:
            ids: The corpus, `(count,)`.
            step: Counted from 0.
            sequences: In the whole batch.
            share: Which part, from 0.
            shares: How many equal parts; together, in order, they are the whole batch.

        Returns:
            Token ids `(sequence, length + 1)`, int64: read all but the last of a row, predict all but the first.
        """
        mine = sequences // shares
        return gathered(ids, self.starts(step * sequences + share * mine, mine), self.length)


@lru_cache(maxsize=4)
def _epoch(windows: Windows, epoch: int) -> tuple[int, np.ndarray[tuple[int], np.dtype[np.int64]]]:
    """First token of an epoch, and the order of its windows. Kept, because every batch of the epoch asks."""
    generator = np.random.default_rng([windows.seed, epoch])
    spare = windows.count - 1 - windows.per_epoch * windows.length
    offset = int(generator.integers(min(spare, windows.length - 1) + 1))
    return offset, generator.permutation(windows.per_epoch)


def spread_windows(count: int, length: int, most: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """Starts of at most `most` windows, evenly spread and the same each time, for a validation loss.

    Raises:
        ConfigError: The corpus is shorter than one window.
    """
    whole = Windows(count, length, seed=0)
    fitting = (whole.count - 1) // length
    n = min(most, fitting)
    return length * (np.arange(n) * fitting // n)


def gathered(ids: Ids, starts: np.ndarray[tuple[int], np.dtype[np.int64]], length: int) -> Tensor:
    """Windows as one tensor, `(sequence, length + 1)`, int64."""
    rows = np.empty((len(starts), length + 1), np.int64)
    for row, start in zip(rows, starts, strict=True):
        row[:] = ids[start : start + length + 1]
    return torch.from_numpy(rows)
