"""A progress bar on standard error, shown only on a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dualform.cli.printing import PlainConsole
from dualform.plain_text import plain


class Bar:
    """Shows the progress of a study."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._task = progress.add_task("loading model and data", total=None)

    def start(self, total: float) -> None:
        """Set the amount of remaining work."""
        (task,) = self._progress.tasks
        # Called again after a seed was selected and for each model, so completed work is kept.
        self._progress.update(self._task, total=task.completed + total)

    def advance(self, amount: float, doing: str) -> None:
        """Add completed work, and show what is being done."""
        # Escaped, because rich would read square brackets in names as markup.
        self._progress.update(self._task, advance=amount, description=escape(plain(doing)))


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """Show a bar during the block; nothing is shown if standard error is not a terminal."""
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
