"""How a study comes by a learning rate: a search on the selection split, or a rate known from another seed."""

from collections.abc import Callable

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.rate import RateSearch, search_rate
from dualform.result import Trial
from dualform.studies.experiment import Experiment
from dualform.studies.settings import StudyConfig
from dualform.studies.work import TRIED


def trained(
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
) -> RateSearch:
    """Train at the rate known to be good, or search for one.

    Args:
        adapt: Trains at a rate.
        rates: The grid.
        experiment: Whose selection queries choose.
        name: The learner's, for messages.
        seed: Demonstration seed.
        known: Rate chosen on another seed; None searches.
        report: Called with the share of the work that is done.
        repeat: Trains at a rate from weights moved by rounding, so that a search prefers a stable rate among equals;
            see `search_rate`.
        option: Of the command line, which sets the grid.

    Raises:
        TrainingError: Every rate diverged.
    """
    grid = sorted(rates)
    if known is None:
        return search_rate(
            adapt,
            grid,
            experiment.lm,
            experiment.selection_queries,
            experiment.selection_labels,
            seed=seed,
            patience=experiment.config.patience,
            after_trial=lambda: report(1 / len(grid)),
            repeat=repeat,
        )
    diverged: list[Trial] = []
    for rate in reversed([rate for rate in grid if rate <= known]):
        try:
            adapted = adapt(rate)
            # A rate known from another seed is not searched, but it must give numbers.
            answer_log_probabilities(adapted, experiment.lm, experiment.selection_queries[:TRIED])
        except NumericalError:
            diverged.append(_untested(name, seed, rate, None, "diverged"))
            continue
        report(1.0)
        return RateSearch(adapted, rate, (*diverged, _untested(name, seed, rate, adapted, "finished")))
    raise TrainingError(
        f"{name}, seed {seed}: the rate chosen on the first seed ({known:g}) and every lower one of the grid diverged. "
        f"Give lower ones with {option} ({name})."
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
