"""What a control is, and all controls by name.

A control replaces ICL or FT, to show what a measure says when nothing, or the same thing, was learned. Its record
states what it replaces and how it is displayed; it is made from learners, with the tools of a `ControlBuilder`, when a
seed is run. To add one, subclass `Control`, write `make`, and name an instance in an entry point of the group
`dualform.controls`. Nothing here loads torch, since settings name controls.
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
        """Measures (`control/NAME/MEASURE`) and answers of one group of queries.

        Args:
            experiment: Model, task, settings.
            indices: The group.
            zsl: Zero-shot readings of it.
            sides: `icl` and `ft` as they are.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class ControlFacts(ControlTitle):
    """What a control is, apart from how it is made."""

    beside: Literal["icl", "ft"] = "icl"
    """The side that it is compared with."""
    place: Literal["first", "second"] = "second"
    """Whose place it takes in the measures: `first` is ICL's."""
    answers: tuple[str, str, str] | None = None
    """Whose answers are before, first and second, for measures of answers such as Rec2FTP; None: zero-shot's, this
    control's and those of the side beside it."""
    moves_states: bool = True
    """False for models that hardly move: a floor of measures of change alone, since the states of two models that have
    not left their start are similar in any case."""
    same_quantity: bool = True
    """False where its number is another quantity than the measure, so that it is no point on the measure's scale."""
    against_itself: bool = False
    """It compares one side with itself: no floor for anything."""

    @property
    def compared_answers(self) -> tuple[str, str, str]:
        """Whose answers are before, first and second."""
        if self.answers is not None:
            return self.answers
        return ("zsl", self.name, self.beside) if self.place == "first" else ("zsl", self.beside, self.name)

    @property
    def titles(self) -> tuple[ControlTitle, ...]:
        """What pages and tables name; nothing for a control that is reported in a place of its own."""
        return () if self.kind is None else (self,)


@dataclass(frozen=True, kw_only=True)
class Control(ControlFacts, ABC):
    """A control as a comparison runs it."""

    companions: tuple[ControlFacts, ...] = ()
    """Further controls that are read along with this one, under names of their own."""

    @abstractmethod
    def make(self, builder: ControlBuilder) -> Iterable[ReadyControl]:
        """The control for one seed, one stand-in for most.

        Raises:
            DualformError: It cannot be made from these demonstrations; the comparison goes on without it and says so.
        """

    def check(self, lm: LanguageModel) -> None:
        """Check before any work that it can be made from this model.

        Raises:
            ModelError: It cannot.
        """

    def prepare(self, config: ComparisonConfig) -> None:
        """Check before any work that all that its settings name is there.

        Raises:
            DualformError: Something is missing.
        """

    def work(self, about: ControlWork) -> ControlPlan | None:
        """What making and reading it takes; None where it cannot be made. Plan and progress bar count from this."""
        return ControlPlan(reading=about.reading(about.opening))

    def kept_changes(self, config: ComparisonConfig) -> int:
        """Changes of weight that it keeps until it has read."""
        return 0

    def kept_models(self) -> int:
        """Whole models that it keeps until it has read."""
        return 0

    def check_forwards(self) -> int:
        """Short forwards of `check`."""
        return 0

    @property
    def titles(self) -> tuple[ControlTitle, ...]:
        """Its own, then those of its companions."""
        return (*super().titles, *(title for one in self.companions for title in one.titles))


@dataclass(frozen=True)
class ControlPlan:
    """The work of a control."""

    making: Work = NO_WORK
    reading: Work = NO_WORK
    least: Work | None = None
    """Where the data decide how much is done: what making it takes in any case."""
    why: tuple[str, ...] = ()
    """What decides it."""

    def part(self, name: str) -> WorkPart:
        """All of it, as a part of a run."""
        least = None if self.least is None else self.least + self.reading
        return WorkPart(name, self.making + self.reading, least, why=self.why)


CONTROLS: Registry[Any] = Registry("dualform.controls", "control", Control)
"""All controls: dualform's own and those of other packages."""


def facts_of(name: str) -> ControlFacts | None:
    """The facts of a control or of one of a control's companions; None where no such control is known here."""
    found = CONTROLS.get(name)
    if found is not None:
        return found
    companions = (companion for own in CONTROLS.names() for companion in CONTROLS[own].companions)
    return next((companion for companion in companions if companion.name == name), None)


def names_of_kind(kind: ControlKind) -> tuple[str, ...]:
    """Controls and companions of a kind, in order."""
    records = [CONTROLS[name] for name in CONTROLS.names()]
    facts = [one for record in records for one in (record, *record.companions)]
    chance = (CHANCE.name,) if kind == CHANCE.kind else ()
    return (*(one.name for one in facts if one.kind == kind), *chance)
