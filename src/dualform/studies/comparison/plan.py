"""The plan of a comparison: the estimated time and memory of its work (`studies.comparison.work`)."""

import time
from dataclasses import replace

from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.models.cost.machine import Machine
from dualform.models.cost.work import WorkPart, short_forwards
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.setup import set_up
from dualform.studies.comparison.work import SeedWork
from dualform.studies.controls import CONTROLS
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import Costs, largest_training, memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts


def plan(config: ComparisonConfig, machine: Machine) -> Plan:
    """The plan of a comparison with these settings."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    experiment, notes = set_up(config, lm, task)
    config = experiment.config
    drawn = experiment.draw_all(config.seeds)
    tokenising = time.process_time() - start
    costs = prices(config, lm, machine)
    trains = any(LEARNERS[name].grid for name in config.learners)
    parts = surrounding_parts(costs, tokenising, _summary_seconds(costs, experiment))
    parts.append(PricedPart("packing weights", costs.packing(trains)))
    parts.append(PricedPart("finding out what the model allows", costs.cost(short_forwards(_checks(config)))))
    parts += [costs.part(part) for part in _seeds(experiment, drawn)]
    longest = max(drawn.values(), key=lambda each: len(each.encoded.prefix))
    contexts = [AdaptationContext(experiment, each) for each in drawn.values()]
    longest_training, learned = largest_training(
        LEARNERS[name].work(context) for name in config.learners for context in contexts
    )
    inside = config.compares_inside
    repeats = int(config.repeats_finetuning)
    deltas = 2 + repeats + sum(CONTROLS[name].kept_changes(config) for name in config.controls)
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=len(longest.encoded.prefix),
        queries=experiment.queries,
        longest_training=longest_training,
        learned=learned,
        learners=len(config.learners) + (1 if config.controls or repeats else 0),
        recorded=inside,
        trains=trains,
        deltas=deltas if inside else 1 + repeats,
        more=sum(LEARNERS[name].extra_bytes(experiment) for name in config.learners),
    )
    others = sum(CONTROLS[name].kept_models() for name in config.controls)
    if inside and others:
        # They are held until all queries have been read.
        memory["untrained models"] = others * memory["weights"]
    fit, more = estimated_memory(config, costs, memory, trains=trains)
    return Plan(f"compare {config.model} {task.name}", merged(parts), memory, machine, fit, (*notes, *more))


def _checks(config: ComparisonConfig) -> int:
    """Number of short forward passes that `possible_arms` runs."""
    return sum(LEARNERS[name].check_forwards(config) for name in config.learners) + sum(
        CONTROLS[name].check_forwards() for name in config.controls
    )


def _seeds(experiment: Experiment[ComparisonConfig], drawn: dict[int, DemonstrationSet]) -> list[WorkPart]:
    config = experiment.config
    parts: list[WorkPart] = []
    known: frozenset[str] = frozenset()
    weight = 1.0
    if config.select != "none" and len(config.seeds) > 1:
        parts += [part for each in drawn.values() for part in SeedWork(experiment, each, searching=True).choosing()]
        known = frozenset(name for name in config.selecting if LEARNERS[name].grid)
        # It is unknown which seed will be chosen, so plan for the mean over seeds.
        weight = 1 / len(config.seeds)
    for number, seed in enumerate(config.seeds):
        first = number == 0 or weight < 1
        # Rates found while choosing a seed are those of the first reported seed.
        work = SeedWork(experiment, drawn[seed], first or config.tune == "each", known if first else frozenset())
        parts += [_share(part, weight) for part in work.parts()]
    return parts


def _share(part: WorkPart, weight: float) -> WorkPart:
    least, most = (None if end is None else end * weight for end in (part.least, part.most))
    return replace(part, work=part.work * weight, least=least, most=most)


def _summary_seconds(costs: Costs, experiment: Experiment[ComparisonConfig]) -> float:
    """Seconds of the bootstraps of all measures."""
    config = experiment.config
    n = len(experiment.queries) * len(config.seeds)
    intervals = 24 + 20 * len(config.controls)
    return config.resamples * intervals * (n / costs.machine.exponentials + 4 * costs.machine.dispatch)
