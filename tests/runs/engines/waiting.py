import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualform.runs.engines.base import Engine, JobOutcome


def collect_outcomes(engine: Engine, count: int, seconds: float = 60) -> dict[str, JobOutcome]:
    outcomes: dict[str, JobOutcome] = {}
    until = time.monotonic() + seconds
    while len(outcomes) < count and time.monotonic() < until:
        outcomes |= {outcome.digest: outcome for outcome in engine.collect(1)}
    assert len(outcomes) == count, outcomes
    return outcomes


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def has_text(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
