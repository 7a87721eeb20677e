"""The driver of a sweep: submits the cells that are not in the store to an engine, and records the cells that fail.

- A cell is the unit that is computed and stored: one demonstration seed of a study that runs seed by seed, a whole
  study otherwise, or the combination of a group's seeds.
- A group is all cells that differ only in their seed: one study of one model and task with one set of options. It has
  one result. If each seed is a cell, a further cell combines them into the result.
- The store keeps finished cells under a hash of everything that determines them, see `cell_store`. Several sweeps can
  share one, and none computes a cell that is already in it.
- A cell's status is `waiting` (not submitted yet), `running` (submitted to the engine), `elsewhere` (another sweep is
  computing it), `finished` (computed by this sweep), `reused` (found in the store) or `failed` (it raised an error, its
  worker died too often, or a cell that it needs failed).

`engines` run the cells in worker processes and `worker` computes them. The driver can be killed at any time: its state
is in the store, so running the same sweep again resumes it.
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
from dualform.runs.sweep_cells import DigestCache, GroupCell, by_digest, cells_of, combined_cell
from dualform.runs.sweep_config import Group
from dualform.runs.worker import ELSEWHERE, ENVIRONMENT, CellRequest
from dualform.sweep_result import CellFailure, SweepCell

Status = Literal["waiting", "running", "elsewhere", "finished", "reused", "failed"]

STORE_VARIABLE = "DUALFORM_SWEEP_STORE"
"""Environment variable that passes the store's URL to Slurm's jobs if it contains a password."""
_POLL_SECONDS = 0.5
_ELSEWHERE_SECONDS = 5.0
"""Seconds between two checks of a cell that another sweep computes."""
_LOOKUP_THREADS = 16
_QUEUED_PER_WORKER = 4
"""Cells submitted per worker, more than one so that the engine can choose one whose model is loaded."""


@dataclass
class CellState:
    """State of one cell, see the top of this module."""

    cell: GroupCell
    status: Status = "waiting"
    seconds: float | None = None
    """Time that the worker took to compute it; None unless this sweep has computed it."""
    failure: CellFailure | None = None
    """Why it failed; None unless it did."""
    attempts: int = 0
    """How many times it was submitted."""
    next_check: float = 0.0
    """When to check the store again while another sweep computes the cell."""
    stale_heartbeat: str = ""
    """Last heartbeat of an owner that stopped responding, see `CellStore.stale_heartbeat`."""

    @property
    def done(self) -> bool:
        """Whether the cell is finished or has failed."""
        return self.status in ("finished", "reused", "failed")


@dataclass
class GroupState:
    """State of one group."""

    group: Group
    seeds: list[CellState]
    """A cell per seed; a single cell for studies that do not run seed by seed."""
    result_cell: CellState | None = None
    """The cell that holds the group's result; for a group with a cell per seed, None until all seeds are done."""
    closed: bool = False
    """Whether the result was passed on, or all cells failed."""

    @property
    def states(self) -> list[CellState]:
        """The states of all cells of the group, including the result's."""
        return (
            self.seeds
            if self.result_cell is None or self.result_cell in self.seeds
            else [*self.seeds, self.result_cell]
        )


