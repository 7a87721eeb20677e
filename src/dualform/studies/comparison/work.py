"""What a comparison reads and trains, described before it runs: the plan and the progress bar are counted from it."""

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
from dualform.studies.work import TRIAL_QUERIES, read_changed, search_part

UNSTABLE = "a search repeats other rates where the best one is not stable"
"""Why the time of repeating a training is a range."""


def controlled_queries(experiment: Experiment[ComparisonConfig]) -> list[int]:
    """The queries on which controls, and finetuning repeated, are read, in order."""
    config, n = experiment.config, len(experiment.queries)
    limit = n if config.control_limit is None else min(n, config.control_limit)
    wanted = bool(config.controls) or config.repeats_finetuning
    return sorted(random.Random(1).sample(range(n), limit)) if wanted else []


def query_groups(experiment: Experiment[ComparisonConfig]) -> list[tuple[list[int], bool]]:
    """Groups of queries, and whether controls and repeated trainings read them too: those do not mix with others."""
    chosen = controlled_queries(experiment)
    rest = sorted(set(range(len(experiment.queries))) - set(chosen))
    found = []
    for some, controlled in ((chosen, True), (rest, False)):
        queries = [experiment.queries[i] for i in some]
        found += [
            ([some[i] for i in group], controlled) for group in experiment.lm.groups(queries, experiment.config.probe)
        ]
    return found


def passes(parts: Iterable[WorkPart]) -> float:
    """Work as the progress bar counts it."""
    return sum(part.work.passes for part in parts)


@dataclass(frozen=True)
class SeedWork:
    """One seed's share of a comparison."""

    experiment: Experiment[ComparisonConfig]
    drawn: DemonstrationSet
    searching: bool
    """Learning rates that are not known are searched for."""
    known: Collection[str] = ()
    """Learners whose learning rate the choice of the seed has found."""

    @property
    def config(self) -> ComparisonConfig:
        """The study's settings."""
        return self.experiment.config

    @property
    def opening(self) -> int:
        """Tokens before every query."""
        return len(self.experiment.encoder.opening)

    @property
    def context(self) -> AdaptationContext:
        """What learners are given."""
        return AdaptationContext(self.experiment, self.drawn)

    def adapting(self, name: str) -> list[WorkPart]:
        """A learner adapted, its learning rate searched for where it has one that is not known."""
        learner = LEARNERS[name]
        if learner.grid is None:
            return learner.parts(self.context)
        return [self.training(learner, known=not self.searching or name in self.known)]

    def training(self, learner: Learner, *, known: bool, label: str | None = None) -> WorkPart:
        """A learner trained at one rate, or at each of its grid."""
        one = learner.work(self.context)
        return search_part(label or learner.name, one, self.config.grid_of(learner), self.experiment, known=known)

    def reading(self, name: str, indices: Sequence[int]) -> Work:
        """A learner's reading of one group of the reported queries; nothing where another learner has read them."""
        learner, place = LEARNERS[name], self.config.learners.index(name)
        if learner.answers_from in self.config.learners[:place]:
            return Work()
        return learner.reading(self.context, [self.experiment.queries[i] for i in indices], self.config.probe)

    @property
    def repeats(self) -> bool:
        """Finetuning is repeated from weights moved by rounding."""
        return self.config.repeats_finetuning and bool(self.drawn.encoded.sequences)

    def repeating(self, *, label: str = "repeating ft", searched: bool | None = None) -> WorkPart:
        """Finetuning repeated from weights moved by rounding, at the rate chosen or to choose it.

        Args:
            label: The part's name.
            searched: There is a search that may repeat rates to choose among them; None for this seed's own.
        """
        config = self.config
        searched = self.searching and FINETUNED not in self.known if searched is None else searched
        one = LEARNERS[FINETUNED].work(self.context)
        if not searched or config.rounding != "choose" or len(config.rates) == 1:
            return WorkPart(label, one)
        scored = one + read_changed(self.experiment.selection_queries, self.opening)
        # Every rate may have to be repeated, and the one that is chosen trained once more.
        return WorkPart(label, scored, scored, scored * len(config.rates) + one, (UNSTABLE,))

    def reading_repeat(self, indices: Sequence[int]) -> Work:
        """The repeat reads what controls read, and is compared with ICL and with what it repeats."""
        queries = [self.experiment.queries[i] for i in indices]
        work = read_changed(queries, self.opening, self.config.probe)
        return work + self.measuring(queries, 2, relaxed=False) if self.config.compares_inside else work

    def measuring(self, queries: Sequence[Query], pairs: int, *, relaxed: bool = True) -> Work:
        """All measures of some queries, for so many pairs of sides."""
        found = Work()
        for group in rows(queries, self.config.probe):
            widest = max(queries[i].width(self.config.probe) for i in group)
            shown = len(self.drawn.encoded.content)
            found += Work.of(MeasureComputation(len(group), widest, shown, relaxed))
            found += Work.of(MeasureComputation(len(group), widest, shown, relaxed=False)) * (pairs - 1)
        return found

    @cached_property
    def controls(self) -> Mapping[str, ControlPlan]:
        """Every control that can be made: what making and reading it takes."""
        if not (self.config.controls and self.config.compares_inside):
            return {}
        # No adapted model is needed to describe the work of others.
        builder = ControlBuilder(self.experiment, self.drawn, None, None, 0.0, {})  # type: ignore[arg-type]
        about = ControlWork(self, builder)
        found = {}
        for name in self.config.controls:
            try:
                with warnings.catch_warnings():
                    # What is remarkable about other demonstrations is said when the control is made.
                    warnings.simplefilter("ignore")
                    one = CONTROLS[name].work(about)
            except DualformError:
                # The comparison goes on without it, and says so.
                continue
            if one is not None:
                found[name] = one
        return found

    def parts(self) -> list[WorkPart]:
        """Everything that this seed takes."""
        found = [part for name in self.config.learners for part in self.adapting(name)]
        groups = query_groups(self.experiment)
        reading = sum((self.reading(name, group) for name in self.config.learners for group, _ in groups), Work())
        found.append(WorkPart("reading queries", reading))
        if self.repeats:
            found.append(self.repeating())
            again = sum((self.reading_repeat(group) for group, controlled in groups if controlled), Work())
            found.append(WorkPart("reading ft repeated", again))
        if self.config.compares_inside:
            # ICL and FT, and each further learner with both.
            pairs = 1 + 2 * sum(LEARNERS[name].compared_inside for name in self.config.learners)
            queries = [[self.experiment.queries[i] for i in group] for group, _ in groups]
            found.append(WorkPart("measures", sum((self.measuring(some, pairs) for some in queries), Work())))
        return [*found, *(plan.part(f"control {name}") for name, plan in self.controls.items())]

    def choosing(self) -> list[WorkPart]:
        """Finding out how good this seed is for the learners that the seed is chosen by."""
        found: list[WorkPart] = []
        for name in self.config.selecting:
            learner, label = LEARNERS[name], f"choosing a seed: {name}"
            if learner.grid is None:
                adapting = sum((part.work for part in learner.parts(self.context)), Work())
                reading = learner.reading(self.context, self.experiment.selection_queries, "prompt")
                found.append(WorkPart(label, adapting + reading))
                continue
            found.append(self.training(learner, known=False, label=label))
            if learner.can_repeat and self.repeats and self.config.rounding == "choose" and len(self.config.rates) > 1:
                found.append(self.repeating(label=f"choosing a seed: repeating {name}", searched=True))
        return found


