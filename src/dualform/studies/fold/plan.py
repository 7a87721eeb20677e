"""The plan of folding one prompt into one model, with writing and verifying."""

import time

from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import BYTES
from dualform.studies.experiment import Experiment
from dualform.studies.fold.config import FoldConfig
from dualform.studies.fold.work import work_parts
from dualform.studies.fold_settings import require_weights
from dualform.studies.fold_work import fold_bytes
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.plan_costs import Costs, memory_of
from dualform.studies.planning import estimated_memory, merged, planned_model, surrounding_parts


def plan(config: FoldConfig, machine: Machine) -> Plan:
    """Estimate the cost of `dualform fold` with these settings."""
    require_weights(config.fold.method)
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    experiment = Experiment.of(config, lm, task)
    drawn = experiment.draw(config.seeds[0])
    tokenising = time.process_time() - start
    # Packed products are off, because W_O changes layer by layer.
    costs = Costs(lm.shape, machine, config.dtype)
    shape, prefix = costs.shape, len(drawn.encoded.prefix)
    parts = surrounding_parts(costs, tokenising)
    parts += [costs.part(part) for part in work_parts(experiment, drawn)]
    if config.form == "lora":
        width = shape.n_heads * shape.d_head
        # One singular value decomposition per layer, which takes about 12 times the operations of a product.
        cutting = shape.n_layers * 12.0 * width * shape.d_model * min(width, shape.d_model)
        parts.append(PricedPart("truncating to rank", Cost(seconds=cutting / (machine.rate(256, packed=False) / 4))))
    bytes_ = shape.parameters * BYTES[config.dtype]
    parts.append(
        PricedPart("writing", Cost(seconds=4 * bytes_ / machine.copying if config.form == "checkpoint" else 0.0))
    )
    if config.verify:
        # A fresh process reads the folder.
        parts.append(PricedPart("verifying", Cost(seconds=machine.start + 3 * bytes_ / machine.copying)))
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=prefix,
        queries=experiment.queries,
        longest_training=0,
        learned=0,
        learners=1,
        recorded=False,
        trains=False,
        deltas=0,
        more=fold_bytes(experiment, config.fold),
    )
    if config.form == "checkpoint":
        # The changed weights are collected in memory before they are written.
        memory["writing"] = bytes_
    fit, notes = estimated_memory(config, costs, memory, trains=True)
    return Plan(f"fold {config.model} {task.name}", merged(parts), memory, machine, fit, notes)
