import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dualform.runs.engines.base import Engine, JobOutcome


def all_ended(engine: Engine, count: int, seconds: float = 60) -> dict[str, JobOutcome]:
    found: dict[str, JobOutcome] = {}
    until = time.monotonic() + seconds
    while len(found) < count and time.monotonic() < until:
        found |= {ended.digest: ended for ended in engine.ended(1)}
    assert len(found) == count, found
    return found


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it did not come true"
        time.sleep(0.02)


def has_text(path: Path) -> bool:
    return path.exists() and path.read_text() != ""


def is_alive(pid: int) -> bool:
    """Running: neither gone nor a zombie that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
