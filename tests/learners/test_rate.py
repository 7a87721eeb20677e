import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch

import dualform.learners.rate as under_test
from dualform.errors import NumericalError, TrainingError
from dualform.learners.finetuned import Finetuned
from dualform.learners.rate import search_rate
from tests.learners.setting import fresh
from tests.models.editing.test_edit import Snapshot


@dataclass(frozen=True)
class Pretended:
    """Stands for a model adapted at a rate, with an outcome that the test has chosen."""

    rate: float
    learner: str = "ft"
    losses: tuple[float, ...] = (3.0, 2.0, 1.0)
    repeated: bool = False


@pytest.fixture
def search(monkeypatch):
    """Search over outcomes: rate -> (accuracy in eighths, mean log-probability); None diverges, NaN are no answers."""

    def run(outcomes, *, patience=2, repeats=None, **settings):
        tried = []

        def adapt(rate):
            tried.append(rate)
            if outcomes[rate] is None:
                raise TrainingError("the loss is nan")
            return Pretended(rate)

        def repeat(rate):
            tried.append(-rate)
            if repeats[rate] is None:
                raise TrainingError("the loss is nan")
            return Pretended(rate, repeated=True)

        def table(adapted, lm, queries):
            eighths, log_probability = (repeats if adapted.repeated else outcomes)[adapted.rate]
            if math.isnan(log_probability):
                raise NumericalError("log-probabilities of answers are NaN")
            # Right answers win by a hair or lose by one; both columns' level sets the mean.
            wrong = torch.where(torch.arange(8) < eighths, log_probability - 0.25, log_probability + 0.25)
            return torch.stack([torch.full((8,), log_probability), wrong], dim=1).double()

        monkeypatch.setattr(under_test, "answer_log_probabilities", table)
        # Out of order on purpose: the search sorts.
        rates = sorted(outcomes, reverse=True)
        nobody: Any = None
        if repeats is not None:
            settings["repeat"] = repeat
        result = search_rate(adapt, rates, nobody, [nobody] * 8, [0] * 8, seed=5, patience=patience, **settings)
        return result, tried

    return run


def statuses(result):
    return [trial.status for trial in result.trials]


class TestTheChoice:
    def test_the_most_accurate_rate_wins(self, search):
        result, tried = search({0.1: (3, -1.0), 0.2: (6, -2.0), 0.3: (5, -0.5)})
        assert result.learning_rate == 0.2
        assert result.best.rate == 0.2
        assert tried == [0.1, 0.2, 0.3]
        assert [trial.validation_accuracy for trial in result.trials] == [3 / 8, 6 / 8, 5 / 8]
        assert [trial.validation_log_probability for trial in result.trials] == [-1.0, -2.0, -0.5]

    def test_a_tie_goes_to_the_higher_log_probability_of_the_right_answer(self, search):
        assert search({0.1: (5, -2.0), 0.2: (5, -1.0), 0.3: (5, -3.0)})[0].learning_rate == 0.2

    def test_a_tie_in_both_goes_to_the_lower_rate(self, search):
        assert search({0.1: (4, -1.0), 0.2: (5, -1.0), 0.3: (5, -1.0)})[0].learning_rate == 0.2

    def test_exactly_one_trial_is_chosen_and_all_are_kept_in_order_of_rate(self, search):
        result, _ = search({0.1: (5, -1.0), 0.2: (5, -1.0), 0.3: (4, -1.0), 0.4: (3, -1.0), 0.5: (8, -1.0)})
        assert [trial.learning_rate for trial in result.trials] == [0.1, 0.2, 0.3, 0.4, 0.5]
        assert [trial.chosen for trial in result.trials] == [True, False, False, False, False]
        assert {(trial.learner, trial.seed) for trial in result.trials} == {("ft", 5)}
        assert [(trial.first_loss, trial.last_loss) for trial in result.trials[:4]] == [(3.0, 1.0)] * 4


class TestStoppingEarly:
    def test_two_worse_rates_in_a_row_end_the_search(self, search):
        result, tried = search({0.1: (5, -1.0), 0.2: (4, -1.0), 0.3: (3, -1.0), 0.4: (8, -1.0), 0.5: (8, -1.0)})
        assert tried == [0.1, 0.2, 0.3]
        assert statuses(result) == ["finished"] * 3 + ["skipped"] * 2
        assert all(trial.validation_accuracy is None for trial in result.trials[3:])
        assert result.learning_rate == 0.1

    def test_a_rate_as_accurate_as_the_best_starts_the_count_anew(self, search):
        result, tried = search({0.1: (5, -1.0), 0.2: (4, -1.0), 0.3: (5, -2.0), 0.4: (4, -1.0), 0.5: (8, -1.0)})
        assert tried == [0.1, 0.2, 0.3, 0.4, 0.5]
        assert result.learning_rate == 0.5

    def test_more_patience_tries_more(self, search):
        outcomes = {0.1: (5, -1.0), 0.2: (4, -1.0), 0.3: (3, -1.0), 0.4: (8, -1.0)}
        assert search(outcomes, patience=3)[0].learning_rate == 0.4
        assert search(outcomes, patience=1)[1] == [0.1, 0.2]

    def test_divergence_ends_the_search_and_marks_the_rest_skipped(self, search):
        result, tried = search({0.1: (5, -1.0), 0.2: None, 0.3: (8, -1.0), 0.4: (8, -1.0)})
        assert tried == [0.1, 0.2]
        assert statuses(result) == ["finished", "diverged", "skipped", "skipped"]
        assert result.learning_rate == 0.1
        diverged = result.trials[1]
        assert (diverged.learner, diverged.validation_accuracy, diverged.first_loss, diverged.chosen) == (
            "ft",
            None,
            None,
            False,
        )

    def test_answers_that_are_no_numbers_count_as_divergence(self, search):
        result, tried = search({0.1: (5, -1.0), 0.2: (8, math.nan), 0.3: (8, -1.0)})
        assert tried == [0.1, 0.2]
        assert statuses(result) == ["finished", "diverged", "skipped"]
        assert result.learning_rate == 0.1

    def test_after_trial_is_called_once_for_every_rate_tried_or_skipped(self, search):
        for outcomes in (
            {0.1: (5, -1.0), 0.2: (4, -1.0), 0.3: (3, -1.0), 0.4: (8, -1.0)},
            {0.1: (5, -1.0), 0.2: None, 0.3: (3, -1.0)},
            {0.1: (5, -1.0), 0.2: (6, -1.0)},
        ):
            calls: list[int] = []
            search(outcomes, after_trial=lambda calls=calls: calls.append(1))
            assert len(calls) == len(outcomes)


