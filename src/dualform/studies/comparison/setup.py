"""The setup that all seeds of a comparison share: model, task, demonstrations, and the learners that can be run."""

from collections.abc import Sequence
from dataclasses import dataclass

from dualform.learners.base import LEARNERS
from dualform.learners.reading_cache import ReadingCache
from dualform.models.loading.quantized import UPDATES_LOST
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
    """The shared state of one comparison's steps."""

    experiment: Experiment[ComparisonConfig]
    notes: tuple[str, ...]
    drawn: dict[int, DemonstrationSet]
    inputs_of_learners: tuple[str, ...]
    """Contents of the files that learners read."""
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
        """Set up model, task and demonstrations; a model or task that is None is loaded.

        Raises:
            DualformError: The settings, model or task cannot be used, or texts do not fit into the context.
        """
        task = task or config.load_task()
        experiment, notes = set_up(config, lm or config.load_model(config.model), task)
        # Draw first, so that texts that do not fit are reported before any work is done.
        drawn = experiment.draw_all(seeds)
        texts = tuple(text for name in experiment.config.learners for text in LEARNERS[name].prepare(experiment))
        return cls(experiment, notes, drawn, texts, pieces, progress, memory)

    def inputs(self, seeds: Sequence[int]) -> str:
        """Digest of everything that these seeds' numbers are computed from."""
        return digest(self.experiment, [self.drawn[seed] for seed in seeds], self.inputs_of_learners)


def set_up(
    config: ComparisonConfig, lm: LanguageModel, task: Task
) -> tuple[Experiment[ComparisonConfig], tuple[str, ...]]:
    """Choose queries, and leave out learners and controls that cannot be run.

    Returns:
        The shared setup, and notes on what was left out and why.

    Raises:
        DualformError: A learner or control that was requested by name, or one of another package, cannot be used.
    """
    arms = possible_arms(lm, config)
    notes = list(arms.notes)
    learners, controls = arms.learners, arms.controls
    if task.is_multiple_choice and (excluded := [name for name in learners if LEARNERS[name].needs_label_words]):
        learners = tuple(name for name in learners if name not in excluded)
        notes += [f"The {name} was left out: free-text choices have no classes to predict." for name in excluded]
    if lm.quantized is not None:
        changing = [name for name in learners if LEARNERS[name].changes_weights]
        learners = tuple(name for name in learners if name not in changing)
        left_out = f" {', '.join(changing)} and the measures that need them were left out." if changing else ""
        notes.append(
            f"Weights are stored in {lm.quantized}: {UPDATES_LOST}, so only accuracy is reported, and answers may "
            f"differ from those of unrounded weights.{left_out}"
        )
        if lm.quantized == "8 bit":
            notes.append(
                "8-bit products depend on all tokens of a batch row, so answers depend slightly on the other queries."
            )
    if controls and (config.k == 0 or not set(COMPARED) <= set(learners)):
        controls = ()
        notes.append("No controls were run: they need zero-shot, ICL and FT, and at least one demonstration.")
    for name in controls:
        CONTROLS[name].prepare(config)
    for name in MEASURES.names():
        # Load each measure, so that a broken one of another package is reported before any work is done.
        MEASURES[name]
    config = config.model_copy(update={"learners": learners, "controls": controls})
    paper = task.paper_split if config.preset == "dai2023" else None
    experiment = Experiment.of(config, lm, task, report_split=paper, select_on=config.select_on)
    if config.select_on == "report":
        notes.append(
            "Learning rates were chosen on the reported queries, as in the paper, so FT's accuracy is biased upwards."
        )
    return experiment, tuple(notes)
