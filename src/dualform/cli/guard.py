"""What every command does with an error: one clear message, and the exit code that says whose mistake it was."""

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
from dualform.errors import DualformError
from dualform.plain_text import plain
from dualform.redaction import redacted

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Exit 2 with the message on a user's mistake, 130 on ctrl-C; faults pass through and exit 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            interrupts.command_runs()
            _quiet_libraries()
            return command(*args, **kwargs)
        except DualformError as error:
            say(f"error: {redacted(str(error))}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(130) from None
        except Exception as error:
            if isinstance(error, typer.Exit) or not interrupts.was_asked():
                raise
            # What a library has made of ctrl-C.
            say("stopped")
            raise typer.Exit(130) from None

    return run


def say(text: str) -> None:
    """One line for the user, or a few, on standard error; nothing in it steers the terminal, whoever wrote it."""
    print(plain(text, lines=True), file=sys.stderr, flush=True)


def quiet_transformers() -> None:
    """Turn off transformers' own bars, which would be drawn across ours; call it before a model is loaded."""
    from transformers.utils import logging

    logging.disable_progress_bar()
    logging.set_verbosity_error()
    interrupts.work_begins()


def _quiet_libraries() -> None:
    """Keep the libraries' own bars and chatter off the terminal; our own warnings are shown as plain lines."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # Where it is installed, peft imports it, and it remarks on a kernel that only a GPU machine needs.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

    def show(message: Warning | str, category: type[Warning], filename: str, *rest: Any, **more: Any) -> None:
        if category is UserWarning and filename.startswith(_PACKAGE):
            say(f"note: {message}")

    warnings.showwarning = show
