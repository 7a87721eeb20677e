"""Search for a learning rate over a fixed grid, on a split that is not reported; every trial is recorded.

At a high rate, training may be chaotic, so that its outcome depends on rounding and thus on the machine. The search can
repeat a training from weights perturbed by rounding, and then prefers stable rates among equally accurate ones.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.models.reading.ordinary import ordinary_torch
from dualform.result import Trial

STABLE_WITHIN = 0.01
"""Tolerance for stable trainings, in nats (0.01 nats is 1% of a probability).

A training is stable if repeating it from weights perturbed by rounding changes no answer, and no answer's
log-probability by more than this. Two routes of reading the same weights in float32 differ by less than 1e-4 nats.
"""


@dataclass(frozen=True)
class RoundingSpread:
    """Difference between the answers of a training and its repetition."""

    largest: float
    """Largest difference of an answer's log-probability, nats; infinite if the repetition diverged."""
    flips: int
    """Number of queries with different answers."""

    @classmethod
    def of(cls, table: Tensor, repeated: Tensor) -> "RoundingSpread":
        """Compare two tables of log-probabilities, `(example, answer)`; both are -inf for answers that do not exist."""
        known = table.isfinite() & repeated.isfinite()
        difference = torch.where(known, table - repeated, 0.0).abs()
        flips = int((table.argmax(dim=1) != repeated.argmax(dim=1)).sum())
        return cls(float(difference.max()) if difference.numel() else 0.0, flips)

    @property
    def stable(self) -> bool:
        """Whether differences are at most `STABLE_WITHIN` and all answers are the same."""
        return self.largest <= STABLE_WITHIN and self.flips == 0


@dataclass(frozen=True)
class RateSearch:
    """Outcome of a search."""

    best: AdaptedModel
    """The model trained at the chosen rate."""
    learning_rate: float
    trials: tuple[Trial, ...]
    repeat: AdaptedModel | None = None
    """The same training repeated from weights perturbed by rounding; None if it was not repeated."""


@dataclass(frozen=True)
class _FinishedTrial:
    """A trial that did not diverge."""

    number: int
    """Index of its rate in the grid."""
    accuracy: float
    log_probability: float
    table: Tensor

    @property
    def score(self) -> tuple[float, float]:
        return self.accuracy, self.log_probability


@ordinary_torch()
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
    repeat: Callable[[float], AdaptedModel] | None = None,
    held_out: Callable[[float], Tensor] | None = None,
) -> RateSearch:
    """Try rates in ascending order, and stop early once higher ones are clearly worse.

    Args:
        adapt: Trains at a given rate.
        rates: The grid.
        lm: The model.
        queries: Queries of the selection split.
        labels: Correct answer of each query.
        seed: Demonstration seed, recorded in the trials.
        patience: Stop after this many rates in a row that are less accurate than the best so far. The search also ends
            when a rate diverges, because higher ones would too.
        after_trial: Called after each rate, tried or skipped.
        repeat: Trains at a given rate from weights perturbed by rounding; makes the search prefer stable rates. None
            chooses by accuracy and log-probability only.
        held_out: Log-probabilities of the answers to the examples of `labels`, `(example, answer)`, from models that
            were trained at a given rate on other examples. Replaces `queries`; only the chosen rate is then trained by
            `adapt`.

    Returns:
        The most accurate rate on `queries` (ties: the higher mean log-probability of the correct answer, then the lower
        rate). With `repeat` and several rates, the training at that rate is repeated. If it is not stable (see
        `STABLE_WITHIN`), the next best rate is chosen that is stable and at least as accurate as the repetition, if
        there is one.

    Raises:
        TrainingError: Every rate diverged.
    """
    grid = sorted(rates)
    right = torch.as_tensor(list(labels))
    trials: list[Trial] = []
    finished: list[_FinishedTrial] = []
    best: tuple[_FinishedTrial, AdaptedModel | None] | None = None
    worse = 0

    def evaluate(rate: float) -> tuple[AdaptedModel | None, Tensor]:
        if held_out is not None:
            return None, held_out(rate)
        adapted = adapt(rate)
        return adapted, answer_log_probabilities(adapted, lm, queries)

    for number, rate in enumerate(grid):
        if worse >= patience or (trials and trials[-1].status == "diverged"):
            trials += [_trial(seed, skipped, "skipped") for skipped in grid[number:]]
            for _ in grid[number:]:
                after_trial()
            break
        try:
            model, table = evaluate(rate)
        except NumericalError:
            trials.append(_trial(seed, rate, "diverged"))
            after_trial()
            continue
        trial = _FinishedTrial(number, _accuracy(table, right), float(table.gather(1, right[:, None]).mean()), table)
        finished.append(trial)
        worse = 0 if best is None or trial.accuracy >= best[0].accuracy else worse + 1
        if best is None or trial.score > best[0].score:
            best = (trial, model)
        losses = (model.losses if model is not None else ()) or (None,)
        trials.append(_trial(seed, rate, "finished", *trial.score, losses[0], losses[-1]))
        after_trial()
    if best is None:
        tried = ", ".join(f"{trial.learning_rate:g}" for trial in trials if trial.status == "diverged")
        raise TrainingError(
            f"every learning rate tried diverged ({tried}). Give lower ones with --rates (ft) or --lora-rates (lora)."
        )
    (chosen, best_model), repeated = best, None
    if repeat is not None and len(grid) > 1:
        repetitions = _Repetitions(repeat, grid, lm, queries, right)
        chosen = _prefer_stable(finished, best[0], repetitions)
        repeated = repetitions.models.get(chosen.number)
        if chosen is not best[0]:
            # Only the best model was kept, to save memory.
            best_model = None
        trials = [record.model_copy(update=repetitions.fields(number)) for number, record in enumerate(trials)]
    adapted = best_model
    ranking = sorted(finished, key=lambda trial: (*trial.score, -trial.number), reverse=True)
    for trial in [chosen] if held_out is None else ranking:
        if adapted is None:
            try:
                adapted, chosen = adapt(grid[trial.number]), trial
            except NumericalError:
                # Only training on all labels diverged, so the next best rate is used.
                if trial is ranking[-1]:
                    raise
                trials[trial.number] = _trial(seed, grid[trial.number], "diverged")
    assert adapted is not None
    trials = [
        record.model_copy(update={"learner": adapted.learner, "chosen": number == chosen.number})
        for number, record in enumerate(trials)
    ]
    return RateSearch(adapted, grid[chosen.number], tuple(trials), repeated)


