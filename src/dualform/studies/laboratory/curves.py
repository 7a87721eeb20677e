"""Curves of the laboratory's charts: means over seeds, and exact predictors for comparison."""

from collections.abc import Sequence

from torch import Tensor

from dualform.studies.laboratory.result import LabCurve
from dualform.studies.seed_statistics import over_seeds

LEAST_SHOWN = 1e-4
"""Errors below are drawn here: what rounding leaves of exact predictors should stretch no logarithmic axis."""


def seed_curve(name: str, x: Sequence[float], values: Tensor) -> LabCurve:
    """Mean over seeds at each place, with intervals.

    Args:
        name: Name of the curve.
        x: Places.
        values: `(seed, place)`.
    """
    return LabCurve(name=name, x=list(x), y=[over_seeds(at) for at in values.T.tolist()])


def exact_curve(name: str, x: Sequence[float], values: Sequence[float], least: float = 0.0) -> LabCurve:
    """Numbers without chance, drawn as a reference.

    Args:
        name: Name of the curve.
        x: Places.
        values: One at each place.
        least: Drawn in place of what is smaller.
    """
    return LabCurve(name=name, x=list(x), y=[over_seeds([max(value, least)]) for value in values], reference=True)
