"""Student's interval and paired t-test over a few numbers, one a seed."""

import math
from collections.abc import Sequence

ROUNDING = 1e-12
"""Standard errors below this part of the numbers are rounding: the numbers are equal."""


def student_interval(values: Sequence[float]) -> tuple[float | None, float | None]:
    """95 % interval of a mean; none of fewer than two numbers, and one without width where all are equal."""
    from scipy.stats import t as student

    n = len(values)
    if n < 2:
        return None, None
    mean = math.fsum(values) / n
    # float(): scipy's own scalars would turn a float into numpy's.
    reach = float(student.ppf(0.975, n - 1)) * standard_error(values)
    return mean - reach, mean + reach


def paired_t_test(differences: Sequence[float], scale: float = 1.0) -> float | None:
    """Two-sided p-value that paired differences have mean 0.

    Args:
        differences: One for each pair.
        scale: Size of the numbers that were subtracted: what is far smaller is rounding.

    Returns:
        As `scipy.stats.ttest_1samp(differences, 0)`. None of fewer than two differences, and where all are one number
        but for rounding: a spread of 0 measured on a few seeds is no evidence that other seeds would agree. scipy gives
        NaN where that number is 0, and otherwise p = 0 with a warning that the result is unreliable.

    Source:
        Student, The Probable Error of a Mean, 1908.
    """
    from scipy.stats import t as student

    n = len(differences)
    if n < 2:
        return None
    error = standard_error(differences)
    if error <= ROUNDING * max(scale, *map(abs, differences)):
        return None
    return 2 * float(student.sf(abs(math.fsum(differences) / n) / error, n - 1))


def standard_error(values: Sequence[float]) -> float:
    """Standard error of the mean of two numbers or more."""
    n = len(values)
    mean = math.fsum(values) / n
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (n - 1) / n)
