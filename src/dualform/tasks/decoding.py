"""The bytes of a text file as text, or a message that says what they are and how to convert them."""

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
"""Bytes of data that one file may hold, unpacked."""

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
    """Largest table that is read, in bytes of data: `$DUALFORM_MAX_TABLE_BYTES`, else 256 MiB.

    Raises:
        TaskError: The variable holds no size.
    """
    given = os.environ.get(LIMIT_VARIABLE)
    if not given:
        return MOST_BYTES
    match = _SIZE.fullmatch(given.strip())
    if match is None or len(match[1]) > 18:
        raise TaskError(f"${LIMIT_VARIABLE} is {plain(given[:80])!r}, which is no size. Give one such as 2GiB.")
    return int(match[1]) << 10 * " KMGT".index(match[2].upper() or " ")


def larger() -> str:
    """The remedy where a table is too large."""
    return f"Give fewer rows, or raise the limit with {LIMIT_VARIABLE}, such as 2GiB."


@contextmanager
def parsing(path: Path, format: str) -> Iterator[None]:
    """A block in which a file's content is parsed: whatever the parser raises becomes one message.

    Raises:
        TaskError: Names the file and the cause, in one line.
    """
    try:
        yield
    except DualformError:
        raise
    except MemoryError:
        raise TaskError(f"{show_path(path)} does not fit into memory. {larger()}") from None
    except RecursionError:
        raise TaskError(f"{show_path(path)} is nested too deeply to be read as {format}. Flatten it.") from None
    # Parsers raise whatever they stumble on: OSError, ValueError, OverflowError, KeyError, exceptions of their own.
    except Exception as error:
        lines = plain(str(error), lines=True).split("\n")
        cause = (lines[0].strip() or type(error).__name__)[:200].rstrip(".")
        raise TaskError(
            f"{show_path(path)} cannot be read as {format}: {cause}. It may be damaged or of another format: write "
            "it again."
        ) from error


def read_text(path: Path, format: str) -> str:
    """The text of a file, unpacked where its name ends in `.gz`.

    UTF-8, or UTF-16 and UTF-32 with a byte-order mark.

    Args:
        path: The file.
        format: What it should be, for messages.

    Raises:
        TaskError: The file is missing, unreadable, too large, or no such text.
    """
    most = most_bytes()
    content = read_bytes(path, most, TaskError, larger())
    if path.suffix.lower() == ".gz":
        with parsing(path, "gzip"):
            content = unpack(content, most, path)
    return decode(content, path, format)


def require_data(content: bytes, path: Path, format: str) -> None:
    """Raise `TaskError` for what stands in a file's place where a download went wrong."""
    start = content[:64].removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for mark, what, remedy in _PLACEHOLDERS:
        if start.startswith(mark):
            raise TaskError(f"{show_path(path)} is {what}, not {format}. {remedy}.")


def unpack(content: bytes, most: int, path: Path) -> bytes:
    """Data packed with gzip.

    Raises:
        TaskError: They are damaged, or more than `most` bytes.
    """
    try:
        # Bounded while it is unpacked: a few kilobytes can hold gigabytes.
        with gzip.GzipFile(fileobj=io.BytesIO(content)) as file:
            unpacked = file.read(most + 1)
    except gzip.BadGzipFile as error:
        if not content.startswith(b"\x1f\x8b"):
            raise TaskError(
                f"{show_path(path)} is not packed with gzip, though its name ends in .gz. Take .gz off its name."
            ) from error
        raise TaskError(f"{show_path(path)} is damaged: {plain(str(error))}. Pack it again.") from error
    except (EOFError, zlib.error) as error:
        raise TaskError(f"{show_path(path)} is damaged: {plain(str(error))}. Pack it again.") from error
    if len(unpacked) > most:
        raise TaskError(f"{show_path(path)} unpacks to more than {most:,} bytes. {larger()}")
    return unpacked


def decode(content: bytes, path: Path, format: str) -> str:
    """Bytes as text.

    Raises:
        TaskError: They are of another format or encoding; the message names the command that converts them.
    """
    shown = show_path(path)
    require_data(content, path, format)
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), None)
    if encoding is None:
        other = next((what for mark, what in _OTHER_FORMATS if content.startswith(mark)), None)
        if other is not None:
            raise TaskError(f"{shown} is {other}, not {format}. Save its rows as {format} in UTF-8.")
        if b"\x00" in content:
            raise TaskError(_with_nul(content, path, format))
    try:
        return content.decode(encoding or "utf-8")
    except UnicodeDecodeError as error:
        if encoding not in (None, "utf-8-sig"):
            raise TaskError(
                f"{shown} begins as {str(encoding).upper()} but is damaged at byte {error.start}. Save it as UTF-8."
            ) from None
        line = content.count(b"\n", 0, error.start) + 1
        read = content.decode("utf-8", "surrogateescape")
        broken = sum("\udc80" <= character <= "\udcff" for character in read)
        if sum(character > "\x7f" for character in read) > 2 * broken:
            raise TaskError(
                f"{shown} is UTF-8, but byte 0x{content[error.start]:02x} in line {line} begins no character "
                f"({broken} such bytes in all). Correct that place; to convert the whole file would spoil the rest."
            ) from None
        raise TaskError(
            f"{shown} is not UTF-8: byte 0x{content[error.start]:02x} in line {line} begins no character. "
            f"{_conversion(content, path)}"
        ) from None


def _with_nul(content: bytes, path: Path, format: str) -> str:
    shown = show_path(path)
    start = content[:4096]
    odd, even = start[1::2].count(0), start[::2].count(0)
    half = max(1, len(start) // 4)
    if max(odd, even) > half > min(odd, even):
        name = "UTF-16LE" if odd > even else "UTF-16BE"
        return f"{shown} is {name} without a byte-order mark. Convert it: {_iconv(name, path)}"
    line = content.count(b"\n", 0, content.index(b"\x00")) + 1
    return f"{shown} is no {format} text: line {line} holds a NUL byte. Write it again, without NUL bytes, in UTF-8."


def _conversion(content: bytes, path: Path) -> str:
    # Excel and old corpora: a byte that Windows-1252 does not have means that it is something else.
    name = "LATIN1" if _UNDEFINED_IN_1252.search(content) else "WINDOWS-1252"
    return (
        f"If it is {name.title().replace('Latin1', 'Latin-1')}, as Excel writes on Western systems, convert it: "
        f"{_iconv(name, path)} (else put its own encoding in place of {name})."
    )


def _iconv(name: str, path: Path) -> str:
    target = path.with_name(f"{path.stem}-utf8{path.suffix}")
    quoted = (shlex.quote(plain(str(one))) for one in (path, target))
    return "iconv -f {} -t UTF-8 {} > {}".format(name, *quoted)
