"""What a stability study reads and trains, described before it runs: plan and progress bar are counted from it."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from dualform.learners.training_work import training_work
from dualform.models.cost.work import Work, WorkPart, encode, read
from dualform.models.reading.layout import Query
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.work import read_changed, search_part
from dualform.tasks.demonstrations import LabelRule
from dualform.tasks.task import Example

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, as in arXiv:2102.09690, section 5."""

LABEL_RULES: tuple[LabelRule, ...] = ("random", "flipped")
"""Labels shown besides the true ones, as in arXiv:2202.12837."""


@dataclass(frozen=True)
class PlannedRun:
    """A run that lies ahead."""

    learner: str
    labels: LabelRule
    order: int
    rate: float | None
    """FT's; None for the rate that is chosen."""


def common_orders(config: StabilityConfig, drawn: Iterable[DemonstrationSet]) -> int:
    """Orders that every set is run in: as many as are wanted, or as the smallest set has.

    Long texts may leave one set with a single demonstration that fits. Sets in different numbers of orders would weigh
    differently in every spread, so all are run in the number that each of them has.
    """
    available = min(one.demonstrations.n_orders for one in drawn)
    return min(available, max(config.orders, config.ft_orders))


def planned_runs(config: StabilityConfig, place: int, n_orders: int) -> list[PlannedRun]:
    """The runs of one set.

    Args:
        config: The settings.
        place: Index of the set among the seeds.
        n_orders: From `common_orders`.
    """
    finetuned = place < config.ft_seeds
    further = [(f"ft@{rate:g}", rate) for rate in config.further_rates]
    plan = [PlannedRun("icl", "true", order, None) for order in range(min(config.orders, n_orders))]
    if finetuned:
        plan += [
            PlannedRun(name, "true", order, rate)
            for name, rate in [("ft", None), *further]
            for order in range(min(config.ft_orders, n_orders))
        ]
    if place < config.label_seeds:
        plan += [
            PlannedRun(learner, labels, 0, None)
            for learner in (["icl", "ft"] if finetuned else ["icl"])
            for labels in LABEL_RULES
        ]
    return plan


def content_free_queries(experiment: Experiment[StabilityConfig]) -> tuple[Query, ...]:
    """Queries that say nothing; none for free-text choices, which have no label words to be biased to."""
    if experiment.task.is_multiple_choice:
        return ()
    fields = experiment.task.template.fields
    examples = [Example(fields=dict.fromkeys(fields, text), label=0, row=-1) for text in CONTENT_FREE]
    # A prompt that shows the text alone is nothing for an empty one.
    return tuple(experiment.encoder.query(each) for each in examples if experiment.task.template.render(each).strip())


def zero_shot_work(experiment: Experiment[StabilityConfig], queries: Sequence[Query]) -> Work:
    """The queries behind the opening alone."""
    opening = len(experiment.encoder.opening)
    return encode(opening) + read(queries, opening)


def run_part(
    experiment: Experiment[StabilityConfig],
    queries: Sequence[Query],
    shown: DemonstrationSet,
    run: PlannedRun,
    *,
    known: bool,
) -> WorkPart:
    """One run: the model adapted to the demonstrations as they are shown, and the queries read.

    Args:
        experiment: Model, task and settings.
        queries: What is read.
        shown: The demonstrations in the run's order and labels.
        run: Which learner.
        known: FT's learning rate needs no search.
    """
    if run.learner == "icl":
        n = len(shown.encoded.prefix)
        return WorkPart("icl", encode(n) + read(queries, n))
    opening = len(experiment.encoder.opening)
    one = training_work(shown.encoded, experiment.config.loss_on, opening=opening)
    part = search_part("ft" if known else "ft: search", one, experiment.config.rates, experiment, known=known)
    after = read_changed(queries, opening)
    least, most = (None if end is None else end + after for end in (part.least, part.most))
    return WorkPart(part.name, part.work + after, least, most, part.why)


def set_parts(
    experiment: Experiment[StabilityConfig],
    queries: Sequence[Query],
    drawn: DemonstrationSet,
    runs: Sequence[PlannedRun],
    *,
    known: bool,
) -> list[WorkPart]:
    """All runs of one set of demonstrations; the first training without a rate of its own searches for one."""
    parts = []
    orders = drawn.demonstrations.in_orders(1 + max((run.order for run in runs), default=0))
    for run in runs:
        shown = experiment.encode(orders[run.order].relabelled(experiment.task, run.labels))
        parts.append(run_part(experiment, queries, shown, run, known=known or run.rate is not None))
        known = known or (run.learner != "icl" and run.rate is None)
    return parts


def model_parts(experiment: Experiment[StabilityConfig], drawn: Mapping[int, DemonstrationSet]) -> list[WorkPart]:
    """All that one model takes."""
    config = experiment.config
    queries = (*experiment.queries, *content_free_queries(experiment))
    n_orders = common_orders(config, drawn.values())
    parts = [WorkPart("zsl", zero_shot_work(experiment, queries))]
    for place, seed in enumerate(config.seeds):
        runs = planned_runs(config, place, n_orders)
        parts += set_parts(experiment, queries, drawn[seed], runs, known=place > 0 and config.ft_seeds > 0)
    return parts
