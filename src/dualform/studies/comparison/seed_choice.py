"""Choice of the seeds to report: all, or the one with the best accuracy on the selection queries."""

import time
from dataclasses import dataclass, field

import torch

from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS, AdaptationContext
from dualform.models.cost.work import read
from dualform.result import Trial
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.setup import ComparisonRun
from dualform.studies.comparison.work import SeedWork, passes
from dualform.studies.experiment import DemonstrationSet, Experiment
from dualform.studies.learner_training import train_learner
from dualform.studies.pieces import Piece


@dataclass(frozen=True)
class ChosenSeeds:
    """The seeds to report, and the learning rate searches made while choosing them."""

    seeds: tuple[int, ...]
    notes: tuple[str, ...] = ()
    rates: dict[str, float] = field(default_factory=dict)
    """Learner -> learning rate of the chosen seed."""
    trials: dict[str, tuple[Trial, ...]] = field(default_factory=dict)
    """Learner -> the trials of that search."""
    search_seconds: dict[str, float] = field(default_factory=dict)
    """Learner -> seconds of searching, over all seeds."""


def choose_seeds(run: ComparisonRun) -> ChosenSeeds:
    """All seeds, or, depending on the settings, the one with the best accuracy on the selection queries."""
    experiment, drawn, store, progress = run.experiment, run.drawn, run.pieces, run.progress
    config = experiment.config
    if config.select == "none" or len(config.seeds) == 1:
        return ChosenSeeds(config.seeds)
    inputs = run.inputs(config.seeds)
    work = {
        seed: passes(SeedWork(experiment, demonstrations, searching=True).choosing())
        for seed, demonstrations in drawn.items()
    }
    progress.start(sum(work.values()))
    candidates = {}
    for seed, demonstrations in drawn.items():
        name = f"choosing, seed {seed}"
        piece = store.get(name, inputs)
        if piece is None:
            piece = Piece(name, inputs, {}, _candidate(experiment, demonstrations))
            store.put(piece)
        candidates[seed] = piece.about
        progress.advance(work[seed], f"choosing a seed: {seed}")
    best = max(config.seeds, key=lambda seed: (candidates[seed]["score"], -seed))
    scores = ", ".join(f"{seed}: {about['score']:.3f}" for seed, about in candidates.items())
    learner = " and ".join(name.upper() for name in config.selecting)
    learner += " (mean)" if len(config.selecting) > 1 else ""
    where = "the reported queries" if config.select_on == "report" else "the selection queries"
    bias = (
        f"The accuracy of {learner} is biased upwards by this, which no interval includes."
        if config.select_on == "report"
        else "The reported queries were not used."
    )
    tokens = sum(about["tokens"] for about in candidates.values())
    note = (
        f"Seed {best} was chosen among {len(config.seeds)} for the accuracy of {learner} on {where} ({scores}; "
        f"{tokens:,.0f} tokens read, with a backward pass counted as two forward passes). {bias}"
    )
    trials = {name: tuple(Trial(**trial) for trial in search) for name, search in candidates[best]["trials"].items()}
    rates = {name: next(trial.learning_rate for trial in search if trial.chosen) for name, search in trials.items()}
    seconds = {name: sum(about["search_seconds"][name] for about in candidates.values()) for name in rates}
    return ChosenSeeds((best,), (note,), rates, trials, seconds)


def _candidate(experiment: Experiment[ComparisonConfig], drawn: DemonstrationSet) -> dict[str, object]:
    """One seed's accuracy on the selection queries, with the searches and the number of tokens it took."""
    right = torch.tensor(experiment.selection_labels)
    scores: list[float] = []
    trials: dict[str, list[dict[str, object]]] = {}
    seconds: dict[str, float] = {}
    tokens = 0.0
    opening = len(experiment.encoder.opening)
    for name in experiment.config.selecting:
        learner, context = LEARNERS[name], AdaptationContext(experiment, drawn)
        once = learner.work(context).charged.passes
        if learner.grid is None:
            table = answer_log_probabilities(learner.adapt(context), experiment.lm, experiment.selection_queries)
            scores.append(float((table.argmax(dim=1) == right).double().mean()))
            tokens += once + learner.reading(context, experiment.selection_queries, "prompt").passes
            continue
        start = time.perf_counter()
        search = train_learner(experiment, learner, context, None, prefer_stable=experiment.config.prefers_stable_rates)
        seconds[name] = time.perf_counter() - start
        best = next(trial for trial in search.trials if trial.chosen)
        assert best.validation_accuracy is not None
        scores.append(best.validation_accuracy)
        trials[name] = [trial.model_dump() for trial in search.trials]
        run = sum(trial.status != "skipped" for trial in search.trials)
        tokens += run * (once + read(experiment.selection_queries, opening).passes)
    return {"score": sum(scores) / len(scores), "tokens": tokens, "trials": trials, "search_seconds": seconds}
