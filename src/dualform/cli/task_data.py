"""What the command line says about a task, and a look at the data before anything that takes seconds to load."""

from pathlib import Path
from typing import Any

from dualform.configuration import read_settings
from dualform.errors import ConfigError
from dualform.tasks.options import TaskOptions, unescape
from dualform.tasks.sources import load_local_task
from dualform.tasks.task import Task

_TEXTS = ("text", "label", "choices", "prompt", "separator")


def task_settings(
    data_dir: str | None,
    text: str | None,
    label: str | None,
    choices: str | None,
    prompt: str | None,
    label_words: str | None,
    separator: str | None,
    *,
    skip_bad_rows: bool,
    truncate: bool,
) -> dict[str, Any]:
    """Settings of a study that say how its task is read, as they were typed."""
    return {
        "data_dir": data_dir,
        "text": text,
        "label": label,
        "choices": choices,
        "prompt": unescape(prompt),
        "label_words": unescape(label_words),
        "separator": unescape(separator),
        "skip_bad_rows": skip_bad_rows or None,
        "truncate": truncate or None,
    }


def check_task(task: str, settings: dict[str, Any]) -> Task | None:
    """Read a task that lies on this machine.

    Returns:
        The task; None where only the network has it, so that the study is to load it.

    Raises:
        TaskError: It cannot be found or used.
    """
    options = TaskOptions(**{name: value for name, value in settings.items() if name != "data_dir"})
    return load_local_task(task, options, settings["data_dir"])


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
    if given.get("study", "compare") == "regress" or (isinstance(grid, dict) and names & set(grid)):
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
            load_local_task(one["task"], TaskOptions(**about), data_dir)
