"""Computes one cell of a sweep in a worker process.

The worker keeps its model between cells, and the model's zero-shot readings: what the model computed for queries
without demonstrations, which is the same in all cells of one task. `sweep` explains cells, and `cell_store` how they
are stored.
"""

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
from dualform.runs.sweep_cells import DigestCache, code_identity, input_digests
from dualform.source_digest import source_digest
from dualform.studies.pieces import Piece
from dualform.studies.settings import StudyConfig
from dualform.studies.study import STUDIES, ModelSource, Study, StudyContext, StudyOutput
from dualform.tasks.digest import task_digest
from dualform.tasks.task import Task

OUTCOME, RESULT, EXAMPLES, ATTENTION = "outcome.safetensors", "result.json", "examples.parquet", "attention.json"
"""Names of a cell's files: the tensors of one seed, or the result of a study with its answers and attention."""
ENVIRONMENT = "env:"
"""Prefix of `CellRequest.store` if the URL is in an environment variable, whose name follows."""
ELSEWHERE = "elsewhere"
"""Key in the return value of `perform`: another process is computing the cell."""


class CellRequest(BaseModel):
    """A cell to compute, as plain JSON."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    store: str
    """URL of the store, or `env:NAME` for the environment variable that holds it, if it contains a password."""
    identity: dict[str, Any]
    """Identity of the cell, see `CellKey`."""
    study: str
    """Name of the study in `STUDIES`."""
    settings: dict[str, Any]
    """The study's configuration, with all seeds."""
    seed: int | None
    """The seed to compute; None for a cell that runs the whole study, or that combines finished seeds."""
    pieces: dict[str, dict[str, Any]]
    """Name of a piece, such as `seed 3` -> identity of the cell that holds it; empty unless each seed is a cell."""
    folder: str
    """Folder to which relative paths refer, if it exists on the worker's machine."""
    facts: dict[str, Any]
    """Facts to store with the result: sweep, group, model, task, options."""
    memory: int = 1 << 30
    """Bytes of zero-shot readings to cache."""
    stale_heartbeat: str = ""
    """Last heartbeat of an earlier owner that stopped responding, see `CellStore.claim`."""


def perform(payload: dict[str, Any]) -> dict[str, Any]:
    """Compute one cell and write it to the store.

    Args:
        payload: A `CellRequest`.

    Returns:
        `reused`, whether the cell was already in the store, and if not, the `seconds` to compute it. Only `elsewhere`
        if another process is computing the cell.

    Raises:
        DualformError: A user's mistake.
    """
    request = CellRequest(**payload)
    with contextlib.chdir(request.folder) if Path(request.folder).is_dir() else contextlib.nullcontext():
        return _perform(request)


def _perform(request: CellRequest) -> dict[str, Any]:
    store = CellStore(_store_url(request.store))
    key = CellKey(request.identity)
    if store.find(key, verify=True) is not None:
        return {"reused": True}
    claim = store.claim(key, request.stale_heartbeat)
    if claim is None:
        return {ELSEWHERE: True}
    with claim:
        # The previous owner of the claim may have finished the cell.
        if store.find(key, verify=True) is not None:
            return {"reused": True}
        start = time.perf_counter()
        try:
            files, result = _compute(request, store)
        except BaseException:
            # The error may have left the model modified, or the memory full.
            _release_model()
            raise
        seconds = round(time.perf_counter() - start, 2)
        store.write(key, files, {**request.facts, **_facts(result), "seconds": seconds})
        store.drop_pieces(key)
    return {"reused": False, "seconds": seconds}


def _store_url(url: str) -> str:
    if not url.startswith(ENVIRONMENT):
        return url
    name = url.removeprefix(ENVIRONMENT)
    if name not in os.environ:
        raise ConfigError(
            f"the URL of the store should be in the environment variable {name}, which is not set in this job: let "
            "Slurm export the environment (--export=ALL, its default), or remove the credentials from the URL"
        )
    return os.environ[name]


