import math

import pytest
import torch
from torch import Tensor

from dualform.errors import ShapeError
from dualform.ops.calibration import batch_calibration, contextual_calibration


def logits(*shape: int, seed: int = 0) -> Tensor:
    return 2 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_calibration(log_probabilities: Tensor, content_free: Tensor) -> list[list[float]]:
    """Section 5 of the paper by loops over plain floats: W = diag(p_cf)^-1, b = 0, then normalised."""

    def distribution(row: Tensor) -> list[float]:
        weights = [math.exp(value) for value in row.tolist()]
        return [weight / sum(weights) for weight in weights]

    free = [distribution(row) for row in content_free]
    p_cf = [sum(row[label] for row in free) / len(free) for label in range(content_free.shape[-1])]
    calibrated = []
    for row in log_probabilities:
        weighed = [p / q for p, q in zip(distribution(row), p_cf, strict=True)]
        calibrated.append([math.log(weight / sum(weighed)) for weight in weighed])
    return calibrated


def test_calibration_answers_to_the_slow_version():
    queries, free = logits(7, 4), logits(3, 4, seed=1)
    expected = torch.tensor(slow_calibration(queries, free), dtype=torch.float64)
    torch.testing.assert_close(contextual_calibration(queries, free), expected, rtol=1e-12, atol=1e-12)


def test_the_content_free_input_itself_becomes_uniform():
    free = logits(1, 5)
    calibrated = contextual_calibration(free, free)
    torch.testing.assert_close(calibrated.exp(), torch.full_like(free, 1 / 5), rtol=1e-12, atol=0)


def test_one_of_several_content_free_inputs_does_not_become_uniform_but_their_mean_does():
    free = logits(3, 5)
    assert (contextual_calibration(free, free).exp() - 1 / 5).abs().amax(-1).min() > 0.02
    mean = free.softmax(-1).mean(0, keepdim=True).log()
    torch.testing.assert_close(contextual_calibration(mean, free).exp(), torch.full_like(mean, 1 / 5))


def test_a_bias_towards_one_label_in_queries_and_content_free_input_drops_out_exactly():
    queries, free = logits(20, 3), logits(1, 3, seed=1)
    bias = torch.tensor([0.0, 6.0, 0.0], dtype=torch.float64)
    assert ((queries + bias).argmax(-1) == 1).double().mean() > 0.8
    torch.testing.assert_close(
        contextual_calibration(queries + bias, free + bias),
        contextual_calibration(queries, free),
        rtol=1e-12,
        atol=1e-12,
    )


def test_a_bias_in_the_queries_alone_stays():
    queries, free = logits(20, 3), logits(1, 3, seed=1)
    bias = torch.tensor([0.0, 6.0, 0.0], dtype=torch.float64)
    biased, clean = contextual_calibration(queries + bias, free), contextual_calibration(queries, free)
    torch.testing.assert_close(biased, (clean + bias).log_softmax(-1))
    assert (biased.argmax(-1) == 1).double().mean() > 0.8
    assert (clean.argmax(-1) == 1).double().mean() < 0.6


def test_the_same_bias_does_not_drop_out_of_a_mean_of_several_content_free_inputs():
    queries, free = logits(20, 3), logits(3, 3, seed=1)
    bias = torch.tensor([0.0, 2.0, 0.0], dtype=torch.float64)
    apart = contextual_calibration(queries + bias, free + bias) - contextual_calibration(queries, free)
    assert apart.abs().max() > 0.05


def test_uniform_content_free_inputs_change_nothing():
    queries = logits(6, 4)
    calibrated = contextual_calibration(queries, torch.zeros(2, 4))
    torch.testing.assert_close(calibrated, queries.log_softmax(-1))


def test_rows_are_normalised_and_constants_of_a_row_do_not_matter():
    queries, free = logits(6, 4), logits(2, 4, seed=1)
    calibrated = contextual_calibration(queries, free)
    torch.testing.assert_close(calibrated.exp().sum(-1), torch.ones(6, dtype=torch.float64))
    shifted = contextual_calibration(queries + logits(6, 1, seed=2), free + logits(2, 1, seed=3))
    torch.testing.assert_close(shifted, calibrated)


def test_unlikely_labels_are_divided_without_underflow():
    # exp(-2000) is 0 in floats; the quotient is 1 to 1 all the same.
    queries = torch.tensor([[0.0, -2000.0]], dtype=torch.float64)
    assert contextual_calibration(queries, queries).exp().tolist() == [[0.5, 0.5]]


def test_impossible_labels_stay_impossible_even_where_no_content_free_input_allows_them():
    queries = torch.tensor([[0.0, 1.0, -torch.inf]])
    for free in (torch.tensor([[0.0, 0.0, 0.0]]), torch.tensor([[0.0, 0.0, -torch.inf]])):
        calibrated = contextual_calibration(queries, free)
        assert calibrated[0, 2] == -torch.inf
        torch.testing.assert_close(calibrated[0, :2], queries[0, :2].log_softmax(-1))


