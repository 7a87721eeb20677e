"""The search for a learning rate: a stated grid, one split that is not reported, every trial kept.

At a high rate training may be chaotic: rounding decides where it ends, and so does the machine. A search that may
repeat a training from weights moved by rounding prefers, among rates that are equally accurate, one that is stable.
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
"""A training is stable if its repeat, from weights moved by rounding, moves no answer's log-probability further, in
nats, and changes no answer. Two ways of reading the same weights in float32 differ by less than 1e-4 nats, so this
leaves a training a hundred times that; 0.01 nats is 1 % of a probability."""


@dataclass(frozen=True)
class RoundingSpread:
    """How far apart a training and its repeat answer."""

    largest: float
    """Largest difference of an answer's log-probability, nats; infinite where the repeat diverged."""
    flips: int
    """Queries that the two answer differently."""

    @classmethod
    def of(cls, table: Tensor, repeated: Tensor) -> "RoundingSpread":
        """From both log-probabilities, `(example, answer)`; answers that a query does not have are -inf in both."""
        known = table.isfinite() & repeated.isfinite()
        difference = torch.where(known, table - repeated, 0.0).abs()
        flips = int((table.argmax(dim=1) != repeated.argmax(dim=1)).sum())
        return cls(float(difference.max()) if difference.numel() else 0.0, flips)

    @property
    def stable(self) -> bool:
        """Within `STABLE_WITHIN`, and every answer the same."""
        return self.largest <= STABLE_WITHIN and self.flips == 0


@dataclass(frozen=True)
class RateSearch:
    """Outcome of a search."""

    best: AdaptedModel
    """The model trained at the rate chosen."""
    learning_rate: float
    trials: tuple[Trial, ...]
    repeat: AdaptedModel | None = None
    """The same training repeated from weights moved by rounding; None where the search did not repeat it."""


@dataclass(frozen=True)
class _Finished:
    """A rate that gave numbers."""

    number: int
    """Place in the grid."""
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
        repeat: Trains at a rate from weights moved by rounding. Given this, the search prefers a stable rate among
            equals. None chooses by accuracy and log-probability alone.

    Returns:
        The most accurate rate on `queries` (ties: higher mean log-probability of the right answer, then the lower
        rate). With `repeat`, that rate's training is repeated if there are several rates; where it is not stable (see
        `STABLE_WITHIN`), the next best rate that is stable and at least as accurate as the repeat is taken instead, if
        there is one.

    Raises:
        TrainingError: Every rate diverged.
    """
    grid = sorted(rates)
    right = torch.as_tensor(list(labels))
    trials: list[Trial] = []
    finished: list[_Finished] = []
    best: tuple[_Finished, AdaptedModel] | None = None
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
        one = _Finished(number, _accuracy(table, right), float(table.gather(1, right[:, None]).mean()), table)
        finished.append(one)
        worse = 0 if best is None or one.accuracy >= best[0].accuracy else worse + 1
        if best is None or one.score > best[0].score:
            best = (one, adapted)
        losses = adapted.losses or (None,)
        trials.append(_trial(learner, seed, rate, "finished", *one.score, losses[0], losses[-1]))
        after_trial()
    if best is None:
        tried = ", ".join(f"{trial.learning_rate:g}" for trial in trials if trial.status == "diverged")
        raise TrainingError(
            f"every learning rate tried diverged ({tried}). Give lower ones with --rates (ft) or --lora-rates (lora)."
        )
    (chosen, adapted), repeated = best, None
    if repeat is not None and len(grid) > 1:
        spreads = _Repeats(repeat, grid, lm, queries, right)
        chosen = _steady(finished, best[0], spreads)
        repeated = spreads.models.get(chosen.number)
        if chosen is not best[0]:
            # Only the best so far was kept: the models of a whole grid would take too much memory.
            adapted = adapt(grid[chosen.number])
        trials = [trial.model_copy(update=spreads.about(number)) for number, trial in enumerate(trials)]
    trials = [
        trial.model_copy(update={"learner": learner, "chosen": i == chosen.number}) for i, trial in enumerate(trials)
    ]
    return RateSearch(adapted, grid[chosen.number], tuple(trials), repeated)


class _Repeats:
    """Trainings repeated from weights moved by rounding, each once."""

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
        """The last repeat, by its place in the grid."""
        self._spreads: dict[int, RoundingSpread] = {}

    def measure(self, one: _Finished) -> tuple[RoundingSpread, float]:
        """How far a rate's repeat is from it, and the repeat's accuracy (the rate's own where the repeat diverged)."""
        self.models.clear()
        try:
            model = self._repeat(self._grid[one.number])
            table = answer_log_probabilities(model, self._lm, self._queries)
        except NumericalError:
            self._spreads[one.number] = RoundingSpread(float("inf"), 0)
            return self._spreads[one.number], one.accuracy
        self.models[one.number] = model
        self._spreads[one.number] = spread = RoundingSpread.of(one.table, table)
        return spread, _accuracy(table, self._right)

    def about(self, number: int) -> dict[str, float | int]:
        """Fields of a `Trial`."""
        spread = self._spreads.get(number)
        if spread is None or spread.largest == float("inf"):
            return {}
        return {"rounding": spread.largest, "rounding_flips": spread.flips}


def _steady(finished: Sequence[_Finished], best: _Finished, repeats: _Repeats) -> _Finished:
    """The best rate, or the next best that is stable and no less accurate than the best one turns out when repeated."""
    spread, accuracy = repeats.measure(best)
    if spread.stable:
        return best
    # The best accuracy was picked for being high; its repeat was not, so that rates as good as that are its equals.
    enough = min(best.accuracy, accuracy)
    others = sorted(
        (one for one in finished if one is not best), key=lambda one: (*one.score, -one.number), reverse=True
    )
    kept = dict(repeats.models)
    for one in others:
        if one.accuracy >= enough and repeats.measure(one)[0].stable:
            return one
    repeats.models = kept
    return best


def _accuracy(table: Tensor, right: Tensor) -> float:
    return float((table.argmax(dim=1) == right).double().mean())


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
