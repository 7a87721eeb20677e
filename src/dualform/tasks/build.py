"""From rows as a source has them to a checked task."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dualform.errors import LabelWordError, TaskError
from dualform.tasks.options import END_OF_SEQUENCE, NO_OPTIONS, TaskOptions, words_in_order
from dualform.tasks.prompts import Wording
from dualform.tasks.splits import arrange_splits
from dualform.tasks.task import Example, Task, Template

Row = Mapping[str, Any]

DEFAULT_SEPARATOR = "\n\n"


@dataclass(frozen=True)
class RawTask:
    """Rows as a reader found them, before prompt and label words."""

    name: str
    source: str
    """Where they come from, for people."""
    rows: Mapping[str, Sequence[Row]] = field(repr=False)
    """Rows of each split: `train`, `validation`, `test` or some of them."""
    files: Mapping[str, str]
    """What messages call each split: its file's path."""
    columns: TaskOptions = NO_OPTIONS
    """Columns that the source is known to use; `text`, `label` and `choices` where None."""
    label_names: tuple[str, ...] | None = None
    """Names of integer labels; None when the values of the label column are to be collected."""
    wording: Wording | None = None
    """Prompt and label words of a task that dualform knows."""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Numbering:
    """How a label value becomes an index."""

    names: tuple[str, ...] | None
    """Names in index order; None for multiple choice."""
    collected: bool
    """The names are the column's own values, so a number among them is a name; else a number is an index."""


def build_task(raw: RawTask, options: TaskOptions) -> Task:
    """Make the task: pick columns, number the labels, choose prompt and words, arrange the splits.

    Args:
        raw: What a reader found.
        options: The user's settings, which come first.

    Returns:
        A task with disjoint train, selection and report splits.

    Raises:
        LabelWordError: Label words that do not fit the labels.
        TaskError: A column that is not there, an empty text, a label that is no label, a template that does not
            fit, or too few rows.
    """
    columns = options.over(raw.columns)
    label = columns.label or "label"
    choices = _choice_columns(raw, columns)
    for split in raw.rows:
        _require_columns(raw, split, [label, *choices], "--label" if not choices else "--choices")
    wording = raw.wording
    if options.label not in (None, raw.columns.label or "label"):
        wording = None  # another column's labels: the known words do not stand for them
    template = _template(raw, options, columns.text, wording, hidden={label, *choices})
    label_names = None if choices else _label_names(raw, label, options)
    label_words = _label_words(raw, options, label_names, wording)
    numbering = _Numbering(label_names, collected=label_names is not None and label_names is not raw.label_names)
    examples = {
        split: [
            _example(raw, split, number, row, columns.text, label, choices, numbering, template)
            for number, row in enumerate(rows)
        ]
        for split, rows in raw.rows.items()
    }
    arranged = arrange_splits(examples, template.fields, raw.name)
    paper_split = wording.paper_split if wording else None
    return Task(
        name=raw.name,
        source=raw.source,
        splits=arranged.splits,
        template=template,
        label_words=label_words,
        label_names=label_names,
        selection_split=arranged.selection_split,
        report_split=arranged.report_split,
        paper_split=paper_split if paper_split in arranged.splits else None,
        notes=(*raw.notes, *arranged.notes),
    )


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _require_columns(raw: RawTask, split: str, names: Sequence[str], option: str) -> None:
    there = _columns_of(raw.rows[split])
    for name in names:
        if there and name not in there:
            raise TaskError(
                f"{raw.files[split]} has no column {name!r}; its columns: {', '.join(there)}. Name one with {option}."
            )


def _choice_columns(raw: RawTask, columns: TaskOptions) -> list[str]:
    """Columns that hold the choices: one with lists, or one a choice; none for classification."""
    if columns.choices is not None:
        return [name.strip() for name in columns.choices.split(",")]
    if raw.label_names is not None:
        return []
    # Only lists: a table may well have a column of that name with something else in it.
    rows = [row for rows in raw.rows.values() for row in rows]
    return ["choices"] if rows and all(isinstance(row.get("choices"), list) for row in rows) else []


def _template(
    raw: RawTask, options: TaskOptions, text: str | None, wording: Wording | None, hidden: set[str]
) -> Template:
    if text is not None:
        for split in raw.rows:
            _require_columns(raw, split, [text], "--text")
    columns = [name for name in _columns_of(raw.rows.get("train", ())) if name not in hidden]
    separator: str | None = DEFAULT_SEPARATOR
    if wording is not None:
        separator = wording.template.separator
    if options.separator is not None:
        separator = None if options.separator == END_OF_SEQUENCE else options.separator
    if options.prompt is not None:
        return Template(options.prompt, separator)
    if wording is not None:
        return Template(wording.template.prompt, separator)
    if text is None and "text" not in columns:
        raise TaskError(
            f"{raw.files.get('train', raw.source)} has no column 'text'; its columns besides the label: "
            f"{', '.join(columns) or 'none'}. Name one with --text, or several in a --prompt."
        )
    return Template("Text: {text}\nLabel:", separator)


