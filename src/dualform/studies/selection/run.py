"""How much each way of choosing seed, order and rate flatters each learner, and whether similarity depends on it.

Every trial, ICL under each seed and order and FT under each seed and rate, answers three disjoint sets of queries:
validation, report, and untouched ones. All ways of choosing are then played on the same answers
(`selection.choosing`): what was chosen on one set is then tested on the untouched queries.
"""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.errors import ConfigError, NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.prompting import InContext, ZeroShot
from dualform.learners.training_work import training_work
from dualform.models.cost.work import MeasureComputation, Work, WorkPart, encode, read, rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.result import Trial
from dualform.studies.experiment import DemonstrationSet, Experiment, digest, sample
from dualform.studies.facts import TaskDescription, environment, model_facts
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.selection.choosing import SETS, QuerySet, SelectOn
from dualform.studies.selection.config import SelectionConfig
from dualform.studies.selection.result import SelectionResult
from dualform.studies.selection.summary import summarise_selection
from dualform.studies.selection.trials import AllTrials, Budget, SeedTrials, trials_table
from dualform.studies.sides import DemonstrationTokens, PromptedSide, compute_measures, recordings_for, trained_side
from dualform.studies.study import StudyContext, StudyOutput
from dualform.studies.work import read_changed
from dualform.tasks.task import Example, Task

_SILENT = SilentProgress()
_NO_PIECES = NoPieceStore()

MEASURES = ("sim_aou", "sim_aou_raw", "sim_am", "sim_am_delta", "kendall", "direct_update", "agreement")
"""Measures of similarity computed in every trial of FT; Rec2FTP is computed from answers."""


@dataclass(frozen=True)
class SelectionStudy:
    """A finished study."""

    result: SelectionResult
    asked: TaskDescription
    found: AllTrials
    """Answer by answer."""


