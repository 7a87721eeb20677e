"""What every engine is given and gives back, and how one is opened by name."""

import importlib.util
import os
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dualform.errors import ConfigError
from dualform.plain_text import plain

EngineName = Literal["local", "ray", "slurm"]

PERFORM = "dualform.runs.worker:perform"
"""What does a cell's work, as `module:function`: takes the payload, returns flat JSON facts."""


@dataclass(frozen=True)
class CellJob:
    """One cell to be done."""

    digest: str
    """The cell's address in the store; no two works in one engine share it."""
    payload: dict[str, Any]
    """What the work function is called with, plain JSON."""
    warm: str = ""
    """What its worker should have loaded, model and task; works that name the same go to the same worker."""
    weight: float = 0.0
    """How much there is to do, in tokens; of those that wait, the largest goes first."""


@dataclass(frozen=True)
class JobOutcome:
    """What became of a work."""

    digest: str
    status: Literal["finished", "failed", "lost"]
    """`failed`: it raised; `lost`: its worker died or was taken away, and it may well succeed elsewhere."""
    seconds: float
    message: str = ""
    """Why it did not finish, one printable line."""
    traceback: str = ""
    """As Python prints it; empty for a user's mistake and for lost work."""
    facts: dict[str, Any] = field(default_factory=dict)
    """What the work function returned."""
    mistake: bool = False
    """A DualformError, which comes again however often the work is tried."""
    storage: bool = False
    """The disk or the store refused what was done, and would refuse the next cell too."""


class EngineOptions(BaseModel):
    """What an engine asks for and where it writes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_dir: Path | None = None
    """Folder for what workers print, a file each; null to drop it. Slurm keeps its jobs' files there as well, so it
    must be on a file system that all nodes share."""
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """GPUs a worker; local and ray can give a fraction of one. 0: workers on this machine share all that it has, those
    on a cluster get none."""
    memory: int | None = Field(default=None, gt=0)
    """Bytes of memory that a worker reserves (ray, slurm; local workers reserve none)."""
    address: str | None = None
    """Ray cluster to join: `auto`, `HOST:PORT` or `ray://HOST:PORT`; null starts one on this machine."""
    partition: str | None = None
    """Slurm's."""
    minutes: int = Field(default=240, gt=0)
    """Longest time that Slurm gives a cell."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of submitit's SlurmExecutor, such as `account` or `constraint`."""
    executor: Literal["slurm", "local"] = "slurm"
    """`local`: the same jobs as processes of this machine, to try a sweep where there is no Slurm."""

    @field_validator("log_dir", "partition", "slurm")
    @classmethod
    def _on_one_line(cls, given: Any) -> Any:
        # They stand in the comment lines of a job's script, and what follows a line break there is run by a shell.
        for text in _texts_in(given):
            require_one_line(text)
        return given


def require_one_line(text: str) -> None:
    """Check that a text which goes into a job's script stays on its line.

    Raises:
        ValueError: It holds a line break or another control character.
    """
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
        raise ValueError(f"{plain(text)!r} holds a line break or another control character: leave it out")


def _texts_in(given: Any) -> Iterator[str]:
    """A value's text, or those of all its parts, keys included."""
    if isinstance(given, dict):
        for name, value in given.items():
            yield from _texts_in(name)
            yield from _texts_in(value)
    elif isinstance(given, list | tuple):
        for value in given:
            yield from _texts_in(value)
    elif given is not None:
        yield str(given)


class Engine(Protocol):
    """Does work somewhere, several at a time. Used from one thread."""

    name: str

    @property
    def workers(self) -> int:
        """Works at a time."""
        ...

    def submit(self, work: CellJob) -> None:
        """Queue a work; what waits goes to an idle worker that has its model loaded, else to any idle one."""
        ...

    def ended(self, timeout: float) -> list[JobOutcome]:
        """What has ended since the last call.

        Args:
            timeout: Seconds to wait for the first, where none has.

        Returns:
            As many as there are, each of them once; empty when the time is over.
        """
        ...

    def idle_for(self) -> list[str]:
        """`CellJob.warm` of each idle worker, "" for one that has loaded nothing; empty while all are busy."""
        ...

    def close(self, kill: bool = False) -> None:
        """Give up what waits and let the workers go.

        Args:
            kill: End at once what is being done; otherwise wait until it is done (slurm: leave it to run on).
        """
        ...


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(available: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """Workers and threads of each on so many cores, where one or both are not given.

    By default a worker for every two cores, but two workers on two: small models gain little from more threads, and
    each worker holds its own copy of the model.

    Returns:
        Workers and threads, each at least 1.
    """
    if workers is None:
        workers = max(1, available // threads) if threads else max(min(2, available), available // 2)
    return workers, threads or max(1, available // workers)


def warn_if_crowded(available: int, workers: int, threads: int) -> None:
    """Warn where workers ask for more cores than the machine has."""
    if workers * threads > available:
        warnings.warn(
            f"{workers} workers of {threads} threads share {available} cores and will wait for one another; "
            f"{max(1, available // threads)} would not",
            stacklevel=4,
        )


def require(package: str, extra: str) -> None:
    """Check that an optional package is there.

    Raises:
        ConfigError: It is not; the message says what brings it.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"engine {extra!r} needs {package}, which is not installed: pip install 'dualform[{extra}]'")


def best_match(idle: list[str], waiting: list[CellJob]) -> tuple[int, int]:
    """Which idle worker takes which waiting work: indices into the two lists, neither of which is empty.

    Models loaded count first, then weight; a work that fits no idle worker goes to a new one if it can, so that no
    loaded model is thrown out without need.
    """

    def worth(pair: tuple[int, int]) -> tuple[bool, float, bool, int, int]:
        worker, work = pair
        fits = idle[worker] == waiting[work].warm
        return fits, waiting[work].weight, idle[worker] == "", -work, -worker

    return max(((worker, work) for worker in range(len(idle)) for work in range(len(waiting))), key=worth)
