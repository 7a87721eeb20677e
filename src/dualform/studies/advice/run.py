"""Runs every learner with every budget of labels, on several draws."""

import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, TrainingError, first_line
from dualform.learners.adapted import Adapted
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.reading_cache import CachedModel, ReadingCache
from dualform.models.reading.language_model import WITHOUT_WEIGHTS, LanguageModel, Readings
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress
from dualform.studies.advice.config import AdviceConfig
from dualform.studies.advice.result import AdviceResult
from dualform.studies.advice.summary import summarise
from dualform.studies.advice.work import CellWork, passes
from dualform.studies.answers import AnswerRows, answers_table
from dualform.studies.experiment import DemonstrationSet, Experiment, digest, query_cost
from dualform.studies.facts import TaskDescription
from dualform.studies.learner_training import LearnerProgress, count_labels, label_counts, refused, train_learner
from dualform.studies.pieces import Piece, PieceStore
from dualform.studies.reading_together import read_together
from dualform.studies.study import StudyContext, StudyOutput
from dualform.tasks.task import Task


@dataclass(frozen=True)
class AdviceCell:
    """All learners with one draw of one budget of labels; stored as one piece."""

    seed: int
    budget: int
    tables: dict[str, Tensor]
    """Learner -> log-probabilities of the answers, `(example, answer)`, nats a token."""
    rows: tuple[int, ...]
    """Row numbers of the labelled examples in the train split's file, those in the prompt first."""
    n_shown: int
    """Number of demonstrations in the prompt."""
    costs: dict[str, dict[str, float]]
    """Learner -> `adapt_seconds`, `adapt_flops`, `query_seconds`, `query_flops`."""
    labels: dict[str, dict[str, int]]
    """Learner -> the numbers of a `LabelCount`."""
    trials: list[dict[str, Any]] = field(default_factory=list)
    """The learning rates tried, as JSON values of `Trial`."""
    failed: dict[str, str] = field(default_factory=dict)
    """Learner that could not be adapted -> the reason, such as a training that diverged."""

    def to_piece(self, inputs: str) -> Piece:
        """The cell as a piece for the store."""
        about = {
            "seed": self.seed,
            "budget": self.budget,
            "rows": self.rows,
            "n_shown": self.n_shown,
            "costs": self.costs,
            "labels": self.labels,
            "trials": self.trials,
            "failed": self.failed,
        }
        return Piece(cell_name(self.seed, self.budget), inputs, self.tables, about)

    @classmethod
    def from_piece(cls, piece: Piece) -> "AdviceCell":
        """The cell from its piece."""
        about = dict(piece.about)
        return cls(tables=piece.tensors, **{**about, "rows": tuple(about["rows"])})


def without_learners(cell: AdviceCell, names: Collection[str]) -> AdviceCell:
    """The cell without the answers of some learners."""
    return replace(cell, tables={name: table for name, table in cell.tables.items() if name not in names})


def cell_name(seed: int, budget: int) -> str:
    """Name of a cell's piece in the store."""
    return f"seed {seed}, {budget} labels"


def run(config: AdviceConfig, context: StudyContext) -> StudyOutput:
    """Implements `Study.run`."""
    task = context.models.load_task(config)
    lm = context.models.load_model(config, config.model)
    result, answers = advise(config, lm, task, context.pieces, context.progress)
    return StudyOutput(result, answers)


@ordinary_torch()
def advise(
    config: AdviceConfig, lm: LanguageModel, task: Task, pieces: PieceStore, progress: Progress
) -> tuple[AdviceResult, pa.Table]:
    """Run all learners with all budgets, and recommend one for each budget.

    Args:
        config: The settings.
        lm: The model.
        task: The task.
        pieces: Store of finished cells, which are not computed again.
        progress: Receives the work done.

    Returns:
        The result; and a row for each answer to each query, with the columns `seed`, `labels`, `learner` and those of
        `answers_table`.

    Raises:
        DualformError: The settings, model or data cannot be used.
    """
    start = time.perf_counter()
    experiment, budgets, notes = set_up(config, lm, task)
    drawn = {(seed, budget): of_budget(experiment, budget).draw(seed) for seed in config.seeds for budget in budgets}
    texts = tuple(text for name in experiment.config.learners for text in LEARNERS[name].prepare(experiment))
    works = {cell: CellWork(of_budget(experiment, cell[1]), each) for cell, each in drawn.items()}
    amounts = {cell: passes(work.parts()) for cell, work in works.items()}
    progress.start(sum(amounts.values()))
    memory = ReadingCache()
    cells: list[AdviceCell] = []
    with lm.packed_products():
        for (seed, budget), demonstration_set in drawn.items():
            inputs = digest(experiment, [demonstration_set], texts)
            piece = pieces.get(cell_name(seed, budget), inputs)
            if piece is None:
                work = works[seed, budget]
                cell = _compute(work.experiment, demonstration_set, work, memory, progress)
                pieces.put(cell.to_piece(inputs))
            else:
                cell = AdviceCell.from_piece(piece)
                progress.advance(amounts[seed, budget], f"{cell_name(seed, budget)}: finished earlier")
            cells.append(cell)
    failed = {name: f"{name}: {reason}" for cell in cells for name, reason in cell.failed.items()}
    cells = [without_learners(cell, failed) for cell in cells]
    if len(cells[0].tables) < 2:
        raise TrainingError(f"Too few learners could be adapted to compare them. {' '.join(failed.values())}")
    description = TaskDescription.of(experiment, (*notes, *(f"Left out: {reason}" for reason in failed.values())))
    result = summarise(config, experiment, description, cells, budgets, seconds=time.perf_counter() - start)
    rows = (
        AnswerRows({"seed": cell.seed, "labels": cell.budget, "learner": name}, experiment.examples, table)
        for cell in cells
        for name, table in cell.tables.items()
    )
    return result, answers_table(description, rows)


