"""Reads the local data of a sweep, before the large libraries are loaded."""

from pathlib import Path

from dualform.configuration import read_settings
from dualform.errors import ConfigError
from dualform.tasks.options import TaskOptions, unescape

_TEXTS = ("text", "label", "choices", "prompt", "separator")


def check_sweep_tasks(file: Path) -> None:
    """Read the tasks of a sweep's YAML file that are on this machine, to report errors in them early.

    Errors in the YAML file itself are left to `read_sweep_file`, as are tasks whose columns are varied in the grid.

    Raises:
        TaskError: A task cannot be found or used.
    """
    path = file / "sweep.yaml" if file.is_dir() else file
    if path.suffix.lower() not in (".yaml", ".yml"):
        return
    try:
        given = read_settings(path, "sweep")
    except ConfigError:
        return
    names = {*TaskOptions.__dataclass_fields__, "data_dir"}
    grid = given.get("grid")
    if isinstance(grid, dict) and names & set(grid):
        return
    shared = given.get("settings")
    shared = shared if isinstance(shared, dict) else {}
    tasks = given.get("configs") or given.get("tasks") or ()
    for entry in [tasks] if isinstance(tasks, str | dict) else tasks if isinstance(tasks, list) else ():
        task = {"task": entry} if isinstance(entry, str) else entry
        if not isinstance(task, dict) or not isinstance(task.get("task"), str):
            continue
        settings = {name: value for name, value in {**shared, **task}.items() if name in names and value is not None}
        if all(isinstance(settings.get(name, ""), str) for name in (*_TEXTS, "data_dir")):
            for name in ("prompt", "separator"):
                settings[name] = unescape(settings.get(name))
            data_dir = settings.pop("data_dir", None)
            from dualform.tasks.sources import load_local_task

            load_local_task(task["task"], TaskOptions(**settings), data_dir)
