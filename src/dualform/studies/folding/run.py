"""Runs the folding study.

For each seed, every fold (`FoldingConfig.points`) is made once and answers the reported queries without the prompt, and
is compared with the base model, ICL and finetuning. The default fold is also evaluated on other tasks, added to other
tasks' folds, and evaluated on plain text.
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
from dualform.models.cost.work import QueryPass, WorkPart
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
    """The result of a study and the answers from which it was computed."""

    result: FoldingResult
    description: TaskDescription
    base: dict[str, Tensor]
    """Answers of the base model: `answers/` for the study's task, `answers/OTHER` for other tasks, and `plain`."""
    seeds: tuple[SeedFolds, ...]
    """The answers with each seed."""


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
    """The result of a folding study.

    Args:
        config: The settings.
        lm: A loaded model to use in place of the one named by `config.model`.
        task: A loaded task to use in place of the one named by `config.task`.
        pieces: Stores each finished fold, so that an interrupted study can continue.
        progress: Receives the progress of the study.

    Raises:
        DualformError: The settings, the model or the data are invalid.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    lm = lm or config.load_model(config.model)
    study = _Study.of(config, lm, task, pieces, progress)
    progress.start(float(study.passes))
    with lm.packed_products():
        base, _ = study.run_zero_shot()
        seeds = tuple(study.run_seed(seed) for seed in config.seeds)
    description = TaskDescription.of(study.experiment, study.notes)
    facts = {**model_facts(lm), "inputs": study.inputs, "refused_routes": list(lm.refused)}
    labels = {name: other.labels for name, other in study.others.items()}
    result = summarise_folding(
        config, description, base, seeds, labels, facts, environment(lm.device, time.perf_counter() - start)
    )
    return FoldingStudy(result, description, base, seeds)


def run(config: FoldingConfig, context: StudyContext) -> StudyOutput:
    """Runs the study; see `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    study = folding(config, lm=lm, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(study.result, folding_table(study.description, study.base, study.seeds))


@dataclass(frozen=True)
class _Study:
    """The setup that all seeds share."""

    config: FoldingConfig
    lm: LanguageModel
    experiment: Experiment[FoldingConfig]
    others: dict[str, Experiment[FoldingConfig]]
    """Other tasks, to transfer to and to compose with, by name."""
    plain: tuple[tuple[int, ...], ...]
    """Passages of plain text on which perplexity is measured."""
    demonstration_sets: dict[tuple[int, int], DemonstrationSet]
    """(seed, k) -> demonstrations."""
    other_sets: dict[tuple[str, int], DemonstrationSet]
    """(task to compose with, seed) -> demonstrations."""
    missing: dict[int, str]
    """k for which no demonstrations could be drawn -> the reason."""
    inputs: str
    pieces: PieceStore
    progress: Progress
    notes: tuple[str, ...]
    last_deltas: dict[int, tuple[WeightDelta, ...]] = field(default_factory=dict)
    """The current seed -> weight changes of its default fold, which is also evaluated on other tasks."""

    @classmethod
    def of(
        cls, config: FoldingConfig, lm: LanguageModel, task: Task, pieces: PieceStore, progress: Progress
    ) -> "_Study":
        experiment = Experiment.of(config, lm, task)
        others = {}
        for name in dict.fromkeys((*config.transfer, *config.compose)):
            # Columns, prompts and label words in the settings apply to the study's own task only.
            own = {"text": None, "label": None, "choices": None, "prompt": None, "label_words": None, "separator": None}
            other = config.model_copy(update={"task": name, **own})
            others[name] = Experiment.of(other, lm, other.load_task())
        other_sets = {
            (name, seed): each for name in config.compose for seed, each in others[name].draw_all(config.seeds).items()
        }
        plain: tuple[tuple[int, ...], ...] = ()
        if config.perplexity is not None:
            plain = perplexity_passages(experiment, config.perplexity, config.perplexity_texts)
        ks = dict.fromkeys([config.k, *(point.fold.k for point in config.points(len(lm.anatomy.layers)))])
        demonstration_sets: dict[tuple[int, int], DemonstrationSet] = {}
        missing: dict[int, str] = {}
        notes = []
        for k in ks:
            with_k = replace(experiment, config=config.model_copy(update={"k": k}))
            try:
                by_seed = with_k.draw_all(config.seeds)
            except DualformError as error:
                if k == config.k:
                    raise
                missing[k] = str(error)
                continue
            demonstration_sets |= {(seed, k): each for seed, each in by_seed.items()}
            fitting = min(len(each.demonstrations.rows) for each in by_seed.values())
            if fitting < k:
                notes.append(f"Only {fitting} of {k} demonstrations fit the context of {experiment.context} tokens.")
        digests = [
            digest(other, [each for (task, _), each in other_sets.items() if task == name])
            for name, other in others.items()
        ]
        for name in config.compose:
            check_fold(others[name], config.fold)
        inputs = digest(
            experiment, demonstration_sets.values(), [*check_fold(experiment, config.fold), repr(plain), *digests]
        )
        return cls(
            config,
            lm,
            experiment,
            others,
            plain,
            demonstration_sets,
            other_sets,
            missing,
            inputs,
            pieces,
            progress,
            tuple(notes),
        )

    @property
    def folds(self) -> tuple[FoldVariant, ...]:
        """Every fold once, the default first."""
        return self.work.folds

    @property
    def ks(self) -> tuple[int, ...]:
        """Every number of demonstrations that is requested and available."""
        return self.work.ks

    @property
    def work(self) -> FoldingWork:
        """The work of all steps."""
        return FoldingWork(self.experiment, self.others, self.plain, self.demonstration_sets, self.other_sets)

    @property
    def passes(self) -> float:
        """The total work in the units of the progress bar."""
        seeds, work = self.config.seeds, self.work
        steps = [work.zero_shot()]
        steps += [work.prompt(seed, k) for seed in seeds for k in self.ks]
        steps += [work.finetuning(seed) for seed in seeds if self.config.ft]
        steps += [work.fold(seed, fold) for seed in seeds for fold in self.folds]
        steps += [work.elsewhere(seed, name) for seed in seeds for name in self.others]
        return sum(map(_passes, steps))

    def run_zero_shot(self) -> PieceContent:
        """The answers of the base model, which are the same for all seeds."""

        def make() -> PieceContent:
            answers = {"": self._answers(self.experiment, self._zero_shot())}
            answers |= {
                name: self._answers(experiment, self._zero_shot(experiment)) for name, experiment in self.others.items()
            }
            plain = {"plain": self._read_plain(())} if self.plain else {}
            return {f"answers/{name}": table for name, table in answers.items()} | plain, {}

        return self._load_or_make("zero-shot", self.work.zero_shot(), make)

    def run_seed(self, seed: int) -> SeedFolds:
        """The answers of all learners with one seed."""
        prompted = {
            k: self._load_or_make(
                f"seed {seed}, prompt of {k}", self.work.prompt(seed, k), partial(self._prompt, seed, k)
            )
            for k in self.ks
        }
        ft = (
            self._load_or_make(f"seed {seed}, ft", self.work.finetuning(seed), partial(self._finetune, seed))
            if self.config.ft
            else None
        )
        folds = {
            fold: self._load_or_make(
                f"seed {seed}, fold {_piece_name(fold)}", self.work.fold(seed, fold), partial(self._fold, seed, fold)
            )
            for fold in self.folds
        }
        elsewhere = {
            name: self._load_or_make(
                f"seed {seed}, task {name}", self.work.elsewhere(seed, name), partial(self._elsewhere, seed, name)
            )
            for name in self.others
        }
        return SeedFolds(
            seed=seed,
            demonstrations={k: self.demonstration_sets[seed, k] for k in self.ks},
            prompted={k: tensors["answers"] for k, (tensors, _) in prompted.items()},
            ft=None if ft is None else ft[0]["answers"],
            trials=() if ft is None else tuple(Trial(**trial) for trial in ft[1]["trials"]),
            folds={fold: FoldMeasurement(tensors, about) for fold, (tensors, about) in folds.items()},
            elsewhere={name: tensors for name, (tensors, _) in elsewhere.items()},
        )

    def _load_or_make(self, name: str, parts: Iterable[WorkPart], make: Callable[[], PieceContent]) -> PieceContent:
        """The content of a stored piece, or of a new one, which is stored."""
        piece = self.pieces.get(name, self.inputs)
        self.progress.advance(0, name)
        if piece is None:
            tensors, about = make()
            piece = Piece(name, self.inputs, tensors, about)
            self.pieces.put(piece)
        self.progress.advance(_passes(parts), name)
        return piece.tensors, piece.about

    def _prompt(self, seed: int, k: int) -> PieceContent:
        icl = InContext().adapt(self.lm, self.demonstration_sets[seed, k].encoded)
        return {"answers": self._answers(self.experiment, icl)}, {}

    def _finetune(self, seed: int) -> PieceContent:
        config, demonstration_set = self.config, self.demonstration_sets[seed, self.config.k]

        def adapt(rate: float) -> AdaptedModel:
            return Finetuned(self.experiment.encoder.opening, rate, config.loss_on).adapt(
                self.lm, demonstration_set.encoded
            )

        # Each seed searches for its own rate, so that the pieces of one seed do not depend on those of another.
        search = train_at_best_rate(adapt, config.rates, self.experiment, name="ft", seed=seed, known=None)
        about = {"trials": [trial.model_dump() for trial in search.trials]}
        return {"answers": self._answers(self.experiment, search.best)}, about

    def _fold(self, seed: int, fold: FoldVariant) -> PieceContent:
        if fold.k in self.missing:
            return {}, {"failed": self.missing[fold.k]}
        demonstration_set = self.demonstration_sets[seed, fold.k]
        experiment = self._experiment_for(fold.k)
        try:
            folded = make_fold(experiment, demonstration_set, fold.settings)
            answers = self._answers(self.experiment, folded.adapted)
        except DualformError as error:
            if fold == self.config.default or isinstance(error, StorageError):
                raise
            # A fold that is not possible, such as a method that does not support this model, is reported with its
            # reason, and the study continues.
            return {}, {"failed": str(error)}
        if fold == self.config.default and isinstance(folded.adapted, AdaptedModel):
            self._remember(seed, folded.adapted.deltas)
        tensors = {"answers": answers}
        if self.plain and fold.settings.method in IN_WEIGHTS and isinstance(folded.adapted, AdaptedModel):
            tensors["plain"] = self._read_plain(folded.adapted.deltas)
        cost = folded.adapted.cost
        about = {
            **folded.about(),
            "adapt_flops": cost.flops,
            **query_cost(experiment, [QueryPass.after(folded.adapted.n_prefix)]),
        }
        return tensors, about

    def _elsewhere(self, seed: int, name: str) -> PieceContent:
        """Answers to another task's queries of the study's fold, the task's own fold and the sum of both."""
        other = self.others[name]
        if seed not in self.last_deltas:
            # The piece of this fold was loaded, and holds answers only.
            self._remember(seed, self._deltas(self.experiment, self.demonstration_sets[seed, self.config.k]))
        own = self.last_deltas[seed]
        tensors = {}
        if name in self.config.transfer:
            tensors["transfer"] = self._answers(other, self._changed(other, own))
        if name in self.config.compose:
            others = self._deltas(other, self.other_sets[name, seed])
            both = (*own, *others)
            tensors["alone"] = self._answers(other, self._changed(other, others))
            tensors["sum"] = self._answers(other, self._changed(other, both))
            tensors["sum_here"] = self._answers(self.experiment, self._changed(self.experiment, both))
        return tensors, {}

    def _remember(self, seed: int, deltas: tuple[WeightDelta, ...]) -> None:
        self.last_deltas.clear()
        self.last_deltas[seed] = deltas

    def _deltas(
        self, experiment: Experiment[FoldingConfig], demonstration_set: DemonstrationSet
    ) -> tuple[WeightDelta, ...]:
        folded = make_fold(experiment, demonstration_set, self.config.fold)
        assert isinstance(folded.adapted, AdaptedModel)
        return folded.adapted.deltas

    def _changed(self, experiment: Experiment[FoldingConfig], deltas: tuple[WeightDelta, ...]) -> AdaptedModel:
        with applied(self.lm.model, deltas):
            prefix = self.lm.encode(experiment.encoder.opening)
        return AdaptedModel("fold", self.lm, prefix, AdaptationCost(0.0, 0, 0.0), deltas)

    def _zero_shot(self, experiment: Experiment[FoldingConfig] | None = None) -> AdaptedModel:
        return self._changed(experiment or self.experiment, ())

    def _experiment_for(self, k: int) -> Experiment[FoldingConfig]:
        return replace(self.experiment, config=self.config.model_copy(update={"k": k}))

    def _answers(self, experiment: Experiment[FoldingConfig], adapted: Adapted) -> Tensor:
        return answer_log_probabilities(adapted, self.lm, experiment.queries)

    def _read_plain(self, deltas: Sequence[WeightDelta]) -> Tensor:
        with applied(self.lm.model, deltas):
            return text_losses(self.lm, self.experiment.encoder.opening, self.plain)


def _passes(parts: Iterable[WorkPart]) -> float:
    """Work in the units of the progress bar."""
    return sum(part.work.passes for part in parts)


def _piece_name(fold: FoldVariant) -> str:
    """A name for the piece of a fold, unique among settings."""
    settings = json.dumps(fold.settings.model_dump(mode="json"), sort_keys=True)
    return f"{fold.settings.method} of {fold.k} {hashlib.sha256(settings.encode()).hexdigest()[:10]}"
