"""A folder of `dataset.json` and one table a split.

    {"name": "sst2", "label_names": ["negative", "positive"], "splits": {"train": {"file": "train.jsonl"}, ...}}

`label_names` is null for multiple choice. Each line of a split is one row: `{"text": "...", "label": 0}`, further
fields as the task has them, and `"choices": ["...", "..."]` for multiple choice. Validation may be called `dev`, `val`
or `valid`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.files import read_bytes, show_path
from dualform.tasks.decoding import decode, parsing
from dualform.tasks.labels import shown
from dualform.tasks.options import listed
from dualform.tasks.prompts import WORDINGS, Wording
from dualform.tasks.raw import RawTask, TableRows
from dualform.tasks.table import SUFFIXES, read_rows, table_suffix

SPLITS = ("train", "validation", "test")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""What data sets call the split that choices are made on, ours first."""
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
    "test": "test",
}
"""Name of a split, in lower case -> what it is called here."""
_LARGEST_DESCRIPTION = 1 << 24


def read_directory(folder: Path, paper_rows: bool = False) -> RawTask:
    """Rows of a folder with `dataset.json`.

    Args:
        folder: The folder.
        paper_rows: Of a known task, read the files that `Wording.paper_files` names in place of the splits, where the
            folder has all of them.

    Returns:
        Its splits; the wording of a known task when name and labels are that task's.

    Raises:
        TaskError: `dataset.json` is missing or unfit, or a split's file is missing or unfit.
    """
    about = read_description(folder)
    where = show_path(folder / "dataset.json")
    label_names = about.get("label_names")
    if label_names is not None and not (
        isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
    ):
        raise TaskError(f"{where}: label_names must be a list of texts or null, not {shown(label_names)!r}.")
    if label_names is not None and (len(label_names) < 2 or len(set(label_names)) < len(label_names)):
        raise TaskError(f"{where}: label_names must be two different texts or more, not {listed(label_names) or '[]'}.")
    name = str(about.get("name") or folder.resolve().name)
    notes: list[str] = []
    names = None if label_names is None else tuple(label_names)
    wording = _known_wording(name, names)
    entries = None
    if paper_rows and wording is not None and wording.paper_files:
        entries = _paper_entries(folder, about, wording.paper_files, notes)
    if entries is None:
        entries = _split_entries(folder, about, notes)
    found = {split: _read_split(folder / entry["file"]) for split, entry in entries.items()}
    for split, entry in entries.items():
        declared = entry.get("rows")
        if declared is not None and declared != len(found[split].rows):
            notes.append(
                f"{entry['file']} holds {len(found[split].rows)} rows where dataset.json says {shown(declared)}."
            )
    return RawTask(
        name=name,
        source=str(folder),
        rows={split: table.rows for split, table in found.items()},
        files={split: str(folder / entry["file"]) for split, entry in entries.items()},
        label_names=names,
        wording=wording,
        notes=(*notes, *(note for table in found.values() for note in table.notes)),
        lines={split: table.lines for split, table in found.items() if table.lines is not None},
        class_names=_class_names(found, entries, names, where),
    )


