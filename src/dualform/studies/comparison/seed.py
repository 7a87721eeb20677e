"""One seed of a comparison, from demonstrations to numbers."""

import time
from typing import Any

from dualform.learners.adapted import Adapted, AdaptedModel
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.learners.reading_cache import CachedModel
from dualform.result import Trial
from dualform.studies.comparison.adapting import repeat_training
from dualform.studies.comparison.config import FINETUNED, IN_CONTEXT, ZERO_SHOT
from dualform.studies.comparison.controls import PreparedControls, prepare
from dualform.studies.comparison.reading import read_queries
from dualform.studies.comparison.repeated import FinetuningRepeat
from dualform.studies.comparison.seed_choice import ChosenSeeds
from dualform.studies.comparison.seed_record import SeedRecord
from dualform.studies.comparison.setup import ComparisonRun
from dualform.studies.comparison.work import SeedWork, passes
from dualform.studies.experiment import query_cost
from dualform.studies.learner_training import LearnerProgress, count_labels, label_counts, train_learner


def compute_seed(
    run: ComparisonRun, seed: int, inputs: str, known: dict[str, float], chosen: ChosenSeeds, work: SeedWork
) -> SeedRecord:
    """Adapt every learner to one seed's demonstrations and read all queries.

    Args:
        run: The setup that all seeds share.
        seed: The demonstration seed.
        inputs: Digest of everything that the seed's numbers are computed from.
        known: Learner -> learning rate, for those that need no search.
        chosen: The chosen seeds, with the searches made while choosing them, which are reused.
        work: The seed's work, for the progress bar.
    """
    experiment, drawn, progress = run.experiment, run.drawn[seed], run.progress
    demonstrations, encoded = drawn.demonstrations, drawn.encoded
    adapted: dict[str, Adapted] = {}
    trials: list[Trial] = []
    rates: dict[str, float] = {}
    search_seconds: dict[str, float] = {}
    facts: dict[str, dict[str, Any]] = {}
    repeated: FinetuningRepeat | None = None
    # Searches last, so that errors of other learners are reported before minutes of training.
    for name in sorted(experiment.config.learners, key=lambda name: LEARNERS[name].grid is not None):
        learner = LEARNERS[name]
        advance = LearnerProgress(progress, passes(work.adapting(name)), f"seed {seed}: adapting {name}")
        context = AdaptationContext(experiment, drawn, report=advance, record=facts.setdefault(name, {}).update)
        start = time.perf_counter()
        if learner.grid is None:
            adapted[name] = learner.adapt(context)
            advance(1.0 - advance.share)
            continue
        search = train_learner(
            experiment, learner, context, known.get(name), prefer_stable=experiment.config.prefers_stable_rates
        )
        adapted[name] = search.best
        rates[name] = search.learning_rate
        # If the seed was chosen by this learner, its rate was chosen in that search.
        trials += chosen.trials.get(name, search.trials)
        seconds = time.perf_counter() - start - search.best.cost.seconds
        search_seconds[name] = (seconds if name not in known else 0.0) + chosen.search_seconds.get(name, 0.0)
        if name == FINETUNED and experiment.config.repeats_finetuning:
            progress.advance(0, f"seed {seed}: repeating {name} to measure the effect of rounding")
            repeated = repeat_training(learner, context, search)
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

        def report_control(control: str, finished: bool) -> None:
            making = work.controls[control].making.passes if finished and control in work.controls else 0.0
            progress.advance(making, f"seed {seed}: control {control}")

        prepared = prepare(experiment, drawn, icl, ft, rates[FINETUNED], known, report_control)
    control_seconds = time.perf_counter() - start
    read = read_queries(experiment, seed, work, adapted, prepared, repeated, progress)
    costs = {
        name: {
            "adapt_seconds": model.cost.seconds,
            "adapt_tokens": float(model.cost.tokens),
            "adapt_flops": model.cost.flops,
            "query_seconds": read.seconds[name] / len(experiment.queries),
            "search_seconds": max(0.0, search_seconds.get(name, 0.0)),
            **query_cost(experiment, LEARNERS[name].query_passes(AdaptationContext(experiment, drawn), model)),
        }
        for name, model in adapted.items()
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
        facts={name: recorded for name, recorded in facts.items() if recorded},
        trials=(*trials, *prepared.trials),
        labels={
            name: label_counts(count_labels(experiment, LEARNERS[name], drawn)) for name in experiment.config.learners
        },
        control_seconds=control_seconds + read.control_seconds,
        notes=prepared.notes,
        inputs=inputs,
        attention={} if read.view is None else read.view.tensors(),
        attention_about={} if read.view is None else read.view.about(experiment, encoded),
    )
