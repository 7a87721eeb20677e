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
    """Load a task. Settings given here override those of the source.

    The name is tried, in this order, as a YAML file, a table, a folder with `dataset.json`, a folder of that name in
    `data_dir` or `$DUALFORM_DATA`, a packaged set, a data set on the hub, and a task of another package.
    `SOURCE:WHICH` goes directly to the source of that name.

    Args:
        name_or_path: A file, a folder, a known name, `owner/name[:config]` on the hub, or `SOURCE[:WHICH]`.
        data_dir: Folder that contains task folders; None means `$DUALFORM_DATA`.
        text: Column with the text, which the prompt may then refer to as `{text}`.
        label: Column with the label, `label` by default.
        prompt: Template with `{field}`s.
        label_words: Words in label order, a mapping from label value to word, `value=word` strings, or one
            comma-separated text. The label values of a table are numbered in sorted order. By default the words of a
            known task, otherwise the label values.
        separator: Text between demonstrations; `eos` means the model's end-of-sequence token.
        choices: Column with each row's list of choices, or several columns joined by commas.
        skip_bad_rows: Leave out unusable rows, such as those with an empty text, and count them in a note.
        truncate: Cut texts longer than 1,000,000 characters instead of raising an error.
        paper_rows: For a known task, use the rows that the code released with arXiv:2212.10559 uses, if the source has
            them. A note in the task says which rows were read.

    Returns:
        The task, with disjoint train, selection and report splits.

    Raises:
        HubError: The name is not known locally and the hub did not answer.
        LabelWordError: The label words do not match the labels.
        TaskError: There is no such task, or its rows, columns or prompt do not match.
    """
    options = TaskOptions(text, label, prompt, label_words, separator, choices, skip_bad_rows, truncate, paper_rows)
    return _locate(os.fspath(name_or_path), data_dir, options).load()


def load_local_task(
    name_or_path: str | os.PathLike[str],
    options: TaskOptions,
    data_dir: str | os.PathLike[str] | None = None,
) -> Task | None:
    """Like `load_task`, without using the network; None for a task that is not available locally.

    Raises:
        TaskError: There is no such task, or its rows, columns or prompt do not match.
    """
    location = _locate(os.fspath(name_or_path), data_dir, options)
    return location.load() if location.local else None


@dataclass(frozen=True)
class _TaskLocation:
    """How to load a task whose source has been determined."""

    read: Callable[[], RawTask]
    options: TaskOptions
    local: bool = True

    def load(self) -> Task:
        """Read the rows and build the task."""
        raw = self.read()
        try:
            return build_task(raw, self.options)
        except TaskError as error:
            if not raw.notes:
                raise
            # The notes on how the file was read often explain the error.
            raise type(error)(f"{error} {' '.join(raw.notes)}") from error


def _locate(given: str, data_dir: str | os.PathLike[str] | None, options: TaskOptions) -> _TaskLocation:
    path = expand_home(given)
    if path.suffix.lower() not in YAML_SUFFIXES:
        return _locate_rows(given, data_dir, options)
    custom = read_custom(path)
    location = _locate_rows(custom.data, data_dir, options.with_defaults(custom.options))

    def read() -> RawTask:
        raw = location.read()
        return replace(raw, name=custom.name, source=f"{path} ({raw.source})")

    return replace(location, read=read)


def available_tasks(data_dir: str | os.PathLike[str] | None = None) -> list[TaskSummary]:
    """Tasks that can be loaded by name.

    These are the folders in `data_dir` (or `$DUALFORM_DATA`), the packaged sets, known tasks on the hub, and the tasks
    of other packages. A name with several sources is listed once, with the source that `load_task` would use.

    Raises:
        StorageError: The cache cannot be written.
        TaskError: `data_dir` is not a folder.
    """
    summaries: dict[str, TaskSummary] = {}
    folder = _data_dir(data_dir)
    if folder is not None:
        for description in sorted(folder.glob("*/dataset.json")):
            summary = _summary_of(description.parent)
            if summary is not None:
                summaries[summary.name] = summary
    for source in TASK_SOURCES:
        for summary in source.tasks():
            summaries.setdefault(summary.name, summary)
    return list(summaries.values())


def _summary_of(folder: Path) -> TaskSummary | None:
    """Summary of a task folder; None for a folder of plain text, which is not a task."""
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
            f"{origin} is {show_path(folder)!r}, which is not a folder. Give the folder that contains task folders."
        )
    return folder


def _locate_rows(given: str, data_dir: str | os.PathLike[str] | None, options: TaskOptions) -> _TaskLocation:
    if ":" in given and (name := given.partition(":")[0]) in TASK_SOURCES:
        location = _locate_in_source(TASK_SOURCES[name], given, options)
        if location is not None:
            return location
    # Checked before `Path` is used, which would drop one of the address's slashes.
    if re.match(r"[a-z][a-z0-9+.-]+://", given, re.IGNORECASE):
        raise TaskError(
            f"{show_path(given)} is an address, but tables are read from local files only. Download the file and give "
            "its path."
        )
    path = expand_home(given)
    # os.path, because Path's methods raise for names that are too long and for folders without permission.
    is_folder = os.path.isdir(path)
    if table_suffix(path) is not None or (os.path.exists(path) and not is_folder and given not in WORDINGS):
        return _TaskLocation(lambda: read_table(path), options)
    is_path = path.is_absolute() or given.startswith((".", "~")) or given.endswith("/") or given.count("/") > 1
    # "data/sst2" could also be a hub address; where the folder "data" exists, it is taken as a path.
    is_path = is_path or ("/" in given and os.path.isdir(path.parent))
    if is_folder and (is_path or os.path.isfile(path / "dataset.json")):
        return _TaskLocation(lambda: read_directory(path, options.paper_rows is True), options)
    if is_path:
        raise TaskError(f"{show_path(given)} does not exist. Check the path.")
    folder = _data_dir(data_dir)
    if folder is not None:
        if os.path.isfile(folder / given / "dataset.json"):
            return _TaskLocation(lambda: read_directory(folder / given, options.paper_rows is True), options)
        # The data folder may itself be the task's folder.
        if os.path.isfile(folder / "dataset.json") and _is_named(folder, given):
            return _TaskLocation(lambda: read_directory(folder, options.paper_rows is True), options)
    for source in TASK_SOURCES:
        location = _locate_in_source(source, given, options)
        if location is not None:
            return location
    if is_folder:
        # Reading the folder reports what it lacks.
        return _TaskLocation(lambda: read_directory(path, options.paper_rows is True), options)
    raise _unknown_task(given, folder)


def _locate_in_source(source: TaskSource, given: str, options: TaskOptions) -> _TaskLocation | None:
    which = source.find(given)
    if which is None:
        return None
    return _TaskLocation(lambda: source.read(which, options), options, local=source.is_local(which))


def _is_named(folder: Path, name: str) -> bool:
    return name in (folder.resolve().name, read_description(folder).get("name"))


def _unknown_task(given: str, data_dir: Path | None) -> TaskError:
    names: Sequence[str] = [summary.name for summary in available_tasks(data_dir)]
    nearest = get_close_matches(given, names, n=1)
    hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
    searched = f"in {data_dir}, " if data_dir is not None else ""
    return TaskError(
        f"no task {show_path(given)!r} {searched}among the packaged sets or the known hub names. {hint}Available: "
        f"{', '.join(names)}. You can also give a .yaml file, a table, a folder with dataset.json, or owner/name on "
        f"the hub; --data-dir (or ${DATA_VARIABLE}) adds a folder of tasks, and a package adds a source with an entry "
        f"point in {TASK_SOURCES.group}."
    )
