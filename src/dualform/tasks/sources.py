"""Find a task by name or path, and list what can be found."""

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from dualform.errors import TaskError
from dualform.files import expand_home, show_path
from dualform.tasks.build import build_task
from dualform.tasks.custom import read_custom
from dualform.tasks.directory import read_description, read_directory
from dualform.tasks.options import LabelWords, TaskOptions
from dualform.tasks.prompts import WORDINGS
from dualform.tasks.raw import RawTask
from dualform.tasks.table import read_table, table_suffix
from dualform.tasks.task import Task
from dualform.tasks.task_source import TASK_SOURCES, TaskSource, TaskSummary

DATA_VARIABLE = "DUALFORM_DATA"
YAML_SUFFIXES = (".yaml", ".yml")


def load_task(
    name_or_path: str | os.PathLike[str],
    *,
    data_dir: str | os.PathLike[str] | None = None,
    text: str | None = None,
    label: str | None = None,
    prompt: str | None = None,
    label_words: LabelWords | None = None,
    separator: str | None = None,
    choices: str | None = None,
    skip_bad_rows: bool = False,
    truncate: bool = False,
    paper_rows: bool = False,
) -> Task:
    """Load a task; the settings given come before those of the source.

    Looked for in this order: a YAML file (`custom.py`), a table (`table.py`), a folder with `dataset.json`
    (`directory.py`), a folder of that name in `data_dir` or `$DUALFORM_DATA`, a packaged set, the hub, a source of
    another package. `SOURCE:WHICH` with the name of such a source is looked for there at once.

    Args:
        name_or_path: A file, a folder, a known name, `owner/name[:config]` on the hub, or `SOURCE[:WHICH]`.
        data_dir: Folder of task folders; None is `$DUALFORM_DATA`.
        text: Column with the text; a prompt may call it `{text}`.
        label: Column with the label, `label` by default.
        prompt: Template with `{field}`s.
        label_words: In label order, by value, as `value=word` strings, or as one comma-separated text. Values of a
            table are numbered in sorted order. By default a known task's words, else the values themselves.
        separator: Text between demonstrations; `eos` is the model's end-of-sequence token.
        choices: Column with each row's list of choices, or several columns joined by commas.
        skip_bad_rows: Leave out rows that cannot be used, such as those with an empty text, and count them in a note.
        truncate: Cut texts that are too long to be read at all.
        paper_rows: Of a known task, read the rows that the code released with arXiv:2212.10559 reads, where the source
            has them; a note in the task says which rows were read.

    Returns:
        The task, with disjoint train, selection and report splits.

    Raises:
        HubError: Only the network could tell, and it did not.
        LabelWordError: Label words that do not fit the labels.
        TaskError: No such task, or one whose rows, columns or prompt do not fit.
    """
    options = TaskOptions(text, label, prompt, label_words, separator, choices, skip_bad_rows, truncate, paper_rows)
    return _find(os.fspath(name_or_path), data_dir, options).load()


def load_local_task(
    name_or_path: str | os.PathLike[str],
    options: TaskOptions,
    data_dir: str | os.PathLike[str] | None = None,
) -> Task | None:
    """The same as `load_task` without the network.

    Returns:
        The task; None where only the network has it.

    Raises:
        TaskError: No such task, or one whose rows, columns or prompt do not fit.
    """
    found = _find(os.fspath(name_or_path), data_dir, options)
    return found.load() if found.local else None


@dataclass(frozen=True)
class _Source:
    """Where a task's rows are."""

    read: Callable[[], RawTask]
    options: TaskOptions
    local: bool = True

    def load(self) -> Task:
        """Read the rows and make the task."""
        raw = self.read()
        try:
            return build_task(raw, self.options)
        except TaskError as error:
            if not raw.notes:
                raise
            # How the file was read is often why its rows do not fit.
            raise type(error)(f"{error} {' '.join(raw.notes)}") from error


def _find(given: str, data_dir: str | os.PathLike[str] | None, options: TaskOptions) -> _Source:
    path = expand_home(given)
    if path.suffix.lower() not in YAML_SUFFIXES:
        return _find_rows(given, data_dir, options)
    custom = read_custom(path)
    found = _find_rows(custom.data, data_dir, options.over(custom.options))

    def read() -> RawTask:
        raw = found.read()
        return replace(raw, name=custom.name, source=f"{path} ({raw.source})")

    return replace(found, read=read)


def available_tasks(data_dir: str | os.PathLike[str] | None = None) -> list[TaskSummary]:
    """What can be loaded by name.

    Folders in `data_dir` (or `$DUALFORM_DATA`), packaged sets, the hub's known tasks, what other packages list. A name
    found in several places is listed once, at the place that `load_task` takes.

    Raises:
        StorageError: The cache cannot be written.
        TaskError: `data_dir` is no folder.
    """
    found: dict[str, TaskSummary] = {}
    folder = _data_dir(data_dir)
    if folder is not None:
        for description in sorted(folder.glob("*/dataset.json")):
            summary = _summary_of(description.parent)
            if summary is not None:
                found[summary.name] = summary
    for source in TASK_SOURCES:
        for summary in source.tasks():
            found.setdefault(summary.name, summary)
    return list(found.values())


