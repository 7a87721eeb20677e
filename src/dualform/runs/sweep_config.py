"""A sweep's file: models x tasks x further axes, each for several seeds, and what they share."""

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
"""The study of a sweep that names none; folders of its groups do not name it either."""
_OF_MODEL, _OF_TASK = ("model", "models"), ("task", "tasks")
MOST_CELLS = 10_000
"""Most cells of a sweep unless its command raises the limit: a slip in a grid should not cost an hour of planning."""


class SweepConfig(BaseModel):
    """A grid of runs. Everything but `models`, `tasks` and `seeds` has a default."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""
    """What the sweep is called; by default its file's name."""
    study: str = _USUAL
    """Which study each model and task is put through."""
    models: tuple[str | dict[str, Any], ...] = ()
    """Models, as `load_model` takes them; or a mapping with `model` and settings that go with it."""
    tasks: tuple[str | dict[str, Any], ...] = ()
    """Tasks, as `load_task` takes them; or a mapping with `task` and settings, such as `text` and `label` columns."""
    seeds: Seeds | None = None
    """A number for that seed alone, `1..3` or a list for several; the study's own where not given."""
    settings: dict[str, Any] = Field(default_factory=dict)
    """Settings that all runs share, as the study's `config.yaml` names them."""
    grid: dict[str, list[Any]] = Field(default_factory=dict)
    """Further axes: setting -> values; every combination is run. `fold.strength` reaches into a group of settings."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: mappings of `model`, `task` or axes to values, all of which must agree."""

    @field_validator("study")
    @classmethod
    def _know_study(cls, name: str) -> str:
        if name not in STUDIES:
            raise ValueError(f"{name!r} is no study: choose one of {', '.join(STUDIES.names())}")
        return name

    @field_validator("models", "tasks", mode="before")
    @classmethod
    def _read_one(cls, given: Any) -> Any:
        given = (given,) if isinstance(given, str | dict) else given
        if not isinstance(given, list | tuple):
            raise ValueError("should be a name or a list of names")
        for one in given:
            if not isinstance(one, str | dict):
                raise ValueError(f"{one!r:.60} is no name; {QUOTES}")
        return given


@dataclass(frozen=True)
class Group:
    """All cells that differ in nothing but their seed."""

    name: str
    """Of its folder: model, task and options."""
    study: str
    config: BaseModel
    """The study's settings, all seeds."""
    model: str | None
    task: str | None
    options: dict[str, Any]
    """Axis -> this group's value."""


