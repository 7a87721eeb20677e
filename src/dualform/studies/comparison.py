"""The main job: adapt one model to the same demonstrations in every way, look inside, and compare.

For each demonstration seed every learner is adapted, then all of them read the queries group by group, and the
measures of a group are taken before the next is read.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import Adapted, AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.lora import Lora
from dualform.learners.probe import LinearProbe, ProbedModel
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rate import RateSearch, search_rate
from dualform.models.capture import Recording
from dualform.models.encoding import EncodedDemonstrations
from dualform.models.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.load import load_model
from dualform.result import Result, Trial
from dualform.studies.bench import Bench, Drawn, digest, query_cost, work_of_adapting, work_of_seed
from dualform.studies.comparison_config import ComparisonConfig
from dualform.studies.inside import context_of, measure, recordings_for
from dualform.studies.outcome import Cells, NoCells, SeedOutcome
from dualform.studies.progress import Progress, Silent
from dualform.studies.summary import Asked, summarise
from dualform.tasks.demonstrations import Demonstrations
from dualform.tasks.sources import load_task
from dualform.tasks.task import Task

_SILENT = Silent()
_NO_CELLS = NoCells()


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    result: Result
    asked: Asked
    outcomes: tuple[SeedOutcome, ...]
    """Query by query, one for each seed that is reported."""


def compare(
    config: ComparisonConfig,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    cells: Cells = _NO_CELLS,
    progress: Progress = _SILENT,
) -> Comparison:
    """Run a comparison.

    Args:
        config: What to compare.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        cells: Keeps each finished seed.
        progress: Is told how far the work is.

    Returns:
        The result and all that it was made of.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    start = time.perf_counter()
    if task is None:
        task = load_task(
            config.task,
            data_dir=config.data_dir,
            text=config.text,
            label=config.label,
            prompt=config.prompt,
            label_words=config.label_words,
            separator=config.separator,
            choices=config.choices,
        )
    if lm is None:
        lm = load_model(
            config.model,
            device=config.device,
            dtype=config.dtype,
            route=config.route,
            trust_remote_code=config.trust_remote_code,
        )
    bench = Bench.of(config, lm, task)
    # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
    drawn = {seed: bench.draw(seed) for seed in config.seeds}
    seeds, notes = _seeds(bench, drawn, progress)
    work = {seed: work_of_seed(bench, drawn[seed].encoded, searching=seed == seeds[0]) for seed in seeds}
    progress.start(sum(work.values()))
    inputs = digest(bench, drawn.values())
    outcomes: list[SeedOutcome] = []
    with lm.packed_products():
        for seed in seeds:
            done = cells.get(seed, inputs)
            if done is None:
                done = _run_seed(bench, drawn[seed], inputs, outcomes[0] if outcomes else None, progress)
                cells.put(done)
            else:
                progress.advance(work[seed], f"seed {seed} was finished earlier")
            outcomes.append(done)
    asked = Asked(
        task=task,
        examples=bench.examples,
        n_selection=len(bench.selection),
        report_split=bench.report_split,
        selection_split=bench.selection_split,
        prompt_tokens=sum(len(query.prompt) for query in bench.queries) / len(bench.queries),
        context=bench.context,
        notes=(*bench.notes, *notes),
    )
    result = summarise(config, lm, asked, outcomes, seconds=time.perf_counter() - start)
    return Comparison(result, asked, tuple(outcomes))


def _seeds(bench: Bench, drawn: dict[int, Drawn], progress: Progress) -> tuple[tuple[int, ...], tuple[str, ...]]:
    """The seeds to report, and what must be said about how they were chosen."""
    config = bench.config
    if not config.select_seed or len(config.seeds) == 1:
        return config.seeds, ()
    right = torch.tensor([example.label for example in bench.examples])
    accuracy = {}
    for seed in config.seeds:
        progress.advance(0, f"choosing a seed: {seed}")
        icl = InContext().adapt(bench.lm, drawn[seed].encoded)
        table = answer_log_probabilities(icl, bench.lm, bench.queries)
        accuracy[seed] = float((table.argmax(dim=1) == right).double().mean())
    best = max(config.seeds, key=lambda seed: (accuracy[seed], -seed))
    tried = ", ".join(f"{seed}: {share:.3f}" for seed, share in accuracy.items())
    note = (
        f"Seed {best} was chosen among {len(config.seeds)} for its ICL accuracy on the reported queries ({tried}), as "
        "the paper does: this flatters ICL, and no interval below shows it."
    )
    return (best,), (note,)


def _run_seed(bench: Bench, drawn: Drawn, inputs: str, first: SeedOutcome | None, progress: Progress) -> SeedOutcome:
    demonstrations, encoded = drawn.demonstrations, drawn.encoded
    seed = demonstrations.seed
    adapted: dict[str, Adapted] = {}
    trials: list[Trial] = []
    rates: dict[str, float] = {}
    search_seconds: dict[str, float] = {}
    for name in bench.learners:
        work = work_of_adapting(bench, name, encoded, searching=first is None or bench.config.tune == "each")

        def report(share: float, work: float = work, doing: str = f"seed {seed}: adapting {name}") -> None:
            progress.advance(work * share, doing)

        if name in ("ft", "lora"):
            start = time.perf_counter()
            known = None if first is None or bench.config.tune == "each" else first.rates.get(name)
            found = _train(bench, name, seed, encoded, known, report)
            adapted[name] = found.best
            rates[name] = found.learning_rate
            trials += found.trials
            search_seconds[name] = time.perf_counter() - start - found.best.cost.seconds if known is None else 0.0
        else:
            adapted[name] = _adapt(bench, name, demonstrations, encoded)
            report(1.0)
    log_probabilities, measures, seconds = _read(bench, seed, encoded, adapted, progress)
    costs = {
        name: {
            "adapt_seconds": one.cost.seconds,
            "adapt_tokens": float(one.cost.tokens),
            "adapt_flops": one.cost.flops,
            "query_seconds": seconds[name] / len(bench.queries),
            "search_seconds": max(0.0, search_seconds.get(name, 0.0)),
            **query_cost(bench, one.n_prefix),
        }
        for name, one in adapted.items()
    }
    return SeedOutcome(
        seed=seed,
        inputs=inputs,
        rows=demonstrations.rows,
        n_tokens=len(encoded.prefix),
        log_probabilities=log_probabilities,
        measures=measures,
        costs=costs,
        rates=rates,
        trials=tuple(trials),
    )


