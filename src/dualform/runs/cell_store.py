"""The store of cells: what a sweep has computed, each cell under the hash of everything that determines it.

    cells/ab/abcdef.../cell.json              identity, facts, and the hash of every file; written last
    cells/ab/abcdef.../outcome-0123....bin    files, named for their content
    cells/ab/abcdef.../failure.json           why it failed, until it succeeds
    pieces/ab/abcdef.../0123....piece         finished parts of a cell under way, removed when it is finished
    claims/abcdef....json                     who computes it at the moment
    locks/ab                                  taken while a cell is written (local file systems)
    log.txt                                   what was found damaged and when (local file systems)

A cell counts as finished if its cell.json is whole, belongs to the folder it lies in, and all its files are there; a
writer that dies at any moment leaves a cell that is missing, and whose remains the next writer removes. A finished cell
is never written over, so whoever has found one can read it to the end.
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
"""Bytes of the largest cell.json or failure.json that is read; a usual one has some thousands."""
_MOST_OF_FILE = 2 << 30
"""Bytes of the largest other file."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,99}")


class DamagedCell(StorageError):  # noqa: N818 (the cell is; the message says what of it)
    """A cell that was finished once and no longer holds what was written."""


@dataclass(frozen=True, eq=False)
class CellKey:
    """What determines a cell: equal identities, equal cells.

    Raises:
        ValueError: The identity holds a number that is not finite.
        TypeError: It holds something that JSON does not.
    """

    identity: dict[str, Any]
    """Resolved settings, version, digest of the data, identity of the model: plain JSON."""

    def __post_init__(self) -> None:
        # As it will be read back: tuples are lists, keys are text.
        object.__setattr__(self, "identity", json.loads(_canonical(self.identity)))

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the identity's canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(_canonical(self.identity)).hexdigest()

    @property
    def short(self) -> str:
        """The digest's first 12 digits, for people."""
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
    """What is worth listing: names -> plain JSON."""
    files: dict[str, StoredFile]
    finished: str
    """ISO time, UTC."""
    version: str
    """Of dualform, that wrote it."""
    _storage: Storage = field(repr=False, compare=False)

    def read(self, name: str) -> bytes:
        """Content of one of its files.

        Raises:
            KeyError: It has no such file.
            DamagedCell: The file is missing, or its content is not what was written.
        """
        stored = self.files[name]
        path = f"{_folder(self.digest)}/{_file_name(name, stored.sha256)}"
        try:
            data = self._storage.read(path, stored.size)
        except FileNotFoundError:
            raise _damaged(self.digest, f"{name} is missing") from None
        except UnexpectedFileError:
            raise _damaged(self.digest, f"{name} is larger than what was written") from None
        if hashlib.sha256(data).hexdigest() != stored.sha256:
            raise _damaged(self.digest, f"{name} is not what was written")
        return data


@dataclass(frozen=True)
class FailedCell:
    """A cell that has not succeeded so far."""

    digest: str
    identity: dict[str, Any]
    """Empty where only the digest was known."""
    facts: dict[str, Any]
    failure: dict[str, Any]
    """Message, traceback and what else whoever ran it noted."""
    failed: str
    """ISO time, UTC."""
    version: str


