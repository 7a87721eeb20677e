"""What a selection study costs: every seed, order and rate answers three sets of queries."""

import time

from dualform.models.cost.machine import Machine
from dualform.studies.comparison.plan import around, fitted, gathered, planned_model, priced
from dualform.studies.plan import Cost, Part, Plan
from dualform.studies.plan_costs import Costs, memory_of
from dualform.studies.selection.choosing import SETS
from dualform.studies.selection.config import SelectionConfig
from dualform.studies.selection.run import QuerySets, search_budget, three_sets


def plan(config: SelectionConfig, machine: Machine) -> Plan:
    """What a study with these settings will cost. Every rate is tried on every seed, so that nothing is left open."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    sets = three_sets(config, lm, task)
    drawn = sets.together().draw_all(config.seeds)
    tokenising = time.process_time() - start
    costs = priced(config, lm, machine)
    budget = search_budget(config, drawn, {"validation": sets.width("validation"), "report": sets.width("report")})
    n_orders = max(budget.orders.values())
    opening = len(sets.bench.encoder.opening)
    parts = around(costs, tokenising)
    parts.append(Part("packing weights", costs.packing(backwards=True)))
    parts.append(Part("zsl", costs.encode(opening) + costs.read(sets.bench.queries, opening)))
    similar = [sets.bench.queries[place] for place in sets.similar]
    for one in drawn.values():
        for demonstrations in one.demonstrations.in_orders(n_orders):
            n = len(sets.bench.shown(demonstrations).encoded.prefix)
            parts.append(Part("icl", costs.encode(n) + _answers(costs, sets, n)))
        trained = costs.train(one.encoded, config.loss_on, opening=opening) + _answers(costs, sets, opening)
        lent = costs.applied(sum(len(sets.bench.lm.groups(sets.queries[name])) for name in SETS))
        parts.append(Part("ft", (trained + lent) * len(config.grid)))
        reads = costs.read(similar, opening, config.probe) * (1 + len(config.grid))
        reads += costs.read(similar, len(one.encoded.prefix), config.probe)
        for group in sets.bench.lm.groups(similar, config.probe):
            widest = max(similar[i].width(config.probe) for i in group)
            shown = len(one.encoded.content)
            reads += costs.measured(len(group), widest, shown, relaxed=False) * len(config.grid)
        parts.append(Part("likeness", reads))
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
    fit, notes = fitted(config, costs, memory, trains=True)
    return Plan(f"selection {config.model} {task.name}", gathered(parts), memory, machine, fit, (*sets.notes, *notes))


def _answers(costs: Costs, sets: QuerySets, prefix: int) -> Cost:
    return sum((costs.read(sets.queries[name], prefix) for name in SETS), Cost())
