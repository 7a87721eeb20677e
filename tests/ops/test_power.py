import math

import pytest
import torch
from scipy.stats import norm

from dualform.errors import ConfigError
from dualform.ops.power import minimum_detectable

N_TRIALS = 20_000


def share_found(true_difference: float, standard_error: float, alpha: float) -> float:
    """How often a two-sided z-test rejects, by simulation."""
    source = torch.Generator().manual_seed(0)
    estimates = true_difference + standard_error * torch.randn(N_TRIALS, generator=source, dtype=torch.float64)
    return float((estimates.abs() / standard_error > norm.ppf(1 - alpha / 2)).double().mean())


@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.01, 0.9), (0.2, 0.5)])
def test_a_difference_of_that_size_is_found_as_often_as_promised(alpha, power):
    # An interval around anything; the half-width is 1.96 standard errors.
    ci95 = (3 - 1.959964 * 0.02, 3 + 1.959964 * 0.02)
    smallest = minimum_detectable(ci95, alpha=alpha, power=power)
    # Four standard errors of 20,000 trials; the other tail adds less than 0.001 but for the widest level.
    tolerance = 4 * math.sqrt(power * (1 - power) / N_TRIALS) + 0.006
    assert share_found(smallest, 0.02, alpha) == pytest.approx(power, abs=tolerance)


def test_half_of_it_is_found_much_less_often():
    smallest = minimum_detectable((-1.959964, 1.959964))
    assert share_found(smallest / 2, 1, 0.05) < 0.35


def test_the_default_is_one_point_four_three_half_widths():
    # (1.959964 + 0.841621) / 1.959964
    assert minimum_detectable((0.1, 0.3)) == pytest.approx(0.142941, rel=1e-5)


def test_floats_give_a_float_and_tensors_a_tensor():
    assert type(minimum_detectable((0.0, 1.0))) is float
    low, high = torch.tensor([[0.0, -1.0], [torch.nan, 2.0]]), torch.tensor([[1.0, 3.0], [1.0, torch.nan]])
    copies = low.clone(), high.clone()
    smallest = minimum_detectable((low, high))
    assert smallest.shape == (2, 2)
    assert smallest.dtype == torch.float32
    assert smallest[0].tolist() == pytest.approx([minimum_detectable((0.0, 1.0)), minimum_detectable((-1.0, 3.0))])
    assert smallest[1].isnan().all()
    torch.testing.assert_close((low, high), copies, equal_nan=True)


def test_no_interval_is_nan_and_no_width_is_zero():
    assert math.isnan(minimum_detectable((math.nan, math.nan)))
    assert math.isnan(minimum_detectable((0.0, math.nan)))
    assert minimum_detectable((0.5, 0.5)) == 0


def test_errors_name_what_was_given():
    with pytest.raises(ConfigError, match="alpha is 0; expected a level between 0 and 1"):
        minimum_detectable((0.0, 1.0), alpha=0)
    with pytest.raises(ConfigError, match=r"power is 0.01; expected a share between alpha \(0.05\) and 1"):
        minimum_detectable((0.0, 1.0), power=0.01)
    with pytest.raises(ConfigError, match=r"an interval runs from 1.0 to 0.0; expected the lower end first"):
        minimum_detectable((1.0, 0.0))
    with pytest.raises(ConfigError, match="expected the lower end first"):
        minimum_detectable((torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])))
