"""The bar: on a terminal only, on standard error, so that `--json` and pipes stay clean."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dualform.cli.printing import PlainConsole
from dualform.plain_text import plain


class Bar:
    """Draws a study's progress."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("getting model and data", total=None)

    def start(self, total: float) -> None:
        """So much work lies ahead."""
        (task,) = self._progress.tasks
        # Said anew behind the choice of a seed, and with each model: what is done is done.
        self._progress.update(self._task, total=task.completed + total)

    def advance(self, amount: float, doing: str) -> None:
        """So much of it is done."""
        # No markup: a name in square brackets is a name.
        self._progress.update(self._task, advance=amount, description=escape(plain(doing)))


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar for the length of the block; nothing at all where standard error is no terminal."""
    console = PlainConsole(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        yield Bar(progress)
