"""The interface of a learner, and the registry of all learners.

A learner adapts a model to demonstrations. It declares what it needs and what it costs, so that a study can run it,
plan it, draw it, or leave it out with a reason, whatever its name. To add one, subclass `Learner`, implement `adapt`,
and register an instance under the entry point group `dualform.learners`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from dualform.models.cost.work import QueryPass, WeightChange, Work, WorkPart, encode, read, rows
from dualform.registry import Registry
from dualform.report.palette import LearnerStyle, style_of

if TYPE_CHECKING:
    # Not imported at run time: settings name learners, and are checked before torch is imported.
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
        """The model, with its original weights."""
        ...

    @property
    def task(self) -> Task:
        """The task with all splits."""
        ...

    @property
    def encoder(self) -> Encoder:
        """Encodes the task's texts as tokens of the model."""
        ...

    @property
    def queries(self) -> tuple[Query, ...]:
        """The queries that are reported, without labels."""
        ...

    @property
    def selection_queries(self) -> tuple[Query, ...]:
        """The queries on which settings are chosen."""
        ...

    @property
    def context(self) -> int:
        """Most tokens that a sequence may have: the setting `context`, or the model's limit if that is lower."""
        ...

    @property
    def weights_digest(self) -> str:
        """Digest of the model's original weights."""
        ...

    @property
    def config(self) -> Any:
        """The study's settings, such as `ComparisonConfig`."""
        ...


class DemonstrationSet(Protocol):
    """One seed's demonstrations."""

    @property
    def demonstrations(self) -> Demonstrations:
        """The examples, their labels as shown, and the seed."""
        ...

    @property
    def encoded(self) -> EncodedDemonstrations:
        """The demonstrations as tokens."""
        ...

    @property
    def labelled(self) -> Demonstrations:
        """All labelled examples that may be used; with a budget of labels, also those outside the prompt."""
        ...

    @property
    def encoded_labelled(self) -> EncodedDemonstrations:
        """All labelled examples as tokens: `sequences` has all of them, `prefix` only those in the prompt."""
        ...


@dataclass(frozen=True)
class LabelUse:
    """Number of labels that a learner uses."""

    shown: int = 0
    """Labels in the prompt."""
    trained: int = 0
    """Labels that it trains on."""
    selected: int = 0
    """Labels on which its settings are chosen."""
    total: int = 0
    """Different labels in all of these."""


@dataclass(frozen=True)
class AdaptationContext:
    """The arguments of `Learner.adapt`."""

    setup: Setup
    drawn: DemonstrationSet
    """The demonstrations of one seed."""
    rate: float | None = None
    """Learning rate, for learners with a `grid`."""
    rounding_seed: int | None = None
    """Seed of a perturbation of every trained weight by one unit in its last place before training; None trains the
    original weights. For learners with `can_repeat`."""
    report: Callable[[float], None] = lambda share: None
    """Reports progress: call it with each further share of the work that is done; all shares add up to 1."""
    record: Callable[[Mapping[str, Any]], None] = lambda facts: None
    """Stores facts about the adaptation, as JSON values, with the numbers of this seed."""

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
        """The demonstrations of this seed."""
        return self.drawn.demonstrations

    @property
    def encoded(self) -> EncodedDemonstrations:
        """The demonstrations as tokens."""
        return self.drawn.encoded

    @property
    def labelled(self) -> Demonstrations:
        """All labelled examples of this seed: the demonstrations, or with a budget of labels all that it buys."""
        return self.drawn.labelled

    @property
    def encoded_labelled(self) -> EncodedDemonstrations:
        """All labelled examples as tokens; `sequences` are those to train on."""
        return self.drawn.encoded_labelled

    @property
    def opening(self) -> tuple[int, ...]:
        """Tokens before every query, usually only the beginning-of-sequence token."""
        return self.setup.encoder.opening

    @property
    def seed(self) -> int:
        """The demonstration seed, for learners that draw random numbers."""
        return self.drawn.demonstrations.seed

    def demonstration_queries(self) -> tuple[Query, ...]:
        """The demonstrations as queries, for learners that read them one by one."""
        return tuple(self.setup.encoder.query(example) for example in self.drawn.demonstrations.examples)

    def labelled_queries(self) -> tuple[Query, ...]:
        """All labelled examples as queries, in the order of `labelled`."""
        return tuple(self.setup.encoder.query(example) for example in self.drawn.labelled.examples)


