"""A sweep from its file to its folder: what `dualform sweep` does, for Python."""

import contextlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import torch
import yaml

from dualform._version import __version__
from dualform.attention_record import AttentionRecord
from dualform.errors import ConfigError, StorageError
from dualform.files import atomic_write, writable_dir
from dualform.result import Result
from dualform.runs.cell_store import CellStore, DamagedCell, FinishedCell
from dualform.runs.engines.base import Engine, EngineName
from dualform.runs.engines.performing import one_line
from dualform.runs.store import RunFolder
from dualform.runs.sweep import GroupState, SilentObserver, Sweep, SweepObserver, cells_record
from dualform.runs.sweep_cells import PLACES
from dualform.runs.sweep_config import Group, SweepConfig, listed
from dualform.runs.sweep_folder import write_sweep
from dualform.runs.worker import ATTENTION, EXAMPLES, RESULT
from dualform.studies.facts import environment
from dualform.studies.study import STUDIES
from dualform.sweep_result import SweepGroup, SweepResult

_REMEDY = "Free some space or choose another folder with --out."


def described(config: SweepConfig, groups: Sequence[Group]) -> dict[str, Any]:
    """What `sweep.yaml` in a sweep's folder holds: enough to run it again from there."""
    if config.models or not {"model", "models"} & STUDIES[config.study].fields():
        return config.model_dump(mode="json", exclude_defaults=True)
    return listed(config.name, groups)


def run_sweep(
    config: SweepConfig,
    groups: Sequence[Group],
    engine: Engine,
    *,
    out: Path,
    store: CellStore,
    retries: int = 2,
    watcher: SweepObserver | None = None,
    overwrite: bool = False,
) -> SweepResult:
    """Run a sweep into a folder: a run's folder for each group, and a page over all.

    Args:
        config: The sweep's own, from `read_sweep_file`.
        groups: Its groups.
        engine: From `open_engine`; it is left open.
        out: Folder, made if need be; a group's folder of an earlier call is written over.
        store: Where cells are kept.
        retries: How often a cell whose worker died is tried again.
        watcher: Is told of every change.
        overwrite: Let the sweep take the place of another one in `out`.

    Returns:
        What was found. Cells that failed are told in it and raise nothing. When the sweep is stopped, what there is
        so far is in the folder.

    Raises:
        ConfigError: `out` holds another sweep or other runs.
        DualformError: A task cannot be found or used.
        StorageError: A folder or the store cannot be written to.
    """
    start = time.perf_counter()
    if engine.name in get_args(EngineName) and not store.shared:
        raise ConfigError(
            f"the store {store.shown} lies in the memory of this process, where the workers of engine {engine.name!r} "
            "do not see it: give a folder, or the URL of a bucket"
        )
    prepare_folder(out, config, groups, overwrite=overwrite)
    sweep = Sweep(
        groups,
        store,
        engine,
        retries=retries,
        about={"sweep": config.name},
        watcher=watcher or SilentObserver(),
    )
    records: dict[str, SweepGroup] = {}

    def finished(state: GroupState, cell: FinishedCell | None) -> None:
        records[state.group.name] = _write_group(out, state, cell)

    def so_far() -> SweepResult:
        seconds = round(time.perf_counter() - start, 1)
        # Where cells were computed, and by how many threads, their groups' results say.
        here = environment(torch.device("cpu"), seconds)
        return SweepResult(
            dualform=__version__,
            name=config.name,
            config=described(config, groups),
            environment={name: value for name, value in here.items() if name not in ("device", "threads")},
            engine=f"{engine.name}, {engine.workers} worker{'' if engine.workers == 1 else 's'}",
            groups=[records.get(state.group.name) or _group_record(state, None) for state in sweep.states],
            cells=cells_record(sweep.states),
            seconds=seconds,
            warnings=_warnings(sweep.states),
        )

    try:
        sweep.run(finished)
    except BaseException:
        # What stopped it is to be told, not what comes of writing to a disk that may be full.
        with contextlib.suppress(StorageError):
            write_sweep(out, so_far())
        raise
    result = so_far()
    write_sweep(out, result)
    return result


