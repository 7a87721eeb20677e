"""A grid of runs, cell by cell: what is finished is read from the store, what fails is told and left behind.

The driver knows nothing of where a cell is computed (`engines`) nor of what it computes (`worker`). It may die at any
moment: all it knows is in the store, and the same sweep again goes on from there.
"""

import os
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from dualform.errors import StorageError
from dualform.runs.cell_store import CellStore, DamagedCell, FinishedCell
from dualform.runs.engines.base import CellJob, Engine, JobOutcome
from dualform.runs.sweep_cells import DigestCache, GroupCell, assembled, by_digest, cells_of
from dualform.runs.sweep_config import Group
from dualform.runs.worker import ELSEWHERE, ENVIRONMENT, CellRequest
from dualform.sweep_result import CellFailure, SweepCell

Status = Literal["waiting", "running", "elsewhere", "finished", "reused", "failed"]

STORE_VARIABLE = "DUALFORM_SWEEP_STORE"
"""Environment variable in which Slurm's jobs find a store whose URL holds a password."""
_LOOK_SECONDS = 0.5
_ELSEWHERE_SECONDS = 5.0
"""How often a cell that another sweep computes is looked for."""
_LOOKERS = 16
_QUEUE = 4
"""Cells handed out ahead for each worker, so that it can choose one whose model it has."""


@dataclass
class CellState:
    """How far one cell is."""

    cell: GroupCell
    status: Status = "waiting"
    seconds: float | None = None
    failure: CellFailure | None = None
    attempts: int = 0
    look_at: float = 0.0
    """When to look for it again, if another computes it."""
    dead: str = ""
    """What another that computed it last said, and too long ago, see `CellStore.dead_claim`."""

    @property
    def done(self) -> bool:
        """Whether nothing more will come of it."""
        return self.status in ("finished", "reused", "failed")


@dataclass
class GroupState:
    """How far one group is."""

    group: Group
    seeds: list[CellState]
    """Its cells; one for a study that is a cell as a whole."""
    whole: CellState | None = None
    """What holds its result: for a comparison known when all seeds are done."""
    closed: bool = False
    """Its result was handed over, or there is none."""

    @property
    def states(self) -> list[CellState]:
        """All that must be computed, the result's cell included."""
        return self.seeds if self.whole is None or self.whole in self.seeds else [*self.seeds, self.whole]


class SweepObserver(Protocol):
    """Is told how a sweep goes on."""

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """A cell's status is another; None for a sign of life."""
        ...