def _label_names(raw: RawTask, label: str, options: TaskOptions) -> tuple[str, ...]:
    if raw.label_names is not None and label == (raw.columns.label or "label"):
        return raw.label_names
    values: dict[str, None] = {}
    n_rows = 0
    for split, rows in raw.rows.items():
        for number, row in enumerate(rows):
            values[_label_value(raw, split, number, row, label)] = None
            n_rows += 1
    if len(values) < 2:
        raise TaskError(
            f"column {label!r} of {raw.source} holds one value only ({', '.join(values) or 'none'}). A task needs two "
            "labels or more; name the label column with --label."
        )
    if len(values) == n_rows > 2:
        raise TaskError(
            f"column {label!r} of {raw.source} holds {n_rows} different values in {n_rows} rows, so it is no label. "
            "Name the label column with --label."
        )
    return tuple(_sorted_values(values))


def _sorted_values(values: Mapping[str, None]) -> list[str]:
    try:
        return sorted(values, key=float)  # "10" after "9"
    except ValueError:
        return sorted(values)


def _label_value(raw: RawTask, split: str, number: int, row: Row, label: str) -> str:
    value = row.get(label)
    where = f"{raw.files[split]}, row {number} (counting from 0)"
    if value is None or (isinstance(value, str) and not value.strip()):
        raise TaskError(f"{where}: column {label!r} has no label. Fill it or remove the row.")
    if isinstance(value, float):
        if not value.is_integer():
            raise TaskError(f"{where}: label {value} is a number between classes. Use whole numbers or names.")
        value = int(value)
    if not isinstance(value, str | int):
        raise TaskError(f"{where}: label {value!r} is neither a whole number nor a text.")
    return str(value).strip()


def _label_words(
    raw: RawTask, options: TaskOptions, label_names: tuple[str, ...] | None, wording: Wording | None
) -> tuple[str, ...] | None:
    if label_names is None:
        if options.label_words is not None:
            raise LabelWordError(
                f"task {raw.name!r} is multiple choice: each row has its own choices, so the label words "
                f"{options.label_words!r} have no place. Leave them out."
            )
        return None
    if options.label_words is not None:
        return words_in_order(options.label_words, label_names, raw.name)
    if wording is not None and wording.label_words is not None:
        return wording.label_words
    return words_in_order(label_names, label_names, raw.name)


def _example(
    raw: RawTask,
    split: str,
    number: int,
    row: Row,
    text: str | None,
    label: str,
    choice_columns: Sequence[str],
    numbering: _Numbering,
    template: Template,
) -> Example:
    where = f"{raw.files[split]}, row {number} (counting from 0)"
    texts = {
        name: str(value)
        for name, value in row.items()
        if name != label and name not in choice_columns and isinstance(value, str | int | float)
    }
    if text is not None and text in texts:
        texts["text"] = texts[text]
    for name in template.fields:
        if name not in texts and name not in row and not (name == "text" and text is not None):
            raise TaskError(
                f"{where}: the prompt {template.prompt!r} names the field {{{name}}}, which is not there; the fields: "
                f"{', '.join(texts) or 'none'}."
            )
        if name in (label, *choice_columns):
            raise TaskError(
                f"the prompt {template.prompt!r} shows {{{name}}}, which holds the answer. Use other fields: "
                f"{', '.join(texts) or 'none'}."
            )
        if not texts.get(name, "").strip():
            raise TaskError(f"{where}: the text of {name!r} is empty. Fill it or remove the row.")
    value = _label_value(raw, split, number, row, label)
    choices = _choices(row, choice_columns, where) if choice_columns else None
    is_index = not numbering.collected and not isinstance(row[label], str)
    return Example(texts, _label_index(value, numbering, is_index, where, choices), number, choices)


def _label_index(value: str, numbering: _Numbering, is_index: bool, where: str, choices: Sequence[str] | None) -> int:
    names = numbering.names or ()
    if not is_index and value in names:
        return names.index(value)
    try:
        index = int(value)
    except ValueError:
        what = f"the labels {', '.join(names)}" if choices is None else "the numbers of the choices"
        raise TaskError(f"{where}: label {value!r} is not among {what}. Correct it.") from None
    n_answers = len(names) if choices is None else len(choices)
    if not 0 <= index < n_answers:
        raise TaskError(
            f"{where}: label {index} is not among the {n_answers} {'labels' if choices is None else 'choices'}, which "
            "are numbered from 0. Correct it."
        )
    return index


def _choices(row: Row, columns: Sequence[str], where: str) -> tuple[str, ...]:
    found = [row.get(name) for name in columns]
    if len(columns) == 1:
        only = found[0]
        if isinstance(only, str):
            # A CSV cell can hold a list only as text.
            try:
                only = json.loads(only)
            except json.JSONDecodeError:
                only = None
        if not isinstance(only, list):
            raise TaskError(
                f'{where}: column {columns[0]!r} must hold a list of choices (in CSV as ["one", "other"]), not '
                f"{row.get(columns[0])!r}."
            )
        found = only
    if any(value is None or (isinstance(value, float) and math.isnan(value)) for value in found):
        raise TaskError(f"{where}: a choice is missing in {', '.join(columns)}. Fill it or remove the row.")
    return tuple(str(value) for value in found)
