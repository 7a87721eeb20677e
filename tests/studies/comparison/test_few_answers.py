"""Shares of few answers, shares of 0 and 1, and what accuracy must be compared with."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import beta
from sklearn.metrics import f1_score, recall_score
from torch import Tensor

from dualform.ops.bootstrap import clustered_bootstrap_of
from dualform.result import FEWEST_FOR_INTERVAL
from dualform.studies.against import recovered
from dualform.studies.comparison.summary import summarise
from dualform.studies.facts import baseline_notes, baselines_of
from dualform.studies.statistics import Statistics
from dualform.tasks.task import Example, Task, Template
from tests.studies.comparison.test_summary import description, made_up, summary
from tests.studies.small import small_config, small_lm

STATS = Statistics(400, ("1",))


def hits(right: int, wrong: int) -> Tensor:
    """One seed."""
    return torch.tensor([[1.0] * right + [0.0] * wrong], dtype=torch.float64)


def lift_excludes_zero(fixed: int, generator: torch.Generator, p: float = 0.7, wrong: int = 100) -> bool:
    """Whether the bootstrap of a lift leaves out 0, where ICL and FT correct independently of each other."""
    icl = (torch.rand(wrong, generator=generator) < p).double()
    ft = torch.zeros(wrong, dtype=torch.float64)
    ft[:fixed] = 1.0
    columns = torch.stack([ft * icl, ft, icl, torch.ones_like(ft)], dim=-1)[None]
    low, high = clustered_bootstrap_of(
        lambda totals: totals[..., 0] / totals[..., 1] - totals[..., 2] / totals[..., 3],
        columns,
        n_resamples=200,
        generator=torch.Generator().manual_seed(0),
    )
    return not low <= 0 <= high


@pytest.mark.parametrize(("fixed", "low", "high"), [(1, 0.9, 1.0), (3, 0.2, 0.6), (FEWEST_FOR_INTERVAL, 0.0, 0.17)])
def test_the_bootstrap_of_a_lift_is_right_from_ten_corrections_on(fixed: int, low: float, high: float) -> None:
    generator = torch.Generator().manual_seed(5)
    excluded = [lift_excludes_zero(fixed, generator) for _ in range(150)]
    # 5 % would be exact; with 150 trials the standard error is below 0.04.
    assert low <= sum(excluded) / len(excluded) <= high


@pytest.mark.parametrize("n", [1, 4, FEWEST_FOR_INTERVAL - 1])
def test_a_share_of_few_answers_has_no_interval(n: int) -> None:
    for right in (n, n // 2):
        estimate = STATS.share(hits(right, n - right))
        assert (estimate.mean, estimate.ci95, estimate.n) == (right / n, (None, None), n)


def test_a_share_of_ten_answers_has_the_bootstrap_interval() -> None:
    estimate = STATS.share(hits(6, 4))
    drawn = np.random.default_rng(0).binomial(10, 0.6, 20_000) / 10
    assert estimate.ci95 == pytest.approx(tuple(np.quantile(drawn, [0.025, 0.975])), abs=0.051)


@pytest.mark.parametrize("n", [10, 40])
def test_a_share_of_one_or_zero_has_the_exact_interval(n: int) -> None:
    # Clopper and Pearson: beta quantiles.
    assert STATS.share(hits(n, 0)).ci95 == pytest.approx((beta.ppf(0.025, n, 1), 1.0))
    assert STATS.share(hits(0, n)).ci95 == pytest.approx((0.0, beta.ppf(0.975, 1, n)))


def test_an_exact_interval_counts_a_query_once_whatever_the_number_of_seeds() -> None:
    estimate = Statistics(100, ("1", "2", "3")).share(torch.ones(3, 12, dtype=torch.float64))
    assert estimate.n == 36
    assert estimate.ci95 == pytest.approx((beta.ppf(0.025, 12, 1), 1.0))


def test_a_difference_without_a_query_that_tells_two_apart_has_no_interval() -> None:
    assert STATS.difference(torch.zeros(1, 50, dtype=torch.float64)).ci95 == (None, None)
    one_apart = torch.zeros(1, 50, dtype=torch.float64)
    one_apart[0, 0] = 1.0
    low, high = STATS.difference(one_apart).ci95
    assert low is not None
    assert high is not None
    assert low <= 0.02 <= high


@pytest.mark.parametrize(("gained", "has_interval"), [(9, False), (10, True)])
def test_a_share_of_a_gain_of_few_answers_has_no_interval(gained: int, has_interval: bool) -> None:
    zsl, icl = torch.zeros(1, 40, dtype=torch.float64), torch.zeros(1, 40, dtype=torch.float64)
    icl[0, :gained] = 1.0
    right = icl.clone()
    right[0, 0] = 0.0
    estimate = recovered(right, zsl, icl, STATS)
    assert estimate.mean == pytest.approx((gained - 1) / gained)
    assert (estimate.ci95 != (None, None)) == has_interval


def with_ft_fixing(n: int) -> Any:
    """One seed in which FT puts right exactly `n` answers that zero-shot had wrong, and ICL all of these."""
    record = made_up(1)
    labels = torch.tensor([example.label for example in description().examples])
    answer_right = torch.nn.functional.one_hot(labels, 2).double().log_softmax(1)
    answer_wrong = torch.nn.functional.one_hot(1 - labels, 2).double().log_softmax(1)
    tables = record.log_probabilities
    tables["zsl"], tables["icl"], tables["ft"] = answer_wrong, answer_right.clone(), answer_wrong.clone()
    tables["ft"][:n] = answer_right[:n]
    tables["icl"][-2:] = answer_wrong[-2:]
    return summary([record])


@pytest.mark.parametrize("n", [1, 9])
def test_rec2ftp_of_few_corrections_has_counts_and_no_interval(n: int) -> None:
    estimate = with_ft_fixing(n).similarity["rec2ftp"]
    assert (estimate.mean, estimate.ci95, estimate.n) == (1.0, (None, None), n)
    assert estimate.details["lift_ci95"] == [None, None]
    assert (estimate.details["numerator"], estimate.details["denominator"]) == (n, n)


def test_rec2ftp_of_ten_shared_corrections_is_not_certain() -> None:
    result = with_ft_fixing(10)
    estimate = result.similarity["rec2ftp"]
    assert estimate.ci95 == pytest.approx((beta.ppf(0.025, 10, 1), 1.0))
    # Ten of ten is what a chance level of 16 in 18 gives a third of the time.
    low, high = estimate.details["lift_ci95"]
    assert low < 0 < high


# Baselines


def task_with(labels: list[int], words: tuple[str, ...] | None = ("no", "yes"), choices: int = 2) -> Task:
    options = None if words else tuple(f"choice {number}" for number in range(choices))
    examples = tuple(
        Example(fields={"text": f"text {row}"}, label=label, row=row, choices=options)
        for row, label in enumerate(labels)
    )
    return Task(
        name="few",
        source="here",
        template=Template("{text}", "\n"),
        splits={"train": examples, "report": examples},
        label_words=words,
        label_names=None,
        selection_split="report",
        report_split="report",
    )


def test_the_majority_baseline_is_the_share_of_the_most_common_label_of_the_queries() -> None:
    task = task_with([1, 1, 1, 0, 1])
    baselines = baselines_of(task, task.split("report"))
    assert (baselines.majority, baselines.majority_label, baselines.chance, baselines.n) == (0.8, "yes", 0.5, 5)
    assert baselines.label_counts == {"no": 1, "yes": 4}
    assert baseline_notes(task, baselines) == []


def test_free_text_choices_have_the_place_that_is_right_most_often() -> None:
    task = task_with([2, 0, 2, 3], words=None, choices=4)
    baselines = baselines_of(task, task.split("report"))
    assert (baselines.majority, baselines.majority_label, baselines.chance) == (0.5, "2", 0.25)
    assert baselines.label_counts == {"0": 1, "1": 0, "2": 2, "3": 1}


def test_queries_of_one_label_are_pointed_out() -> None:
    task = task_with([1, 1, 1])
    [note] = baseline_notes(task, baselines_of(task, task.split("report")))
    assert "all 3 reported queries is “yes”" in note


def test_a_comparison_reports_the_baselines_and_what_each_learner_has_over_them() -> None:
    records = [made_up(seed) for seed in (1, 2, 3)]
    result = summary(records)
    labels = np.array([example.label for example in description().examples])
    share = max(np.mean(labels == 0), np.mean(labels == 1))
    assert result.baselines is not None
    assert result.baselines.majority == pytest.approx(share)
    assert sum(result.baselines.label_counts.values()) == result.baselines.n == len(labels)
    for accuracy in result.accuracy.values():
        assert accuracy.over_majority is not None
        assert accuracy.over_majority.mean == pytest.approx((accuracy.mean or 0.0) - share)


# F1 and recall, against scikit-learn


def drawn(n_seeds: int, n: int, n_labels: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Answers and labels; the last label is never right, the first never answered."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_labels - 1, (n,), generator=generator)
    predicted = torch.randint(1, n_labels, (n_seeds, n), generator=generator)
    return predicted, labels


def test_macro_f1_and_recall_are_those_of_scikit_learn() -> None:
    predicted, labels = drawn(3, 90, 4)
    names = ("a", "b", "c", "d")
    accuracy = Statistics(300, ("1", "2", "3")).accuracy("icl", predicted, labels, names)
    there = [0, 1, 2]
    f1 = [f1_score(labels, each, labels=there, average="macro", zero_division=0) for each in predicted]
    assert accuracy.macro_f1 is not None
    assert accuracy.macro_f1.mean == pytest.approx(np.mean(f1))
    low, high = accuracy.macro_f1.ci95
    assert low is not None
    assert high is not None
    assert low < np.mean(f1) < high
    recall = np.mean([recall_score(labels, each, labels=there, average=None) for each in predicted], axis=0)
    assert [each.mean for each in accuracy.per_label.values()] == pytest.approx(list(recall))
    assert list(accuracy.per_label) == ["a", "b", "c"]
    assert [each.n for each in accuracy.per_label.values()] == [3 * int((labels == label).sum()) for label in there]


def test_the_interval_of_macro_f1_resamples_seeds_and_shared_queries() -> None:
    predicted, labels = drawn(4, 60, 3)
    accuracy = Statistics(2000, tuple("1234")).macro_f1(predicted, labels)

    def plain_f1(true: np.ndarray, answer: np.ndarray) -> float:
        # scikit-learn's takes 10 ms a call; the test above shows that it says the same.
        return float(
            np.mean(
                [2 * np.sum((true == c) & (answer == c)) / (np.sum(true == c) + np.sum(answer == c)) for c in (0, 1)]
            )
        )

    rng, truth, answers = np.random.default_rng(1), labels.numpy(), predicted.numpy()
    resampled = []
    for _ in range(1000):
        queries, seeds = rng.integers(60, size=60), rng.integers(4, size=4)
        resampled.append(np.mean([plain_f1(truth[queries], answers[seed][queries]) for seed in seeds]))
    assert accuracy.ci95 == pytest.approx(tuple(np.quantile(resampled, [0.025, 0.975])), abs=0.02)


def test_a_label_of_few_queries_takes_the_interval_of_macro_f1_with_it() -> None:
    labels = torch.tensor([0] * 30 + [1] * 9)
    predicted = torch.cat([torch.zeros(1, 20), torch.ones(1, 19)], dim=1).long()
    accuracy = STATS.accuracy("ft", predicted, labels, ("no", "yes"))
    assert accuracy.macro_f1 is not None
    assert accuracy.macro_f1.ci95 == (None, None)
    assert (accuracy.per_label["yes"].mean, accuracy.per_label["yes"].ci95, accuracy.per_label["yes"].n) == (
        1.0,
        (None, None),
        9,
    )
    assert accuracy.per_label["no"].ci95 != (None, None)


def test_one_answer_to_everything_has_nothing_over_the_majority_baseline() -> None:
    labels = torch.tensor([0] * 30 + [1] * 70)
    accuracy = STATS.accuracy("icl", torch.ones(1, 100).long(), labels, ("no", "yes"))
    assert accuracy.mean == 0.7
    assert accuracy.over_majority is not None
    assert (accuracy.over_majority.mean, accuracy.over_majority.ci95) == (0.0, (None, None))
    # sklearn: F1 of "no" is 0, of "yes" 2 * 70 / 170.
    assert accuracy.macro_f1 is not None
    assert math.isclose(accuracy.macro_f1.mean or 0.0, 70 / 170)


def test_free_text_choices_have_no_classes() -> None:
    predicted, labels = drawn(1, 40, 3)
    accuracy = STATS.accuracy("icl", predicted, labels, None)
    assert (accuracy.macro_f1, accuracy.per_label) == (None, {})


def test_a_single_label_among_the_reported_queries_is_a_warning() -> None:
    task = task_with([1] * 18)
    one_label = description(task)
    record = made_up(1, task)
    result = summarise(small_config(seeds=(1,)), small_lm(), one_label, [record], 1.0)
    assert any("all 18 reported queries" in warning for warning in result.warnings)
