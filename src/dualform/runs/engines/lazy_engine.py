"""An engine that is opened with its first work: a sweep whose cells are all finished starts no cluster."""

import time
from collections.abc import Callable

from dualform.runs.engines.base import CellJob, Engine, JobOutcome


class LazyEngine:
    """Stands for an engine until there is something to do.

    Args:
        name: Of the engine.
        make: Opens it.
    """

    def __init__(self, name: str, make: Callable[[], Engine]) -> None:
        self.name = name
        self._make = make
        self._engine: Engine | None = None

    @property
    def workers(self) -> int:
        """Of the engine; 1 before it is opened, so that there is a first work to open it with."""
        return 1 if self._engine is None else self._engine.workers

    def submit(self, work: CellJob) -> None:
        """See `Engine`."""
        if self._engine is None:
            self._engine = self._make()
        self._engine.submit(work)

    def ended(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`."""
        if self._engine is not None:
            return self._engine.ended(timeout)
        time.sleep(timeout)
        return []

    def idle_for(self) -> list[str]:
        """See `Engine`."""
        return [""] if self._engine is None else self._engine.idle_for()

    def close(self, kill: bool = False) -> None:
        """See `Engine`."""
        if self._engine is not None:
            self._engine.close(kill)
