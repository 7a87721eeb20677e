"""The work of a folding study, computed before it runs, for the plan and the progress bar."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from dualform.errors import DualformError
from dualform.learners.training_work import training_work
from dualform.models.cost.work import Forward, Work, WorkPart, encode, read
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.fold_settings import IN_WEIGHTS
from dualform.studies.fold_work import fold_parts, fold_prefix, reads_twice
from dualform.studies.folding.config import FoldingConfig, FoldVariant
from dualform.studies.work import read_changed, search_part


@dataclass(frozen=True)
class FoldingWork:
    """The work of each step of the study; the result of a step is stored once it is finished."""

    experiment: Experiment[FoldingConfig]
    others: Mapping[str, Experiment[FoldingConfig]]
    """Other tasks, to transfer to and to compose with, by name."""
    passages: Sequence[tuple[int, ...]]
    """Plain text on which perplexity is measured."""
    demonstration_sets: Mapping[tuple[int, int], DemonstrationSet]
    """(seed, k) -> demonstrations."""
    other_sets: Mapping[tuple[str, int], DemonstrationSet]
    """(task to compose with, seed) -> demonstrations."""

    @property
    def folds(self) -> tuple[FoldVariant, ...]:
        """Every fold once, the default first."""
        config = self.experiment.config
        points = config.points(self.experiment.lm.shape.n_layers)
        return tuple(dict.fromkeys([config.default, *(point.fold for point in points)]))

    @property
    def ks(self) -> tuple[int, ...]:
        """Every number of demonstrations that is requested and available."""
        return tuple(dict.fromkeys(k for _, k in self.demonstration_sets))

    def zero_shot(self) -> list[WorkPart]:
        """The base model, which is the same for all seeds."""
        answers = (_answering(experiment) for experiment in (self.experiment, *self.others.values()))
        return [WorkPart("zsl", sum(answers, Work()) + self.perplexity())]

    def prompt(self, seed: int, k: int) -> list[WorkPart]:
        """ICL with `k` demonstrations."""
        n = len(self.demonstration_sets[seed, k].encoded.prefix)
        return [WorkPart("icl", encode(n) + read(self.experiment.queries, n))]

    def finetuning(self, seed: int) -> list[WorkPart]:
        """FT with the search for its learning rate, and reading the queries."""
        config, opening = self.experiment.config, len(self.experiment.encoder.opening)
        training = training_work(self.demonstration_sets[seed, config.k].encoded, config.loss_on, opening=opening)
        search = search_part("ft", training, config.rates, self.experiment, known=False)
        return [search, WorkPart("ft: reading", read_changed(self.experiment.queries, opening))]

    def fold(self, seed: int, fold: FoldVariant) -> list[WorkPart]:
        """One fold, reading the queries and the plain text; empty if the fold is not possible."""
        demonstration_set = self.demonstration_sets.get((seed, fold.k))
        if demonstration_set is None:
            return []
        config = self.experiment.config
        experiment = replace(self.experiment, config=config.model_copy(update={"k": fold.k}))
        try:
            parts = fold_parts(experiment, demonstration_set, fold.settings, f"fold: {fold.settings.method}")
        except DualformError:
            if fold == config.default:
                raise
            return []
        reading = read_changed(experiment.queries, fold_prefix(fold.settings, experiment, demonstration_set))
        if reads_twice(fold.settings):
            reading += read(experiment.queries, len(demonstration_set.encoded.prefix))
        if fold.settings.method in IN_WEIGHTS:
            reading += self.perplexity()
        return [*parts, WorkPart("folds: reading", reading)]

    def elsewhere(self, seed: int, name: str) -> list[WorkPart]:
        """Reading another task's queries with the study's fold, the task's own fold and the sum of both."""
        config, other = self.experiment.config, self.others[name]
        parts = []
        if name in config.transfer:
            parts.append(WorkPart("other tasks", _answering(other)))
        if name in config.compose:
            parts += fold_parts(other, self.other_sets[name, seed], config.fold, "other tasks")
            parts.append(WorkPart("other tasks", _answering(other) * 2 + _answering(self.experiment)))
        return parts

    def perplexity(self) -> Work:
        """Reading each passage of plain text separately."""
        opening = len(self.experiment.encoder.opening)
        return Work.of(*(Forward((opening + len(ids),), 0, len(ids)) for ids in self.passages))

    def parts(self) -> list[WorkPart]:
        """All parts. The plain text that the model writes is counted once, since all folds share it."""
        all_parts = self.zero_shot()
        for seed in self.experiment.config.seeds:
            for k in self.ks:
                all_parts += self.prompt(seed, k)
            if self.experiment.config.ft:
                all_parts += self.finetuning(seed)
            for fold in self.folds:
                all_parts += self.fold(seed, fold)
            for name in self.others:
                all_parts += self.elsewhere(seed, name)
        names: set[str] = set()
        parts = []
        for part in all_parts:
            if "plain text" in part.name and part.name in names:
                continue
            names.add(part.name)
            parts.append(part)
        return parts


def _answering(experiment: Experiment[FoldingConfig]) -> Work:
    """Reading all queries without demonstrations."""
    opening = len(experiment.encoder.opening)
    return encode(opening) + read_changed(experiment.queries, opening)
