"""The main job: adapt one model to the same demonstrations in every way, look inside, and compare.

For each demonstration seed every learner is adapted, then all of them read the queries group by group, and the
measures of a group are taken before the next is read. Controls read the first groups only, and never keep more than
one of their readings at a time.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor

from dualform.attention_record import AttentionRecord
from dualform.errors import ConfigError, NumericalError
from dualform.learners.adapted import Adapted, AdaptedModel, answer_log_probabilities
from dualform.learners.base import LEARNERS, Answering, Context, Learner
from dualform.learners.rate import RateSearch
from dualform.learners.remembered import ReadingMemory, Remembered
from dualform.models.loading.quantized import WHY
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, Silent
from dualform.result import Result, Trial
from dualform.studies.bench import Bench, Drawn, digest, query_cost
from dualform.studies.comparison.arms import possible_arms
from dualform.studies.comparison.attention_view import AttentionView, attention_record, with_prefix
from dualform.studies.comparison.config import COMPARED, FINETUNED, IN_CONTEXT, ZERO_SHOT, ComparisonConfig
from dualform.studies.comparison.controls import Prepared, prepare
from dualform.studies.comparison.outcome import SeedOutcome, piece_name
from dualform.studies.comparison.repeated import Repeated, repeat_measures
from dualform.studies.comparison.summary import examples_table, summarise
from dualform.studies.controls import CONTROLS
from dualform.studies.facts import Asked
from dualform.studies.inside import Prompted, Shown, Side, likeness, recordings_for, trained_side
from dualform.studies.measures import MEASURES
from dualform.studies.pieces import Cells, NoCells, Piece
from dualform.studies.study import StudyContext, StudyOutput
from dualform.studies.tuning import trained
from dualform.studies.work import TRAINING, controlled_queries, work_of_adapting, work_of_seed
from dualform.tasks.task import Task

_SILENT = Silent()
_NO_CELLS = NoCells()


@dataclass(frozen=True)
class Comparison:
    """A finished comparison."""

    result: Result
    asked: Asked
    outcomes: tuple[SeedOutcome, ...]
    """Query by query, one for each seed that is reported."""

    @property
    def attention(self) -> AttentionRecord | None:
        """Where the first seed's learners looked; None where nobody asked, or zsl, icl and ft were not all run."""
        return attention_record(self.outcomes[0], self.asked)


