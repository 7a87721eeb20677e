"""A run's folder: what was asked, what was found, and the finished pieces that make a killed run go on.

    config.yaml        the settings, enough to run it again
    result.json        the numbers
    examples.parquet   every learner's answer to every query
    report.html        the page
    attention.json     where a comparison's learners looked, for the page's explorer; only where it was asked for
    log.txt            what happened when
    cells-.../         finished pieces, such as seeds, only while the run is under way

Each file is written wholly or not at all.
"""

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
import yaml
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError

from dualform._version import __version__
from dualform.attention_record import AttentionRecord
from dualform.errors import ConfigError
from dualform.files import atomic_write, explain_storage_errors, read_bytes, show_path, writable_dir
from dualform.plain_text import plain
from dualform.result import Result
from dualform.source_digest import source_digest
from dualform.studies.pages import render_page
from dualform.studies.pieces import Piece

Found = TypeVar("Found")

_FILES = ("config.yaml", "result.json", "examples.parquet", "report.html", "attention.json")
_REMEDY = "Free some space or choose another folder with --out."
LARGEST_RESULT = 1 << 30
"""Bytes of a file of results that is read."""


class RunFolder:
    """Holds one run.

    Args:
        path: Made if need be.
        config: The run's settings.
        overwrite: Allow a folder that holds the result of other settings; it is lost once the first piece is finished.

    Raises:
        StorageError: The folder cannot be made or written to.
        ConfigError: It holds the result of other settings, and `overwrite` is off.
    """

    def __init__(self, path: Path, config: BaseModel, *, overwrite: bool = False) -> None:
        if not overwrite and holds_other_result(path, config):
            raise ConfigError(
                f"{path} holds the result of other settings. Choose another folder with --out, or give --overwrite."
            )
        self.path = writable_dir(path, _REMEDY)
        self._settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # Pieces made under other settings, or by other code, must never be mixed in.
        self._key = hashlib.sha256(f"{source_digest()}\n{self._settings}".encode()).hexdigest()[:12]
        about = [str(getattr(config, name)) for name in ("model", "recipe", "task") if getattr(config, name, None)]
        self.log(f"dualform {__version__}: {' on '.join(about) or type(config).__name__}")

    def get(self, name: str, inputs: str) -> Piece | None:
        """A piece finished earlier under the same settings; None if there is none, or one that must not be used."""
        path = self._cell(name)
        if not path.exists():
            return None
        try:
            piece = Piece.from_file(str(path))
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            self.log(f"{name}: {path.name} is damaged ({error}); running it again")
            return None
        if piece.name != name or piece.inputs != inputs:
            self.log(f"{name}: model or data have changed since it finished; running it again")
            return None
        self.log(f"{name}: finished earlier, read back")
        return piece

    def put(self, piece: Piece) -> None:
        """Keep a finished piece."""
        path = self._cell(piece.name)
        with explain_storage_errors(path, _REMEDY):
            path.parent.mkdir(exist_ok=True)
        with atomic_write(path, _REMEDY) as temporary:
            temporary.write_bytes(piece.to_bytes())
        self._write_text("config.yaml", self._settings)
        self.log(f"{piece.name}: finished")

    def finish(self, result: Result, examples: pa.Table, attention: AttentionRecord | None = None) -> None:
        """Write everything that the folder promises, the result last, and drop the pieces.

        Args:
            result: What was found.
            examples: Every answer to every query.
            attention: Where the learners looked; None where nobody asked, and an earlier run's file is then removed.
        """
        with atomic_write(self.path / "examples.parquet", _REMEDY) as temporary:
            pq.write_table(examples, temporary)
        self._write_text("config.yaml", self._settings)
        if attention is None:
            with explain_storage_errors(self.path, _REMEDY):
                (self.path / "attention.json").unlink(missing_ok=True)
        else:
            self._write_text("attention.json", attention.to_json() + "\n")
        self._write_text("report.html", render_page(result, attention))
        self._write_text("result.json", result.to_json() + "\n")
        for warning in result.warnings:
            self.log(f"note: {warning}")
        self.log(f"finished in {result.environment['seconds']} s")
        shutil.rmtree(self._cells, ignore_errors=True)
        for name in _FILES:
            for leftover in self.path.glob(f".{name}.[0-9]*.tmp"):
                # Of a run that was killed while it wrote.
                leftover.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add a line to `log.txt`, made plain: names come from anywhere, and logs are read on terminals."""
        path = self.path / "log.txt"
        with explain_storage_errors(path, _REMEDY), path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {plain(text)}\n")

    @property
    def _cells(self) -> Path:
        return self.path / f"cells-{self._key}"

    def _cell(self, name: str) -> Path:
        plain = re.sub(r"[^\w.]+", "-", name)[-60:]
        if plain != name.replace(" ", "-"):
            # Names of models are paths at times; the digest keeps apart what the letters that remain do not.
            plain += "-" + hashlib.sha256(name.encode()).hexdigest()[:6]
        return self._cells / f"{plain}.safetensors"

    def _write_text(self, name: str, text: str) -> None:
        with atomic_write(self.path / name, _REMEDY) as temporary:
            temporary.write_text(text, encoding="utf-8")


def holds_other_result(folder: Path, config: BaseModel) -> bool:
    """Whether a folder holds a finished run of other settings, which must not be lost by accident."""
    if not (folder / "result.json").exists():
        return False
    try:
        return read_result(folder).config != config.model_dump(mode="json")
    except ConfigError:
        return True


def free_folder(base: Path, config: BaseModel) -> Path:
    """`base`, or where other settings' result lies there, `base` with a few letters that stand for these settings."""
    if not holds_other_result(base, config):
        return base
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:6]
    return base.with_name(f"{base.name}-{key}")


