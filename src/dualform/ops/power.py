"""The smallest true difference that a study is likely to detect, computed from the interval that it reported."""

from typing import overload

from scipy.stats import norm
from torch import Tensor

from dualform.errors import ConfigError


@overload
def minimum_detectable(ci95: tuple[float, float], *, alpha: float = 0.05, power: float = 0.8) -> float: ...


@overload
def minimum_detectable(ci95: tuple[Tensor, Tensor], *, alpha: float = 0.05, power: float = 0.8) -> Tensor: ...


def minimum_detectable(
    ci95: tuple[float, float] | tuple[Tensor, Tensor], *, alpha: float = 0.05, power: float = 0.8
) -> float | Tensor:
    """Smallest true difference that a two-sided test detects with the given power, from the width of an interval.

    Computes (z_{1 - alpha/2} + z_power) SE, with SE = (high - low) / (2 z_0.975): 1.43 half-widths by default. The
    estimate is assumed to be approximately normal with a known standard error. An interval that is too narrow, as a
    bootstrap over few seeds is, gives a difference that is too small. An interval of width 0 gives 0,
    which is not meaningful, because equal numbers do not show how much a difference varies; studies do not report it.

    Args:
        ci95: Lower and upper end of a 95 % interval of the difference, two floats or two tensors of shape `(...)`.
        alpha: Level of the test, in (0, 1).
        power: Probability of detecting the difference, in (alpha, 1).

    Returns:
        Differences in the interval's unit, 0 or more, of shape `(...)`; a float for floats; NaN where an end is NaN.

    Raises:
        ConfigError: `alpha` or `power` is out of range, or an interval ends before it begins.

    Source:
        Bloom, Minimum Detectable Effects, Evaluation Review 19(5), 1995.
    """
    if not 0 < alpha < 1:
        raise ConfigError(f"alpha is {alpha}; expected a level between 0 and 1.")
    if not alpha < power < 1:
        raise ConfigError(f"power is {power}; expected a share between alpha ({alpha}) and 1.")
    low, high = ci95
    width = high - low
    if bool((width < 0).any() if isinstance(width, Tensor) else width < 0):
        raise ConfigError(f"an interval runs from {low} to {high}; expected the lower end first.")
    # float(): scipy's own scalars would turn a float into numpy's.
    return width * float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) / (2 * norm.ppf(0.975)))
