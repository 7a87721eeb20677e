"""What ctrl-C does to a command, at whatever moment it comes: one line, exit code 130, no traceback.

Python raises KeyboardInterrupt wherever it is at that moment. In the middle of an import that leaves half of a library
behind, and libraries turn it into errors of their own or swallow it. So until a command begins its work, the process
ends at once, since there is nothing yet to clean up; and once it works, an import is let finish first.
"""

import os
import signal
from types import FrameType

_LOOK_SECONDS = 0.05
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")

_command_runs = False
_works = False
_asked = False


def answer() -> None:
    """Take ctrl-C over from Python, unless the process was started with it ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def ignore() -> None:
    """The command has ended: an impatient ctrl-C should not spoil its last words."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def command_runs() -> None:
    """From here on `KeyboardInterrupt` is answered by the command itself."""
    global _command_runs
    _command_runs = True


def work_begins() -> None:
    """From here on there may be something to clean up: folders, other processes."""
    global _works
    _works = True


def was_asked() -> bool:
    """Whether ctrl-C has come, whatever a library has made of it."""
    return _asked


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _asked
    again, _asked = _asked, True
    if not _command_runs or (_is_importing(frame) and not _works):
        os.write(2, b"stopped\n")
        os._exit(130)
    if _is_importing(frame) and not again and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _look_again)
        signal.setitimer(signal.ITIMER_REAL, _LOOK_SECONDS, _LOOK_SECONDS)
        return
    raise KeyboardInterrupt


def _look_again(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False
