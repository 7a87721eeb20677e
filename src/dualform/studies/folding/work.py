"""What a study of folding reads and computes, described before it runs: plan and progress bar are counted from it."""

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
    """The steps of the study, each of which is kept once it is finished."""

    experiment: Experiment[FoldingConfig]
    others: Mapping[str, Experiment[FoldingConfig]]
    """Tasks to transfer to and to compose with, by name."""
    passages: Sequence[tuple[int, ...]]
    """Plain text on which perplexity is measured."""
    drawn: Mapping[tuple[int, int], DemonstrationSet]
    """(seed, k) -> demonstrations."""
    drawn_there: Mapping[tuple[str, int], DemonstrationSet]
    """(task to compose with, seed) -> demonstrations."""

    @property
    def folds(self) -> tuple[FoldVariant, ...]:
        """Every way of folding once, the default first."""
        config = self.experiment.config
        points = config.points(self.experiment.lm.shape.n_layers)
        return tuple(dict.fromkeys([config.default, *(point.fold for point in points)]))

    @property
    def ks(self) -> tuple[int, ...]:
        """Every number of demonstrations that is asked for and can be had."""
        return tuple(dict.fromkeys(k for _, k in self.drawn))

    def zero_shot(self) -> list[WorkPart]:
        """The base model, which no seed changes."""
        answers = (_answering(experiment) for experiment in (self.experiment, *self.others.values()))
        return [WorkPart("zsl", sum(answers, Work()) + self.perplexity())]

    def prompt(self, seed: int, k: int) -> list[WorkPart]:
        """The queries behind the demonstrations."""
        n = len(self.drawn[seed, k].encoded.prefix)
        return [WorkPart("icl", encode(n) + read(self.experiment.queries, n))]

    def finetuning(self, seed: int) -> list[WorkPart]:
        """FT, its learning rate searched for, and its answers."""
        config, opening = self.experiment.config, len(self.experiment.encoder.opening)
        one = training_work(self.drawn[seed, config.k].encoded, config.loss_on, opening=opening)
        search = search_part("ft", one, config.rates, self.experiment, known=False)
        return [search, WorkPart("ft: reading", read_changed(self.experiment.queries, opening))]

    def fold(self, seed: int, fold: FoldVariant) -> list[WorkPart]:
        """One way of folding, its answers and its perplexity; nothing where it cannot be had."""
        drawn = self.drawn.get((seed, fold.k))
        if drawn is None:
            return []
        config = self.experiment.config
        experiment = replace(self.experiment, config=config.model_copy(update={"k": fold.k}))
        try:
            parts = fold_parts(experiment, drawn, fold.settings, f"fold: {fold.settings.method}")
        except DualformError:
            if fold == config.default:
                raise
            return []
        reading = read_changed(experiment.queries, fold_prefix(fold.settings, experiment, drawn))
        if reads_twice(fold.settings):
            reading += read(experiment.queries, len(drawn.encoded.prefix))
        if fold.settings.method in IN_WEIGHTS:
            reading += self.perplexity()
        return [*parts, WorkPart("folds: reading", reading)]

    def elsewhere(self, seed: int, name: str) -> list[WorkPart]:
        """Another task's queries: read with the study's fold, with the task's own fold, and with both."""
        config, other = self.experiment.config, self.others[name]
        parts = []
        if name in config.transfer:
            parts.append(WorkPart("other tasks", _answering(other)))
        if name in config.compose:
            parts += fold_parts(other, self.drawn_there[name, seed], config.fold, "other tasks")
            parts.append(WorkPart("other tasks", _answering(other) * 2 + _answering(self.experiment)))
        return parts

    def perplexity(self) -> Work:
        """The passages, each by itself."""
        opening = len(self.experiment.encoder.opening)
        return Work.of(*(Forward((opening + len(ids),), 0, len(ids)) for ids in self.passages))

    def parts(self) -> list[WorkPart]:
        """Everything. Plain text that the model writes is written once, whichever fold is first to need it."""
        found = self.zero_shot()
        for seed in self.experiment.config.seeds:
            for k in self.ks:
                found += self.prompt(seed, k)
            if self.experiment.config.ft:
                found += self.finetuning(seed)
            for fold in self.folds:
                found += self.fold(seed, fold)
            for name in self.others:
                found += self.elsewhere(seed, name)
        written: set[str] = set()
        once = []
        for part in found:
            if "plain text" in part.name and part.name in written:
                continue
            written.add(part.name)
            once.append(part)
        return once


def _answering(experiment: Experiment[FoldingConfig]) -> Work:
    """The opening and all queries behind it."""
    opening = len(experiment.encoder.opening)
    return encode(opening) + read_changed(experiment.queries, opening)
