"""`dualform`: the entry point. It imports nothing before it can answer ctrl-C, and the rest takes a second."""

from typing import Any

from dualform.cli import interrupts


def main() -> None:
    """Entry point: exit 0 on success, 2 on a user's mistake, 130 on ctrl-C, 1 on a fault."""
    interrupts.answer()
    try:
        from dualform.cli.app import app

        app()
    finally:
        interrupts.ignore()


def __getattr__(name: str) -> Any:
    if name == "app":
        from dualform.cli.app import app

        return app
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
