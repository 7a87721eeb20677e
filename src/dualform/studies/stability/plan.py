"""What a stability study costs: every set in its orders and labels, for each model."""

import time
from collections.abc import Sequence

from dualform.models.cost.machine import Machine
from dualform.models.reading.layout import Query
from dualform.studies.bench import Bench, Drawn
from dualform.studies.comparison.plan import TRIED, around, fitted, gathered, planned_model, priced, search_part
from dualform.studies.plan import Part, Plan
from dualform.studies.plan_costs import Costs, memory_of
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.run import common_orders, content_free_queries, planned_runs


def plan(config: StabilityConfig, machine: Machine) -> Plan:
    """What a study with these settings will cost; memory is that of the model that needs most."""
    task = config.load_task()
    parts: list[Part] = []
    found: list[tuple[dict[str, int], Costs]] = []
    trains = config.ft_seeds > 0
    for name in config.models:
        lm = planned_model(config, name)
        start = time.process_time()
        bench = Bench.of(config, lm, task)
        drawn = bench.draw_all(config.seeds)
        tokenising = time.process_time() - start
        costs = priced(config, lm, machine)
        parts += [part for part in around(costs, tokenising) if not (found and part.name == "start")]
        parts.append(Part("packing weights", costs.packing(trains)))
        queries = (*bench.queries, *content_free_queries(bench))
        parts += _runs(costs, bench, drawn, queries)
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
        found.append((memory, costs))
    memory, costs = max(found, key=lambda one: sum(one[0].values()))
    fit, notes = fitted(config, costs, memory, trains=trains)
    return Plan(f"stability {config.model} {task.name}", gathered(parts), memory, machine, fit, notes)


def _runs(costs: Costs, bench: Bench[StabilityConfig], drawn: dict[int, Drawn], queries: Sequence[Query]) -> list[Part]:
    config, opening = bench.config, len(bench.encoder.opening)
    zero_shot = costs.encode(opening) + costs.read(queries, opening)
    lent = costs.applied(len(bench.lm.groups(list(queries))))
    tried = costs.read(bench.selection_queries[:TRIED], opening)
    scoring = costs.read(bench.selection_queries, opening) + costs.applied(
        len(bench.lm.groups(bench.selection_queries))
    )
    after_ft = costs.read(queries, opening) + lent
    parts = [Part("zsl", zero_shot)]
    searched = False
    n_orders = common_orders(config, drawn.values())
    for place, seed in enumerate(config.seeds):
        orders = drawn[seed].demonstrations.in_orders(n_orders)
        for run in planned_runs(config, place, n_orders):
            shown = bench.shown(orders[run.order].relabelled(bench.task, run.labels)).encoded
            if run.learner == "icl":
                n = len(shown.prefix)
                parts.append(Part("icl", costs.encode(n) + costs.read(queries, n)))
                continue
            one = costs.train(shown, config.loss_on, opening=opening)
            known = run.rate is not None or searched
            part = search_part("ft", one, config.rates, scoring, patience=config.patience, known=known, tried=tried)
            searched = searched or run.rate is None
            least = None if part.least is None else part.least + after_ft
            most = None if part.most is None else part.most + after_ft
            parts.append(Part("ft" if known else "ft: search", part.cost + after_ft, least, most, part.why))
    return parts
