"""What difference could have been found at all: the question to ask of every "no difference"."""

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
    """Smallest true difference that a two-sided test finds with the given power, from the width of an interval.

    Computes (z_{1 - alpha/2} + z_power) SE, with SE = (high - low) / (2 z_0.975): 1.43 half-widths by default. It
    takes the estimate to be about normal, the standard error to be known, and the interval to be as wide as it
    should be: one that is too narrow promises too much. An interval without width gives 0, which is no finding: equal
    numbers do not show how much a difference would vary, and studies report no effect then.

    Args:
        ci95: Lower and upper end of a 95 % interval of the difference, two floats or two tensors of shape `(...)`.
        alpha: Level of the test, in (0, 1).
        power: How often the difference is to be found, in (alpha, 1).

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
