"""Numbers as text. A number that does not exist is a dash; nothing is rounded to a certainty it lacks."""

import math
from typing import Any

MISSING = "\N{EN DASH}"
"""Stands for a number that does not exist."""

Interval = tuple[float | None, float | None]


def finite(value: Any) -> float | None:
    """`value` as a float; None where it is no finite number (booleans are no numbers)."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def known(interval: Any) -> tuple[float, float] | None:
    """Both ends of an interval; None where either is missing."""
    if not isinstance(interval, list | tuple) or len(interval) != 2:
        return None
    low, high = finite(interval[0]), finite(interval[1])
    return None if low is None or high is None else (low, high)


def percent(value: Any, digits: int = 1) -> str:
    """A share in [0, 1] as `72.1 %`."""
    number = finite(value)
    return MISSING if number is None else f"{100 * number:.{digits}f} %"


def decimal(value: Any, digits: int = 3) -> str:
    """`0.186`; small numbers that would round to zero as `1.2e-05`."""
    number = finite(value)
    if number is None:
        return MISSING
    if number != 0 and abs(number) < 0.5 * 10**-digits:
        return f"{number:.1e}"
    return f"{number:.{digits}f}"


def percent_interval(interval: Any) -> str:
    """`70.2 to 73.9 %`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f} %"


def decimal_interval(interval: Any) -> str:
    """`0.170 to 0.201`."""
    ends = known(interval)
    return MISSING if ends is None else f"{ends[0]:.3f} to {ends[1]:.3f}"


def significant(value: Any) -> str:
    """Three significant digits, thousands grouped: `0.0123`, `12.3`, `1,230`."""
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
    """A whole number, thousands grouped: `12,300`."""
    number = finite(value)
    return MISSING if number is None else f"{number:,.0f}"


def scaled(value: Any, factor: float) -> float | None:
    """`value * factor`; None where `value` is no number. For units: seconds to milliseconds, FLOPs to GFLOPs."""
    number = finite(value)
    return None if number is None else number * factor
