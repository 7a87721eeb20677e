"""What a selection study costs: every seed, order and rate answers three sets of queries."""

import time

from dualform.models.cost.machine import Machine
from dualform.models.cost.work import encode, read
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts
from dualform.studies.selection.choosing import SETS
from dualform.studies.selection.config import SelectionConfig
from dualform.studies.selection.run import search_budget, seed_parts, three_sets


def plan(config: SelectionConfig, machine: Machine) -> Plan:
    """What a study with these settings will cost. Every rate is tried on every seed, so that nothing is left open."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    sets = three_sets(config, lm, task)
    drawn = sets.together().draw_all(config.seeds)
    tokenising = time.process_time() - start
    costs = prices(config, lm, machine)
    budget = search_budget(config, drawn, {"validation": sets.width("validation"), "report": sets.width("report")})
    n_orders = max(budget.orders.values())
    opening = len(sets.experiment.encoder.opening)
    parts = surrounding_parts(costs, tokenising)
    parts.append(PricedPart("packing weights", costs.packing(backwards=True)))
    parts.append(PricedPart("zsl", costs.cost(encode(opening) + read(sets.experiment.queries, opening))))
    parts += [costs.part(part) for one in drawn.values() for part in seed_parts(sets, one, n_orders)]
    sequences = [len(ids) for one in drawn.values() for ids in one.encoded.sequences]
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=max(len(one.encoded.prefix) for one in drawn.values()),
        queries=[query for name in SETS for query in sets.queries[name]],
        longest_training=max(sequences, default=0),
        learned=max(sequences, default=1) - 1,
        learners=3,
        recorded=True,
        trains=True,
        deltas=len(config.grid),
    )
    fit, notes = estimated_memory(config, costs, memory, trains=True)
    return Plan(f"selection {config.model} {task.name}", merged(parts), memory, machine, fit, (*sets.notes, *notes))
