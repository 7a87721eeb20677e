"""What a source of tasks is, and where sources are found.

A source gives tasks by name. Ours are the packaged sets and the hub; another package adds one by an entry point of the
group `dualform.tasks`, and `load_task`, sweeps and `dualform tasks` find it.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dualform.registry import Registry
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask


@dataclass(frozen=True)
class TaskSummary:
    """One line of `dualform tasks`."""

    name: str
    where: str
    """Folder, package or hub address; for a folder that cannot be used, why."""
    label_words: tuple[str, ...] | None
    """None for multiple choice (and for a folder that cannot be used)."""
    local: bool
    """Whether it can be loaded without a network."""


class TaskSource:
    """A source of tasks. Its tasks are called `NAME` or `NAME:WHICH`, unless it overrides `find`."""

    name: str
    """As in its entry point: letters, digits and underscores."""

    def find(self, given: str) -> str | None:
        """Which of its tasks a user named.

        Args:
            given: The name, as the user gave it.

        Returns:
            What stands behind the colon, empty without one; None for a task of another source.
        """
        source, _, which = given.partition(":")
        return which if source == self.name else None

    def read(self, which: str, options: TaskOptions) -> RawTask:
        """Rows of a task; prompt, label words and missing splits are made of them later.

        Args:
            which: What `find` returned.
            options: What the user says about the task's columns; most sources need none of it.

        Raises:
            TaskError: There is no such task; the message names it and those that there are.
        """
        raise NotImplementedError

    def is_local(self, which: str) -> bool:
        """Whether `read` works without a network."""
        return True

    def tasks(self) -> Iterable[TaskSummary]:
        """Its tasks, for `dualform tasks`; a source with very many names a few."""
        return ()


TASK_SOURCES = Registry("dualform.tasks", "task source", TaskSource)
"""All sources of tasks that are installed."""
