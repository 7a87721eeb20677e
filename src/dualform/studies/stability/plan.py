"""The cost of a stability study, estimated before it runs."""

import time

from dualform.learners.calibrated import content_free_queries
from dualform.models.cost.machine import Machine
from dualform.studies.experiment import Experiment
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import Costs, memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.work import model_parts


def plan(config: StabilityConfig, machine: Machine) -> Plan:
    """The estimated cost of the study; memory is that of the model that needs the most."""
    task = config.load_task()
    parts: list[PricedPart] = []
    needed: list[tuple[dict[str, int], Costs]] = []
    trains = config.ft_seeds > 0
    for name in config.models:
        lm = planned_model(config, name)
        start = time.process_time()
        experiment = Experiment.of(config, lm, task)
        demonstration_sets = experiment.draw_all(config.seeds)
        tokenising = time.process_time() - start
        costs = prices(config, lm, machine)
        parts += [part for part in surrounding_parts(costs, tokenising) if not (needed and part.name == "start")]
        parts.append(PricedPart("packing weights", costs.packing(trains)))
        queries = (*experiment.queries, *content_free_queries(experiment))
        parts += [costs.part(part) for part in model_parts(experiment, demonstration_sets)]
        encoded = [each.encoded for each in demonstration_sets.values()]
        lengths = [len(ids) for each in encoded for ids in each.sequences]
        memory = memory_of(
            costs,
            base=machine.base,
            prefix=max(len(each.prefix) for each in encoded),
            queries=queries,
            longest_training=max(lengths, default=0),
            learned=max(lengths, default=1) - 1,
            learners=1,
            recorded=False,
            trains=trains,
            deltas=2,
        )
        needed.append((memory, costs))
    memory, costs = max(needed, key=lambda need: sum(need[0].values()))
    fit, notes = estimated_memory(config, costs, memory, trains=trains)
    return Plan(f"stability {config.model} {task.name}", merged(parts), memory, machine, fit, notes)
