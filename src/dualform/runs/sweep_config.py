"""The settings of a sweep: a grid of models, tasks and further axes, with several seeds each."""

import hashlib
import itertools
import json
import math
import re
import runpy
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, field_validator

from dualform.configuration import QUOTES, checked, read_settings
from dualform.errors import ConfigError
from dualform.seeds import Seeds
from dualform.studies.study import STUDIES, Study, find_study

_USUAL = "compare"
"""The default study of a sweep, which is left out of the names of groups."""
_OF_MODEL, _OF_TASK = ("model", "models"), ("task", "tasks")
MOST_CELLS = 10_000
"""Default limit of a sweep's cells, so that a mistake in a grid does not take an hour to expand."""


class SweepConfig(BaseModel):
    """A grid of runs. Everything but `models`, `tasks` and `seeds` has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    """Name of the sweep; by default its file's name."""
    study: str = _USUAL
    """The study to run for each model and task."""
    models: tuple[str | dict[str, Any], ...] = ()
    """Models, as for `load_model`, or mappings with `model` and settings for that model."""
    tasks: tuple[str | dict[str, Any], ...] = ()
    """Tasks, as for `load_task`, or mappings with `task` and settings for that task, such as `text` and `label`."""
    seeds: Seeds | None = None
    """A number for a single seed, `1..3` or a list for several; by default those of the study."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings of all runs, named as in the study's `config.yaml`."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Further axes: setting -> values; all combinations are run. A dot, as in `fold.strength`, selects a setting of a
    group."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: mappings of `model`, `task` or axes to values. A combination is left out if it matches
    all entries of a mapping."""

    @field_validator("study")
    @classmethod
    def _know_study(cls, name: str) -> str:
        if name not in STUDIES:
            raise ValueError(f"{name!r} is not a study: choose one of {', '.join(STUDIES.names())}")
        return name

    @field_validator("models", "tasks", mode="before")
    @classmethod
    def _as_tuple(cls, given: Any) -> Any:
        given = (given,) if isinstance(given, str | dict) else given
        if not isinstance(given, list | tuple):
            raise ValueError("should be a name or a list of names")
        for entry in given:
            if not isinstance(entry, str | dict):
                raise ValueError(f"{entry!r:.60} is not a name; {QUOTES}")
        return given


@dataclass(frozen=True)
class Group:
    """The runs of one model, one task and one set of options, with all seeds."""

    name: str
    """Name of its folder: model, task and options."""
    study: str
    config: BaseModel
    """The study's settings, with all seeds."""
    model: str | None
    task: str | None
    options: dict[str, Any]
    """Axis -> this group's value."""


def read_sweep_file(
    path: Path, *, trust_remote_code: bool = False, max_cells: int = MOST_CELLS
) -> tuple[SweepConfig, list[Group]]:
    """Read the settings of a sweep.

    Args:
        path: A YAML file, a Python file that assigns a list of study configurations to `configs`, or a sweep's folder.
        trust_remote_code: Run code that comes with the checkpoints. A YAML file cannot enable this, because it may
            come from another person.
        max_cells: Largest number of cells, checked before the grid is expanded.

    Returns:
        The sweep's settings and its groups.

    Raises:
        ConfigError: The file is invalid.
    """
    config, groups = _read(path, trust_remote_code, max_cells)
    if trust_remote_code:
        groups = [_trusted(group) for group in groups]
    return config, groups


def _read(path: Path, trust_remote_code: bool, max_cells: int) -> tuple[SweepConfig, list[Group]]:
    if path.is_dir():
        if not (path / "sweep.yaml").exists():
            raise ConfigError(f"{path} is a folder without sweep.yaml: give a sweep's file or its folder.")
        path = path / "sweep.yaml"
    if path.suffix == ".py":
        config, groups = _read_python(path)
        _require_max_cells(sum(map(_n_seeds, groups)), "its configurations need", max_cells)
        return config, groups
    given = read_settings(path, "sweep")
    if "configs" in given:
        config, groups = _read_listed(path, given)
        _require_max_cells(sum(map(_n_seeds, groups)), "its configurations need", max_cells)
    else:
        config = checked(SweepConfig, {"name": _default_name(path), **given}, f"{path}: ")
        groups = expand(config, max_cells)
    if not trust_remote_code and any(getattr(group.config, "trust_remote_code", False) for group in groups):
        raise ConfigError(
            f"{path}: trust_remote_code cannot be allowed by a file, because it runs code that comes with a "
            "checkpoint. Remove the line; if you trust the checkpoints, give --trust-remote-code on the command line."
        )
    return config, groups


