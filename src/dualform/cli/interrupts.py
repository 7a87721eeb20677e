"""Handling of ctrl-C: at any time it ends a command with one line, exit code 130 and no traceback.

Python raises KeyboardInterrupt at the line that is running. During an import, this leaves a library half imported, and
some libraries convert or suppress the exception. Therefore the process exits at once if a command has not yet started
its work, because there is nothing to clean up; later, a running import is completed first.
"""

import os
import signal
from types import FrameType

_POLL_SECONDS = 0.05
_IMPORTING = ("<frozen importlib._bootstrap>", "<frozen importlib._bootstrap_external>")

_command_started = False
_work_started = False
_was_interrupted = False


def install() -> None:
    """Install the handler, unless the process was started with ctrl-C ignored, as in the background of a shell."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, _interrupted)


def ignore_interrupts() -> None:
    """Ignore ctrl-C once the command has ended, so that its last output stays complete."""
    if signal.getsignal(signal.SIGINT) is _interrupted:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def command_started() -> None:
    """Mark that the command handles `KeyboardInterrupt` itself from now on."""
    global _command_started
    _command_started = True


def work_started() -> None:
    """Mark that there may be something to clean up from now on, such as folders or other processes."""
    global _work_started
    _work_started = True


def was_interrupted() -> bool:
    """Whether ctrl-C was pressed, even if a library has suppressed the exception."""
    return _was_interrupted


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _was_interrupted
    again, _was_interrupted = _was_interrupted, True
    if not _command_started or (_is_importing(frame) and not _work_started):
        os.write(2, b"stopped\n")
        os._exit(130)
    if _is_importing(frame) and not again and hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, _check_import)
        signal.setitimer(signal.ITIMER_REAL, _POLL_SECONDS, _POLL_SECONDS)
        return
    raise KeyboardInterrupt


def _check_import(number: int, frame: FrameType | None) -> None:
    if not _is_importing(frame):
        signal.setitimer(signal.ITIMER_REAL, 0)
        raise KeyboardInterrupt


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename in _IMPORTING:
            return True
        frame = frame.f_back
    return False
