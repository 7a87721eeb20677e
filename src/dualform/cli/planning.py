"""Lets `dualform plan` run a command up to the point where its settings are checked, and take the plan from there.

Thus a plan accepts the options of its command and reports the same errors.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

_planner: ContextVar[Callable[[Any], None] | None] = ContextVar("dualform_planner", default=None)


@contextmanager
def planning(planner: Callable[[Any], None]) -> Iterator[None]:
    """A block in which commands pass their settings to `planner` instead of running."""
    token = _planner.set(planner)
    try:
        yield
    finally:
        _planner.reset(token)


def only_planned(settings: Any) -> bool:
    """Inside a `planning` block, plan a run and return True, so that the command stops; otherwise return False.

    Args:
        settings: A study's checked settings, or a function that returns the plan for a machine.
    """
    planner = _planner.get()
    if planner is None:
        return False
    planner(settings)
    return True
