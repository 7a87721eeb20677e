"""Storage of a store's files: a folder of this machine, or any file system that fsspec supports.

Writes are atomic: on a local file system by a temporary file, sync and rename, and in a bucket because an object
appears when its upload is complete. Only local files are renamed.
"""

import contextlib
import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

from dualform.errors import ConfigError, DualformError, StorageError
from dualform.files import atomic_write, explain_storage_errors, writable_dir
from dualform.plain_text import plain
from dualform.redaction import redacted

_REMEDY = "Free some space or choose another store with --store."
_LOCK_SECONDS = 60.0


class UnexpectedFileError(StorageError):
    """A file that no store contains: larger than the limit, or a device or pipe."""


class Storage(Protocol):
    """Files below a root, addressed by relative paths with forward slashes."""

    url: str
    """Absolute path or URL of the root. It may contain credentials, so print or store only its `redacted` form."""
    local: bool
    shared: bool
    """Whether other processes can access the same files."""

    def read(self, path: str, limit: int) -> bytes:
        """Content of a file.

        Args:
            path: Path of the file.
            limit: Largest size in bytes that is read.

        Raises:
            FileNotFoundError: The file does not exist.
            UnexpectedFileError: It is larger than `limit`, or not a regular file.
            StorageError: It exists but cannot be read.
        """

    def write(self, path: str, data: bytes) -> None:
        """Write a file atomically, and create its folders.

        Raises:
            StorageError: No space, no permission.
        """

    def create(self, path: str, data: bytes) -> bool:
        """Write a file unless it exists; returns whether it was written. Reliable only on local file systems."""

    def remove(self, path: str) -> None:
        """Remove a file if it exists."""

    def remove_folder(self, path: str) -> None:
        """Remove a folder if it is empty."""

    def sizes(self, folder: str) -> dict[str, int]:
        """Size in bytes of each file directly in a folder, by name; empty if the folder does not exist."""

    def folders(self, folder: str) -> list[str]:
        """Sorted names of the folders directly in a folder; empty if the folder does not exist."""

    def lock(self, name: str) -> AbstractContextManager[bool]:
        """Hold an exclusive lock in the block; the value is False if locks are not available."""

    def append(self, path: str, line: str) -> bool:
        """Add a line to a text file; returns False if the storage cannot append."""


def open_storage(url: str | Path, *, writable: bool) -> Storage:
    """The storage at a path or URL.

    Args:
        url: A path or URL, such as `runs/store`, `file:///data/store`, `memory://store` or `s3://bucket/store`.
        writable: Create the folder if it does not exist, and check that it can be written to.

    Raises:
        ConfigError: No installed package supports the URL, or it is invalid.
        StorageError: The storage cannot be reached or written to.
    """
    text = str(url)
    if "://" not in text:
        return _Local(Path(text), writable=writable)
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]
    from fsspec.implementations.local import LocalFileSystem  # type: ignore[import-untyped]

    try:
        system, path = url_to_fs(text)
    except OSError as error:
        raise StorageError(f"cannot reach the store {_redacted_path(text)}: {_reason(error)}.") from error
    except ImportError as error:
        raise ConfigError(
            f"cannot open the store {_redacted_path(text)}: {_reason(error)}. Install that package."
        ) from error
    except Exception as error:
        # Each file system of fsspec has its own exceptions.
        raise ConfigError(
            f"cannot open the store {_redacted_path(text)}: {_reason(error)}. Give a folder or a URL that fsspec "
            "supports."
        ) from error
    if isinstance(system, LocalFileSystem):
        return _Local(Path(path), writable=writable)
    return _Remote(text, system, path, writable=writable)


class _Local:
    local = True
    shared = True

    def __init__(self, folder: Path, *, writable: bool) -> None:
        self._folder = folder.expanduser().absolute()
        self.url = str(self._folder)
        if writable:
            with _explained(self._folder):
                writable_dir(self._folder, _REMEDY)

    def read(self, path: str, limit: int) -> bytes:
        target = self._folder / path
        with _explained(target, "read"):
            try:
                # Checked before opening, because opening a pipe would block.
                if not stat.S_ISREG(target.stat().st_mode):
                    raise UnexpectedFileError(f"cannot read {plain(str(target))}: it is not a regular file.")
                with target.open("rb") as file:
                    return _within_limit(limit, file.read(limit + 1), str(target))
            except NotADirectoryError as error:
                raise FileNotFoundError(*error.args) from error

    def write(self, path: str, data: bytes) -> None:
        target = self._folder / path
        with _explained(target):
            with explain_storage_errors(target, _REMEDY):
                target.parent.mkdir(parents=True, exist_ok=True)
            with atomic_write(target, _REMEDY) as temporary:
                temporary.write_bytes(data)

    def create(self, path: str, data: bytes) -> bool:
        target = self._folder / path
        temporary = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
        with _explained(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                temporary.write_bytes(data)
                return _link(temporary, target, data)
            finally:
                with contextlib.suppress(OSError):
                    temporary.unlink()

    def remove(self, path: str) -> None:
        with _explained(self._folder / path, "remove"), contextlib.suppress(FileNotFoundError, NotADirectoryError):
            (self._folder / path).unlink()

    def remove_folder(self, path: str) -> None:
        with contextlib.suppress(OSError):
            (self._folder / path).rmdir()

    def sizes(self, folder: str) -> dict[str, int]:
        sizes = {}
        for entry in self._entries(folder):
            # Another process may have removed it since, for example a temporary file.
            with contextlib.suppress(FileNotFoundError):
                if entry.is_file():
                    sizes[entry.name] = entry.stat().st_size
        return sizes

    def folders(self, folder: str) -> list[str]:
        return sorted(entry.name for entry in self._entries(folder) if entry.is_dir())

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        # A lock of the kernel, which is released when its process ends in any way.
        path = self._folder / "locks" / name
        try:
            import fcntl
        except ImportError:  # not on Windows
            yield False
            return
        with _explained(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            except PermissionError:  # the file belongs to another user
                descriptor = -1
        if descriptor < 0:
            yield False
            return
        held = False
        try:
            held = _wait_for(lambda: fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB))
            yield held
        finally:
            if held:
                # Unlocked explicitly, because a process forked meanwhile has inherited the file and the lock.
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)

    def append(self, path: str, line: str) -> bool:
        with _explained(self._folder / path), (self._folder / path).open("ab") as file:
            file.write(line.encode("utf-8", "backslashreplace") + b"\n")
        return True

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        with _explained(self._folder / folder, "read"):
            try:
                with os.scandir(self._folder / folder) as entries:
                    return list(entries)
            except (FileNotFoundError, NotADirectoryError):
                return []


