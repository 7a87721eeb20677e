"""Values of a comparison of momentum attention with vanilla, for its sentences, tables and charts.

Lookups that return None for missing values, differences between any two arms with the same baseline, and formats of
numbers.
"""

import math
from collections.abc import Sequence

from dualform.paired_t import paired_t_test, student_interval
from dualform.report.numerals import MISSING, Interval, count, finite, known
from dualform.report.phrases import compare_intervals
from dualform.result import Estimate, Paired
from dualform.studies.momentum.result import (
    MomentumArm,
    MomentumRegression,
    MomentumReport,
    PretrainedMomentum,
    RegressionCurve,
    TaskScore,
)

MOMENTUM = "momentum"
"""The kind of arm that the study is about: the paper's sum with a fixed eta."""


def lengths(report: MomentumReport) -> list[str]:
    """Lengths of text at which anything was measured, shortest first; keys that are not numbers come last."""
    keys = dict.fromkeys(key for arm in report.arms for key in [*arm.perplexity, *arm.difference])
    return sorted(keys, key=lambda key: int(key) if key.isdecimal() else math.inf)


def full_length(report: MomentumReport) -> str | None:
    """The training length if anything was measured at it, else the longest length; None without any."""
    keys = lengths(report)
    if str(report.length) in keys:
        return str(report.length)
    return next((key for key in reversed(keys) if key.isdecimal()), None)


def length_name(key: str) -> str:
    """A length as text: `1,024`."""
    return count(int(key)) if key.isdecimal() else key


def arm_of(report: MomentumReport, name: str | None) -> MomentumArm | None:
    """The arm with a name, or None."""
    return next((arm for arm in report.arms if arm.name == name), None)


def baselines(report: MomentumReport) -> list[str]:
    """Names of the arms that others are compared with, in order of appearance."""
    return list(dict.fromkeys(arm.baseline for arm in report.arms if arm.baseline is not None))


def perplexity_at(arm: MomentumArm, length: str | None) -> float | None:
    """Mean perplexity over seeds, or None."""
    return finite(arm.perplexity[length].mean) if length in arm.perplexity else None


def difference_at(arm: MomentumArm, length: str | None) -> Paired | None:
    """Loss minus the baseline's, or None without a finite mean."""
    paired = arm.difference.get(length) if length is not None else None
    return paired if paired is not None and finite(paired.mean) is not None else None


def lowest_arm(arms: Sequence[MomentumArm], length: str | None) -> MomentumArm | None:
    """The arm with the lowest perplexity, the first one if several are equal; None without numbers."""
    measured = [(number, arm) for arm in arms if (number := perplexity_at(arm, length)) is not None]
    return min(measured, key=lambda pair: pair[0])[1] if measured else None


def best_momentum(report: MomentumReport, length: str | None) -> MomentumArm | None:
    """The arm with the lowest perplexity among those with the paper's sum and a fixed eta."""
    return lowest_arm([arm for arm in report.arms if arm.kind == MOMENTUM], length)


def seedwise(values: dict[str, float]) -> Paired | None:
    """Mean over seeds with Student's interval and two-sided test, without `p_signs`; None without seeds."""
    n = len(values)
    if n == 0:
        return None
    mean = sum(values.values()) / n
    numbers = list(values.values())
    return Paired(
        mean=mean,
        ci95=student_interval(numbers),
        p=paired_t_test(numbers),
        p_signs=None,
        per_seed=dict(values),
        n=n,
    )


def between(first: MomentumArm, second: MomentumArm, length: str | None) -> Paired | None:
    """Loss of the first arm minus that of the second, seed by seed; None unless they share a baseline.

    It is computed from their differences from the baseline, whose loss cancels.
    """
    if second.name == first.baseline:
        return difference_at(first, length)
    losses, others = (_seeds(arm, length) for arm in (first, second))
    if first.name == second.baseline:
        return seedwise({seed: -value for seed, value in others.items()})
    if first.baseline is None or first.baseline != second.baseline:
        return None
    return seedwise({seed: value - others[seed] for seed, value in losses.items() if seed in others})


def over_tasks(arm: MomentumArm) -> Paired | None:
    """Accuracy minus the baseline's, mean over tasks within each seed; None without differences.

    Only seeds with a difference for every task are used.
    """
    scored = [score.difference.per_seed for score in arm.tasks if score.difference is not None]
    if not scored or len(scored) < len(arm.tasks):
        return None
    means = {}
    for seed in scored[0]:
        values = [finite(per_seed.get(seed)) for per_seed in scored]
        numbers = [value for value in values if value is not None]
        if len(numbers) == len(values):
            means[seed] = sum(numbers) / len(numbers)
    return seedwise(means)


