"""Decode text files, with error messages that name the actual format or encoding and how to convert it."""

import gzip
import io
import os
import re
import shlex
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dualform.errors import DualformError, TaskError
from dualform.files import read_bytes, show_path
from dualform.plain_text import plain

LIMIT_VARIABLE = "DUALFORM_MAX_TABLE_BYTES"
MOST_BYTES = 1 << 28
"""Default limit on the uncompressed size of a file, in bytes."""

_MARKS = (
    (b"\xef\xbb\xbf", "utf-8-sig"),
    (b"\xff\xfe\x00\x00", "utf-32"),
    (b"\x00\x00\xfe\xff", "utf-32"),
    (b"\xff\xfe", "utf-16"),
    (b"\xfe\xff", "utf-16"),
)
_OTHER_FORMATS = (
    (b"\x89PNG", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF8", "a GIF image"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "an Excel workbook or another zip archive"),
    (b"\xd0\xcf\x11\xe0", "an old Excel workbook"),
    (b"\x1f\x8b", "packed with gzip"),
    (b"BZh", "packed with bzip2"),
    (b"\xfd7zXZ", "packed with xz"),
    (b"\x28\xb5\x2f\xfd", "packed with zstd"),
    (b"PAR1", "Parquet"),
    (b"ARROW1", "Arrow"),
    (b"SQLite format 3", "a SQLite database"),
    (b"\x93NUMPY", "a NumPy array"),
    (b"\x7fELF", "a program"),
)
_PLACEHOLDERS = (
    (b"version https://git-lfs", "a Git LFS pointer to the file, not the file itself", "Fetch it: git lfs pull"),
    (b"<!doctype html", "a web page", "Download the file itself, not the page that shows it"),
    (b"<html", "a web page", "Download the file itself, not the page that shows it"),
)
_UNDEFINED_IN_1252 = re.compile(rb"[\x81\x8d\x8f\x90\x9d]")
_SIZE = re.compile(r"(\d+)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def most_bytes() -> int:
    """Largest table that is read, in uncompressed bytes: `$DUALFORM_MAX_TABLE_BYTES`, else 256 MiB.

    Raises:
        TaskError: The variable is not a size.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return MOST_BYTES
    match = _SIZE.fullmatch(given.strip())
    if match is None or len(match[1]) > 18:
        raise TaskError(f"${LIMIT_VARIABLE} is {plain(given[:80])!r}, which is not a size. Give one such as 2GiB.")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def size_remedy() -> str:
    """What to do about a table that is too large."""
    return f"Give fewer rows, or raise the limit with {LIMIT_VARIABLE}, for example to 2GiB."


@contextmanager
def parsing(path: Path, format: str) -> Iterator[None]:
    """Context in which every exception of a parser becomes a `TaskError` with the file and the cause, on one line.

    Args:
        path: The file.
        format: Name of the expected format, for the message.

    Raises:
        TaskError: The parser raised an exception.
    """
    try:
        yield
    except DualformError:
        raise
    except MemoryError:
        raise TaskError(f"{show_path(path)} does not fit into memory. {size_remedy()}") from None
    except RecursionError:
        raise TaskError(f"{show_path(path)} is nested too deeply to be read as {format}. Flatten it.") from None
    # Parsers raise many types: OSError, ValueError, OverflowError, KeyError and their own.
    except Exception as error:
        lines = plain(str(error), lines=True).split("\n")
        cause = (lines[0].strip() or type(error).__name__)[:200].rstrip(".")
        raise TaskError(
            f"{show_path(path)} cannot be read as {format}: {cause}. It may be damaged or in another format; create "
            "it again."
        ) from error


def read_text(path: Path, format: str) -> str:
    """The text of a file, decompressed if its name ends in `.gz`.

    The encoding is UTF-8, or UTF-16 or UTF-32 with a byte-order mark.

    Args:
        path: The file.
        format: Name of the expected format, for messages.

    Raises:
        TaskError: The file is missing, unreadable, too large, or not text in one of these encodings.
    """
    most = most_bytes()
    content = read_bytes(path, most, TaskError, size_remedy())
    if path.suffix.lower() == ".gz":
        with parsing(path, "gzip"):
            content = unpack(content, most, path)
    return decode(content, path, format)


def require_data(content: bytes, path: Path, format: str) -> None:
    """Raise `TaskError` for the placeholders that failed downloads leave, such as a Git LFS pointer or a web page."""
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what, remedy in _PLACEHOLDERS:
        if start.startswith(mark):
            raise TaskError(f"{show_path(path)} is {what}, not {format}. {remedy}.")


def unpack(content: bytes, most: int, path: Path) -> bytes:
    """Decompress gzip data.

    Raises:
        TaskError: The data are damaged, or larger than `most` bytes.
    """
    try:
        # Limited while decompressing: a few kilobytes can expand to gigabytes.
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(most + 1)
    except gzip.BadGzipFile as error:
        if not content.startswith(b"\x1f\x8b"):
            raise TaskError(
                f"{show_path(path)} is not compressed with gzip, though its name ends in .gz. Remove .gz from its name."
            ) from error
        raise TaskError(f"{show_path(path)} is damaged: {plain(str(error))}. Compress it again.") from error
    except (EOFError, zlib.error) as error:
        raise TaskError(f"{show_path(path)} is damaged: {plain(str(error))}. Compress it again.") from error
    if len(unpacked) > most:
        raise TaskError(f"{show_path(path)} decompresses to more than {most:,} bytes. {size_remedy()}")
    return unpacked


def decode(content: bytes, path: Path, format: str) -> str:
    """Decode the content of a text file.

    Raises:
        TaskError: The content has another format or encoding. The message gives a command that converts it.
    """
    name = show_path(path)
    require_data(content, path, format)
    encoding = next((encoding for mark, encoding in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        other = next((what for mark, what in _OTHER_FORMATS if content.startswith(mark)), None)
        if other is not None:
            raise TaskError(f"{name} is {other}, not {format}. Save its rows as {format} in UTF-8.")
        if b"\x00" in content:
            raise TaskError(_with_nul(content, path, format))
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding not in (None, "utf-8-sig"):
            raise TaskError(
                f"{name} begins as {str(encoding).upper()} but is damaged at byte {error.start}. Save it as UTF-8."
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        read = content.decode("utf-8", "surrogateescape")
        broken = sum("\udc80" <= character <= "\udcff" for character in read)
        if sum(character > "\x7f" for character in read) > 2 * broken:
            raise TaskError(
                f"{name} is UTF-8, but byte 0x{content[error.start]:02x} in line {line} is not part of a valid "
                f"character ({broken} such bytes in total). Correct that place; converting the whole file would damage "
                "the rest."
            ) from None
        raise TaskError(
            f"{name} is not UTF-8: byte 0x{content[error.start]:02x} in line {line} is not part of a valid character. "
            f"{_conversion(content, path)}"
        ) from None


def _with_nul(content: bytes, path: Path, format: str) -> str:
    start = content[:4096]
    odd, even = start[1::2].count(0), start[::2].count(0)
    half = max(1, len(start) // 4)
    if max(odd, even) > half > min(odd, even):
        encoding = "UTF-16LE" if odd > even else "UTF-16BE"
        return f"{show_path(path)} is {encoding} without a byte-order mark. Convert it: {_iconv(encoding, path)}"
    line = content.count(b"\n", 0, content.index(b"\x00")) + 1
    return (
        f"{show_path(path)} is not {format} text: line {line} contains a NUL byte. Create it again in UTF-8, without "
        "NUL bytes."
    )


def _conversion(content: bytes, path: Path) -> str:
    # Excel and old corpora use Windows-1252; bytes that it does not define mean another encoding.
    name = "LATIN1" if _UNDEFINED_IN_1252.search(content) else "WINDOWS-1252"
    return (
        f"If it is {name.title().replace('Latin1', 'Latin-1')}, as Excel writes on Western systems, convert it: "
        f"{_iconv(name, path)} (otherwise replace {name} by the actual encoding)."
    )


def _iconv(name: str, path: Path) -> str:
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    quoted = (shlex.quote(plain(str(file))) for file in (path, target))
    return "iconv -f {} -t UTF-8 {} > {}".format(name, *quoted)