class TestStability:
    """Rates are repeated as (accuracy in eighths, mean log-probability); in `tried` a repeat is negative."""

    OUTCOMES: ClassVar = {0.1: (4, -1.2), 0.2: (6, -2.0), 0.3: (6, -1.0)}

    def test_a_stable_best_rate_is_repeated_once_and_kept(self, search):
        result, tried = search(self.OUTCOMES, repeats={0.3: (6, -1.005)})
        assert tried == [0.1, 0.2, 0.3, -0.3]
        assert (result.learning_rate, result.repeat.rate, result.repeat.repeated) == (0.3, 0.3, True)
        assert [trial.rounding for trial in result.trials] == [None, None, pytest.approx(0.005)]
        assert [trial.rounding_flips for trial in result.trials] == [None, None, 0]

    def test_among_equals_a_stable_rate_is_preferred(self, search):
        result, tried = search(self.OUTCOMES, repeats={0.3: (6, -1.1), 0.2: (6, -2.0)})
        # The one that is taken is trained again: only the best so far was kept.
        assert tried == [0.1, 0.2, 0.3, -0.3, -0.2, 0.2]
        assert (result.learning_rate, result.best.rate, result.repeat.rate) == (0.2, 0.2, 0.2)
        assert [trial.chosen for trial in result.trials] == [False, True, False]

    def test_an_answer_that_flips_is_not_stable_however_little_moves(self, search):
        # One answer of eight is another, and so are all right answers of the repeat worth no more than those of 0.2.
        result, _ = search(self.OUTCOMES, repeats={0.3: (7, -1.0), 0.2: (6, -2.0)})
        assert result.learning_rate == 0.2
        assert result.trials[2].rounding_flips == 1

    def test_a_less_accurate_rate_is_no_equal(self, search):
        result, tried = search({0.1: (4, -1.0), 0.2: (5, -2.0), 0.3: (6, -1.0)}, repeats={0.3: (6, -1.1)})
        assert tried == [0.1, 0.2, 0.3, -0.3]
        assert (result.learning_rate, result.repeat.rate) == (0.3, 0.3)

    def test_an_accuracy_that_the_repeat_does_not_reach_is_noise(self, search):
        outcomes = {0.1: (4, -1.0), 0.2: (5, -2.0), 0.3: (6, -1.0)}
        result, _ = search(outcomes, repeats={0.3: (5, -1.1), 0.2: (5, -2.0)})
        assert result.learning_rate == 0.2

    def test_where_no_equal_is_stable_the_best_stays_with_its_own_repeat(self, search):
        result, tried = search(self.OUTCOMES, repeats={0.3: (6, -1.1), 0.2: (6, -2.1)})
        assert tried == [0.1, 0.2, 0.3, -0.3, -0.2]
        assert (result.learning_rate, result.best.rate, result.repeat.rate) == (0.3, 0.3, 0.3)

    def test_a_repeat_that_diverges_is_not_stable(self, search):
        result, _ = search(self.OUTCOMES, repeats={0.3: None, 0.2: (6, -2.0)})
        assert result.learning_rate == 0.2
        assert result.trials[2].rounding is None

    def test_a_single_rate_leaves_nothing_to_prefer(self, search):
        result, tried = search({0.3: (6, -1.0)}, repeats={})
        assert (tried, result.repeat) == ([0.3], None)


class TestNothingToChoose:
    @pytest.mark.parametrize("lowest", [None, (8, math.nan)])
    def test_when_the_lowest_rate_diverges_the_error_lists_the_rates_tried(self, search, lowest):
        words = r"every learning rate tried diverged \(0\.1\)\. Give lower ones with --rates \(ft\) or --lora-rates"
        with pytest.raises(TrainingError, match=words):
            search({0.1: lowest, 0.2: None, 0.3: (8, -1.0)})


def test_it_searches_for_real_models_and_leaves_them_as_they_were():
    setting = fresh("llama")
    before = Snapshot(setting.lm.model)
    result = search_rate(
        lambda rate: Finetuned(setting.encoder.opening, rate).adapt(setting.lm, setting.demonstrations),
        [0.02, 0.002, 1e37],
        setting.lm,
        setting.queries,
        setting.labels,
        seed=1,
    )
    before.assert_restored(setting.lm.model)
    assert statuses(result)[-1] in ("diverged", "skipped")
    assert sum(trial.chosen for trial in result.trials) == 1
    best = next(trial for trial in result.trials if trial.chosen)
    assert result.learning_rate == best.learning_rate
    assert result.best.losses == (best.first_loss, *result.best.losses[1:-1], best.last_loss)
    assert best.validation_accuracy == max(trial.validation_accuracy or 0 for trial in result.trials)
