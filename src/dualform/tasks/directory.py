"""A folder of `dataset.json` and one `*.jsonl` file a split.

    {"name": "sst2", "label_names": ["negative", "positive"], "splits": {"train": {"file": "train.jsonl"}, ...}}

`label_names` is null for multiple choice. Each line of a split is one row: `{"text": "...", "label": 0}`, further
fields as the task has them, and `"choices": ["...", "..."]` for multiple choice.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dualform.errors import TaskError
from dualform.tasks.build import RawTask, Row
from dualform.tasks.prompts import WORDINGS, Wording

SPLITS = ("train", "validation", "test")


def read_directory(folder: Path) -> RawTask:
    """Rows of a folder with `dataset.json`.

    Args:
        folder: The folder.

    Returns:
        Its splits; the wording of a known task when name and labels are that task's.

    Raises:
        TaskError: `dataset.json` is missing or unfit, or a split's file is missing or unfit.
    """
    about = read_description(folder)
    label_names = about.get("label_names")
    if label_names is not None and not (
        isinstance(label_names, list) and all(isinstance(name, str) for name in label_names)
    ):
        raise TaskError(f"{folder / 'dataset.json'}: label_names must be a list of texts or null, not {label_names!r}.")
    name = str(about.get("name") or folder.resolve().name)
    rows: dict[str, list[Row]] = {}
    files: dict[str, str] = {}
    notes = []
    for split, entry in _split_entries(folder, about).items():
        path = folder / entry["file"]
        rows[split] = read_json_lines(path)
        files[split] = str(path)
        declared = entry.get("rows")
        if declared is not None and declared != len(rows[split]):
            notes.append(f"{entry['file']} holds {len(rows[split])} rows where dataset.json says {declared}.")
    names = None if label_names is None else tuple(label_names)
    return RawTask(
        name=name,
        source=str(folder),
        rows=rows,
        files=files,
        label_names=names,
        wording=_known_wording(name, names),
        notes=tuple(notes),
    )


def read_description(folder: Path) -> dict[str, Any]:
    """The contents of `dataset.json`.

    Raises:
        TaskError: It is missing, is no JSON object, or describes no labelled rows.
    """
    path = folder / "dataset.json"
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise TaskError(
            f"{folder} has no dataset.json. Give a folder with dataset.json and train.jsonl, or a single table."
        ) from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise TaskError(f"{path} is not JSON: {error}.") from error
    if not isinstance(about, dict):
        raise TaskError(
            f"{path} must hold a JSON object with name, label_names and splits, not {type(about).__name__}."
        )
    return about


def _split_entries(folder: Path, about: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    declared = about.get("splits")
    if declared is None:
        declared = {split: {"file": f"{split}.jsonl"} for split in SPLITS if (folder / f"{split}.jsonl").is_file()}
    entries = {}
    for split in SPLITS:
        entry = declared.get(split) if isinstance(declared, dict) else None
        if entry is None:
            continue
        file = entry.get("file") if isinstance(entry, dict) else None
        # A description from elsewhere must not reach files outside its folder.
        if not isinstance(file, str) or Path(file).name != file:
            raise TaskError(f"{folder / 'dataset.json'}: split {split!r} must name a file in the folder, not {file!r}.")
        if not file.endswith(".jsonl"):
            raise TaskError(f"{folder} holds no labelled rows: split {split!r} is {file}, not a .jsonl file.")
        entries[split] = entry
    if not entries:
        raise TaskError(f"{folder / 'dataset.json'} names no split. Name at least train.")
    return entries


def _known_wording(name: str, label_names: tuple[str, ...] | None) -> Wording | None:
    wording = WORDINGS.get(name)
    # A folder may borrow a known name for other labels; the known words would then be wrong.
    return wording if wording is not None and wording.label_names == label_names else None


def read_json_lines(path: Path) -> list[Row]:
    """Rows of a file with one JSON object a line.

    Raises:
        TaskError: The file is missing, not UTF-8, or has a line that is no JSON object.
    """
    rows: list[Row] = []
    try:
        # newline="\n": a text may hold U+2028 or \x85, at which other ways of splitting lines would cut.
        with path.open(encoding="utf-8-sig", newline="\n") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise TaskError(f"{path}, line {number}: expected a JSON object, found {line.strip()[:80]!r}.")
                rows.append(row)
    except FileNotFoundError:
        raise TaskError(f"{path} is not there, though dataset.json names it. Restore it.") from None
    except json.JSONDecodeError as error:
        raise TaskError(f"{path}, line {number}: not JSON ({error.msg}): {line.strip()[:80]!r}.") from error
    except UnicodeDecodeError as error:
        raise TaskError(f"{path} is not UTF-8 ({error.reason} at byte {error.start}). Convert it.") from error
    return rows
