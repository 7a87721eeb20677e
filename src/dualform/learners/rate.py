"""The search for a learning rate: a stated grid, one split that is not reported, every trial kept."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.models.language_model import LanguageModel
from dualform.models.layout import Query
from dualform.result import Trial


@dataclass(frozen=True)
class RateSearch:
    """Outcome of a search."""

    best: AdaptedModel
    """The model trained at the rate chosen."""
    learning_rate: float
    trials: tuple[Trial, ...]


def search_rate(
    adapt: Callable[[float], AdaptedModel],
    rates: Sequence[float],
    lm: LanguageModel,
    queries: Sequence[Query],
    labels: Sequence[int],
    *,
    seed: int,
    patience: int = 2,
    after_trial: Callable[[], None] = lambda: None,
) -> RateSearch:
    """Try rates from low to high, and stop early once it is clear that higher ones are worse.

    Args:
        adapt: Trains at a rate.
        rates: The grid; tried in ascending order.
        lm: The model.
        queries: Of the selection split.
        labels: Their right answers.
        seed: Demonstration seed, for the record.
        patience: Stop after so many rates in a row that are less accurate than the best so far. A rate whose loss
            diverges also ends the search: higher ones would diverge too.
        after_trial: Called after each rate, tried or skipped.

    Returns:
        The most accurate rate on `queries` (ties: higher mean log-probability of the right answer, then the lower
        rate).

    Raises:
        TrainingError: Every rate diverged.
    """
    grid = sorted(rates)
    right = torch.as_tensor(list(labels))
    trials: list[Trial] = []
    best: tuple[tuple[float, float], int, AdaptedModel] | None = None
    worse = 0
    learner = "?"
    for number, rate in enumerate(grid):
        if worse >= patience or (trials and trials[-1].status == "diverged"):
            trials += [_trial(learner, seed, skipped, "skipped") for skipped in grid[number:]]
            for _ in grid[number:]:
                after_trial()
            break
        try:
            adapted = adapt(rate)
            table = answer_log_probabilities(adapted, lm, queries)
        except NumericalError:
            trials.append(_trial(learner, seed, rate, "diverged"))
            after_trial()
            continue
        learner = adapted.learner
        accuracy = float((table.argmax(dim=1) == right).double().mean())
        log_probability = float(table.gather(1, right[:, None]).mean())
        score = (accuracy, log_probability)
        worse = 0 if best is None or accuracy >= best[0][0] else worse + 1
        if best is None or score > best[0]:
            best = (score, number, adapted)
        losses = adapted.losses or (None,)
        trials.append(_trial(learner, seed, rate, "finished", *score, losses[0], losses[-1]))
        after_trial()
    if best is None:
        tried = ", ".join(f"{trial.learning_rate:g}" for trial in trials if trial.status == "diverged")
        raise TrainingError(
            f"every learning rate tried diverged ({tried}). Give lower ones with --rates (ft) or --lora-rates (lora)."
        )
    trials = [trial.model_copy(update={"learner": learner, "chosen": i == best[1]}) for i, trial in enumerate(trials)]
    return RateSearch(best[2], grid[best[1]], tuple(trials))


def _trial(
    learner: str,
    seed: int,
    rate: float,
    status: str,
    accuracy: float | None = None,
    log_probability: float | None = None,
    first_loss: float | None = None,
    last_loss: float | None = None,
) -> Trial:
    return Trial(
        learner=learner,
        seed=seed,
        learning_rate=rate,
        validation_accuracy=accuracy,
        validation_log_probability=log_probability,
        first_loss=first_loss,
        last_loss=last_loss,
        status=status,
        chosen=False,
    )
