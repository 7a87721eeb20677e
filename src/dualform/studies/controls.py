"""The base class of controls, and their registry.

A control replaces ICL or FT, to show which values a measure takes when nothing, or the same thing, was learned. Its
record states what it replaces and how it is displayed; a `ControlBuilder` makes it from learners when a seed is run.
To add one, subclass `Control`, write `make`, and register an instance as an entry point of the group
`dualform.controls`. This module does not load torch, because settings name controls.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dualform.models.cost.work import NO_WORK, Work, WorkPart
from dualform.registry import Registry
from dualform.report.measures import CHANCE, ControlKind, ControlTitle

if TYPE_CHECKING:
    from torch import Tensor

    from dualform.models.reading.language_model import LanguageModel, Readings
    from dualform.studies.comparison.config import ComparisonConfig
    from dualform.studies.comparison.controls import ControlBuilder
    from dualform.studies.comparison.work import ControlWork
    from dualform.studies.experiment import Experiment
    from dualform.studies.sides import Side


class ReadyControl(Protocol):
    """A control that is ready to read queries."""

    def read(
        self, experiment: Experiment[ComparisonConfig], indices: Sequence[int], zsl: Readings, sides: dict[str, Side]
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Measures (`control/NAME/MEASURE`) and answers for one group of queries.

        Args:
            experiment: Model, task and settings.
            indices: Indices of the group's queries.
            zsl: Zero-shot readings of the group.
            sides: The real sides, `icl` and `ft`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ControlFacts(ControlTitle):
    """Everything about a control except how it is made."""

    beside: Literal["icl", "ft"] = "icl"
    """The side that it is compared with."""
    place: Literal["first", "second"] = "second"
    """Which side of a measure it takes: `first` is ICL's, `second` is FT's."""
    answers: tuple[str, str, str] | None = None
    """Whose answers count as before, first and second, for measures of answers such as Rec2FTP. None: those of
    zero-shot, of this control and of the side that it is compared with."""
    moves_states: bool = True
    """False for models that hardly change. They are a floor only for measures of changes, since the states of two
    nearly unchanged models are similar in any case."""
    same_quantity: bool = True
    """False where its number is not comparable with the measure's, and so cannot be a point on its scale."""
    against_itself: bool = False
    """Whether it compares one side with itself, and so is never a floor."""

    @property
    def compared_answers(self) -> tuple[str, str, str]:
        """`answers`, or its default."""
        if self.answers is not None:
            return self.answers
        return ("zsl", self.name, self.beside) if self.place == "first" else ("zsl", self.beside, self.name)

    @property
    def titles(self) -> tuple[ControlTitle, ...]:
        """The titles for pages and tables; empty for a control that is reported separately."""
        return () if self.kind is None else (self,)


@dataclass(frozen=True, kw_only=True)
class Control(ControlFacts, ABC):
    """A control that a comparison can run."""

    companions: tuple[ControlFacts, ...] = ()
    """Further controls, with names of their own, that are read along with this one."""

    @abstractmethod
    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """Make the control for one seed; most controls consist of one part.

        Raises:
            DualformError: It cannot be made from these demonstrations; the comparison then runs without it and adds a
                warning.
        """

    def check(self, lm: LanguageModel) -> None:
        """Check, before any work, that it can be made from this model.

        Raises:
            ModelError: It cannot be made.
        """

    def prepare(self, config: ComparisonConfig) -> None:
        """Check, before any work, that everything its settings name exists.

        Raises:
            DualformError: Something is missing.
        """

    def work(self, about: ControlWork) -> ControlPlan | None:
        """The work of making and reading it, for plans and progress bars; None where it cannot be made."""
        return ControlPlan(reading=about.reading(about.opening))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """How many weight changes it holds until it has been read."""
        return 0

    def kept_models(self) -> int:
        """How many whole models it holds until it has been read."""
        return 0

    def check_forwards(self) -> int:
        """How many short forward passes `check` runs."""
        return 0

    @property
    def titles(self) -> tuple[ControlTitle, ...]:
        """The titles of the control and of its companions."""
        return (*super().titles, *(title for companion in self.companions for title in companion.titles))


@dataclass(frozen=True)
class ControlPlan:
    """The work of a control."""

    making: Work = NO_WORK
    reading: Work = NO_WORK
    least: Work | None = None
    """The least work of making it, where the data decide how much there is."""
    why: tuple[str, ...] = ()
    """What decides how much there is."""

    def part(self, name: str) -> WorkPart:
        """Making and reading together, as a part of a run."""
        least = None if self.least is None else self.least + self.reading
        return WorkPart(name, self.making + self.reading, least, why=self.why)


CONTROLS: Registry[Any] = Registry("dualform.controls", "control", Control)
"""All controls: dualform's own and those of other packages."""


def facts_of(name: str) -> ControlFacts | None:
    """The facts of a control or companion; None where no installed package has it."""
    control = CONTROLS.get(name)
    if control is not None:
        return control
    companions = (companion for known in CONTROLS.names() for companion in CONTROLS[known].companions)
    return next((companion for companion in companions if companion.name == name), None)


def names_of_kind(kind: ControlKind) -> tuple[str, ...]:
    """Names of the controls and companions of a kind, in order."""
    controls = [CONTROLS[name] for name in CONTROLS.names()]
    facts = [record for control in controls for record in (control, *control.companions)]
    chance = (CHANCE.name,) if kind == CHANCE.kind else ()
    return (*(record.name for record in facts if record.kind == kind), *chance)