def expand(config: SweepConfig, max_cells: int = MOST_CELLS) -> list[Group]:
    """The groups of a grid, one for each combination.

    Args:
        config: Settings of the sweep.
        max_cells: Largest number of cells, checked before the grid is expanded.

    Raises:
        ConfigError: An axis has no values, a setting is unknown, a combination is invalid, or there are too many.
    """
    study = STUDIES[config.study]
    fields = study.fields()
    models, tasks = _entries(config.models, "model", study), _entries(config.tasks, "task", study)
    grid = dict(config.grid)
    if not study.several_seeds and config.seeds is not None:
        grid["seeds"] = list(config.seeds)
    for name, values in (("models", models), ("tasks", tasks), *grid.items()):
        if not values:
            raise ConfigError(f"{name} is empty, so there is nothing to run: give at least one")
    if fixed := sorted(set(config.grid) & set(config.settings)):
        raise ConfigError(f"{', '.join(fixed)} is in both settings and grid: choose one")
    own = {"seeds", "study", *_OF_MODEL, *(_OF_TASK if "task" in fields else ())}
    for where, given in (("grid", config.grid), ("settings", config.settings)):
        if misplaced := sorted(own & set(given)):
            raise ConfigError(f"{', '.join(misplaced)} cannot be in {where}: give it at the top level of the file")
    for entry in (*models, *tasks):
        if duplicates := sorted(set(entry) & set(config.grid)):
            raise ConfigError(
                f"{', '.join(duplicates)} is set both for {next(iter(entry.values()))} and in grid: choose one"
            )
    size = len(models) * len(tasks) * math.prod(map(len, grid.values()))
    field = study.config().model_fields.get("seeds") if study.several_seeds else None
    seeds = (config.seeds or field.default) if field is not None else (1,)
    _require_max_cells(size * len(seeds), f"the grid's {size} combinations with {len(seeds)} seeds are", max_cells)
    groups = []
    for model, task, *values in itertools.product(models, tasks, *grid.values()):
        options = dict(zip(grid, values, strict=True))
        if any(_matches(excluded, model, task, options) for excluded in config.exclude):
            continue
        settings = {**config.settings, **model, **task}
        for name, value in options.items():
            _put(settings, name, value)
        if config.seeds is not None and study.several_seeds:
            settings["seeds"] = config.seeds
        where = ", ".join(f"{name} {value}" for name, value in {**_named(model, task), **options}.items())
        groups.append(_group(config.study, _build(study, settings, where), options))
    if not groups:
        raise ConfigError("exclude removes all combinations of the grid: remove entries from exclude")
    return _with_unique_names(groups)


def groups_of(configs: Iterable[BaseModel]) -> list[Group]:
    """One group for each of several study configurations.

    Raises:
        ConfigError: One of them does not belong to a study, or two are equal.
    """
    groups = []
    for number, config in enumerate(configs):
        study = find_study(config)
        if study is None:
            raise ConfigError(f"configs[{number}] is a {type(config).__name__}, not the configuration of a study")
        groups.append(_group(study.name, config, {}))
    if not groups:
        raise ConfigError("configs is empty, so there is nothing to run")
    seen: set[str] = set()
    for number, group in enumerate(groups):
        settings = f"{group.study} {group.config.model_dump_json()}"
        if settings in seen:
            raise ConfigError(f"configs[{number}] is equal to an earlier one: remove it")
        seen.add(settings)
    return _with_unique_names(groups)


def listed_configs(name: str, groups: Iterable[Group]) -> dict[str, Any]:
    """The content of `sweep.yaml` for a sweep written in Python: a list of configurations."""
    return {
        "name": name,
        # trust_remote_code must be given again when the file is run.
        "configs": [
            {"study": group.study, **group.config.model_dump(mode="json", exclude={"trust_remote_code"})}
            for group in groups
        ],
    }


def _trusted(group: Group) -> Group:
    if not hasattr(group.config, "trust_remote_code"):
        return group
    return replace(group, config=group.config.model_copy(update={"trust_remote_code": True}))


def _n_seeds(group: Group) -> int:
    return len(getattr(group.config, "seeds", ()) or (1,))


def _require_max_cells(cells: int, what: str, most: int) -> None:
    if cells > most:
        raise ConfigError(
            f"{what} {cells} cells, more than the limit of {most}: leave some out, or raise the limit with "
            f"--max-cells {cells}"
        )


def _read_python(path: Path) -> tuple[SweepConfig, list[Group]]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a sweep's file (.yaml or .py) or its folder.")
    try:
        # Running the file is safe, because the user could equally run it with Python.
        sys.path.insert(0, str(path.resolve().parent))
        configs = runpy.run_path(str(path)).get("configs")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(configs, list | tuple):
        raise ConfigError(f"{path} must assign a list of study configurations to `configs`")
    return SweepConfig(name=path.stem), groups_of(configs)


