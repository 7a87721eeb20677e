"""Training at the best learning rate: searched on the selection split, or known from another seed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.rate import RateSearch, search_rate
from dualform.result import Trial
from dualform.studies.experiment import Experiment
from dualform.studies.settings import StudyConfig
from dualform.studies.work import trial_queries


@dataclass(frozen=True)
class InsideLabels:
    """Trials of a search that trains on some labels of a budget and predicts the others."""

    labels: Sequence[int]
    """Labels of the predicted examples; empty if there are too few to divide."""
    predict: Callable[[float], Tensor]
    """Function from a learning rate to the predictions, `(example, answer)`, nats."""


def train_at_best_rate(
    adapt: Callable[[float], AdaptedModel],
    rates: tuple[float, ...],
    experiment: Experiment[StudyConfig],
    *,
    name: str,
    seed: int,
    known: float | None,
    report: Callable[[float], None] = lambda share: None,
    repeat: Callable[[float], AdaptedModel] | None = None,
    option: str = "--rates",
    inside: InsideLabels | None = None,
) -> RateSearch:
    """Train at a known learning rate, or search for the best one.

    Args:
        adapt: Trains at a given rate.
        rates: The grid.
        experiment: Its selection queries decide between the rates.
        name: Name of the learner, for messages.
        seed: Demonstration seed.
        known: Rate chosen on another seed; None to search. Where training at it diverges, lower ones are tried.
        report: Called with each further share of the work that is done.
        repeat: Trains at a given rate from slightly rounded weights, so that the search prefers a stable rate among
            equals; see `search_rate`.
        option: The command-line option that sets the grid, for messages.
        inside: Chooses inside a budget of labels instead of on the selection queries.

    Raises:
        TrainingError: Every rate diverged.
    """
    grid = sorted(rates)
    if known is None and inside is not None and not inside.labels:
        # A single label cannot be divided, so nothing can be chosen.
        known = grid[(len(grid) - 1) // 2]
    if known is None:
        return search_rate(
            adapt,
            grid,
            experiment.lm,
            experiment.selection_queries,
            experiment.selection_labels if inside is None else inside.labels,
            seed=seed,
            patience=experiment.config.patience,
            after_trial=lambda: report(1 / len(grid)),
            repeat=repeat,
            held_out=None if inside is None else inside.predict,
        )
    diverged: list[Trial] = []
    for rate in reversed([rate for rate in grid if rate <= known]):
        try:
            adapted = adapt(rate)
            # The known rate is not compared with others, but its answers must be finite.
            answer_log_probabilities(adapted, experiment.lm, trial_queries(experiment))
        except NumericalError:
            diverged.append(_untested(name, seed, rate, None, "diverged"))
            continue
        report(1.0)
        return RateSearch(adapted, rate, (*diverged, _untested(name, seed, rate, adapted, "finished")))
    if len(grid) == 1:
        raise TrainingError(
            f"{name}, seed {seed}: training diverged at the learning rate {known:g}. Give a lower one with {option}."
        )
    raise TrainingError(
        f"{name}, seed {seed}: training diverged at the rate chosen on the first seed ({known:g}) and at every lower "
        f"rate of the grid. Give lower rates with {option} ({name})."
    )


def _untested(learner: str, seed: int, rate: float, adapted: AdaptedModel | None, status: str) -> Trial:
    losses = adapted.losses if adapted is not None and adapted.losses else (None,)
    return Trial(
        learner=learner,
        seed=seed,
        learning_rate=rate,
        validation_accuracy=None,
        validation_log_probability=None,
        first_loss=losses[0],
        last_loss=losses[-1],
        status=status,
        chosen=adapted is not None,
    )
