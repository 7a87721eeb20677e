import math

import numpy as np
import pytest
import torch
from sklearn import metrics
from torch import Tensor

from dualform.result import Classification, Estimate
from dualform.studies.classification import classification, confusion_counts
from dualform.studies.common_warnings import rare_labels
from dualform.studies.statistics import Statistics

NAMES = [" red", " green", " blue"]


def stats(seeds: int = 3, resamples: int = 200) -> Statistics:
    return Statistics(resamples, tuple(map(str, range(seeds))))


def answers(
    seeds: int = 3, n: int = 60, n_labels: int = 3, signal: float = 1.0, seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Log-probabilities that are higher for the right label by `signal`, and right labels of unequal frequency."""
    generator = torch.Generator().manual_seed(seed)
    weights = torch.arange(n_labels, 0, -1.0)
    labels = torch.multinomial(weights, n, replacement=True, generator=generator)
    labels[:n_labels] = torch.arange(n_labels)
    scores = torch.randn(seeds, n, n_labels, generator=generator, dtype=torch.float64)
    return scores + signal * torch.nn.functional.one_hot(labels, n_labels) - 2, labels


def mean(estimate: Estimate | None) -> float:
    assert estimate is not None
    assert estimate.mean is not None
    return estimate.mean


def test_scores_are_those_of_scikit_learn_on_all_answers():
    table, labels = answers()
    found = classification(table, labels, NAMES, stats())
    true = labels.repeat(3).numpy()
    predicted = table.argmax(-1).flatten().numpy()
    probabilities = table.softmax(-1).flatten(0, 1).numpy()

    assert mean(found.accuracy) == pytest.approx(metrics.accuracy_score(true, predicted))
    assert mean(found.balanced_accuracy) == pytest.approx(metrics.balanced_accuracy_score(true, predicted))
    assert mean(found.log_loss) == pytest.approx(metrics.log_loss(true, probabilities))
    assert mean(found.brier) == pytest.approx(metrics.brier_score_loss(true, probabilities, scale_by_half=False))
    assert found.confusion == metrics.confusion_matrix(true, predicted).tolist()
    assert found.labels == NAMES
    precision, recall, _, _ = metrics.precision_recall_fscore_support(true, predicted)
    for name, p, r in zip(NAMES, precision, recall, strict=True):
        scores = found.per_class[name]
        assert (mean(scores.precision), mean(scores.recall)) == pytest.approx((p, r))
        assert scores.support == int((labels == NAMES.index(name)).sum())
        assert scores.predicted == scores.precision.n == int((predicted == NAMES.index(name)).sum())
    assert (found.zero_probability, found.left_out) == (0, 0)


def test_f1_is_the_mean_over_seeds_of_scikit_learns_and_macro_f1_the_mean_over_labels():
    table, labels = answers()
    found = classification(table, labels, NAMES, stats())
    by_seed = [metrics.f1_score(labels.numpy(), seed.argmax(-1).numpy(), average=None) for seed in table]
    f1 = [mean(found.per_class[name].f1) for name in NAMES]
    assert f1 == pytest.approx(np.mean(by_seed, axis=0))
    assert mean(found.macro_f1) == pytest.approx(np.mean(f1))
    assert found.macro_f1 == stats().accuracy("icl", table.argmax(-1), labels, NAMES).macro_f1


def test_accuracy_and_recall_are_those_of_the_result():
    table, labels = answers()
    found = classification(table, labels, NAMES, stats())
    known = stats().accuracy("icl", table.argmax(-1), labels, NAMES)
    assert found.accuracy.model_dump() == known.model_dump(include={"mean", "ci95", "n"})
    for name in NAMES:
        recall, expected = found.per_class[name].recall, known.per_label[name]
        assert (mean(recall), recall.n) == (pytest.approx(mean(expected)), expected.n)
        assert recall.ci95 == pytest.approx(expected.ci95, abs=1e-12)


def test_the_calibration_error_is_that_of_the_bins():
    table, labels = answers(n=200)
    found = classification(table, labels, NAMES, stats())
    n = sum(each.accuracy.n for each in found.reliability)
    gaps = [abs(mean(each.accuracy) - (each.confidence or 0)) * each.accuracy.n for each in found.reliability]
    assert n == 600
    assert mean(found.ece) == pytest.approx(sum(gaps) / n)
    assert all(each.low < (each.confidence or 0) <= each.high for each in found.reliability)
    confidence = table.softmax(-1).amax(-1)
    for each in found.reliability:
        inside = (confidence > each.low) & (confidence <= each.high)
        assert each.accuracy.n == int(inside.sum())
        assert mean(each.accuracy) == pytest.approx((table.argmax(-1) == labels)[inside].double().mean().item())


def scalars(found: Classification) -> dict[str, Estimate]:
    estimates = {name: getattr(found, name) for name in type(found).model_fields}
    return {name: each for name, each in estimates.items() if isinstance(each, Estimate)}


def test_every_interval_holds_its_number():
    for name, each in scalars(classification(*answers(), NAMES, stats())).items():
        low, high = each.ci95
        assert low is not None, name
        assert high is not None, name
        assert low <= mean(each) <= high, name
        assert low < high, name


def test_labels_in_another_order_change_nothing_but_their_place():
    table, labels = answers()
    order = torch.tensor([2, 0, 1])
    moved = torch.empty_like(table)
    moved[..., order] = table
    names = [NAMES[int((order == place).nonzero())] for place in range(3)]
    one = classification(table, labels, NAMES, stats())
    other = classification(moved, order[labels], names, stats())
    for name, each in scalars(one).items():
        assert mean(getattr(other, name)) == pytest.approx(mean(each), abs=1e-12), name
    assert other.per_class.keys() == one.per_class.keys()
    assert other.confusion[int(order[0])][int(order[1])] == one.confusion[0][1]


def test_right_labels_without_probability_are_counted_and_their_loss_is_limited():
    table, labels = answers(seeds=1, n=20)
    known = classification(table, labels, NAMES, stats(1))
    places = torch.tensor([3, 8])
    table[0, places, labels[places]] = -math.inf
    found = classification(table, labels, NAMES, stats(1))
    assert found.zero_probability == 0.1
    worst = -math.log(np.finfo(np.float64).eps)
    kept = [i for i in range(20) if i not in (3, 8)]
    losses = -table.log_softmax(-1)[0].gather(-1, labels[:, None])[kept].sum().item()
    assert mean(found.log_loss) == pytest.approx((losses + 2 * worst) / 20)
    expected = metrics.log_loss(labels.numpy(), table[0].softmax(-1).numpy(), labels=[0, 1, 2])
    assert mean(found.log_loss) == pytest.approx(expected)
    assert mean(known.log_loss) < mean(found.log_loss)


def test_rows_without_a_number_are_left_out_of_everything():
    table, labels = answers(seeds=1, n=30)
    gone = torch.tensor([1, 7, 20])
    kept = torch.tensor([i for i in range(30) if i not in gone.tolist()])
    holes = table.clone()
    holes[0, gone[0]] = math.nan
    holes[0, gone[1], 0] = math.nan
    holes[0, gone[2]] = -math.inf
    found = classification(holes, labels, NAMES, stats(1))
    expected = classification(table[:, kept], labels[kept], NAMES, stats(1))
    assert found.left_out == 3
    for name, each in scalars(expected).items():
        assert mean(getattr(found, name)) == pytest.approx(mean(each)), name
    assert scalars(found)["macro_f1"].n == 27
    assert found.confusion == expected.confusion


def test_a_seed_without_any_answer_is_left_out():
    table, labels = answers(seeds=2)
    alone = classification(table[:1], labels, NAMES, stats(1))
    table[1] = math.nan
    found = classification(table, labels, NAMES, stats(2))
    for name, each in scalars(alone).items():
        assert mean(getattr(found, name)) == pytest.approx(mean(each)), name


def test_without_any_answer_there_is_no_number():
    found = classification(torch.full((2, 5, 3), math.nan), torch.tensor([0, 1, 2, 0, 1]), NAMES, stats(2))
    assert (found.left_out, found.reliability, found.confusion) == (10, [], [])
    assert all(each.mean is None and each.ci95 == (None, None) and each.n == 0 for each in scalars(found).values())
    assert found.ece_if_calibrated is None
    assert Classification.model_validate_json(found.model_dump_json()) == found


def test_a_class_that_no_query_has_is_in_the_confusion_matrix_alone():
    table, labels = answers()
    labels[labels == 2] = 1
    found = classification(table, labels, NAMES, stats())
    assert list(found.per_class) == NAMES[:2]
    assert found.confusion[2] == [0, 0, 0]
    assert sum(row[2] for row in found.confusion) > 0
    expected = np.mean([metrics.f1_score(labels, seed.argmax(-1), average="macro", labels=[0, 1]) for seed in table])
    assert mean(found.macro_f1) == pytest.approx(expected)


def test_a_class_that_is_never_predicted_has_no_precision_and_an_f1_of_zero():
    table, labels = answers()
    table[..., 2] = -9
    scores = classification(table, labels, NAMES, stats()).per_class[" blue"]
    assert (scores.precision.mean, scores.precision.n, scores.predicted) == (None, 0, 0)
    assert (scores.recall.mean, scores.f1.mean) == (0, 0)


def test_one_class_alone_is_handled():
    table, _ = answers(n=20)
    found = classification(table, torch.zeros(20, dtype=torch.int64), NAMES, stats())
    assert list(found.per_class) == [" red"]
    assert mean(found.balanced_accuracy) == pytest.approx(mean(found.accuracy))
    only = classification(table[..., :1], torch.zeros(20, dtype=torch.int64), NAMES[:1], stats())
    assert (mean(only.log_loss), mean(only.brier), mean(only.accuracy), mean(only.ece)) == (0, 0, 1, 0)


def test_choices_have_probabilities_but_no_classes():
    table, labels = answers(n_labels=4)
    # Queries with fewer choices.
    table[:, labels < 2, 3] = -math.inf
    found = classification(table, labels, None, stats())
    assert (found.balanced_accuracy, found.macro_f1, found.per_class, found.confusion) == (None, None, {}, [])
    expected = metrics.log_loss(labels.repeat(3), table.softmax(-1).flatten(0, 1), labels=range(4))
    assert mean(found.log_loss) == pytest.approx(expected)
    assert mean(found.ece) > 0


def test_right_answers_alone_have_no_spread_and_exact_shares():
    table, labels = answers(n=40, signal=50.0)
    found = classification(table, labels, NAMES, stats())
    assert mean(found.balanced_accuracy) == 1
    assert found.balanced_accuracy is not None
    assert found.balanced_accuracy.ci95 == (None, None)
    low, high = found.accuracy.ci95
    assert low is not None
    assert (0.9 < low < 1, high) == (True, 1)


def test_few_answers_have_no_interval():
    table, labels = answers(seeds=1, n=9)
    found = classification(table, labels, NAMES, stats(1))
    assert all(each.ci95 == (None, None) for each in scalars(found).values())
    assert all(mean(each) >= 0 for each in scalars(found).values())


def test_a_uniform_learner_is_calibrated_when_it_is_right_one_time_in_n():
    labels = torch.arange(30) % 3
    found = classification(torch.zeros(1, 30, 3), labels, NAMES, stats(1))
    assert mean(found.ece) == pytest.approx(0, abs=1e-12)
    assert mean(found.brier) == pytest.approx(2 / 3)


def test_a_confident_learner_that_is_wrong_has_a_calibration_error_near_one():
    labels = torch.zeros(30, dtype=torch.int64)
    table = torch.tensor([0.0, 8.0]).expand(1, 30, 2)
    found = classification(table, labels, NAMES[:2], stats(1))
    assert mean(found.ece) > 0.99
    assert (found.ece_if_calibrated or 1) < 0.01


N_TRIALS = 120


@pytest.mark.parametrize("temperature", [1.0, 0.4])
def test_intervals_cover_the_true_values(temperature):
    """Queries with two labels whose probabilities are true at temperature 1 and overconfident below it."""
    generator = torch.Generator().manual_seed(7)
    logits = 1.5 * torch.randn(200_000, generator=generator, dtype=torch.float64)
    labels = (torch.rand(200_000, generator=generator, dtype=torch.float64) < logits.sigmoid()).long()
    population = torch.stack([torch.zeros_like(logits), logits / temperature], dim=-1)
    truth = classification(population[None, :], labels, NAMES[:2], stats(1, resamples=2))
    names = ("accuracy", "log_loss", "brier", "ece")
    covered = dict.fromkeys(names, 0)
    for trial in range(N_TRIALS):
        part = slice(250 * trial, 250 * (trial + 1))
        found = classification(population[None, part], labels[part], None, stats(1, resamples=200))
        for name in names:
            low, high = getattr(found, name).ci95
            covered[name] += low <= mean(getattr(truth, name)) <= high
    # 95 % less four binomial standard errors of 120 trials.
    lowest = 0.95 - 4 * math.sqrt(0.95 * 0.05 / N_TRIALS)
    assert all(hits / N_TRIALS > lowest for hits in covered.values()), covered


def test_confusion_counts_are_by_right_and_predicted_label():
    predicted = torch.tensor([[0, 1, -1], [1, 1, 1]])
    assert confusion_counts(predicted, torch.tensor([0, 0, 1]), 3) == [[1, 3, 0], [0, 1, 0], [0, 0, 0]]


def test_labels_of_few_queries_are_named_with_their_numbers():
    (warning,) = rare_labels({" yes": 10, " no": 9, " maybe": 0})
    assert "“maybe” (0) and “no” (9):" in warning
    assert "yes" not in warning
    assert rare_labels({" yes": 10, " no": 10}) == []
    (many,) = rare_labels({f"label {i}": 1 for i in range(20)})
    assert ("“label 7” (1)" in many, "label 8" in many, "12 other labels" in many) == (True, False, True)
