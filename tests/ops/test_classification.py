import math

import numpy as np
import pytest
import torch
from sklearn.calibration import calibration_curve
from sklearn.metrics import balanced_accuracy_score, brier_score_loss, f1_score
from sklearn.metrics import log_loss as sklearn_log_loss
from torch import Tensor

from dualform.errors import ConfigError, ShapeError
from dualform.ops.classification import (
    N_BINS,
    WORST_LOG_LOSS,
    brier_score,
    calibration_error,
    calibration_errors_by_chance,
    has_no_probability,
    label_probabilities,
    log_loss,
    reliability_counts,
)
from dualform.ops.f1 import balanced_accuracy, f1_by_label

INF = math.inf


def table(n: int, n_labels: int, seed: int = 0, scale: float = 1.5) -> tuple[Tensor, Tensor]:
    """Random log-probabilities up to a constant, and right labels of which all occur."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_labels, (n,), generator=generator)
    labels[:n_labels] = torch.arange(n_labels)
    return scale * torch.randn(n, n_labels, generator=generator, dtype=torch.float64) - 3, labels


def slow_calibration_error(confidence: list[float], right: list[float]) -> float:
    """By loops over bins and answers."""
    error = 0.0
    for place in range(10):
        inside = [i for i, p in enumerate(confidence) if place / 10 < p <= (place + 1) / 10 or p == place == 0]
        if inside:
            mean = sum(confidence[i] for i in inside) / len(inside)
            error += abs(sum(right[i] for i in inside) / len(inside) - mean) * len(inside) / len(confidence)
    return error


@pytest.mark.parametrize("n_labels", [2, 3, 7])
def test_losses_are_those_of_scikit_learn_and_of_a_loop(n_labels):
    log_p, labels = table(60, n_labels)
    p = label_probabilities(log_p)
    losses, scores = log_loss(log_p, labels), brier_score(log_p, labels)
    every = list(range(n_labels))
    assert losses.mean().item() == pytest.approx(sklearn_log_loss(labels.numpy(), p.numpy(), labels=every), rel=1e-12)
    expected = brier_score_loss(labels.numpy(), p.numpy(), labels=every, scale_by_half=False)
    assert scores.mean().item() == pytest.approx(expected, rel=1e-12)
    for row, label, loss, score in zip(log_p.tolist(), labels.tolist(), losses.tolist(), scores.tolist(), strict=True):
        weights = [math.exp(each) for each in row]
        shares = [each / sum(weights) for each in weights]
        assert loss == pytest.approx(-math.log(shares[label]), rel=1e-12)
        assert score == pytest.approx(sum((share - (i == label)) ** 2 for i, share in enumerate(shares)), rel=1e-12)


@pytest.mark.parametrize("n", [1, 2, 5])
def test_equal_probabilities_score_log_n_and_n_minus_one_over_n(n):
    log_p, labels = torch.full((4, n), -2.5), torch.arange(4) % n
    torch.testing.assert_close(log_loss(log_p, labels), torch.full((4,), math.log(n), dtype=torch.float64))
    torch.testing.assert_close(brier_score(log_p, labels), torch.full((4,), (n - 1) / n, dtype=torch.float64))


def test_a_certain_answer_scores_zero_or_the_worst():
    log_p = torch.tensor([[0.0, -INF], [-INF, 0.0]])
    labels = torch.tensor([0, 0])
    assert brier_score(log_p, labels).tolist() == [0, 2]
    assert log_loss(log_p, labels).tolist() == [0, WORST_LOG_LOSS]
    assert has_no_probability(log_p, labels).tolist() == [0, 1]
    assert pytest.approx(sklearn_log_loss([0, 0], log_p.exp().double().numpy(), labels=[0, 1])) == WORST_LOG_LOSS / 2


def test_a_probability_just_above_the_limit_is_not_cut_off():
    log_p = torch.tensor([[0.0, -36.0], [0.0, -37.0]], dtype=torch.float64)
    labels = torch.tensor([1, 1])
    assert log_loss(log_p, labels).tolist() == pytest.approx([36, 36.0437], abs=1e-4)
    assert has_no_probability(log_p, labels).tolist() == [0, 1]


@pytest.mark.parametrize("row", [[math.nan, 0.0], [-INF, -INF], [INF, 0.0]])
def test_a_row_without_probabilities_has_no_score(row):
    log_p = torch.tensor([row, [0.0, -1.0]])
    labels = torch.tensor([0, 0])
    for score in (log_loss, brier_score, has_no_probability):
        assert score(log_p, labels).isnan().tolist() == [True, False]


def test_scores_do_not_depend_on_a_constant_or_the_order_of_labels():
    log_p, labels = table(40, 4)
    order = torch.tensor([2, 0, 3, 1])
    moved = torch.empty_like(log_p)
    moved[:, order] = log_p + 7
    for score in (log_loss, brier_score):
        torch.testing.assert_close(score(moved, order[labels]), score(log_p, labels), rtol=1e-12, atol=1e-12)


def test_the_diagram_is_that_of_scikit_learn_and_of_a_loop():
    log_p, labels = table(300, 3)
    confidence = label_probabilities(log_p).amax(-1)
    right = (log_p.argmax(-1) == labels).double()
    counts = reliability_counts(confidence, right).sum(0)
    n, confidences, rights = counts
    accuracy, mean = calibration_curve(right.numpy(), confidence.numpy(), n_bins=N_BINS)
    filled = n > 0
    np.testing.assert_allclose((rights / n)[filled].numpy(), accuracy)
    np.testing.assert_allclose((confidences / n)[filled].numpy(), mean)
    slow = slow_calibration_error(confidence.tolist(), right.tolist())
    assert calibration_error(counts).item() == pytest.approx(slow, rel=1e-12)
    assert slow > 0.05


def test_a_bin_includes_its_upper_end():
    counts = reliability_counts(torch.tensor([0.0, 0.1, 0.5, 1.0], dtype=torch.float64), torch.ones(4))
    assert counts[:, 0].argmax(-1).tolist() == [0, 0, 4, 9]


def test_calibrated_answers_have_an_error_near_zero_and_confident_wrong_ones_near_one():
    confidence = torch.tensor([0.55, 0.75, 0.95], dtype=torch.float64).repeat_interleave(400)
    right = torch.cat([(torch.arange(400) < 400 * p).double() for p in (0.55, 0.75, 0.95)])
    assert calibration_error(reliability_counts(confidence, right).sum(0)).item() == pytest.approx(0, abs=1e-12)
    sure = torch.full((50,), 0.99, dtype=torch.float64)
    assert calibration_error(reliability_counts(sure, torch.zeros(50)).sum(0)).item() == pytest.approx(0.99)


def test_the_level_by_chance_is_the_error_of_calibrated_answers():
    generator = torch.Generator().manual_seed(3)
    confidence = 0.5 + 0.5 * torch.rand(1, 150, generator=generator, dtype=torch.float64)
    chance = calibration_errors_by_chance(confidence, n_draws=2000, generator=generator).mean().item()
    errors = []
    for _ in range(2000):
        right = (torch.rand(150, generator=generator, dtype=torch.float64) < confidence[0]).tolist()
        errors.append(slow_calibration_error(confidence[0].tolist(), right))
    # Two means of 2,000 draws, four standard errors of their difference.
    tolerance = float(4 * np.std(errors) * math.sqrt(2 / 2000))
    assert chance == pytest.approx(np.mean(errors), abs=tolerance)
    assert chance > 0.04
    # The same answers under five seeds say no more than once.
    again = calibration_errors_by_chance(confidence.expand(5, -1), n_draws=2000, generator=generator).mean().item()
    assert again == pytest.approx(chance, abs=tolerance)


def test_certain_answers_have_no_error_by_chance():
    generator = torch.Generator().manual_seed(0)
    assert calibration_errors_by_chance(torch.ones(2, 9), n_draws=10, generator=generator).tolist() == [0] * 10


def test_missing_answers_are_left_out_of_the_diagram():
    confidence = torch.tensor([0.9, math.nan, 0.7], dtype=torch.float64)
    counts = reliability_counts(confidence, torch.tensor([1.0, 0.0, math.nan])).sum(0)
    assert counts[0].sum().item() == 1
    assert calibration_error(counts).item() == pytest.approx(0.1)
    assert calibration_error(torch.zeros(3, 10)).isnan().item()
    nothing = torch.full((1, 4), math.nan)
    assert calibration_errors_by_chance(nothing, n_draws=5, generator=torch.Generator()).isnan().all()


def test_scores_by_label_are_those_of_scikit_learn():
    log_p, labels = table(80, 4)
    predicted = log_p.argmax(-1)
    true, given = (torch.nn.functional.one_hot(each, 4).double() for each in (labels, predicted))
    right = (true * given).sum(0)
    expected = f1_score(labels.numpy(), predicted.numpy(), average=None, labels=range(4))
    np.testing.assert_allclose(f1_by_label(right, true.sum(0), given.sum(0)).numpy(), expected)
    balanced = balanced_accuracy_score(labels.numpy(), predicted.numpy())
    assert balanced_accuracy(right, true.sum(0)).item() == pytest.approx(balanced)


def test_wrong_shapes_and_numbers_are_refused():
    with pytest.raises(ShapeError, match="label"):
        label_probabilities(torch.zeros(3, 0))
    with pytest.raises(ShapeError, match=r"\(4, 2\) and \(3,\)"):
        log_loss(torch.zeros(4, 2), torch.zeros(3))
    with pytest.raises(ShapeError, match="confidence and right"):
        reliability_counts(torch.zeros(3), torch.zeros(4))
    with pytest.raises(ConfigError, match="n_bins is 0"):
        reliability_counts(torch.zeros(3), torch.zeros(3), 0)
    with pytest.raises(ConfigError, match="n_draws is 0"):
        calibration_errors_by_chance(torch.zeros(1, 3), n_draws=0, generator=torch.Generator())
