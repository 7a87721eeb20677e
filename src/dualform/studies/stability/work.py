"""The work of a stability study, computed before it runs, for the plan and the progress bar."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dualform.learners.calibrated import content_free_queries
from dualform.learners.training_work import training_work
from dualform.models.cost.work import Work, WorkPart, encode, read
from dualform.models.reading.layout import Query
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.work import read_changed, search_part
from dualform.tasks.demonstrations import LabelRule

LABEL_RULES: tuple[LabelRule, ...] = ("random", "flipped")
"""Rules for the demonstrations' labels besides the true ones, as in arXiv:2202.12837."""


@dataclass(frozen=True)
class PlannedRun:
    """A run to be done."""

    learner: str
    labels: LabelRule
    order: int
    rate: float | None
    """FT's learning rate; None for the rate chosen by the search."""


def common_orders(config: StabilityConfig, demonstration_sets: Iterable[DemonstrationSet]) -> int:
    """Number of orders in which every set is run: those requested, or as many as the smallest set has.

    With long texts, few demonstrations of a set may fit the context. All sets are run in the same number of orders,
    so that they have equal weight.
    """
    available = min(each.demonstrations.n_orders for each in demonstration_sets)
    return min(available, max(config.orders, config.ft_orders))


def planned_runs(config: StabilityConfig, set_index: int, n_orders: int) -> list[PlannedRun]:
    """The runs of one set; `set_index` is its index among the seeds, `n_orders` comes from `common_orders`."""
    finetuned = set_index < config.ft_seeds
    further = [(f"ft@{rate:g}", rate) for rate in config.further_rates]
    plan = [PlannedRun("icl", "true", order, None) for order in range(min(config.orders, n_orders))]
    if finetuned:
        plan += [
            PlannedRun(name, "true", order, rate)
            for name, rate in [("ft", None), *further]
            for order in range(min(config.ft_orders, n_orders))
        ]
    if set_index < config.label_seeds:
        plan += [
            PlannedRun(learner, labels, 0, None)
            for learner in (["icl", "ft"] if finetuned else ["icl"])
            for labels in LABEL_RULES
        ]
    return plan


def zero_shot_work(experiment: Experiment[StabilityConfig], queries: Sequence[Query]) -> Work:
    """Reading the queries without demonstrations."""
    opening = len(experiment.encoder.opening)
    return encode(opening) + read(queries, opening)


def run_part(
    experiment: Experiment[StabilityConfig],
    queries: Sequence[Query],
    demonstration_set: DemonstrationSet,
    run: PlannedRun,
    *,
    known: bool,
) -> WorkPart:
    """The work of one run: adapting the model and reading the queries.

    Args:
        experiment: Model, task and settings.
        queries: Queries to be read.
        demonstration_set: The demonstrations with the run's order and labels.
        run: The run.
        known: Whether FT's learning rate is known, so that none is searched for.
    """
    if run.learner == "icl":
        n = len(demonstration_set.encoded.prefix)
        return WorkPart("icl", encode(n) + read(queries, n))
    opening = len(experiment.encoder.opening)
    training = training_work(demonstration_set.encoded, experiment.config.loss_on, opening=opening)
    part = search_part("ft" if known else "ft: search", training, experiment.config.rates, experiment, known=known)
    reading = read_changed(queries, opening)
    least, most = (None if end is None else end + reading for end in (part.least, part.most))
    return WorkPart(part.name, part.work + reading, least, most, part.why)


def set_parts(
    experiment: Experiment[StabilityConfig],
    queries: Sequence[Query],
    demonstration_set: DemonstrationSet,
    runs: Sequence[PlannedRun],
    *,
    known: bool,
) -> list[WorkPart]:
    """The work of all runs of one set. If FT's rate is not known, its first run searches for it."""
    parts = []
    orders = demonstration_set.demonstrations.in_orders(1 + max((run.order for run in runs), default=0))
    for run in runs:
        reordered = experiment.encode(orders[run.order].relabelled(experiment.task, run.labels))
        parts.append(run_part(experiment, queries, reordered, run, known=known or run.rate is not None))
        known = known or (run.learner != "icl" and run.rate is None)
    return parts


def model_parts(
    experiment: Experiment[StabilityConfig], demonstration_sets: Mapping[int, DemonstrationSet]
) -> list[WorkPart]:
    """The work of all runs of one model; `demonstration_sets` maps seeds to sets."""
    config = experiment.config
    queries = (*experiment.queries, *content_free_queries(experiment))
    n_orders = common_orders(config, demonstration_sets.values())
    parts = [WorkPart("zsl", zero_shot_work(experiment, queries))]
    for set_index, seed in enumerate(config.seeds):
        runs = planned_runs(config, set_index, n_orders)
        known = set_index > 0 and config.ft_seeds > 0
        parts += set_parts(experiment, queries, demonstration_sets[seed], runs, known=known)
    return parts
