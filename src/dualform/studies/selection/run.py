"""Runs the selection study.

Every trial (ICL with each seed and order, FT with each seed and rate) answers three disjoint sets of queries:
validation, report and untouched. All choices are then made from these answers (`selection.choosing`), by the
validation or the report queries, and evaluated on the untouched queries.
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
"""Similarity measures computed for every trial of FT; Rec2FTP is computed from the answers."""


@dataclass(frozen=True)
class SelectionStudy:
    """The result of a study and the trials from which it was computed."""

    result: SelectionResult
    description: TaskDescription
    trials: AllTrials


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
    """The result of a selection study. Equal settings give equal numbers.

    Args:
        config: The settings.
        lm: A loaded model to use in place of the one named by `config.model`.
        task: A loaded task to use in place of the one named by `config.task`.
        pieces: Stores each finished seed, so that an interrupted study can continue.
        progress: Receives the progress of the study.

    Raises:
        DualformError: The settings, the model or the data are invalid.
    """
    start = time.perf_counter()
    task = task or config.load_task()
    lm = lm or config.load_model(config.model)
    sets = three_sets(config, lm, task)
    experiment = sets.experiment
    # Draw all sets first, so that demonstrations or queries that do not fit the context raise before any work is done.
    together = sets.together()
    demonstration_sets = together.draw_all(config.seeds)
    inputs = digest(together, demonstration_sets.values())
    budget = search_budget(
        config, demonstration_sets, {"validation": sets.width("validation"), "report": sets.width("report")}
    )
    n_orders = max(budget.orders.values())
    notes = sets.notes
    if config.orders is not None and n_orders < config.orders:
        notes = (
            *notes,
            f"{config.orders} orders of each set were requested, but some sets have only {n_orders}, because few of "
            f"their demonstrations fit or some are equal. Every set was run in {n_orders}.",
        )
    work = {
        seed: sum(part.work.passes for part in seed_parts(sets, each, n_orders))
        for seed, each in demonstration_sets.items()
    }
    progress.start(sum(work.values()))
    seeds: list[SeedTrials] = []
    with lm.packed_products():
        zero_shot = ZeroShot(experiment.encoder.opening).adapt(lm, demonstration_sets[config.seeds[0]].encoded)
        zsl = answer_log_probabilities(zero_shot, lm, experiment.queries)
        for seed, demonstration_set in demonstration_sets.items():
            name = f"seed {seed}"
            piece = pieces.get(name, inputs)
            if piece is None:

                def report(amount: float, message: str = name) -> None:
                    progress.advance(amount, message)

                seed_trials = _run_seed(sets, demonstration_set, n_orders, zero_shot, report)
                piece = _to_piece(name, inputs, seed_trials)
                pieces.put(piece)
            else:
                progress.advance(work[seed], f"{name} was finished earlier")
            seeds.append(_from_piece(piece))
    facts = {**model_facts(lm), "inputs": inputs, "refused_routes": list(lm.refused)}
    description = TaskDescription.of(experiment, notes)
    trials = AllTrials(sets.examples, tuple(seeds), zsl, budget, facts, notes)
    result = summarise_selection(config, description, trials, environment(lm.device, time.perf_counter() - start))
    return SelectionStudy(result, description, trials)


def run(config: SelectionConfig, context: StudyContext) -> StudyOutput:
    """Runs the study; see `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    study = selection(config, lm=lm, task=task, pieces=context.pieces, progress=context.progress)
    return StudyOutput(study.result, trials_table(study.description, study.trials))


@dataclass(frozen=True)
class QuerySets:
    """Three sets of queries, without a text in common."""

    experiment: Experiment[SelectionConfig]
    """Setup in which the queries are the report set and the selection queries the validation set."""
    examples: dict[QuerySet, tuple[Example, ...]]
    queries: dict[QuerySet, tuple[Query, ...]]
    similar: tuple[int, ...]
    """Indices of the report queries on which similarity is measured."""
    notes: tuple[str, ...]

    def width(self, name: QuerySet) -> int:
        """Number of tokens of a set's queries."""
        return sum(query.width() for query in self.queries[name])

    def together(self) -> Experiment[SelectionConfig]:
        """Setup in which the untouched queries are reported too, since demonstrations must fit together with them."""
        return replace(
            self.experiment,
            examples=(*self.experiment.examples, *self.examples["untouched"]),
            queries=(*self.experiment.queries, *self.queries["untouched"]),
        )


def three_sets(config: SelectionConfig, lm: LanguageModel, task: Task) -> QuerySets:
    """Validation queries from the selection split; report and untouched ones from the report split.

    Raises:
        ConfigError: The splits have too few rows, or the task has a single split for both.
    """
    if task.selection_split == task.report_split:
        raise ConfigError(
            f"task {task.name!r} uses one split, {task.report_split!r}, for selection and report: give it two splits"
        )
    split = task.split(task.report_split)
    notes: tuple[str, ...] = ()
    n_report = len(split) // 2 if config.limit is None else config.limit
    rest = _rest(task, n_report)
    n_untouched = n_report if config.untouched_limit is None else config.untouched_limit
    if len(rest) < n_untouched:
        n_report = min(n_report, len(split) // 2)
        rest = _rest(task, n_report) if n_report else ()
        if not rest:
            raise ConfigError(
                f"the report split {task.report_split!r} of task {task.name!r} has {len(split)} rows, which leaves no "
                "untouched queries: it needs at least two different texts"
            )
        notes = (
            f"The report split has only {len(split)} rows, too few for all requested queries: {n_report} are report "
            f"queries and {min(len(rest), n_untouched)} untouched queries.",
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
    """Examples of the report split that are not in a report set of this size, without those with an equal text."""
    split = task.split(task.report_split)
    texts = {task.template.render(example) for example in sample(split, n_report)}
    return tuple(example for example in split if task.template.render(example) not in texts)


def search_budget(
    config: SelectionConfig, demonstration_sets: Mapping[int, DemonstrationSet], widths: Mapping[SelectOn, int]
) -> Budget:
    """The tokens that FT's search reads, and how many orders ICL may try with the same budget.

    An FT trial counts its training tokens three times (a backward pass counts as two forward passes) plus the queries
    by which it is scored; an ICL trial reads the demonstrations and the queries once. What the study reads in addition
    to estimate optimism is not counted, since a search alone would not read it.

    Args:
        config: FT's rates, and the orders if given.
        demonstration_sets: The demonstrations of every seed.
        widths: Number of tokens of all queries of each selecting set.

    Returns:
        The same number of orders for every seed: the one in the settings, or else the largest that is within the budget
        of every seed; at least 1, and no more than every set has. It differs between selecting sets, since more of
        the budget is spent on reading longer ones.
    """
    orders: dict[SelectOn, int] = {}
    icl: dict[SelectOn, dict[int, float]] = {}
    ft: dict[SelectOn, dict[int, float]] = {}
    for name, width in widths.items():
        icl_trial = {seed: len(each.encoded.prefix) + width for seed, each in demonstration_sets.items()}
        ft[name] = {
            seed: len(config.grid) * (training_work(each.encoded, opening=0).charged.passes + width)
            for seed, each in demonstration_sets.items()
        }
        affordable = min(int(ft[name][seed] // icl_trial[seed]) for seed in demonstration_sets)
        available = min(each.demonstrations.n_orders for each in demonstration_sets.values())
        orders[name] = max(1, min(config.orders or affordable, available))
        icl[name] = {seed: float(orders[name] * tokens) for seed, tokens in icl_trial.items()}
    return Budget(orders, icl, ft)


def _training_tokens(demonstration_set: DemonstrationSet) -> int:
    return sum(map(len, demonstration_set.encoded.sequences))


def order_work(sets: QuerySets, prefix: int) -> Work:
    """Work of ICL in one order: reading `prefix` tokens of demonstrations and the three sets of queries."""
    return encode(prefix) + sum((read(sets.queries[name], prefix) for name in SETS), Work())


def rate_work(sets: QuerySets, demonstration_set: DemonstrationSet) -> Work:
    """Work of FT at one rate: training and reading the three sets of queries."""
    experiment = sets.experiment
    opening = len(experiment.encoder.opening)
    training = training_work(demonstration_set.encoded, experiment.config.loss_on, opening=opening)
    return training + sum((read_changed(sets.queries[name], opening) for name in SETS), Work())


def similarity_work(sets: QuerySets, demonstration_set: DemonstrationSet) -> Work:
    """Work of similarity: reading with zero-shot, ICL and FT at each rate while recording, and the measures."""
    experiment = sets.experiment
    opening, probe, rates = len(experiment.encoder.opening), experiment.config.probe, len(experiment.config.grid)
    similar = [experiment.queries[index] for index in sets.similar]
    work = read(similar, opening, probe) + read(similar, len(demonstration_set.encoded.prefix), probe)
    work += read_changed(similar, opening, probe) * rates
    for group in rows(similar, probe):
        widest = max(similar[i].width(probe) for i in group)
        work += (
            Work.of(MeasureComputation(len(group), widest, len(demonstration_set.encoded.content), relaxed=False))
            * rates
        )
    return work


def seed_parts(sets: QuerySets, demonstration_set: DemonstrationSet, n_orders: int) -> list[WorkPart]:
    """The work of one seed."""
    orders = demonstration_set.demonstrations.in_orders(n_orders)
    prefixes = [len(sets.experiment.encode(order).encoded.prefix) for order in orders]
    return [
        WorkPart("icl", sum((order_work(sets, prefix) for prefix in prefixes), Work())),
        WorkPart("ft", rate_work(sets, demonstration_set) * len(sets.experiment.config.grid)),
        WorkPart("similarity", similarity_work(sets, demonstration_set)),
    ]


def _run_seed(
    sets: QuerySets,
    demonstration_set: DemonstrationSet,
    n_orders: int,
    zero_shot: AdaptedModel,
    report: Callable[[float], None],
) -> SeedTrials:
    """All trials of one seed, and the similarity of ICL and FT at each rate."""
    experiment, config, lm = sets.experiment, sets.experiment.config, sets.experiment.lm
    seed = demonstration_set.demonstrations.seed
    in_context: list[AdaptedModel] = []
    icl: list[dict[QuerySet, Tensor]] = []
    for demonstrations in demonstration_set.demonstrations.in_orders(n_orders):
        encoded = experiment.encode(demonstrations).encoded
        adapted = InContext().adapt(lm, encoded)
        icl.append(_answers(sets, adapted))
        # Similarity is measured in the order drawn only.
        in_context = in_context or [adapted]
        report(order_work(sets, len(encoded.prefix)).passes)
    finetuned: dict[float, AdaptedModel] = {}
    ft: list[dict[QuerySet, Tensor]] = []
    trials: list[Trial] = []
    for rate in config.grid:
        try:
            adapted = Finetuned(experiment.encoder.opening, rate, config.loss_on).adapt(lm, demonstration_set.encoded)
            ft.append(_answers(sets, adapted))
            finetuned[rate] = adapted
            trials.append(_trial(experiment, seed, rate, adapted, ft[-1]["validation"]))
        except NumericalError:
            trials.append(_trial(experiment, seed, rate, None, None))
        report(rate_work(sets, demonstration_set).passes)
    if not finetuned:
        tried = ", ".join(f"{rate:g}" for rate in config.grid)
        raise TrainingError(f"ft, seed {seed}: every learning rate diverged ({tried}). Give lower ones with --rates.")
    return SeedTrials(
        seed=seed,
        rows=demonstration_set.demonstrations.rows,
        prefix_tokens=len(demonstration_set.encoded.prefix),
        training_tokens=_training_tokens(demonstration_set),
        icl={name: torch.stack([answers[name] for answers in icl]) for name in SETS},
        ft={name: torch.stack([answers[name] for answers in ft]) for name in SETS},
        rates=tuple(finetuned),
        trials=tuple(trials),
        measures=_measures(sets, demonstration_set, zero_shot, in_context[0], tuple(finetuned.values()), report),
    )


def _answers(sets: QuerySets, adapted: AdaptedModel) -> dict[QuerySet, Tensor]:
    """Log-probabilities of the answers. Each set is read separately, so that none affects another, even by rounding."""
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
    demonstration_set: DemonstrationSet,
    zero_shot: AdaptedModel,
    in_context: AdaptedModel,
    finetuned: Sequence[AdaptedModel],
    report: Callable[[float], None],
) -> dict[str, Tensor]:
    """Measures of ICL in the order drawn and FT at each rate, `(rate, example)`, averaged over layers and heads."""
    experiment = sets.experiment
    queries = [experiment.queries[index] for index in sets.similar]
    recordings = recordings_for(experiment.lm.anatomy, len(demonstration_set.encoded.sequences))
    tokens = DemonstrationTokens.of(demonstration_set.encoded, experiment.lm.device)
    prompted = PromptedSide.of(in_context, tokens.content, tokens)
    probe = experiment.config.probe
    measures: dict[str, Tensor] = {}
    passes = similarity_work(sets, demonstration_set).passes
    for indices in experiment.lm.groups(queries, probe):
        zsl = zero_shot.read_group(queries, indices, recordings.zsl, probe)
        icl = prompted.side(in_context.read_group(queries, indices, recordings.context, probe))
        for rate_index, adapted in enumerate(finetuned):
            readings = adapted.read_group(queries, indices, recordings.weights, probe)
            measured = compute_measures(zsl, icl, trained_side(adapted, readings, zsl, tokens))
            for name in MEASURES:
                if name in measured:
                    table = measures.setdefault(
                        name, torch.full((len(finetuned), len(queries)), torch.nan, dtype=torch.float64)
                    )
                    table[rate_index, list(indices)] = _mean_over_heads_and_layers(measured[name])
        report(passes * len(indices) / len(queries))
    return measures


def _mean_over_heads_and_layers(values: Tensor) -> Tensor:
    """Means over heads, then over layers: `(example, ...)` -> `(example,)`."""
    while values.dim() > 1:
        values = values.nanmean(dim=-1)
    return values


def _to_piece(name: str, inputs: str, trials: SeedTrials) -> Piece:
    groups: dict[str, Mapping[str, Tensor]] = {"icl": trials.icl, "ft": trials.ft, "measures": trials.measures}  # type: ignore[dict-item]
    return Piece(
        name=name,
        inputs=inputs,
        tensors={f"{group}/{key}": value for group, tensors in groups.items() for key, value in tensors.items()},
        about={
            "seed": trials.seed,
            "rows": trials.rows,
            "prefix_tokens": trials.prefix_tokens,
            "training_tokens": trials.training_tokens,
            "rates": trials.rates,
            "trials": [trial.model_dump() for trial in trials.trials],
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
