"""Work as jobs of a Slurm cluster, through submitit: what waits goes out together, as one array of jobs.

A job is a process of its own that does one cell, so nothing is kept warm; what makes up for it is that there can be
hundreds. Jobs outlive their driver, and what they store is found by the next.

submitit passes its jobs' function and argument as pickles, in a folder that only the user can write; ours are the name
of a function and a line of text.
"""

import contextlib
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dualform.errors import ConfigError
from dualform.files import writable_dir
from dualform.runs.engines.base import CellJob, EngineOptions, JobOutcome, require, require_one_line
from dualform.runs.engines.performing import ended_from, one_line, perform_text, quiet_environment, work_text

WORKERS = 16
THREADS = 4
LOOK_SECONDS = 1.0
ASK_SECONDS = 30.0
"""How often Slurm is asked which jobs it still has."""

LONGEST_ANSWER_SECONDS = 30.0
MISSING_SECONDS = 60.0
"""How long a job that Slurm no longer has may take until its result is seen here: shared file systems are late."""

CANCEL_SECONDS = 10.0


@dataclass
class _Job:
    """A job and its story."""

    job: Any
    given: float
    missing: float | None = None
    """Since when Slurm has not had it."""


class SlurmEngine:
    """Jobs of a Slurm cluster, or the same as processes of this machine."""

    name = "slurm"

    def __init__(self, workers: int | None, threads: int | None, options: EngineOptions, perform: str):
        require("submitit", "slurm")
        if options.log_dir is None:
            raise ConfigError("engine 'slurm' needs log_dir: a folder for its jobs, on a file system that nodes share")
        try:
            # The folder in which the sweep was started counts too.
            require_one_line(str(options.log_dir.absolute()))
        except ValueError as error:
            raise ConfigError(f"the folder of the jobs' files {error}") from error
        folder = writable_dir(options.log_dir.absolute(), "Choose another folder for the jobs' files.")
        self.workers, self.threads = workers or WORKERS, threads or THREADS
        self._perform = perform
        self._executor = _executor(folder, self.workers, self.threads, options)
        # submitit starts all local jobs at once; Slurm itself holds back what is too much.
        self._is_local = options.executor == "local"
        self._waiting: list[CellJob] = []
        self._jobs: dict[str, _Job] = {}
        self._asked = time.monotonic()
        self._queued: set[str] | None = None

    def submit(self, work: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(work)

    def ended(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`; raises ConfigError where Slurm refuses the jobs."""
        until = time.monotonic() + timeout
        while True:
            self._send()
            found = [self._take(digest) for digest in self._gone()]
            left = until - time.monotonic()
            if found or left <= 0:
                return found
            time.sleep(min(LOOK_SECONDS, left))

    def idle_for(self) -> list[str]:
        """See `Engine`."""
        return [""] * max(0, self.workers - len(self._jobs) - len(self._waiting))

    def close(self, kill: bool = False) -> None:
        """See `Engine`. Without `kill` Slurm's jobs run on; those of this machine are waited for."""
        self._waiting.clear()
        jobs = [job.job for job in self._jobs.values()]
        self._jobs.clear()
        if kill:
            for job in jobs:
                # It may have ended by itself; a missing scancel leaves the jobs to their time limit.
                with contextlib.suppress(OSError):
                    job.cancel(check=False)
        if self._is_local:
            until = time.monotonic() + CANCEL_SECONDS
            while not all(job.done() for job in jobs) and (not kill or time.monotonic() < until):
                time.sleep(0.05)

    def _send(self) -> None:
        import submitit

        room = max(0, self.workers - len(self._jobs)) if self._is_local else len(self._waiting)
        batch = sorted(self._waiting, key=lambda work: -work.weight)[:room]
        if not batch:
            return
        texts = [work_text(work, self._perform, self.threads) for work in batch]
        try:
            jobs = self._executor.map_array(perform_job, texts, [self.threads] * len(batch))
        except (OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise ConfigError(f"Slurm does not take the jobs: {one_line(error)}") from error
        self._waiting = [work for work in self._waiting if work not in batch]
        self._jobs |= {work.digest: _Job(job, time.monotonic()) for work, job in zip(batch, jobs, strict=True)}

    def _gone(self) -> list[str]:
        """Digests of the works whose jobs have come to an end."""
        now = time.monotonic()
        if not self._is_local and now - self._asked >= ASK_SECONDS:
            self._asked, self._queued = now, _queued()
        return [digest for digest, job in self._jobs.items() if self._has_ended(job, now)]

    def _has_ended(self, job: _Job, now: float) -> bool:
        # submitit would ask sacct, which not every cluster has and which calls a preempted job alive for ever. The
        # queue knows all that will still happen, jobs that start again included.
        if job.job.paths.result_pickle.exists():
            return True
        if self._is_local:
            return bool(job.job.done())
        if self._queued is None or job.job.job_id in self._queued or self._asked < job.given:
            job.missing = None
            return False
        job.missing = job.missing or now
        return now - job.missing >= MISSING_SECONDS

    def _take(self, digest: str) -> JobOutcome:
        import submitit

        entry = self._jobs.pop(digest)
        job, seconds = entry.job, time.monotonic() - entry.given
        if not job.paths.result_pickle.exists():
            message = f"job {job.job_id} ended without a result; what it printed is in {job.paths.stderr}"
            return JobOutcome(digest, "lost", seconds, message)
        try:
            return ended_from(job.result())
        except submitit.core.utils.FailedJobError as error:
            # Ours tells what the work raised; this was raised before it, such as by an import.
            return JobOutcome(digest, "failed", seconds, f"job {job.job_id} could not begin its work", str(error))


def _queued() -> set[str] | None:
    """Ids of the user's jobs that wait, run or will run again; None where Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=LONGEST_ANSWER_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def perform_job(text: str, threads: int) -> str:
    """What a job does."""
    # Before the work's module is imported, and with it the libraries that read them.
    os.environ.update(quiet_environment(threads))
    return perform_text(text)


def _executor(folder: Path, workers: int, threads: int, options: EngineOptions) -> Any:
    """submitit's, with all that sbatch is to be told.

    Raises:
        ConfigError: No Slurm here, or a parameter that submitit does not know.
    """
    import submitit

    if options.gpus != int(options.gpus):
        raise ConfigError(f"slurm gives whole GPUs, not {options.gpus:g}")
    try:
        executor = submitit.AutoExecutor(folder=folder, cluster=options.executor)
        executor.update_parameters(
            name="dualform",
            timeout_min=options.minutes,
            cpus_per_task=threads,
            gpus_per_node=int(options.gpus) or None,
            mem_gb=None if options.memory is None else options.memory / 2**30,
            slurm_partition=options.partition,
            slurm_array_parallelism=workers,
            **{f"slurm_{name}": value for name, value in options.slurm.items()},
        )
    except RuntimeError as error:
        raise ConfigError(
            "no Slurm on this machine: srun is not found. Start the sweep on a login node, or use engine local or ray."
        ) from error
    except (NameError, ValueError, TypeError) as error:
        raise ConfigError(f"slurm parameters that submitit does not take: {one_line(error)}") from error
    return executor