@accepts_cells
@ordinary_torch()
def selection(
    config: SelectionConfig,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    pieces: PieceStore = _NO_PIECES,
    progress: Progress = _SILENT,
) -> SelectionStudy:
    """Run the study.

    Args:
        config: What to run.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        pieces: Keeps each finished seed.
        progress: Is told how far the work is.

    Returns:
        The result and all that it was made of; equal settings give equal numbers.

    Raises:
        DualformError: A mistake in the settings, the model or the data, named.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    lm = lm or config.load_model(config.model)
    sets = three_sets(config, lm, task)
    experiment = sets.experiment
    # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
    everything = sets.together()
    drawn = everything.draw_all(config.seeds)
    inputs = digest(everything, drawn.values())
    budget = search_budget(config, drawn, {"validation": sets.width("validation"), "report": sets.width("report")})
    n_orders = max(budget.orders.values())
    notes = sets.notes
    if config.orders is not None and n_orders < config.orders:
        notes = (
            *notes,
            f"{config.orders} orders of each selection were requested, but some selections have only {n_orders}, "
            f"because few of their demonstrations fit or some of them are equal. Every seed was run in {n_orders}.",
        )
    work = {seed: sum(part.work.passes for part in seed_parts(sets, one, n_orders)) for seed, one in drawn.items()}
    progress.start(sum(work.values()))
    seeds: list[SeedTrials] = []
    with lm.packed_products():
        zero_shot = ZeroShot(experiment.encoder.opening).adapt(lm, drawn[config.seeds[0]].encoded)
        zsl = answer_log_probabilities(zero_shot, lm, experiment.queries)
        for seed, one in drawn.items():
            name = f"seed {seed}"
            piece = pieces.get(name, inputs)
            if piece is None:

                def report(amount: float, doing: str = name) -> None:
                    progress.advance(amount, doing)

                piece = _to_piece(name, inputs, _run_seed(sets, one, n_orders, zero_shot, report))
                pieces.put(piece)
            else:
                progress.advance(work[seed], f"{name} was finished earlier")
            seeds.append(_from_piece(piece))
    facts = {**model_facts(lm), "inputs": inputs, "refused_routes": list(lm.refused)}
    asked = TaskDescription.of(experiment, notes)
    found = AllTrials(sets.examples, tuple(seeds), zsl, budget, facts, notes)
    result = summarise_selection(config, asked, found, environment(lm.device, time.perf_counter() - start))
    return SelectionStudy(result, asked, found)


def run(config: SelectionConfig, context: StudyContext) -> StudyOutput:
    """The study, as `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    found = selection(config, lm=lm, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(found.result, trials_table(found.asked, found.found))


@dataclass(frozen=True)
class QuerySets:
    """Three sets of queries, none of which shares a text with another."""

    experiment: Experiment[SelectionConfig]
    """Its queries are the report set, its selection queries the validation set."""
    examples: dict[QuerySet, tuple[Example, ...]]
    queries: dict[QuerySet, tuple[Query, ...]]
    similar: tuple[int, ...]
    """Places of the report queries on which similarity is measured."""
    notes: tuple[str, ...]

    def width(self, name: QuerySet) -> int:
        """Tokens of a set's queries."""
        return sum(query.width() for query in self.queries[name])

    def together(self) -> Experiment[SelectionConfig]:
        """A setup in which untouched queries count as reported: demonstrations must fit next to them too."""
        return replace(
            self.experiment,
            examples=(*self.experiment.examples, *self.examples["untouched"]),
            queries=(*self.experiment.queries, *self.queries["untouched"]),
        )


def three_sets(config: SelectionConfig, lm: LanguageModel, task: Task) -> QuerySets:
    """Validation queries from the selection split; report and untouched ones from the report split.

    Raises:
        ConfigError: Nothing is left for one of them.
    """
    if task.selection_split == task.report_split:
        raise ConfigError(
            f"task {task.name!r} selects and reports on one split, {task.report_split!r}: give it a split for each"
        )
    split = task.split(task.report_split)
    notes: tuple[str, ...] = ()
    n_report = len(split) // 2 if config.limit is None else config.limit
    rest = _rest(task, n_report)
    wanted = n_report if config.untouched_limit is None else config.untouched_limit
    if len(rest) < wanted:
        n_report = min(n_report, len(split) // 2)
        rest = _rest(task, n_report) if n_report else ()
        if not rest:
            raise ConfigError(
                f"the report split {task.report_split!r} of task {task.name!r} has {len(split)} rows, which leaves no "
                "queries untouched: give a task with at least two different ones"
            )
        notes = (
            f"The report split has {len(split)} rows, too few for all the queries asked for: {n_report} are the report "
            f"queries and {min(len(rest), wanted)} the untouched ones.",
        )
    experiment = replace(Experiment.of(config.model_copy(update={"limit": n_report}), lm, task), config=config)
    untouched = sample(rest, config.untouched_limit)
    n_similar = n_report if config.similarity_limit is None else min(n_report, config.similarity_limit)
    return QuerySets(
        experiment=experiment,
        examples={"validation": experiment.selection, "report": experiment.examples, "untouched": untouched},
        queries={
            "validation": experiment.selection_queries,
            "report": experiment.queries,
            "untouched": tuple(experiment.encoder.query(example) for example in untouched),
        },
        similar=tuple(sorted(random.Random(1).sample(range(n_report), n_similar))),
        notes=notes,
    )


def _rest(task: Task, n_report: int) -> tuple[Example, ...]:
    """Examples of the report split that a report set of this size leaves over, but those whose text it holds too."""
    split = task.split(task.report_split)
    texts = {task.template.render(example) for example in sample(split, n_report)}
    return tuple(example for example in split if task.template.render(example) not in texts)


def search_budget(
    config: SelectionConfig, drawn: Mapping[int, DemonstrationSet], widths: Mapping[SelectOn, int]
) -> Budget:
    """What FT's search reads, and how many orders ICL may try for no more than that.

    An FT trial reads its training tokens three times over (a backward pass counts as two forward ones) and the queries
    on which it is scored; an ICL trial reads the demonstrations and the queries once. What the study reads besides, to
    find out how much a search flatters, no search would read: it is not counted.

    Args:
        config: Rates, and orders where they are given.
        drawn: Every seed's demonstrations.
        widths: Tokens of all queries of a set.

    Returns:
        The same number of orders for every seed of a set: those that the settings name, else the most that each
        seed's budget pays for; at least one and no more than every seed has. Sets differ, as longer ones spend more of
        the budget on reading.
    """
    orders: dict[SelectOn, int] = {}
    icl: dict[SelectOn, dict[int, float]] = {}
    ft: dict[SelectOn, dict[int, float]] = {}
    for name, width in widths.items():
        one = {seed: len(each.encoded.prefix) + width for seed, each in drawn.items()}
        ft[name] = {
            seed: len(config.grid) * (training_work(each.encoded, opening=0).charged.passes + width)
            for seed, each in drawn.items()
        }
        affordable = min(int(ft[name][seed] // one[seed]) for seed in drawn)
        available = min(each.demonstrations.n_orders for each in drawn.values())
        orders[name] = max(1, min(config.orders or affordable, available))
        icl[name] = {seed: float(orders[name] * tokens) for seed, tokens in one.items()}
    return Budget(orders, icl, ft)


def _training_tokens(drawn: DemonstrationSet) -> int:
    return sum(map(len, drawn.encoded.sequences))


def order_work(sets: QuerySets, prefix: int) -> Work:
    """ICL in one order: its demonstrations, and three sets of queries behind them."""
    return encode(prefix) + sum((read(sets.queries[name], prefix) for name in SETS), Work())


def rate_work(sets: QuerySets, drawn: DemonstrationSet) -> Work:
    """FT at one rate: training, and three sets of queries."""
    experiment = sets.experiment
    opening = len(experiment.encoder.opening)
    training = training_work(drawn.encoded, experiment.config.loss_on, opening=opening)
    return training + sum((read_changed(sets.queries[name], opening) for name in SETS), Work())


def inside_work(sets: QuerySets, drawn: DemonstrationSet) -> Work:
    """Zero-shot, ICL in the order drawn and FT at each rate, read again with their inside, and measured."""
    experiment = sets.experiment
    opening, probe, rates = len(experiment.encoder.opening), experiment.config.probe, len(experiment.config.grid)
    similar = [experiment.queries[place] for place in sets.similar]
    work = read(similar, opening, probe) + read(similar, len(drawn.encoded.prefix), probe)
    work += read_changed(similar, opening, probe) * rates
    for group in rows(similar, probe):
        widest = max(similar[i].width(probe) for i in group)
        work += Work.of(MeasureComputation(len(group), widest, len(drawn.encoded.content), relaxed=False)) * rates
    return work


def seed_parts(sets: QuerySets, drawn: DemonstrationSet, n_orders: int) -> list[WorkPart]:
    """All that one seed takes."""
    shown = [sets.experiment.encode(order).encoded for order in drawn.demonstrations.in_orders(n_orders)]
    return [
        WorkPart("icl", sum((order_work(sets, len(encoded.prefix)) for encoded in shown), Work())),
        WorkPart("ft", rate_work(sets, drawn) * len(sets.experiment.config.grid)),
        WorkPart("likeness", inside_work(sets, drawn)),
    ]


def _run_seed(
    sets: QuerySets, drawn: DemonstrationSet, n_orders: int, zero_shot: AdaptedModel, report: Callable[[float], None]
) -> SeedTrials:
    """All trials of one seed, and how similar ICL and FT are inside in each."""
    experiment, config, lm = sets.experiment, sets.experiment.config, sets.experiment.lm
    seed = drawn.demonstrations.seed
    in_context: list[AdaptedModel] = []
    icl: list[dict[QuerySet, Tensor]] = []
    for demonstrations in drawn.demonstrations.in_orders(n_orders):
        encoded = experiment.encode(demonstrations).encoded
        adapted = InContext().adapt(lm, encoded)
        icl.append(_answers(sets, adapted))
        # Only the order drawn is looked into.
        in_context = in_context or [adapted]
        report(order_work(sets, len(encoded.prefix)).passes)
    finetuned: dict[float, AdaptedModel] = {}
    ft: list[dict[QuerySet, Tensor]] = []
    trials: list[Trial] = []
    for rate in config.grid:
        try:
            adapted = Finetuned(experiment.encoder.opening, rate, config.loss_on).adapt(lm, drawn.encoded)
            ft.append(_answers(sets, adapted))
            finetuned[rate] = adapted
            trials.append(_trial(experiment, seed, rate, adapted, ft[-1]["validation"]))
        except NumericalError:
            trials.append(_trial(experiment, seed, rate, None, None))
        report(rate_work(sets, drawn).passes)
    if not finetuned:
        tried = ", ".join(f"{rate:g}" for rate in config.grid)
        raise TrainingError(f"ft, seed {seed}: every learning rate diverged ({tried}). Give lower ones with --rates.")
    return SeedTrials(
        seed=seed,
        rows=drawn.demonstrations.rows,
        prefix_tokens=len(drawn.encoded.prefix),
        training_tokens=_training_tokens(drawn),
        icl={name: torch.stack([answers[name] for answers in icl]) for name in SETS},
        ft={name: torch.stack([answers[name] for answers in ft]) for name in SETS},
        rates=tuple(finetuned),
        trials=tuple(trials),
        measures=_measures(sets, drawn, zero_shot, in_context[0], tuple(finetuned.values()), report),
    )


def _answers(sets: QuerySets, adapted: AdaptedModel) -> dict[QuerySet, Tensor]:
    """Each set is read by itself: not even rounding lets one set's texts into another's answers."""
    return {name: answer_log_probabilities(adapted, sets.experiment.lm, sets.queries[name]) for name in SETS}


def _trial(
    experiment: Experiment[SelectionConfig],
    seed: int,
    rate: float,
    adapted: AdaptedModel | None,
    answers: Tensor | None,
) -> Trial:
    accuracy, log_probability = None, None
    if answers is not None:
        labels = torch.tensor(experiment.selection_labels)
        accuracy = float((answers.argmax(dim=1) == labels).double().mean())
        log_probability = float(answers.gather(1, labels[:, None]).mean())
    losses = adapted.losses if adapted is not None and adapted.losses else (None,)
    return Trial(
        learner="ft",
        seed=seed,
        learning_rate=rate,
        validation_accuracy=accuracy,
        validation_log_probability=log_probability,
        first_loss=losses[0],
        last_loss=losses[-1],
        status="diverged" if adapted is None else "finished",
        chosen=False,
    )


def _measures(
    sets: QuerySets,
    drawn: DemonstrationSet,
    zero_shot: AdaptedModel,
    in_context: AdaptedModel,
    finetuned: Sequence[AdaptedModel],
    report: Callable[[float], None],
) -> dict[str, Tensor]:
    """Similarity of ICL in the order drawn and FT at each rate, `(rate, example)`, layers and heads averaged."""
    experiment = sets.experiment
    queries = [experiment.queries[place] for place in sets.similar]
    recordings = recordings_for(experiment.lm.anatomy, len(drawn.encoded.sequences))
    shown = DemonstrationTokens.of(drawn.encoded, experiment.lm.device)
    prompted = PromptedSide.of(in_context, shown.content, shown)
    probe = experiment.config.probe
    found: dict[str, Tensor] = {}
    inside = inside_work(sets, drawn).passes
    for indices in experiment.lm.groups(queries, probe):
        zsl = zero_shot.read_group(queries, indices, recordings.zsl, probe)
        icl = prompted.side(in_context.read_group(queries, indices, recordings.context, probe))
        for place, adapted in enumerate(finetuned):
            readings = adapted.read_group(queries, indices, recordings.weights, probe)
            measured = compute_measures(zsl, icl, trained_side(adapted, readings, zsl, shown))
            for name in MEASURES:
                if name in measured:
                    table = found.setdefault(
                        name, torch.full((len(finetuned), len(queries)), torch.nan, dtype=torch.float64)
                    )
                    table[place, list(indices)] = _overall(measured[name])
        report(inside * len(indices) / len(queries))
    return found


def _overall(values: Tensor) -> Tensor:
    """`(example, ...)` -> means over heads, then over layers, `(example,)`."""
    while values.dim() > 1:
        values = values.nanmean(dim=-1)
    return values


def _to_piece(name: str, inputs: str, one: SeedTrials) -> Piece:
    groups: dict[str, Mapping[str, Tensor]] = {"icl": one.icl, "ft": one.ft, "measures": one.measures}  # type: ignore[dict-item]
    return Piece(
        name=name,
        inputs=inputs,
        tensors={f"{group}/{key}": value for group, tensors in groups.items() for key, value in tensors.items()},
        about={
            "seed": one.seed,
            "rows": one.rows,
            "prefix_tokens": one.prefix_tokens,
            "training_tokens": one.training_tokens,
            "rates": one.rates,
            "trials": [trial.model_dump() for trial in one.trials],
        },
    )


def _from_piece(piece: Piece) -> SeedTrials:
    about = piece.about
    return SeedTrials(
        seed=about["seed"],
        rows=tuple(about["rows"]),
        prefix_tokens=about["prefix_tokens"],
        training_tokens=about["training_tokens"],
        icl={name: piece.tensors[f"icl/{name}"] for name in SETS},
        ft={name: piece.tensors[f"ft/{name}"] for name in SETS},
        rates=tuple(about["rates"]),
        trials=tuple(Trial(**trial) for trial in about["trials"]),
        measures={
            name.removeprefix("measures/"): table
            for name, table in piece.tensors.items()
            if name.startswith("measures/")
        },
    )
