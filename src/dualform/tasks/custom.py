r"""Read a user's own task: a YAML file that names the data, the columns, the prompt and the label words.

    name: support-tickets
    data: tickets.csv            # a folder, a table or a known name; relative to this file
    text: body
    label: urgent
    prompt: "Ticket: {text}\nUrgent:"
    label_words: {"0": "no", "1": "yes"}
    separator: "\n\n"

Only `data` is required.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.labels import abbreviate
from dualform.tasks.options import END_OF_SEQUENCE, LabelWords, TaskOptions, listed, unescape
from dualform.tasks.table import table_suffix
from dualform.yaml_text import read_yaml

KEYS = ("name", "data", "text", "label", "prompt", "label_words", "separator", "choices")


@dataclass(frozen=True)
class CustomTask:
    """Content of the YAML file."""

    name: str
    data: str
    """A path, resolved against the folder of the YAML file, or the name of a task."""
    options: TaskOptions


def read_custom(path: Path) -> CustomTask:
    """Read a task's YAML file.

    Raises:
        LabelWordError: A label word is not text.
        TaskError: The file is missing or not a YAML mapping, has an unknown key, or lacks `data`.
    """
    about = read_yaml(path, TaskError, "task file")
    if not isinstance(about, dict):
        raise TaskError(f"{path} must contain keys and values ({', '.join(KEYS)}), not {type(about).__name__}.")
    for key in about:
        if key not in KEYS:
            nearest = get_close_matches(str(key), KEYS, n=1)
            hint = f"Did you mean {nearest[0]!r}? " if nearest else ""
            raise TaskError(f"{path} has the unknown key {abbreviate(key)!r}. {hint}The keys are {', '.join(KEYS)}.")
    if "separator" in about and about["separator"] is None:
        about["separator"] = END_OF_SEQUENCE
    for key in ("name", "data", "text", "label", "prompt", "separator"):
        if about.get(key) is not None and not isinstance(about[key], str):
            raise TaskError(f"{path}: {key} must be a text, not {abbreviate(about[key])}. Put it in quotes.")
    for key in ("prompt", "separator"):
        about[key] = unescape(about.get(key))
    if not about.get("data"):
        raise TaskError(f"{path} names no data. Add `data:` with a folder, a table or the name of a known task.")
    data_path = path.parent / about["data"]
    if data_path.suffix.lower() in (".yaml", ".yml"):
        raise TaskError(
            f"{path}: data is {about['data']!r}, another task file. Name a folder, a table or a known task instead."
        )
    return CustomTask(
        name=about.get("name") or path.stem,
        data=str(data_path) if os.path.exists(data_path) or table_suffix(data_path) is not None else about["data"],
        options=TaskOptions(
            text=about.get("text"),
            label=about.get("label"),
            prompt=about.get("prompt"),
            label_words=_label_words(path, about.get("label_words")),
            separator=about.get("separator"),
            choices=_choices(path, about.get("choices")),
        ),
    )


def _label_words(path: Path, given: Any) -> LabelWords | None:
    if given is None:
        return None
    if not isinstance(given, list | Mapping):
        raise LabelWordError(
            f"{path}: label_words must be a list or a mapping from label value to word, not {abbreviate(given)}."
        )
    words = list(given.values()) if isinstance(given, Mapping) else given
    for word in words:
        # YAML reads an unquoted yes or no as a truth value, and 1 as a number.
        if not isinstance(word, str):
            raise LabelWordError(f"{path}: label word {abbreviate(word)} is not text. Put it in quotes.")
    if not isinstance(given, Mapping):
        return words
    for value in given:
        if isinstance(value, bool) or not isinstance(value, str | int):
            raise LabelWordError(
                f"{path}: label value {abbreviate(value)} of label_words is not text. Put it in quotes."
            )
    if len({str(value) for value in given}) < len(given):
        raise LabelWordError(
            f"{path}: label_words names a label twice ({listed([str(v) for v in given])}). Name each label once."
        )
    return {str(value): word for value, word in given.items()}


def _choices(path: Path, given: Any) -> str | None:
    if given is None or isinstance(given, str):
        return given
    if isinstance(given, list) and given and all(isinstance(name, str) for name in given):
        return ",".join(given)
    raise TaskError(f"{path}: choices must name a column, or a list of columns, not {abbreviate(given)}.")
