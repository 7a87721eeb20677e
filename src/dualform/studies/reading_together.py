"""Reading one group of queries with all adapted models."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import cast

from dualform.learners.adapted import Adapted
from dualform.learners.base import LEARNERS, AnswersFromReadings
from dualform.learners.reading_cache import CachedModel
from dualform.models.reading.language_model import Readings


def read_together(
    adapted: Mapping[str, Adapted], read: Callable[[str, Adapted], Readings]
) -> Iterator[tuple[str, Readings, float]]:
    """Readings of one group of queries by each model, and the seconds that each would take alone.

    A learner that can answer from an earlier one's readings (`Learner.answers_from`) does so, and is charged for them.

    Args:
        adapted: Learner -> its adapted model, in the order in which they read.
        read: Reads the group with a model, given the learner's name.
    """
    readings: dict[str, Readings] = {}
    spent: dict[str, float] = {}
    for name, model in adapted.items():
        start = time.perf_counter()
        source = LEARNERS[name].answers_from
        if source in readings:
            readings[name] = cast(AnswersFromReadings, model).answer(readings[source])
            start -= spent[source]
        else:
            readings[name] = read(name, model)
        spent[name] = time.perf_counter() - start
        if isinstance(model, CachedModel):
            spent[name] += model.spared
        yield name, readings[name], spent[name]
