"""A worker process of the local engine: reads one job per input line, writes one `JobOutcome` per output line."""

import contextlib
import faulthandler
import os
import sys
import threading
import time

POLL_SECONDS = 0.5


def main() -> None:
    """Run the jobs on standard input, line by line, until it ends."""
    # The two pipes are reserved for jobs and outcomes: what a job prints goes to the log, and its input is empty.
    jobs = os.fdopen(os.dup(0), encoding="utf-8")
    outcomes = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as empty:
        os.dup2(empty.fileno(), 0)
    os.dup2(2, 1)
    faulthandler.enable()
    threading.Thread(target=_exit_after_driver, args=(os.getppid(),), daemon=True).start()
    from dualform.runs.engines.performing import perform_text

    # The pipe is closed if the driver has ended.
    with contextlib.suppress(BrokenPipeError):
        for line in jobs:
            outcomes.write(perform_text(line) + "\n")
            outcomes.flush()
    sys.stdout.flush()
    # Threads of libraries must not keep the process alive.
    os._exit(0)


def _exit_after_driver(driver: int) -> None:
    """Exit soon after the driver has ended, even during a job, when the closed pipe would go unnoticed."""
    while os.getppid() == driver:
        time.sleep(POLL_SECONDS)
    os._exit(1)
