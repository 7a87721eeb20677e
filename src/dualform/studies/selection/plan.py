"""The cost of a selection study, estimated before it runs."""

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
    """The estimated cost of the study. It has no uncertain part, since every rate is tried on every seed."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    sets = three_sets(config, lm, task)
    demonstration_sets = sets.together().draw_all(config.seeds)
    tokenising = time.process_time() - start
    costs = prices(config, lm, machine)
    budget = search_budget(
        config, demonstration_sets, {"validation": sets.width("validation"), "report": sets.width("report")}
    )
    n_orders = max(budget.orders.values())
    opening = len(sets.experiment.encoder.opening)
    parts = surrounding_parts(costs, tokenising)
    parts.append(PricedPart("packing weights", costs.packing(backwards=True)))
    parts.append(PricedPart("zsl", costs.cost(encode(opening) + read(sets.experiment.queries, opening))))
    parts += [costs.part(part) for each in demonstration_sets.values() for part in seed_parts(sets, each, n_orders)]
    encoded = [each.encoded for each in demonstration_sets.values()]
    lengths = [len(ids) for each in encoded for ids in each.sequences]
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=max(len(each.prefix) for each in encoded),
        queries=[query for name in SETS for query in sets.queries[name]],
        longest_training=max(lengths, default=0),
        learned=max(lengths, default=1) - 1,
        learners=3,
        recorded=True,
        trains=True,
        deltas=len(config.grid),
    )
    fit, notes = estimated_memory(config, costs, memory, trains=True)
    return Plan(f"selection {config.model} {task.name}", merged(parts), memory, machine, fit, (*sets.notes, *notes))