def read_result(folder: Path) -> Result:
    """The result of a finished run.

    Raises:
        ConfigError: The folder holds no result, or one that is damaged or that a newer version of dualform wrote.
    """
    path = folder / "result.json"
    if not _is_there(path):
        raise ConfigError(f"{show_path(folder)} holds no result.json: give the folder of a finished run (see --out).")
    return read_record(path, Result.from_json, "result", "Restore the file, or run the study again.")


def read_attention(folder: Path) -> AttentionRecord | None:
    """Where the learners of a finished comparison looked; None where the folder does not hold it.

    Raises:
        ConfigError: The file cannot be read, or is not of this schema.
    """
    path = folder / "attention.json"
    remedy = "Run the comparison again, or delete the file and the page will do without the explorer."
    if not _is_there(path):
        return None
    return read_record(path, AttentionRecord.from_json, "record", remedy)


def read_record(path: Path, read: Callable[[str], Found], noun: str, remedy: str) -> Found:
    """What a JSON file of results holds.

    Args:
        path: The file.
        read: Makes it of the text; raises ValueError where the text is damaged, ConfigError where it is too new.
        noun: What the file should hold, in a word.
        remedy: What to do about a damaged file.

    Raises:
        ConfigError: It cannot be read, is damaged or was written by a newer version of dualform.
    """
    content = read_bytes(path, LARGEST_RESULT, ConfigError, remedy)
    try:
        return read(content.decode("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{show_path(path)}: {error}.") from error
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            # Its first line only counts the problems.
            first = error.errors(include_input=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise ConfigError(
            f"{show_path(path)} is no {noun} that this version can read ({plain(reason)[:300]}). {remedy}"
        ) from error


def _is_there(path: Path) -> bool:
    """Whether there is anything of that name; a name that cannot be one is for the reader to explain."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return True


def write_report(folder: Path) -> Path:
    """Rebuild the page of a finished run.

    Returns:
        Path of the page.

    Raises:
        ConfigError: The folder holds no result, or a damaged one, or damaged attention.
        StorageError: The page cannot be written.
    """
    page = folder / "report.html"
    text = render_page(read_result(folder), read_attention(folder))
    with atomic_write(page, _REMEDY) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page
