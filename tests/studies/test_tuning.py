from typing import Any

import pytest
import torch

from dualform.errors import NumericalError, TrainingError
from dualform.learners.adapted import AdaptedModel, answer_log_probabilities
from dualform.learners.finetuned import Finetuned
from dualform.learners.rate import RateSearch
from dualform.studies import tuning
from dualform.studies.tuning import train_at_best_rate
from tests.studies.small import small_experiment

RATES = (1e-2, 1e-4, 1e-3)  # grids need not be sorted


class Training:
    """Finetuning that diverges above a rate, and remembers what it was asked for."""

    def __init__(self, limit: float = 1.0) -> None:
        self.experiment = small_experiment()
        self.encoded = self.experiment.draw(1).encoded
        self.limit = limit
        self.tried: list[float] = []
        self.shares: list[float] = []

    def adapt(self, rate: float) -> AdaptedModel:
        self.tried.append(rate)
        if rate > self.limit:
            raise TrainingError("diverged")
        return Finetuned(self.experiment.encoder.opening, rate).adapt(self.experiment.lm, self.encoded)

    def train(self, known: float | None, rates: tuple[float, ...] = RATES, **more: Any) -> RateSearch:
        given = {"name": "ft", "report": self.shares.append, **more}
        return train_at_best_rate(self.adapt, rates, self.experiment, seed=7, known=known, **given)


def test_without_a_known_rate_all_are_tried_on_the_selection_queries() -> None:
    training = Training()
    search = training.train(None)
    right = torch.tensor(training.experiment.selection_labels)

    assert training.tried == sorted(RATES)
    assert [trial.learning_rate for trial in search.trials] == sorted(RATES)
    scores = {}
    for trial in search.trials:
        table = answer_log_probabilities(
            training.adapt(trial.learning_rate), training.experiment.lm, training.experiment.selection_queries
        )
        accuracy = float((table.argmax(dim=1) == right).double().mean())
        assert trial.validation_accuracy == pytest.approx(accuracy)
        scores[trial.learning_rate] = (accuracy, float(table.gather(1, right[:, None]).mean()))
    assert search.learning_rate == max(scores, key=scores.__getitem__)
    assert [trial.learning_rate for trial in search.trials if trial.chosen] == [search.learning_rate]
    assert sum(training.shares) == pytest.approx(1)


def test_a_known_rate_is_used_without_a_search() -> None:
    training = Training()
    search = training.train(1e-3)
    (trial,) = search.trials

    assert training.tried == [1e-3]
    assert (search.learning_rate, trial.learning_rate, trial.seed, trial.learner) == (1e-3, 1e-3, 7, "ft")
    assert (trial.status, trial.chosen) == ("finished", True)
    # It was not tested, and does not say so.
    assert (trial.validation_accuracy, trial.validation_log_probability) == (None, None)
    assert (trial.first_loss, trial.last_loss) == (search.best.losses[0], search.best.losses[-1])
    assert training.shares == [1.0]


def test_a_known_rate_that_diverges_gives_way_to_the_next_lower() -> None:
    training = Training(limit=5e-4)
    search = training.train(1e-2)

    assert training.tried == [1e-2, 1e-3, 1e-4]
    assert search.learning_rate == 1e-4
    assert [(trial.learning_rate, trial.status, trial.chosen) for trial in search.trials] == [
        (1e-2, "diverged", False),
        (1e-3, "diverged", False),
        (1e-4, "finished", True),
    ]
    assert training.shares == [1.0]


def test_rates_above_the_known_one_are_never_tried() -> None:
    training = Training()
    training.train(1e-3, rates=(1e-3, 1e-2, 1e-1))

    assert training.tried == [1e-3]


def test_a_known_rate_whose_answers_are_no_numbers_gives_way_too(monkeypatch: pytest.MonkeyPatch) -> None:
    training = Training()
    calls: list[int] = []

    def first_is_nan(adapted: Any, lm: Any, queries: Any) -> Any:
        calls.append(len(queries))
        if len(calls) == 1:
            raise NumericalError("NaN")
        return answer_log_probabilities(adapted, lm, queries)

    monkeypatch.setattr(tuning, "answer_log_probabilities", first_is_nan)
    search = training.train(1e-2)

    assert search.learning_rate == 1e-3
    # Some queries are enough to see it.
    assert max(calls) <= 4


@pytest.mark.parametrize(("name", "option"), [("ft", "--rates"), ("lora", "--lora-rates"), ("lcgd", "--rates")])
def test_every_known_rate_diverging_is_an_error_that_names_the_option(name: str, option: str) -> None:
    with pytest.raises(TrainingError) as caught:
        Training(limit=0.0).train(1e-3, name=name, option=option)

    assert str(caught.value) == (
        f"{name}, seed 7: training diverged at the rate chosen on the first seed (0.001) and at every lower rate of "
        f"the grid. Give lower rates with {option} ({name})."
    )


def test_a_search_is_reported_in_equal_shares_also_where_it_stops_early() -> None:
    training = Training(limit=5e-4)
    training.train(None)

    # The highest rate is not tried: the one before has diverged.
    assert training.tried == [1e-4, 1e-3]
    assert training.shares == pytest.approx([1 / 3] * 3)


def test_other_faults_are_not_taken_for_divergence() -> None:
    def broken(rate: float) -> AdaptedModel:
        raise ZeroDivisionError

    for known in (None, 1e-3):
        with pytest.raises(ZeroDivisionError):
            train_at_best_rate(broken, RATES, small_experiment(), name="ft", seed=1, known=known)
