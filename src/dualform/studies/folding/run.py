"""What folding depends on: method, demonstrations, texts, ridge strength, layers; and what it does to everything else.

For each seed every way of folding (`FoldingConfig.points`) is made once and answers the reported queries zero-shot,
next to the base model, the prompt itself and finetuning. The default fold is then asked other tasks' queries, added to
other tasks' folds, and read plain text.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from torch import Tensor

from dualform.errors import DualformError, StorageError
from dualform.learners.adapted import AdaptationCost, Adapted, AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext
from dualform.models.cost.work import WorkPart
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.ordinary import ordinary_torch
from dualform.models.reading.perplexity import text_losses
from dualform.progress import Progress, SilentProgress
from dualform.result import Trial
from dualform.studies.experiment import DemonstrationSet, Experiment, digest, query_cost
from dualform.studies.facts import TaskDescription, environment, model_facts
from dualform.studies.fold_settings import IN_WEIGHTS
from dualform.studies.folding.config import FoldingConfig, FoldVariant
from dualform.studies.folding.result import FoldingResult
from dualform.studies.folding.summary import FoldMeasurement, SeedFolds, folding_table, summarise_folding
from dualform.studies.folding.work import FoldingWork
from dualform.studies.folds import check_fold, make_fold, perplexity_passages
from dualform.studies.pieces import NoPieceStore, Piece, PieceContent, PieceStore, accepts_cells
from dualform.studies.study import StudyContext, StudyOutput
from dualform.studies.tuning import train_at_best_rate
from dualform.tasks.task import Task

_SILENT = SilentProgress()
_NO_PIECES = NoPieceStore()


@dataclass(frozen=True)
class FoldingStudy:
    """A finished study."""

    result: FoldingResult
    asked: TaskDescription
    base: dict[str, Tensor]
    """What the base model said: `answers/` for the study's task, `answers/OTHER`, `plain`."""
    seeds: tuple[SeedFolds, ...]
    """Answer by answer."""