@ordinary_torch()
def compare(
    config: ComparisonConfig,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    cells: Cells = _NO_CELLS,
    progress: Progress = _SILENT,
    memory: ReadingMemory | None = None,
) -> Comparison:
    """Run a comparison.

    Args:
        config: What to compare.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        cells: Keeps each finished seed.
        progress: Is told how far the work is.
        memory: Zero-shot readings of this model made earlier, which are not made again.

    Returns:
        The result and all that it was made of.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    start = time.perf_counter()
    run = _Run.of(config, lm, task, config.seeds, cells, progress, memory)
    with run.bench.lm.packed_products():
        chosen = _choose_seed(run)
        outcomes = _outcomes(run, chosen)
    remarks = dict.fromkeys(note for outcome in outcomes for note in outcome.notes)
    asked = Asked.of(run.bench, (*run.notes, *chosen.notes, *remarks))
    result = summarise(config, run.bench.lm, asked, outcomes, seconds=time.perf_counter() - start)
    return Comparison(result, asked, tuple(outcomes))


@ordinary_torch()
def compare_seed(
    config: ComparisonConfig,
    seed: int,
    *,
    lm: LanguageModel | None = None,
    task: Task | None = None,
    cells: Cells = _NO_CELLS,
    progress: Progress = _SILENT,
    memory: ReadingMemory | None = None,
) -> Comparison:
    """One seed of a comparison, exactly as `compare` runs it among all seeds of its settings.

    Args:
        config: What to compare, all seeds; one of them must not be chosen (`select` is `none`).
        seed: Which of them.
        lm: A model at hand, instead of the one that `config.model` names.
        task: A task at hand, instead of the one that `config.task` names.
        cells: Keeps the seed; the seed whose learning rates this one takes is read from here, or run too.
        progress: Is told how far the work is.
        memory: Zero-shot readings of this model made earlier, which are not made again.

    Returns:
        The comparison of this seed alone.

    Raises:
        DualformError: A mistake in the settings, model or data, named.
    """
    if config.select != "none":
        raise ConfigError(f"select {config.select} chooses among all seeds, so that none can be run alone")
    start = time.perf_counter()
    seeds = seeds_behind(config, seed)
    run = _Run.of(config, lm, task, seeds, cells, progress, memory)
    with run.bench.lm.packed_products():
        outcome = _outcomes(run, _Chosen(seeds))[-1]
    asked = Asked.of(run.bench, (*run.notes, *outcome.notes))
    result = summarise(config, run.bench.lm, asked, [outcome], seconds=time.perf_counter() - start)
    return Comparison(result, asked, (outcome,))


def run(config: ComparisonConfig, context: StudyContext) -> StudyOutput:
    """A comparison, as `Study.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    found = compare(config, lm=lm, task=task, cells=context.cells, progress=context.progress, memory=models.memory)
    return StudyOutput(found.result, examples_table(found.asked, found.outcomes), found.attention)


def run_seed(config: ComparisonConfig, seed: int, context: StudyContext) -> tuple[Piece, Result]:
    """One seed of a comparison, as `SeedBySeed.run`."""
    models = context.models
    task = models.load_task(config)
    lm = models.load_model(config, config.model)
    # Intervals are computed once, over all seeds; here a bootstrap would be thrown away.
    quick = config.model_copy(update={"resamples": 10})
    one = compare_seed(
        quick, seed, lm=lm, task=task, cells=context.cells, progress=context.progress, memory=models.memory
    )
    return one.outcomes[0].to_piece(), one.result


def has_independent_seeds(config: ComparisonConfig) -> bool:
    """Whether a seed can be run without the others: not where one of them is chosen."""
    return config.select == "none"


def seeds_behind(config: ComparisonConfig, seed: int) -> tuple[int, ...]:
    """The seeds that one seed's numbers hang on, itself last: the first one's search for learning rates serves all."""
    searched = any(LEARNERS[name].grid for name in config.learners)
    first = config.seeds[0]
    return (first, seed) if config.tune == "first" and searched and seed != first else (seed,)


@dataclass(frozen=True)
class _Run:
    """What the steps of one call share."""

    bench: Bench[ComparisonConfig]
    notes: tuple[str, ...]
    drawn: dict[int, Drawn]
    inputs_of_learners: tuple[str, ...]
    """What learners read from files of their own, and versions of packages that define some of what is run."""
    cells: Cells
    progress: Progress
    memory: ReadingMemory | None

    @classmethod
    def of(
        cls,
        config: ComparisonConfig,
        lm: LanguageModel | None,
        task: Task | None,
        seeds: tuple[int, ...],
        cells: Cells,
        progress: Progress,
        memory: ReadingMemory | None,
    ) -> "_Run":
        task = task or config.load_task()
        bench, notes = set_up(config, lm or config.load_model(config.model), task)
        # Drawn first of all, so that demonstrations or queries that do not fit are named before any work is done.
        drawn = bench.draw_all(seeds)
        read = tuple(text for name in bench.config.learners for text in LEARNERS[name].prepare(bench))
        return cls(bench, notes, drawn, read, cells, progress, memory)

    def inputs(self, seeds: Sequence[int]) -> str:
        """Digest of all that these seeds' numbers are made from."""
        return digest(self.bench, [self.drawn[seed] for seed in seeds], self.inputs_of_learners)


def _outcomes(run: _Run, chosen: "_Chosen") -> list[SeedOutcome]:
    """The chosen seeds' outcomes, in order; finished ones are read back."""
    bench, config = run.bench, run.bench.config
    work = {
        seed: work_of_seed(bench, run.drawn[seed], seed == chosen.seeds[0], chosen.rates.keys())
        for seed in chosen.seeds
    }
    run.progress.start(sum(work.values()))
    outcomes: list[SeedOutcome] = []
    for seed in chosen.seeds:
        inputs = run.inputs(list(dict.fromkeys((*seeds_behind(config, seed)[:-1], seed))))
        piece = run.cells.get(piece_name(seed), inputs)
        if piece is None:
            known = chosen.rates if not outcomes else ({} if config.tune == "each" else outcomes[0].rates)
            outcome = _run_seed(run, seed, inputs, known, chosen)
            run.cells.put(outcome.to_piece())
        else:
            outcome = SeedOutcome.from_piece(piece)
            run.progress.advance(work[seed], f"seed {seed} was finished earlier")
        outcomes.append(outcome)
    return outcomes


def set_up(config: ComparisonConfig, lm: LanguageModel, task: Task) -> tuple[Bench[ComparisonConfig], tuple[str, ...]]:
    """The bench, and what must be said about it. Learners and controls that cannot be run are taken out."""
    arms = possible_arms(lm, config)
    notes = list(arms.notes)
    learners, controls = arms.learners, arms.controls
    if task.is_multiple_choice and (idle := [name for name in learners if LEARNERS[name].needs_label_words]):
        learners = tuple(name for name in learners if name not in idle)
        notes += [f"The {name} was left out: free-text choices have no classes to regress on." for name in idle]
    if lm.quantized is not None:
        changing = [name for name in learners if LEARNERS[name].changes_weights]
        learners = tuple(name for name in learners if name not in changing)
        left_out = f" {', '.join(changing)} and the measures that need them were left out." if changing else ""
        notes.append(
            f"Weights are stored in {lm.quantized}: {WHY}, so this is about accuracy alone, and beside unrounded "
            f"weights answers may differ.{left_out}"
        )
        if lm.quantized == "8 bit":
            notes.append(
                "8-bit products look at all tokens of a row, so that an answer hangs a little on its neighbours."
            )
    if controls and (config.k == 0 or not set(COMPARED) <= set(learners)):
        controls = ()
        notes.append("No controls were run: they stand in for ICL and FT beside zero-shot, behind demonstrations.")
    for name in controls:
        CONTROLS[name].prepare(config)
    for name in MEASURES.names():
        # One of another package that cannot be loaded is reported before any work is done.
        MEASURES[name]
    config = config.model_copy(update={"learners": learners, "controls": controls})
    paper = task.paper_split if config.preset == "dai2023" else None
    bench = Bench.of(config, lm, task, report_split=paper, select_on=config.select_on)
    if config.select_on == "report":
        notes.append(
            "Learning rates were chosen on the very queries that are reported, as the paper does: this flatters FT."
        )
    return bench, tuple(notes)


@dataclass(frozen=True)
class _Chosen:
    """The seeds to report, and what must be said about how they were chosen."""

    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    """Learner -> learning rate that the choice of seed has found."""
    trials: dict[str, tuple[Trial, ...]] = field(default_factory=dict)
    """Learner -> the search that found it."""
    search_seconds: dict[str, float] = field(default_factory=dict)
    """Learner -> what searching took, over all seeds."""


def _choose_seed(run: _Run) -> _Chosen:
    """All seeds; or, when the settings say so, the one that is best for a learner on the selection queries."""
    bench, drawn, cells, progress = run.bench, run.drawn, run.cells, run.progress
    config = bench.config
    if config.select == "none" or len(config.seeds) == 1:
        return _Chosen(config.seeds)
    inputs = run.inputs(config.seeds)
    progress.start(sum(_work_of_choice(bench, one) for one in drawn.values()))
    pieces = {}
    for seed, one in drawn.items():
        name = f"choosing, seed {seed}"
        piece = cells.get(name, inputs)
        if piece is None:
            piece = Piece(name, inputs, {}, _candidate(bench, one))
            cells.put(piece)
        pieces[seed] = piece.about
        progress.advance(_work_of_choice(bench, one), f"choosing a seed: {seed}")
    best = max(config.seeds, key=lambda seed: (pieces[seed]["score"], -seed))
    tried = ", ".join(f"{seed}: {about['score']:.3f}" for seed, about in pieces.items())
    learner = " and ".join(name.upper() for name in config.selecting)
    learner += " (mean)" if len(config.selecting) > 1 else ""
    where = "the reported queries" if config.select_on == "report" else "the selection queries"
    flatters = (
        f"this flatters {learner}, and no interval below shows it."
        if config.select_on == "report"
        else "the reported queries took no part."
    )
    tokens = sum(about["tokens"] for about in pieces.values())
    note = (
        f"Seed {best} was chosen among {len(config.seeds)} for the accuracy of {learner} on {where} ({tried}; "
        f"{tokens:,.0f} tokens read, a backward pass counted as two forward ones): {flatters}"
    )
    trials = {name: tuple(Trial(**trial) for trial in made) for name, made in pieces[best]["trials"].items()}
    rates = {name: next(trial.learning_rate for trial in made if trial.chosen) for name, made in trials.items()}
    seconds = {name: sum(about["search_seconds"][name] for about in pieces.values()) for name in rates}
    return _Chosen((best,), (note,), rates, trials, seconds)


def _candidate(bench: Bench[ComparisonConfig], drawn: Drawn) -> dict[str, object]:
    """How good one seed is on the selection queries, and what finding out took."""
    right = torch.tensor(bench.selection_labels)
    scores: list[float] = []
    trials: dict[str, list[dict[str, object]]] = {}
    seconds: dict[str, float] = {}
    tokens = 0.0
    queries = sum(query.width() for query in bench.selection_queries)
    for name in bench.config.selecting:
        learner, context = LEARNERS[name], Context(bench, drawn)
        if learner.grid is None:
            table = answer_log_probabilities(learner.adapt(context), bench.lm, bench.selection_queries)
            scores.append(float((table.argmax(dim=1) == right).double().mean()))
            tokens += learner.work(context) + queries
            continue
        start = time.perf_counter()
        search = _train(bench, learner, context, None)
        seconds[name] = time.perf_counter() - start
        best = next(trial for trial in search.trials if trial.chosen)
        assert best.validation_accuracy is not None
        scores.append(best.validation_accuracy)
        trials[name] = [trial.model_dump() for trial in search.trials]
        run = sum(trial.status != "skipped" for trial in search.trials)
        tokens += run * (TRAINING * len(drawn.encoded.prefix) + queries)
    return {"score": sum(scores) / len(scores), "tokens": tokens, "trials": trials, "search_seconds": seconds}


def _work_of_choice(bench: Bench[ComparisonConfig], drawn: Drawn) -> float:
    queries = sum(query.width() for query in bench.selection_queries)
    learners = [LEARNERS[name] for name in bench.config.selecting]
    # A search reads the selection queries at every rate, which its work includes.
    return sum(work_of_adapting(bench, one, drawn, True) + (0 if one.grid else queries) for one in learners)


def _run_seed(run: _Run, seed: int, inputs: str, known: dict[str, float], chosen: _Chosen) -> SeedOutcome:
    """One seed, from demonstrations to numbers; `known` are learning rates that need no search."""
    bench, drawn, progress = run.bench, run.drawn[seed], run.progress
    demonstrations, encoded = drawn.demonstrations, drawn.encoded
    adapted: dict[str, Adapted] = {}
    trials: list[Trial] = []
    rates: dict[str, float] = {}
    search_seconds: dict[str, float] = {}
    facts: dict[str, dict[str, Any]] = {}
    repeated: Repeated | None = None
    # Searches last: what another learner cannot use is reported before minutes of training.
    for name in sorted(bench.config.learners, key=lambda name: LEARNERS[name].grid is not None):
        learner = LEARNERS[name]
        work = work_of_adapting(bench, learner, drawn, searching=name not in known)
        advance = _Advance(progress, work, f"seed {seed}: adapting {name}")
        context = Context(bench, drawn, report=advance, record=facts.setdefault(name, {}).update)
        start = time.perf_counter()
        if learner.grid is None:
            adapted[name] = learner.adapt(context)
            advance(1.0 - advance.share)
            continue
        found = _train(bench, learner, context, known.get(name))
        adapted[name] = found.best
        rates[name] = found.learning_rate
        # The search that chose the seed has chosen the rate too.
        trials += chosen.trials.get(name, found.trials)
        seconds = time.perf_counter() - start - found.best.cost.seconds
        search_seconds[name] = (seconds if name not in known else 0.0) + chosen.search_seconds.get(name, 0.0)
        if name == FINETUNED and bench.config.repeats_finetuning:
            progress.advance(0, f"seed {seed}: repeating {name} from weights moved by rounding")
            repeated = _repeated(learner, context, found)
    adapted = {name: adapted[name] for name in bench.config.learners}
    if run.memory is not None and ZERO_SHOT in adapted:
        # Zero-shot is the same for every seed.
        adapted[ZERO_SHOT] = Remembered(adapted[ZERO_SHOT], run.memory, bench.encoder.opening)
    prepared = Prepared((), {}, (), ())
    start = time.perf_counter()
    icl, ft = adapted.get(IN_CONTEXT), adapted.get(FINETUNED)
    if bench.config.controls and isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel):

        def say(control: str) -> None:
            progress.advance(0, f"seed {seed}: control {control}")

        prepared = prepare(bench, drawn, icl, ft, rates[FINETUNED], known, say)
    control_seconds = time.perf_counter() - start
    read = _read(bench, seed, encoded, adapted, prepared, repeated, progress)
    costs = {
        name: {
            "adapt_seconds": one.cost.seconds,
            "adapt_tokens": float(one.cost.tokens),
            "adapt_flops": one.cost.flops,
            "query_seconds": read.seconds[name] / len(bench.queries),
            "search_seconds": max(0.0, search_seconds.get(name, 0.0)),
            **query_cost(bench, one.n_prefix),
        }
        for name, one in adapted.items()
    }
    return SeedOutcome(
        seed=seed,
        rows=demonstrations.rows,
        n_tokens=len(encoded.prefix),
        log_probabilities=read.answers,
        measures=read.measures,
        costs=costs,
        control_answers=read.control_answers,
        repeats={} if repeated is None else {FINETUNED: repeated.about},
        repeat_answers=read.repeat_answers,
        rates=rates | prepared.rates,
        facts={name: known for name, known in facts.items() if known},
        trials=(*trials, *prepared.trials),
        control_seconds=control_seconds + read.control_seconds,
        notes=prepared.notes,
        inputs=inputs,
        attention={} if read.view is None else read.view.tensors(),
        attention_about={} if read.view is None else read.view.about(bench, encoded),
    )


class _Advance:
    """Passes shares of one learner's work on to a progress bar.

    Args:
        progress: The bar.
        work: All of the work.
        doing: What is shown meanwhile.
    """

    def __init__(self, progress: Progress, work: float, doing: str) -> None:
        self._progress, self._work, self._doing = progress, work, doing
        self.share = 0.0
        """Of the work that is done."""

    def __call__(self, share: float) -> None:
        self.share += share
        self._progress.advance(self._work * share, self._doing)


def _train(bench: Bench[ComparisonConfig], learner: Learner, context: Context, known: float | None) -> RateSearch:
    """Train at a known learning rate, or search the learner's grid."""
    config = bench.config

    def adapt(rate: float, rounding_seed: int | None = None) -> AdaptedModel:
        return _at_rate(learner, replace(context, rate=rate, rounding_seed=rounding_seed))

    chooses = learner.can_repeat and config.repeats_finetuning and config.rounding == "choose"
    return trained(
        adapt,
        config.grid_of(learner),
        bench,
        name=learner.name,
        seed=context.seed,
        known=known,
        report=context.report,
        repeat=partial(adapt, rounding_seed=context.seed) if chooses and context.encoded.sequences else None,
        option=f"--{learner.grid}".replace("_", "-"),
    )


def _at_rate(learner: Learner, context: Context) -> AdaptedModel:
    """Train once.

    Raises:
        ConfigError: What the learner made has no training losses and no changes of weight.
    """
    adapted = learner.adapt(context)
    if not isinstance(adapted, AdaptedModel):
        raise ConfigError(
            f"the learner {learner.name} searches the grid {learner.grid}, so its adapt should return an AdaptedModel, "
            f"not a {type(adapted).__name__}"
        )
    return adapted


def _repeated(learner: Learner, context: Context, found: RateSearch) -> Repeated | None:
    """Training repeated from weights moved by rounding; None without demonstrations to train on."""
    if not context.encoded.sequences:
        return None
    model = found.repeat
    if model is None:
        again = replace(context, rate=found.learning_rate, rounding_seed=context.seed)
        try:
            model = _at_rate(learner, again)
        except NumericalError:
            # As far apart as two trainings can be, which is what is to be reported.
            model = None
    return Repeated(model, found.learning_rate, found.best.losses)


@dataclass
class _Read:
    """What all queries brought."""

    answers: dict[str, Tensor]
    measures: dict[str, Tensor] = field(default_factory=dict)
    control_answers: dict[str, Tensor] = field(default_factory=dict)
    repeat_answers: dict[str, Tensor] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    """By learner."""
    control_seconds: float = 0.0
    view: AttentionView | None = None

    def put(self, into: dict[str, Tensor], found: dict[str, Tensor], indices: Sequence[int], n: int) -> None:
        """Sort a group's numbers into tensors over all queries, NaN where nothing was read."""
        for key, value in found.items():
            if key not in into:
                into[key] = value.new_full((n, *value.shape[1:]), torch.nan)
            into[key][list(indices)] = value


def _read(
    bench: Bench[ComparisonConfig],
    seed: int,
    encoded: EncodedDemonstrations,
    adapted: dict[str, Adapted],
    prepared: Prepared,
    repeated: Repeated | None,
    progress: Progress,
) -> _Read:
    """All learners, and on some queries the controls and the repeated training, read them a group at a time."""
    want: dict[str, Recording] = {}
    icl, ft = adapted.get(IN_CONTEXT), adapted.get(FINETUNED)
    prompted, shown = None, None
    if isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel) and ZERO_SHOT in adapted:
        recordings = with_prefix(recordings_for(bench.lm.anatomy, len(encoded.sequences)))
        # Others than FT are recorded too: times of two models with changed weights can then be compared.
        want = {name: recordings.weights for name, one in adapted.items() if _in_weights(one)}
        want |= {ZERO_SHOT: recordings.zsl, IN_CONTEXT: recordings.context, FINETUNED: recordings.weights}
        if encoded.sequences:
            shown = Shown.of(encoded, bench.lm.device)
        prompted = Prompted.of(icl, None if shown is None else shown.content, shown)
    n = len(bench.queries)
    width = max(len(query.answers) for query in bench.queries)
    read = _Read(
        answers={name: torch.full((n, width), -torch.inf, dtype=torch.float64) for name in adapted},
        seconds=dict.fromkeys(adapted, 0.0),
    )
    if prompted is not None and bench.config.explore:
        read.view = AttentionView(bench.config.explore, bench.labels, None if shown is None else shown.content)
    for indices, controlled in _groups(bench):
        readings: dict[str, Readings] = {}
        spent: dict[str, float] = {}
        for name, one in adapted.items():
            start = time.perf_counter()
            source = LEARNERS[name].answers_from
            if source in readings:
                # Another learner has read what this one reads; only its own answer is left to be given.
                readings[name] = cast(Answering, one).answer(readings[source])
                start -= spent[source]
            else:
                wanted = want.get(name, NO_RECORDING)
                readings[name] = one.read_group(bench.queries, indices, wanted, bench.config.probe)
            spent[name] = time.perf_counter() - start
            if isinstance(one, Remembered):
                spent[name] += one.spared
            read.seconds[name] += spent[name]
            found = readings[name].log_probabilities.double().cpu()
            read.answers[name][list(indices), : found.shape[1]] = found
            progress.advance(sum(bench.queries[i].width() for i in indices), f"seed {seed}: reading queries")
        again: Readings | None = None
        if controlled and repeated is not None:
            if repeated.model is not None:
                again = repeated.read(bench, indices, want.get(FINETUNED, NO_RECORDING))
                answers = {FINETUNED: again.log_probabilities.double().cpu()}
                read.put(read.repeat_answers, _widened(answers, width), indices, n)
            progress.advance(sum(bench.queries[i].width() for i in indices), f"seed {seed}: reading ft repeated")
        if prompted is None or not isinstance(ft, AdaptedModel):
            continue
        zsl = readings[ZERO_SHOT]
        scaled = bench.config.kendall_scale
        sides = {
            "icl": prompted.side(readings[IN_CONTEXT]),
            "ft": trained_side(ft, readings[FINETUNED], zsl, shown, scaled),
        }
        measured = likeness(zsl, sides["icl"], sides["ft"])
        read.put(read.measures, measured | prompted.relaxation(readings[IN_CONTEXT]), indices, n)
        if read.view is not None:
            read.view.offer(readings, sides["ft"].ranks, measured.get("kendall"))
        if again is not None and repeated is not None and repeated.model is not None:
            side = trained_side(repeated.model, again, zsl, shown, scaled)
            read.put(read.measures, repeat_measures(zsl, sides, side), indices, n)
        for name, one in adapted.items():
            if LEARNERS[name].compared_inside and isinstance(one, AdaptedModel) and name in want:
                measured = _compared(name, trained_side(one, readings[name], zsl, None), zsl, sides)
                read.put(read.measures, measured, indices, n)
        if controlled:
            start = time.perf_counter()
            for control in prepared.controls:
                measured, answered = control.read(bench, indices, zsl, sides)
                read.put(read.measures, measured, indices, n)
                read.put(read.control_answers, _widened(answered, width), indices, n)
                progress.advance(sum(bench.queries[i].width() for i in indices), f"seed {seed}: reading controls")
            read.control_seconds += time.perf_counter() - start
    return read


def _compared(learner: str, side: Side, zsl: Readings, sides: dict[str, Side]) -> dict[str, Tensor]:
    """A further learner's inside compared with ICL's and with FT's, for one group."""
    found: dict[str, Tensor] = {}
    for name, pair in (("icl", (sides["icl"], side)), ("ft", (side, sides["ft"]))):
        measured = likeness(zsl, *pair, moved_by=sides["icl"].trace)
        found |= {f"learner/{learner}/{name}/{key}": value for key, value in measured.items()}
    return found


def _in_weights(adapted: Adapted) -> bool:
    """Whether an adapted model is a change of weights behind the zero-shot prompt."""
    return isinstance(adapted, AdaptedModel) and bool(adapted.deltas)


def _groups(bench: Bench[ComparisonConfig]) -> list[tuple[list[int], bool]]:
    """Groups of queries, and whether controls and repeated trainings read them too: those do not mix with others."""
    config = bench.config
    chosen = controlled_queries(bench)
    rest = sorted(set(range(len(bench.queries))) - set(chosen))
    found = []
    for some, controlled in ((chosen, True), (rest, False)):
        queries = [bench.queries[i] for i in some]
        found += [([some[i] for i in group], controlled) for group in bench.lm.groups(queries, config.probe)]
    return found


def _widened(answers: dict[str, Tensor], width: int) -> dict[str, Tensor]:
    """Tables of a group's answers with as many columns as the query with most answers needs."""
    return {
        name: torch.nn.functional.pad(table, (0, width - table.shape[1]), value=-torch.inf)
        for name, table in answers.items()
    }