def set_up(
    config: AdviceConfig, lm: LanguageModel, task: Task
) -> tuple[Experiment[AdviceConfig], tuple[int, ...], tuple[str, ...]]:
    """The experiment with the largest budget, all budgets, and notes on what was left out.

    Raises:
        ConfigError: No budget fits the train split; a learner that was requested by name cannot be run; or fewer than
            two learners can be run.
    """
    n_train = len(task.demonstration_pool)
    budgets = config.budgets_of(n_train)
    if not budgets:
        raise ConfigError(
            f"labels {', '.join(map(str, config.budgets or ()))}: train of task {task.name!r} has only {n_train} rows. "
            f"Give at most {n_train}."
        )
    notes = []
    if larger := [n for n in config.budgets or () if n > n_train]:
        notes.append(f"Left out: {', '.join(map(str, larger))} labels, because train has {n_train} rows.")
    impossible: dict[str, str] = {}
    if lm.route.name != WITHOUT_WEIGHTS:
        impossible = refused(config.learners, lambda name: LEARNERS[name].check(lm, config))
    if task.is_multiple_choice:
        reason = "free-text choices have no classes to predict."
        impossible |= {name: reason for name in config.learners if LEARNERS[name].needs_label_words}
    learners = tuple(name for name in config.learners if name not in impossible)
    if impossible and ("learners" in config.model_fields_set or len(learners) < 2):
        reasons = "; ".join(f"learner {name} is impossible here: {reason}" for name, reason in impossible.items())
        raise ConfigError(f"{reasons} Use --learners {','.join(learners) or 'zsl,icl'}.")
    notes += [f"Left out: {name}: {reason}" for name, reason in impossible.items()]
    largest = config.model_copy(update={"learners": learners}).with_budget(budgets[-1])
    return Experiment.of(largest, lm, task), budgets, tuple(notes)


def of_budget(experiment: Experiment[AdviceConfig], budget: int) -> Experiment[AdviceConfig]:
    """The same experiment with another budget."""
    return replace(experiment, config=experiment.config.with_budget(budget))


def _compute(
    experiment: Experiment[AdviceConfig],
    drawn: DemonstrationSet,
    work: CellWork,
    memory: ReadingCache,
    progress: Progress,
) -> AdviceCell:
    """Adapt and read with every learner."""
    config, seed = experiment.config, drawn.demonstrations.seed
    budget = len(drawn.labelled.examples)
    adapted: dict[str, Adapted] = {}
    costs: dict[str, dict[str, float]] = {}
    trials: list[dict[str, Any]] = []
    failed: dict[str, str] = {}
    for name in config.learners:
        learner = LEARNERS[name]
        doing = f"{cell_name(seed, budget)}: {name}"
        advance = LearnerProgress(progress, passes(work.adapting(name)), doing)
        context = AdaptationContext(experiment, drawn, report=advance)
        start = time.perf_counter()
        try:
            if learner.grid is None:
                adapted[name] = learner.adapt(context)
            else:
                search = train_learner(experiment, learner, context, None)
                adapted[name] = search.best
                trials += [trial.model_dump(mode="json") for trial in search.trials]
        except NumericalError as error:
            # The other learners are still worth comparing.
            failed[name] = first_line(error)
            advance(1.0 - advance.share)
            continue
        if not learner.uses_demonstrations:
            adapted[name] = CachedModel(adapted[name], memory, experiment.encoder.opening)
        advance(1.0 - advance.share)
        costs[name] = {
            "adapt_seconds": time.perf_counter() - start,
            "adapt_flops": adapted[name].cost.flops,
            "query_flops": query_cost(experiment, learner.query_passes(context, adapted[name]))["kept_flops"],
        }
    tables, seconds = _read(experiment, adapted, work, progress, cell_name(seed, budget))
    for name, spent in seconds.items():
        costs[name]["query_seconds"] = spent / len(experiment.queries)
    return AdviceCell(
        seed=seed,
        budget=budget,
        tables=tables,
        rows=drawn.labelled.rows,
        n_shown=drawn.demonstrations.k_effective,
        costs=costs,
        labels={name: label_counts(count_labels(experiment, LEARNERS[name], drawn)) for name in adapted},
        trials=trials,
        failed=failed,
    )


def _read_group(queries: Sequence[Any], indices: Sequence[int], _: str, adapted: Adapted) -> Readings:
    return adapted.read_group(queries, indices)


def _read(
    experiment: Experiment[AdviceConfig], adapted: dict[str, Adapted], work: CellWork, progress: Progress, where: str
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Every learner's answers to all queries, `(example, answer)`, and its seconds."""
    queries: Sequence[Any] = experiment.queries
    width = max(len(query.answers) for query in queries)
    tables = {name: torch.full((len(queries), width), -torch.inf, dtype=torch.float64) for name in adapted}
    seconds = dict.fromkeys(adapted, 0.0)
    for indices in experiment.lm.groups(queries):
        for name, readings, spent in read_together(adapted, partial(_read_group, queries, indices)):
            seconds[name] += spent
            table = readings.log_probabilities.double().cpu()
            tables[name][list(indices), : table.shape[1]] = table
            progress.advance(work.reading(name, indices).passes, f"{where}: reading queries")
    return tables, seconds
