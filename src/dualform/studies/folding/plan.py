"""The cost of a folding study, estimated before it runs."""

import time
from dataclasses import replace

from dualform.errors import DualformError
from dualform.models.cost.machine import Machine
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.fold_work import fold_bytes
from dualform.studies.folding.config import FoldingConfig
from dualform.studies.folding.work import FoldingWork
from dualform.studies.folds import perplexity_passages
from dualform.studies.plan import Plan, PricedPart
from dualform.studies.plan_costs import memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, prices, surrounding_parts


def plan(config: FoldingConfig, machine: Machine) -> Plan:
    """The estimated cost of the study. A fold that fails costs less than estimated."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    experiment = Experiment.of(config, lm, task)
    others = {}
    for name in dict.fromkeys((*config.transfer, *config.compose)):
        own = {"text": None, "label": None, "choices": None, "prompt": None, "label_words": None, "separator": None}
        other = config.model_copy(update={"task": name, **own})
        others[name] = Experiment.of(other, lm, other.load_task())
    work = _work(config, experiment, others)
    tokenising = time.process_time() - start
    costs = prices(config, lm, machine)
    parts = surrounding_parts(costs, tokenising)
    parts.append(PricedPart("packing weights", costs.packing(config.ft)))
    parts += [costs.part(part) for part in work.parts()]
    encoded = [each.encoded for each in work.demonstration_sets.values()]
    lengths = [len(ids) for each in encoded for ids in each.sequences]
    largest = max(work.folds, key=lambda fold: fold_bytes(experiment, fold.settings))
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=max(len(each.prefix) for each in encoded),
        queries=experiment.queries,
        longest_training=max(lengths, default=0),
        learned=max(lengths, default=1) - 1,
        learners=1,
        recorded=False,
        trains=config.ft,
        deltas=2,
        more=fold_bytes(experiment, largest.settings),
    )
    fit, notes = estimated_memory(config, costs, memory, trains=True)
    return Plan(f"folding {config.model} {task.name}", merged(parts), memory, machine, fit, notes)


def _work(
    config: FoldingConfig, experiment: Experiment[FoldingConfig], others: dict[str, Experiment[FoldingConfig]]
) -> FoldingWork:
    demonstration_sets: dict[tuple[int, int], DemonstrationSet] = {}
    points = config.points(experiment.lm.shape.n_layers)
    for k in dict.fromkeys([config.k, *(point.fold.k for point in points)]):
        with_k = replace(experiment, config=config.model_copy(update={"k": k}))
        try:
            demonstration_sets |= {(seed, k): each for seed, each in with_k.draw_all(config.seeds).items()}
        except DualformError:
            if k == config.k:
                raise
    other_sets = {(name, seed): others[name].draw(seed) for name in config.compose for seed in config.seeds}
    passages: tuple[tuple[int, ...], ...] = ()
    if config.perplexity is not None:
        passages = perplexity_passages(experiment, config.perplexity, config.perplexity_texts)
    return FoldingWork(experiment, others, passages, demonstration_sets, other_sets)
