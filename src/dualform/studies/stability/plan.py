"""What a stability study costs: every set in its orders and labels, for each model."""

import time

from dualform.models.cost.machine import Machine
from dualform.studies.experiment import Experiment
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import Costs, memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.work import content_free_queries, model_parts


def plan(config: StabilityConfig, machine: Machine) -> Plan:
    """What a study with these settings will cost; memory is that of the model that needs most."""
    task = config.load_task()
    parts: list[PricedPart] = []
    needed: list[tuple[dict[str, int], Costs]] = []
    trains = config.ft_seeds > 0
    for name in config.models:
        lm = planned_model(config, name)
        start = time.process_time()
        experiment = Experiment.of(config, lm, task)
        drawn = experiment.draw_all(config.seeds)
        tokenising = time.process_time() - start
        costs = prices(config, lm, machine)
        parts += [part for part in surrounding_parts(costs, tokenising) if not (needed and part.name == "start")]
        parts.append(PricedPart("packing weights", costs.packing(trains)))
        queries = (*experiment.queries, *content_free_queries(experiment))
        parts += [costs.part(part) for part in model_parts(experiment, drawn)]
        sequences = [len(ids) for one in drawn.values() for ids in one.encoded.sequences]
        memory = memory_of(
            costs,
            base=machine.base,
            prefix=max(len(one.encoded.prefix) for one in drawn.values()),
            queries=queries,
            longest_training=max(sequences, default=0),
            learned=max(sequences, default=1) - 1,
            learners=1,
            recorded=False,
            trains=trains,
            deltas=2,
        )
        needed.append((memory, costs))
    memory, costs = max(needed, key=lambda one: sum(one[0].values()))
    fit, notes = estimated_memory(config, costs, memory, trains=trains)
    return Plan(f"stability {config.model} {task.name}", merged(parts), memory, machine, fit, notes)
