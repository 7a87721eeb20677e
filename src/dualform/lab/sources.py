"""Sources of training text, read document by document: local files, or a data set of the hub as a stream."""

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
"""After this many characters a document of a `.txt` file ends at the next line, which bounds memory if no line is
empty."""

SECONDS_TO_ANSWER = 10.0


class TextSource(Protocol):
    """A source of documents."""

    @property
    def display_name(self) -> str:
        """Name for messages."""
        ...

    def documents(self) -> Iterator[str]:
        """The non-blank documents in order, from the first one in every call."""
        ...

    def identity(self) -> Mapping[str, Any]:
        """Identity of the text as JSON values: equal identities give equal documents."""
        ...


@dataclass(frozen=True)
class TextFiles:
    """Local files in UTF-8, plain or gzipped.

    In `.txt` files each line is a paragraph, and an empty line or the end of the file ends a document. In `.jsonl`
    files each line is a JSON object with one document in `column`.
    """

    paths: tuple[Path, ...]
    column: str = "text"
    """Column of `.jsonl` files with the text."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise ConfigError("no text file was named. Name at least one.")
        for path in self.paths:
            if not path.name.endswith(SUFFIXES):
                raise ConfigError(f"{path} is not a supported text file: its name should end in {_listed()}.")
            if not path.is_file():
                raise ConfigError(f"file {path} does not exist. Check the name and the current folder.")

    @property
    def display_name(self) -> str:
        """Names of the files."""
        return ", ".join(str(path) for path in self.paths)

    def documents(self) -> Iterator[str]:
        """The documents, file by file.

        Raises:
            TaskError: If a line is not UTF-8 or not a JSON object with the column, or a gzip file is damaged.
        """
        for path in self.paths:
            lines = _lines(path)
            plain = path.name.removesuffix(".gz").endswith(".txt")
            yield from (_paragraphs(lines) if plain else _column(path, lines, self.column))

    def identity(self) -> Mapping[str, Any]:
        """Names and SHA-256 of the files, for which they are read once."""
        files = [{"name": path.name, "sha256": _sha256(path)} for path in self.paths]
        return {"files": files, "column": self.column}


@dataclass(frozen=True)
class HubText:
    """A column of a data set on the hub, streamed without storing it on disk."""

    name: str
    """`owner/name`, or a folder that `datasets` can read."""
    config: str | None = None
    split: str = "train"
    column: str = "text"
    revision: str | None = None
    """Commit or branch; a commit makes sure that the text does not change."""
    limit: int | None = None
    """Largest number of documents; None for all."""

    def __post_init__(self) -> None:
        if self.limit is not None and self.limit < 1:
            raise ConfigError(f"limit is {self.limit} documents; expected 1 or more, or None for all")

    @property
    def display_name(self) -> str:
        """`owner/name:config, split train`."""
        return f"{self.name}{f':{self.config}' if self.config else ''}, split {self.split}"

    def documents(self) -> Iterator[str]:
        """The documents, streamed from the hub.

        Raises:
            HubError: If the hub does not answer, has no such data set, or the connection fails.
            TaskError: If there is no such column, or it contains no text.
        """
        n_documents = 0
        for row in self._rows():
            text = row.get(self.column)
            if not isinstance(text, str):
                columns = ", ".join(map(str, row))
                raise TaskError(
                    f"{self.display_name} has no text in column {self.column!r}; its columns are {columns}. Name the "
                    "one with the text."
                )
            if n_documents == self.limit:
                return
            if text.strip():
                n_documents += 1
                yield text

    def identity(self) -> Mapping[str, Any]:
        """Name, config, split, column, revision and limit."""
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
                # Ask the hub first, because streaming would retry for half a minute without a network.
                huggingface_hub.HfApi().dataset_info(self.name, timeout=SECONDS_TO_ANSWER)
            yield from datasets.load_dataset(
                self.name, self.config, split=self.split, revision=self.revision, streaming=True
            )
        # The remedy is the same for all errors of network, names and formats.
        except Exception as error:
            reason = first_line(error)
            raise HubError(
                f"cannot read {self.display_name} from the hub ({reason}). Check name, config and split, and the "
                f"network, or name local files ({_listed()})."
            ) from error


def find_source(where: Sequence[str], *, split: str = "train", column: str = "text") -> TextSource:
    """The source of text for one or more names; nothing is read yet.

    Args:
        where: Files, or a single `owner/name[:config]` on the hub.
        split: Split of a data set on the hub.
        column: Column with the text, on the hub and in `.jsonl` files.

    Raises:
        ConfigError: If a file is missing or not supported, or a name is neither a file nor a data set.
    """
    files = [name.endswith(SUFFIXES) or Path(name).is_file() for name in where]
    if len(where) == 1 and not files[0]:
        name, _, config = where[0].partition(":")
        if name.count("/") != 1 or not all(name.split("/")):
            raise ConfigError(
                f"{where[0]!r} is neither an existing file ({_listed()}) nor a data set `owner/name[:config]`."
            )
        return HubText(name, config or None, split=split, column=column)
    if not all(files):
        raise ConfigError(
            f"{where[files.index(False)]!r} is not a file ({_listed()}). A data set on the hub must be named alone."
        )
    return TextFiles(tuple(map(Path, where)), column)


def _listed() -> str:
    return f"{', '.join(SUFFIXES[:-1])} or {SUFFIXES[-1]}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, without line ends."""
    number = 0
    try:
        with gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                # Skip the byte-order mark with which some editors begin a file.
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"line {number} of {path} is not UTF-8 (byte {error.start + 1} of the line). Convert the file, for "
            "instance with iconv."
        ) from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise TaskError(f"{path} is damaged after line {number}: {error}. Download it again.") from error


def _paragraphs(lines: Iterator[tuple[int, str]]) -> Iterator[str]:
    """Documents of a `.txt` file, which are separated by empty lines."""
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
    """Documents of a `.jsonl` file."""
    for number, line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (json.JSONDecodeError, RecursionError) as error:
            raise TaskError(f"line {number} of {path} is not JSON: {error}. Write one object a line.") from error
        text = row.get(column) if isinstance(row, dict) else None
        if not isinstance(text, str):
            content = f"has the columns {', '.join(row)}" if isinstance(row, dict) else "is not an object"
            raise TaskError(f"line {number} of {path} {content}, but no text in {column!r}. Name the text's column.")
        if text.strip():
            yield text


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
