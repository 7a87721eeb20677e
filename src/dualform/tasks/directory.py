"""Read a task folder: a `dataset.json` and one table for each split.

    {"name": "sst2", "label_names": ["negative", "positive"], "splits": {"train": {"file": "train.jsonl"}, ...}}

`label_names` is null for multiple choice. Each line of a split is one row, such as `{"text": "...", "label": 0}`, with
any further fields and, for multiple choice, `"choices": ["...", "..."]`. The validation split may be called `dev`,
`val` or `valid`.
"""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.files import read_bytes, show_path
from dualform.tasks.decoding import decode, parsing
from dualform.tasks.labels import abbreviate
from dualform.tasks.options import listed
from dualform.tasks.prompts import WORDINGS, Wording
from dualform.tasks.raw import RawTask, TableRows
from dualform.tasks.table import SUFFIXES, read_rows, table_suffix

SPLITS = ("train", "validation", "test")
VALIDATION_NAMES = ("validation", "valid", "val", "dev")
"""Names of the validation split in data sets, the one used here first."""
SPLIT_NAMES: Mapping[str, str] = {
    "train": "train",
    "training": "train",
    **dict.fromkeys(VALIDATION_NAMES, "validation"),
    "test": "test",
}
"""Standard name of a split by its name in a data set, in lower case."""
_LARGEST_DESCRIPTION = 1 << 24


def read_directory(folder: Path, paper_rows: bool = False) -> RawTask:
    """Rows of a folder with `dataset.json`, and the wording of a known task if its name and labels match.

    Args:
        folder: The folder.
        paper_rows: For a known task, read the files named by `Wording.paper_files` instead of the usual splits, if the
            folder has all of them.

    Raises:
        TaskError: `dataset.json` or the file of a split is missing or invalid.
    """
    about = read_description(folder)
    where = show_path(folder / "dataset.json")
    label_names = about.get("label_names")
    if label_names is not None and not (
        isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
    ):
        raise TaskError(f"{where}: label_names must be a list of texts or null, not {abbreviate(label_names)!r}.")
    if label_names is not None and (len(label_names) < 2 or len(set(label_names)) < len(label_names)):
        raise TaskError(
            f"{where}: label_names must be at least two different texts, not {listed(label_names) or '[]'}."
        )
    name = str(about.get("name") or folder.resolve().name)
    notes: list[str] = []
    names = None if label_names is None else tuple(label_names)
    wording = _known_wording(name, names)
    entries = None
    if paper_rows and wording is not None and wording.paper_files:
        entries = _paper_entries(folder, about, wording.paper_files, notes)
    if entries is None:
        entries = _split_entries(folder, about, notes)
    tables = {split: _read_split(folder / entry["file"]) for split, entry in entries.items()}
    for split, entry in entries.items():
        declared = entry.get("rows")
        if declared is not None and declared != len(tables[split].rows):
            notes.append(
                f"{entry['file']} has {len(tables[split].rows)} rows, but dataset.json says {abbreviate(declared)}."
            )
    return RawTask(
        name=name,
        source=str(folder),
        rows={split: table.rows for split, table in tables.items()},
        files={split: str(folder / entry["file"]) for split, entry in entries.items()},
        label_names=names,
        wording=wording,
        notes=(*notes, *(note for table in tables.values() for note in table.notes)),
        lines={split: table.lines for split, table in tables.items() if table.lines is not None},
        class_names=_class_names(tables, entries, names, where),
    )


def _class_names(
    tables: Mapping[str, TableRows],
    entries: Mapping[str, Mapping[str, Any]],
    label_names: Sequence[str] | None,
    where: str,
) -> dict[str, tuple[str, ...]]:
    """Class names by column. Raise `TaskError` if the files disagree with each other or with `label_names`."""
    names: dict[str, tuple[str, ...]] = {}
    first: dict[str, str] = {}
    for split, table in tables.items():
        file = entries[split]["file"]
        for column, these in table.class_names.items():
            if names.setdefault(column, these) != these:
                raise TaskError(
                    f"{where}: the class names of column {abbreviate(column)!r} are {listed(names[column])} in "
                    f"{first[column]} but {listed(these)} in {file}, so the same number means different classes. Write "
                    "both files with the same class names in the same order."
                )
            first.setdefault(column, file)
            # label_names may rename the classes, but must not list the same names in another order.
            if (
                label_names is not None
                and these != tuple(label_names)
                and _casefolded(these) == _casefolded(label_names)
            ):
                raise TaskError(
                    f"{where}: label_names are {listed(label_names)}, but {file} has the classes of column "
                    f"{abbreviate(column)!r} in another order: {listed(these)}. Write label_names in that order."
                )
    return names


def _casefolded(names: Sequence[str]) -> list[str]:
    return sorted(name.casefold() for name in names)


def _read_split(path: Path) -> TableRows:
    if not path.exists():
        raise TaskError(f"{show_path(path)} is missing, though dataset.json names it. Restore it.")
    return read_rows(path)


