"""Ends Ray's processes on this machine after the driver has ended, even after `kill -9`.

    python ray_watch.py PID PID ...

Some of Ray's processes check for their parent only every half minute or so. This script waits on a pipe whose other end
the driver holds, and which closes when the driver ends. It imports only the standard library, and ends only the given
processes and their descendants. Works on Linux only, which lists the children of a process.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

POLL_SECONDS = 2.0
_GRACE_SECONDS = 5.0
DONE = b"done\n"
"""What the driver writes after it has shut Ray down itself."""


def children(pid: int) -> list[int]:
    """The running child processes of a process."""
    pids: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                pids += map(int, (task / "children").read_text().split())
    return pids


def started(pid: int) -> str | None:
    """Start time of a process, which distinguishes it from a later one with the same id; None if it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def family(pids: Iterable[int]) -> dict[int, str]:
    """Processes and all their descendants, each with its start time."""
    start_times: dict[int, str] = {}
    remaining = list(pids)
    while remaining:
        pid = remaining.pop()
        start_time = started(pid)
        if start_time is not None and pid not in start_times:
            start_times[pid] = start_time
            remaining += children(pid)
    return start_times


def watch(pipe: int, pids: list[int]) -> None:
    """Wait until the pipe is closed, then end the processes that still run."""
    known = family(pids)
    message = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], POLL_SECONDS)
        if ready:
            data = os.read(pipe, 64)
            if not data:
                break
            message += data
        # Earlier ones are kept, because they cannot be listed once their parent has ended.
        known |= family(pids)
    until = time.monotonic() + (_GRACE_SECONDS if message == DONE else 0.0)
    while True:
        running = [pid for pid, start_time in known.items() if started(pid) == start_time]
        if not running or time.monotonic() >= until:
            break
        time.sleep(0.1)
    for pid in running:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(0, [int(pid) for pid in sys.argv[1:]])
