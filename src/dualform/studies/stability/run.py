"""Runs the stability study.

For each model and demonstration set, ICL and FT are run in several orders and, in the order drawn, with random and
flipped labels. Every run answers the same queries and a few content-free ones, which are used for contextual
calibration.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.calibrated import content_free_queries
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rate import RateSearch
from dualform.models.cost.work import WorkPart
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.result import Trial
from dualform.studies.experiment import DemonstrationSet, Experiment, digest
from dualform.studies.facts import TaskDescription, environment, model_facts
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.result import StabilityResult
from dualform.studies.stability.summary import ModelRuns, RunAnswers, runs_table, summarise_stability
from dualform.studies.stability.work import (
    PlannedRun,
    common_orders,
    planned_runs,
    set_parts,
    zero_shot_work,
)
from dualform.studies.study import StudyContext, StudyOutput
from dualform.studies.tuning import train_at_best_rate
from dualform.tasks.demonstrations import Demonstrations
from dualform.tasks.task import Task

_SILENT = SilentProgress()
_NO_PIECES = NoPieceStore()


@dataclass(frozen=True)
class StabilityStudy:
    """The result of a study and the answers from which it was computed."""

    result: StabilityResult
    description: TaskDescription
    models: tuple[ModelRuns, ...]
    """The runs of each model."""


@accepts_cells
@ordinary_torch()
def stability(
    config: StabilityConfig,
    *,
    lms: Sequence[LanguageModel] | None = None,
    task: Task | None = None,
    pieces: PieceStore = _NO_PIECES,
    progress: Progress = _SILENT,
) -> StabilityStudy:
    """The result of a stability study. Equal settings give equal numbers.

    Args:
        config: The settings.
        lms: Loaded models to use in place of those named by `config.models`.
        task: A loaded task to use in place of the one named by `config.task`.
        pieces: Stores each model's finished sets, so that an interrupted study can continue.
        progress: Receives the progress of the study.

    Raises:
        DualformError: The settings, a model or the data are invalid.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    models: list[ModelRuns] = []
    description, lm = None, None
    for number, name in enumerate(config.models):
        # Release the previous model first, since two may not fit in memory.
        lm = None
        lm = lms[number] if lms is not None else config.load_model(name)
        experiment = Experiment.of(config, lm, task)
        models.append(_run_model(name, experiment, len(config.models) - number, pieces, progress))
        if description is None:
            description = TaskDescription.of(experiment, notes=())
        else:
            notes = [f"{name}: {note}" for note in experiment.notes() if note not in description.notes]
            description = replace(description, notes=(*description.notes, *notes))
    assert description is not None
    assert lm is not None
    result = summarise_stability(config, description, models, environment(lm.device, time.perf_counter() - start))
    return StabilityStudy(result, description, tuple(models))


