"""One seed of a comparison, from demonstrations to numbers."""

import time
from typing import Any

from dualform.learners.adapted import Adapted, AdaptedModel
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.reading_cache import CachedModel
from dualform.result import Trial
from dualform.studies.comparison.adapting import LearnerProgress, repeat_training, train_learner
from dualform.studies.comparison.config import FINETUNED, IN_CONTEXT, ZERO_SHOT
from dualform.studies.comparison.controls import PreparedControls, prepare
from dualform.studies.comparison.reading import read_queries
from dualform.studies.comparison.repeated import FinetuningRepeat
from dualform.studies.comparison.seed_choice import ChosenSeeds
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.setup import ComparisonRun
from dualform.studies.comparison.work import SeedWork, passes
from dualform.studies.experiment import query_cost


def compute_seed(
    run: ComparisonRun, seed: int, inputs: str, known: dict[str, float], chosen: ChosenSeeds, work: SeedWork
) -> SeedRecord:
    """Adapt every learner to one seed's demonstrations and read all queries.

    Args:
        run: What all seeds share.
        seed: Demonstration seed.
        inputs: Digest of all that the seed's numbers are computed from.
        known: Learner -> learning rate that needs no search.
        chosen: Searches made while the reported seed was chosen; they are not made again.
        work: What the seed reads and trains, for the progress bar.
    """
    experiment, drawn, progress = run.experiment, run.drawn[seed], run.progress
    demonstrations, encoded = drawn.demonstrations, drawn.encoded
    adapted: dict[str, Adapted] = {}
    trials: list[Trial] = []
    rates: dict[str, float] = {}
    search_seconds: dict[str, float] = {}
    facts: dict[str, dict[str, Any]] = {}
    repeated: FinetuningRepeat | None = None
    # Searches last: what another learner cannot use is reported before minutes of training.
    for name in sorted(experiment.config.learners, key=lambda name: LEARNERS[name].grid is not None):
        learner = LEARNERS[name]
        advance = LearnerProgress(progress, passes(work.adapting(name)), f"seed {seed}: adapting {name}")
        context = AdaptationContext(experiment, drawn, report=advance, record=facts.setdefault(name, {}).update)
        start = time.perf_counter()
        if learner.grid is None:
            adapted[name] = learner.adapt(context)
            advance(1.0 - advance.share)
            continue
        found = train_learner(experiment, learner, context, known.get(name))
        adapted[name] = found.best
        rates[name] = found.learning_rate
        # The search that chose the seed has chosen the rate too.
        trials += chosen.trials.get(name, found.trials)
        seconds = time.perf_counter() - start - found.best.cost.seconds
        search_seconds[name] = (seconds if name not in known else 0.0) + chosen.search_seconds.get(name, 0.0)
        if name == FINETUNED and experiment.config.repeats_finetuning:
            progress.advance(0, f"seed {seed}: repeating {name} from weights moved by rounding")
            repeated = repeat_training(learner, context, found)
            if repeated is not None:
                progress.advance(work.repeating().work.passes, f"seed {seed}: repeating {name}")
    adapted = {name: adapted[name] for name in experiment.config.learners}
    if run.memory is not None and ZERO_SHOT in adapted:
        # Zero-shot is the same for every seed.
        adapted[ZERO_SHOT] = CachedModel(adapted[ZERO_SHOT], run.memory, experiment.encoder.opening)
    prepared = PreparedControls((), {}, (), ())
    start = time.perf_counter()
    icl, ft = adapted.get(IN_CONTEXT), adapted.get(FINETUNED)
    if experiment.config.controls and isinstance(icl, AdaptedModel) and isinstance(ft, AdaptedModel):

        def report_control(control: str, made: bool) -> None:
            making = work.controls[control].making.passes if made and control in work.controls else 0.0
            progress.advance(making, f"seed {seed}: control {control}")

        prepared = prepare(experiment, drawn, icl, ft, rates[FINETUNED], known, report_control)
    control_seconds = time.perf_counter() - start
    read = read_queries(experiment, seed, work, adapted, prepared, repeated, progress)
    costs = {
        name: {
            "adapt_seconds": one.cost.seconds,
            "adapt_tokens": float(one.cost.tokens),
            "adapt_flops": one.cost.flops,
            "query_seconds": read.seconds[name] / len(experiment.queries),
            "search_seconds": max(0.0, search_seconds.get(name, 0.0)),
            **query_cost(experiment, one.n_prefix),
        }
        for name, one in adapted.items()
    }
    return SeedRecord(
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
        attention_about={} if read.view is None else read.view.about(experiment, encoded),
    )
