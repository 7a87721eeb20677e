"""The entry point of `dualform`. Imports, which take a second, follow after the handler of ctrl-C is installed."""

from typing import Any

from dualform.cli import interrupts


def main() -> None:
    """Run a command: exit code 0 on success, 2 on a user's mistake, 130 on ctrl-C, 1 on any other error."""
    interrupts.install()
    try:
        from dualform.cli.app import app

        app()
    finally:
        interrupts.ignore_interrupts()


def __getattr__(name: str) -> Any:
    if name == "app":
        from dualform.cli.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