def test_a_possible_label_that_no_content_free_input_allows_makes_its_row_nan():
    queries = torch.tensor([[0.0, 1.0], [0.0, -torch.inf]])
    calibrated = contextual_calibration(queries, torch.tensor([[0.0, -torch.inf]]))
    assert calibrated[0].isnan().all()
    assert calibrated[1].tolist() == [0, -math.inf]


def test_a_nan_stays_in_its_row_and_content_free_rows_with_one_are_left_out():
    queries, free = logits(3, 4), logits(3, 4, seed=1)
    queries[1, 2] = torch.nan
    free[0, 0] = torch.nan
    free[2] = -torch.inf
    calibrated = contextual_calibration(queries, free)
    assert calibrated[1].isnan().all()
    torch.testing.assert_close(calibrated[[0, 2]], contextual_calibration(queries[[0, 2]], free[1:2]))
    assert contextual_calibration(queries, free[[0, 2]]).isnan().all()


def test_each_run_has_content_free_inputs_of_its_own():
    queries, free = logits(2, 3, 5, 4), logits(2, 3, 2, 4, seed=1)
    copies = queries.clone(), free.clone()
    calibrated = contextual_calibration(queries, free)
    assert calibrated.shape == (2, 3, 5, 4)
    torch.testing.assert_close(calibrated[1, 2], contextual_calibration(queries[1, 2], free[1, 2]))
    torch.testing.assert_close(
        contextual_calibration(queries, free[0, 0])[1, 2], contextual_calibration(queries[1, 2], free[0, 0])
    )
    torch.testing.assert_close((queries, free), copies)
    assert contextual_calibration(queries.bfloat16(), free.bfloat16()).dtype == torch.float32


def test_errors_name_what_was_given():
    with pytest.raises(ShapeError, match=r"same labels .* given \(5, 3\) and \(2, 4\)"):
        contextual_calibration(torch.zeros(5, 3), torch.zeros(2, 4))
    with pytest.raises(ShapeError, match=r"leading axes that broadcast; given \(2, 5, 3\) and \(4, 2, 3\)"):
        contextual_calibration(torch.zeros(2, 5, 3), torch.zeros(4, 2, 3))
    with pytest.raises(ShapeError, match=r"content_free holds no input: its shape is \(0, 3\); expected 1 or more"):
        contextual_calibration(torch.zeros(5, 3), torch.zeros(0, 3))
    with pytest.raises(ShapeError, match=r"\(\.\.\., example, label\); given log_probabilities \(3,\)"):
        contextual_calibration(torch.zeros(3), torch.zeros(2, 3))
    with pytest.raises(ShapeError, match=r"\(\.\.\., content_free, label\); given content_free \(3,\)"):
        contextual_calibration(torch.zeros(2, 3), torch.zeros(3))


class TestBatchCalibration:
    def test_it_answers_to_the_slow_version(self):
        queries, batch = logits(7, 4), logits(5, 4, seed=1)
        mean = [sum(row.log_softmax(-1)[label].item() for row in batch) / 5 for label in range(4)]
        for row, calibrated in zip(queries, batch_calibration(queries, batch), strict=True):
            weights = [math.exp(row[label].item() - mean[label]) for label in range(4)]
            expected = [math.log(weight / sum(weights)) for weight in weights]
            assert calibrated.tolist() == pytest.approx(expected, rel=1e-12, abs=1e-12)

    def test_a_bias_drops_out_exactly_from_any_number_of_queries(self):
        queries, batch = logits(20, 3), logits(6, 3, seed=1)
        bias = torch.tensor([0.0, 6.0, -2.0], dtype=torch.float64)
        expected = batch_calibration(queries, batch)
        torch.testing.assert_close(batch_calibration(queries + bias, batch + bias), expected, rtol=1e-11, atol=1e-11)
        # Dividing by the mean probability does not remove it.
        biased, plain = contextual_calibration(queries + bias, batch + bias), contextual_calibration(queries, batch)
        assert (biased - plain).abs().max() > 0.05

    def test_a_uniform_batch_changes_nothing(self):
        queries = logits(4, 3)
        same = batch_calibration(queries, torch.zeros(5, 3, dtype=torch.float64))
        torch.testing.assert_close(same, queries.log_softmax(-1), rtol=1e-12, atol=1e-12)

    def test_impossible_labels(self):
        queries = torch.tensor([[0.0, -torch.inf, 1.0]])
        assert batch_calibration(queries, torch.zeros(2, 3))[0, 1] == -torch.inf
        assert batch_calibration(torch.zeros(1, 3), queries).isnan().all()

    def test_shapes_are_checked(self):
        with pytest.raises(ShapeError, match="same labels"):
            batch_calibration(logits(2, 3), logits(2, 4))
        with pytest.raises(ShapeError, match="holds no input"):
            batch_calibration(logits(2, 3), torch.zeros(0, 3))