class SweepObserver(Protocol):
    """Follows the progress of a sweep."""

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Called with the cell whose status has changed, or with None at regular intervals."""
        ...


class SilentObserver:
    """Ignores all changes."""

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        """Do nothing."""


@dataclass
class Sweep:
    """A running sweep.

    Args:
        groups: Groups to run.
        store: Store of finished cells.
        engine: Runs the cells.
        retries: Number of further attempts for a cell whose worker died.
        facts: Facts that are stored with every cell, such as the sweep's name.
        memory: Bytes of zero-shot readings that each worker caches.
        observer: Notified of every change.
        digests: Cached digests of models and data.
    """

    groups: Sequence[Group]
    store: CellStore
    engine: Engine
    retries: int = 2
    facts: dict[str, Any] = field(default_factory=dict)
    memory: int = 1 << 30
    observer: SweepObserver = field(default_factory=SilentObserver)
    digests: DigestCache = field(default_factory=DigestCache)

    def __post_init__(self) -> None:
        groups = [
            GroupState(group, [CellState(cell) for cell in cells_of(group, self.digests)]) for group in self.groups
        ]
        self.states = self._share_states(groups)
        self._by_digest = {state.cell.key.digest: state for group in groups for state in group.states}

    @staticmethod
    def _share_states(groups: list[GroupState]) -> list[GroupState]:
        """Give groups that have the same cell the same state for it."""
        cells = by_digest(state.cell for group in groups for state in group.seeds)
        known = {digest: CellState(cell) for digest, cell in cells.items()}
        for group in groups:
            group.seeds = [known[state.cell.key.digest] for state in group.seeds]
            if group.seeds[0].cell.seed is None:
                group.result_cell = group.seeds[0]
        return groups

    def run(
        self, finished: Callable[[GroupState, FinishedCell | None], None] = lambda group, cell: None
    ) -> list[GroupState]:
        """Compute all cells that are not in the store.

        Args:
            finished: Called for each group whose cells are done, with the cell that holds its result, or None.

        Returns:
            The final states of all groups.

        Raises:
            StorageError: The store cannot be written to.
        """
        states = list(self._by_digest.values())
        # In threads, because each request to a bucket takes tens of milliseconds.
        with ThreadPoolExecutor(_LOOKUP_THREADS) as pool:
            cells = pool.map(self.store.find, [state.cell.key for state in states])
            for state, cell in zip(states, cells, strict=True):
                if cell is not None:
                    self._mark_done(state, "reused")
        self.observer.changed(self.states, None)
        while self._close_groups(finished):
            self._submit_jobs()
            for outcome in self.engine.collect(_POLL_SECONDS):
                self._handle_outcome(outcome)
            self._check_elsewhere()
            self.observer.changed(self.states, None)
        return self.states

    def _close_groups(self, finished: Callable[[GroupState, FinishedCell | None], None]) -> bool:
        """Pass on finished results and start combining finished seeds; returns whether groups remain."""
        for group in self.states:
            if group.closed or not all(state.done for state in group.seeds):
                continue
            if group.result_cell is None:
                self._start_result_cell(group)
            if group.result_cell is not None and not group.result_cell.done:
                continue
            cell = None
            if group.result_cell is not None and group.result_cell.status != "failed":
                cell = self.store.find(group.result_cell.cell.key)
                if cell is None:
                    self._handle_missing(group.result_cell, "the cell was damaged or deleted after it was found")
                    continue
                try:
                    finished(group, cell)
                except DamagedCell as error:
                    # Its hashes may be right, in which case no worker would compute it again.
                    self.store.drop(group.result_cell.cell.key)
                    self._handle_missing(group.result_cell, str(error))
                    continue
            else:
                finished(group, None)
            group.closed = True
        return not all(group.closed for group in self.states)

    def _start_result_cell(self, group: GroupState) -> None:
        seeds = [state.cell.seed for state in group.seeds if state.status != "failed"]
        if not seeds:
            return
        cell = combined_cell(group.group, [seed for seed in seeds if seed is not None], self.digests)
        state = self._by_digest.setdefault(cell.key.digest, CellState(cell))
        group.result_cell = state
        if not state.done and self.store.find(cell.key) is not None:
            self._mark_done(state, "reused")

    def _retry(self, state: CellState) -> None:
        state.status = "waiting"
        self.observer.changed(self.states, state)

    def _handle_missing(self, state: CellState, reason: str) -> None:
        """Retry or fail a cell that was reported as finished but is not in the store."""
        self.store.log(f"{state.cell.key.short}: {reason}")
        if state.attempts <= self.retries:
            self._retry(state)
        else:
            self._fail(state, CellFailure(message=reason, traceback="", attempts=state.attempts))

    def _submit_jobs(self) -> None:
        waiting = [state for state in self._by_digest.values() if state.status == "waiting" and self._can_start(state)]
        # Cells on which others wait come first; among equals, cells with the same model and task are adjacent.
        needed = {key.digest for state in self._by_digest.values() if not state.done for key in state.cell.depends_on}
        waiting.sort(key=lambda state: (state.cell.key.digest not in needed, state.cell.affinity))
        busy = sum(state.status == "running" for state in self._by_digest.values())
        # Slurm starts every job that it is given, so only as many as there are workers are submitted.
        per_worker = 1 if self.engine.name == "slurm" else _QUEUED_PER_WORKER
        for state in waiting[: max(0, per_worker * self.engine.workers - busy)]:
            state.status = "running"
            state.attempts += 1
            self.engine.submit(self._job(state))
            self.observer.changed(self.states, state)

    def _can_start(self, state: CellState) -> bool:
        for key in state.cell.depends_on:
            first = self._by_digest.get(key.digest)
            if first is not None and first.status == "failed":
                message = f"seed {first.cell.seed} failed, from which this seed takes its learning rates"
                self._fail(state, CellFailure(message=message, traceback="", attempts=state.attempts))
                return False
            if first is not None and not first.done:
                return False
        return True

    def _job(self, state: CellState) -> CellJob:
        cell = state.cell
        group = cell.group
        facts = {
            **self.facts,
            "study": group.study,
            "group": group.name,
            "model": group.model,
            "task": group.task,
            "seed": cell.seed,
            **{f"options.{name}": value for name, value in group.options.items()},
        }
        request = CellRequest(
            store=self._store_for_workers(),
            identity=cell.key.identity,
            study=group.study,
            settings=cell.settings.model_dump(mode="json"),
            seed=cell.seed,
            pieces={name: key.identity for name, key in cell.pieces.items()},
            folder=str(Path.cwd()),
            facts=facts,
            memory=self.memory,
            stale_heartbeat=state.stale_heartbeat,
        )
        return CellJob(cell.key.digest, request.model_dump(mode="json"), cell.affinity, _weight(cell))

    def _store_for_workers(self) -> str:
        """The store's URL, or the variable that holds it if it has a password, because submitit writes it to files."""
        if self.engine.name != "slurm" or self.store.redacted_url == self.store.url:
            return self.store.url
        os.environ[STORE_VARIABLE] = self.store.url
        return ENVIRONMENT + STORE_VARIABLE

    def _handle_outcome(self, outcome: JobOutcome) -> None:
        state = self._by_digest.get(outcome.digest)
        if state is None or state.status != "running":
            # The job belongs to an earlier sweep on the same engine.
            return
        if outcome.storage:
            raise StorageError(outcome.message.removeprefix("StorageError: "))
        if outcome.status == "finished":
            if outcome.facts.get(ELSEWHERE):
                state.status = "elsewhere"
                state.next_check = time.monotonic() + _ELSEWHERE_SECONDS
                state.attempts -= 1
                self.observer.changed(self.states, state)
                return
            if self.store.find(state.cell.key) is None:
                self._handle_missing(
                    state, "its worker wrote the cell to another place: give a --store that all machines can access"
                )
                return
            state.seconds = outcome.facts.get("seconds")
            self._mark_done(state, "reused" if outcome.facts.get("reused") else "finished")
            return
        lost = outcome.status == "lost"
        message = outcome.message or "its worker died"
        if lost and state.attempts <= self.retries:
            self.store.log(f"{state.cell.key.short}: {message}; trying again")
            self._retry(state)
            return
        self._fail(state, CellFailure(message=message, traceback=outcome.traceback, lost=lost, attempts=state.attempts))

    def _check_elsewhere(self) -> None:
        for state in self._by_digest.values():
            if state.status == "elsewhere" and time.monotonic() >= state.next_check:
                if self.store.find(state.cell.key) is not None:
                    self._mark_done(state, "reused")
                elif self.store.is_claimed(state.cell.key):
                    state.next_check = time.monotonic() + _ELSEWHERE_SECONDS
                else:
                    # Its owner has died or failed.
                    state.stale_heartbeat = self.store.stale_heartbeat(state.cell.key)
                    self._retry(state)

    def _mark_done(self, state: CellState, status: Literal["finished", "reused"]) -> None:
        state.status = status
        self.observer.changed(self.states, state)

    def _fail(self, state: CellState, failure: CellFailure) -> None:
        state.status = "failed"
        state.failure = failure
        group = state.cell.group
        self.observer.changed(self.states, state)
        facts = {**self.facts, "study": group.study, "group": group.name, "model": group.model, "task": group.task}
        self.store.fail(state.cell.key, failure.model_dump(mode="json"), {**facts, "seed": state.cell.seed})


def cells_record(groups: Iterable[GroupState]) -> list[SweepCell]:
    """The cells of groups as listed in `sweep.json`; a cell that combines seeds is included only if it failed."""
    records = []
    for group in groups:
        for state in group.states:
            if state.cell.seed is None and state is not group.seeds[0] and state.status != "failed":
                continue
            status = state.status if state.done else "pending"
            records.append(
                SweepCell(
                    key=state.cell.key.digest,
                    group=group.group.name,
                    seed=state.cell.seed,
                    status=status,  # type: ignore[arg-type] # waiting, running and elsewhere are pending
                    seconds=state.seconds,
                    failure=state.failure,
                )
            )
    return records


def _weight(cell: GroupCell) -> float:
    """Rough amount of work of a cell, in queries; engines start the largest first."""
    if cell.seed is None and cell.pieces:
        # The seeds to combine are in the store.
        return 0.0
    config = cell.settings
    limit = getattr(config, "limit", None) or 2000
    rates = len(getattr(config, "rates", ())) if not cell.depends_on else 1
    return float(limit + rates * (getattr(config, "selection_limit", None) or 2000))