def read_sweep_file(
    path: Path, *, trust_remote_code: bool = False, max_cells: int = MOST_CELLS
) -> tuple[SweepConfig, list[Group]]:
    """A sweep from its file.

    Args:
        path: YAML; a Python file that leaves a list of study configurations in `configs`; or a sweep's folder.
        trust_remote_code: Run code that comes with the checkpoints. A YAML file cannot allow it: whoever runs somebody
            else's file must allow it themselves.
        max_cells: Most cells, counted before any is made.

    Returns:
        The configuration (of a Python file, its list) and its groups.

    Raises:
        ConfigError: All that is wrong with it.
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
        _require_few(sum(map(_n_seeds, groups)), "its configurations ask for", max_cells)
        return config, groups
    given = read_settings(path, "sweep")
    if "configs" in given:
        config, groups = _read_listed(path, given)
        _require_few(sum(map(_n_seeds, groups)), "its configurations ask for", max_cells)
    else:
        config = checked(SweepConfig, {"name": _default_name(path), **given}, f"{path}: ")
        groups = expand(config, max_cells)
    if not trust_remote_code and any(getattr(group.config, "trust_remote_code", False) for group in groups):
        raise ConfigError(
            f"{path}: trust_remote_code cannot be allowed by a file, because it runs whatever code comes with a "
            "checkpoint. Take the line out; if you trust the checkpoints, give --trust-remote-code on the command line."
        )
    return config, groups


def expand(config: SweepConfig, max_cells: int = MOST_CELLS) -> list[Group]:
    """Every combination of the grid as a group.

    Args:
        config: The sweep's.
        max_cells: Most cells, counted before any is made.

    Raises:
        ConfigError: An axis without values, a setting that the study does not have, a combination that cannot be, too
            many combinations.
    """
    study = STUDIES[config.study]
    fields = study.fields()
    models, tasks = _entries(config.models, "model", study), _entries(config.tasks, "task", study)
    grid = dict(config.grid)
    if not study.several_seeds and config.seeds is not None:
        grid["seeds"] = list(config.seeds)
    for name, values in (("models", models), ("tasks", tasks), *grid.items()):
        if not values:
            raise ConfigError(f"{name} is empty, so there is nothing to run: name one at least")
    if fixed := sorted(set(config.grid) & set(config.settings)):
        raise ConfigError(f"{', '.join(fixed)} stands under settings and under grid: choose one")
    own = {"seeds", "study", *_OF_MODEL, *(_OF_TASK if "task" in fields else ())}
    for where, given in (("grid", config.grid), ("settings", config.settings)):
        if wrong := sorted(own & set(given)):
            raise ConfigError(f"{', '.join(wrong)} cannot stand under {where}: these have lines of their own")
    for entry in (*models, *tasks):
        if twice := sorted(set(entry) & set(config.grid)):
            raise ConfigError(
                f"{', '.join(twice)} stands beside {next(iter(entry.values()))} and under grid: choose one"
            )
    size = len(models) * len(tasks) * math.prod(map(len, grid.values()))
    field = study.config().model_fields.get("seeds") if study.several_seeds else None
    seeds = (config.seeds or field.default) if field is not None else (1,)
    _require_few(size * len(seeds), f"the grid's {size} combinations of {len(seeds)} seeds are", max_cells)
    groups = []
    for model, task, *chosen in itertools.product(models, tasks, *grid.values()):
        options = dict(zip(grid, chosen, strict=True))
        if any(_matches(one, model, task, options) for one in config.exclude):
            continue
        settings = {**config.settings, **model, **task}
        for name, value in options.items():
            _put(settings, name, value)
        if config.seeds is not None and study.several_seeds:
            settings["seeds"] = config.seeds
        where = ", ".join(f"{name} {value}" for name, value in {**_named(model, task), **options}.items())
        groups.append(_group(config.study, _build(study, settings, where), options))
    if not groups:
        raise ConfigError("exclude leaves nothing of the grid")
    return _with_different_names(groups)


def groups_of(configs: Iterable[BaseModel]) -> list[Group]:
    """Study configurations, such as a loop made, as groups.

    Raises:
        ConfigError: One of them is no study's, or two are the same.
    """
    groups = []
    for number, config in enumerate(configs):
        study = find_study(config)
        if study is None:
            raise ConfigError(f"configs[{number}] is a {type(config).__name__}, no study's configuration")
        groups.append(_group(study.name, config, {}))
    if not groups:
        raise ConfigError("configs is empty, so there is nothing to run")
    seen: set[str] = set()
    for number, group in enumerate(groups):
        settings = f"{group.study} {group.config.model_dump_json()}"
        if settings in seen:
            raise ConfigError(f"configs[{number}] is the same as one before it")
        seen.add(settings)
    return _with_different_names(groups)


def listed_configs(name: str, groups: Iterable[Group]) -> dict[str, Any]:
    """A list of configurations as YAML can keep it: what `sweep.yaml` holds for a sweep written in Python."""
    return {
        "name": name,
        # What is run from there must be trusted anew.
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


def _require_few(cells: int, what: str, most: int) -> None:
    if cells > most:
        raise ConfigError(
            f"{what} {cells} cells, and a sweep takes {most} at most: leave some out, or raise the limit with "
            f"--max-cells {cells}"
        )


def _read_python(path: Path) -> tuple[SweepConfig, list[Group]]:
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a sweep's file (.yaml or .py) or its folder.")
    try:
        # The user's own file, which they could as well give to Python.
        sys.path.insert(0, str(path.resolve().parent))
        found = runpy.run_path(str(path)).get("configs")
    except (Exception, SystemExit) as error:
        raise ConfigError(f"{path} raised {type(error).__name__}: {error}") from error
    finally:
        sys.path.remove(str(path.resolve().parent))
    if not isinstance(found, list | tuple):
        raise ConfigError(f"{path} must leave a list of study configurations in `configs`")
    return SweepConfig(name=path.stem), groups_of(found)


def _read_listed(path: Path, given: dict[str, Any]) -> tuple[SweepConfig, list[Group]]:
    if beside := sorted(set(given) - {"name", "configs"}):
        raise ConfigError(f"{path}: {', '.join(beside)} cannot stand beside configs, which says everything")
    if not isinstance(given["configs"], list):
        raise ConfigError(f"{path}: configs should be a list of study configurations")
    configs: list[BaseModel] = []
    for number, one in enumerate(given["configs"]):
        study = one.get("study") if isinstance(one, dict) else None
        if not isinstance(study, str) or study not in STUDIES:
            raise ConfigError(f"{path}: configs[{number}] names no study: {', '.join(STUDIES.names())}")
        kind = STUDIES[study].config()
        settings = {name: value for name, value in one.items() if name != "study"}
        configs.append(checked(kind, settings, f"{path}: configs[{number}]: "))
    return SweepConfig(name=str(given.get("name") or path.stem)), groups_of(configs)


def _default_name(path: Path) -> str:
    # The copy in a sweep's folder is called sweep.yaml whatever the sweep's name is.
    return path.resolve().parent.name if path.name == "sweep.yaml" else path.stem


def _entries(given: Sequence[str | dict[str, Any]], kind: str, study: Study) -> list[dict[str, Any]]:
    """The models or tasks of a sweep; one empty entry for a study that has none."""
    if {kind, f"{kind}s"} & study.fields() & {"model", "models", "task"}:
        return [_entry(one, kind) for one in given]
    if given:
        raise ConfigError(f"study {study.name} has no models and tasks of its own: leave {kind}s out")
    return [{}]


def _entry(one: str | dict[str, Any], kind: str) -> dict[str, Any]:
    if isinstance(one, str):
        return {kind: one}
    if not isinstance(one.get(kind), str):
        raise ConfigError(f"{kind}s: {one} must be a name, or a mapping with `{kind}: NAME` and settings beside it")
    return dict(one)


def _named(model: dict[str, Any], task: dict[str, Any]) -> dict[str, Any]:
    return {name: entry[name] for name, entry in (("model", model), ("task", task)) if name in entry}


def _matches(excluded: dict[str, Any], model: dict[str, Any], task: dict[str, Any], options: dict[str, Any]) -> bool:
    known = {**model, **task, **options}
    if unknown := sorted(set(excluded) - set(known)):
        raise ConfigError(f"exclude {excluded}: {', '.join(unknown)} is no axis; these are: {', '.join(known)}")
    return all(known[name] in (value if isinstance(value, list) else [value]) for name, value in excluded.items())


def _put(settings: dict[str, Any], name: str, value: Any) -> None:
    outer, dot, inner = name.partition(".")
    if not dot:
        settings[name] = value
        return
    held = settings.get(outer) or {}
    if not isinstance(held, dict):
        raise ConfigError(f"grid axis {name}: {outer} is no group of settings")
    settings[outer] = {**held, inner: value}


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
    parts = [*(_short(model) for model in models), *([] if task is None else [_short(task)])]
    if study != _USUAL:
        parts.append(study)
    parts += [f"{name}-{_told(value)}" for name, value in options.items()]
    name = folder_name("-".join(parts))
    model = " and ".join(_short(one) for one in models) or None
    return Group(name, study, config, model, None if task is None else _short(task), options)


def folder_name(text: str) -> str:
    """A text as the name of a folder, 120 bytes at most: letters, digits, `_`, `.`, `+` and `-`."""
    plain = re.sub(r"[^\w.+-]+", "-", text).strip("-.")
    return plain.encode()[:120].decode(errors="ignore") or "unnamed"


def _short(name: str) -> str:
    """The last part of a path or hub name."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return last.rsplit(".", 1)[0] if last.rsplit(".", 1)[-1] in ("csv", "tsv", "jsonl", "json", "yaml", "yml") else last


def _told(value: Any) -> str:
    return "+".join(map(_told, value)) if isinstance(value, list | tuple) else str(value)


def _with_different_names(groups: list[Group]) -> list[Group]:
    """Two folders of one last name, or options cut short, are told apart by some letters of their settings' digest."""
    # On some file systems capitals do not tell names apart.
    times = Counter(group.name.lower() for group in groups)
    found = []
    for group in groups:
        name = group.name
        if times[name.lower()] > 1:
            settings = json.dumps(group.config.model_dump(mode="json"), sort_keys=True)
            name = f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:8]}"
        found.append(Group(name, group.study, group.config, group.model, group.task, group.options))
    if len({group.name for group in found}) < len(found):
        raise ConfigError("two combinations of the grid have the same settings: an axis names a value twice")
    return found
