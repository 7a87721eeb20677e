"""What a learner is, and all learners by name.

A learner adapts a model to demonstrations. It states what it needs and what it costs, so that a study can run it, leave
it out with a reason, plan it and draw it without knowing its name. To add one, subclass `Learner`, write `adapt`, and
name an instance in an entry point of the group `dualform.learners`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from dualform.models.cost.work import WeightChange, Work, WorkPart, encode, read, rows
from dualform.registry import Registry
from dualform.report.palette import LearnerStyle, style_of

if TYPE_CHECKING:
    # Settings name learners, and are checked before torch is loaded.
    from dualform.learners.adapted import Adapted
    from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
    from dualform.models.reading.language_model import LanguageModel, Readings
    from dualform.models.reading.layout import Probe, Query
    from dualform.result import Similarity
    from dualform.tasks.demonstrations import Demonstrations
    from dualform.tasks.task import Task


class Setup(Protocol):
    """What all learners of a run share."""

    @property
    def lm(self) -> LanguageModel:
        """The model, its weights as they were loaded."""
        ...

    @property
    def task(self) -> Task:
        """The task, all of its splits."""
        ...

    @property
    def encoder(self) -> Encoder:
        """Turns the task's texts into tokens of the model."""
        ...

    @property
    def queries(self) -> tuple[Query, ...]:
        """The reported queries, without their labels."""
        ...

    @property
    def selection_queries(self) -> tuple[Query, ...]:
        """The queries on which settings are chosen."""
        ...

    @property
    def context(self) -> int:
        """Longest sequence, tokens."""
        ...

    @property
    def weights_digest(self) -> str:
        """Digest of all bytes of the model's weights as they were loaded."""
        ...

    @property
    def config(self) -> Any:
        """The study's settings, such as `ComparisonConfig`."""
        ...


class DemonstrationSet(Protocol):
    """One seed's demonstrations."""

    @property
    def demonstrations(self) -> Demonstrations:
        """Examples, labels shown, seed."""
        ...

    @property
    def encoded(self) -> EncodedDemonstrations:
        """The same as tokens."""
        ...


