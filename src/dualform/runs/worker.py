"""What a sweep's worker does with one cell; models and zero-shot readings stay warm between cells."""

import contextlib
import io
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, ConfigDict
from safetensors import SafetensorError

from dualform._version import __version__
from dualform.attention_record import AttentionRecord
from dualform.errors import ConfigError
from dualform.files import cache_dir
from dualform.learners.reading_cache import ReadingCache
from dualform.models.loading.identity import model_identity
from dualform.models.reading.language_model import LanguageModel
from dualform.result import Result
from dualform.runs.cell_store import CellKey, CellStore, DamagedCell
from dualform.runs.flat_numbers import numbers_of
from dualform.runs.sweep_cells import DigestCache, digests, made_by
from dualform.source_digest import source_digest
from dualform.studies.pieces import Piece
from dualform.studies.settings import StudyConfig
from dualform.studies.study import STUDIES, ModelSource, Study, StudyContext, StudyOutput
from dualform.tasks.digest import task_digest
from dualform.tasks.task import Task

OUTCOME, RESULT, EXAMPLES, ATTENTION = "outcome.safetensors", "result.json", "examples.parquet", "attention.json"
ENVIRONMENT = "env:"
ELSEWHERE = "elsewhere"
"""Fact of a cell that another process is computing at the moment."""


class CellRequest(BaseModel):
    """What a worker is told, as plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    """URL of the store; or `env:NAME`, where it stands in an environment variable because it holds a password."""
    identity: dict[str, Any]
    """The cell's own, see `CellKey`."""
    study: str
    settings: dict[str, Any]
    """The study's configuration, all seeds."""
    seed: int | None
    pieces: dict[str, dict[str, Any]]
    """Name of a piece -> identity of the cell that holds it."""
    folder: str
    """From which relative paths start, as far as there is such a folder where the worker is."""
    about: dict[str, Any]
    """Facts to list beside what is found: sweep, group, model, task, options."""
    memory: int = 1 << 30
    """Bytes of zero-shot readings to keep."""
    dead: str = ""
    """Last sign of life of an earlier owner that the sweep has given up, see `CellStore.claim`."""


def perform(payload: dict[str, Any]) -> dict[str, Any]:
    """Compute one cell and keep it in the store.

    Args:
        payload: A `CellRequest`.

    Returns:
        Facts: `seconds` and `reused`; or only `elsewhere`, when another process is at it.

    Raises:
        DualformError: A user's mistake.
    """
    work = CellRequest(**payload)
    with contextlib.chdir(work.folder) if Path(work.folder).is_dir() else contextlib.nullcontext():
        return _perform(work)


def _perform(work: CellRequest) -> dict[str, Any]:
    store = CellStore(_store_url(work.store))
    key = CellKey(work.identity)
    if store.find(key, verify=True) is not None:
        return {"reused": True}
    claim = store.claim(key, work.dead)
    if claim is None:
        return {ELSEWHERE: True}
    with claim:
        # Whoever had the claim before may have finished it.
        if store.find(key, verify=True) is not None:
            return {"reused": True}
        start = time.perf_counter()
        try:
            files, result = _compute(work, store)
        except BaseException:
            # Whatever went wrong may have left the model as it should not be, or the memory full.
            _let_go()
            raise
        seconds = round(time.perf_counter() - start, 2)
        store.write(key, files, {**work.about, **_facts(result), "seconds": seconds})
        store.drop_pieces(key)
    return {"reused": False, "seconds": seconds}


def _store_url(given: str) -> str:
    if not given.startswith(ENVIRONMENT):
        return given
    name = given.removeprefix(ENVIRONMENT)
    if name not in os.environ:
        raise ConfigError(
            f"the URL of the store stands in ${name}, which the job was not given: let Slurm pass the environment on "
            "(--export=ALL, its default), or take credentials out of the URL"
        )
    return os.environ[name]


def _let_go() -> None:
    global _warm
    _warm = None