def read_description(folder: Path) -> dict[str, Any]:
    """The content of `dataset.json`.

    Raises:
        TaskError: The file is missing or not a JSON object.
    """
    path = folder / "dataset.json"
    if not path.exists():
        raise TaskError(
            f"{show_path(folder)} has no dataset.json. {_describe_tables(folder)}Give a single table, or add a "
            "dataset.json; {} is enough if the tables are called train, validation and test."
        )
    text = decode(read_bytes(path, _LARGEST_DESCRIPTION, TaskError), path, "JSON")
    with parsing(path, "JSON"):
        try:
            about = json.loads(text.removeprefix("\ufeff"))
        except json.JSONDecodeError as error:
            raise TaskError(f"{show_path(path)} is not JSON: {error}.") from error
    if not isinstance(about, dict):
        raise TaskError(
            f"{show_path(path)} must contain a JSON object with name, label_names and splits, not "
            f"{type(about).__name__}."
        )
    return about


def _split_entries(folder: Path, about: Mapping[str, Any], notes: list[str]) -> dict[str, Mapping[str, Any]]:
    declared = about.get("splits")
    where = show_path(folder / "dataset.json")
    if declared is None:
        declared = _split_files(folder)
    if not isinstance(declared, dict):
        raise TaskError(f"{where}: splits must be an object of splits, not {abbreviate(declared)}.")
    entries: dict[str, Mapping[str, Any]] = {}
    given: dict[str, str] = {}
    unused = []
    for name, entry in declared.items():
        split = SPLIT_NAMES.get(name.lower())
        if split is None:
            unused.append(name)
            continue
        file = entry.get("file") if isinstance(entry, dict) else None
        # A dataset.json must not refer to files outside its folder.
        if not isinstance(file, str) or Path(file).name != file:
            raise TaskError(f"{where}: split {name!r} must name a file in the folder, not {_quoted(file)}.")
        if table_suffix(Path(file)) is None:
            raise TaskError(
                f"{show_path(folder)} has no labelled rows: the file of split {name!r} is {abbreviate(file)}, not one "
                f"of {', '.join(SUFFIXES)}."
            )
        if split in entries:
            raise TaskError(
                f"{where} names two splits for {split}, {given[split]!r} and {name!r}. Remove or rename one of them."
            )
        entries[split], given[split] = entry, name
    if not entries:
        raise TaskError(f"{where} names no split. {_describe_tables(folder)}Name at least train under `splits`.")
    if unused:
        notes.append(
            f"Unused split{'s' if len(unused) > 1 else ''} of {show_path(folder)}: {listed(unused)}. Only "
            f"{', '.join(SPLITS)} are used."
        )
    return {split: entries[split] for split in SPLITS if split in entries}


def _paper_entries(
    folder: Path, about: Mapping[str, Any], files: Mapping[str, str], notes: list[str]
) -> dict[str, Mapping[str, Any]] | None:
    """The paper's files as splits, without any other; None if the folder lacks one of them."""
    extra = about.get("extra_files")
    extra = extra if isinstance(extra, dict) else {}
    entries = {split: extra[name] for split, name in files.items() if _is_table_in(folder, extra.get(name))}
    if len(entries) == len(files):
        listing = " and ".join(f"{entry['file']} for {split}" for split, entry in entries.items())
        notes.append(f"The rows are those that the code released with arXiv:2212.10559 reads: {listing}.")
        return entries
    missing = " and ".join(name for split, name in files.items() if split not in entries)
    notes.append(
        f"The code released with arXiv:2212.10559 reads different rows, which {show_path(folder)} does not contain. To "
        f"use them, add {missing} under `extra_files` in dataset.json, each with its file."
    )
    return None


def _is_table_in(folder: Path, entry: object) -> bool:
    file = entry.get("file") if isinstance(entry, dict) else None
    # A dataset.json must not refer to files outside its folder.
    return (
        isinstance(file, str)
        and Path(file).name == file
        and table_suffix(Path(file)) is not None
        and os.path.isfile(folder / file)
    )


def _quoted(file: object) -> str:
    return repr(abbreviate(file)) if isinstance(file, str) else abbreviate(file)


def _split_files(folder: Path) -> dict[str, Mapping[str, Any]]:
    """The files of a folder that have the usual names of splits."""
    entries: dict[str, Mapping[str, Any]] = {}
    for path in sorted(folder.iterdir()):
        suffix = table_suffix(path)
        stem = path.name.lower().removesuffix(".gz").removesuffix(suffix or "")
        if suffix is None or stem not in SPLIT_NAMES or not path.is_file():
            continue
        if stem in entries:
            raise TaskError(
                f"{show_path(folder)} contains {entries[stem]['file']} and {path.name}. Name the file of each split "
                "under `splits` in dataset.json."
            )
        entries[stem] = {"file": path.name}
    return entries


def _describe_tables(folder: Path) -> str:
    """A sentence that lists the tables in a folder and its subfolders, for a message."""
    try:
        files = sorted(path for pattern in ("*", "*/*") for path in folder.glob(pattern) if table_suffix(path))
    except OSError:
        return ""
    tables = [str(path.relative_to(folder)) for path in files if path.name != "dataset.json"]
    if not tables:
        return ""
    return f"It contains {', '.join(map(abbreviate, tables[:4]))}{' and more' if len(tables) > 4 else ''}. "


def _known_wording(name: str, label_names: tuple[str, ...] | None) -> Wording | None:
    wording = WORDINGS.get(name)
    # A folder may use a known name with other labels, for which the known words would be wrong.
    return wording if wording is not None and wording.label_names == label_names else None