@dataclass(frozen=True)
class AdaptationContext:
    """What a learner is given to adapt a model."""

    setup: Setup
    drawn: DemonstrationSet
    rate: float | None = None
    """Learning rate to train at, for learners that name a grid of them."""
    rounding_seed: int | None = None
    """Seed of a move of every trained weight by one unit in its last place before training; None trains the weights as
    they are. For learners that can be repeated."""
    report: Callable[[float], None] = lambda share: None
    """To be called with each further share of the work that is done; the shares add up to 1."""
    record: Callable[[Mapping[str, Any]], None] = lambda facts: None
    """To be called with facts about how the model was adapted, as JSON has them, to be kept with the seed's numbers."""

    @property
    def lm(self) -> LanguageModel:
        """The model."""
        return self.setup.lm

    @property
    def task(self) -> Task:
        """The task."""
        return self.setup.task

    @property
    def config(self) -> Any:
        """The study's settings."""
        return self.setup.config

    @property
    def demonstrations(self) -> Demonstrations:
        """The seed's demonstrations."""
        return self.drawn.demonstrations

    @property
    def encoded(self) -> EncodedDemonstrations:
        """The same as tokens."""
        return self.drawn.encoded

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens before every query, usually the beginning-of-sequence token alone."""
        return self.setup.encoder.opening

    @property
    def seed(self) -> int:
        """Demonstration seed, for learners that draw random numbers."""
        return self.drawn.demonstrations.seed

    def demonstration_queries(self) -> tuple[Query, ...]:
        """The demonstrations as queries, in order, for learners that read them one by one."""
        return tuple(self.setup.encoder.query(example) for example in self.drawn.demonstrations.examples)


class Learner(ABC):
    """A way to adapt a model to demonstrations, as a study runs it.

    The class attributes say what a learner needs; a study leaves it out, with that reason, where it cannot be had.
    """

    name: ClassVar[str]
    """Short name, as in `--learners` and in results: letters, digits and underscores."""

    title: ClassVar[str] = ""
    """In a table or a chart; the name where not given."""
    noun: ClassVar[str] = ""
    """In a sentence, such as `the nearest centroid`; the title where not given."""
    meaning: ClassVar[str] = ""
    """One sentence for a reader who does not know it."""
    colour: ClassVar[str | None] = None
    """CSS colour; one that is derived from the name where not given."""

    uses_demonstrations: ClassVar[bool] = True
    """False where all seeds give the same model."""
    needs_demonstrations: ClassVar[bool] = False
    """There is nothing to learn from with k = 0."""
    needs_label_words: ClassVar[bool] = False
    """Multiple choice with free-text candidates has no classes to learn."""
    changes_weights: ClassVar[bool] = False
    """Weights stored in 8 or 4 bits cannot be changed."""
    grid: ClassVar[str | None] = None
    """Setting that holds the learning rates to search, such as `rates`; None for learners without a learning rate."""
    can_repeat: ClassVar[bool] = False
    """`adapt` follows `AdaptationContext.rounding_seed`, so that a study can measure the effect of rounding."""
    answers_from: ClassVar[str | None] = None
    """A learner whose readings this one answers from (`AnswersFromReadings`), so that queries are not read twice."""
    compared_inside: ClassVar[bool] = False
    """Its change of the model's inside is compared with ICL's and FT's, where it is a change of weights."""

    @abstractmethod
    def adapt(self, context: AdaptationContext) -> Adapted:
        """Adapt the model; its weights are the same afterwards, bit for bit, also when this raises."""

    def check(self, lm: LanguageModel, config: Any) -> None:  # noqa: B027
        """Check before any work that the model allows this learner.

        Args:
            lm: The model.
            config: The study's settings.

        Raises:
            ModelError: It does not.
        """

    def prepare(self, setup: Setup) -> tuple[str, ...]:
        """Check before any work that all that is needed is there.

        Returns:
            What files of its own hold: a run that was stopped goes on only if they have not changed.

        Raises:
            DualformError: Something is missing.
        """
        return ()

    def prefix_length(self, context: AdaptationContext) -> int:
        """Tokens that stand before every query of the adapted model."""
        return len(context.opening)

    def work(self, context: AdaptationContext) -> Work:
        """What adapting once reads and trains; its cost, the progress bar and the plan are counted from this.

        By default: what stands before every query is read; with a `grid`, W_K and W_V are trained as FT trains them.
        """
        if self.grid is None:
            return encode(self.prefix_length(context))
        from dualform.learners.training_work import training_work

        return training_work(context.encoded, context.config.loss_on, opening=len(context.opening))

    def parts(self, context: AdaptationContext) -> list[WorkPart]:
        """The same part by part, for learners whose data decide how much is done."""
        return [WorkPart(self.name, self.work(context))]

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """What the adapted model's reading of queries takes."""
        work = read(queries, self.prefix_length(context), probe)
        if self.changes_weights:
            # Changes are applied anew for every group.
            work += (Work.of(WeightChange()) * len(rows(queries, probe))).uncharged
        return work

    def extra_bytes(self, setup: Setup) -> int:
        """Memory that adapting takes on top of that of a forward."""
        return 0

    def report(
        self, config: Any, facts: Sequence[Mapping[str, Any]], similarity: Mapping[str, Mapping[str, Similarity]]
    ) -> dict[str, Any]:
        """Fields of a comparison's result that describe how the model was adapted and what that changed inside.

        Args:
            config: The study's settings.
            facts: What `AdaptationContext.record` was given, for each seed.
            similarity: `icl` or `ft` -> measure -> similarity to its update, for learners that are `compared_inside`.

        Returns:
            Field -> value; by default both, in `own` under the learner's name.
        """
        inside = {
            other: {name: one.model_dump(mode="json") for name, one in measures.items()}
            for other, measures in similarity.items()
        }
        return {"own": {self.name: {"facts": list(facts), "similarity": inside}}}

    def check_forwards(self, config: Any) -> int:
        """Short forwards of `check`."""
        return 0

    @property
    def style(self) -> LearnerStyle:
        """How charts, tables and sentences show it."""
        return style_of(self.name, self.title, self.noun, self.meaning, self.colour)


class AnswersFromReadings(Protocol):
    """An adapted model that can answer from another one's readings of the same queries."""

    def answer(self, readings: Readings) -> Readings:
        """The readings with this model's answers in the place of the other one's."""
        ...


LEARNERS = Registry("dualform.learners", "learner", Learner)  # type: ignore[type-abstract]
"""All learners: dualform's own and those of other packages."""
