"""Where dualform keeps things on disk, how it writes them (wholly or not at all), and how it reads a user's file."""

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
    """Folder for converted models and packaged data: `$DUALFORM_CACHE`, else `~/.cache/dualform`.

    Returns:
        An existing, writable folder.

    Raises:
        StorageError: The folder cannot be made or written to.
    """
    default = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dualform"
    folder = Path(os.environ.get("DUALFORM_CACHE") or default)
    return writable_dir(folder, remedy="Set DUALFORM_CACHE to a folder that you may write to.")


def writable_dir(folder: Path, remedy: str) -> Path:
    """`folder`, made if needed and shown to be writable by writing to it.

    Raises:
        StorageError: It cannot be made or written to; `remedy` ends the message.
    """
    with explain_storage_errors(folder, remedy):
        folder.mkdir(parents=True, exist_ok=True)
        # Permission bits do not tell (root, read-only mounts, quotas): only a write does.
        with tempfile.TemporaryFile(dir=folder):
            pass
    return folder


@contextmanager
def atomic_write(path: Path, remedy: str = "Free some space or choose another folder.") -> Iterator[Path]:
    """A temporary path beside `path`, which takes its name when the block ends well.

    The data are synced before the rename, so a reader sees the old file or the new one, never a part. When the
    block raises, the temporary file is removed and `path` is as before.

    Raises:
        StorageError: The disk is full or not writable.
    """
    # Machines that share a file system, and threads, have equal process ids; a long name must leave room for the rest.
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
        # Whatever keeps the temporary file from being removed has kept it from being made.
        with contextlib.suppress(OSError):
            temporary.unlink()


@contextmanager
def explain_storage_errors(path: Path, remedy: str) -> Iterator[None]:
    """Turn the operating system's refusals into a StorageError that names the path and the remedy."""
    reasons = {
        errno.ENOSPC: "the disk is full",
        errno.EDQUOT: "the disk quota is used up",
        errno.EACCES: "permission denied",
        errno.EPERM: "operation not permitted",
        errno.EROFS: "the file system is read-only",
        errno.ENOTDIR: "a part of the path is a file",
        errno.ENOENT: "a folder on the way does not exist",
        errno.EEXIST: "a file of that name is in the way",
        errno.EISDIR: "a folder of that name is in the way",
        errno.ENOTEMPTY: "a folder of that name is in the way",
        errno.ENAMETOOLONG: "the name is too long for this file system",
        errno.ELOOP: "a symbolic link on the way leads back to itself",
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
        # A name with a null character, or with half of a surrogate pair, reaches no file system at all.
        named = isinstance(error, UnicodeEncodeError) or "null" in str(error)
        if not named or set(str(path)).isdisjoint({"\0", *map(chr, range(0xD800, 0xE000))}):
            raise
        raise StorageError(
            f"cannot write {plain(str(path))}: the name holds a character that no file system accepts. {remedy}"
        ) from error


_READING = {
    errno.ENOENT: ("is not there", "Check the path."),
    errno.ENOTDIR: ("is not there: a part of the path is a file", "Check the path."),
    errno.EACCES: ("cannot be read: permission denied", "Make it readable, or copy it."),
    errno.EPERM: ("cannot be read: operation not permitted", "Make it readable, or copy it."),
    errno.ELOOP: ("cannot be read: its symbolic links lead in a circle", "Give the file itself."),
    errno.ENAMETOOLONG: ("cannot be read: the name is too long for this file system", "Check the path."),
    errno.EISDIR: ("is a folder, not a file", "Name a file in it."),
}
_LONGEST_PATH_SHOWN = 200


def show_path(path: Path | str) -> str:
    """`path` for a message: on one line, the middle left out where it is very long."""
    text = plain(str(path))
    half = _LONGEST_PATH_SHOWN // 2
    return text if len(text) <= _LONGEST_PATH_SHOWN else f"{text[:half]}...{text[-half:]}"


def expand_home(path: str | os.PathLike[str]) -> Path:
    """`path` with a leading `~` or `~user` replaced; unchanged where there is no such user."""
    given = Path(path)
    try:
        return given.expanduser()
    except RuntimeError:
        return given


def read_bytes(path: Path, most: int, error: type[DualformError], remedy: str = "") -> bytes:
    """The content of a regular file.

    Devices and pipes are refused before they are opened: some never end, and others wait for a writer.

    Args:
        path: The file.
        most: Largest size, bytes.
        error: What to raise.
        remedy: What to do about a larger file; ends the message.

    Returns:
        All bytes.

    Raises:
        DualformError: Of class `error`: the file is missing, not a regular file, too large or unreadable.
    """
    shown = show_path(path)
    try:
        found = path.stat()
        if stat.S_ISDIR(found.st_mode):
            raise IsADirectoryError(errno.EISDIR, "is a directory")
        if not stat.S_ISREG(found.st_mode):
            raise error(f"{shown} is not a regular file but {_kind_of(found.st_mode)}. Save its content to a file.")
        if found.st_size > most:
            raise error(f"{shown} has {found.st_size:,} bytes; at most {most:,} are read. {remedy}".rstrip())
        with path.open("rb") as file:
            # One byte more than there should be: the file may have grown, and under /proc sizes are 0.
            content = file.read(found.st_size + 1)
            if len(content) > found.st_size:
                content += file.read(most + 1 - len(content))
    except OSError as fault:
        what, then = _READING.get(fault.errno or 0, (f"cannot be read: {fault.strerror or fault}", "Check the file."))
        raise error(f"{shown} {what}. {then}") from fault
    except ValueError as fault:
        # A NUL in the name.
        raise error(f"{shown} cannot be a path: {plain(str(fault))}. Check the path.") from fault
    if len(content) > most:
        raise error(f"{shown} has more than {most:,} bytes, which is what is read at most. {remedy}".rstrip())
    return content


def _kind_of(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a named pipe"), (stat.S_ISSOCK, "a socket"))
    return next((kind for test, kind in kinds if test(mode)), "a device")
