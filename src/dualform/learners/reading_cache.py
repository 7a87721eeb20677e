"""A cache of readings, so that queries that several runs of one model share are read once."""

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
    """Readings of one model with unchanged weights, up to a number of bytes.

    When it is full, nothing is replaced: runs read the same groups in the same order, so evicting the oldest entry
    would remove each one just before it is needed.

    Args:
        most_bytes: Largest size of all tensors together.
    """

    def __init__(self, most_bytes: int = 1 << 30) -> None:
        self._most = most_bytes
        self._kept: dict[_Key, tuple[Readings, float]] = {}
        self.bytes = 0
        """Size of the cached tensors."""

    def get(self, key: _Key) -> tuple[Readings, float] | None:
        """Cached readings and the seconds that they took; None if there are none."""
        return self._kept.get(key)

    def put(self, key: _Key, readings: Readings, seconds: float) -> None:
        """Cache readings, if there is room."""
        size = _bytes(readings)
        if key not in self._kept and self.bytes + size <= self._most:
            self._kept[key] = (readings, seconds)
            self.bytes += size

    def clear(self) -> None:
        """Remove all readings."""
        self._kept.clear()
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._kept)


class CachedModel:
    """An adapted model whose readings are cached; for learners that do not change weights.

    Args:
        adapted: The model.
        memory: Cache for this model only.
        prefix: Tokens before every query.
    """

    def __init__(self, adapted: Adapted, memory: ReadingCache, prefix: Sequence[int]) -> None:
        self._adapted = adapted
        self._memory = memory
        self._prefix = tuple(prefix)
        self.spared = 0.0
        """Seconds saved on the last group because it was cached; 0 if it was not."""

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
        """Number of tokens before every query."""
        return self._adapted.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries, or return the cached readings."""
        # The key contains the queries, because indices mean different queries in another sample of the task.
        group = tuple(queries[i] for i in indices)
        key = (self.learner, self._prefix, group, tuple(indices), want, probe)
        cached = self._memory.get(key)
        if cached is not None:
            readings, self.spared = cached
            return readings
        self.spared = 0.0
        start = time.perf_counter()
        readings = self._adapted.read_group(queries, indices, want, probe)
        self._memory.put(key, readings, time.perf_counter() - start)
        return readings


def _bytes(readings: Readings) -> int:
    trace = readings.trace
    traced = [] if trace is None else [getattr(trace, field.name) for field in fields(trace)]
    tensors = (readings.log_probabilities, readings.next_token, readings.hidden, *traced)
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors if isinstance(tensor, Tensor))
