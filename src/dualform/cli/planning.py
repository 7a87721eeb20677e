"""Whether a command is to be carried out or only reckoned: `dualform plan` runs the very command and stops it there.

So a plan takes exactly the options that the command takes, and tells mistakes in them exactly as it does.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_planner: ContextVar[Callable[[Any], None] | None] = ContextVar("dualform_planner", default=None)


@contextmanager
def planning(tell: Callable[[Any], None]) -> Iterator[None]:
    """A block in which commands hand what they would run to `tell` and do nothing else."""
    token = _planner.set(tell)
    try:
        yield
    finally:
        _planner.reset(token)


def only_planned(what: Any) -> bool:
    """Inside `planning`: tell what would be run. Whether that was so, and the command has nothing left to do.

    Args:
        what: A study's checked settings; or a function that makes the plan from a machine.
    """
    tell = _planner.get()
    if tell is None:
        return False
    tell(what)
    return True
