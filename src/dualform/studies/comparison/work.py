"""The work of a comparison, computed before it runs, for the plan and the progress bar."""

from __future__ import annotations

import random
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from dualform.errors import DualformError
from dualform.learners.base import LEARNERS, AdaptationContext, Learner
from dualform.learners.training_work import training_work
from dualform.models.cost.work import MeasureComputation, Work, WorkPart, encode, read, rows
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.layout import Query
from dualform.studies.comparison.config import FINETUNED, ComparisonConfig
from dualform.studies.comparison.controls import ControlBuilder
from dualform.studies.controls import CONTROLS, ControlPlan
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_training import training_part
from dualform.studies.work import TRIAL_QUERIES, read_changed, search_part, trial_queries

UNSTABLE = "a search repeats other rates if the best one is not stable"
"""Why the time of repeating a training is a range."""


def controlled_queries(experiment: Experiment[ComparisonConfig]) -> list[int]:
    """Indices of the queries that controls and the repeated finetuning read, in order."""
    config, n = experiment.config, len(experiment.queries)
    limit = n if config.control_limit is None else min(n, config.control_limit)
    needed = bool(config.controls) or config.repeats_finetuning
    return sorted(random.Random(1).sample(range(n), limit)) if needed else []


def query_groups(experiment: Experiment[ComparisonConfig]) -> list[tuple[list[int], bool]]:
    """Groups of query indices, each with whether controls and the repeated finetuning read it too."""
    controlled_indices = controlled_queries(experiment)
    rest = sorted(set(range(len(experiment.queries))) - set(controlled_indices))
    groups = []
    for indices, controlled in ((controlled_indices, True), (rest, False)):
        queries = [experiment.queries[i] for i in indices]
        groups += [
            ([indices[i] for i in group], controlled)
            for group in experiment.lm.groups(queries, experiment.config.probe)
        ]
    return groups


def passes(parts: Iterable[WorkPart]) -> float:
    """Total work in the unit of the progress bar."""
    return sum(part.work.passes for part in parts)


@dataclass(frozen=True)
class SeedWork:
    """The work of one seed of a comparison."""

    experiment: Experiment[ComparisonConfig]
    drawn: DemonstrationSet
    searching: bool
    """Whether learning rates are searched for, except those of `known`."""
    known: Collection[str] = ()
    """Learners whose learning rate was found while choosing the seed."""

    @property
    def config(self) -> ComparisonConfig:
        """The study's settings."""
        return self.experiment.config

    @property
    def opening(self) -> int:
        """Number of tokens that begin every sequence."""
        return len(self.experiment.encoder.opening)

    @property
    def context(self) -> AdaptationContext:
        """The learners' input."""
        return AdaptationContext(self.experiment, self.drawn)

    def adapting(self, name: str) -> list[WorkPart]:
        """Adapting a learner, with the learning rate search if there is one."""
        learner = LEARNERS[name]
        if learner.grid is None:
            return learner.parts(self.context)
        return [self.training(learner, known=not self.searching or name in self.known)]

    def training(self, learner: Learner, *, known: bool, label: str | None = None) -> WorkPart:
        """Training a learner at one known rate, or at each rate of its grid."""
        return training_part(self.experiment, learner, self.context, known=known, label=label)

    def reading(self, name: str, indices: Sequence[int]) -> Work:
        """Reading one group of the reported queries; no work if the learner uses another one's readings."""
        learner, place = LEARNERS[name], self.config.learners.index(name)
        if learner.answers_from in self.config.learners[:place]:
            return Work()
        return learner.reading(self.context, [self.experiment.queries[i] for i in indices], self.config.probe)

    @property
    def repeats(self) -> bool:
        """Whether finetuning is repeated to measure the effect of rounding."""
        return self.config.repeats_finetuning and bool(self.drawn.encoded.sequences)

    def repeating(self, *, label: str = "repeating ft", searched: bool | None = None) -> WorkPart:
        """Repeating the finetuning, at the chosen rate, or at several rates to choose a stable one.

        Args:
            label: Name of the part.
            searched: Whether a search may repeat several rates; None if this seed's own search decides.
        """
        config = self.config
        searched = self.searching and FINETUNED not in self.known if searched is None else searched
        once = LEARNERS[FINETUNED].work(self.context)
        if not searched or config.rounding != "choose" or len(config.rates) == 1:
            return WorkPart(label, once)
        scored = once + read_changed(self.experiment.selection_queries, self.opening)
        # At most, every rate is repeated and the chosen one is trained once more.
        return WorkPart(label, scored, scored, scored * len(config.rates) + once, (UNSTABLE,))

    def reading_repeat(self, indices: Sequence[int]) -> Work:
        """Reading queries with the repeated model, and its measures with ICL and with FT."""
        queries = [self.experiment.queries[i] for i in indices]
        work = read_changed(queries, self.opening, self.config.probe)
        return work + self.measuring(queries, 2, relaxed=False) if self.config.compares_inside else work

    def measuring(self, queries: Sequence[Query], pairs: int, *, relaxed: bool = True) -> Work:
        """All measures of the queries, for a number of pairs of sides."""
        work = Work()
        n_tokens = len(self.drawn.encoded.content)
        for group in rows(queries, self.config.probe):
            widest = max(queries[i].width(self.config.probe) for i in group)
            work += Work.of(MeasureComputation(len(group), widest, n_tokens, relaxed))
            work += Work.of(MeasureComputation(len(group), widest, n_tokens, relaxed=False)) * (pairs - 1)
        return work

    @cached_property
    def controls(self) -> Mapping[str, ControlPlan]:
        """The work of each control that can be made."""
        if not (self.config.controls and self.config.compares_inside):
            return {}
        # The work of a control does not depend on the adapted models.
        builder = ControlBuilder(self.experiment, self.drawn, None, None, 0.0, {})  # type: ignore[arg-type]
        control_work = ControlWork(self, builder)
        plans = {}
        for name in self.config.controls:
            try:
                with warnings.catch_warnings():
                    # These warnings are issued when the control is made.
                    warnings.simplefilter("ignore")
                    plan = CONTROLS[name].work(control_work)
            except DualformError:
                # The comparison runs without this control, with a note.
                continue
            if plan is not None:
                plans[name] = plan
        return plans

    def parts(self) -> list[WorkPart]:
        """All parts of the seed's work."""
        parts = [part for name in self.config.learners for part in self.adapting(name)]
        groups = query_groups(self.experiment)
        reading = sum((self.reading(name, group) for name in self.config.learners for group, _ in groups), Work())
        parts.append(WorkPart("reading queries", reading))
        if self.repeats:
            parts.append(self.repeating())
            repeat = sum((self.reading_repeat(group) for group, controlled in groups if controlled), Work())
            parts.append(WorkPart("reading ft repeated", repeat))
        if self.config.compares_inside:
            # One pair is ICL and FT; each further learner forms a pair with both.
            pairs = 1 + 2 * sum(LEARNERS[name].compared_inside for name in self.config.learners)
            queries = [[self.experiment.queries[i] for i in group] for group, _ in groups]
            parts.append(WorkPart("measures", sum((self.measuring(group, pairs) for group in queries), Work())))
        return [*parts, *(plan.part(f"control {name}") for name, plan in self.controls.items())]

    def choosing(self) -> list[WorkPart]:
        """Computing the accuracy by which the seed may be chosen."""
        parts: list[WorkPart] = []
        for name in self.config.selecting:
            learner, label = LEARNERS[name], f"choosing a seed: {name}"
            if learner.grid is None:
                adapting = sum((part.work for part in learner.parts(self.context)), Work())
                reading = learner.reading(self.context, self.experiment.selection_queries, "prompt")
                parts.append(WorkPart(label, adapting + reading))
                continue
            parts.append(self.training(learner, known=False, label=label))
            if learner.can_repeat and self.repeats and self.config.rounding == "choose" and len(self.config.rates) > 1:
                parts.append(self.repeating(label=f"choosing a seed: repeating {name}", searched=True))
        return parts


