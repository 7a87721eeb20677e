"""Claims: who computes a cell at the moment, so that two sweeps on one store share the work.

A claim is a courtesy, not what keeps a store right: should two compute one cell all the same, the first to finish is
kept. So it may err on the side of going on: an owner on this machine whose process is gone has lost its claim at once,
any other after `STALE_SECONDS` without a sign of life.

The clocks of two machines need not agree, so no time is written down: an owner counts its signs of life, and whoever
looks measures with its own clock for how long it has seen the same number.
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
    """A cell taken for this process until `release`, or the end of a `with` block.

    A thread gives a sign of life every `BEAT_SECONDS`.
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
        """Another has taken the cell over, because this process gave no sign of life for too long."""
        return self._lost

    def release(self) -> None:
        """Give the cell back; a second time does nothing, and a full or vanished disk raises nothing."""
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
            # A disk that is full for now must not end the run; the next beat may pass.
            with contextlib.suppress(StorageError, FileNotFoundError), self._storage.lock(self.digest[:2]):
                if not self._is_mine():
                    self._lost = True
                    return
                self._storage.write(_path(self.digest), replace(self._owner, beat=beat).to_bytes())

    def _is_mine(self) -> bool:
        owner = _read(self._storage, self.digest)
        return owner is not None and owner.token == self._owner.token


def take(storage: Storage, digest: str, dead: str = "") -> CellClaim | None:
    """A claim on a cell; None while a live owner, this process included, holds one.

    Args:
        storage: Of the store.
        digest: Of the cell.
        dead: What `dead_claim` found in another process: a process that has only just begun has seen no claim for long.

    Raises:
        StorageError: The claim cannot be written.
    """
    mine = _Owner.here()
    # Of all who find a dead owner's claim, one at a time may remove it; else the second removes the first one's own.
    with storage.lock(digest[:2]):
        taken = _create(storage, digest, mine)
        if not taken:
            owner = _read(storage, digest)
            if owner is not None and owner.sign != dead and _is_alive(storage, digest, owner):
                return None
            storage.remove(_path(digest))
            taken = _create(storage, digest, mine)
    if not taken:
        return None
    claim = CellClaim(storage, digest, mine)
    if not storage.local and not claim._is_mine():
        # Without locks, another may have done the same between our looks; the later one stands.
        claim.release()
        return None
    return claim


def is_claimed(storage: Storage, digest: str) -> bool:
    """Whether a live owner holds a cell."""
    owner = _read(storage, digest)
    return owner is not None and _is_alive(storage, digest, owner)


def dead_claim(storage: Storage, digest: str) -> str:
    """The last sign of life of a cell's owner, where it was too long ago; empty where it lives or there is none."""
    owner = _read(storage, digest)
    return "" if owner is None or _is_alive(storage, digest, owner) else owner.sign


@dataclass(frozen=True)
class _Owner:
    """A process somewhere, and how often it has given a sign of life."""

    host: str
    space: str
    """Boot and process namespace of the host: within one of these, process ids mean something."""
    pid: int
    started: str
    """When the process began, in the kernel's words: tells it from a later one of the same id."""
    token: str
    """The claim's own, random."""
    beat: float
    """Signs of life so far. Seconds since 1970 in claims of earlier versions; another number is another sign."""

    @classmethod
    def here(cls) -> Self:
        pid = os.getpid()
        return cls(socket.gethostname(), _space(), pid, _started(pid) or "", secrets.token_hex(8), 0)

    @classmethod
    def from_bytes(cls, data: bytes) -> Self | None:
        """None where it cannot be read: the claim was being written when its owner or disk died."""
        try:
            owner = cls(**json.loads(data))
            texts = (owner.host, owner.space, owner.started, owner.token)
            well = type(owner.pid) is int and isinstance(owner.beat, int | float) and all(type(t) is str for t in texts)
        except (ValueError, TypeError, RecursionError):
            return None
        return owner if well else None

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()

    @property
    def sign(self) -> str:
        """Its last sign of life, unlike any other."""
        return f"{self.token} {self.beat}"

    @property
    def is_gone(self) -> bool:
        """A process of this machine that has ended."""
        here = bool(self.space) and (self.host, self.space) == (socket.gethostname(), _space())
        return here and _started(self.pid) != self.started


_seen: dict[tuple[str, str], tuple[str, float]] = {}
"""Store and cell -> the last sign of life of its owner, and when this process first saw it, by its monotonic clock."""
_seen_lock = threading.Lock()


def _is_alive(storage: Storage, digest: str, owner: _Owner) -> bool:
    if owner.is_gone:
        return False
    place, now = (storage.url, digest), time.monotonic()
    with _seen_lock:
        sign, since = _seen.get(place, ("", now))
        if sign != owner.sign:
            _seen[place] = (owner.sign, now)
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
    """Empty where the system does not tell, and owners are judged by their beat alone."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _started(pid: int) -> str | None:
    """When a process of this machine began; None where it is gone, or killed and only not yet buried."""
    try:
        # The name in brackets, its second field, may hold spaces and brackets itself.
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()