@dataclass(frozen=True)
class ControlWork:
    """What the steps of making and reading a control take, for one seed."""

    seed: SeedWork
    builder: ControlBuilder
    """Draws what other demonstrations a control is made from; it has no adapted models."""

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
        """Tokens before every query."""
        return self.seed.opening

    @property
    def queries(self) -> list[Query]:
        """The queries that controls read."""
        return [self.experiment.queries[i] for i in controlled_queries(self.experiment)]

    def reading(self, prefix: int, pairs: int = 1) -> Work:
        """The queries read behind a prefix, and their measures for so many pairs of sides."""
        return read(self.queries, prefix, self.experiment.config.probe) + self.measuring(pairs)

    def measuring(self, pairs: int = 1) -> Work:
        """Measures alone."""
        return self.seed.measuring(self.queries, pairs, relaxed=False)

    def training(self, encoded: EncodedDemonstrations) -> Work:
        """Training once, as FT, and the opening read with the changed weights."""
        return training_work(encoded, self.experiment.config.loss_on, opening=self.opening)

    def trying(self) -> Work:
        """A few selection queries, with which a rate that is known is tried out."""
        return read_changed(self.experiment.selection_queries[:TRIAL_QUERIES], self.opening)

    def few(self) -> Work:
        """A few reported queries, to see whether answers are numbers."""
        return read_changed(self.experiment.queries[:TRIAL_QUERIES], self.opening)

    def prompted(self, prefix: int) -> ControlPlan:
        """A stand-in behind a prefix."""
        return ControlPlan(encode(prefix), self.reading(prefix))

    def trained(self, encoded: EncodedDemonstrations) -> ControlPlan:
        """A stand-in that is trained as FT, at FT's rate."""
        return ControlPlan(self.training(encoded) + self.trying(), self.reading(self.opening))

    def searched(self, training: Work, pairs: int = 1) -> ControlPlan:
        """A stand-in that is trained at a rate of its own."""
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
