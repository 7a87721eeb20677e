"""The work of pieces that studies share: reading with changed weights, and the search for a learning rate."""

from collections.abc import Sequence
from typing import Any

from dualform.models.cost.work import WeightChange, Work, WorkPart, read, rows
from dualform.models.reading.layout import Probe, Query
from dualform.studies.experiment import Experiment

SEARCH = "a search stops early where higher rates are worse"
"""Why the time of training is a range."""
TRIED = 4
"""Selection queries with which a rate that is known is tried out."""


def read_changed(queries: Sequence[Query], prefix: int, probe: Probe = "prompt") -> Work:
    """Queries read behind a prefix by a model whose changes of weight are applied anew for every group."""
    changes = Work.of(WeightChange()) * len(rows(queries, probe))
    return read(queries, prefix, probe) + changes.uncharged


def search_part(name: str, one: Work, rates: Sequence[float], experiment: Experiment[Any], *, known: bool) -> WorkPart:
    """Training at a rate that is known, or a search over a grid, as `tuning.trained` does it.

    A search that stops early has tried two rates at least, and more where patience asks for more; how many is decided
    by the data, so that all are expected.

    Args:
        name: The learner's.
        one: Training once.
        rates: The grid.
        experiment: Whose selection queries choose.
        known: No search: the rate is tried on a few queries alone.
    """
    opening = len(experiment.encoder.opening)
    if known:
        return WorkPart(name, one + read_changed(experiment.selection_queries[:TRIED], opening))
    every = one + read_changed(experiment.selection_queries, opening)
    # A rate that is the best has to come first, and then as many worse ones as patience bears.
    fewest = min(len(rates), 1 + experiment.config.patience)
    if fewest == len(rates):
        return WorkPart(name, every * len(rates))
    return WorkPart(name, every * len(rates), every * fewest, every * len(rates), (SEARCH,))
