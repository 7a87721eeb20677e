"""The interface of engines, which run jobs in several workers: jobs, outcomes, options."""

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
"""The function that computes a cell, as `module:function`: takes the payload, returns flat JSON facts."""


@dataclass(frozen=True)
class CellJob:
    """One cell to compute."""

    digest: str
    """The cell's address in the store, unique among the jobs of an engine."""
    payload: dict[str, Any]
    """Argument of the function that computes the cell, plain JSON."""
    affinity: str = ""
    """Model and task that the job needs; jobs with the same affinity are preferably given to the same worker."""
    weight: float = 0.0
    """Estimated amount of work, in tokens; the largest waiting job goes first."""


@dataclass(frozen=True)
class JobOutcome:
    """How a job ended."""

    digest: str
    status: Literal["finished", "failed", "lost"]
    """`failed`: it raised an error; `lost`: its worker died or was preempted, so another attempt may succeed."""
    seconds: float
    message: str = ""
    """Why it did not finish, one printable line."""
    traceback: str = ""
    """Python's traceback; empty for a user's mistake and for lost jobs."""
    facts: dict[str, Any] = field(default_factory=dict)
    """The value that the function returned."""
    mistake: bool = False
    """The error was a DualformError, which every further attempt would raise again."""
    storage: bool = False
    """The disk or the store could not be written to, which would stop the next cell too."""


class EngineOptions(BaseModel):
    """Resources of an engine's workers, and where it writes its files."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    log_dir: Path | None = None
    """Folder for the workers' logs, one file per worker; null to discard their output. Slurm's job files are kept
    there too, so for Slurm it must be on a file system that all nodes share."""
    gpus: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """GPUs per worker; local and ray accept fractions. With 0, workers on this machine share all of its GPUs, and
    workers on a cluster get none."""
    memory: int | None = Field(default=None, gt=0)
    """Bytes of memory that each worker reserves (ray and slurm only)."""
    address: str | None = None
    """Ray cluster to join: `auto`, `HOST:PORT` or `ray://HOST:PORT`; null starts one on this machine."""
    partition: str | None = None
    """Slurm partition."""
    minutes: int = Field(default=240, gt=0)
    """Slurm's time limit for a cell."""
    slurm: dict[str, Any] = Field(default_factory=dict)
    """Further parameters of submitit's SlurmExecutor, such as `account` or `constraint`."""
    executor: Literal["slurm", "local"] = "slurm"
    """`local` runs the same jobs as processes on this machine, to try a sweep without Slurm."""

    @field_validator("log_dir", "partition", "slurm")
    @classmethod
    def _require_one_line(cls, value: Any) -> Any:
        # These values go into comment lines of a job script, and the shell would run whatever follows a line break.
        for text in _texts_in(value):
            require_one_line(text)
        return value


def require_one_line(text: str) -> None:
    """Check that a text for a job script has no line break.

    Raises:
        ValueError: The text holds a line break or another control character.
    """
    if any(unicodedata.category(letter) in ("Cc", "Zl", "Zp") for letter in text):
        raise ValueError(f"{plain(text)!r} holds a line break or another control character: leave it out")


def _texts_in(value: Any) -> Iterator[str]:
    """All texts in a value, including those in nested lists and dictionaries and their keys."""
    if isinstance(value, dict):
        for name, entry in value.items():
            yield from _texts_in(name)
            yield from _texts_in(entry)
    elif isinstance(value, list | tuple):
        for entry in value:
            yield from _texts_in(entry)
    elif value is not None:
        yield str(value)


class Engine(Protocol):
    """Runs jobs, several at a time. Not thread-safe."""

    name: str

    @property
    def workers(self) -> int:
        """Number of jobs that run at the same time."""
        ...

    def submit(self, job: CellJob) -> None:
        """Queue a job. It goes to an idle worker that has its model loaded if there is one, else to any idle worker."""
        ...

    def collect(self, timeout: float) -> list[JobOutcome]:
        """Outcomes of the jobs that have ended since the last call.

        Args:
            timeout: Most seconds to wait for the first outcome.

        Returns:
            All new outcomes, each of them once; empty after the timeout.
        """
        ...

    def idle_affinities(self) -> list[str]:
        """`CellJob.affinity` of the last job of each idle worker, "" for a worker that has run no job."""
        ...

    def close(self, kill: bool = False) -> None:
        """Discard the waiting jobs and end the workers.

        Args:
            kill: Kill the running jobs; otherwise wait for them (slurm: leave them running).
        """
        ...


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_cores(available: int, workers: int | None, threads: int | None) -> tuple[int, int]:
    """The number of workers and the threads of each; defaults are used where they are None.

    By default there is one worker for every two cores, and two workers on two cores: small models gain little from more
    threads, and each worker holds its own copy of the model.

    Returns:
        Workers and threads per worker, both at least 1.
    """
    if workers is None:
        workers = max(1, available // threads) if threads else max(min(2, available), available // 2)
    return workers, threads or max(1, available // workers)


def warn_if_crowded(available: int, workers: int, threads: int) -> None:
    """Warn if workers use more threads than the machine has cores."""
    if workers * threads > available:
        warnings.warn(
            f"{workers} workers with {threads} threads each share {available} cores and will slow each other down; "
            f"use {max(1, available // threads)} at most",
            stacklevel=4,
        )


def require(package: str, extra: str) -> None:
    """Check that an optional package is installed.

    Raises:
        ConfigError: It is not; the message names the extra that installs it.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(f"engine {extra!r} needs {package}, which is not installed: pip install 'dualform[{extra}]'")


def best_match(idle: list[str], waiting: list[CellJob]) -> tuple[int, int]:
    """The waiting job to start next and the idle worker for it.

    A job with the affinity of an idle worker is preferred, then the job with the largest weight. A job without a
    matching worker goes to an unused one if possible, so that loaded models are kept.

    Args:
        idle: Affinity of each idle worker, not empty.
        waiting: Waiting jobs, not empty.

    Returns:
        Index into `idle` and index into `waiting`.
    """

    def priority(pair: tuple[int, int]) -> tuple[bool, float, bool, int, int]:
        worker, job = pair
        fits = idle[worker] == waiting[job].affinity
        return fits, waiting[job].weight, idle[worker] == "", -job, -worker

    return max(((worker, job) for worker in range(len(idle)) for job in range(len(waiting))), key=priority)