def _release_model() -> None:
    global _loaded
    _loaded = None


def _require_same_inputs(request: CellRequest, config: BaseModel) -> None:
    """Check that the code, the model and the data are those from which the cell's key was computed.

    Raises:
        ConfigError: They are not.
    """
    code = {name: request.identity.get(name) for name in code_identity()}
    if code["source"] is not None and code != code_identity():
        raise ConfigError(
            f"this worker runs other source code of dualform (version {__version__}, source {source_digest()}) than "
            f"the sweep (version {code['dualform']}, source {code['source']}): install the same code on every machine; "
            "if it was changed while the sweep ran, start the sweep again"
        )
    inputs = request.identity.get("read")
    if inputs is not None and inputs != CellKey(input_digests(request.study, config, DigestCache())).identity:
        raise ConfigError(
            "the model or the data have changed since the sweep started, or differ on this machine: start the sweep "
            "again"
        )


class CellPieces:
    """Finished pieces of one cell, from which it is resumed after its worker was killed.

    Args:
        store: Store that keeps the pieces until the cell is finished.
        key: Key of the cell.
    """

    def __init__(self, store: CellStore, key: CellKey) -> None:
        self._store = store
        self._key = key

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece, if it is finished and was computed from the same inputs."""
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
        """Store a finished piece."""
        self._store.keep_piece(self._key, piece.name, piece.to_bytes())


class StorePieces:
    """Pieces of a study that runs seed by seed.

    The piece of a seed is stored as a cell of its own. All other pieces belong to the cell that is being computed, see
    `CellPieces`.

    Args:
        store: Store of the cells.
        key: Key of the cell that is being computed.
        keys: Name of a seed's piece, such as `seed 3` -> key of its cell.
        facts: Facts to store with the cells.
        current: Name of the piece that this cell will hold; None for a cell that combines seeds. `put` does not store
            it but keeps it as `current_piece`, because the cell is written later, together with its facts.
    """

    def __init__(
        self,
        store: CellStore,
        key: CellKey,
        keys: Mapping[str, CellKey],
        facts: dict[str, Any],
        current: str | None = None,
    ) -> None:
        self._store = store
        self._pieces = CellPieces(store, key)
        self._keys = keys
        self._facts = facts
        self._current = current
        self.current_piece: Piece | None = None

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece, if its cell is finished and was computed from the same inputs."""
        if name not in self._keys:
            return self._pieces.get(name, inputs)
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
            reason = "was computed from other inputs"
        self._store.log(f"{name} of {cell.digest[:12]} {reason}; running it again")
        # The store never overwrites a cell whose hashes are right, so it must be removed.
        self._store.drop(cell.digest)
        return None

    def put(self, piece: Piece) -> None:
        """Store a finished piece."""
        if piece.name == self._current:
            self.current_piece = piece
        elif piece.name in self._keys:
            facts = {**self._facts, "seed": int(piece.name.removeprefix("seed "))}
            self._store.write(self._keys[piece.name], {OUTCOME: piece.to_bytes()}, facts)
        else:
            self._pieces.put(piece)


@dataclass
class _LoadedModel:
    """The model that this process has loaded, with its cached readings."""

    settings: dict[str, Any]
    """Name, digest and loading settings; a cell with the same ones reuses the model."""
    lm: LanguageModel
    memory: ReadingCache
    """Cached zero-shot readings."""
    task: str | None = None
    """Digest of the task whose readings are cached."""


_loaded: _LoadedModel | None = None


_LOADING_SETTINGS = (
    "device",
    "dtype",
    "route",
    "trust_remote_code",
    "device_map",
    "max_memory",
    "offload_folder",
    "quantize",
)
"""Fields of a configuration that affect how a model is loaded."""