@accepts_cells
@ordinary_torch()
def folding(
    config: FoldingConfig,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    pieces: PieceStore = _NO_PIECES,
    progress: Progress = _SILENT,
) -> FoldingStudy:
    """Run the study.

    Args:
        config: What to run.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        pieces: Keeps each finished fold.
        progress: Is told how far the work is.

    Returns:
        The result and all that it was made of.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    lm = lm or config.load_model(config.model)
    study = _Study.of(config, lm, task, pieces, progress)
    progress.start(float(study.passes))
    with lm.packed_products():
        base, _ = study.run_zero_shot()
        seeds = tuple(study.run_seed(seed) for seed in config.seeds)
    asked = TaskDescription.of(study.experiment, study.notes)
    facts = {**model_facts(lm), "inputs": study.inputs, "refused_routes": list(lm.refused)}
    labels = {name: other.labels for name, other in study.others.items()}
    result = summarise_folding(
        config, asked, base, seeds, labels, facts, environment(lm.device, time.perf_counter() - start)
    )
    return FoldingStudy(result, asked, base, seeds)


def run(config: FoldingConfig, context: StudyContext) -> StudyOutput:
    """The study, as `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    found = folding(config, lm=lm, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(found.result, folding_table(found.asked, found.base, found.seeds))


@dataclass(frozen=True)
class _Study:
    """Everything that the seeds share."""

    config: FoldingConfig
    lm: LanguageModel
    experiment: Experiment[FoldingConfig]
    others: dict[str, Experiment[FoldingConfig]]
    """Tasks to transfer to and to compose with, by name."""
    plain: tuple[tuple[int, ...], ...]
    """Passages for perplexity."""
    drawn: dict[tuple[int, int], DemonstrationSet]
    """(seed, k) -> demonstrations."""
    drawn_there: dict[tuple[str, int], DemonstrationSet]
    """(task to compose with, seed) -> demonstrations."""
    missing: dict[int, str]
    """k of which there are not so many demonstrations -> why."""
    inputs: str
    pieces: PieceStore
    progress: Progress
    notes: tuple[str, ...]
    made_last: dict[int, tuple[WeightDelta, ...]] = field(default_factory=dict)
    """The default fold of the seed in hand: other tasks are asked it too."""

    @classmethod
    def of(
        cls, config: FoldingConfig, lm: LanguageModel, task: Task, pieces: PieceStore, progress: Progress
    ) -> "_Study":
        experiment = Experiment.of(config, lm, task)
        others = {}
        for name in dict.fromkeys((*config.transfer, *config.compose)):
            # Columns, prompts and words are those of the study's own task.
            own = {"text": None, "label": None, "choices": None, "prompt": None, "label_words": None, "separator": None}
            asked = config.model_copy(update={"task": name, **own})
            others[name] = Experiment.of(asked, lm, asked.load_task())
        drawn_there = {
            (name, seed): one for name in config.compose for seed, one in others[name].draw_all(config.seeds).items()
        }
        plain: tuple[tuple[int, ...], ...] = ()
        if config.perplexity is not None:
            plain = perplexity_passages(experiment, config.perplexity, config.perplexity_texts)
        wanted = dict.fromkeys([config.k, *(point.fold.k for point in config.points(len(lm.anatomy.layers)))])
        drawn: dict[tuple[int, int], DemonstrationSet] = {}
        missing: dict[int, str] = {}
        notes = []
        for k in wanted:
            there = replace(experiment, config=config.model_copy(update={"k": k}))
            try:
                found = there.draw_all(config.seeds)
            except DualformError as error:
                if k == config.k:
                    raise
                missing[k] = str(error)
                continue
            drawn |= {(seed, k): one for seed, one in found.items()}
            fitted = min(len(drawn[seed, k].demonstrations.rows) for seed in config.seeds)
            if fitted < k:
                notes.append(f"Of {k} demonstrations {fitted} fit the context of {experiment.context} tokens.")
        elsewhere = [
            digest(other, [one for (task, _), one in drawn_there.items() if task == name])
            for name, other in others.items()
        ]
        for name in config.compose:
            check_fold(others[name], config.fold)
        inputs = digest(experiment, drawn.values(), [*check_fold(experiment, config.fold), repr(plain), *elsewhere])
        return cls(
            config, lm, experiment, others, plain, drawn, drawn_there, missing, inputs, pieces, progress, tuple(notes)
        )

    @property
    def folds(self) -> tuple[FoldVariant, ...]:
        """Every way of folding once, the default first."""
        return self.work.folds

    @property
    def ks(self) -> tuple[int, ...]:
        """Every number of demonstrations that is asked for and can be had."""
        return self.work.ks

    @property
    def work(self) -> FoldingWork:
        """What all steps take."""
        return FoldingWork(self.experiment, self.others, self.plain, self.drawn, self.drawn_there)

    @property
    def passes(self) -> float:
        """All that lies ahead, as the progress bar counts it."""
        seeds, work = self.config.seeds, self.work
        steps = [work.zero_shot()]
        steps += [work.prompt(seed, k) for seed in seeds for k in self.ks]
        steps += [work.finetuning(seed) for seed in seeds if self.config.ft]
        steps += [work.fold(seed, fold) for seed in seeds for fold in self.folds]
        steps += [work.elsewhere(seed, name) for seed in seeds for name in self.others]
        return sum(map(_passes, steps))

    def run_zero_shot(self) -> PieceContent:
        """The base model, which no seed changes."""

        def make() -> PieceContent:
            answers = {"": self._ask(self.experiment, self._zero_shot())}
            answers |= {
                name: self._ask(experiment, self._zero_shot(experiment)) for name, experiment in self.others.items()
            }
            plain = {"plain": self._read_plain(())} if self.plain else {}
            return {f"answers/{name}": table for name, table in answers.items()} | plain, {}

        return self._kept("zero-shot", self.work.zero_shot(), make)

    def run_seed(self, seed: int) -> SeedFolds:
        """All ways of folding one seed's demonstrations."""
        prompted = {
            k: self._kept(f"seed {seed}, prompt of {k}", self.work.prompt(seed, k), partial(self._prompt, seed, k))
            for k in self.ks
        }
        ft = (
            self._kept(f"seed {seed}, ft", self.work.finetuning(seed), partial(self._finetune, seed))
            if self.config.ft
            else None
        )
        folds = {
            fold: self._kept(
                f"seed {seed}, fold {_told(fold)}", self.work.fold(seed, fold), partial(self._fold, seed, fold)
            )
            for fold in self.folds
        }
        elsewhere = {
            name: self._kept(
                f"seed {seed}, task {name}", self.work.elsewhere(seed, name), partial(self._elsewhere, seed, name)
            )
            for name in self.others
        }
        return SeedFolds(
            seed=seed,
            demonstrations={k: self.drawn[seed, k] for k in self.ks},
            prompted={k: tensors["answers"] for k, (tensors, _) in prompted.items()},
            ft=None if ft is None else ft[0]["answers"],
            trials=() if ft is None else tuple(Trial(**trial) for trial in ft[1]["trials"]),
            folds={fold: FoldMeasurement(tensors, about) for fold, (tensors, about) in folds.items()},
            elsewhere={name: tensors for name, (tensors, _) in elsewhere.items()},
        )

    def _kept(self, name: str, parts: Iterable[WorkPart], make: Callable[[], PieceContent]) -> PieceContent:
        """A finished piece, or one made now and kept."""
        piece = self.pieces.get(name, self.inputs)
        self.progress.advance(0, name)
        if piece is None:
            tensors, about = make()
            piece = Piece(name, self.inputs, tensors, about)
            self.pieces.put(piece)
        self.progress.advance(_passes(parts), name)
        return piece.tensors, piece.about

    def _prompt(self, seed: int, k: int) -> PieceContent:
        icl = InContext().adapt(self.lm, self.drawn[seed, k].encoded)
        return {"answers": self._ask(self.experiment, icl)}, {}

    def _finetune(self, seed: int) -> PieceContent:
        config, drawn = self.config, self.drawn[seed, self.config.k]

        def adapt(rate: float) -> AdaptedModel:
            return Finetuned(self.experiment.encoder.opening, rate, config.loss_on).adapt(self.lm, drawn.encoded)

        # Each seed searches for itself: cells of one seed must not hang on those of another.
        found = train_at_best_rate(adapt, config.rates, self.experiment, name="ft", seed=seed, known=None)
        about = {"trials": [trial.model_dump() for trial in found.trials]}
        return {"answers": self._ask(self.experiment, found.best)}, about

    def _fold(self, seed: int, fold: FoldVariant) -> PieceContent:
        if fold.k in self.missing:
            return {}, {"failed": self.missing[fold.k]}
        drawn = self.drawn[seed, fold.k]
        experiment = self._experiment_for(fold.k)
        try:
            made = make_fold(experiment, drawn, fold.settings)
            answers = self._ask(self.experiment, made.adapted)
        except DualformError as error:
            if fold == self.config.default or isinstance(error, StorageError):
                raise
            # One way of folding that cannot be had (a method on this family, texts that the model fails to write) is
            # told in its place; the others go on.
            return {}, {"failed": str(error)}
        if fold == self.config.default and isinstance(made.adapted, AdaptedModel):
            self._remember(seed, made.adapted.deltas)
        tensors = {"answers": answers}
        if self.plain and fold.settings.method in IN_WEIGHTS and isinstance(made.adapted, AdaptedModel):
            tensors["plain"] = self._read_plain(made.adapted.deltas)
        cost = made.adapted.cost
        about = {**made.about(), "adapt_flops": cost.flops, **query_cost(experiment, made.adapted.n_prefix)}
        return tensors, about

    def _elsewhere(self, seed: int, name: str) -> PieceContent:
        """Another task's queries: asked the study's fold, its own fold, and the sum of both."""
        other = self.others[name]
        if seed not in self.made_last:
            # Its cell was there already, and keeps answers only.
            self._remember(seed, self._deltas(self.experiment, self.drawn[seed, self.config.k]))
        here = self.made_last[seed]
        tensors = {}
        if name in self.config.transfer:
            tensors["transfer"] = self._ask(other, self._changed(other, here))
        if name in self.config.compose:
            there = self._deltas(other, self.drawn_there[name, seed])
            both = (*here, *there)
            tensors["alone"] = self._ask(other, self._changed(other, there))
            tensors["sum"] = self._ask(other, self._changed(other, both))
            tensors["sum_here"] = self._ask(self.experiment, self._changed(self.experiment, both))
        return tensors, {}

    def _remember(self, seed: int, deltas: tuple[WeightDelta, ...]) -> None:
        self.made_last.clear()
        self.made_last[seed] = deltas

    def _deltas(self, experiment: Experiment[FoldingConfig], drawn: DemonstrationSet) -> tuple[WeightDelta, ...]:
        made = make_fold(experiment, drawn, self.config.fold)
        assert isinstance(made.adapted, AdaptedModel)
        return made.adapted.deltas

    def _changed(self, experiment: Experiment[FoldingConfig], deltas: tuple[WeightDelta, ...]) -> AdaptedModel:
        with applied(self.lm.model, deltas):
            prefix = self.lm.encode(experiment.encoder.opening)
        return AdaptedModel("fold", self.lm, prefix, AdaptationCost(0.0, 0, 0.0), deltas)

    def _zero_shot(self, experiment: Experiment[FoldingConfig] | None = None) -> AdaptedModel:
        return self._changed(experiment or self.experiment, ())

    def _experiment_for(self, k: int) -> Experiment[FoldingConfig]:
        return replace(self.experiment, config=self.config.model_copy(update={"k": k}))

    def _ask(self, experiment: Experiment[FoldingConfig], adapted: Adapted) -> Tensor:
        return answer_log_probabilities(adapted, self.lm, experiment.queries)

    def _read_plain(self, deltas: Sequence[WeightDelta]) -> Tensor:
        with applied(self.lm.model, deltas):
            return text_losses(self.lm, self.experiment.encoder.opening, self.plain)


def _passes(parts: Iterable[WorkPart]) -> float:
    """Work as the progress bar counts it."""
    return sum(part.work.passes for part in parts)


def _told(fold: FoldVariant) -> str:
    """A way of folding as a name of a cell."""
    settings = json.dumps(fold.settings.model_dump(mode="json"), sort_keys=True)
    return f"{fold.settings.method} of {fold.k} {hashlib.sha256(settings.encode()).hexdigest()[:10]}"
