"""One-line messages for errors of the operating system that were not handled elsewhere.

Most are handled, with messages of their own, where files are read and written. Those that reach a command (a name that
is too long for the file system, a folder in place of a file, a failing disk) are not errors of the program.
"""

import errno
import sys

from dualform.plain_text import plain

_REFUSALS = {
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.EROFS: "the file system is read-only",
    errno.ENAMETOOLONG: "the name is too long for this file system",
    errno.ELOOP: "its symbolic links lead in a circle",
    errno.EISDIR: "it is a folder, not a file",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EIO: "the disk could not be read or written",
    errno.EFBIG: "the file is larger than this file system allows",
    errno.EMFILE: "too many files are open",
    errno.ENFILE: "too many files are open on this machine",
}


def refusal(error: BaseException) -> str | None:
    """The message for an error caused by the operating system; None for an error of the program."""
    if isinstance(error, MemoryError):
        return "this machine has too little memory for this command. Reduce its size, or use a larger machine."
    if isinstance(error, OSError) and error.errno in _REFUSALS:
        name = plain(str(error.filename))[:200] if error.filename is not None else "a file"
        return f"{name} cannot be used: {_REFUSALS[error.errno]}. Check the path, or choose another."
    return None


def unreadable_argument(arguments: list[str] | None = None) -> str | None:
    """The message for a command line with an argument that is not text, or None.

    Bytes that are not UTF-8 reach Python as lone surrogates, which no file of results can hold.
    """
    for argument in sys.argv[1:] if arguments is None else arguments:
        if any("\ud800" <= character <= "\udfff" for character in argument):
            return f"the argument {plain(argument)[:200]!r} is not UTF-8 text. Write it in UTF-8."
    return None