def run(config: StabilityConfig, context: StudyContext) -> StudyOutput:
    """Runs the study; see `Study.run`."""
    task = context.models.load_task(config)
    if len(config.models) == 1:
        lms = [context.models.load_model(config, config.models[0])]
    else:
        # The models are loaded in turn, and a cached model would take their memory.
        context.models.release()
        lms = None
    study = stability(config, lms=lms, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(study.result, runs_table(study.description, study.models))


def _run_model(
    name: str, experiment: Experiment[StabilityConfig], models_left: int, pieces: PieceStore, progress: Progress
) -> ModelRuns:
    config = experiment.config
    # Draw all sets first, so that demonstrations or queries that do not fit the context raise before any work is done.
    demonstration_sets = experiment.draw_all(config.seeds)
    queries = (*experiment.queries, *content_free_queries(experiment))
    inputs = digest(experiment, demonstration_sets.values())
    n_orders = common_orders(config, demonstration_sets.values())
    zero_shot_passes = zero_shot_work(experiment, queries).passes
    parts = {
        seed: set_parts(
            experiment,
            queries,
            demonstration_sets[seed],
            planned_runs(config, set_index, n_orders),
            known=set_index > 0 and config.ft_seeds > 0,
        )
        for set_index, seed in enumerate(config.seeds)
    }
    work = {seed: sum(part.work.passes for part in each) for seed, each in parts.items()}
    progress.start(models_left * (sum(work.values()) + zero_shot_passes))
    runs: list[RunAnswers] = []
    trials: list[Trial] = []
    rate: float | None = None
    with experiment.lm.packed_products():
        zero_shot = ZeroShot(experiment.encoder.opening).adapt(
            experiment.lm, demonstration_sets[config.seeds[0]].encoded
        )
        runs.append(_answers(experiment, queries, zero_shot, PlannedRun("zsl", "true", 0, None), config.seeds[0]))
        progress.advance(zero_shot_passes, f"{name}: zero-shot")
        for set_index, seed in enumerate(config.seeds):
            piece_name = f"{name}, seed {seed}"
            piece = pieces.get(piece_name, inputs)
            if piece is None:
                planned = planned_runs(config, set_index, n_orders)

                def report(amount: float, message: str = f"{experiment.lm.name}, seed {seed}") -> None:
                    progress.advance(amount, message)

                set_runs, set_trials = _run_set(
                    experiment, queries, demonstration_sets[seed].demonstrations, planned, parts[seed], rate, report
                )
                piece = _to_piece(piece_name, inputs, set_runs, set_trials)
                pieces.put(piece)
            else:
                progress.advance(work[seed], f"{name}, seed {seed}: finished earlier")
            set_runs, set_trials = _from_piece(piece)
            runs += set_runs
            trials += set_trials
            if rate is None:
                rate = next((trial.learning_rate for trial in set_trials if trial.chosen), None)
    return ModelRuns(
        name=name,
        facts={
            **model_facts(experiment.lm),
            "inputs": inputs,
            "k_effective": min(each.demonstrations.k_effective for each in demonstration_sets.values()),
            "orders": n_orders,
            "refused_routes": list(experiment.lm.refused),
        },
        runs=tuple(runs),
        trials=tuple(trials),
    )


def _run_set(
    experiment: Experiment[StabilityConfig],
    queries: tuple[Query, ...],
    demonstrations: Demonstrations,
    planned: Sequence[PlannedRun],
    parts: Sequence[WorkPart],
    rate: float | None,
    report: Callable[[float], None],
) -> tuple[list[RunAnswers], list[Trial]]:
    """All runs of one set, and the trials of the search for FT's learning rate."""
    runs: list[RunAnswers] = []
    trials: list[Trial] = []
    orders = demonstrations.in_orders(1 + max(run.order for run in planned))
    for run, part in zip(planned, parts, strict=True):
        reordered = experiment.encode(orders[run.order].relabelled(experiment.task, run.labels))
        adapted = InContext().adapt(experiment.lm, reordered.encoded) if run.learner == "icl" else None
        used_rate = None
        if adapted is None:
            known = run.rate if run.rate is not None else rate
            passes = part.work.passes
            search = _finetune(experiment, reordered, known, lambda share, passes=passes: report(share * passes))  # type: ignore[misc]
            adapted, used_rate = search.best, search.learning_rate
            rate = used_rate if known is None else rate
            # A run at a known rate counts as a trial only if it diverged.
            trials += [trial for trial in search.trials if known is None or trial.status == "diverged"]
        runs.append(_answers(experiment, queries, adapted, run, demonstrations.seed, used_rate))
        if run.learner == "icl":
            report(part.work.passes)
    return runs, trials


def _finetune(
    experiment: Experiment[StabilityConfig],
    demonstration_set: DemonstrationSet,
    known: float | None,
    report: Callable[[float], None],
) -> RateSearch:
    config = experiment.config

    def adapt(rate: float) -> AdaptedModel:
        return Finetuned(experiment.encoder.opening, rate, config.loss_on).adapt(
            experiment.lm, demonstration_set.encoded
        )

    grid = config.rates if known is None else tuple({*config.rates, known})
    seed = demonstration_set.demonstrations.seed
    return train_at_best_rate(adapt, grid, experiment, name="ft", seed=seed, known=known, report=report)


def _answers(
    experiment: Experiment[StabilityConfig],
    queries: tuple[Query, ...],
    adapted: AdaptedModel,
    run: PlannedRun,
    seed: int,
    rate: float | None = None,
) -> RunAnswers:
    answers = answer_log_probabilities(adapted, experiment.lm, queries)
    n = len(experiment.queries)
    return RunAnswers(run.learner, seed, run.order, run.labels, answers[:n], answers[n:], rate)


def _to_piece(name: str, inputs: str, runs: list[RunAnswers], trials: list[Trial]) -> Piece:
    tensors: dict[str, Tensor] = {}
    for number, run in enumerate(runs):
        tensors |= {f"{number}/answers": run.answers, f"{number}/content_free": run.content_free}
    about = {
        "runs": [[run.learner, run.seed, run.order, run.labels, run.rate] for run in runs],
        "trials": [trial.model_dump() for trial in trials],
    }
    return Piece(name, inputs, tensors, about)


def _from_piece(piece: Piece) -> tuple[list[RunAnswers], list[Trial]]:
    runs = [
        RunAnswers(
            learner,
            seed,
            order,
            labels,
            piece.tensors[f"{number}/answers"],
            piece.tensors[f"{number}/content_free"],
            rate,
        )
        for number, (learner, seed, order, labels, rate) in enumerate(piece.about["runs"])
    ]
    return runs, [Trial(**trial) for trial in piece.about["trials"]]
