"""How much accuracy hangs on which demonstrations were drawn, in which order, with which labels: ICL beside FT.

For each model and demonstration set, ICL and FT are run in several orders and, in the order drawn, with random and
flipped labels. Every run answers the same queries and a few content-free ones, from which contextual calibration is
computed afterwards.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.rate import RateSearch
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, Silent
from dualform.result import Trial
from dualform.studies.bench import Bench, Drawn, digest
from dualform.studies.facts import Asked, environment, model_facts
from dualform.studies.pieces import Cells, NoCells, Piece
from dualform.studies.stability.config import StabilityConfig
from dualform.studies.stability.result import StabilityResult
from dualform.studies.stability.summary import ModelRuns, Run, runs_table, summarise_stability
from dualform.studies.study import StudyContext, StudyOutput
from dualform.studies.tuning import trained
from dualform.studies.work import TRAINING
from dualform.tasks.demonstrations import Demonstrations, LabelRule
from dualform.tasks.task import Example, Task

_SILENT = Silent()
_NO_CELLS = NoCells()

CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts that say nothing, as in arXiv:2102.09690, section 5."""

LABEL_RULES: tuple[LabelRule, ...] = ("random", "flipped")
"""Labels shown beside the true ones, as in arXiv:2202.12837."""


@dataclass(frozen=True)
class StabilityStudy:
    """A finished study."""

    result: StabilityResult
    asked: Asked
    models: tuple[ModelRuns, ...]
    """Answer by answer."""


@ordinary_torch()
def stability(
    config: StabilityConfig,
    *,
    lms: Sequence[LanguageModel] | None = None,
    task: Task | None = None,
    cells: Cells = _NO_CELLS,
    progress: Progress = _SILENT,
) -> StabilityStudy:
    """Run the study.

    Args:
        config: What to run.
        lms: Models at hand, instead of those that `config.models` names.
        task: A task at hand, instead of the one that `config.task` names.
        cells: Keeps each model's finished sets.
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
        bench = Bench.of(config, lm, task)
        found.append(_run_model(name, bench, len(config.models) - number, cells, progress))
        if asked is None:
            asked = Asked.of(bench, notes=())
        else:
            more = [f"{name}: {note}" for note in bench.notes() if note not in asked.notes]
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
    found = stability(config, lms=lms, task=task, cells=context.cells, progress=context.progress)
    return StudyOutput(found.result, runs_table(found.asked, found.models))


@dataclass(frozen=True)
class PlannedRun:
    """A run that lies ahead."""

    learner: str
    labels: LabelRule
    order: int
    rate: float | None
    """FT's; None for the rate that is chosen."""


def common_orders(config: StabilityConfig, drawn: Iterable[Drawn]) -> int:
    """Orders that every set is run in: as many as are wanted, or as the smallest set has.

    Long texts may leave one set with a single demonstration that fits. Sets in different numbers of orders would weigh
    differently in every spread, so all are run in the number that each of them has.
    """
    available = min(one.demonstrations.n_orders for one in drawn)
    return min(available, max(config.orders, config.ft_orders))


def planned_runs(config: StabilityConfig, place: int, n_orders: int) -> list[PlannedRun]:
    """The runs of one set.

    Args:
        config: The settings.
        place: Index of the set among the seeds.
        n_orders: From `common_orders`.
    """
    finetuned = place < config.ft_seeds
    further = [(f"ft@{rate:g}", rate) for rate in config.further_rates]
    plan = [PlannedRun("icl", "true", order, None) for order in range(min(config.orders, n_orders))]
    if finetuned:
        plan += [
            PlannedRun(name, "true", order, rate)
            for name, rate in [("ft", None), *further]
            for order in range(min(config.ft_orders, n_orders))
        ]
    if place < config.label_seeds:
        plan += [
            PlannedRun(learner, labels, 0, None)
            for learner in (["icl", "ft"] if finetuned else ["icl"])
            for labels in LABEL_RULES
        ]
    return plan


def _run_model(
    name: str, bench: Bench[StabilityConfig], models_left: int, cells: Cells, progress: Progress
) -> ModelRuns:
    config = bench.config
    # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
    drawn = bench.draw_all(config.seeds)
    queries = (*bench.queries, *content_free_queries(bench))
    inputs = digest(bench, drawn.values())
    n_orders = common_orders(config, drawn.values())
    work = {
        seed: sum(_work(bench, queries, drawn[seed], run) for run in planned_runs(config, place, n_orders))
        for place, seed in enumerate(config.seeds)
    }
    search = _work_of_search(bench, drawn[config.seeds[0]]) if config.ft_seeds else 0.0
    progress.start(models_left * (sum(work.values()) + search))
    runs: list[Run] = []
    trials: list[Trial] = []
    rate: float | None = None
    with bench.lm.packed_products():
        zero_shot = ZeroShot(bench.encoder.opening).adapt(bench.lm, drawn[config.seeds[0]].encoded)
        runs.append(_answered(bench, queries, zero_shot, PlannedRun("zsl", "true", 0, None), config.seeds[0]))
        for place, seed in enumerate(config.seeds):
            piece_name = f"{name}, seed {seed}"
            piece = cells.get(piece_name, inputs)
            if piece is None:
                planned = planned_runs(config, place, n_orders)

                def report(amount: float, doing: str = f"{bench.lm.name}, seed {seed}") -> None:
                    progress.advance(amount, doing)

                done, tried = _run_set(bench, queries, drawn[seed].demonstrations, planned, rate, report)
                piece = _to_piece(piece_name, inputs, done, tried)
                cells.put(piece)
            else:
                progress.advance(work[seed] + (search if place == 0 else 0), f"{name}, seed {seed}: finished earlier")
            done, tried = _from_piece(piece)
            runs += done
            trials += tried
            if rate is None:
                rate = next((trial.learning_rate for trial in tried if trial.chosen), None)
    return ModelRuns(
        name=name,
        facts={
            **model_facts(bench.lm),
            "inputs": inputs,
            "k_effective": min(one.demonstrations.k_effective for one in drawn.values()),
            "orders": n_orders,
            "refused_routes": list(bench.lm.refused),
        },
        runs=tuple(runs),
        trials=tuple(trials),
    )


