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


def supported_digits(interval: Any, fewest: int, most: int) -> int:
    """Decimals that a number's 95 % interval supports: the last one is no smaller than a tenth of its half-width.

    Args:
        interval: In the unit in which the number is written.
        fewest: Decimals of a number whose interval is wide.
        most: Decimals of a number whose interval is narrow, or that has none.
    """
    ends = known(interval)
    half = (ends[1] - ends[0]) / 2 if ends is not None else 0.0
    return most if half <= 0 else min(most, max(fewest, -math.floor(math.log10(half))))


def rounded(value: Any, interval: Any, fewest: int = 1, most: int = 3, sign: bool = False) -> str:
    """A number for a sentence, rounded to what its interval supports: `0.19`, where it is 0.170 to 0.201."""
    number = finite(value)
    if number is None:
        return MISSING
    # Adding zero takes the sign off a zero.
    return _fixed(number, supported_digits(interval, fewest, most), sign)


def rounded_interval(interval: Any, fewest: int = 1, most: int = 3, sign: bool = False) -> str:
    """Its interval, as `0.17 to 0.20`; an end that is not zero is not rounded to it."""
    ends = known(interval)
    if ends is None:
        return MISSING
    digits = supported_digits(interval, fewest, most)
    while digits < most and any(end != 0 and round(end, digits) == 0 for end in ends):
        digits += 1
    return f"{_fixed(ends[0], digits, sign)} to {_fixed(ends[1], digits, sign)}"


def _fixed(number: float, digits: int, sign: bool) -> str:
    return f"{round(number, digits) + 0.0:{'+' if sign else ''}.{digits}f}"
