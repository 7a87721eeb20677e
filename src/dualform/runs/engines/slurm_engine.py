"""Runs cells as jobs of a Slurm cluster, through submitit. Waiting cells are submitted together, as one job array.

Each Slurm job is a process that computes one cell, so models are loaded anew for every cell, but hundreds of jobs can
run at a time. Jobs continue when the driver ends, and the next sweep reuses the cells that they store.

submitit pickles a job's function and arguments into a folder that only the user can write to. Here these are only the
name of a function and a line of text.
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
from dualform.runs.engines.performing import job_to_text, one_line, outcome_from_text, perform_text, quiet_environment

WORKERS = 16
THREADS = 4
POLL_SECONDS = 1.0
QUEUE_SECONDS = 30.0
"""Seconds between two queries of Slurm's queue."""

SQUEUE_TIMEOUT_SECONDS = 30.0
MISSING_SECONDS = 60.0
"""Seconds to wait for the result of a job that has left the queue, because shared file systems lag behind."""

CANCEL_SECONDS = 10.0


@dataclass
class _Submission:
    """A submitted job."""

    job: Any
    """submitit's handle."""
    submitted_at: float
    missing_since: float | None = None
    """When the job was first missing from Slurm's queue."""


class SlurmEngine:
    """Runs jobs on a Slurm cluster, or in processes of this machine."""

    name = "slurm"

    def __init__(self, workers: int | None, threads: int | None, options: EngineOptions, perform: str):
        require("submitit", "slurm")
        if options.log_dir is None:
            raise ConfigError("engine 'slurm' needs log_dir: a folder for its jobs, on a file system that nodes share")
        try:
            # The absolute path also holds the name of the current folder.
            require_one_line(str(options.log_dir.absolute()))
        except ValueError as error:
            raise ConfigError(f"log_dir: {error}") from error
        folder = writable_dir(options.log_dir.absolute(), "Choose another folder for the jobs' files.")
        self.workers, self.threads = workers or WORKERS, threads or THREADS
        self._perform = perform
        self._executor = _executor(folder, self.workers, self.threads, options)
        # Unlike Slurm, submitit starts all local jobs at once, so they are limited here.
        self._is_local = options.executor == "local"
        self._waiting: list[CellJob] = []
        self._submissions: dict[str, _Submission] = {}
        self._queue_read_at = time.monotonic()
        self._queued: set[str] | None = None

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(job)

    def collect(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`; raises ConfigError if Slurm rejects the jobs."""
        until = time.monotonic() + timeout
        while True:
            self._submit_waiting()
            outcomes = [self._read_outcome(digest) for digest in self._ended_digests()]
            left = until - time.monotonic()
            if outcomes or left <= 0:
                return outcomes
            time.sleep(min(POLL_SECONDS, left))

    def idle_affinities(self) -> list[str]:
        """See `Engine`."""
        return [""] * max(0, self.workers - len(self._submissions) - len(self._waiting))

    def close(self, kill: bool = False) -> None:
        """See `Engine`. Without `kill`, Slurm's jobs continue, and jobs on this machine are waited for."""
        self._waiting.clear()
        jobs = [submission.job for submission in self._submissions.values()]
        self._submissions.clear()
        if kill:
            for job in jobs:
                # Without scancel, the jobs run until their time limit.
                with contextlib.suppress(OSError):
                    job.cancel(check=False)
        if self._is_local:
            until = time.monotonic() + CANCEL_SECONDS
            while not all(job.done() for job in jobs) and (not kill or time.monotonic() < until):
                time.sleep(0.05)

    def _submit_waiting(self) -> None:
        import submitit

        limit = max(0, self.workers - len(self._submissions)) if self._is_local else len(self._waiting)
        batch = sorted(self._waiting, key=lambda job: -job.weight)[:limit]
        if not batch:
            return
        texts = [job_to_text(job, self._perform, self.threads) for job in batch]
        try:
            handles = self._executor.map_array(perform_job, texts, [self.threads] * len(batch))
        except (OSError, submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError) as error:
            raise ConfigError(f"Slurm rejected the jobs: {one_line(error)}") from error
        self._waiting = [job for job in self._waiting if job not in batch]
        now = time.monotonic()
        self._submissions |= {job.digest: _Submission(handle, now) for job, handle in zip(batch, handles, strict=True)}

    def _ended_digests(self) -> list[str]:
        now = time.monotonic()
        if not self._is_local and now - self._queue_read_at >= QUEUE_SECONDS:
            self._queue_read_at, self._queued = now, _queued()
        return [digest for digest, submission in self._submissions.items() if self._has_ended(submission, now)]

    def _has_ended(self, submission: _Submission, now: float) -> bool:
        # submitit would call sacct, which not every cluster has, and which lists preempted jobs as running for ever.
        # The queue lists all jobs that will still run, including those that Slurm restarts.
        job = submission.job
        if job.paths.result_pickle.exists():
            return True
        if self._is_local:
            return bool(job.done())
        if self._queued is None or job.job_id in self._queued or self._queue_read_at < submission.submitted_at:
            submission.missing_since = None
            return False
        submission.missing_since = submission.missing_since or now
        return now - submission.missing_since >= MISSING_SECONDS

    def _read_outcome(self, digest: str) -> JobOutcome:
        import submitit

        submission = self._submissions.pop(digest)
        job, seconds = submission.job, time.monotonic() - submission.submitted_at
        if not job.paths.result_pickle.exists():
            message = f"job {job.job_id} ended without a result; its output is in {job.paths.stderr}"
            return JobOutcome(digest, "lost", seconds, message)
        try:
            return outcome_from_text(job.result())
        except submitit.core.utils.FailedJobError as error:
            # An error before the job's function was called, such as a failed import.
            return JobOutcome(digest, "failed", seconds, f"job {job.job_id} could not start", str(error))


def _queued() -> set[str] | None:
    """Ids of the user's jobs that wait, run or will be restarted; None if Slurm does not answer."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SQUEUE_TIMEOUT_SECONDS, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return set(done.stdout.split()) if done.returncode == 0 else None


def perform_job(text: str, threads: int) -> str:
    """Run a job in the Slurm job's process, see `perform_text`."""
    # Set before the function's module imports the libraries that read these variables.
    os.environ.update(quiet_environment(threads))
    return perform_text(text)


def _executor(folder: Path, workers: int, threads: int, options: EngineOptions) -> Any:
    """An executor of submitit with all parameters of the jobs.

    Raises:
        ConfigError: This machine has no Slurm, or a parameter is unknown to submitit.
    """
    import submitit

    if options.gpus != int(options.gpus):
        raise ConfigError(f"gpus {options.gpus:g} must be a whole number for engine 'slurm'")
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
            "this machine has no Slurm: srun is not found. Start the sweep on a login node, or use engine local or ray."
        ) from error
    except (NameError, ValueError, TypeError) as error:
        raise ConfigError(f"submitit does not accept these Slurm parameters: {one_line(error)}") from error
    return executor