def mean_accuracy(arm: MomentumArm) -> float | None:
    """Mean accuracy over tasks; None if one of them is missing."""
    values = [finite(score.accuracy.mean) for score in arm.tasks]
    numbers = [value for value in values if value is not None]
    return sum(numbers) / len(numbers) if numbers and len(numbers) == len(values) else None


def side(paired: Paired | None) -> int | None:
    """1 if the interval of a difference is above 0, -1 if it is below, 0 if it contains 0, None without an interval."""
    return None if paired is None else compare_intervals(paired.ci95, (0.0, 0.0))


def added_parameters(report: MomentumReport, arm: MomentumArm) -> int | None:
    """Number of parameters minus the baseline's; None without a baseline."""
    base = arm_of(report, arm.baseline)
    return None if base is None else arm.parameters - base.parameters


def at_chance(score: TaskScore) -> bool:
    """Whether an accuracy is not significantly above that of always giving the most frequent answer."""
    ends, chance = known(score.accuracy.ci95), finite(score.chance)
    return ends is not None and chance is not None and ends[0] <= chance


def conditions(regression: MomentumRegression) -> list[float]:
    """Condition numbers, smallest first."""
    return sorted({curve.condition for curve in regression.curves})


def curves_at(regression: MomentumRegression, condition: float) -> list[RegressionCurve]:
    """The arms' curves at one condition number."""
    return [curve for curve in regression.curves if curve.condition == condition]


def references_at(regression: MomentumRegression, condition: float) -> dict[str, RegressionCurve]:
    """The exact predictors' curves at one condition number."""
    return {
        name: curve
        for name, curves in regression.references.items()
        for curve in curves
        if curve.condition == condition
    }


def exact_kind(name: str) -> str:
    """Kind of an exact predictor: `gradient descent, 3 steps` -> `gradient descent`."""
    return name.partition(",")[0]


def by_model(report: MomentumReport) -> dict[str, list[PretrainedMomentum]]:
    """Results on pretrained models, by name of the model."""
    records: dict[str, list[PretrainedMomentum]] = {}
    for each in report.pretrained:
        records.setdefault(each.model, []).append(each)
    return records


def last_error(curve: RegressionCurve) -> Estimate | None:
    """The error at the last point; None without points."""
    return curve.loss[-1] if curve.loss else None


def nats(value: float | None) -> str:
    """A difference of losses as `-0.0123`, or as `-1.2e-06` where this would round to zero."""
    number = finite(value)
    if number is None:
        return MISSING
    return f"{number:+.1e}" if 0 < abs(number) < 5e-5 else f"{number:+.4f}"


def nats_interval(interval: Interval) -> str:
    """An interval in the format of `nats`, such as `-0.0150 to -0.0096`."""
    ends = known(interval)
    return MISSING if ends is None else f"{nats(ends[0])} to {nats(ends[1])}"


def relative(value: float | None) -> str:
    """A difference of losses as a relative change of perplexity, such as `-1.2 %`."""
    number = finite(value)
    return MISSING if number is None else _change(number)


def relative_interval(interval: Interval) -> str:
    """An interval in the format of `relative`, such as `-1.5 to -1.0 %`."""
    ends = known(interval)
    return MISSING if ends is None else f"{_change(ends[0]).removesuffix(' %')} to {_change(ends[1])}"


def perplexity_text(value: float | None) -> str:
    """Four digits or more: `24.31`, `151.2`, `1,512`."""
    number = finite(value)
    if number is None:
        return MISSING
    if abs(number) >= 1e7:
        return f"{number:.3g}"
    return f"{number:,.{2 if abs(number) < 100 else 1 if abs(number) < 1000 else 0}f}"


def perplexity_interval(interval: Interval) -> str:
    """An interval in the format of `perplexity_text`, such as `24.10 to 24.52`."""
    ends = known(interval)
    return MISSING if ends is None else f"{perplexity_text(ends[0])} to {perplexity_text(ends[1])}"


def _seeds(arm: MomentumArm, length: str | None) -> dict[str, float]:
    paired = difference_at(arm, length)
    if paired is None:
        return {}
    return {seed: number for seed, value in paired.per_seed.items() if (number := finite(value)) is not None}


def _change(number: float) -> str:
    # Clipped, because exp would overflow.
    share = 100 * math.expm1(min(number, 600.0))
    if share >= 1e5:
        return f"{share:+.1e} %"
    return f"{share:+,.{2 if abs(share) < 9.995 else 1 if abs(share) < 999.5 else 0}f} %"
