"""Runs a sweep into its folder, as `dualform sweep` does."""

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
from dualform.runs.sweep_cells import PATH_SETTINGS
from dualform.runs.sweep_config import Group, SweepConfig, listed_configs
from dualform.runs.sweep_folder import write_sweep
from dualform.runs.worker import ATTENTION, EXAMPLES, RESULT
from dualform.studies.facts import environment
from dualform.studies.study import STUDIES
from dualform.sweep_result import SweepGroup, SweepResult

_REMEDY = "Free some space or choose another folder with --out."


def sweep_settings(config: SweepConfig, groups: Sequence[Group]) -> dict[str, Any]:
    """The content of `sweep.yaml` in a sweep's folder, from which the sweep can be run again."""
    if config.models or not {"model", "models"} & STUDIES[config.study].fields():
        return config.model_dump(mode="json", exclude_defaults=True)
    return listed_configs(config.name, groups)


def run_sweep(
    config: SweepConfig,
    groups: Sequence[Group],
    engine: Engine,
    *,
    out: Path,
    store: CellStore,
    retries: int = 2,
    observer: SweepObserver | None = None,
    overwrite: bool = False,
) -> SweepResult:
    """Run a sweep; write the folder of each group and the report of the sweep.

    When the sweep is interrupted, the folder holds the results so far.

    Args:
        config: Settings of the sweep, from `read_sweep_file`.
        groups: Groups of the sweep, from `read_sweep_file`.
        engine: Runs the cells, from `open_engine`; it is not closed.
        out: Folder of the sweep, created if it does not exist; folders of groups are overwritten.
        store: Store of finished cells.
        retries: Number of further attempts for a cell whose worker died.
        observer: Notified of every change.
        overwrite: Whether another sweep in `out` may be replaced.

    Returns:
        The results. Failed cells are listed there and raise no error.

    Raises:
        ConfigError: `out` holds another sweep or other runs.
        DualformError: A task cannot be found or used.
        StorageError: A folder or the store cannot be written to.
    """
    start = time.perf_counter()
    if engine.name in get_args(EngineName) and not store.shared:
        raise ConfigError(
            f"the store {store.redacted_url} is in the memory of this process, which the workers of engine "
            f"{engine.name!r} cannot access: give a folder, or the URL of a bucket"
        )
    prepare_folder(out, config, groups, overwrite=overwrite)
    sweep = Sweep(
        groups,
        store,
        engine,
        retries=retries,
        facts={"sweep": config.name},
        observer=observer or SilentObserver(),
    )
    records: dict[str, SweepGroup] = {}

    def write_finished_group(state: GroupState, cell: FinishedCell | None) -> None:
        records[state.group.name] = _write_group(out, state, cell)

    def current_result() -> SweepResult:
        seconds = round(time.perf_counter() - start, 1)
        # The groups' results name the device and threads that computed them.
        this_environment = environment(torch.device("cpu"), seconds)
        return SweepResult(
            dualform=__version__,
            name=config.name,
            config=sweep_settings(config, groups),
            environment={name: value for name, value in this_environment.items() if name not in ("device", "threads")},
            engine=f"{engine.name}, {engine.workers} worker{'' if engine.workers == 1 else 's'}",
            groups=[records.get(state.group.name) or _group_record(state, None) for state in sweep.states],
            cells=cells_record(sweep.states),
            seconds=seconds,
            warnings=_warnings(sweep.states),
        )

    try:
        sweep.run(write_finished_group)
    except BaseException:
        # The error that stopped the sweep matters more than one from writing to a full disk.
        with contextlib.suppress(StorageError):
            write_sweep(out, current_result())
        raise
    result = current_result()
    write_sweep(out, result)
    return result


def prepare_folder(out: Path, config: SweepConfig, groups: Sequence[Group], *, overwrite: bool = False) -> None:
    """Create a sweep's folder and write `sweep.yaml` into it.

    Raises:
        ConfigError: The folder holds another sweep, or a run in the folder of a group, and `overwrite` is off.
        StorageError: The folder cannot be written to.
    """
    text = yaml.safe_dump(sweep_settings(config, groups), sort_keys=False, allow_unicode=True)
    file = out / "sweep.yaml"
    if not overwrite:
        if file.exists() and not _has_same_settings(file, text):
            raise ConfigError(
                f"{out} holds another sweep. Choose another folder with --out, or give --overwrite; finished cells "
                "stay in the store and are not computed again."
            )
        run = next((group.name for group in groups if (out / group.name / "result.json").exists()), None)
        if run is not None and not file.exists():
            raise ConfigError(
                f"{out / run} holds a run that does not belong to this sweep. Choose another folder with --out, or "
                "give --overwrite."
            )
    writable_dir(out, _REMEDY)
    with atomic_write(file, _REMEDY) as temporary:
        temporary.write_text(text, encoding="utf-8")


def _has_same_settings(file: Path, text: str) -> bool:
    """Whether a sweep.yaml can be read and has the same content as a text."""
    try:
        return bool(yaml.safe_load(file.read_text(encoding="utf-8")) == yaml.safe_load(text))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return False


def _write_group(out: Path, state: GroupState, cell: FinishedCell | None) -> SweepGroup:
    group = state.group
    result: Result | None = None
    if cell is not None:
        result, table, attention = _read_group(cell)
        # A cell does not depend on the paths of its data, so those of this sweep are filled in.
        paths = {name: value for name in PATH_SETTINGS if (value := getattr(group.config, name, None)) is not None}
        result = result.model_copy(update={"config": {**result.config, **paths}})
        result_cell = state.result_cell
        assert result_cell is not None
        RunFolder(out / group.name, result_cell.cell.settings, overwrite=True).finish(result, table, attention)
    return _group_record(state, result)


def _read_group(cell: FinishedCell) -> tuple[Result, pa.Table, AttentionRecord | None]:
    """The result, examples table and attention record in a group's cell.

    Raises:
        DamagedCell: The cell's files have the right hashes but do not hold these.
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
    missing = [each.cell.seed for each in state.seeds if each.status == "failed"]
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
    """Warnings about missing results."""
    warnings = []
    missing = [group for group in groups if group.result_cell is None or group.result_cell.status == "failed"]
    partly = [
        group for group in groups if group not in missing and any(state.status == "failed" for state in group.seeds)
    ]
    if missing:
        warnings.append(f"{len(missing)} of {len(groups)} groups have no result: {', '.join(_names(missing))}.")
    if partly:
        warnings.append(
            f"Some seeds failed in {', '.join(_names(partly))}. The results of these groups are based on the other "
            "seeds and may be biased if failures depend on the seed."
        )
    return warnings


def _names(groups: Sequence[GroupState]) -> list[str]:
    names = [group.group.name for group in groups]
    return names if len(names) <= 5 else [*names[:4], f"and {len(names) - 4} more"]
