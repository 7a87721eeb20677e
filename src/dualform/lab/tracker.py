"""Where a training run's numbers go beside its own file."""

from collections.abc import Mapping
from typing import Protocol


class Tracker(Protocol):
    """Receives a run's numbers, for a dashboard."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The numbers after so many steps."""
        ...
