"""The work of advice, computed before it runs, for the plan and the progress bar."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.models.cost.work import Work, WorkPart
from dualform.studies.advice.config import AdviceConfig
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_training import training_part


def passes(parts: Iterable[WorkPart]) -> float:
    """Total work in the unit of the progress bar."""
    return sum(part.work.passes for part in parts)


@dataclass(frozen=True)
class CellWork:
    """The work of all learners with one draw of one budget."""

    experiment: Experiment[AdviceConfig]
    drawn: DemonstrationSet

    @property
    def context(self) -> AdaptationContext:
        """The learners' input."""
        return AdaptationContext(self.experiment, self.drawn)

    def adapting(self, name: str) -> list[WorkPart]:
        """Adapting a learner, with the choice of its learning rate if there are several."""
        learner = LEARNERS[name]
        if learner.grid is None:
            return learner.parts(self.context)
        return [training_part(self.experiment, learner, self.context, known=False)]

    def reading(self, name: str, indices: Sequence[int]) -> Work:
        """Reading one group of queries; no work if the learner uses another one's readings."""
        learner, names = LEARNERS[name], self.experiment.config.learners
        if learner.answers_from in names[: names.index(name)]:
            return Work()
        return learner.reading(self.context, [self.experiment.queries[index] for index in indices], "prompt")

    def parts(self, *, unchanged: bool = True) -> list[WorkPart]:
        """All parts.

        Args:
            unchanged: Whether learners that use no demonstrations are read too; they are read once for all cells.
        """
        names = self.experiment.config.learners
        parts = [part for name in names for part in self.adapting(name)]
        groups = self.experiment.lm.groups(self.experiment.queries)
        read = [name for name in names if unchanged or LEARNERS[name].uses_demonstrations]
        reading = sum((self.reading(name, group) for name in read for group in groups), Work())
        return [*parts, WorkPart("reading queries", reading)]
