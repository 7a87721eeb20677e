"""Work that several studies share: reading with changed weights, and the search for a learning rate."""

from collections.abc import Sequence
from typing import Any

from dualform.models.cost.work import WeightChange, Work, WorkPart, read, rows
from dualform.models.reading.layout import Probe, Query
from dualform.studies.experiment import Experiment

TRIAL_QUERIES = 4
"""Queries that check whether training at a known rate diverged."""


def read_changed(queries: Sequence[Query], prefix: int, probe: Probe = "prompt") -> Work:
    """Reading queries after a prefix with changed weights, which are applied once for every group of queries."""
    changes = Work.of(WeightChange()) * len(rows(queries, probe))
    return read(queries, prefix, probe) + changes.uncharged


def trial_queries(experiment: Experiment[Any]) -> tuple[Query, ...]:
    """A few queries that check whether training at a known rate diverged; their labels are not used."""
    return (experiment.selection_queries or experiment.queries)[:TRIAL_QUERIES]


def search_part(
    name: str,
    training: Work,
    rates: Sequence[float],
    experiment: Experiment[Any],
    *,
    known: bool,
    inside: Work | None = None,
) -> WorkPart:
    """Training at a known rate, or a search over a grid, as `tuning.train_at_best_rate` does it.

    A search may stop early, which depends on the data, so the estimate is the whole grid.

    Args:
        name: Name of the learner.
        training: Work of training once.
        rates: The grid.
        experiment: Its selection queries decide between the rates.
        known: Whether the rate is known, so that nothing is searched.
        inside: Work of one trial inside a budget of labels; None if trials read the selection queries.
    """
    opening = len(experiment.encoder.opening)
    if known:
        return WorkPart(name, training + read_changed(trial_queries(experiment), opening))
    trial = training + read_changed(experiment.selection_queries, opening) if inside is None else inside
    last = Work() if inside is None else training
    # The shortest search finds the best rate first, and then tries as many worse ones as `patience` allows.
    fewest = min(len(rates), 1 + experiment.config.patience)
    if fewest == len(rates):
        return WorkPart(name, trial * len(rates) + last)
    reason = "a search stops early where higher rates are worse"
    whole = trial * len(rates) + last
    return WorkPart(name, whole, trial * fewest + last, whole, (reason,))