class CellStore:
    """Holds cells at any place that fsspec reaches.

    Args:
        url: A folder, or a URL such as `s3://bucket/store`.
        writable: Make it if need be, and show that it can be written to. Without, nothing is written, not even the log.

    Raises:
        StorageError: The place cannot be opened, or not be written to.
    """

    def __init__(self, url: str | Path, *, writable: bool = True) -> None:
        self._storage = open_storage(url, writable=writable)
        self._writable = writable
        self._logged: set[str] = set()

    @property
    def url(self) -> str:
        """Opens this store from another process too: an absolute path or a URL, credentials included."""
        return self._storage.url

    @property
    def shown(self) -> str:
        """The URL for people, pages and logs: without credentials, on one line."""
        return plain(redacted(self._storage.url))

    @property
    def shared(self) -> bool:
        """Whether other processes see what lies in it."""
        return self._storage.shared

    def find(self, key: CellKey | str, verify: bool = False) -> FinishedCell | None:
        """A finished cell; None if it is missing, half-written or damaged, which the log then tells.

        Args:
            key: Of the cell, or its digest.
            verify: Read all its files and compare their hashes; else their presence and sizes are looked at.

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
            self.log(f"cell {digest[:12]} is half-written: its writer has not finished, or died")
        return cell

    def load(self, key: CellKey | str, verify: bool = False) -> FinishedCell | None:
        """As `find`, but None means that there is no cell.json.

        Raises:
            DamagedCell: There is one, and it or a file of the cell is not what was written.
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
        # Not before: a writer may have put them in place while cell.json was read.
        sizes = self._storage.sizes(folder)
        files = {name: StoredFile(stored.sha256, stored.size) for name, stored in record.files.items()}
        for name, stored in files.items():
            if not _NAME.fullmatch(name):
                raise _damaged(digest, "it lists a file of a name that is not allowed")
            if stored.size > _MOST_OF_FILE:
                raise _damaged(digest, f"{name} is larger than any that dualform writes")
            size = sizes.get(_file_name(name, stored.sha256))
            if size is None:
                raise _damaged(digest, f"{name} is missing")
            if size != stored.size:
                raise _damaged(digest, f"{name} has {size} bytes of {stored.size}")
        cell = FinishedCell(
            digest, record.identity, record.facts, files, record.finished, record.dualform, self._storage
        )
        if verify:
            for name in files:
                cell.read(name)
        return cell

    def write(self, key: CellKey, files: dict[str, bytes], facts: dict[str, Any]) -> FinishedCell:
        """Keep a finished cell.

        Args:
            key: What determines it.
            files: Name -> content. Names are letters, digits, `_`, `-` and `.`, and do not begin with `-` or `.`.
            facts: What is worth listing: names -> plain JSON; numbers that are not finite become None.

        Returns:
            The cell as it lies in the store now: the earlier one, where another writer was first.

        Raises:
            StorageError: No space or no permission; the store is as before.
            ValueError: A name that is not allowed.
        """
        wrong = [name for name in files if not _NAME.fullmatch(name)]
        if wrong:
            raise ValueError(f"files of a cell cannot be called {wrong}: use letters, digits, '_', '-' and '.'.")
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
                f"cell {key.short} is too large for a store: {len(sealed)} bytes of facts (of {_MOST_OF_RECORD}), "
                f"files of {', '.join(str(len(data)) for data in files.values())} bytes (of {_MOST_OF_FILE}). Run "
                "fewer queries at a time."
            )
        with self._storage.lock(key.digest[:2]) as alone:
            there = self.find(key, verify=True)
            if there is None:
                for name, data in files.items():
                    self._storage.write(f"{folder}/{_file_name(name, stored[name].sha256)}", data)
                self._storage.write(f"{folder}/{_CELL}", sealed)
                there = FinishedCell(
                    key.digest, key.identity, record.facts, stored, record.finished, __version__, self._storage
                )
            if alone:
                # Nobody else is writing, so the rest is of those that died, or of a cell that was damaged.
                mine = {_CELL} | {_file_name(name, file.sha256) for name, file in there.files.items()}
                leftover = set(self._storage.sizes(folder)) - mine
            else:
                leftover = {_FAILURE}
            for name in leftover:
                with contextlib.suppress(StorageError):
                    self._storage.remove(f"{folder}/{name}")
        return there

    def fail(self, key: CellKey, failure: dict[str, Any], facts: dict[str, Any] | None = None) -> None:
        """Keep why a cell failed, in place of an earlier failure.

        Args:
            key: Of the cell.
            failure: Plain JSON: message, traceback, lost, attempts.
            facts: What a listing of failures should show beside it, such as model and task.

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
        """Why a cell failed; None if it did not, or has succeeded since."""
        failed = self._failed(_digest(key))
        return None if failed is None else failed.failure

    def piece(self, key: CellKey | str, name: str) -> bytes | None:
        """A finished part of a cell that is not finished itself; None if it is missing or damaged."""
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
        """Keep a finished part of a cell, in place of an earlier one of that name.

        Raises:
            StorageError: No space or no permission.
        """
        self._storage.write(_piece_path(_digest(key), name), hashlib.sha256(data).hexdigest().encode() + data)

    def drop_pieces(self, key: CellKey | str) -> None:
        """Remove the parts of a cell, which its end has made useless."""
        folder = _piece_folder(_digest(key))
        for name in self._storage.sizes(folder):
            self._storage.remove(f"{folder}/{name}")
        self._storage.remove_folder(folder)

    def dead_claim(self, key: CellKey | str) -> str:
        """What `claim` takes as `dead`, where this process has seen no sign of life of a cell's owner for too long."""
        return claims.dead_claim(self._storage, _digest(key))

    def claim(self, key: CellKey | str, dead: str = "") -> CellClaim | None:
        """Take a cell for this process; None while a live owner holds it.

        Another may have finished it just before: look with `find` once more after this.

        Args:
            key: Of the cell.
            dead: What `dead_claim` found in another process; empty if nothing.

        Raises:
            StorageError: No space or no permission.
        """
        return claims.take(self._storage, _digest(key), dead)

    def is_claimed(self, key: CellKey | str) -> bool:
        """Whether a live owner is computing a cell."""
        return claims.is_claimed(self._storage, _digest(key))

    def cells(self, verify: bool = False) -> Iterator[FinishedCell]:
        """All finished cells, by digest; damaged ones are logged and left out."""
        for digest in self.digests():
            cell = self.find(digest, verify)
            if cell is not None:
                yield cell

    def failures(self) -> Iterator[FailedCell]:
        """All cells that failed and have not succeeded since, by digest."""
        for digest in self.digests():
            failed = self._failed(digest)
            if failed is not None:
                yield failed

    def digests(self) -> Iterator[str]:
        """Of all cells of which anything is there, finished or not, in order."""
        for start in self._storage.folders("cells"):
            for digest in self._storage.folders(f"cells/{start}"):
                if _DIGEST.fullmatch(digest) and digest.startswith(start):
                    yield digest

    def damage(self) -> Iterator[DamagedCell]:
        """Read and rehash everything: an error, not raised, for each cell that is not what was written."""
        for digest in self.digests():
            try:
                self.load(digest, verify=True)
            except DamagedCell as error:
                yield error

    def drop(self, key: CellKey | str) -> None:
        """Remove a cell, finished, failed or damaged; a reader at work on it finds it damaged.

        Raises:
            StorageError: No permission.
        """
        folder = _folder(_digest(key))
        with self._storage.lock(_digest(key)[:2]):
            # First, so that what is left of it is a cell half-written, should this be cut short.
            self._storage.remove(f"{folder}/{_CELL}")
            for name in self._storage.sizes(folder):
                self._storage.remove(f"{folder}/{name}")
            self._storage.remove_folder(folder)
            self.drop_pieces(key)

    def log(self, text: str) -> None:
        """Add a line to the store's log, once for each text; where there is no log file, to Python's logging."""
        if text in self._logged:
            return
        self._logged.add(text)
        line = plain(redacted(text))
        # A store that can only be read is read without one.
        with contextlib.suppress(StorageError, FileNotFoundError):
            if not self._writable or self._storage.append("log.txt", f"{_now()} {line}"):
                return
        _log.warning("%s: %s", self.shown, line)

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
            # Its writer died before it could remove the failure.
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
    """JSON whose first entry is the SHA-256 of every byte behind it."""
    body = json.dumps(record.model_dump(by_alias=True), indent=1, allow_nan=False)[2:]
    return (_SEAL % hashlib.sha256(body.encode()).hexdigest() + body).encode()