class Learner(ABC):
    """A way to adapt a model to demonstrations, as run by a study.

    The class attributes declare what a learner needs. A study that cannot provide it leaves the learner out and reports
    the reason.
    """

    name: ClassVar[str]
    """Short name for `--learners` and results: letters, digits and underscores."""

    title: ClassVar[str] = ""
    """Name in tables and charts; default: `name`."""
    noun: ClassVar[str] = ""
    """Name in sentences, such as `the nearest centroid`; default: `title`."""
    meaning: ClassVar[str] = ""
    """One sentence that explains the learner to readers of a report."""
    colour: ClassVar[str | None] = None
    """CSS colour in charts; by default derived from the name."""

    uses_demonstrations: ClassVar[bool] = True
    """False if the adapted model is the same for all seeds."""
    needs_demonstrations: ClassVar[bool] = False
    """Whether the learner cannot run with k = 0."""
    needs_label_words: ClassVar[bool] = False
    """Whether the learner needs classes, which multiple choice with free-text candidates does not have."""
    changes_weights: ClassVar[bool] = False
    """Whether the learner changes weights, which is not possible for weights in 8 or 4 bits."""
    grid: ClassVar[str | None] = None
    """Name of the setting with the learning rates to search, such as `rates`; None without a learning rate."""
    can_repeat: ClassVar[bool] = False
    """Whether `adapt` uses `AdaptationContext.rounding_seed`, so that a study can measure the effect of rounding."""
    answers_from: ClassVar[str | None] = None
    """Name of a learner from whose readings this one can answer (`AnswersFromReadings`), to avoid reading twice."""
    trains_on: ClassVar[Literal["nothing", "demonstrations", "labelled"]] = "nothing"
    """The labels that adapting trains on: none, as for prompting; the demonstrations in the prompt; or all labelled
    examples (`AdaptationContext.labelled`), which are more if a budget of labels does not fit into the prompt."""
    shows_demonstrations: ClassVar[bool] = False
    """Whether queries are read after the demonstrations."""
    compared_inside: ClassVar[bool] = False
    """Whether its weight changes are compared with the updates of ICL and FT inside the model."""

    @abstractmethod
    def adapt(self, context: AdaptationContext) -> Adapted:
        """Adapt the model to the demonstrations.

        The weights of `context.lm` must be restored afterwards, bit for bit, even if this raises.

        Returns:
            The adapted model; of a learner with a `grid`, an `AdaptedModel` trained at `context.rate`.
        """

    def check(self, lm: LanguageModel, config: Any) -> None:  # noqa: B027
        """Check, before any other work, that this learner can adapt the model.

        Args:
            lm: The model.
            config: The study's settings.

        Raises:
            ModelError: It cannot.
        """

    def prepare(self, setup: Setup) -> tuple[str, ...]:
        """Check, before any other work, that everything the learner needs is available.

        Returns:
            Digests of the learner's own files; a stopped run is resumed only if they are unchanged.

        Raises:
            DualformError: Something is missing.
        """
        return ()

    def prefix_length(self, context: AdaptationContext) -> int:
        """Number of tokens before every query of the adapted model."""
        return len(context.opening)

    def work(self, context: AdaptationContext) -> Work:
        """Work of adapting once, from which its cost, the progress bar and the plan are computed.

        By default: reading the prefix; with a `grid`, training W_K and W_V as FT does.
        """
        if self.grid is None:
            return encode(self.prefix_length(context))
        from dualform.learners.training_work import training_work

        return training_work(context.encoded_labelled, context.config.loss_on, opening=len(context.opening))

    def parts(self, context: AdaptationContext) -> list[WorkPart]:
        """The work in parts with bounds, for learners whose amount of work depends on the data."""
        return [WorkPart(self.name, self.work(context))]

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """Work of reading queries with the adapted model."""
        work = read(queries, self.prefix_length(context), probe)
        if self.changes_weights:
            # Weight changes are applied separately for every group.
            work += (Work.of(WeightChange()) * len(rows(queries, probe))).uncharged
        return work

    def query_passes(self, context: AdaptationContext, adapted: Adapted) -> tuple[QueryPass, ...]:
        """The passes of the model over one query, from which its cost is computed; none if it is not read."""
        return (QueryPass.after(adapted.n_prefix),)

    def labels_used(self, context: AdaptationContext) -> LabelUse:
        """Number of labels used in the prompt and in training; the study adds those on which settings are chosen."""
        k = context.demonstrations.k_effective
        in_prompt = k if self.shows_demonstrations else 0
        trained = {"nothing": 0, "demonstrations": k}.get(self.trains_on, len(context.labelled.examples))
        return LabelUse(in_prompt, trained, 0, max(in_prompt, trained))

    def extra_bytes(self, setup: Setup) -> int:
        """Memory that adapting needs in addition to a forward pass, bytes."""
        return 0

    def report(
        self, config: Any, facts: Sequence[Mapping[str, Any]], similarity: Mapping[str, Mapping[str, Similarity]]
    ) -> dict[str, Any]:
        """Fields of a comparison's result about the adaptation and its similarity to ICL and FT.

        Args:
            config: The study's settings.
            facts: For each seed, the facts passed to `AdaptationContext.record`.
            similarity: `icl` or `ft` -> measure -> similarity to that update, for learners with `compared_inside`.

        Returns:
            Field -> value; by default `own`, with facts and similarity under the learner's name.
        """
        inside = {
            other: {name: value.model_dump(mode="json") for name, value in measures.items()}
            for other, measures in similarity.items()
        }
        return {"own": {self.name: {"facts": list(facts), "similarity": inside}}}

    def check_forwards(self, config: Any) -> int:
        """Number of short forwards that `check` runs."""
        return 0

    @property
    def style(self) -> LearnerStyle:
        """Its names and colour in charts, tables and sentences."""
        return style_of(self.name, self.title, self.noun, self.meaning, self.colour)


class AnswersFromReadings(Protocol):
    """An adapted model that can answer from another model's readings of the same queries."""

    def answer(self, readings: Readings) -> Readings:
        """Replace the answers in the other model's readings by this model's."""
        ...


LEARNERS = Registry("dualform.learners", "learner", Learner)  # type: ignore[type-abstract]
"""All learners, including those of other packages."""
