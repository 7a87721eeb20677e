"""What folding one prompt into one model costs, its writing and verifying included."""

import time

from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import BYTES
from dualform.models.export.card import EXAMPLE
from dualform.studies.bench import Bench
from dualform.studies.comparison.plan import around, fitted, gathered, planned_model
from dualform.studies.fold.config import FoldConfig
from dualform.studies.fold.run import VERIFIED_QUERIES
from dualform.studies.fold_settings import require_weights
from dualform.studies.folds import perplexity_passages
from dualform.studies.plan import Cost, Part, Plan
from dualform.studies.plan_costs import Costs, Reading, memory_of
from dualform.studies.plan_folds import fold_bytes, fold_parts
from dualform.tasks.task import Example


def plan(config: FoldConfig, machine: Machine) -> Plan:
    """What `dualform fold` with these settings will cost."""
    require_weights(config.fold.method)
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    bench = Bench.of(config, lm, task)
    drawn = bench.draw(config.seeds[0])
    tokenising = time.process_time() - start
    # Nothing is packed: W_O changes layer by layer.
    costs = Costs(lm.shape, machine, config.dtype)
    opening, prefix = len(bench.encoder.opening), len(drawn.encoded.prefix)
    parts = around(costs, tokenising)
    parts += fold_parts(costs, bench, drawn, config.fold)
    if config.form == "lora":
        shape = costs.shape
        width = shape.n_heads * shape.d_head
        # One singular value decomposition a layer, of a dozen times a product's operations.
        cutting = shape.n_layers * 12.0 * width * shape.d_model * min(width, shape.d_model)
        parts.append(Part("cutting to rank", Cost(seconds=cutting / (machine.rate(256, packed=False) / 4))))
        parts.append(Part("cutting to rank", costs.encode(opening)))
    parts.append(Part("zsl", costs.encode(opening)))
    parts.append(Part("icl", costs.encode(prefix)))
    reading = costs.read(bench.queries, opening) * 2 + costs.read(bench.queries, prefix)
    if bench.task.label_words is not None:
        # The card's own question, with the answer that its program should give.
        query = bench.encoder.query(Example(dict.fromkeys(bench.task.template.fields, EXAMPLE), 0, 0))
        reading += costs.read([query], opening)
    parts.append(Part("reading queries", reading))
    if config.perplexity is not None:
        passages = perplexity_passages(bench, config.perplexity, config.perplexity_texts)
        once = sum((costs.read_row(Reading((opening + len(ids),), len(ids), 0)) for ids in passages), Cost())
        parts.append(Part("perplexity", once * 2))
    bytes_ = lm.shape.parameters * BYTES[config.dtype]
    parts.append(Part("writing", Cost(seconds=4 * bytes_ / machine.copying if config.form == "checkpoint" else 0.0)))
    if config.verify:
        some = bench.queries[:VERIFIED_QUERIES]
        asked = sum((costs.encode(opening + len(query.prompt)) for query in some), Cost())
        fresh = Cost(seconds=machine.start + 3 * bytes_ / machine.copying)
        # Once here, and once in a process of its own, which reads as many tokens again.
        parts.append(Part("verifying", asked * 2 + fresh))
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=prefix,
        queries=bench.queries,
        longest_training=0,
        learned=0,
        learners=1,
        recorded=False,
        trains=False,
        deltas=0,
        more=fold_bytes(costs, bench, config.fold),
    )
    if config.form == "checkpoint":
        # Changed weights are gathered, then written.
        memory["writing"] = bytes_
    fit, notes = fitted(config, costs, memory, trains=True)
    return Plan(f"fold {config.model} {task.name}", gathered(parts), memory, machine, fit, notes)