def _require_unchanged(work: CellRequest, config: BaseModel) -> None:
    """Check that what the cell's key was made from is what lies here now.

    Raises:
        ConfigError: It is not.
    """
    made = {name: work.identity.get(name) for name in made_by()}
    if made["source"] is not None and made != made_by():
        raise ConfigError(
            f"this worker runs other source code of dualform (version {__version__}, source {source_digest()}) than "
            f"the sweep (version {made['dualform']}, source {made['source']}): install the same on every machine, or, "
            "where the code was changed while the sweep ran, start it again"
        )
    named = work.identity.get("read")
    if named is not None and named != CellKey(digests(work.study, config, DigestCache())).identity:
        raise ConfigError(
            "model or data are not what they were when the sweep began, or are others on this machine: start it again"
        )


class CellPieces:
    """Finished parts of one cell, from which it goes on when its worker is killed.

    Args:
        store: Where they are kept, until the cell itself is finished.
        key: Of the cell.
    """

    def __init__(self, store: CellStore, key: CellKey) -> None:
        self._store = store
        self._key = key

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece, if it was finished and made from the same inputs."""
        data = self._store.piece(self._key, name)
        if data is None:
            return None
        try:
            piece = Piece.from_bytes(data)
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            self._store.log(f"{name} of {self._key.short} cannot be read ({error}); running it again")
            return None
        return piece if (piece.name, piece.inputs) == (name, inputs) else None

    def put(self, piece: Piece) -> None:
        """Keep it."""
        self._store.keep_piece(self._key, piece.name, piece.to_bytes())


class StorePieces:
    """A comparison's pieces: its seeds each in a cell of the store, others with the cell that is being computed.

    Args:
        store: Where.
        key: Of the cell that is being computed.
        keys: Name of a piece -> key of its cell.
        about: Facts that all of them share.
        own: The piece that is being computed, which is held back so that it can be written with what it found.
    """

    def __init__(
        self,
        store: CellStore,
        key: CellKey,
        keys: Mapping[str, CellKey],
        about: dict[str, Any],
        own: str | None = None,
    ) -> None:
        self._store = store
        self._parts = CellPieces(store, key)
        self._keys = keys
        self._about = about
        self._own = own
        self.held: Piece | None = None

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece, if its cell is finished and was made from the same inputs."""
        if name not in self._keys:
            return self._parts.get(name, inputs)
        cell = self._store.find(self._keys[name])
        if cell is None:
            return None
        try:
            piece = Piece.from_bytes(cell.read(OUTCOME))
        except DamagedCell as error:
            self._store.log(str(error))
            return None
        except (SafetensorError, KeyError, TypeError, ValueError) as error:
            reason = f"cannot be read ({error})"
        else:
            if piece.name == name and piece.inputs == inputs:
                return piece
            reason = "was made from other inputs"
        self._store.log(f"{name} of {cell.digest[:12]} {reason}; running it again")
        # Its hashes are right, so the store itself would never let another take its place.
        self._store.drop(cell.digest)
        return None

    def put(self, piece: Piece) -> None:
        """Keep it."""
        if piece.name == self._own:
            self.held = piece
        elif piece.name in self._keys:
            about = {**self._about, "seed": int(piece.name.removeprefix("seed "))}
            self._store.write(self._keys[piece.name], {OUTCOME: piece.to_bytes()}, about)
        else:
            self._parts.put(piece)


@dataclass
class _LoadedModel:
    """The model that this process has at hand, and what it has read."""

    settings: dict[str, Any]
    lm: LanguageModel
    memory: ReadingCache
    task: str | None = None
    """Digest of the task whose readings are in the memory."""


_warm: _LoadedModel | None = None


_HOW_LOADED = (
    "device",
    "dtype",
    "route",
    "trust_remote_code",
    "device_map",
    "max_memory",
    "offload_folder",
    "quantize",
)


