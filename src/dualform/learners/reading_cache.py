"""Readings kept, so that what many runs of one model ask alike is read once."""

import time
from collections.abc import Sequence
from dataclasses import fields

from torch import Tensor

from dualform.learners.adapted import AdaptationCost, Adapted
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.models.reading.layout import Probe, Query

_Key = tuple[str, tuple[int, ...], tuple[Query, ...], tuple[int, ...], Recording, Probe]


class ReadingCache:
    """Readings of one model with its weights as they are, up to a number of bytes.

    What does not fit any more is read anew each time: runs go through the same groups in the same order, and a memory
    that lets the oldest go would have let each go just before it is asked for.

    Args:
        most_bytes: Of tensors.
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most = most_bytes
        self._kept: dict[_Key, tuple[Readings, float]] = {}
        self.bytes = 0
        """Held now."""

    def get(self, key: _Key) -> tuple[Readings, float] | None:
        """Readings kept under a key, and the seconds that they took."""
        return self._kept.get(key)

    def put(self, key: _Key, readings: Readings, seconds: float) -> None:
        """Keep readings, if there is room."""
        size = _bytes(readings)
        if key not in self._kept and self.bytes + size <= self._most:
            self._kept[key] = (readings, seconds)
            self.bytes += size

    def clear(self) -> None:
        """Let everything go."""
        self._kept.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)


class CachedModel:
    """An adapted model whose readings are kept; for learners that leave the weights as they are.

    Args:
        adapted: Who reads.
        memory: Of this model alone.
        prefix: Tokens that stand before every query.
    """

    def __init__(self, adapted: Adapted, memory: ReadingCache, prefix: Sequence[int]) -> None:
        self._adapted = adapted
        self._memory = memory
        self._prefix = tuple(prefix)
        self.spared = 0.0
        """Seconds that the last group took when it was read; 0 when it was read just now."""

    @property
    def learner(self) -> str:
        """Name of the learner that made it."""
        return self._adapted.learner

    @property
    def cost(self) -> AdaptationCost:
        """What adapting took."""
        return self._adapted.cost

    @property
    def n_prefix(self) -> int:
        """Tokens that stand before every query."""
        return self._adapted.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries, or give what was read when they were asked before."""
        # The queries themselves are in the key: another sample of the task has other ones under the same numbers.
        asked = tuple(queries[i] for i in indices)
        key = (self.learner, self._prefix, asked, tuple(indices), want, probe)
        found = self._memory.get(key)
        if found is not None:
            self.spared = found[1]
            return found[0]
        self.spared = 0.0
        start = time.perf_counter()
        readings = self._adapted.read_group(queries, indices, want, probe)
        self._memory.put(key, readings, time.perf_counter() - start)
        return readings


def _bytes(readings: Readings) -> int:
    traced = [] if readings.trace is None else [getattr(readings.trace, one.name) for one in fields(readings.trace)]
    tensors = (readings.log_probabilities, readings.next_token, readings.hidden, *traced)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
