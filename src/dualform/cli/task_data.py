"""A look at a sweep's data before anything that takes seconds to load."""

from pathlib import Path

from dualform.configuration import read_settings
from dualform.errors import ConfigError
from dualform.tasks.options import TaskOptions, unescape

_TEXTS = ("text", "label", "choices", "prompt", "separator")


def check_sweep_tasks(file: Path) -> None:
    """Read the tasks of a sweep's YAML file that lie on this machine.

    What is wrong with the file itself is left to `read_sweep_file`, and so is a task whose columns an axis of the grid
    changes.

    Raises:
        TaskError: One cannot be found or used.
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
        one = {"task": entry} if isinstance(entry, str) else entry
        if not isinstance(one, dict) or not isinstance(one.get("task"), str):
            continue
        about = {name: value for name, value in {**shared, **one}.items() if name in names and value is not None}
        if all(isinstance(about.get(name, ""), str) for name in (*_TEXTS, "data_dir")):
            for name in ("prompt", "separator"):
                about[name] = unescape(about.get(name))
            data_dir = about.pop("data_dir", None)
            from dualform.tasks.sources import load_local_task

            load_local_task(one["task"], TaskOptions(**about), data_dir)
