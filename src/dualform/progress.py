"""The interface for reporting progress to a progress bar."""

from typing import Protocol


class Progress(Protocol):
    """Receives the total amount of work, then the parts of it as they are completed."""

    def start(self, total: float) -> None:
        """Set the total amount of work, in tokens or steps."""
        ...

    def advance(self, amount: float, doing: str) -> None:
        """Report `amount` as completed; `doing` describes the next part in a few words."""
        ...


class SilentProgress:
    """Reports nothing."""

    def start(self, total: float) -> None:
        """Ignore."""

    def advance(self, amount: float, doing: str) -> None:
        """Ignore."""
