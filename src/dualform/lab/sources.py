"""Text to train on, read document by document: files of one's own, or a data set of the hub as a stream."""

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dualform.errors import ConfigError, HubError, TaskError, first_line

SUFFIXES = (".txt", ".txt.gz", ".jsonl", ".jsonl.gz")

LONGEST_DOCUMENT = 1 << 22
"""Characters after which a document of a `.txt` file ends at the next line, so that memory stays bounded even when no
line is empty."""

SECONDS_TO_ANSWER = 10.0


class TextSource(Protocol):
    """Where text comes from."""

    @property
    def shown(self) -> str:
        """A name for messages."""
        ...

    def documents(self) -> Iterator[str]:
        """The documents in order, none of them blank; each call begins anew."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """What tells this text from another: equal identities give equal documents. Fit for JSON."""
        ...


@dataclass(frozen=True)
class TextFiles:
    """Files of one's own, UTF-8, plain or gzipped.

    `.txt`: a paragraph a line; an empty line, or the end of the file, ends a document. `.jsonl`: a JSON object a line,
    and its column is one document.
    """

    paths: tuple[Path, ...]
    column: str = "text"
    """Of `.jsonl`."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("no text file was named. Name at least one.")
        for path in self.paths:
            if not path.name.endswith(SUFFIXES):
                raise ConfigError(f"{path} is no text that can be read here: its name should end in {_listed()}.")
            if not path.is_file():
                raise ConfigError(f"there is no file {path}. Check the name and the current folder.")

    @property
    def shown(self) -> str:
        """The files' names."""
        return ", ".join(str(path) for path in self.paths)

    def documents(self) -> Iterator[str]:
        """The documents, file by file.

        Raises:
            TaskError: A line is no UTF-8 or no JSON object with the column; a gzip file is damaged.
        """
        for path in self.paths:
            lines = _lines(path)
            plain = path.name.removesuffix(".gz").endswith(".txt")
            yield from (_paragraphs(lines) if plain else _column(path, lines, self.column))

    def identity(self) -> Mapping[str, Any]:
        """Names and SHA-256 of the files, read through once for it."""
        files = [{"name": path.name, "sha256": _sha256(path)} for path in self.paths]
        return {"files": files, "column": self.column}


@dataclass(frozen=True)
class HubText:
    """A column of a data set of the hub, streamed, so that nothing is kept on disk."""

    name: str
    """`owner/name`, or a folder that `datasets` can read."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Commit or branch; name a commit to be sure of the same text tomorrow."""
    limit: int | None = None
    """Most documents; None for all."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"a limit of {self.limit} documents leaves nothing to read: 1 or more, or none")

    @property
    def shown(self) -> str:
        """`owner/name:config, split train`."""
        return f"{self.name}{f':{self.config}' if self.config else ''}, split {self.split}"

    def documents(self) -> Iterator[str]:
        """The documents, as the network brings them.

        Raises:
            HubError: The hub did not answer, has no such data set, or broke off.
            TaskError: There is no such column, or it holds no text.
        """
        given = 0
        for row in self._rows():
            text = row.get(self.column)
            if not isinstance(text, str):
                columns = ", ".join(map(str, row))
                raise TaskError(
                    f"{self.shown} has no text in a column {self.column!r}; its columns: {columns}. Name the one that "
                    "holds the text."
                )
            if given == self.limit:
                return
            if text.strip():
                given += 1
                yield text

    def identity(self) -> Mapping[str, Any]:
        """Name, config, split, column, revision and limit, as given."""
        return {
            "hub": self.name,
            "config": self.config,
            "split": self.split,
            "column": self.column,
            "revision": self.revision,
            "limit": self.limit,
        }

    def _rows(self) -> Iterator[Mapping[str, Any]]:
        import datasets
        import huggingface_hub

        try:
            if not Path(self.name).is_dir():
                # The hub is queried first, because streaming would try for half a minute where there is no network.
                huggingface_hub.HfApi().dataset_info(self.name, timeout=SECONDS_TO_ANSWER)
            yield from datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
        # Whatever goes wrong in there (network, names, formats), the remedy is the same.
        except Exception as error:
            reason = first_line(error)
            raise HubError(
                f"the hub gave no text from {self.shown} ({reason}). Check name, config and split, and the network, or "
                f"name files of your own ({_listed()})."
            ) from error


def find_source(where: Sequence[str], *, split: str = "train", column: str = "text") -> TextSource:
    """The text that is meant by one or more names.

    Args:
        where: Files, or a single `owner/name[:config]` of the hub.
        split: Of the hub's data set.
        column: That holds the text, on the hub and in `.jsonl`.

    Returns:
        The source; nothing is read yet.

    Raises:
        ConfigError: A file is missing or of an unknown kind, or it is unclear what is meant.
    """
    files = [name.endswith(SUFFIXES) or Path(name).is_file() for name in where]
    if len(where) == 1 and not files[0]:
        name, _, config = where[0].partition(":")
        if name.count("/") != 1 or not all(name.split("/")):
            raise ConfigError(
                f"{where[0]!r} is neither a file ({_listed()}) that is there nor a data set `owner/name[:config]`."
            )
        return HubText(name, config or None, split=split, column=column)
    if not all(files):
        raise ConfigError(
            f"{where[files.index(False)]!r} is no file ({_listed()}). A data set of the hub must be named alone."
        )
    return TextFiles(tuple(map(Path, where)), column)


def _listed() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, without their ends."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                # Some editors begin a file with a mark that is no part of the text.
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"line {number} of {path} is not UTF-8 (byte {error.start + 1} of the line). Convert the file, for "
            "instance with iconv."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path} is no whole gzip file after line {number}: {error}. Fetch it again.") from error


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Documents of a `.txt`: what lies between empty lines."""
    paragraphs: list[str] = []
    characters = 0
    for _, line in lines:
        if line.strip():
            paragraphs.append(line)
            characters += len(line) + 1
        if paragraphs and (not line.strip() or characters > LONGEST_DOCUMENT):
            yield "\n".join(paragraphs)
            paragraphs, characters = [], 0
    if paragraphs:
        yield "\n".join(paragraphs)


def _column(path: Path, lines: Iterator[tuple[int, str]], column: str) -> Iterator[str]:
    """Documents of a `.jsonl`."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise TaskError(f"line {number} of {path} is no JSON: {error}. Write one object a line.") from error
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            found = f"has the columns {', '.join(row)}" if isinstance(row, dict) else "is no object"
            raise TaskError(f"line {number} of {path} {found}, and no text in {column!r}. Name the text's column.")
        if text.strip():
            yield text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
