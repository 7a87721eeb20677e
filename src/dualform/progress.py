"""How long work says how far it is, to whoever draws the bar."""

from typing import Protocol


class Progress(Protocol):
    """Receives the amount of work ahead, then pieces of it as they are done."""

    def start(self, total: float) -> None:
        """So much work lies ahead, in tokens read or in steps."""
        ...

    def advance(self, amount: float, doing: str) -> None:
        """So much of it is done; `doing` is what comes next, in a few words."""
        ...


class SilentProgress:
    """Says nothing."""

    def start(self, total: float) -> None:
        """Ignore."""

    def advance(self, amount: float, doing: str) -> None:
        """Ignore."""
