"""What a study of folding costs: every way of folding, seed by seed."""

import time
from dataclasses import replace

from dualform.errors import DualformError
from dualform.models.cost.machine import Machine
from dualform.studies.bench import Bench, Drawn
from dualform.studies.comparison.plan import around, fitted, gathered, planned_model, priced, search_part
from dualform.studies.fold_settings import IN_WEIGHTS, FoldSettings
from dualform.studies.folding.config import FoldingConfig
from dualform.studies.folds import perplexity_passages
from dualform.studies.plan import Cost, Part, Plan
from dualform.studies.plan_costs import Costs, Reading, memory_of
from dualform.studies.plan_folds import fold_bytes, fold_parts, fold_prefix, reads_twice


def plan(config: FoldingConfig, machine: Machine) -> Plan:
    """What a study with these settings will cost. A way of folding that fails costs less than is reckoned here."""
    lm = planned_model(config, config.model)
    task = config.load_task()
    start = time.process_time()
    bench = Bench.of(config, lm, task)
    others = {}
    for name in dict.fromkeys((*config.transfer, *config.compose)):
        own = {"text": None, "label": None, "choices": None, "prompt": None, "label_words": None, "separator": None}
        asked = config.model_copy(update={"task": name, **own})
        others[name] = Bench.of(asked, lm, asked.load_task())
    points = config.points(lm.shape.n_layers)
    folds = tuple(dict.fromkeys([config.default, *(point.fold for point in points)]))
    drawn: dict[tuple[int, int], Drawn] = {}
    for k in dict.fromkeys([config.k, *(point.fold.k for point in points)]):
        with_k = replace(bench, config=config.model_copy(update={"k": k}))
        try:
            drawn |= {(seed, k): one for seed, one in with_k.draw_all(config.seeds).items()}
        except DualformError:
            if k == config.k:
                raise
    tokenising = time.process_time() - start
    costs = priced(config, lm, machine)
    opening = len(bench.encoder.opening)
    passages: tuple[tuple[int, ...], ...] = ()
    if config.perplexity is not None:
        passages = perplexity_passages(bench, config.perplexity, config.perplexity_texts)
    plain = sum((costs.read_row(Reading((opening + len(ids),), len(ids), 0)) for ids in passages), Cost())
    parts = around(costs, tokenising)
    parts.append(Part("packing weights", costs.packing(config.ft)))
    zero_shot = sum(
        (costs.encode(opening) + costs.read(each.queries, opening) for each in (bench, *others.values())), Cost()
    )
    parts.append(Part("zsl", zero_shot + plain))
    # Plain text is written once, whichever fold asks first; each length and number of texts for itself.
    written: set[str] = set()
    for seed in config.seeds:
        for k in dict.fromkeys(k for _, k in drawn):
            n = len(drawn[seed, k].encoded.prefix)
            parts.append(Part("icl", costs.encode(n) + costs.read(bench.queries, n)))
        if config.ft:
            one = costs.train(drawn[seed, config.k].encoded, config.loss_on, opening=opening)
            scoring = costs.read(bench.selection_queries, opening)
            part = search_part("ft", one, config.rates, scoring, patience=config.patience, known=False, tried=Cost())
            parts += [part, Part("ft: reading", costs.read(bench.queries, opening))]
        for fold in folds:
            if (seed, fold.k) not in drawn:
                continue
            here = drawn[seed, fold.k]
            parts += _once(fold_parts(costs, bench, here, fold.settings, f"fold: {fold.settings.method}"), written)
            parts.append(Part("folds: reading", _asked(costs, bench, here, fold.settings)))
            if fold.settings.method in IN_WEIGHTS:
                parts.append(Part("folds: reading", plain))
        for name, other in others.items():
            answered = costs.encode(opening) + costs.read(other.queries, opening)
            if name in config.transfer:
                parts.append(Part("other tasks", answered))
            if name in config.compose:
                there = other.draw(seed)
                parts += _once(fold_parts(costs, other, there, config.fold, "other tasks"), written)
                parts.append(Part("other tasks", answered * 2))
                parts.append(Part("other tasks", costs.encode(opening) + costs.read(bench.queries, opening)))
    sequences = [len(ids) for one in drawn.values() for ids in one.encoded.sequences]
    largest = max(folds, key=lambda fold: fold_bytes(costs, bench, fold.settings))
    memory = memory_of(
        costs,
        base=machine.base,
        prefix=max(len(one.encoded.prefix) for one in drawn.values()),
        queries=bench.queries,
        longest_training=max(sequences, default=0),
        learned=max(sequences, default=1) - 1,
        learners=1,
        recorded=False,
        trains=config.ft,
        deltas=2,
        more=fold_bytes(costs, bench, largest.settings),
    )
    fit, notes = fitted(config, costs, memory, trains=True)
    return Plan(f"folding {config.model} {task.name}", gathered(parts), memory, machine, fit, notes)


def _once(parts: list[Part], written: set[str]) -> list[Part]:
    """Without what an earlier fold has written."""
    found = []
    for part in parts:
        if "plain text" in part.name:
            if part.name in written:
                continue
            written.add(part.name)
        found.append(part)
    return found


def _asked(costs: Costs, bench: Bench[FoldingConfig], drawn: Drawn, settings: FoldSettings) -> Cost:
    cost = costs.read(bench.queries, fold_prefix(settings, bench, drawn))
    if reads_twice(settings):
        cost += costs.read(bench.queries, len(drawn.encoded.prefix))
    return cost
