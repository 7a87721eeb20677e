"""What the seeds of one comparison share: model and task, demonstrations, and what can be run at all."""

from collections.abc import Sequence
from dataclasses import dataclass

from dualform.learners.base import LEARNERS
from dualform.learners.reading_cache import ReadingCache
from dualform.models.loading.quantized import WHY
from dualform.models.reading.language_model import LanguageModel
from dualform.progress import Progress
from dualform.studies.comparison.arms import possible_arms
from dualform.studies.comparison.config import COMPARED, ComparisonConfig
from dualform.studies.controls import CONTROLS
from dualform.studies.experiment import DemonstrationSet, Experiment, digest
from dualform.studies.measures import MEASURES
from dualform.studies.pieces import PieceStore
from dualform.tasks.task import Task


@dataclass(frozen=True)
class ComparisonRun:
    """What the steps of one comparison share."""

    experiment: Experiment[ComparisonConfig]
    notes: tuple[str, ...]
    drawn: dict[int, DemonstrationSet]
    inputs_of_learners: tuple[str, ...]
    """What files of the learners hold."""
    pieces: PieceStore
    progress: Progress
    memory: ReadingCache | None

    @classmethod
    def of(
        cls,
        config: ComparisonConfig,
        lm: LanguageModel | None,
        task: Task | None,
        seeds: tuple[int, ...],
        pieces: PieceStore,
        progress: Progress,
        memory: ReadingCache | None,
    ) -> "ComparisonRun":
        """Set up model, task and demonstrations, loading what is not given.

        Raises:
            DualformError: Something cannot be used: settings, model, task, or texts that do not fit.
        """
        task = task or config.load_task()
        experiment, notes = set_up(config, lm or config.load_model(config.model), task)
        # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
        drawn = experiment.draw_all(seeds)
        read = tuple(text for name in experiment.config.learners for text in LEARNERS[name].prepare(experiment))
        return cls(experiment, notes, drawn, read, pieces, progress, memory)

    def inputs(self, seeds: Sequence[int]) -> str:
        """Digest of all that these seeds' numbers are computed from."""
        return digest(self.experiment, [self.drawn[seed] for seed in seeds], self.inputs_of_learners)


def set_up(
    config: ComparisonConfig, lm: LanguageModel, task: Task
) -> tuple[Experiment[ComparisonConfig], tuple[str, ...]]:
    """Choose queries, and leave out learners and controls that cannot be run.

    Returns:
        The shared setup, and notes on what was left out and why.

    Raises:
        DualformError: An arm that was asked for by name, or what another package adds, cannot be used.
    """
    arms = possible_arms(lm, config)
    notes = list(arms.notes)
    learners, controls = arms.learners, arms.controls
    if task.is_multiple_choice and (idle := [name for name in learners if LEARNERS[name].needs_label_words]):
        learners = tuple(name for name in learners if name not in idle)
        notes += [f"The {name} was left out: free-text choices have no classes to regress on." for name in idle]
    if lm.quantized is not None:
        changing = [name for name in learners if LEARNERS[name].changes_weights]
        learners = tuple(name for name in learners if name not in changing)
        left_out = f" {', '.join(changing)} and the measures that need them were left out." if changing else ""
        notes.append(
            f"Weights are stored in {lm.quantized}: {WHY}, so only accuracy is reported, and answers may differ from "
            f"those of unrounded weights.{left_out}"
        )
        if lm.quantized == "8 bit":
            notes.append(
                "8-bit products use all tokens of a row, so that an answer depends a little on its neighbours."
            )
    if controls and (config.k == 0 or not set(COMPARED) <= set(learners)):
        controls = ()
        notes.append("No controls were run: they need zero-shot, ICL and FT, and at least one demonstration.")
    for name in controls:
        CONTROLS[name].prepare(config)
    for name in MEASURES.names():
        # One of another package that cannot be loaded is reported before any work is done.
        MEASURES[name]
    config = config.model_copy(update={"learners": learners, "controls": controls})
    paper = task.paper_split if config.preset == "dai2023" else None
    experiment = Experiment.of(config, lm, task, report_split=paper, select_on=config.select_on)
    if config.select_on == "report":
        notes.append(
            "Learning rates were chosen on the very queries that are reported, as the paper does: this flatters FT."
        )
    return experiment, tuple(notes)
