"""Ends what Ray has started on this machine when the driver is gone, however it went.

    python ray_watch.py PID PID ...

Some of Ray's processes look for their parents only every half minute or so. This one waits at a pipe whose other end
the driver holds: it closes when the driver ends, by `kill -9` too. Nothing but the standard library is imported, and
only this file's own child processes of the named ones are ever touched. Linux alone tells whose children they are.
"""

import contextlib
import os
import select
import signal
import sys
import time
from collections.abc import Iterable
from pathlib import Path

LOOK_SECONDS = 2.0
_GRACE_SECONDS = 5.0
DONE = b"done\n"
"""What the driver says when it has shut Ray down by itself."""


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(OSError):
                found += map(int, (task / "children").read_text().split())
    return found


def started(pid: int) -> str | None:
    """When a process began, which tells it from a later one of the same number; None where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def family(pids: Iterable[int]) -> dict[int, str]:
    """Processes and all that they have started, each with its beginning."""
    found: dict[int, str] = {}
    waiting = list(pids)
    while waiting:
        pid = waiting.pop()
        begun = started(pid)
        if begun is not None and pid not in found:
            found[pid] = begun
            waiting += children(pid)
    return found


def watch(pipe: int, pids: list[int]) -> None:
    """Until the pipe is closed; then end what is left."""
    known = family(pids)
    said = b""
    while True:
        ready, _, _ = select.select([pipe], [], [], LOOK_SECONDS)
        if ready:
            text = os.read(pipe, 64)
            if not text:
                break
            said += text
        # Those known before stay known: once their parent is gone, nobody leads to them.
        known |= family(pids)
    until = time.monotonic() + (_GRACE_SECONDS if said == DONE else 0.0)
    while True:
        left = [pid for pid, begun in known.items() if started(pid) == begun]
        if not left or time.monotonic() >= until:
            break
        time.sleep(0.1)
    for pid in left:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


if __name__ == "__main__":
    watch(0, [int(pid) for pid in sys.argv[1:]])