@dataclass(frozen=True)
class ControlWork:
    """The work of making and reading a control, for one seed."""

    seed: SeedWork
    builder: ControlBuilder
    """A builder without adapted models, for the demonstrations that a control needs."""

    @property
    def experiment(self) -> Experiment[ComparisonConfig]:
        """Model, task and settings."""
        return self.seed.experiment

    @property
    def drawn(self) -> DemonstrationSet:
        """The seed's demonstrations."""
        return self.seed.drawn

    @property
    def opening(self) -> int:
        """Number of tokens that begin every sequence."""
        return self.seed.opening

    @property
    def queries(self) -> list[Query]:
        """The queries that controls read."""
        return [self.experiment.queries[i] for i in controlled_queries(self.experiment)]

    def reading(self, prefix: int, pairs: int = 1) -> Work:
        """Reading the queries after a prefix, and their measures for a number of pairs of sides."""
        return read(self.queries, prefix, self.experiment.config.probe) + self.measuring(pairs)

    def measuring(self, pairs: int = 1) -> Work:
        """The measures of the queries, without reading them."""
        return self.seed.measuring(self.queries, pairs, relaxed=False)

    def training(self, encoded: EncodedDemonstrations) -> Work:
        """Training once as FT does, and reading the opening with the changed weights."""
        return training_work(encoded, self.experiment.config.loss_on, opening=self.opening)

    def trying(self) -> Work:
        """Reading a few selection queries, as a check of a known rate."""
        return read_changed(trial_queries(self.experiment), self.opening)

    def few(self) -> Work:
        """Reading a few reported queries, as a check for non-finite answers."""
        return read_changed(self.experiment.queries[:TRIAL_QUERIES], self.opening)

    def prompted(self, prefix: int) -> ControlPlan:
        """A stand-in with a prefix of so many tokens."""
        return ControlPlan(encode(prefix), self.reading(prefix))

    def trained(self, encoded: EncodedDemonstrations) -> ControlPlan:
        """A stand-in that is trained as FT is, at FT's learning rate."""
        return ControlPlan(self.training(encoded) + self.trying(), self.reading(self.opening))

    def searched(self, training: Work, pairs: int = 1) -> ControlPlan:
        """A stand-in that is trained at a learning rate of its own."""
        config = self.experiment.config
        known = not self.seed.searching and config.tune != "each"
        part = search_part("", training, config.rates, self.experiment, known=known)
        return ControlPlan(part.work, self.reading(self.opening, pairs), part.least, part.why)

    def three_learners(self) -> ControlPlan:
        """Zero-shot, ICL and FT of another model."""
        encoded, probe = self.drawn.encoded, self.experiment.config.probe
        prefix = len(encoded.prefix)
        making = encode(self.opening) + encode(prefix) + self.training(encoded) + self.trying()
        answers = read(self.queries, self.opening, probe) + read(self.queries, prefix, probe)
        return ControlPlan(making, answers + self.reading(self.opening))
