"""Curves of the laboratory's charts: means over seeds, and exact predictors for comparison."""

from collections.abc import Sequence

from torch import Tensor

from dualform.studies.laboratory.result import LabCurve
from dualform.studies.seed_statistics import over_seeds

LEAST_SHOWN = 1e-4
"""Smaller errors are drawn at this value, so that rounding errors of exact predictors do not stretch a log axis."""


def seed_curve(name: str, x: Sequence[float], values: Tensor) -> LabCurve:
    """Means over seeds at each x, with intervals.

    Args:
        name: Name of the curve.
        x: Positions on the x axis.
        values: Values by seed and position, `(seed, x)`.
    """
    return LabCurve(name=name, x=list(x), y=[over_seeds(at) for at in values.T.tolist()])


def exact_curve(name: str, x: Sequence[float], values: Sequence[float], least: float = 0.0) -> LabCurve:
    """Values that do not depend on the seed, drawn as a reference.

    Args:
        name: Name of the curve.
        x: Positions on the x axis.
        values: One value a position.
        least: Smaller values are drawn at this one.
    """
    return LabCurve(name=name, x=list(x), y=[over_seeds([max(value, least)]) for value in values], reference=True)