class _Remote:
    local = False

    def __init__(self, url: str, system: Any, root: str, *, writable: bool) -> None:
        self.url = url
        self.shared = not _in_memory(system)
        self._system = system
        self._root = root.rstrip("/")
        if writable:
            probe = f".written-{secrets.token_hex(8)}"
            self.write(probe, b"")
            self.remove(probe)

    def read(self, path: str, limit: int) -> bytes:
        with _explained(self._at(path), "read"):
            # Some buckets reject a range of an empty object, but no file of a store is empty.
            data = bytes(self._system.cat_file(self._at(path), end=limit + 1)) if limit else b""
            return _within_limit(limit, data, self._at(path))

    def write(self, path: str, data: bytes) -> None:
        with _explained(self._at(path)):
            self._make_parent(path)
            self._system.pipe_file(self._at(path), data)

    def create(self, path: str, data: bytes) -> bool:
        with _explained(self._at(path)):
            self._make_parent(path)
            self._system.invalidate_cache()
            try:
                self._system.pipe_file(self._at(path), data, mode="create")
            except FileExistsError:
                return False
        return True

    def remove(self, path: str) -> None:
        with _explained(self._at(path), "remove"), contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._at(path))

    def remove_folder(self, path: str) -> None:
        with contextlib.suppress(OSError):
            self._system.rmdir(self._at(path))

    def sizes(self, folder: str) -> dict[str, int]:
        entries = self._entries(folder)
        return {_name(entry): int(entry["size"] or 0) for entry in entries if entry["type"] == "file"}

    def folders(self, folder: str) -> list[str]:
        return sorted(_name(entry) for entry in self._entries(folder) if entry["type"] == "directory")

    def lock(self, name: str) -> AbstractContextManager[bool]:
        return contextlib.nullcontext(False)

    def append(self, path: str, line: str) -> bool:
        return False

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}"

    def _make_parent(self, path: str) -> None:
        # Needed for file systems with folders, such as sftp, and not for buckets.
        self._system.makedirs(self._at(path).rpartition("/")[0], exist_ok=True)

    def _entries(self, folder: str) -> list[dict[str, Any]]:
        with _explained(self._at(folder), "read"):
            self._system.invalidate_cache()
            try:
                return list(self._system.ls(self._at(folder), detail=True))
            except (FileNotFoundError, NotADirectoryError):
                return []


def _name(entry: dict[str, Any]) -> str:
    return str(entry["name"]).rstrip("/").rpartition("/")[2]


@contextmanager
def _explained(path: Path | str, action: str = "write") -> Iterator[None]:
    """Raise all errors of the operating system or a bucket as StorageError, see `explain_storage_errors`."""
    try:
        if action == "write":
            with explain_storage_errors(Path(path), _REMEDY):
                yield
        else:
            yield
    except DualformError:
        raise
    except Exception as error:
        if action != "write" and isinstance(error, FileNotFoundError):
            raise
        # The clients of buckets and servers have their own exceptions, few of which are OSErrors.
        raise StorageError(f"cannot {action} {_redacted_path(str(path))}: {_reason(error)}. {_REMEDY}") from error


def _within_limit(limit: int, data: bytes, path: str) -> bytes:
    if len(data) > limit:
        raise UnexpectedFileError(f"cannot read {_redacted_path(path)}: it has more than {limit} bytes.")
    return data


def _in_memory(system: Any) -> bool:
    """Whether a file system, or the one that it wraps, is in the memory of this process."""
    from fsspec.implementations.memory import MemoryFileSystem  # type: ignore[import-untyped]

    while system is not None:
        if isinstance(system, MemoryFileSystem):
            return True
        system = getattr(system, "fs", None)
    return False


def _reason(error: BaseException) -> str:
    """The message of an error on one line, without credentials."""
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    # Clients quote the path and query of a URL without its scheme, which `redacted` would not recognise.
    return plain(re.sub(r"\?[^\s'\"<>)]+", "?***", redacted(" ".join(str(text).split())))).rstrip(".")


def _redacted_path(path: str) -> str:
    return plain(redacted(path))


def _link(temporary: Path, target: Path, data: bytes) -> bool:
    """Give a complete file its name unless the name is taken; hard links are exclusive on NFS too."""
    try:
        os.link(temporary, target)
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK):
            raise
        # Without hard links, a reader that holds no lock may see an empty file.
        try:
            with target.open("xb") as file:
                file.write(data)
        except FileExistsError:
            return False
    return True


def _wait_for(acquire: Any) -> bool:
    """Whether a lock could be acquired within `_LOCK_SECONDS`; False if the file system has no locks."""
    until = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            acquire()
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(0.02)
        except OSError:
            return False
        else:
            return True
