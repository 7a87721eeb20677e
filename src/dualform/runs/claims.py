"""Claims on cells, by which several sweeps on one store avoid computing the same cell.

Claims save time but do not protect the store: if two processes compute the same cell, the result of the first is kept.
A claim expires at once if its owner was a process of this machine that has ended, and otherwise after `STALE_SECONDS`
without a heartbeat.

Because the clocks of machines can differ, no times are stored. An owner counts its heartbeats, and an observer measures
with its own clock for how long the count has not changed.
"""

import contextlib
import itertools
import json
import os
import secrets
import socket
import threading
import time
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Self

from dualform.errors import StorageError
from dualform.runs.storage import Storage, UnexpectedFileError

BEAT_SECONDS = 15.0
_MOST_BYTES = 1 << 16
STALE_SECONDS = 90.0


class CellClaim:
    """A claim of this process on a cell, until `release` or the end of a `with` block.

    A thread writes a heartbeat every `BEAT_SECONDS`.
    """

    def __init__(self, storage: Storage, digest: str, owner: "_Owner") -> None:
        self.digest = digest
        self._storage = storage
        self._owner = owner
        self._lost = False
        self._ended = threading.Event()
        self._heart = threading.Thread(target=self._beat, name=f"claim {digest[:12]}", daemon=True)
        self._heart.start()

    @property
    def lost(self) -> bool:
        """Whether another process has taken the cell over, because this one wrote no heartbeat for too long."""
        return self._lost

    def release(self) -> None:
        """Release the cell. Can be called more than once, and ignores errors of the disk."""
        if self._ended.is_set():
            return
        self._ended.set()
        self._heart.join()
        with contextlib.suppress(StorageError, FileNotFoundError), self._storage.lock(self.digest[:2]):
            if self._is_mine():
                self._storage.remove(_path(self.digest))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def _beat(self) -> None:
        for beat in itertools.count(1):
            if self._ended.wait(BEAT_SECONDS):
                return
            # A full disk must not end the run; the next heartbeat may succeed.
            with contextlib.suppress(StorageError, FileNotFoundError), self._storage.lock(self.digest[:2]):
                if not self._is_mine():
                    self._lost = True
                    return
                self._storage.write(_path(self.digest), replace(self._owner, beat=beat).to_bytes())

    def _is_mine(self) -> bool:
        owner = _read(self._storage, self.digest)
        return owner is not None and owner.token == self._owner.token


def take(storage: Storage, digest: str, stale_heartbeat: str = "") -> CellClaim | None:
    """Claim a cell; None if a live owner, which may be this process, holds it.

    Args:
        storage: Storage of the store.
        digest: Digest of the cell.
        stale_heartbeat: Result of `stale_heartbeat` in another process, because a new process has not observed the
            owner for long enough.

    Raises:
        StorageError: The claim cannot be written.
    """
    mine = _Owner.here()
    # Locked, because otherwise two processes could remove a dead owner's claim, the second one that of the first.
    with storage.lock(digest[:2]):
        taken = _create(storage, digest, mine)
        if not taken:
            owner = _read(storage, digest)
            if owner is not None and owner.heartbeat != stale_heartbeat and _is_alive(storage, digest, owner):
                return None
            storage.remove(_path(digest))
            taken = _create(storage, digest, mine)
    if not taken:
        return None
    claim = CellClaim(storage, digest, mine)
    if not storage.local and not claim._is_mine():
        # Without locks, another process may have claimed the cell at the same time; the later claim is valid.
        claim.release()
        return None
    return claim


def is_claimed(storage: Storage, digest: str) -> bool:
    """Whether a live owner holds a cell."""
    owner = _read(storage, digest)
    return owner is not None and _is_alive(storage, digest, owner)


def stale_heartbeat(storage: Storage, digest: str) -> str:
    """The last heartbeat of a cell's owner if it was too long ago; empty if the owner is alive or there is none."""
    owner = _read(storage, digest)
    return "" if owner is None or _is_alive(storage, digest, owner) else owner.heartbeat


@dataclass(frozen=True)
class _Owner:
    """A process, and the number of its heartbeats."""

    host: str
    space: str
    """Boot id and process namespace of the host, within which process ids are unique."""
    pid: int
    started: str
    """Start time of the process in the kernel's format; distinguishes it from a later process with the same id."""
    token: str
    """Random text, unique to the claim."""
    beat: float
    """Number of heartbeats so far. In claims of earlier versions, seconds since 1970."""

    @classmethod
    def here(cls) -> Self:
        pid = os.getpid()
        return cls(socket.gethostname(), _space(), pid, _started(pid) or "", secrets.token_hex(8), 0)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """The owner in a claim's file; None if the file is invalid, for example because writing it was interrupted."""
        try:
            owner = cls(**json.loads(data))
            texts = (owner.host, owner.space, owner.started, owner.token)
            valid = (
                type(owner.pid) is int and isinstance(owner.beat, int | float) and all(type(t) is str for t in texts)
            )
        except (ValueError, TypeError, RecursionError):
            return None
        return owner if valid else None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def heartbeat(self) -> str:
        """Its last heartbeat, as a unique text."""
        return f"{self.token} {self.beat}"

    @property
    def is_gone(self) -> bool:
        """Whether the owner is a process of this machine that has ended."""
        here = bool(self.space) and (self.host, self.space) == (socket.gethostname(), _space())
        return here and _started(self.pid) != self.started


_seen: dict[tuple[str, str], tuple[str, float]] = {}
"""Store and cell -> the last heartbeat of the cell's owner, and the monotonic time when this process first saw it."""
_seen_lock = threading.Lock()


def _is_alive(storage: Storage, digest: str, owner: _Owner) -> bool:
    if owner.is_gone:
        return False
    cell, now = (storage.url, digest), time.monotonic()
    with _seen_lock:
        heartbeat, since = _seen.get(cell, ("", now))
        if heartbeat != owner.heartbeat:
            _seen[cell] = (owner.heartbeat, now)
            return True
    return now - since <= STALE_SECONDS


def _path(digest: str) -> str:
    return f"claims/{digest}.json"


def _create(storage: Storage, digest: str, owner: _Owner) -> bool:
    return storage.create(_path(digest), owner.to_bytes())


def _read(storage: Storage, digest: str) -> _Owner | None:
    try:
        return _Owner.from_bytes(storage.read(_path(digest), _MOST_BYTES))
    except UnexpectedFileError:
        return None
    except FileNotFoundError:
        with _seen_lock:
            _seen.pop((storage.url, digest), None)
        return None


@cache
def _space() -> str:
    """Boot id and process namespace; empty if the system has none, and owners are judged by their heartbeats only."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """Start time of a process of this machine; None if it has ended or is a zombie."""
    try:
        # The second field, the name in brackets, may itself contain spaces and brackets.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
