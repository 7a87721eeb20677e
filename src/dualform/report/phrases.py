"""Pieces of sentences that several reports share: lists, differences in points, who lies above whom."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dualform.report.numerals import (
    MISSING,
    finite,
    known,
    percent,
    percent_interval,
    rounded,
    rounded_interval,
)

if TYPE_CHECKING:
    from dualform.result import Estimate


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capital(text: str) -> str:
    """`text` with a capital letter first, the rest as it stands."""
    return text[:1].upper() + text[1:]


def points(share: Any) -> str:
    """A width or a deviation in [0, 1] as `4.1` points; a dash without one."""
    number = finite(share)
    return MISSING if number is None else f"{100 * number:.1f}"


def points_interval(interval: Any) -> str:
    """The same for an interval, as `3.0 to 5.2`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def difference(share: Any) -> str:
    """A difference of two shares as `+4.1`, in points."""
    number = finite(share)
    return MISSING if number is None else f"{100 * number:+.1f}"


def difference_interval(interval: Any) -> str:
    """The same for an interval, as `-0.4 to +8.6`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def hundredths(number: Any) -> str:
    """A ratio as `0.33`."""
    found = finite(number)
    # Adding zero takes the sign off a zero.
    return MISSING if found is None else f"{round(found, 2) + 0.0:.2f}"


def hundredths_interval(interval: Any) -> str:
    """The same for an interval, as `0.25 to 0.45`."""
    ends = known(interval)
    return MISSING if ends is None else f"{hundredths(ends[0])} to {hundredths(ends[1])}"


def is_few(estimate: "Estimate") -> bool:
    """Whether a share is of so few answers that it is reported as a count, without interval and verdict."""
    # The schema takes a while to load, and `--help` needs only the phrases without numbers.
    from dualform.result import FEWEST_FOR_INTERVAL

    return 0 < estimate.n < FEWEST_FOR_INTERVAL


def counted(k: float | None, n: int) -> str:
    """`3 of 4`; a dash without a number."""
    return MISSING if k is None else f"{round(k):,} of {n:,}"


def share(estimate: "Estimate") -> str:
    """A share of answers as `72.1 %`, one of few answers as `3 of 4`."""
    mean = finite(estimate.mean)
    if mean is not None and is_few(estimate):
        k = mean * estimate.n
        # A mean over seeds that differ in how many answers they have is no count.
        if abs(k - round(k)) < 0.01:
            return counted(k, estimate.n)
    return percent(mean)


def share_interval(estimate: "Estimate") -> str:
    """Its interval, as `70.2 to 73.9 %`; a dash for one of few answers, whatever the file holds."""
    return MISSING if is_few(estimate) else percent_interval(estimate.ci95)


def share_with_interval(estimate: "Estimate") -> str:
    """`72.1 % (70.2 to 73.9 %)`; the share alone without an interval, `3 of 4` for few answers."""
    interval = share_interval(estimate)
    return share(estimate) + ("" if interval == MISSING else f" ({interval})")


def share_in_prose(estimate: "Estimate", *, interval: bool = True) -> str:
    """A share for a sentence, as `72 % (68 to 76 %)`: rounded to what its interval supports; `3 of 4` for few answers.

    Args:
        estimate: The share.
        interval: Whether its interval follows.
    """
    mean = finite(estimate.mean)
    if mean is None or is_few(estimate):
        return share(estimate)
    ends = in_points(estimate.ci95)
    text = f"{rounded(100 * mean, ends, 0, 1)} %"
    return f"{text} ({rounded_interval(ends, 0, 1)} %)" if interval and ends is not None else text


def share_with_named_interval(estimate: "Estimate") -> str:
    """The same as `72 % (95 % interval 68 to 76 %)`; `3 of 4` for few answers."""
    ends = in_points(estimate.ci95)
    if is_few(estimate) or ends is None:
        return share_in_prose(estimate)
    return f"{share_in_prose(estimate, interval=False)} (95 % interval {rounded_interval(ends, 0, 1)} %)"


def score_in_prose(estimate: "Estimate", *, fewest: int = 1, most: int = 3) -> str:
    """A score for a sentence, as `0.19 (0.17 to 0.20)`: rounded to what its interval supports."""
    text = rounded(estimate.mean, estimate.ci95, fewest, most)
    if known(estimate.ci95) is None:
        return text
    return f"{text} ({rounded_interval(estimate.ci95, fewest, most)})"


def gap_in_prose(share: float | None, interval: Any = None) -> str:
    """The size of a difference of two shares for a sentence, as `21 points`: rounded to what its interval supports."""
    number = finite(share)
    return MISSING if number is None else f"{rounded(abs(100 * number), in_points(interval), 0, 1)} points"


def in_points(interval: Any) -> tuple[float, float] | None:
    """An interval of shares in hundredths; None where an end is missing."""
    ends = known(interval)
    return None if ends is None else (100 * ends[0], 100 * ends[1])


HIGHEST_RECOVERED = 1.5
"""A share of a gain above it, or below 0, says that there was hardly a gain, and is none."""


OUTSIDE = "the share would not lie in 0 to 150 %"
"""Why a share of the prompt's gain is undefined."""


def is_undefined(estimate: "Estimate") -> bool:
    """Whether a share of the prompt's gain is none, although there is a number."""
    share = finite(estimate.mean)
    return share is not None and not 0 <= share <= HIGHEST_RECOVERED


def plural(n: int, one: str, many: str | None = None) -> str:
    """`1 set`, `2,000 sets`; `many` is for a plural that takes more than an s."""
    return f"{n:,} {one if n == 1 else many or f'{one}s'}"


def apart(first: Any, second: Any) -> int | None:
    """Where one interval lies beside another.

    Returns:
        1 where `first` lies above `second`, -1 where it lies below, 0 where they touch, None where an end is unknown.
    """
    one, two = known(first), known(second)
    if one is None or two is None:
        return None
    return 1 if one[0] > two[1] else -1 if one[1] < two[0] else 0
