"""Work in processes of this machine. Each is asked for by name, so that it gets what its loaded model fits.

Plain child processes and two pipes each, where a pool's shared queue would hand work to whichever worker is first.
A child runs in its own process group: ctrl-C reaches the driver alone, which then closes the engine.
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
from dualform.runs.engines.performing import ended_from, quiet_environment, work_text

LOOK_SECONDS = 0.2

# As multiprocessing's spawn does, but the driver's own script is not run again: it needs no `if __name__` guard.
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from dualform.runs.engines.local_worker import main; main()"
)


class LocalEngine:
    """Processes of this machine that share its cores."""

    name = "local"

    def __init__(self, workers: int | None, threads: int | None, options: EngineOptions, perform: str):
        self._gpus = _visible_gpus() if options.gpus else []
        if options.gpus and workers is None:
            workers = max(1, int(len(self._gpus) / options.gpus))
        self.workers, self.threads = share_cores(cores(), workers, threads)
        if self.workers * options.gpus > len(self._gpus):
            raise ConfigError(
                f"{self.workers} workers of {options.gpus:g} GPUs each, and this machine has {len(self._gpus)}; "
                "ask for fewer workers or a smaller share of a GPU"
            )
        warn_if_crowded(cores(), self.workers, self.threads)
        self._gpus_each = options.gpus
        self._perform = perform
        self._log_dir = options.log_dir
        if self._log_dir is not None:
            writable_dir(self._log_dir, "Choose another folder for the workers' logs.")
        self._processes: list[_Process | None] = [None] * self.workers
        self._waiting: list[CellJob] = []
        self._answers: queue.SimpleQueue[tuple[_Process, str]] = queue.SimpleQueue()

    def submit(self, work: CellJob) -> None:
        """See `Engine`."""
        self._waiting.append(work)
        self._hand_out()

    def ended(self, timeout: float) -> list[JobOutcome]:
        """See `Engine`."""
        until = time.monotonic() + timeout
        while True:
            found = self._answered(min(LOOK_SECONDS, max(0.0, until - time.monotonic())))
            found += self._lost()
            self._hand_out()
            if found or time.monotonic() >= until:
                return found

    def idle_for(self) -> list[str]:
        """See `Engine`."""
        return ["" if process is None else process.warm for process in self._processes if _is_idle(process)]

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
            # Killed while idle: that costs no work, only a new start.
            for place in places:
                process = self._processes[place]
                if process is not None and process.has_died():
                    process.wait()
                    self._processes[place] = None
            idle, work = best_match(
                [process.warm if (process := self._processes[place]) else "" for place in places], self._waiting
            )
            place = places[idle]
            process = self._processes[place] or self._start(place)
            self._processes[place] = process
            process.give(self._waiting.pop(work), self._perform, self.threads)

    def _start(self, place: int) -> "_Process":
        with contextlib.ExitStack() as stack:
            log: int | IO[bytes] = subprocess.DEVNULL
            if self._log_dir is not None:
                path = self._log_dir / f"worker-{place + 1}.log"
                with explain_storage_errors(path, "Choose another folder for the workers' logs."):
                    log = stack.enter_context(open(path, "ab"))
            return _Process(log, quiet_environment(self.threads) | self._own_gpus(place), self._answers)

    def _own_gpus(self, place: int) -> dict[str, str]:
        """A worker's own GPUs, or its share of one, as CUDA is told."""
        if not self._gpus_each:
            return {}
        first = int(place * self._gpus_each + 1e-9)
        return {"CUDA_VISIBLE_DEVICES": ",".join(self._gpus[first : first + max(1, round(self._gpus_each))])}

    def _answered(self, timeout: float) -> list[JobOutcome]:
        found: list[JobOutcome] = []
        with contextlib.suppress(queue.Empty):
            while True:
                process, line = self._answers.get(timeout=0 if found else timeout)
                if process.work is not None:
                    process.work = None
                    found.append(ended_from(line))
        return found

    def _lost(self) -> list[JobOutcome]:
        found: list[JobOutcome] = []
        for place, process in enumerate(self._processes):
            if process is None or process.work is None or not process.has_died():
                continue
            # Its last answer may have been on its way.
            process.wait()
            found += self._answered(0)
            if process.work is not None:
                log = "" if self._log_dir is None else f"; what it printed is in {self._log_dir}/worker-{place + 1}.log"
                seconds = time.monotonic() - process.given
                found.append(JobOutcome(process.work.digest, "lost", seconds, process.reason() + log))
                process.work = None
            self._processes[place] = None
        return found


class _Process:
    """One child process and what it is doing."""

    def __init__(
        self, log: int | IO[bytes], environment: dict[str, str], answers: "queue.SimpleQueue[tuple[_Process, str]]"
    ) -> None:
        self.warm = ""
        self.work: CellJob | None = None
        self.given = 0.0
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

    def give(self, work: CellJob, perform: str, threads: int) -> None:
        """Hand out a work; should the process die now, `has_died` tells."""
        assert self._process.stdin is not None
        self.work, self.warm, self.given = work, work.warm, time.monotonic()
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(work_text(work, perform, threads) + "\n")
            self._process.stdin.flush()

    def has_died(self) -> bool:
        return self._process.poll() is not None

    def reason(self) -> str:
        """How it died, for people."""
        code = self._process.returncode
        if code >= 0:
            return f"the worker ended by itself, exit code {code}"
        hint = ", as the system does when memory runs out" if code == -signal.SIGKILL else ""
        return f"the worker was killed by {signal.Signals(-code).name}{hint}"

    def end(self, kill: bool) -> None:
        """Say that there is no more work, or end it at once with all that it has started."""
        if kill and not self.has_died():
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.close()

    def wait(self) -> None:
        """Until it is gone and all that it said has been read."""
        self.end(kill=False)
        self._process.wait()
        # Something that it started may hold the pipe open without end.
        self._reader.join(timeout=1)

    def _read(self, answers: "queue.SimpleQueue[tuple[_Process, str]]") -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                answers.put((self, line))


def _visible_gpus() -> list[str]:
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name for name in named.split(",") if name]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]


def _is_idle(process: _Process | None) -> bool:
    return process is None or process.work is None
