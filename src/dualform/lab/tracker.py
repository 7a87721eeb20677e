"""Interface of trackers that receive the numbers of a training run."""

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Receives the numbers of a run, for instance for a dashboard."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Record the numbers after `step` steps."""
        ...
