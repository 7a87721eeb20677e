"""The comparison: adapt one model to the same demonstrations in every way, record its inside, and compare.

For each demonstration seed every learner is adapted (`adapting`), then all of them read the queries group by group, and
the measures of a group are computed before the next is read (`reading`). Controls read the first groups only, and never
keep more than one of their readings at a time.
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
    asked: TaskDescription
    outcomes: tuple[SeedRecord, ...]
    """Query by query, one for each seed that is reported."""

    @property
    def attention(self) -> AttentionRecord | None:
        """Where the first seed's learners attended; None with `explore` 0, or without zsl, icl and ft."""
        return attention_record(self.outcomes[0], self.asked)


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
        config: What to compare.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        pieces: Keeps each finished seed.
        progress: Receives the work done.
        memory: Zero-shot readings of this model made earlier, which are not made again.

    Returns:
        The result, and each seed's outcome.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    start = time.perf_counter()
    run = ComparisonRun.of(config, lm, task, config.seeds, pieces, progress, memory)
    with run.experiment.lm.packed_products():
        chosen = choose_seeds(run)
        outcomes = _outcomes(run, chosen)
    remarks = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    asked = TaskDescription.of(run.experiment, (*run.notes, *chosen.notes, *remarks))
    result = summarise(config, run.experiment.lm, asked, outcomes, seconds=time.perf_counter() - start)
    return Comparison(result, asked, tuple(outcomes))


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
    """One seed of a comparison, exactly as `compare` runs it among all seeds of its settings.

    Args:
        config: What to compare, all seeds; one of them must not be chosen (`select` is `none`).
        seed: Which of them.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        pieces: Keeps the seed; the seed whose learning rates this one takes is read from here, or run too.
        progress: Receives the work done.
        memory: Zero-shot readings of this model made earlier, which are not made again.

    Returns:
        The comparison of this seed alone.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    if config.select != "none":
        raise ConfigError(f"select {config.select} chooses among all seeds, so that none can be run alone")
    start = time.perf_counter()
    seeds = seeds_behind(config, seed)
    run = ComparisonRun.of(config, lm, task, seeds, pieces, progress, memory)
    with run.experiment.lm.packed_products():
        outcome = _outcomes(run, ChosenSeeds(seeds))[-1]
    asked = TaskDescription.of(run.experiment, (*run.notes, *outcome.notes))
    result = summarise(config, run.experiment.lm, asked, [outcome], seconds=time.perf_counter() - start)
    return Comparison(result, asked, (outcome,))


def run(config: ComparisonConfig, context: StudyContext) -> StudyOutput:
    """A comparison, as `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    found = compare(config, lm=lm, task=task, pieces=context.pieces, progress=context.progress, memory=models.memory)
    return StudyOutput(found.result, examples_table(found.asked, found.outcomes), found.attention)


def run_seed(config: ComparisonConfig, seed: int, context: StudyContext) -> tuple[Piece, Result]:
    """One seed of a comparison, as `SeedBySeed.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    # Intervals are computed once, over all seeds; here a bootstrap would be thrown away.
    quick = config.model_copy(update={"resamples": 10})
    one = compare_seed(
        quick, seed, lm=lm, task=task, pieces=context.pieces, progress=context.progress, memory=models.memory
    )
    return one.outcomes[0].to_piece(), one.result


def has_independent_seeds(config: ComparisonConfig) -> bool:
    """Whether a seed can be run without the others: not where one of them is chosen."""
    return config.select == "none"


def seeds_behind(config: ComparisonConfig, seed: int) -> tuple[int, ...]:
    """The seeds that one seed's numbers depend on, itself last: the first one's learning rates are used for all."""
    searched = any(LEARNERS[name].grid for name in config.learners)
    first = config.seeds[0]
    return (first, seed) if config.tune == "first" and searched and seed != first else (seed,)


def _outcomes(run: ComparisonRun, chosen: "ChosenSeeds") -> list[SeedRecord]:
    """The chosen seeds' outcomes, in order; finished ones are read back."""
    experiment, config = run.experiment, run.experiment.config
    work = {}
    for seed in chosen.seeds:
        first = seed == chosen.seeds[0]
        # A rate that the choice of a seed has found is for that seed alone.
        found = tuple(chosen.rates) if first else ()
        work[seed] = SeedWork(experiment, run.drawn[seed], first or config.tune == "each", found)
    run.progress.start(sum(passes(one.parts()) for one in work.values()))
    outcomes: list[SeedRecord] = []
    for seed in chosen.seeds:
        inputs = run.inputs(list(dict.fromkeys((*seeds_behind(config, seed)[:-1], seed))))
        piece = run.pieces.get(piece_name(seed), inputs)
        if piece is None:
            known = chosen.rates if not outcomes else ({} if config.tune == "each" else outcomes[0].rates)
            outcome = compute_seed(run, seed, inputs, known, chosen, work[seed])
            run.pieces.put(outcome.to_piece())
        else:
            outcome = SeedRecord.from_piece(piece)
            run.progress.advance(passes(work[seed].parts()), f"seed {seed} was finished earlier")
        outcomes.append(outcome)
    return outcomes
