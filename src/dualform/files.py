"""The cache folder, atomic writes, and reading a user's file with clear error messages."""

import contextlib
import errno
import os
import secrets
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualform.errors import DualformError, StorageError
from dualform.plain_text import plain


def cache_dir() -> Path:
    """Folder for converted models and packaged data, created if needed: `$DUALFORM_CACHE`, else `~/.cache/dualform`.

    Raises:
        StorageError: The folder cannot be created or written to.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualform"
    folder = Path(os.environ.get("DUALFORM_CACHE") or default)
    return writable_dir(folder, remedy="Set DUALFORM_CACHE to a folder that you may write to.")


def writable_dir(folder: Path, remedy: str) -> Path:
    """`folder`, created if needed and tested by writing to it.

    Args:
        folder: The folder.
        remedy: Last sentence of the error message.

    Raises:
        StorageError: The folder cannot be created or written to.
    """
    with explain_storage_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits are not enough (root, read-only mounts, quotas); only a write shows it.
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def atomic_write(path: Path, remedy: str = "Free some space or choose another folder.") -> Iterator[Path]:
    """Context that yields a temporary path in the same folder and renames it to `path` at the end.

    The data are synced before the rename, so a reader sees the old file or the new one, never a part of it. If the
    block raises, the temporary file is removed and `path` is unchanged.

    Raises:
        StorageError: The disk is full or not writable.
    """
    # Threads, and machines with a shared file system, may have equal process ids, hence the random suffix. The name is
    # cut because file names have a maximum length.
    temporary = path.with_name(f".{path.name[:150]}.{os.getpid()}-{secrets.token_hex(4)}.tmp")
    try:
        with explain_storage_errors(path, remedy):
            yield temporary
            descriptor = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, path)
    finally:
        # If the file cannot be removed, it could not be created either.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def explain_storage_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn errors of the operating system into a `StorageError` with the path, the reason and the remedy."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "permission denied",
        errno.EPERM: "operation not permitted",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of the path is a file",
        errno.ENOENT: "a folder of the path does not exist",
        errno.EEXIST: "a file of that name exists",
        errno.EISDIR: "a folder of that name exists",
        errno.ENOTEMPTY: "a folder of that name exists",
        errno.ENAMETOOLONG: "the name is too long for this file system",
        errno.ELOOP: "the path contains a circular symbolic link",
        errno.EIO: "the disk or network reported an input/output error",
        errno.ESTALE: "the network file system lost the file",
        errno.EFBIG: "the file would be larger than this file system allows",
        errno.EBUSY: "the file is in use",
        errno.EMFILE: "too many files are open",
        errno.ENFILE: "too many files are open",
        errno.EINVAL: "the file system does not accept such a name",
    }
    try:
        yield
    except OSError as error:
        if error.errno not in reasons:
            raise
        raise StorageError(f"cannot write {plain(str(path))}: {reasons[error.errno]}. {remedy}") from error
    except ValueError as error:
        # Python rejects names with a null character or half of a surrogate pair itself.
        named = isinstance(error, UnicodeEncodeError) or "null" in str(error)
        if not named or set(str(path)).isdisjoint({"\0", *map(chr, range(0xD800, 0xE000))}):
            raise
        raise StorageError(
            f"cannot write {plain(str(path))}: the name contains a character that no file system accepts. {remedy}"
        ) from error


_READING = {
    errno.ENOENT: ("does not exist", "Check the path."),
    errno.ENOTDIR: ("does not exist: a part of the path is a file", "Check the path."),
    errno.EACCES: ("cannot be read: permission denied", "Make it readable, or copy it."),
    errno.EPERM: ("cannot be read: operation not permitted", "Make it readable, or copy it."),
    errno.ELOOP: ("cannot be read: its symbolic links are circular", "Give the file itself."),
    errno.ENAMETOOLONG: ("cannot be read: the name is too long for this file system", "Check the path."),
    errno.EISDIR: ("is a folder, not a file", "Name a file in it."),
}
_LONGEST_PATH_SHOWN = 200


def show_path(path: Path | str) -> str:
    """`path` for a message: on one line, and abbreviated in the middle if it is very long."""
    text = plain(str(path))
    half = _LONGEST_PATH_SHOWN // 2
    return text if len(text) <= _LONGEST_PATH_SHOWN else f"{text[:half]}...{text[-half:]}"


def expand_home(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` or `~user` replaced; unchanged if there is no such user."""
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def read_bytes(path: Path, most: int, error: type[DualformError], remedy: str = "") -> bytes:
    """The content of a regular file.

    Devices and pipes are rejected without opening them, because some never end and others wait for a writer.

    Args:
        path: The file.
        most: Largest size, bytes.
        error: Class of the exception.
        remedy: Last sentence of the message about a file that is too large.

    Raises:
        DualformError: Of class `error`: the file is missing, not a regular file, too large or unreadable.
    """
    name = show_path(path)
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(status.st_mode):
            raise error(f"{name} is not a regular file but {_kind_of(status.st_mode)}. Save its content to a file.")
        if status.st_size > most:
            raise error(f"{name} has {status.st_size:,} bytes; the maximum is {most:,}. {remedy}".rstrip())
        with path.open("rb") as file:
            # One extra byte shows whether the file has grown, or has an unknown size, as under /proc.
            content = file.read(status.st_size + 1)
            if len(content) > status.st_size:
                content += file.read(most + 1 - len(content))
    except OSError as fault:
        what, then = _READING.get(fault.errno or 0, (f"cannot be read: {fault.strerror or fault}", "Check the file."))
        raise error(f"{name} {what}. {then}") from fault
    except ValueError as fault:
        # A NUL in the name.
        raise error(f"{name} cannot be a path: {plain(str(fault))}. Check the path.") from fault
    if len(content) > most:
        raise error(f"{name} has more than {most:,} bytes, which is what is read at most. {remedy}".rstrip())
    return content


def _kind_of(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((kind for test, kind in kinds if test(mode)), "a device")
