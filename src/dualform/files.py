"""Where dualform keeps things on disk, and how it writes them: wholly or not at all."""

import contextlib
import errno
import os
import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualform.errors import StorageError
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