def _summary_of(folder: Path) -> TaskSummary | None:
    """None for a folder of plain text, which is no task."""
    try:
        about = read_description(folder)
        splits = about.get("splits") or {}
        if not all(str(split.get("file", "")).endswith(".jsonl") for split in splits.values()):
            return None
        names = about.get("label_names")
        wording = WORDINGS.get(str(about.get("name") or folder.name))
        if wording is not None and wording.label_names == (names and tuple(names)):
            return TaskSummary(folder.name, str(folder), wording.label_words, local=True)
        return TaskSummary(folder.name, str(folder), names and tuple(names), local=True)
    except (TaskError, AttributeError, TypeError, OSError) as error:
        # One broken folder must not hide the others.
        return TaskSummary(folder.name, f"{folder} (unusable: {error})", None, local=False)


def _data_dir(given: str | os.PathLike[str] | None) -> Path | None:
    chosen = given if given is not None else os.environ.get(DATA_VARIABLE)
    if not chosen:
        return None
    folder = expand_home(chosen)
    if not os.path.isdir(folder):
        origin = "--data-dir" if given is not None else f"${DATA_VARIABLE}"
        raise TaskError(
            f"{origin} is {show_path(folder)!r}, which is no folder. Give the folder that holds task folders."
        )
    return folder


def _find_rows(given: str, data_dir: str | os.PathLike[str] | None, options: TaskOptions) -> _Source:
    if ":" in given and (name := given.partition(":")[0]) in TASK_SOURCES:
        found = _in_source(TASK_SOURCES[name], given, options)
        if found is not None:
            return found
    # A path would lose one of an address's slashes.
    if re.match(r"[a-z][a-z0-9+.-]+://", given, re.IGNORECASE):
        raise TaskError(
            f"{show_path(given)} is an address, and tables are read from this machine only. Download the file and give "
            "its path."
        )
    path = expand_home(given)
    # os.path instead of Path's methods: those raise where a name is too long or a folder may not be entered.
    is_folder = os.path.isdir(path)
    if table_suffix(path) is not None or (os.path.exists(path) and not is_folder and given not in WORDINGS):
        return _Source(lambda: read_table(path), options)
    is_path = path.is_absolute() or given.startswith((".", "~")) or given.endswith("/") or given.count("/") > 1
    # "data/sst2" has the shape of a hub address too; where data is a folder here, it is meant as a path.
    is_path = is_path or ("/" in given and os.path.isdir(path.parent))
    if is_folder and (is_path or os.path.isfile(path / "dataset.json")):
        return _Source(lambda: read_directory(path, options.paper_rows is True), options)
    if is_path:
        raise TaskError(f"{show_path(given)} is not there. Check the path.")
    folder = _data_dir(data_dir)
    if folder is not None:
        if os.path.isfile(folder / given / "dataset.json"):
            return _Source(lambda: read_directory(folder / given, options.paper_rows is True), options)
        # It may also be the task's own folder.
        if os.path.isfile(folder / "dataset.json") and _is_named(folder, given):
            return _Source(lambda: read_directory(folder, options.paper_rows is True), options)
    for source in TASK_SOURCES:
        found = _in_source(source, given, options)
        if found is not None:
            return found
    if is_folder:
        # Not a known name, so the folder of that name is meant; what it lacks is said there.
        return _Source(lambda: read_directory(path, options.paper_rows is True), options)
    raise _unknown(given, folder)


def _in_source(source: TaskSource, given: str, options: TaskOptions) -> _Source | None:
    which = source.find(given)
    if which is None:
        return None
    return _Source(lambda: source.read(which, options), options, local=source.is_local(which))


def _is_named(folder: Path, name: str) -> bool:
    return name in (folder.resolve().name, read_description(folder).get("name"))


def _unknown(given: str, data_dir: Path | None) -> TaskError:
    names: Sequence[str] = [summary.name for summary in available_tasks(data_dir)]
    nearest = get_close_matches(given, names, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    searched = f"in {data_dir}, " if data_dir is not None else ""
    return TaskError(
        f"no task {show_path(given)!r} {searched}among the packaged sets or the hub's known names. {hint}There are: "
        f"{', '.join(names)}. Or give a .yaml file, a table, a folder with dataset.json, or owner/name on the hub; "
        f"--data-dir (or ${DATA_VARIABLE}) adds a folder of tasks, and a package adds a source by an entry point in "
        f"{TASK_SOURCES.group}."
    )
