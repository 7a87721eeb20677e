"""An engine that is opened with its first job, so that a sweep whose cells are all finished starts no cluster."""

import time
from collections.abc import Callable

from dualform.runs.engines.base import CellJob, Engine, JobOutcome


class LazyEngine:
    """Opens an engine when its first job is submitted.

    Args:
        name: Name of the engine.
        open_engine: Opens the engine.
    """

    def __init__(self, name: str, open_engine: Callable[[], Engine]) -> None:
        self.name = name
        self._open_engine = open_engine
        self._engine: Engine | None = None

    @property
    def workers(self) -> int:
        """Workers of the engine; 1 before it is opened, so that a first job is submitted."""
        return 1 if self._engine is None else self._engine.workers

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        if self._engine is None:
            self._engine = self._open_engine()
        self._engine.submit(job)

    def collect(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`."""
        if self._engine is not None:
            return self._engine.collect(timeout)
        time.sleep(timeout)
        return []

    def idle_affinities(self) -> list[str]:
        """See `Engine`."""
        return [""] if self._engine is None else self._engine.idle_affinities()

    def close(self, kill: bool = False) -> None:
        """See `Engine`."""
        if self._engine is not None:
            self._engine.close(kill)