class _ReusedModels:
    """Models and tasks for a cell: the model that this process has at hand where it is the one, file by file.

    Args:
        most_bytes: Of zero-shot readings to keep.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._task: str | None = None

    @property
    def memory(self) -> ReadingCache | None:
        """What the model at hand has read."""
        return None if _warm is None else _warm.memory

    def load_model(self, config: StudyConfig, name: str) -> LanguageModel:
        """The model that a configuration names."""
        global _warm
        load = {name: getattr(config, name) for name in _HOW_LOADED}
        settings = {"model": name, "identity": model_identity(name), "memory": self._most_bytes, **load}
        if _warm is None or _warm.settings != settings:
            # Let the one at hand go first: two may not fit.
            self.release()
            _warm = _LoadedModel(settings, config.load_model(name), ReadingCache(self._most_bytes))
        if _warm.task != self._task:
            # Readings of another task's rows.
            _warm.memory.clear()
            _warm.task = self._task
        return _warm.lm

    def load_task(self, config: StudyConfig) -> Task:
        """The task that a configuration names, read anew."""
        task = config.load_task()
        self._task = task_digest(task)
        return task

    def release(self) -> None:
        """Let the model at hand go."""
        _let_go()


def _compute(work: CellRequest, store: CellStore) -> tuple[dict[str, bytes], Result]:
    """A cell's files, and the result that its facts are taken from."""
    study = STUDIES[work.study]
    config = study.config()(**work.settings)
    _require_unchanged(work, config)
    models = _ReusedModels(work.memory)
    own = CellKey(work.identity)
    if study.seed_by_seed is None:
        return _finished(_run_whole(study, config, store, own, models))
    keys = {name: CellKey(identity) for name, identity in work.pieces.items()}
    if work.seed is None:
        cells = StorePieces(store, own, keys, work.about)
        whole = study.run(config, StudyContext(cells, models=models))
        if keys:
            whole = replace(whole, result=_with_time_of(whole.result, store, keys.values()))
        return _finished(whole)
    cells = StorePieces(store, own, keys, work.about, own=f"seed {work.seed}")
    piece, result = study.seed_by_seed.run(config, work.seed, StudyContext(cells, models=models))
    return {OUTCOME: (cells.held or piece).to_bytes()}, result


def _run_whole(study: Study, config: BaseModel, store: CellStore, own: CellKey, models: ModelSource) -> StudyOutput:
    """A study that is one cell; its finished pieces and large files are kept until it is finished."""
    folder = cache_dir() / "cells" / own.digest
    folder.mkdir(parents=True, exist_ok=True)
    output = study.run(config, StudyContext(CellPieces(store, own), folder=folder, models=models))
    shutil.rmtree(folder, ignore_errors=True)
    return output


def _finished(output: StudyOutput) -> tuple[dict[str, bytes], Result]:
    return _files(output.result, output.answers, output.attention), output.result


def _with_time_of(result: Result, store: CellStore, keys: Iterable[CellKey]) -> Result:
    """The result with the seconds that its seeds took, and not those of putting them together."""
    cells = [store.find(key) for key in keys]
    seconds = sum(float(cell.facts.get("seconds") or 0) for cell in cells if cell is not None)
    return result.model_copy(update={"environment": {**result.environment, "seconds": round(seconds, 1)}})


def _files(result: Result, table: pa.Table, attention: AttentionRecord | None = None) -> dict[str, bytes]:
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    files = {RESULT: result.to_json().encode(), EXAMPLES: parquet.getvalue()}
    return files if attention is None else {**files, ATTENTION: attention.to_json().encode()}


def _facts(result: Result) -> dict[str, Any]:
    """What a listing of cells shows: the means, without their intervals."""
    means = {
        name.replace("/", "."): value
        for name, value in numbers_of(result).items()
        if name.split("/")[0] in ("accuracy", "similarity", "calibrated") and name.count("/") == 1
    }
    return {"learners": ",".join(result.accuracy), **means}