def _run_set(
    bench: Bench[StabilityConfig],
    queries: tuple[Query, ...],
    demonstrations: Demonstrations,
    planned: Sequence[PlannedRun],
    rate: float | None,
    report: Callable[[float], None],
) -> tuple[list[Run], list[Trial]]:
    """All runs of one set, and what was tried on the way."""
    runs: list[Run] = []
    trials: list[Trial] = []
    orders = demonstrations.in_orders(1 + max(run.order for run in planned))
    for run in planned:
        shown = bench.shown(orders[run.order].relabelled(bench.task, run.labels))
        adapted = InContext().adapt(bench.lm, shown.encoded) if run.learner == "icl" else None
        used = None
        if adapted is None:
            known = run.rate if run.rate is not None else rate
            ahead = _work_of_search(bench, shown) if known is None else 0.0
            search = _finetuned(bench, shown, known, lambda share, ahead=ahead: report(share * ahead))  # type: ignore[misc]
            adapted, used = search.best, search.learning_rate
            rate = used if known is None else rate
            # Runs at a known rate are no trials, unless they failed.
            trials += [trial for trial in search.trials if known is None or trial.status == "diverged"]
        runs.append(_answered(bench, queries, adapted, run, demonstrations.seed, used))
        report(_work(bench, queries, shown, run))
    return runs, trials


def _finetuned(
    bench: Bench[StabilityConfig], shown: Drawn, known: float | None, report: Callable[[float], None]
) -> RateSearch:
    config = bench.config

    def adapt(rate: float) -> AdaptedModel:
        return Finetuned(bench.encoder.opening, rate, config.loss_on).adapt(bench.lm, shown.encoded)

    grid = config.rates if known is None else tuple({*config.rates, known})
    return trained(adapt, grid, bench, name="ft", seed=shown.demonstrations.seed, known=known, report=report)


def _answered(
    bench: Bench[StabilityConfig],
    queries: tuple[Query, ...],
    adapted: AdaptedModel,
    run: PlannedRun,
    seed: int,
    rate: float | None = None,
) -> Run:
    answers = answer_log_probabilities(adapted, bench.lm, queries)
    n = len(bench.queries)
    return Run(run.learner, seed, run.order, run.labels, answers[:n], answers[n:], rate)


def content_free_queries(bench: Bench[StabilityConfig]) -> tuple[Query, ...]:
    """Queries that say nothing; none for free-text choices, which have no label words to be biased to."""
    if bench.task.is_multiple_choice:
        return ()
    fields = bench.task.template.fields
    examples = [Example(fields=dict.fromkeys(fields, text), label=0, row=-1) for text in CONTENT_FREE]
    # A prompt that shows the text alone is nothing for an empty one.
    return tuple(bench.encoder.query(each) for each in examples if bench.task.template.render(each).strip())


def _work(bench: Bench[StabilityConfig], queries: tuple[Query, ...], shown: Drawn, run: PlannedRun) -> float:
    """Tokens read by a run, a backward pass counted as two forward ones."""
    adapting = len(shown.encoded.prefix) * (1.0 if run.learner == "icl" else TRAINING)
    return adapting + sum(query.width() for query in queries)


def _work_of_search(bench: Bench[StabilityConfig], shown: Drawn) -> float:
    one = len(shown.encoded.prefix) * TRAINING + sum(query.width() for query in bench.selection_queries)
    return len(bench.config.rates) * one


def _to_piece(name: str, inputs: str, runs: list[Run], trials: list[Trial]) -> Piece:
    tensors: dict[str, Tensor] = {}
    for number, run in enumerate(runs):
        tensors |= {f"{number}/answers": run.answers, f"{number}/content_free": run.content_free}
    about = {
        "runs": [[run.learner, run.seed, run.order, run.labels, run.rate] for run in runs],
        "trials": [trial.model_dump() for trial in trials],
    }
    return Piece(name, inputs, tensors, about)


def _from_piece(piece: Piece) -> tuple[list[Run], list[Trial]]:
    runs = [
        Run(
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
