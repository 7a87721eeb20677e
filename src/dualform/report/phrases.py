"""Parts of sentences that several reports share: lists, shares, differences in points, comparisons of intervals."""

import re
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


MOST_HEADLINES = 4
"""Most sentences of a verdict: a leading one and three more."""


def count_sentences(text: str) -> int:
    """Number of sentences in a text, of which the second and later ones start with a capital or a quotation mark."""
    return len(re.findall(r"[.?!](?=\s+[A-Z“]|\s*$)", text))


def leading_sentences(*findings: Sequence[str]) -> list[str]:
    """The first findings that together have at most `MOST_HEADLINES` sentences.

    Args:
        findings: Findings, the most important first. The texts of one finding are taken together or not at all; a
            finding that does not fit is skipped, so that shorter ones after it may be taken.
    """
    taken: list[str] = []
    for finding in findings:
        if sum(map(count_sentences, (*taken, *finding))) <= MOST_HEADLINES:
            taken += finding
    return taken


def listed(parts: Sequence[str]) -> str:
    """`a`, `a and b`, `a, b and c`."""
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} and {parts[-1]}"


def capital(text: str) -> str:
    """`text` with its first letter capitalized and the rest unchanged."""
    return text[:1].upper() + text[1:]


def points(share: Any) -> str:
    """A width or deviation in [0, 1] in points, such as `4.1`; a dash if it is missing."""
    number = finite(share)
    return MISSING if number is None else f"{100 * number:.1f}"


def points_interval(interval: Any) -> str:
    """An interval of widths or deviations in points, such as `3.0 to 5.2`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:.1f} to {100 * ends[1]:.1f}"


def difference(share: Any) -> str:
    """A difference of two shares in points, such as `+4.1`."""
    number = finite(share)
    return MISSING if number is None else f"{100 * number:+.1f}"


def difference_interval(interval: Any) -> str:
    """The interval of a difference in points, such as `-0.4 to +8.6`."""
    ends = known(interval)
    return MISSING if ends is None else f"{100 * ends[0]:+.1f} to {100 * ends[1]:+.1f}"


def hundredths(number: Any) -> str:
    """A ratio with two decimals, such as `0.33`."""
    ratio = finite(number)
    # Adding zero turns -0.0 into 0.0.
    return MISSING if ratio is None else f"{round(ratio, 2) + 0.0:.2f}"


def hundredths_interval(interval: Any) -> str:
    """The interval of a ratio, such as `0.25 to 0.45`."""
    ends = known(interval)
    return MISSING if ends is None else f"{hundredths(ends[0])} to {hundredths(ends[1])}"


def is_few(estimate: "Estimate") -> bool:
    """Whether a share is reported as a count, without interval and verdict, because it is of few answers."""
    # Imported here because `--help` uses this module and must not load the schema, which takes a while.
    from dualform.result import FEWEST_FOR_INTERVAL

    return 0 < estimate.n < FEWEST_FOR_INTERVAL


def counted(k: float | None, n: int) -> str:
    """A count such as `3 of 4`; a dash if it is missing."""
    return MISSING if k is None else f"{round(k):,} of {n:,}"


def share(estimate: "Estimate") -> str:
    """A share of answers, such as `72.1 %`; of few answers, such as `3 of 4`."""
    mean = finite(estimate.mean)
    if mean is not None and is_few(estimate):
        k = mean * estimate.n
        # A mean over seeds with different numbers of answers is not a whole count.
        if abs(k - round(k)) < 0.01:
            return counted(k, estimate.n)
    return percent(mean)


def share_interval(estimate: "Estimate") -> str:
    """The interval of a share, such as `70.2 to 73.9 %`; always a dash for a share of few answers."""
    return MISSING if is_few(estimate) else percent_interval(estimate.ci95)


def share_with_interval(estimate: "Estimate") -> str:
    """A share with its interval if it has one, such as `72.1 % (70.2 to 73.9 %)`; of few answers, `3 of 4`."""
    interval = share_interval(estimate)
    return share(estimate) + ("" if interval == MISSING else f" ({interval})")


def share_in_prose(estimate: "Estimate", *, interval: bool = True) -> str:
    """A share rounded to the precision of its interval, such as `72 % (68 to 76 %)`; of few answers, `3 of 4`.

    Args:
        estimate: The share.
        interval: Whether to include the interval.
    """
    mean = finite(estimate.mean)
    if mean is None or is_few(estimate):
        return share(estimate)
    ends = in_points(estimate.ci95)
    text = f"{rounded(100 * mean, ends, 0, 1)} %"
    return f"{text} ({rounded_interval(ends, 0, 1)} %)" if interval and ends is not None else text


def share_with_named_interval(estimate: "Estimate") -> str:
    """A share with a labelled interval, such as `72 % (95 % interval 68 to 76 %)`; of few answers, `3 of 4`."""
    ends = in_points(estimate.ci95)
    if is_few(estimate) or ends is None:
        return share_in_prose(estimate)
    return f"{share_in_prose(estimate, interval=False)} (95 % interval {rounded_interval(ends, 0, 1)} %)"


def score_in_prose(estimate: "Estimate", *, fewest: int = 1, most: int = 3) -> str:
    """A score rounded to the precision of its interval, such as `0.19 (0.17 to 0.20)`."""
    text = rounded(estimate.mean, estimate.ci95, fewest, most)
    if known(estimate.ci95) is None:
        return text
    return f"{text} ({rounded_interval(estimate.ci95, fewest, most)})"


def gap_in_prose(share: float | None, interval: Any = None) -> str:
    """Size of a difference of two shares, rounded to the precision of its interval, such as `21 points`."""
    number = finite(share)
    return MISSING if number is None else f"{rounded(abs(100 * number), in_points(interval), 0, 1)} points"


def in_points(interval: Any) -> tuple[float, float] | None:
    """An interval of shares in points; None if an end is missing."""
    ends = known(interval)
    return None if ends is None else (100 * ends[0], 100 * ends[1])


HIGHEST_RECOVERED = 1.5
"""Largest share of a gain that is reported. A share above it, or below 0, means that there was hardly any gain."""


OUTSIDE = "the share would lie outside 0 to 150 %"
"""Reason why a share of the prompt's gain is undefined."""


def is_undefined(estimate: "Estimate") -> bool:
    """Whether a share of the prompt's gain is undefined because it lies outside the reported range."""
    share = finite(estimate.mean)
    return share is not None and not 0 <= share <= HIGHEST_RECOVERED


def plural(n: int, singular: str, many: str | None = None) -> str:
    """A number with a noun, such as `1 set` or `2,000 sets`; `many` is an irregular plural."""
    return f"{n:,} {singular if n == 1 else many or f'{singular}s'}"


def compare_intervals(first: Any, second: Any) -> int | None:
    """Position of one interval relative to another.

    Returns:
        1 if `first` lies above `second`, -1 if it lies below, 0 if they overlap, None if an end is missing.
    """
    ends, others = known(first), known(second)
    if ends is None or others is None:
        return None
    return 1 if ends[0] > others[1] else -1 if ends[1] < others[0] else 0
