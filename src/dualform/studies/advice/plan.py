"""The cost of advice, estimated before it runs."""

import time

from dualform.learners.base import LEARNERS
from dualform.models.cost.machine import Machine
from dualform.models.cost.work import short_forwards
from dualform.studies.advice.config import AdviceConfig
from dualform.studies.advice.run import of_budget, set_up
from dualform.studies.advice.work import CellWork
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import largest_training, memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts


def plan(config: AdviceConfig, machine: Machine) -> Plan:
    """The estimated cost of all learners with all budgets and draws."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    experiment, budgets, notes = set_up(config, lm, task)
    drawn = [(of_budget(experiment, n), seed) for seed in config.seeds for n in budgets]
    cells = [CellWork(each, each.draw(seed)) for each, seed in drawn]
    tokenising = time.process_time() - start
    costs = prices(config, lm, machine)
    learners = [LEARNERS[name] for name in experiment.config.learners]
    trains = any(learner.changes_weights for learner in learners)
    parts = surrounding_parts(costs, tokenising)
    parts.append(PricedPart("packing weights", costs.packing(trains)))
    checks = sum(learner.check_forwards(config) for learner in learners)
    parts.append(PricedPart("finding out what the model allows", costs.cost(short_forwards(checks))))
    # Learners that use no demonstrations are read once.
    parts += [costs.part(part) for number, cell in enumerate(cells) for part in cell.parts(unchanged=number == 0)]
    encoded = [cell.drawn.encoded_labelled for cell in cells]
    longest, learned = largest_training(learner.work(cell.context) for learner in learners for cell in cells)
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=max(len(each.prefix) for each in encoded),
        queries=experiment.queries,
        longest_training=longest,
        learned=learned,
        learners=len(learners),
        recorded=False,
        trains=trains,
        deltas=sum(learner.changes_weights for learner in learners),
        more=sum(learner.extra_bytes(experiment) for learner in learners),
    )
    fit, more = estimated_memory(config, costs, memory, trains=trains)
    return Plan(f"advise {config.model} {task.name}", merged(parts), memory, machine, fit, (*notes, *more))
