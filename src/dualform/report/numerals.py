"""Format numbers as text. A missing number is a dash, and small numbers are not rounded to zero."""

import math
from typing import Any

MISSING = "\N{EN DASH}"
"""Text for a missing number."""

Interval = tuple[float | None, float | None]


def finite(value: Any) -> float | None:
    """`value` as a float; None unless it is a finite number (a boolean is not a number)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def known(interval: Any) -> tuple[float, float] | None:
    """Both ends of an interval; None if either is missing."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None
    low, high = finite(interval[0]), finite(interval[1])
    return None if low is None or high is None else (low, high)


def percent(value: Any, digits: int = 1) -> str:
    """A share in [0, 1] in percent, such as `72.1 %`."""
    number = finite(value)
    return MISSING if number is None else f"{100 * number:.{digits}f} %"


def decimal(value: Any, digits: int = 3) -> str:
    """A decimal number such as `0.186`; `1.2e-05` for one that would round to zero."""
    number = finite(value)
    if number is None:
        return MISSING
    if number != 0 and abs(number) < 0.5 * 10**-digits:
        return f"{number:.1e}"
    return f"{number:.{digits}f}"


def percent_interval(interval: Any) -> str:
    """An interval of shares in percent, such as `70.2 to 73.9 %`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def decimal_interval(interval: Any) -> str:
    """An interval with three decimals, such as `0.170 to 0.201`."""
    ends = known(interval)
    return MISSING if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def significant(value: Any) -> str:
    """A number with three significant digits and grouped thousands: `0.0123`, `12.3`, `1,230`."""
    number = finite(value)
    if number is None:
        return MISSING
    if number == 0:
        return "0"
    size = math.floor(math.log10(abs(number)))
    if size < -4:
        return f"{number:.2e}"
    rounded = round(number, 2 - size)
    return f"{rounded:,.{max(0, 2 - size)}f}"


def count(value: Any) -> str:
    """A whole number with grouped thousands, such as `12,300`."""
    number = finite(value)
    return MISSING if number is None else f"{number:,.0f}"


def scaled(value: Any, factor: float) -> float | None:
    """`value * factor`, for conversions of units; None if `value` is not a finite number."""
    number = finite(value)
    return None if number is None else number * factor


def supported_digits(interval: Any, fewest: int, most: int) -> int:
    """Number of decimals that a 95 % interval supports: the last one is at least a tenth of its half-width.

    Args:
        interval: The interval, in the unit in which the number is written.
        fewest: Minimum number of decimals.
        most: Maximum number of decimals, also used without an interval.
    """
    ends = known(interval)
    half = (ends[1] - ends[0]) / 2 if ends is not None else 0.0
    return most if half <= 0 else min(most, max(fewest, -math.floor(math.log10(half))))


def rounded(value: Any, interval: Any, fewest: int = 1, most: int = 3, sign: bool = False) -> str:
    """A number rounded to the precision of its interval, such as `0.19` for an interval from 0.170 to 0.201."""
    number = finite(value)
    if number is None:
        return MISSING
    return _fixed(number, supported_digits(interval, fewest, most), sign)


def rounded_interval(interval: Any, fewest: int = 1, most: int = 3, sign: bool = False) -> str:
    """An interval rounded to its own precision, such as `0.17 to 0.20`; a nonzero end is not rounded to zero."""
    ends = known(interval)
    if ends is None:
        return MISSING
    digits = supported_digits(interval, fewest, most)
    while digits < most and any(end != 0 and round(end, digits) == 0 for end in ends):
        digits += 1
    return f"{_fixed(ends[0], digits, sign)} to {_fixed(ends[1], digits, sign)}"


def _fixed(number: float, digits: int, sign: bool) -> str:
    # Adding zero turns -0.0 into 0.0.
    return f"{round(number, digits) + 0.0:{'+' if sign else ''}.{digits}f}"