def _unsealed(data: bytes, kind: type[R], digest: str, name: str) -> R:
    """The record of a cell, shown to be whole and to belong to it."""
    head = len(_SEAL % ("0" * 64))
    if data[:head] != (_SEAL % hashlib.sha256(data[head:]).hexdigest()).encode():
        raise _damaged(digest, f"{name} is truncated or changed")
    try:
        fields = json.loads(data)
        del fields["checksum"]
        record = kind.model_validate(fields)
        _canonical(fields)  # what could not be written must not be passed on either
        right = record.digest == CellKey(record.identity).digest == digest
    except (ValidationError, ValueError, TypeError, RecursionError):
        raise _damaged(digest, f"{name} does not follow the schema of this version") from None
    if not right:
        raise _damaged(digest, f"{name} is another cell's: its identity does not belong to this address")
    return record


def _damaged(digest: str, reason: str) -> DamagedCell:
    return DamagedCell(
        f"cell {digest[:12]} is damaged: {plain(reason)}. It counts as missing; the same sweep computes it again."
    )


def _digest(key: CellKey | str) -> str:
    digest = key.digest if isinstance(key, CellKey) else key
    if not _DIGEST.fullmatch(digest):
        raise ValueError(f"{digest!r} is no digest of a cell: 64 hexadecimal digits are expected.")
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
    """One spelling for each JSON value: sorted keys, no spaces, ASCII."""
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
