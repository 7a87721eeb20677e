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
from dualform.cli.refusals import refusal, unreadable_argument
from dualform.errors import ConfigError, DualformError
from dualform.plain_text import plain
from dualform.redaction import redacted

_PACKAGE = str(Path(__file__).parents[1]) + os.sep
_LONGEST_MESSAGE = 3500
"""Characters of an error that are shown."""
P = ParamSpec("P")
T = TypeVar("T")


def guarded(command: Callable[P, T]) -> Callable[P, T]:
    """Exit 2 with the message on a user's mistake, 130 on ctrl-C; faults pass through and exit 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            interrupts.command_runs()
            _quiet_libraries()
            wrong = unreadable_argument()
            if wrong is not None:
                raise ConfigError(wrong)
            return command(*args, **kwargs)
        except DualformError as error:
            say(f"error: {_shortened(redacted(str(error)))}")
            raise typer.Exit(2) from None
        except KeyboardInterrupt:
            say("stopped")
            raise typer.Exit(130) from None
        except Exception as error:
            if interrupts.was_asked() and not isinstance(error, typer.Exit):
                # What a library has made of ctrl-C.
                say("stopped")
                raise typer.Exit(130) from None
            message = refusal(error)
            if message is None:
                raise
            say(f"error: {redacted(message)}")
            raise typer.Exit(2) from None

    return run


def _shortened(message: str) -> str:
    """A message with its middle left out where it is very long: what was given may be pages of text."""
    if len(message) <= _LONGEST_MESSAGE:
        return message
    half = _LONGEST_MESSAGE // 2
    return f"{message[:half]} ... {message[-half:]}"


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