def _read_listed(path: Path, given: dict[str, Any]) -> tuple[SweepConfig, list[Group]]:
    if others := sorted(set(given) - {"name", "configs"}):
        raise ConfigError(f"{path}: {', '.join(others)} cannot be combined with configs: leave it out")
    if not isinstance(given["configs"], list):
        raise ConfigError(f"{path}: configs should be a list of study configurations")
    configs: list[BaseModel] = []
    for number, entry in enumerate(given["configs"]):
        study = entry.get("study") if isinstance(entry, dict) else None
        if not isinstance(study, str) or study not in STUDIES:
            raise ConfigError(f"{path}: configs[{number}] needs a study: one of {', '.join(STUDIES.names())}")
        kind = STUDIES[study].config()
        settings = {name: value for name, value in entry.items() if name != "study"}
        configs.append(checked(kind, settings, f"{path}: configs[{number}]: "))
    return SweepConfig(name=str(given.get("name") or path.stem)), groups_of(configs)


def _default_name(path: Path) -> str:
    # In a sweep's folder the file is always called sweep.yaml.
    return path.resolve().parent.name if path.name == "sweep.yaml" else path.stem


def _entries(given: Sequence[str | dict[str, Any]], kind: str, study: Study) -> list[dict[str, Any]]:
    """The models or tasks of a sweep; one empty entry for a study that has none."""
    if {kind, f"{kind}s"} & study.fields() & {"model", "models", "task"}:
        return [_entry(entry, kind) for entry in given]
    if given:
        raise ConfigError(f"study {study.name} has no setting for {kind}s: leave {kind}s out")
    return [{}]


def _entry(entry: str | dict[str, Any], kind: str) -> dict[str, Any]:
    if isinstance(entry, str):
        return {kind: entry}
    if not isinstance(entry.get(kind), str):
        raise ConfigError(f"{kind}s: {entry} must be a name, or a mapping with `{kind}: NAME` and further settings")
    return dict(entry)


def _named(model: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name, entry in (("model", model), ("task", task)) if name in entry}


def _matches(excluded: dict[str, Any], model: dict[str, Any], task: dict[str, Any], options: dict[str, Any]) -> bool:
    known = {**model, **task, **options}
    if unknown := sorted(set(excluded) - set(known)):
        raise ConfigError(f"exclude {excluded}: {', '.join(unknown)} is not an axis; the axes are {', '.join(known)}")
    return all(known[name] in (value if isinstance(value, list) else [value]) for name, value in excluded.items())


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    outer, dot, inner = name.partition(".")
    if not dot:
        settings[name] = value
        return
    group = settings.get(outer) or {}
    if not isinstance(group, dict):
        raise ConfigError(f"grid axis {name}: {outer} is not a group of settings")
    settings[outer] = {**group, inner: value}


def _build(study: Study, settings: dict[str, Any], where: str) -> BaseModel:
    given = dict(settings)
    if "models" in study.fields():
        given["models"] = (given.pop("model"),)
    try:
        return study.configure(**given)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}" if where else str(error)) from error


def _group(study: str, config: BaseModel, options: dict[str, Any]) -> Group:
    models = getattr(config, "models", None) or ((config.model,) if hasattr(config, "model") else ())
    task = getattr(config, "task", None)
    parts = [*(_short_name(model) for model in models), *([] if task is None else [_short_name(task)])]
    if study != _USUAL:
        parts.append(study)
    options = {name: _as_read(config, name, value) for name, value in options.items()}
    parts += [f"{name}-{_format_value(value)}" for name, value in options.items()]
    name = folder_name("-".join(parts))
    model = " and ".join(map(_short_name, models)) or None
    return Group(name, study, config, model, None if task is None else _short_name(task), options)


def _as_read(config: BaseModel, name: str, value: Any) -> Any:
    """An axis' value as its setting reads it, where YAML reads a word such as `on` as a boolean."""
    read = getattr(config, name, None)
    return read if isinstance(value, bool) and isinstance(read, str) else value


def folder_name(text: str) -> str:
    """A text as the name of a folder: at most 120 bytes of letters, digits, `_`, `.`, `+` and `-`."""
    name = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    return name.encode()[:120].decode(errors="ignore") or "unnamed"


def _short_name(name: str) -> str:
    """The last part of a path or hub name, without the extension of a data file."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return last.rsplit(".", 1)[0] if last.rsplit(".", 1)[-1] in ("csv", "tsv", "jsonl", "json", "yaml", "yml") else last


def _format_value(value: Any) -> str:
    return "+".join(map(_format_value, value)) if isinstance(value, list | tuple) else str(value)


def _with_unique_names(groups: list[Group]) -> list[Group]:
    """Add a digest of the settings to names that occur more than once."""
    # Compared in lower case, because some file systems ignore case.
    counts = Counter(group.name.lower() for group in groups)
    unique = []
    for group in groups:
        name = group.name
        if counts[name.lower()] > 1:
            settings = json.dumps(group.config.model_dump(mode="json"), sort_keys=True)
            name = f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
        unique.append(replace(group, name=name))
    if len({group.name for group in unique}) < len(unique):
        raise ConfigError("two combinations of the grid have the same settings: remove the repeated value of an axis")
    return unique