class _Repetitions:
    """Trainings repeated from weights perturbed by rounding, each once."""

    def __init__(
        self,
        repeat: Callable[[float], AdaptedModel],
        grid: Sequence[float],
        lm: LanguageModel,
        queries: Sequence[Query],
        right: Tensor,
    ) -> None:
        self._repeat, self._grid, self._lm, self._queries, self._right = repeat, grid, lm, queries, right
        self.models: dict[int, AdaptedModel] = {}
        """The last repetition, by the index of its rate in the grid."""
        self._spreads: dict[int, RoundingSpread] = {}

    def measure(self, trial: _FinishedTrial) -> tuple[RoundingSpread, float]:
        """Repeat a trial; return the difference and the repetition's accuracy (the trial's own if it diverged)."""
        self.models.clear()
        try:
            model = self._repeat(self._grid[trial.number])
            table = answer_log_probabilities(model, self._lm, self._queries)
        except NumericalError:
            self._spreads[trial.number] = RoundingSpread(float("inf"), 0)
            return self._spreads[trial.number], trial.accuracy
        self.models[trial.number] = model
        self._spreads[trial.number] = spread = RoundingSpread.of(trial.table, table)
        return spread, _accuracy(table, self._right)

    def fields(self, number: int) -> dict[str, float | int]:
        """Fields of a `Trial` about its repetition."""
        spread = self._spreads.get(number)
        if spread is None or spread.largest == float("inf"):
            return {}
        return {"rounding": spread.largest, "rounding_flips": spread.flips}


def _prefer_stable(
    finished: Sequence[_FinishedTrial], best: _FinishedTrial, repetitions: _Repetitions
) -> _FinishedTrial:
    """The best trial if stable, else the next best stable trial that is as accurate as the best one's repetition."""
    spread, accuracy = repetitions.measure(best)
    if spread.stable:
        return best
    # The accuracy of the best trial is biased upwards by the selection; that of its repetition is not.
    enough = min(best.accuracy, accuracy)
    others = sorted(
        (trial for trial in finished if trial is not best),
        key=lambda trial: (*trial.score, -trial.number),
        reverse=True,
    )
    kept = dict(repetitions.models)
    for trial in others:
        if trial.accuracy >= enough and repetitions.measure(trial)[0].stable:
            return trial
    repetitions.models = kept
    return best


def _accuracy(table: Tensor, right: Tensor) -> float:
    return float((table.argmax(dim=1) == right).double().mean())


def _trial(
    seed: int,
    rate: float,
    status: str,
    accuracy: float | None = None,
    log_probability: float | None = None,
    first_loss: float | None = None,
    last_loss: float | None = None,
) -> Trial:
    return Trial(
        # Known once a model has been trained.
        learner="?",
        seed=seed,
        learning_rate=rate,
        validation_accuracy=accuracy,
        validation_log_probability=log_probability,
        first_loss=first_loss,
        last_loss=last_loss,
        status=status,
        chosen=False,
    )