def _adapt(bench: Bench, name: str, demonstrations: Demonstrations, encoded: EncodedDemonstrations) -> Adapted:
    opening = bench.encoder.opening
    if name == "zsl":
        return ZeroShot(opening).adapt(bench.lm, encoded)
    if name == "icl":
        return InContext().adapt(bench.lm, encoded)
    queries = tuple(bench.encoder.query(example) for example in demonstrations.examples)
    learner = LinearProbe(opening, queries, demonstrations.labels, bench.task.n_labels)
    return learner.adapt(bench.lm, encoded)


def _train(
    bench: Bench,
    name: str,
    seed: int,
    encoded: EncodedDemonstrations,
    known: float | None,
    report: Callable[[float], None],
) -> RateSearch:
    """Train at the rate known to be good, or search for one."""
    config = bench.config
    grid = tuple(sorted(config.rates if name == "ft" else config.lora_rates))

    def adapt(rate: float) -> AdaptedModel:
        opening = bench.encoder.opening
        if name == "ft":
            return Finetuned(opening, rate, config.loss_on).adapt(bench.lm, encoded)
        return Lora(opening, rate, loss_on=config.loss_on, seed=seed).adapt(bench.lm, encoded)

    if known is None:
        return search_rate(
            adapt,
            grid,
            bench.lm,
            bench.selection_queries,
            [example.label for example in bench.selection],
            seed=seed,
            patience=config.patience,
            after_trial=lambda: report(1 / len(grid)),
        )
    diverged: list[Trial] = []
    for rate in reversed([rate for rate in grid if rate <= known]):
        try:
            adapted = adapt(rate)
            # A rate known from another seed is not searched, but it must give numbers.
            answer_log_probabilities(adapted, bench.lm, bench.selection_queries[:4])
        except NumericalError:
            diverged.append(_untested(name, seed, rate, None, "diverged"))
            continue
        report(1.0)
        return RateSearch(adapted, rate, (*diverged, _untested(name, seed, rate, adapted, "finished")))
    raise TrainingError(
        f"{name}, seed {seed}: the rate chosen on the first seed ({known:g}) and every lower one of the grid diverged. "
        "Give lower ones with --rates (ft) or --lora-rates (lora)."
    )


def _untested(learner: str, seed: int, rate: float, adapted: AdaptedModel | None, status: str) -> Trial:
    losses = adapted.losses if adapted is not None and adapted.losses else (None,)
    return Trial(
        learner=learner,
        seed=seed,
        learning_rate=rate,
        validation_accuracy=None,
        validation_log_probability=None,
        first_loss=losses[0],
        last_loss=losses[-1],
        status=status,
        chosen=adapted is not None,
    )


def _read(
    bench: Bench, seed: int, encoded: EncodedDemonstrations, adapted: dict[str, Adapted], progress: Progress
) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, float]]:
    """All learners read all queries, a group at a time: answers, measures, seconds by learner."""
    want: dict[str, Recording] = {}
    context = None
    icl, ft = adapted.get("icl"), adapted.get("ft")
    if isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel) and "zsl" in adapted:
        recordings = recordings_for(bench.lm.anatomy, len(encoded.sequences))
        want = {"zsl": recordings.zsl, "icl": recordings.icl, "ft": recordings.ft}
        # Not needed, but times of two finetuned models can be compared only if both are recorded.
        want["lora"] = recordings.ft
        context = context_of(icl, ft, encoded)
    n = len(bench.queries)
    width = max(len(query.answers) for query in bench.queries)
    answers = {name: torch.full((n, width), -torch.inf, dtype=torch.float64) for name in adapted}
    measures: dict[str, Tensor] = {}
    seconds = dict.fromkeys(adapted, 0.0)
    for indices in bench.lm.groups(bench.queries, bench.config.probe):
        readings: dict[str, Readings] = {}
        spent: dict[str, float] = {}
        for name, one in adapted.items():
            start = time.perf_counter()
            if isinstance(one, ProbedModel) and "zsl" in readings:
                # The probe reads what zero-shot has read; only its own answer is left to be given.
                readings[name] = one.answer(readings["zsl"])
                start -= spent["zsl"]
            else:
                wanted = want.get(name, NO_RECORDING)
                readings[name] = one.read_group(bench.queries, indices, wanted, bench.config.probe)
            spent[name] = time.perf_counter() - start
            seconds[name] += spent[name]
            found = readings[name].log_probabilities.double().cpu()
            answers[name][list(indices), : found.shape[1]] = found
            progress.advance(sum(bench.queries[i].width() for i in indices), f"seed {seed}: reading queries")
        if want:
            for key, value in measure(readings["zsl"], readings["icl"], readings["ft"], context, seed).items():
                if key not in measures:
                    measures[key] = value.new_full((n, *value.shape[1:]), torch.nan)
                measures[key][list(indices)] = value
    return answers, measures, seconds