class _ReusedModels:
    """Loads models and tasks for a cell; the model of the previous cell is reused if it is the same.

    Args:
        most_bytes: Bytes of zero-shot readings to cache.
    """

    def __init__(self, most_bytes: int) -> None:
        self._most_bytes = most_bytes
        self._task: str | None = None

    @property
    def memory(self) -> ReadingCache | None:
        """Cached readings of the loaded model."""
        return None if _loaded is None else _loaded.memory

    def load_model(self, config: StudyConfig, name: str) -> LanguageModel:
        """The model that a configuration names."""
        global _loaded
        load = {name: getattr(config, name) for name in _LOADING_SETTINGS}
        settings = {"model": name, "identity": model_identity(name), "memory": self._most_bytes, **load}
        if _loaded is None or _loaded.settings != settings:
            # Release the loaded model first, because two may not fit into memory.
            self.release()
            _loaded = _LoadedModel(settings, config.load_model(name), ReadingCache(self._most_bytes))
        if _loaded.task != self._task:
            # The cached readings are of another task's rows.
            _loaded.memory.clear()
            _loaded.task = self._task
        return _loaded.lm

    def load_task(self, config: StudyConfig) -> Task:
        """The task that a configuration names, read again for every cell."""
        task = config.load_task()
        self._task = task_digest(task)
        return task

    def release(self) -> None:
        """Release the loaded model."""
        _release_model()


def _compute(request: CellRequest, store: CellStore) -> tuple[dict[str, bytes], Result]:
    """A cell's files, and the result from which its facts are read."""
    study = STUDIES[request.study]
    config = study.config()(**request.settings)
    _require_same_inputs(request, config)
    models = _ReusedModels(request.memory)
    key = CellKey(request.identity)
    if study.seed_by_seed is None:
        return _output_files(_run_study(study, config, store, key, models))
    keys = {name: CellKey(identity) for name, identity in request.pieces.items()}
    if request.seed is None:
        pieces = StorePieces(store, key, keys, request.facts)
        output = study.run(config, StudyContext(pieces, models=models))
        if keys:
            output = replace(output, result=_with_time_of(output.result, store, keys.values()))
        return _output_files(output)
    pieces = StorePieces(store, key, keys, request.facts, current=f"seed {request.seed}")
    piece, result = study.seed_by_seed.run(config, request.seed, StudyContext(pieces, models=models))
    return {OUTCOME: (pieces.current_piece or piece).to_bytes()}, result


def _run_study(study: Study, config: BaseModel, store: CellStore, key: CellKey, models: ModelSource) -> StudyOutput:
    """Run a study as one cell; its pieces and large files are kept until it is finished, so that it can be resumed."""
    folder = cache_dir() / "cells" / key.digest
    folder.mkdir(parents=True, exist_ok=True)
    output = study.run(config, StudyContext(CellPieces(store, key), folder=folder, models=models))
    shutil.rmtree(folder, ignore_errors=True)
    return output


def _output_files(output: StudyOutput) -> tuple[dict[str, bytes], Result]:
    return _files(output.result, output.answers, output.attention), output.result


def _with_time_of(result: Result, store: CellStore, keys: Iterable[CellKey]) -> Result:
    """The result with the total run time of its seeds instead of the time to combine them."""
    cells = [store.find(key) for key in keys]
    seconds = sum(float(cell.facts.get("seconds") or 0) for cell in cells if cell is not None)
    return result.model_copy(update={"environment": {**result.environment, "seconds": round(seconds, 1)}})


def _files(result: Result, table: pa.Table, attention: AttentionRecord | None = None) -> dict[str, bytes]:
    parquet = io.BytesIO()
    pq.write_table(table, parquet)
    files = {RESULT: result.to_json().encode(), EXAMPLES: parquet.getvalue()}
    return files if attention is None else {**files, ATTENTION: attention.to_json().encode()}


def _facts(result: Result) -> dict[str, Any]:
    """Facts to store with a cell: names of the learners, and means of accuracy and of similarity, without intervals."""
    means = {
        name.replace("/", "."): value
        for name, value in numbers_of(result).items()
        if name.split("/")[0] in ("accuracy", "similarity", "calibrated") and name.count("/") == 1
    }
    return {"learners": ",".join(result.accuracy), **means}