class SilentObserver:
    """Looks away."""

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Nothing to see."""


@dataclass
class Sweep:
    """One sweep under way.

    Args:
        groups: What to run.
        store: Where cells are kept.
        engine: Where they are computed.
        retries: How often a cell whose worker died is tried again.
        about: Facts that stand beside every cell in the store, such as the sweep's name.
        memory: Bytes of zero-shot readings that a worker keeps.
        watcher: Is told of every change.
        identities: Digests of models and data found so far.
    """

    groups: Sequence[Group]
    store: CellStore
    engine: Engine
    retries: int = 2
    about: dict[str, Any] = field(default_factory=dict)
    memory: int = 1 << 30
    watcher: SweepObserver = field(default_factory=SilentObserver)
    identities: DigestCache = field(default_factory=DigestCache)

    def __post_init__(self) -> None:
        found = []
        for group in self.groups:
            found.append(GroupState(group, [CellState(cell) for cell in cells_of(group, self.identities)]))
        self.states = self._shared(found)
        self._by_digest = {state.cell.key.digest: state for group in found for state in group.states}

    @staticmethod
    def _shared(groups: list[GroupState]) -> list[GroupState]:
        """Groups with one state for a cell that several of them have."""
        cells = by_digest(state.cell for group in groups for state in group.seeds)
        known = {digest: CellState(cell) for digest, cell in cells.items()}
        for group in groups:
            group.seeds = [known[state.cell.key.digest] for state in group.seeds]
            if group.seeds[0].cell.seed is None:
                group.whole = group.seeds[0]
        return groups

    def run(
        self, finished: Callable[[GroupState, FinishedCell | None], None] = lambda group, cell: None
    ) -> list[GroupState]:
        """Compute what is not in the store yet.

        Args:
            finished: Told of each group whose cells are all done, with the cell that holds its result, if it has one.

        Returns:
            All groups.

        Raises:
            StorageError: The store cannot be written to.
        """
        states = list(self._by_digest.values())
        # A bucket takes tens of milliseconds to answer, and many at once just as long.
        with ThreadPoolExecutor(_LOOKERS) as pool:
            for state, cell in zip(states, pool.map(self.store.find, [one.cell.key for one in states]), strict=True):
                if cell is not None:
                    self._settle(state, "reused")
        self.watcher.changed(self.states, None)
        while self._close_groups(finished):
            self._hand_out()
            for outcome in self.engine.collect(_LOOK_SECONDS):
                self._take(outcome)
            self._look_elsewhere()
            self.watcher.changed(self.states, None)
        return self.states

    def _close_groups(self, finished: Callable[[GroupState, FinishedCell | None], None]) -> bool:
        """Hand over the groups that are done and begin to put together those whose seeds are; whether some are left."""
        for group in self.states:
            if group.closed or not all(state.done for state in group.seeds):
                continue
            if group.whole is None:
                self._begin_whole(group)
            if group.whole is not None and not group.whole.done:
                continue
            cell = None
            if group.whole is not None and group.whole.status != "failed":
                cell = self.store.find(group.whole.cell.key)
                if cell is None:
                    self._missing(group.whole, "it was damaged or dropped since it was looked for")
                    continue
                try:
                    finished(group, cell)
                except DamagedCell as error:
                    # Its hashes may be right, and then no worker would compute it again.
                    self.store.drop(group.whole.cell.key)
                    self._missing(group.whole, str(error))
                    continue
            else:
                finished(group, None)
            group.closed = True
        return not all(group.closed for group in self.states)

    def _begin_whole(self, group: GroupState) -> None:
        seeds = [state.cell.seed for state in group.seeds if state.status != "failed"]
        if not seeds:
            return
        cell = assembled(group.group, [seed for seed in seeds if seed is not None], self.identities)
        state = self._by_digest.setdefault(cell.key.digest, CellState(cell))
        group.whole = state
        if not state.done and self.store.find(cell.key) is not None:
            self._settle(state, "reused")

    def _again(self, state: CellState) -> None:
        state.status = "waiting"
        self.watcher.changed(self.states, state)

    def _missing(self, state: CellState, reason: str) -> None:
        """A cell that was said to be finished is not to be had."""
        self.store.log(f"{state.cell.key.short}: {reason}")
        if state.attempts <= self.retries:
            self._again(state)
        else:
            self._fail(state, CellFailure(message=reason, traceback="", attempts=state.attempts))

    def _hand_out(self) -> None:
        waiting = [state for state in self._by_digest.values() if state.status == "waiting" and self._may_begin(state)]
        # Those on which others wait come first; within them, one model and task after the other.
        needed = {key.digest for state in self._by_digest.values() if not state.done for key in state.cell.after}
        waiting.sort(key=lambda state: (state.cell.key.digest not in needed, state.cell.affinity))
        busy = sum(state.status == "running" for state in self._by_digest.values())
        # Slurm starts whatever it is given.
        ahead = 1 if self.engine.name == "slurm" else _QUEUE
        for state in waiting[: max(0, ahead * self.engine.workers - busy)]:
            state.status = "running"
            state.attempts += 1
            self.engine.submit(self._work(state))
            self.watcher.changed(self.states, state)

    def _may_begin(self, state: CellState) -> bool:
        for key in state.cell.after:
            behind = self._by_digest.get(key.digest)
            if behind is not None and behind.status == "failed":
                message = f"seed {behind.cell.seed} failed, whose learning rates this one takes"
                self._fail(state, CellFailure(message=message, traceback="", attempts=state.attempts))
                return False
            if behind is not None and not behind.done:
                return False
        return True

    def _work(self, state: CellState) -> CellJob:
        cell = state.cell
        group = cell.group
        about = {
            **self.about,
            "study": group.study,
            "group": group.name,
            "model": group.model,
            "task": group.task,
            "seed": cell.seed,
            **{f"options.{name}": value for name, value in group.options.items()},
        }
        work = CellRequest(
            store=self._store_for_workers(),
            identity=cell.key.identity,
            study=group.study,
            settings=cell.settings.model_dump(mode="json"),
            seed=cell.seed,
            pieces={name: key.identity for name, key in cell.pieces.items()},
            folder=str(Path.cwd()),
            about=about,
            memory=self.memory,
            dead=state.dead,
        )
        return CellJob(cell.key.digest, work.model_dump(mode="json"), cell.affinity, _weight(cell))

    def _store_for_workers(self) -> str:
        """The store's URL; or, as submitit writes what a job is given into files, where a job finds it."""
        if self.engine.name != "slurm" or self.store.shown == self.store.url:
            return self.store.url
        os.environ[STORE_VARIABLE] = self.store.url
        return ENVIRONMENT + STORE_VARIABLE

    def _take(self, ended: JobOutcome) -> None:
        state = self._by_digest.get(ended.digest)
        if state is None or state.status != "running":
            # Of an earlier sweep on the same engine.
            return
        if ended.storage:
            raise StorageError(ended.message.removeprefix("StorageError: "))
        if ended.status == "finished":
            if ended.facts.get(ELSEWHERE):
                state.status = "elsewhere"
                state.look_at = time.monotonic() + _ELSEWHERE_SECONDS
                state.attempts -= 1
                self.watcher.changed(self.states, state)
                return
            if self.store.find(state.cell.key) is None:
                self._missing(
                    state, "its worker has written it where this machine does not look: give a --store that all reach"
                )
                return
            state.seconds = ended.facts.get("seconds")
            self._settle(state, "reused" if ended.facts.get("reused") else "finished")
            return
        lost = ended.status == "lost"
        if lost and state.attempts <= self.retries:
            self.store.log(f"{state.cell.key.short}: {ended.message or 'its worker died'}; trying again")
            self._again(state)
            return
        message = ended.message or "its worker died"
        self._fail(state, CellFailure(message=message, traceback=ended.traceback, lost=lost, attempts=state.attempts))

    def _look_elsewhere(self) -> None:
        for state in self._by_digest.values():
            if state.status == "elsewhere" and time.monotonic() >= state.look_at:
                if self.store.find(state.cell.key) is not None:
                    self._settle(state, "reused")
                elif self.store.is_claimed(state.cell.key):
                    state.look_at = time.monotonic() + _ELSEWHERE_SECONDS
                else:
                    # Its owner has died or failed.
                    state.dead = self.store.dead_claim(state.cell.key)
                    self._again(state)

    def _settle(self, state: CellState, status: Literal["finished", "reused"]) -> None:
        state.status = status
        self.watcher.changed(self.states, state)

    def _fail(self, state: CellState, failure: CellFailure) -> None:
        state.status = "failed"
        state.failure = failure
        group = state.cell.group
        self.watcher.changed(self.states, state)
        facts = {**self.about, "study": group.study, "group": group.name, "model": group.model, "task": group.task}
        self.store.fail(state.cell.key, failure.model_dump(mode="json"), {**facts, "seed": state.cell.seed})


def cells_record(groups: Iterable[GroupState]) -> list[SweepCell]:
    """Every cell of some groups as `sweep.json` has it; what puts seeds together is told only if it failed."""
    found = []
    for group in groups:
        for state in group.states:
            if state.cell.seed is None and state is not group.seeds[0] and state.status != "failed":
                continue
            status = state.status if state.done else "pending"
            found.append(
                SweepCell(
                    key=state.cell.key.digest,
                    group=group.group.name,
                    seed=state.cell.seed,
                    status=status,  # type: ignore[arg-type] # waiting, running and elsewhere are pending
                    seconds=state.seconds,
                    failure=state.failure,
                )
            )
    return found


def _weight(cell: GroupCell) -> float:
    """How much work a cell is beside others, roughly: engines give the largest out first."""
    if cell.seed is None and cell.pieces:
        # All of it is in the store.
        return 0.0
    config = cell.settings
    limit = getattr(config, "limit", None) or 2000
    rates = len(getattr(config, "rates", ())) if not cell.after else 1
    return float(limit + rates * (getattr(config, "selection_limit", None) or 2000))
