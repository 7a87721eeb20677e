"""Runs jobs in processes of this machine.

Each worker is a child process with two pipes, because the shared queue of a process pool could not choose the worker
that has a job's model loaded. A child has its own process group, so that ctrl-C reaches only the driver, which then
closes the engine.
"""

import contextlib
import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from typing import IO

from dualform.errors import ConfigError
from dualform.files import explain_storage_errors, writable_dir
from dualform.runs.engines.base import (
    CellJob,
    EngineOptions,
    JobOutcome,
    best_match,
    cores,
    share_cores,
    warn_if_crowded,
)
from dualform.runs.engines.performing import job_to_text, outcome_from_text, quiet_environment

POLL_SECONDS = 0.2

# Like multiprocessing's spawn, but without running the driver's script again, so it needs no `if __name__` guard.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dualform.runs.engines.local_worker import main; main()"
)


class LocalEngine:
    """Processes of this machine that share its cores.

    Args:
        workers: Number of processes. None for as many as the GPUs allow if workers need GPUs, else
            the default of `share_cores`.
        threads: Threads of each process; None to divide the cores equally.
        options: GPUs for each worker and the folder for logs; other options are ignored.
        perform: The function that runs a job, as `module:function`. It takes the job's payload and returns a dictionary
            that can be written as JSON.

    Raises:
        ConfigError: The workers need more GPUs than this machine has.
        StorageError: The folder for logs cannot be written to.
    """

    name = "local"

    def __init__(self, workers: int | None, threads: int | None, options: EngineOptions, perform: str):
        self._gpus = _visible_gpus() if options.gpus else []
        if options.gpus and workers is None:
            workers = max(1, int(len(self._gpus) / options.gpus))
        self.workers, self.threads = share_cores(cores(), workers, threads)
        if self.workers * options.gpus > len(self._gpus):
            raise ConfigError(
                f"{self.workers} workers with {options.gpus:g} GPUs each need more than the {len(self._gpus)} of this "
                "machine: use fewer workers, or a smaller share of a GPU for each"
            )
        warn_if_crowded(cores(), self.workers, self.threads)
        self._gpus_per_worker = options.gpus
        self._perform = perform
        self._log_dir = options.log_dir
        if self._log_dir is not None:
            writable_dir(self._log_dir, "Choose another folder for the workers' logs.")
        self._processes: list[_Process | None] = [None] * self.workers
        self._waiting: list[CellJob] = []
        self._answers: queue.SimpleQueue[tuple[_Process, str]] = queue.SimpleQueue()

    def submit(self, job: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(job)
        self._hand_out()

    def collect(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`."""
        until = time.monotonic() + timeout
        while True:
            outcomes = self._read_outcomes(min(POLL_SECONDS, max(0.0, until - time.monotonic())))
            outcomes += self._collect_lost()
            self._hand_out()
            if outcomes or time.monotonic() >= until:
                return outcomes

    def idle_affinities(self) -> list[str]:
        """See `Engine`."""
        return ["" if process is None else process.affinity for process in self._processes if _is_idle(process)]

    def close(self, kill: bool = False) -> None:
        """See `Engine`."""
        self._waiting.clear()
        processes = [process for process in self._processes if process is not None]
        self._processes = [None] * self.workers
        for process in processes:
            process.end(kill)
        for process in processes:
            process.wait()

    def _hand_out(self) -> None:
        while self._waiting:
            places = [place for place, process in enumerate(self._processes) if _is_idle(process)]
            if not places:
                return
            # Replace workers that were killed while idle; no job is lost.
            for place in places:
                process = self._processes[place]
                if process is not None and process.has_died():
                    process.wait()
                    self._processes[place] = None
            idle, job = best_match(
                [process.affinity if (process := self._processes[place]) else "" for place in places], self._waiting
            )
            place = places[idle]
            process = self._processes[place] or self._start(place)
            self._processes[place] = process
            process.submit(self._waiting.pop(job), self._perform, self.threads)

    def _start(self, place: int) -> "_Process":
        with contextlib.ExitStack() as stack:
            log: int | IO[bytes] = subprocess.DEVNULL
            if self._log_dir is not None:
                path = self._log_dir / f"worker-{place + 1}.log"
                with explain_storage_errors(path, "Choose another folder for the workers' logs."):
                    log = stack.enter_context(open(path, "ab"))
            return _Process(log, quiet_environment(self.threads) | self._gpu_environment(place), self._answers)

    def _gpu_environment(self, place: int) -> dict[str, str]:
        """The environment variable that assigns a worker its GPUs."""
        if not self._gpus_per_worker:
            return {}
        first = int(place * self._gpus_per_worker + 1e-9)
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus[first : first + max(1, round(self._gpus_per_worker))])}

    def _read_outcomes(self, timeout: float) -> list[JobOutcome]:
        outcomes: list[JobOutcome] = []
        with contextlib.suppress(queue.Empty):
            while True:
                process, line = self._answers.get(timeout=0 if outcomes else timeout)
                if process.job is not None:
                    process.job = None
                    outcomes.append(outcome_from_text(line))
        return outcomes

    def _collect_lost(self) -> list[JobOutcome]:
        outcomes: list[JobOutcome] = []
        for place, process in enumerate(self._processes):
            if process is None or process.job is None or not process.has_died():
                continue
            # Its last outcome may still be in the pipe.
            process.wait()
            outcomes += self._read_outcomes(0)
            if process.job is not None:
                log = "" if self._log_dir is None else f"; its output is in {self._log_dir}/worker-{place + 1}.log"
                seconds = time.monotonic() - process.started_at
                outcomes.append(JobOutcome(process.job.digest, "lost", seconds, process.reason() + log))
                process.job = None
            self._processes[place] = None
        return outcomes


class _Process:
    """A child process and the job that it runs."""

    def __init__(
        self, log: int | IO[bytes], environment: dict[str, str], answers: "queue.SimpleQueue[tuple[_Process, str]]"
    ) -> None:
        self.affinity = ""
        self.job: CellJob | None = None
        self.started_at = 0.0
        self._process = subprocess.Popen(
            [sys.executable, "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=os.environ | environment,
            text=True,
            encoding="utf-8",
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, args=(answers,), daemon=True)
        self._reader.start()

    def submit(self, job: CellJob, perform: str, threads: int) -> None:
        """Send a job to the process. If the process dies meanwhile, `has_died` is true afterwards."""
        assert self._process.stdin is not None
        self.job, self.affinity, self.started_at = job, job.affinity, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(job_to_text(job, perform, threads) + "\n")
            self._process.stdin.flush()

    def has_died(self) -> bool:
        return self._process.poll() is not None

    def reason(self) -> str:
        """Why the process ended, for a message."""
        code = self._process.returncode
        if code >= 0:
            return f"the worker ended with exit code {code}"
        hint = ", possibly because memory ran out" if code == -signal.SIGKILL else ""
        return f"the worker was killed by {signal.Signals(-code).name}{hint}"

    def end(self, kill: bool) -> None:
        """Let the process exit after its current job, or kill it together with the processes that it started."""
        if kill and not self.has_died():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Wait until the process has ended and its output has been read."""
        self.end(kill=False)
        self._process.wait()
        # A process that it started may keep the pipe open.
        self._reader.join(timeout=1)

    def _read(self, answers: "queue.SimpleQueue[tuple[_Process, str]]") -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answers.put((self, line))


def _visible_gpus() -> list[str]:
    variable = os.environ.get("CUDA_VISIBLE_DEVICES")
    if variable is not None:
        return [name for name in variable.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _is_idle(process: _Process | None) -> bool:
    return process is None or process.job is None