def _class_names(
    found: Mapping[str, TableRows],
    entries: Mapping[str, Mapping[str, Any]],
    label_names: Sequence[str] | None,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """Column -> names of its numbers, on which all files and `label_names` must agree."""
    names: dict[str, tuple[str, ...]] = {}
    first: dict[str, str] = {}
    for split, table in found.items():
        file = entries[split]["file"]
        for column, these in table.class_names.items():
            if names.setdefault(column, these) != these:
                raise TaskError(
                    f"{where}: the numbers of column {shown(column)!r} are {listed(names[column])} in {first[column]} "
                    f"but {listed(these)} in {file}, so one number means two classes. Write both files with the same "
                    "class names in the same order."
                )
            first.setdefault(column, file)
            # Other names for the same classes are the description's to choose, another order of the same names is not.
            if label_names is not None and these != tuple(label_names) and _alike(these) == _alike(label_names):
                raise TaskError(
                    f"{where}: label_names are {listed(label_names)}, but {file} names the numbers of column "
                    f"{shown(column)!r} in another order: {listed(these)}. Write them in that order."
                )
    return names


def _alike(names: Sequence[str]) -> list[str]:
    return sorted(name.casefold() for name in names)


def _read_split(path: Path) -> TableRows:
    if not path.exists():
        raise TaskError(f"{show_path(path)} is not there, though dataset.json names it. Restore it.")
    return read_rows(path)


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of `dataset.json`.

    Raises:
        TaskError: It is missing, is no JSON object, or describes no labelled rows.
    """
    path = folder / "dataset.json"
    if not path.exists():
        raise TaskError(
            f"{show_path(folder)} has no dataset.json. {_what_is_there(folder)}Give a single table, or add a "
            "dataset.json: {} is enough where the tables are called train, validation and test."
        )
    text = decode(read_bytes(path, _LARGEST_DESCRIPTION, TaskError), path, "JSON")
    with parsing(path, "JSON"):
        try:
            about = json.loads(text.removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise TaskError(f"{show_path(path)} is not JSON: {error}.") from error
    if not isinstance(about, dict):
        raise TaskError(
            f"{show_path(path)} must hold a JSON object with name, label_names and splits, not {type(about).__name__}."
        )
    return about


def _split_entries(folder: Path, about: Mapping[str, Any], notes: list[str]) -> dict[str, Mapping[str, Any]]:
    declared = about.get("splits")
    where = show_path(folder / "dataset.json")
    if declared is None:
        declared = _files_there(folder)
    if not isinstance(declared, dict):
        raise TaskError(f"{where}: splits must be an object of splits, not {shown(declared)}.")
    entries: dict[str, Mapping[str, Any]] = {}
    given: dict[str, str] = {}
    unused = []
    for name, entry in declared.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            unused.append(name)
            continue
        file = entry.get("file") if isinstance(entry, dict) else None
        # A description from elsewhere must not reach files outside its folder.
        if not isinstance(file, str) or Path(file).name != file:
            raise TaskError(f"{where}: split {name!r} must name a file in the folder, not {_quoted(file)}.")
        if table_suffix(Path(file)) is None:
            raise TaskError(
                f"{show_path(folder)} holds no labelled rows: split {name!r} is {shown(file)}, not one of "
                f"{', '.join(SUFFIXES)}."
            )
        if split in entries:
            raise TaskError(
                f"{where} names two splits for {split}, {given[split]!r} and {name!r}. Leave one out, or rename it."
            )
        entries[split], given[split] = entry, name
    if not entries:
        raise TaskError(f"{where} names no split. {_what_is_there(folder)}Name at least train under splits.")
    if unused:
        notes.append(
            f"Left out: split{'s' if len(unused) > 1 else ''} {listed(unused)} of {show_path(folder)}; the names of "
            f"splits are {', '.join(SPLITS)}."
        )
    return {split: entries[split] for split in SPLITS if split in entries}


def _paper_entries(
    folder: Path, about: Mapping[str, Any], files: Mapping[str, str], notes: list[str]
) -> dict[str, Mapping[str, Any]] | None:
    """The paper's files as splits; None where the folder lacks one. Other splits are left out: their texts differ."""
    extra = about.get("extra_files")
    extra = extra if isinstance(extra, dict) else {}
    entries = {split: extra[name] for split, name in files.items() if _is_there(folder, extra.get(name))}
    if len(entries) == len(files):
        listing = " and ".join(f"{entry['file']} for {split}" for split, entry in entries.items())
        notes.append(f"The rows are those that the code released with arXiv:2212.10559 reads: {listing}.")
        return entries
    missing = " and ".join(name for split, name in files.items() if split not in entries)
    notes.append(
        f"The code released with arXiv:2212.10559 reads other rows than these. {show_path(folder)} does not hold them: "
        f"add {missing} under extra_files in dataset.json, each with its file."
    )
    return None


def _is_there(folder: Path, entry: object) -> bool:
    file = entry.get("file") if isinstance(entry, dict) else None
    # A description from elsewhere must not reach files outside its folder.
    return (
        isinstance(file, str)
        and Path(file).name == file
        and table_suffix(Path(file)) is not None
        and os.path.isfile(folder / file)
    )


def _quoted(file: object) -> str:
    return repr(shown(file)) if isinstance(file, str) else shown(file)


def _files_there(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The usual files that lie in a folder whose description names none."""
    found: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        suffix = table_suffix(path)
        stem = path.name.lower().removesuffix(".gz").removesuffix(suffix or "")
        if suffix is None or stem not in SPLIT_NAMES or not path.is_file():
            continue
        if stem in found:
            raise TaskError(
                f"{show_path(folder)} holds {found[stem]['file']} and {path.name}. Name the file of each split under "
                "splits in dataset.json."
            )
        found[stem] = {"file": path.name}
    return found


def _what_is_there(folder: Path) -> str:
    """A sentence that lists the tables in a folder and in the folders in it, for a message."""
    try:
        files = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if table_suffix(path))
    except OSError:
        return ""
    tables = [str(path.relative_to(folder)) for path in files if path.name != "dataset.json"]
    return f"It holds {', '.join(map(shown, tables[:4]))}{' and more' if len(tables) > 4 else ''}. " if tables else ""


def _known_wording(name: str, label_names: tuple[str, ...] | None) -> Wording | None:
    wording = WORDINGS.get(name)
    # A folder may borrow a known name for other labels; the known words would then be wrong.
    return wording if wording is not None and wording.label_names == label_names else None
