"""Saving one learner of a finished run, as files that answer queries without dualform.

The learner is adapted again, with the run's settings, seed and learning rate. Its answers are compared with those of
the run, and with those of the written files in a fresh process, before anything is put into place.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dualform.errors import ConfigError, ModelError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.saved_parts import SavedParts
from dualform.models.export.checkpoint import check_target
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.result import Result
from dualform.studies.experiment import Experiment
from dualform.studies.learner_config import LearnersConfig
from dualform.studies.learner_training import LearnerProgress, count_labels, train_learner
from dualform.studies.saved_choice import find_learner, require_same_answers
from dualform.studies.saved_files import Form, LearnerFiles, check_folder, holds_weights
from dualform.tasks.task import Task

VERIFIED_QUERIES = 8
"""Queries whose answers are compared."""
_ADAPTING, _WRITING = 2.0, 1.0
"""Shares of the progress bar, roughly."""
_SILENT = SilentProgress()


@dataclass(frozen=True)
class Saved:
    """A saved learner."""

    folder: Path
    what: str
    """What the folder holds, such as `a checkpoint`."""
    seed: int
    labels: int
    """Number of labels that it used, those on which its settings were chosen included."""
    accuracy: float | None
    """Its accuracy in the run, with this seed, in [0, 1]."""
    n: int
    """Number of queries of that accuracy."""
    difference: float
    """Largest difference of log-probabilities between this process and a fresh one, nats."""


@ordinary_torch()
def save_learner(
    run: Path,
    result: Result,
    learner: str,
    folder: Path,
    *,
    seed: int | None = None,
    labels: int | None = None,
    form: Form = "checkpoint",
    rank: int | None = None,
    overwrite: bool = False,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    progress: Progress = _SILENT,
) -> Saved:
    """Adapt a learner of a run again, and write it.

    Args:
        run: The run's folder; `examples.parquet` in it has the answers that are compared.
        result: The run's result.
        learner: Name of the learner.
        folder: Destination, which is written completely or not at all.
        seed: As in `find_learner`.
        labels: As in `find_learner`.
        form: How changed weights are written: as a checkpoint of the whole model, or as a LoRA adapter.
        rank: Rank of the adapter; None for that of the settings of lora.
        overwrite: Whether to replace what an earlier save wrote.
        lm: The model, if it is already loaded.
        task: The task, if it is already loaded.
        progress: Receives the work done.

    Raises:
        ConfigError: The run, learner or folder cannot be used.
        ModelError: The learner cannot be saved, or the run's model or data have changed.
    """
    choice = find_learner(result, learner, seed, labels)
    config, entry = choice.config, LEARNERS[learner]
    if form == "lora" and not entry.changes_weights:
        raise ConfigError(
            f"the learner {learner} changes no weights, so there is no adapter of it: leave out --as lora"
        )
    if rank is not None and form != "lora":
        raise ConfigError(f"rank {rank} is that of an adapter, but a checkpoint is to be written: add --as lora")
    check_folder(folder, overwrite)
    task = task or config.load_task()
    if task.label_words is None:
        raise ConfigError(
            f"task {task.name!r} is multiple choice: a learner can be saved only for a task with label words"
        )
    lm = lm or config.load_model(config.model)
    if holds_weights(folder) or not folder.exists():
        check_target(lm, folder, overwrite)
    experiment = Experiment.of(config, lm, task, report_split=_split(result), select_on=_select_on(config))
    drawn = experiment.draw(choice.seed)
    entry.check(lm, config)
    entry.prepare(experiment)
    progress.start(_ADAPTING + _WRITING)
    report = LearnerProgress(progress, _ADAPTING, f"adapting {learner}")
    context = AdaptationContext(experiment, drawn, report=report)
    queries = experiment.queries[:VERIFIED_QUERIES]
    adapted: Any
    with lm.packed_products():
        if entry.grid is None:
            adapted = entry.adapt(context)
        else:
            adapted = train_learner(experiment, entry, context, choice.rate).best
        table = answer_log_probabilities(adapted, lm, queries)
    report(1.0 - report.share)
    if not hasattr(adapted, "saved_parts"):
        raise ModelError(
            f"the learner {learner} cannot be saved: it does something at every query that plain transformers does "
            "not. Save another learner of the run."
        )
    parts: SavedParts = adapted.saved_parts()
    require_same_answers(run, experiment, choice, table)
    progress.advance(0.0, "writing, and reading in a fresh process")
    n_labels = count_labels(experiment, entry, drawn).total
    files = LearnerFiles(experiment, drawn, choice, parts, n_labels, table)
    difference, what = files.write(folder, form, rank or config.lora.rank, overwrite)
    progress.advance(_WRITING, "written")
    return Saved(folder, what, choice.seed, n_labels, choice.accuracy, len(experiment.queries), difference)


def _split(result: Result) -> str | None:
    """The split of the run's queries."""
    split = result.task.get("report_split")
    return None if split is None else str(split)


def _select_on(config: LearnersConfig) -> Literal["validation", "report"]:
    return "report" if getattr(config, "select_on", "validation") == "report" else "validation"
