"""The progress of a running sweep: a live table on a terminal, otherwise one line per cell."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from dualform.cli.guard import say
from dualform.cli.printing import PlainConsole
from dualform.plain_text import plain
from dualform.runs.sweep import CellState, GroupState, SweepObserver

_MOST_ROWS = 24
_EVERY_SECONDS = 0.5


class LiveTable:
    """Shows one row per group, those with running cells first."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._start = time.monotonic()
        self._drawn = 0.0

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Redraw the table, at most every `_EVERY_SECONDS`."""
        now = time.monotonic()
        if now - self._drawn >= _EVERY_SECONDS or state is None:
            self._drawn = now
            self._live.update(progress_table(groups, now - self._start))


class Lines:
    """Prints a line to standard error for every cell that is done, retried or computed elsewhere."""

    def __init__(self) -> None:
        self._n_cells = 0
        self._done: set[str] = set()
        self._reported: set[tuple[str, int]] = set()

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Print a line if the cell's new status calls for one."""
        if state is None:
            return
        self._n_cells = self._n_cells or len({seed.cell.key.digest for group in groups for seed in group.seeds})
        seed = "" if state.cell.seed is None else f", seed {state.cell.seed}"
        name = f"{plain(state.cell.group.name)}{seed}"
        key = state.cell.key.digest
        if state.status in ("elsewhere", "waiting") and (key, state.attempts) not in self._reported:
            self._reported.add((key, state.attempts))
            if state.status == "elsewhere":
                say(f"{name}: another process is computing it")
            elif state.attempts:
                say(f"{name}: its worker died; trying again")
        if not state.done or key in self._done:
            return
        if not (state.cell.seed is None and state.cell.pieces):
            self._done.add(key)
        status = {"finished": f"finished in {state.seconds} s", "reused": "finished earlier"}.get(state.status)
        status = status or f"failed: {state.failure.message if state.failure else ''}"
        say(f"[{len(self._done)}/{self._n_cells}] {name}: {plain(status)}")


@contextmanager
def show_progress() -> Iterator[SweepObserver]:
    """Show a sweep's progress during the block: a live table on a terminal, otherwise plain lines."""
    console = PlainConsole(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield LiveTable(live)


def progress_table(groups: Sequence[GroupState], seconds: float) -> Table:
    """The progress of each group and of the whole sweep.

    Args:
        groups: Groups of the sweep.
        seconds: Seconds since it started.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("group", "", "done", "running", "failed", "seconds per cell"):
        table.add_column(name, justify="left" if name in ("group", "") else "right", no_wrap=True)

    def order(group: GroupState) -> tuple[bool, bool]:
        busy = any(state.status in ("running", "elsewhere") for state in group.states)
        return not busy, all(state.done for state in group.states)

    ordered = sorted(groups, key=order)
    for group in ordered[:_MOST_ROWS]:
        states = group.seeds
        done = sum(state.done for state in states)
        failed = sum(state.status == "failed" for state in group.states)
        times = [state.seconds for state in states if state.seconds is not None]
        table.add_row(
            Text(plain(group.group.name), overflow="ellipsis"),
            ProgressBar(total=len(states), completed=done, width=16),
            f"{done}/{len(states)}",
            str(sum(state.status in ("running", "elsewhere") for state in group.states) or ""),
            Text(str(failed or ""), style="red"),
            f"{sum(times) / len(times):.0f}" if times else "",
        )
    if len(ordered) > _MOST_ROWS:
        table.add_row(f"and {len(ordered) - _MOST_ROWS} more groups")
    states = [state for group in groups for state in group.seeds]
    done = sum(state.done for state in states)
    table.add_section()
    table.add_row(
        "all",
        ProgressBar(total=max(1, len(states)), completed=done, width=16),
        f"{done}/{len(states)}",
        str(sum(state.status == "running" for state in states) or ""),
        Text(str(sum(state.status == "failed" for state in states) or ""), style="red"),
        remaining(states, seconds),
    )
    return table


def remaining(states: Sequence[CellState], seconds: float) -> str:
    """The remaining time at the current rate; empty before the first cell is computed."""
    computed = sum(state.status == "finished" for state in states)
    left = sum(not state.done for state in states)
    if not computed or not left:
        return ""
    minutes = seconds / computed * left / 60
    return f"{minutes:.0f} min left" if minutes < 120 else f"{minutes / 60:.0f} h left"
