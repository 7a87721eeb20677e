"""How a sweep under way is shown: a live table on a terminal, a line a cell elsewhere."""

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
    """Draws a row a group, busy ones first."""

    def __init__(self, live: Live) -> None:
        self._live = live
        self._start = time.monotonic()
        self._drawn = 0.0

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Draw anew, but not more often than an eye sees."""
        now = time.monotonic()
        if now - self._drawn >= _EVERY_SECONDS or state is None:
            self._drawn = now
            self._live.update(progress_table(groups, now - self._start))


class Lines:
    """Says a line on standard error for every cell that is done, and for what a user would wonder at."""

    def __init__(self) -> None:
        self._all = 0
        self._done: set[str] = set()
        self._told: set[tuple[str, int]] = set()

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Say it, if there is something to say."""
        if state is None:
            return
        self._all = self._all or len({one.cell.key.digest for group in groups for one in group.seeds})
        what = "" if state.cell.seed is None else f", seed {state.cell.seed}"
        name = f"{plain(state.cell.group.name)}{what}"
        key = state.cell.key.digest
        if state.status in ("elsewhere", "waiting") and (key, state.attempts) not in self._told:
            self._told.add((key, state.attempts))
            if state.status == "elsewhere":
                say(f"{name}: another process is computing it")
            elif state.attempts:
                say(f"{name}: its worker died; trying again")
        if not state.done or key in self._done:
            return
        if not (state.cell.seed is None and state.cell.pieces):
            self._done.add(key)
        how = {"finished": f"finished in {state.seconds} s", "reused": "finished earlier"}.get(state.status)
        how = how or f"failed: {state.failure.message if state.failure else ''}"
        say(f"[{len(self._done)}/{self._all}] {name}: {plain(how)}")


@contextmanager
def show_progress() -> Iterator[SweepObserver]:
    """A live table for the length of the block on a terminal; plain lines elsewhere."""
    console = PlainConsole(stderr=True)
    if not console.is_terminal:
        yield Lines()
        return
    with Live(console=console, refresh_per_second=2, transient=True) as live:
        yield LiveTable(live)


def progress_table(groups: Sequence[GroupState], seconds: float) -> Table:
    """How far each group is, and all together.

    Args:
        groups: Of the sweep.
        seconds: Since it began.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("group", "", "done", "running", "failed", "seconds a cell"):
        table.add_column(name, justify="left" if name in ("group", "") else "right", no_wrap=True)

    def order(group: GroupState) -> tuple[bool, bool]:
        busy = any(state.status in ("running", "elsewhere") for state in group.states)
        return not busy, all(state.done for state in group.states)

    shown = sorted(groups, key=order)
    for group in shown[:_MOST_ROWS]:
        states = group.seeds
        done = sum(state.done for state in states)
        failed = sum(state.status == "failed" for state in group.states)
        taken = [state.seconds for state in states if state.seconds is not None]
        table.add_row(
            Text(plain(group.group.name), overflow="ellipsis"),
            ProgressBar(total=len(states), completed=done, width=16),
            f"{done}/{len(states)}",
            str(sum(state.status in ("running", "elsewhere") for state in group.states) or ""),
            Text(str(failed or ""), style="red"),
            f"{sum(taken) / len(taken):.0f}" if taken else "",
        )
    if len(shown) > _MOST_ROWS:
        table.add_row(f"and {len(shown) - _MOST_ROWS} more groups")
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
    """What is left at the pace so far, once some cells were computed."""
    computed = sum(state.status == "finished" for state in states)
    left = sum(not state.done for state in states)
    if not computed or not left:
        return ""
    minutes = seconds / computed * left / 60
    return f"{minutes:.0f} min left" if minutes < 120 else f"{minutes / 60:.0f} h left"
