"""The comparison: adapt one model to the same demonstrations in several ways, record its activations, and compare.

For each demonstration seed every learner is adapted (`adapting`). Then all learners read the queries group by group,
and the measures of a group are computed before the next group is read (`reading`). Controls read only the first groups,
and only one control's readings are in memory at a time.
"""

import time
from dataclasses import dataclass

from dualform.attention_record import AttentionRecord
from dualform.errors import ConfigError
from dualform.learners.base import LEARNERS
from dualform.learners.reading_cache import ReadingCache
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.result import Result
from dualform.studies.comparison.attention_view import attention_record
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.seed import compute_seed
from dualform.studies.comparison.seed_choice import ChosenSeeds, choose_seeds
from dualform.studies.comparison.seed_record import SeedRecord, piece_name
from dualform.studies.comparison.setup import ComparisonRun
from dualform.studies.comparison.summary import examples_table, summarise
from dualform.studies.comparison.work import SeedWork, passes
from dualform.studies.facts import TaskDescription
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.study import StudyContext, StudyOutput
from dualform.tasks.task import Task

_SILENT = SilentProgress()


_NO_PIECES = NoPieceStore()


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    result: Result
    description: TaskDescription
    records: tuple[SeedRecord, ...]
    """The numbers of each query, one record for each reported seed."""

    @property
    def attention(self) -> AttentionRecord | None:
        """Attention of the first seed's learners; None if `explore` is 0 or one of zsl, icl and ft was not run."""
        return attention_record(self.records[0], self.description)


@accepts_cells
@ordinary_torch()
def compare(
    config: ComparisonConfig,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    pieces: PieceStore = _NO_PIECES,
    progress: Progress = _SILENT,
    memory: ReadingCache | None = None,
) -> Comparison:
    """Run a comparison.

    Args:
        config: The settings.
        lm: A loaded model; None loads `config.model`.
        task: A loaded task; None loads `config.task`.
        pieces: Store of finished seeds, which are not computed again.
        progress: Receives the work done.
        memory: Cache of this model's zero-shot readings, shared between runs; None for no cache.

    Returns:
        The result, and each seed's record.

    Raises:
        DualformError: The settings, model or data cannot be used.
    """
    start = time.perf_counter()
    run = ComparisonRun.of(config, lm, task, config.seeds, pieces, progress, memory)
    with run.experiment.lm.packed_products():
        chosen = choose_seeds(run)
        records = _seed_records(run, chosen)
    notes = dict.fromkeys(note for record in records for note in record.notes)
    description = TaskDescription.of(run.experiment, (*run.notes, *chosen.notes, *notes))
    result = summarise(config, run.experiment.lm, description, records, seconds=time.perf_counter() - start)
    return Comparison(result, description, tuple(records))


@ordinary_torch()
def compare_seed(
    config: ComparisonConfig,
    seed: int,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    pieces: PieceStore = _NO_PIECES,
    progress: Progress = _SILENT,
    memory: ReadingCache | None = None,
) -> Comparison:
    """Run one seed of a comparison, exactly as `compare` runs it.

    Args:
        config: The settings, with all seeds; `select` must be `none`.
        seed: The seed to run, one of `config.seeds`.
        lm: A loaded model; None loads `config.model`.
        task: A loaded task; None loads `config.task`.
        pieces: Store of finished seeds. If this seed uses another seed's learning rates, that seed is read from here
            or run first.
        progress: Receives the work done.
        memory: Cache of this model's zero-shot readings, shared between runs; None for no cache.

    Returns:
        The comparison of this seed only.

    Raises:
        DualformError: The settings, model or data cannot be used.
    """
    if config.select != "none":
        raise ConfigError(
            f"select {config.select} chooses among all seeds, so one seed cannot be run by itself: use select none"
        )
    start = time.perf_counter()
    seeds = required_seeds(config, seed)
    run = ComparisonRun.of(config, lm, task, seeds, pieces, progress, memory)
    with run.experiment.lm.packed_products():
        record = _seed_records(run, ChosenSeeds(seeds))[-1]
    description = TaskDescription.of(run.experiment, (*run.notes, *record.notes))
    result = summarise(config, run.experiment.lm, description, [record], seconds=time.perf_counter() - start)
    return Comparison(result, description, (record,))


def run(config: ComparisonConfig, context: StudyContext) -> StudyOutput:
    """Implements `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    comparison = compare(
        config, lm=lm, task=task, pieces=context.pieces, progress=context.progress, memory=models.memory
    )
    table = examples_table(comparison.description, comparison.records)
    return StudyOutput(comparison.result, table, comparison.attention)


def run_seed(config: ComparisonConfig, seed: int, context: StudyContext) -> tuple[Piece, Result]:
    """Implements `SeedBySeed.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    # Skip most of the bootstrap here; intervals are computed once, over all seeds.
    quick = config.model_copy(update={"resamples": 10})
    comparison = compare_seed(
        quick, seed, lm=lm, task=task, pieces=context.pieces, progress=context.progress, memory=models.memory
    )
    return comparison.records[0].to_piece(), comparison.result


def has_independent_seeds(config: ComparisonConfig) -> bool:
    """False if `select` chooses among the seeds."""
    return config.select == "none"


def required_seeds(config: ComparisonConfig, seed: int) -> tuple[int, ...]:
    """The seeds needed for one seed, in order, ending with itself.

    With `tune: first` that includes the first seed, whose learning rates are used.
    """
    searched = any(LEARNERS[name].grid for name in config.learners)
    first = config.seeds[0]
    return (first, seed) if config.tune == "first" and searched and seed != first else (seed,)


def _seed_records(run: ComparisonRun, chosen: "ChosenSeeds") -> list[SeedRecord]:
    """The chosen seeds' records, in order; finished seeds are read from the store."""
    experiment, config = run.experiment, run.experiment.config
    work = {}
    for seed in chosen.seeds:
        first = seed == chosen.seeds[0]
        # Rates found while choosing a seed are those of the chosen seed.
        known = tuple(chosen.rates) if first else ()
        work[seed] = SeedWork(experiment, run.drawn[seed], first or config.tune == "each", known)
    run.progress.start(sum(passes(seed_work.parts()) for seed_work in work.values()))
    records: list[SeedRecord] = []
    for seed in chosen.seeds:
        inputs = run.inputs(list(dict.fromkeys((*required_seeds(config, seed)[:-1], seed))))
        piece = run.pieces.get(piece_name(seed), inputs)
        if piece is None:
            rates = chosen.rates if not records else ({} if config.tune == "each" else records[0].rates)
            record = compute_seed(run, seed, inputs, rates, chosen, work[seed])
            run.pieces.put(record.to_piece())
        else:
            record = SeedRecord.from_piece(piece)
            run.progress.advance(passes(work[seed].parts()), f"seed {seed} was finished earlier")
        records.append(record)
    return records
