"""The store of a sweep's results. Each cell is stored under the hash of everything that determines it.

    cells/ab/abcdef.../cell.json              identity, facts, and the hash of every file; written last
    cells/ab/abcdef.../outcome-0123....bin    files, with a hash of their content in the name
    cells/ab/abcdef.../failure.json           why the cell failed, until it succeeds
    pieces/ab/abcdef.../0123....piece         finished pieces of an unfinished cell
    claims/abcdef....json                     the process that computes the cell at the moment
    locks/ab                                  locked while a cell is written (local file systems)
    log.txt                                   damaged cells, with the time they were found (local file systems)

A cell is finished if its cell.json is complete and belongs to its folder, and all its files exist. A writer that is
killed leaves an incomplete cell, which counts as missing and which the next writer replaces. Finished cells are never
overwritten, so readers need no lock.
"""

import contextlib
import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dualform._version import __version__
from dualform.errors import StorageError
from dualform.plain_text import plain
from dualform.redaction import redacted
from dualform.runs import claims
from dualform.runs.claims import CellClaim
from dualform.runs.storage import Storage, UnexpectedFileError, open_storage

_log = logging.getLogger(__name__)
_CELL, _FAILURE = "cell.json", "failure.json"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_MOST_OF_RECORD = 8 << 20
"""Largest size in bytes of a cell.json or failure.json; a typical one has a few thousand."""
_MOST_OF_FILE = 2 << 30
"""Largest size in bytes of any other file."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class DamagedCell(StorageError):  # noqa: N818
    """A finished cell whose files are missing or have changed."""


@dataclass(frozen=True, eq=False)
class CellKey:
    """Identifies a cell by everything that determines its content.

    Raises:
        ValueError: The identity holds a number that is not finite.
        TypeError: The identity holds a value that JSON cannot represent.
    """

    identity: dict[str, Any]
    """Resolved settings, version, digests of the data and the model, as plain JSON."""

    def __post_init__(self) -> None:
        # In the form in which JSON is read back: tuples become lists, and keys become text.
        object.__setattr__(self, "identity", json.loads(_canonical(self.identity)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity's canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(_canonical(self.identity)).hexdigest()

    @property
    def short(self) -> str:
        """The digest's first 12 digits, for messages."""
        return self.digest[:12]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CellKey) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)


@dataclass(frozen=True)
class StoredFile:
    """One file of a cell."""

    sha256: str
    size: int
    """Bytes."""


