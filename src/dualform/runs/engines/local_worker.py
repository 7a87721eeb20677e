"""The process that does work for the local engine: one job per input line, one `JobOutcome` per output line."""

import contextlib
import faulthandler
import os
import sys
import threading
import time

LOOK_SECONDS = 0.5


def main() -> None:
    """Do what standard input says, line by line, until it ends."""
    # The two pipes belong to the driver and us alone: what the work prints goes to the log, and it reads nothing.
    orders = os.fdopen(os.dup(0), encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    os.dup2(2, 1)
    faulthandler.enable()
    threading.Thread(target=_leave_with, args=(os.getppid(),), daemon=True).start()
    from dualform.runs.engines.performing import perform_text

    # The driver may be gone, and with it the other end.
    with contextlib.suppress(BrokenPipeError):
        for line in orders:
            answers.write(perform_text(line) + "\n")
            answers.flush()
    sys.stdout.flush()
    # Threads of libraries must not keep a process that nobody waits for.
    os._exit(0)


def _leave_with(driver: int) -> None:
    """End this process, whatever it is doing, soon after its driver has ended: only an idle worker sees the pipe."""
    while os.getppid() == driver:
        time.sleep(LOOK_SECONDS)
    os._exit(1)
