"""The folder of a run: its settings and results, and the finished pieces from which an interrupted run is resumed.

    config.yaml        all settings, from which the run can be repeated
    result.json        the numbers
    examples.parquet   every learner's answer to every query
    report.html        the report
    attention.json     attention of a comparison's learners, for the explorer in the report; only if requested
    log.txt            a log with times
    cells-.../         finished pieces, such as seeds, until the run is finished

Each file is written atomically.
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

T = TypeVar("T")

_FILES = ("config.yaml", "result.json", "examples.parquet", "report.html", "attention.json")
_REMEDY = "Free some space or choose another folder with --out."
LARGEST_RESULT = 1 << 30
"""Largest size in bytes of a file of results that is read."""


class RunFolder:
    """The folder of one run.

    Args:
        path: Path of the folder, which is created if it does not exist.
        config: Settings of the run.
        overwrite: Allow a folder that holds the result of other settings, which is overwritten when the first piece is
            finished.

    Raises:
        StorageError: The folder cannot be created or written to.
        ConfigError: It holds the result of other settings, and `overwrite` is off.
    """

    def __init__(self, path: Path, config: BaseModel, *, overwrite: bool = False) -> None:
        if not overwrite and holds_other_result(path, config):
            raise ConfigError(
                f"{path} holds the result of other settings. Choose another folder with --out, or give --overwrite."
            )
        self.path = writable_dir(path, _REMEDY)
        self._settings = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        # Pieces of other settings or other code must not be reused.
        self._key = hashlib.sha256(f"{source_digest()}\n{self._settings}".encode()).hexdigest()[:12]
        names = [str(getattr(config, name)) for name in ("model", "recipe", "task") if getattr(config, name, None)]
        self.log(f"dualform {__version__}: {' on '.join(names) or type(config).__name__}")

    def get(self, name: str, inputs: str) -> Piece | None:
        """A piece that was finished earlier with the same settings and inputs; None if there is none."""
        path = self._piece_path(name)
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
        self.log(f"{name}: finished earlier, reused")
        return piece

    def put(self, piece: Piece) -> None:
        """Store a finished piece."""
        path = self._piece_path(piece.name)
        with explain_storage_errors(path, _REMEDY):
            path.parent.mkdir(exist_ok=True)
        with atomic_write(path, _REMEDY) as temporary:
            temporary.write_bytes(piece.to_bytes())
        self._write_text("config.yaml", self._settings)
        self.log(f"{piece.name}: finished")

    def finish(self, result: Result, examples: pa.Table, attention: AttentionRecord | None = None) -> None:
        """Write all files of a finished run, the result last, and remove the pieces.

        Args:
            result: Result of the run.
            examples: Every learner's answer to every query.
            attention: Attention of the learners; if None, the file of an earlier run is removed.
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
        shutil.rmtree(self._pieces, ignore_errors=True)
        for name in _FILES:
            for leftover in self.path.glob(f".{name}.[0-9]*.tmp"):
                # From a run that was killed while it wrote the file.
                leftover.unlink(missing_ok=True)

    def log(self, text: str) -> None:
        """Add a line to `log.txt`, without control characters that a name might contain."""
        path = self.path / "log.txt"
        with explain_storage_errors(path, _REMEDY), path.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {plain(text)}\n")

    @property
    def _pieces(self) -> Path:
        return self.path / f"cells-{self._key}"

    def _piece_path(self, name: str) -> Path:
        stem = re.sub(r"[^\w.]+", "-", name)[-60:]
        if stem != name.replace(" ", "-"):
            # The digest keeps names different, such as those of models that are paths.
            stem += "-" + hashlib.sha256(name.encode()).hexdigest()[:6]
        return self._pieces / f"{stem}.safetensors"

    def _write_text(self, name: str, text: str) -> None:
        with atomic_write(self.path / name, _REMEDY) as temporary:
            temporary.write_text(text, encoding="utf-8")


def holds_other_result(folder: Path, config: BaseModel) -> bool:
    """Whether a folder holds a finished run with other settings, or a result that cannot be read."""
    if not (folder / "result.json").exists():
        return False
    try:
        return read_result(folder).config != config.model_dump(mode="json")
    except ConfigError:
        return True


def free_folder(base: Path, config: BaseModel) -> Path:
    """`base`, or with a digest of the settings in its name if `base` holds the result of other settings."""
    if not holds_other_result(base, config):
        return base
    key = hashlib.sha256(config.model_dump_json().encode()).hexdigest()[:6]
    return base.with_name(f"{base.name}-{key}")


def read_result(folder: Path) -> Result:
    """The result of a finished run.

    Raises:
        ConfigError: The folder holds no result, or one that is damaged or was written by a newer version of dualform.
    """
    path = folder / "result.json"
    if not _exists(path):
        raise ConfigError(f"{show_path(folder)} has no result.json: give the folder of a finished run (see --out).")
    return read_record(path, Result.from_json, "result", "Restore the file, or run the study again.")


def read_attention(folder: Path) -> AttentionRecord | None:
    """The attention of a finished comparison's learners; None if it was not recorded.

    Raises:
        ConfigError: The file cannot be read, or does not follow the schema.
    """
    path = folder / "attention.json"
    remedy = "Run the comparison again, or delete the file; the report then has no explorer."
    if not _exists(path):
        return None
    return read_record(path, AttentionRecord.from_json, "record", remedy)


def read_record(path: Path, parse: Callable[[str], T], noun: str, remedy: str) -> T:
    """Read a JSON file of results.

    Args:
        path: Path of the file.
        parse: Converts the text to the result; raises ValueError if it is damaged, ConfigError if it is too new.
        noun: What the file should contain, for messages.
        remedy: What the user can do about a damaged file, for messages.

    Raises:
        ConfigError: It cannot be read, is damaged or was written by a newer version of dualform.
    """
    content = read_bytes(path, LARGEST_RESULT, ConfigError, remedy)
    try:
        return parse(content.decode("utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{show_path(path)}: {error}.") from error
    except ValueError as error:
        reason = str(error).splitlines()[0]
        if isinstance(error, ValidationError):
            # The first line of the message only counts the problems.
            first = error.errors(include_input=False)[0]
            reason = f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
        raise ConfigError(
            f"{show_path(path)} is not a {noun} that this version can read ({plain(reason)[:300]}). {remedy}"
        ) from error


def _exists(path: Path) -> bool:
    """Whether a path exists; True for invalid paths, so that reading them raises an error."""
    try:
        return os.path.lexists(path)
    except ValueError:
        return True


def write_report(folder: Path) -> Path:
    """Write the report of a finished run anew.

    Returns:
        Path of the report.

    Raises:
        ConfigError: The folder holds no result, or its result or attention record is damaged.
        StorageError: The report cannot be written.
    """
    page = folder / "report.html"
    text = render_page(read_result(folder), read_attention(folder))
    with atomic_write(page, _REMEDY) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return page
