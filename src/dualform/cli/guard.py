"""Error handling of all commands: one message and an exit code, and a clean terminal."""

import functools
import logging
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import typer

from dualform.cli import interrupts
from dualform.cli.refusals import refusal, unreadable_argument
from dualform.errors import ConfigError, DualformError
from dualform.plain_text import plain
from dualform.redaction import redacted

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LONGEST_MESSAGE = 3500
"""Most characters of an error message that are printed."""
P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Let a command exit with 2 and a message on a user's mistake, and with 130 on ctrl-C."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            interrupts.command_started()
            _quiet_libraries()
            problem = unreadable_argument()
            if problem is not None:
                raise ConfigError(problem)
            return command(*args, **kwargs)
        except DualformError as error:
            say(f"error: {_shorten(redacted(str(error)))}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(130) from None
        except Exception as error:
            if interrupts.was_interrupted() and not isinstance(error, typer.Exit):
                # A library has converted the KeyboardInterrupt to an error of its own.
                say("stopped")
                raise typer.Exit(130) from None
            message = refusal(error)
            if message is None:
                raise
            say(f"error: {redacted(message)}")
            raise typer.Exit(2) from None

    return run


def _shorten(message: str) -> str:
    """Cut the middle out of a very long message, which may quote pages of text."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


def say(text: str) -> None:
    """Print a message to standard error, without control characters that it might contain."""
    print(plain(text, lines=True), file=sys.stderr, flush=True)


def quiet_transformers() -> None:
    """Turn off the progress bars of transformers, which would disturb ours; call it before a model is loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    interrupts.work_started()


def _quiet_libraries() -> None:
    """Suppress progress bars and messages of libraries, and print warnings of this package as plain lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # If installed, peft imports it, and it warns about a kernel that only GPUs need.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        if category is UserWarning and filename.startswith(_PACKAGE):
            say(f"note: {message}")

    warnings.showwarning = show