def prepare_folder(out: Path, config: SweepConfig, groups: Sequence[Group], *, overwrite: bool = False) -> None:
    """Make a sweep's folder and write `sweep.yaml` into it.

    Raises:
        ConfigError: It holds another sweep, or other runs where the groups' are to be, and `overwrite` is off.
        StorageError: It cannot be written to.
    """
    text = yaml.safe_dump(described(config, groups), sort_keys=False, allow_unicode=True)
    file = out / "sweep.yaml"
    if not overwrite:
        if file.exists() and not _same(file, text):
            raise ConfigError(
                f"{out} holds another sweep. Choose another folder with --out, or give --overwrite; finished cells are "
                "in the store and are not computed again."
            )
        run = next((group.name for group in groups if (out / group.name / "result.json").exists()), None)
        if run is not None and not file.exists():
            raise ConfigError(
                f"{out / run} holds a run that is not this sweep's. Choose another folder with --out, or give "
                "--overwrite."
            )
    writable_dir(out, _REMEDY)
    with atomic_write(file, _REMEDY) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _same(file: Path, text: str) -> bool:
    """Whether a sweep.yaml says what a text says; one that cannot be read does not."""
    try:
        return bool(yaml.safe_load(file.read_text(encoding="utf-8")) == yaml.safe_load(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False


def _write_group(out: Path, state: GroupState, cell: FinishedCell | None) -> SweepGroup:
    group = state.group
    result: Result | None = None
    if cell is not None:
        result, table, attention = _read_group(cell)
        # The same cell serves wherever its data lie; here they lie where these settings say.
        places = {name: value for name in PLACES if (value := getattr(group.config, name, None)) is not None}
        result = result.model_copy(update={"config": {**result.config, **places}})
        whole = state.whole
        assert whole is not None
        RunFolder(out / group.name, whole.cell.settings, overwrite=True).finish(result, table, attention)
    return _group_record(state, result)


def _read_group(cell: FinishedCell) -> tuple[Result, pa.Table, AttentionRecord | None]:
    """What a group's cell holds.

    Raises:
        DamagedCell: Its files are as they were written, and not what a cell of this kind holds.
    """
    try:
        result = Result.from_json(cell.read(RESULT).decode())
        table = pq.read_table(io.BytesIO(cell.read(EXAMPLES)))
        attention = AttentionRecord.from_json(cell.read(ATTENTION).decode()) if ATTENTION in cell.files else None
    except (ValueError, KeyError, RecursionError, OSError, pa.ArrowException) as error:
        raise DamagedCell(f"cell {cell.digest[:12]} does not hold a result ({one_line(error)})") from error
    return result, table, attention


def _group_record(state: GroupState, result: Result | None) -> SweepGroup:
    group = state.group
    missing = [one.cell.seed for one in state.seeds if one.status == "failed"]
    return SweepGroup(
        name=group.name,
        study=group.study,
        model=group.model,
        task=group.task,
        options=group.options,
        result=result,
        missing_seeds=tuple(seed for seed in missing if seed is not None),
    )


def _warnings(groups: Sequence[GroupState]) -> list[str]:
    """What a reader must know about the sweep as a whole."""
    found = []
    missing = [group for group in groups if group.whole is None or group.whole.status == "failed"]
    partly = [
        group for group in groups if group not in missing and any(state.status == "failed" for state in group.seeds)
    ]
    if missing:
        found.append(f"{len(missing)} of {len(groups)} groups have no result: {', '.join(_names(missing))}.")
    if partly:
        found.append(
            f"In {', '.join(_names(partly))} some seeds failed: their results stand on the others, and seeds that fail "
            "may not fail at random."
        )
    return found


def _names(groups: Sequence[GroupState]) -> list[str]:
    names = [group.group.name for group in groups]
    return names if len(names) <= 5 else [*names[:4], f"and {len(names) - 4} more"]
