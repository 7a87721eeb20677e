"""The interface of a task source, and the registry of installed sources.

A source loads tasks by name. dualform has two, the packaged sets and the Hugging Face hub. Another package adds one
with an entry point in the group `dualform.tasks`; `load_task`, sweeps and `dualform tasks` then use it too.
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
    """Folder, package or hub address; for an unusable folder, followed by the reason."""
    label_words: tuple[str, ...] | None
    """None for multiple choice and for an unusable folder."""
    local: bool
    """Whether it can be loaded without a network."""


class TaskSource:
    """A source of tasks. Users name its tasks `NAME` or `NAME:WHICH`, unless it overrides `find`."""

    name: str
    """Name of the entry point: letters, digits and underscores."""

    def find(self, given: str) -> str | None:
        """Which task of this source a name refers to.

        Args:
            given: The name as the user wrote it.

        Returns:
            The text after the colon, empty if there is no colon; None if the name belongs to another source.
        """
        source, _, which = given.partition(":")
        return which if source == self.name else None

    def read(self, which: str, options: TaskOptions) -> RawTask:
        """Rows of a task. The caller adds the prompt, the label words and any missing splits.

        Args:
            which: The value that `find` returned.
            options: The user's settings about columns; most sources ignore them.

        Raises:
            TaskError: There is no such task. The message should name it and list the available ones.
        """
        raise NotImplementedError

    def is_local(self, which: str) -> bool:
        """Whether `read` works without a network."""
        return True

    def tasks(self) -> Iterable[TaskSummary]:
        """The tasks to list in `dualform tasks`; a source with very many lists a few."""
        return ()


TASK_SOURCES = Registry("dualform.tasks", "task source", TaskSource)
"""All installed task sources."""
