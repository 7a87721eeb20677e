"""How much accuracy depends on which demonstrations were drawn, in which order, with which labels: ICL and FT.

For each model and demonstration set, ICL and FT are run in several orders and, in the order drawn, with random and
flipped labels. Every run answers the same queries and a few content-free ones, from which contextual calibration is
computed afterwards.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
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
    content_free_queries,
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
    """A finished study."""

    result: StabilityResult
    asked: TaskDescription
    models: tuple[ModelRuns, ...]
    """Answer by answer."""


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
    """Run the study.

    Args:
        config: What to run.
        lms: Models at hand, instead of those that `config.models` names.
        task: A task at hand, instead of the one that `config.task` names.
        pieces: Keeps each model's finished sets.
        progress: Is told how far the work is.

    Returns:
        The result and all that it was made of; equal settings give equal numbers.

    Raises:
        DualformError: A mistake in the settings, a model or the data, named.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    found: list[ModelRuns] = []
    asked, lm = None, None
    for number, name in enumerate(config.models):
        # The model before is let go first: two need not fit at once.
        lm = None
        lm = lms[number] if lms is not None else config.load_model(name)
        experiment = Experiment.of(config, lm, task)
        found.append(_run_model(name, experiment, len(config.models) - number, pieces, progress))
        if asked is None:
            asked = TaskDescription.of(experiment, notes=())
        else:
            more = [f"{name}: {note}" for note in experiment.notes() if note not in asked.notes]
            asked = replace(asked, notes=(*asked.notes, *more))
    assert asked is not None
    assert lm is not None
    where = environment(lm.device, time.perf_counter() - start)
    return StabilityStudy(summarise_stability(config, asked, found, where), asked, tuple(found))


def run(config: StabilityConfig, context: StudyContext) -> StudyOutput:
    """The study, as `Study.run`."""
    task = context.models.load_task(config)
    if len(config.models) == 1:
        lms = [context.models.load_model(config, config.models[0])]
    else:
        # Each is loaded in turn, and a model kept warm would take the room of the first.
        context.models.release()
        lms = None
    found = stability(config, lms=lms, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(found.result, runs_table(found.asked, found.models))


def _run_model(
    name: str, experiment: Experiment[StabilityConfig], models_left: int, pieces: PieceStore, progress: Progress
) -> ModelRuns:
    config = experiment.config
    # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
    drawn = experiment.draw_all(config.seeds)
    queries = (*experiment.queries, *content_free_queries(experiment))
    inputs = digest(experiment, drawn.values())
    n_orders = common_orders(config, drawn.values())
    zero_shot_passes = zero_shot_work(experiment, queries).passes
    parts = {
        seed: set_parts(
            experiment,
            queries,
            drawn[seed],
            planned_runs(config, place, n_orders),
            known=place > 0 and config.ft_seeds > 0,
        )
        for place, seed in enumerate(config.seeds)
    }
    work = {seed: sum(part.work.passes for part in each) for seed, each in parts.items()}
    progress.start(models_left * (sum(work.values()) + zero_shot_passes))
    runs: list[RunAnswers] = []
    trials: list[Trial] = []
    rate: float | None = None
    with experiment.lm.packed_products():
        zero_shot = ZeroShot(experiment.encoder.opening).adapt(experiment.lm, drawn[config.seeds[0]].encoded)
        runs.append(_answered(experiment, queries, zero_shot, PlannedRun("zsl", "true", 0, None), config.seeds[0]))
        progress.advance(zero_shot_passes, f"{name}: zero-shot")
        for place, seed in enumerate(config.seeds):
            piece_name = f"{name}, seed {seed}"
            piece = pieces.get(piece_name, inputs)
            if piece is None:
                planned = planned_runs(config, place, n_orders)

                def report(amount: float, doing: str = f"{experiment.lm.name}, seed {seed}") -> None:
                    progress.advance(amount, doing)

                done, tried = _run_set(
                    experiment, queries, drawn[seed].demonstrations, planned, parts[seed], rate, report
                )
                piece = _to_piece(piece_name, inputs, done, tried)
                pieces.put(piece)
            else:
                progress.advance(work[seed], f"{name}, seed {seed}: finished earlier")
            done, tried = _from_piece(piece)
            runs += done
            trials += tried
            if rate is None:
                rate = next((trial.learning_rate for trial in tried if trial.chosen), None)
    return ModelRuns(
        name=name,
        facts={
            **model_facts(experiment.lm),
            "inputs": inputs,
            "k_effective": min(one.demonstrations.k_effective for one in drawn.values()),
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
    """All runs of one set, and what was tried on the way."""
    runs: list[RunAnswers] = []
    trials: list[Trial] = []
    orders = demonstrations.in_orders(1 + max(run.order for run in planned))
    for run, part in zip(planned, parts, strict=True):
        shown = experiment.encode(orders[run.order].relabelled(experiment.task, run.labels))
        adapted = InContext().adapt(experiment.lm, shown.encoded) if run.learner == "icl" else None
        used = None
        if adapted is None:
            known = run.rate if run.rate is not None else rate
            ahead = part.work.passes
            search = _finetuned(experiment, shown, known, lambda share, ahead=ahead: report(share * ahead))  # type: ignore[misc]
            adapted, used = search.best, search.learning_rate
            rate = used if known is None else rate
            # Runs at a known rate are no trials, unless they failed.
            trials += [trial for trial in search.trials if known is None or trial.status == "diverged"]
        runs.append(_answered(experiment, queries, adapted, run, demonstrations.seed, used))
        if run.learner == "icl":
            report(part.work.passes)
    return runs, trials


def _finetuned(
    experiment: Experiment[StabilityConfig],
    shown: DemonstrationSet,
    known: float | None,
    report: Callable[[float], None],
) -> RateSearch:
    config = experiment.config

    def adapt(rate: float) -> AdaptedModel:
        return Finetuned(experiment.encoder.opening, rate, config.loss_on).adapt(experiment.lm, shown.encoded)

    grid = config.rates if known is None else tuple({*config.rates, known})
    return train_at_best_rate(
        adapt, grid, experiment, name="ft", seed=shown.demonstrations.seed, known=known, report=report
    )


def _answered(
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