@dataclass(frozen=True)
class FinishedCell:
    """A finished cell."""

    digest: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    """Facts for listings: names -> plain JSON."""
    files: dict[str, StoredFile]
    finished: str
    """ISO time, UTC."""
    version: str
    """Version of dualform that wrote the cell."""
    _storage: Storage = field(repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """Content of one of its files.

        Raises:
            KeyError: The cell has no such file.
            DamagedCell: The file is missing or has changed.
        """
        stored = self.files[name]
        path = f"{_folder(self.digest)}/{_file_name(name, stored.sha256)}"
        try:
            data = self._storage.read(path, stored.size)
        except FileNotFoundError:
            raise _damaged(self.digest, f"{name} is missing") from None
        except UnexpectedFileError:
            raise _damaged(self.digest, f"{name} is larger than when it was written") from None
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise _damaged(self.digest, f"{name} has changed since it was written")
        return data


@dataclass(frozen=True)
class FailedCell:
    """A cell that failed and has not been computed since."""

    digest: str
    identity: dict[str, Any]
    """Empty if only the digest is known."""
    facts: dict[str, Any]
    failure: dict[str, Any]
    """Message, traceback, number of attempts and whether the worker was lost."""
    failed: str
    """ISO time, UTC."""
    version: str


class CellStore:
    """A store of cells in a folder, or at a URL that fsspec supports.

    Args:
        url: A folder, or a URL such as `s3://bucket/store`.
        writable: Create the store if it does not exist, and check that it can be written to. If False, nothing is
            written, not even the log.

    Raises:
        StorageError: The store cannot be opened or written to.
    """

    def __init__(self, url: str | Path, *, writable: bool = True) -> None:
        self._storage = open_storage(url, writable=writable)
        self._writable = writable
        self._logged: set[str] = set()

    @property
    def url(self) -> str:
        """Absolute path or URL from which any process can open this store; may contain credentials."""
        return self._storage.url

    @property
    def redacted_url(self) -> str:
        """The URL for messages, pages and logs, without credentials and on one line."""
        return plain(redacted(self._storage.url))

    @property
    def shared(self) -> bool:
        """Whether other processes can access this store."""
        return self._storage.shared

    def find(self, key: CellKey | str, verify: bool = False) -> FinishedCell | None:
        """A finished cell; None if it is missing, or is incomplete or damaged, which is logged.

        Args:
            key: Key of the cell, or its digest.
            verify: Read all files and compare their hashes; otherwise only their existence and sizes are checked.

        Raises:
            StorageError: The store cannot be read.
        """
        digest = _digest(key)
        try:
            cell = self.load(key, verify)
        except DamagedCell as error:
            self.log(f"{error}")
            return None
        if cell is None and set(self._storage.sizes(_folder(digest))) - {_FAILURE}:
            self.log(f"cell {digest[:12]} is incomplete: its writer is still running, or was killed")
        return cell

    def load(self, key: CellKey | str, verify: bool = False) -> FinishedCell | None:
        """A finished cell, as from `find`, but a damaged cell is an error; None if there is no cell.json.

        Raises:
            DamagedCell: The cell.json or a file of the cell is missing or has changed.
        """
        digest = _digest(key)
        folder = _folder(digest)
        try:
            data = self._storage.read(f"{folder}/{_CELL}", _MOST_OF_RECORD)
        except FileNotFoundError:
            return None
        except UnexpectedFileError:
            raise _damaged(digest, f"{_CELL} is larger than any that dualform writes") from None
        record = _unsealed(data, _CellRecord, digest, _CELL)
        # Listed after cell.json was read, because a writer may have added files meanwhile.
        sizes = self._storage.sizes(folder)
        files = {name: StoredFile(stored.sha256, stored.size) for name, stored in record.files.items()}
        for name, stored in files.items():
            if not _NAME.fullmatch(name):
                raise _damaged(digest, "it lists a file with an invalid name")
            if stored.size > _MOST_OF_FILE:
                raise _damaged(digest, f"{name} is larger than any that dualform writes")
            size = sizes.get(_file_name(name, stored.sha256))
            if size is None:
                raise _damaged(digest, f"{name} is missing")
            if size != stored.size:
                raise _damaged(digest, f"{name} has {size} bytes instead of {stored.size}")
        cell = FinishedCell(
            digest, record.identity, record.facts, files, record.finished, record.dualform, self._storage
        )
        if verify:
            for name in files:
                cell.read(name)
        return cell

    def write(self, key: CellKey, files: dict[str, bytes], facts: dict[str, Any]) -> FinishedCell:
        """Store a finished cell.

        Args:
            key: Key of the cell.
            files: Name -> content. Names consist of letters, digits, `_`, `-` and `.`, and do not begin with `-` or
                `.`.
            facts: Facts for listings: names -> plain JSON; numbers that are not finite become None.

        Returns:
            The cell in the store; if another process has stored it before, that one.

        Raises:
            StorageError: No space or no permission, which may leave an incomplete cell, as a killed writer does; or the
                cell is too large, and nothing was written.
            ValueError: A name is invalid.
        """
        invalid = [name for name in files if not _NAME.fullmatch(name)]
        if invalid:
            raise ValueError(f"invalid names of a cell's files: {invalid}. Use letters, digits, '_', '-' and '.'.")
        folder = _folder(key.digest)
        stored = {name: StoredFile(hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()}
        record = _CellRecord(
            digest=key.digest,
            identity=key.identity,
            facts=_finite(facts),
            files={name: _FileRecord(sha256=file.sha256, size=file.size) for name, file in stored.items()},
            finished=_now(),
            dualform=__version__,
        )
        sealed = _sealed(record)
        if len(sealed) > _MOST_OF_RECORD or any(len(data) > _MOST_OF_FILE for data in files.values()):
            raise StorageError(
                f"cell {key.short} is too large for a store: {len(sealed)} bytes of facts (limit {_MOST_OF_RECORD}), "
                f"files of {', '.join(str(len(data)) for data in files.values())} bytes (limit {_MOST_OF_FILE}). Use "
                "fewer queries."
            )
        with self._storage.lock(key.digest[:2]) as locked:
            cell = self.find(key, verify=True)
            if cell is None:
                for name, data in files.items():
                    self._storage.write(f"{folder}/{_file_name(name, stored[name].sha256)}", data)
                self._storage.write(f"{folder}/{_CELL}", sealed)
                cell = FinishedCell(
                    key.digest, key.identity, record.facts, stored, record.finished, __version__, self._storage
                )
            if locked:
                # No other process writes this cell, so all other files are left from killed writers or damaged cells.
                current = {_CELL} | {_file_name(name, file.sha256) for name, file in cell.files.items()}
                leftover = set(self._storage.sizes(folder)) - current
            else:
                leftover = {_FAILURE}
            for name in leftover:
                with contextlib.suppress(StorageError):
                    self._storage.remove(f"{folder}/{name}")
        return cell

    def fail(self, key: CellKey, failure: dict[str, Any], facts: dict[str, Any] | None = None) -> None:
        """Store why a cell failed, in place of an earlier failure.

        Args:
            key: Key of the cell.
            failure: Plain JSON: message, traceback, lost, attempts.
            facts: Facts for listings of failures, such as model and task.

        Raises:
            StorageError: No space or no permission.
        """
        record = _FailureRecord(
            digest=key.digest,
            identity=key.identity,
            facts=_finite(facts or {}),
            failure=_finite(failure),
            failed=_now(),
            dualform=__version__,
        )
        with self._storage.lock(key.digest[:2]):
            self._storage.write(f"{_folder(key.digest)}/{_FAILURE}", _sealed(record))

    def failure(self, key: CellKey | str) -> dict[str, Any] | None:
        """Why a cell failed; None if it has not failed, or has been computed since."""
        failed = self._failed(_digest(key))
        return None if failed is None else failed.failure

    def piece(self, key: CellKey | str, name: str) -> bytes | None:
        """A finished piece of an unfinished cell; None if it is missing or damaged."""
        try:
            data = self._storage.read(_piece_path(_digest(key), name), _MOST_OF_FILE)
        except FileNotFoundError:
            return None
        except UnexpectedFileError as error:
            self.log(str(error))
            return None
        if data[:64] != hashlib.sha256(data[64:]).hexdigest().encode():
            self.log(f"a piece of cell {_digest(key)[:12]} ({name}) is damaged; it is computed again")
            return None
        return data[64:]

    def keep_piece(self, key: CellKey | str, name: str, data: bytes) -> None:
        """Store a finished piece of a cell, in place of an earlier one with that name.

        Raises:
            StorageError: No space or no permission.
        """
        self._storage.write(_piece_path(_digest(key), name), hashlib.sha256(data).hexdigest().encode() + data)

    def drop_pieces(self, key: CellKey | str) -> None:
        """Remove the pieces of a cell, which are not needed once it is finished."""
        folder = _piece_folder(_digest(key))
        for name in self._storage.sizes(folder):
            self._storage.remove(f"{folder}/{name}")
        self._storage.remove_folder(folder)

    def stale_heartbeat(self, key: CellKey | str) -> str:
        """The last heartbeat of a cell's owner if it was too long ago, else empty; an argument of `claim`."""
        return claims.stale_heartbeat(self._storage, _digest(key))

    def claim(self, key: CellKey | str, stale_heartbeat: str = "") -> CellClaim | None:
        """Claim a cell, so that no other process computes it at the same time.

        The owner of a claim is the process that made it. It renews the claim's heartbeat regularly. If it has stopped
        for long enough, a call by any process takes the claim over.

        Args:
            key: Key of the cell, or its digest.
            stale_heartbeat: What `stale_heartbeat` returned in another process: an owner that still has this heartbeat
                counts as dead at once. Empty to judge by what this process observes.

        Returns:
            The claim, to be released when the cell is stored; None while a live owner, which may be this process, holds
            one. Call `find` again after claiming, because the previous owner may have finished the cell.

        Raises:
            StorageError: The claim could not be written: no space or no permission.
        """
        return claims.take(self._storage, _digest(key), stale_heartbeat)

    def is_claimed(self, key: CellKey | str) -> bool:
        """Whether a live process is computing a cell."""
        return claims.is_claimed(self._storage, _digest(key))

    def cells(self, verify: bool = False) -> Iterator[FinishedCell]:
        """All finished cells, by digest; damaged ones are logged and left out."""
        for digest in self.digests():
            cell = self.find(digest, verify)
            if cell is not None:
                yield cell

    def failures(self) -> Iterator[FailedCell]:
        """All cells that failed and have not been computed since, by digest."""
        for digest in self.digests():
            failed = self._failed(digest)
            if failed is not None:
                yield failed

    def digests(self) -> Iterator[str]:
        """Digests of all cells that have any file, finished or not, in order."""
        for start in self._storage.folders("cells"):
            for digest in self._storage.folders(f"cells/{start}"):
                if _DIGEST.fullmatch(digest) and digest.startswith(start):
                    yield digest

    def damage(self) -> Iterator[DamagedCell]:
        """Read all cells and check their hashes; yields an error, without raising it, for each damaged cell."""
        for digest in self.digests():
            try:
                self.load(digest, verify=True)
            except DamagedCell as error:
                yield error

    def drop(self, key: CellKey | str) -> None:
        """Delete a cell with all its files and pieces, whether it is finished, failed or damaged.

        It then counts as not computed. A process that is reading the cell at this moment gets `DamagedCell`. Claims are
        not released. Nothing happens if there is no such cell.

        Args:
            key: Key of the cell, or its digest.

        Raises:
            StorageError: No permission to delete.
        """
        folder = _folder(_digest(key))
        with self._storage.lock(_digest(key)[:2]):
            # Removed first, so that an interruption leaves an incomplete cell.
            self._storage.remove(f"{folder}/{_CELL}")
            for name in self._storage.sizes(folder):
                self._storage.remove(f"{folder}/{name}")
            self._storage.remove_folder(folder)
            self.drop_pieces(key)

    def log(self, text: str) -> None:
        """Add a line to the store's log, or to Python's logging if there is no log file; each text is logged once."""
        if text in self._logged:
            return
        self._logged.add(text)
        line = plain(redacted(text))
        # A read-only store has no log.
        with contextlib.suppress(StorageError, FileNotFoundError):
            if not self._writable or self._storage.append("log.txt", f"{_now()} {line}"):
                return
        _log.warning("%s: %s", self.redacted_url, line)

    def _failed(self, digest: str) -> FailedCell | None:
        try:
            data = self._storage.read(f"{_folder(digest)}/{_FAILURE}", _MOST_OF_RECORD)
            record = _unsealed(data, _FailureRecord, digest, _FAILURE)
        except FileNotFoundError:
            return None
        except UnexpectedFileError as error:
            self.log(str(error))
            return None
        except DamagedCell as error:
            self.log(f"{error}")
            return None
        if self.find(digest) is not None:
            # The writer of the finished cell was killed before it removed the failure.
            return None
        return FailedCell(digest, record.identity, record.facts, record.failure, record.failed, record.dualform)


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    digest: str
    identity: dict[str, Any]
    facts: dict[str, Any]
    dualform: str


class _FileRecord(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    sha256: str = Field(pattern=r"^[0-9a-f]{64}\z")
    size: int = Field(ge=0)


class _CellRecord(_Record):
    files: dict[str, _FileRecord]
    finished: str


class _FailureRecord(_Record):
    failure: dict[str, Any]
    failed: str


R = TypeVar("R", bound=_Record)
_SEAL = '{\n "checksum": "%s",\n'


def _sealed(record: _Record) -> bytes:
    """JSON whose first entry is the SHA-256 of all bytes after it."""
    body = json.dumps(record.model_dump(by_alias=True), indent=1, allow_nan=False)[2:]
    return (_SEAL % hashlib.sha256(body.encode()).hexdigest() + body).encode()


def _unsealed(data: bytes, kind: type[R], digest: str, name: str) -> R:
    """The record in a file, after checking that it is intact and belongs to the cell."""
    head = len(_SEAL % ("0" * 64))
    if data[:head] != (_SEAL % hashlib.sha256(data[head:]).hexdigest()).encode():
        raise _damaged(digest, f"{name} is truncated or has changed")
    try:
        fields = json.loads(data)
        del fields["checksum"]
        record = kind.model_validate(fields)
        _canonical(fields)  # raises an error for values that dualform would not have written
        belongs = record.digest == CellKey(record.identity).digest == digest
    except (ValidationError, ValueError, TypeError, RecursionError):
        raise _damaged(digest, f"{name} does not follow the schema of this version") from None
    if not belongs:
        raise _damaged(digest, f"{name} belongs to another cell: its identity does not match its folder")
    return record


def _damaged(digest: str, reason: str) -> DamagedCell:
    return DamagedCell(
        f"cell {digest[:12]} is damaged: {plain(reason)}. It counts as missing; the same sweep computes it again."
    )


def _digest(key: CellKey | str) -> str:
    digest = key.digest if isinstance(key, CellKey) else key
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is not a cell's digest of 64 hexadecimal digits.")
    return digest


def _folder(digest: str) -> str:
    return f"cells/{digest[:2]}/{digest}"


def _piece_folder(digest: str) -> str:
    return f"pieces/{digest[:2]}/{digest}"


def _piece_path(digest: str, name: str) -> str:
    return f"{_piece_folder(digest)}/{hashlib.sha256(name.encode()).hexdigest()[:32]}.piece"


def _file_name(name: str, sha256: str) -> str:
    stem, dot, ending = name.rpartition(".")
    return f"{stem}-{sha256[:16]}.{ending}" if dot and stem else f"{name}-{sha256[:16]}"


def _canonical(value: Any) -> bytes:
    """The canonical text of a JSON value: sorted keys, no spaces, ASCII."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {str(name): _finite(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return value


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
