"""Build a checked task from the rows of a source."""

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time
from decimal import Decimal
from typing import Any

from dualform.errors import LabelWordError, TaskError
from dualform.files import show_path
from dualform.tasks.labels import (
    LabelColumn,
    MissingLabel,
    UnusableError,
    abbreviate,
    clean_text,
    collect_labels,
    read_label,
    text_fault,
)
from dualform.tasks.options import END_OF_SEQUENCE, TaskOptions, listed, values_named, words_in_order
from dualform.tasks.prompts import Wording
from dualform.tasks.raw import RawTask, Row, RowProblems, UnreadRow
from dualform.tasks.remarks import drop_repeated_choices, row_notes
from dualform.tasks.splits import arrange_splits
from dualform.tasks.task import Example, Task, Template

DEFAULT_SEPARATOR = "\n\n"
LONGEST_TEXT = 1_000_000
"""Maximum number of characters in a text; more exceeds every model's context and takes minutes to tokenize."""
_SKIP = "To leave such rows out, use --skip-bad-rows (skip_bad_rows)."


@dataclass(frozen=True)
class _Labels:
    """Mapping from label values to indices."""

    known: tuple[str, ...] | None
    """Names declared by the source, in index order."""
    column: LabelColumn | None
    """Names collected from the column; None if they are declared, and for multiple choice."""

    @property
    def names(self) -> tuple[str, ...] | None:
        """Label names in index order; None for multiple choice."""
        return self.known if self.column is None else self.column.names


def build_task(raw: RawTask, options: TaskOptions) -> Task:
    """Build a task with disjoint train, selection and report splits.

    Rows that a data set deliberately leaves unlabelled (`-` or -1) are left out and counted in a note. All other
    unusable rows are listed in one error, or left out too if the options say so.

    Args:
        raw: The rows of the source.
        options: The user's settings, which override those of the source.

    Raises:
        LabelWordError: The label words do not match the labels.
        TaskError: A column is missing, rows are unusable or too few, or the template does not match the columns.
    """
    columns = options.with_defaults(raw.columns)
    label = columns.label or "label"
    problems = RowProblems(raw)
    for split, rows in raw.rows.items():
        for number, row in enumerate(rows):
            if isinstance(row, UnreadRow):
                problems.add(split, number, row.why)
    if not any(_readable_rows(raw, split) for split in raw.rows):
        raise TaskError(problems.message() if len(problems) else f"{raw.source} contains no rows.")
    if not raw.rows.get("train"):
        raise TaskError(
            f"{show_path(raw.source)} has no train rows to draw demonstrations from. Its splits are: "
            f"{listed(list(raw.rows))}. Add a train split."
        )
    choices = _choice_columns(raw, columns)
    for split in raw.rows:
        _require_columns(raw, split, [label, *choices], "--label" if not choices else "--choices")
    wording = raw.wording
    if options.label not in (None, raw.columns.label or "label"):
        wording = None  # the known label words do not apply to another column
    template = _template(raw, options, columns.text, wording, hidden={label, *choices})
    _check_fields(raw, template, columns.text, (label, *choices))
    known = _known_names(raw, label) if not choices else None
    values, unlabelled = _read_labels(raw, label, options, known, problems, free=bool(choices))
    column = None
    notes = list(raw.notes)
    if not choices and known is None:
        column = _collect_labels(raw, label, values, problems, values_named(options.label_words))
        notes += column.notes
    # After reading the labels: if that failed, the label column is more likely to be the wrong one.
    _require_text_without_answer(template, columns.text, (label, *choices))
    labels = _Labels(known, column)
    label_words = _label_words(raw, options, labels.names, wording, label)
    reader = _RowReader(raw, columns.text, label, choices, labels, template, bool(options.truncate))
    examples: dict[str, list[Example]] = {}
    for split, rows in raw.rows.items():
        examples[split] = []
        for number, row in enumerate(rows):
            value = values[split][number]
            if value is MissingLabel.UNLABELLED or (column is not None and value in column.unlabelled):
                unlabelled[split] += 1
            elif isinstance(value, str):
                try:
                    examples[split].append(reader.example(split, number, row, value))
                except UnusableError as why:
                    problems.add(split, number, why)
    if len(problems):
        if not options.skip_bad_rows:
            raise TaskError(problems.message(_SKIP))
        notes.append(f"Left out: {len(problems)} unusable rows ({problems.listing()}).")
    notes += _unlabelled_notes(raw, label, unlabelled, examples)
    if choices:
        examples, about_choices = drop_repeated_choices(examples)
        notes += about_choices
    notes += reader.notes()
    if not any(examples.values()):
        raise TaskError(f"no row of {raw.source} is usable. {' '.join(notes)}")
    arranged = arrange_splits({split: rows for split, rows in examples.items() if rows}, template.fields, raw.name)
    paper_split = wording.paper_split if wording else None
    task = Task(
        name=raw.name,
        source=raw.source,
        splits=arranged.splits,
        template=template,
        label_words=label_words,
        label_names=labels.names,
        selection_split=arranged.selection_split,
        report_split=arranged.report_split,
        paper_split=paper_split if paper_split in arranged.splits else None,
        notes=(*notes, *arranged.notes),
    )
    return replace(task, notes=(*task.notes, *row_notes(task)))


def _readable_rows(raw: RawTask, split: str) -> list[Row]:
    return [row for row in raw.rows.get(split, ()) if not isinstance(row, UnreadRow)]


def _columns_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))


def _require_columns(raw: RawTask, split: str, names: Sequence[str], option: str) -> None:
    columns = _columns_of(_readable_rows(raw, split))
    for name in names:
        if columns and name not in columns:
            raise TaskError(
                f"{show_path(raw.files[split])} has no column {abbreviate(name)!r}. Its columns are: "
                f"{listed(columns)}. Name one with {option}."
            )


def _choice_columns(raw: RawTask, columns: TaskOptions) -> list[str]:
    """Columns with the choices: one column of lists, or one column for each choice; empty for classification."""
    if columns.choices is not None:
        return [name.strip() for name in columns.choices.split(",")]
    if raw.label_names is not None:
        return []
    # Only a column of lists: one of this name with other content may be part of a classification task.
    rows = [row for split in raw.rows for row in _readable_rows(raw, split)]
    return ["choices"] if rows and all(isinstance(row.get("choices"), list) for row in rows) else []


def _template(
    raw: RawTask, options: TaskOptions, text: str | None, wording: Wording | None, hidden: set[str]
) -> Template:
    if text is not None:
        for split in raw.rows:
            _require_columns(raw, split, [text], "--text")
    columns = [name for name in _columns_of(_readable_rows(raw, "train")) if name not in hidden]
    separator: str | None = DEFAULT_SEPARATOR
    if wording is not None:
        separator = wording.template.separator
    if options.separator is not None:
        separator = None if options.separator == END_OF_SEQUENCE else options.separator
    for name, given in (("prompt", options.prompt), ("separator", separator)):
        if given is not None and (fault := text_fault(given)) is not None:
            raise TaskError(f"the {name} {abbreviate(given)!r} contains {fault}. Write it in UTF-8.")
    if options.prompt is not None:
        return Template(options.prompt, separator)
    if wording is not None:
        return Template(wording.template.prompt, separator)
    if text is None and "text" not in columns:
        raise TaskError(
            f"{show_path(raw.files.get('train', raw.source))} has no column 'text'. Its columns apart from the label "
            f"are: {listed(columns) or 'none'}. Name one with --text, or several in a --prompt."
        )
    return Template("Text: {text}\nLabel:", separator)


def _require_text_without_answer(template: Template, text: str | None, answers: Sequence[str]) -> None:
    if text is not None and text in answers and "text" in template.fields:
        raise TaskError(f"the text column {text!r} contains the answer. Name another column with --text.")


def _check_fields(raw: RawTask, template: Template, text: str | None, answers: Sequence[str]) -> None:
    """Raise `TaskError` for a field of the prompt that is missing from the rows or contains the answer."""
    for name in template.fields:
        for split in raw.rows:
            columns = [*_columns_of(_readable_rows(raw, split)), *([] if text is None else ["text"])]
            others = listed([column for column in dict.fromkeys(columns) if column not in answers])
            if name in answers and not (name == "text" and text is not None):
                raise TaskError(
                    f"the prompt {template.prompt!r} uses {{{name}}}, which contains the answer. Use other fields: "
                    f"{others or 'none'}."
                )
            if columns and name not in columns:
                raise TaskError(
                    f"{show_path(raw.files[split])}: the prompt {abbreviate(template.prompt)!r} uses the field "
                    f"{{{abbreviate(name)}}}, which the file does not have. Its fields are: {others or 'none'}."
                )


def _known_names(raw: RawTask, label: str) -> tuple[str, ...] | None:
    """Label names in index order where the source or the file's schema declares them."""
    names = raw.label_names if label == (raw.columns.label or "label") else None
    names = names or raw.class_names.get(label)
    return None if names is None else tuple(clean_text(name) for name in names)


_Values = dict[str, list[str | MissingLabel | None]]


def _read_labels(
    raw: RawTask, label: str, options: TaskOptions, known: Sequence[str] | None, problems: RowProblems, free: bool
) -> tuple[_Values, Counter[str]]:
    """Labels by split, None for an unusable row; and an empty counter for deliberately unlabelled rows."""
    names = {*(known or ()), *values_named(options.label_words)}
    values: _Values = {}
    for split, rows in raw.rows.items():
        values[split] = []
        for number, row in enumerate(rows):
            value: str | MissingLabel | None = None
            if not isinstance(row, UnreadRow):
                try:
                    value = _label_of(row.get(label), names, fixed=known is not None or free)
                except UnusableError as why:
                    problems.add(split, number, why)
                if value is MissingLabel.MISSING:
                    mark = row.get(label)
                    written = f" but {abbreviate(mark)!r}" if isinstance(mark, str) and mark.strip() else ""
                    message = f"column {label!r} has no label{written}"
                    problems.add(split, number, UnusableError("none", message, _FILL))
                    value = None
            values[split].append(value)
    return values, Counter()


_FILL = "Fill it in or remove the row."


def _label_of(value: Any, names: set[str], fixed: bool) -> str | MissingLabel:
    label = read_label(value, names)
    if fixed and label in ("-1", "-") and label not in names:
        return MissingLabel.UNLABELLED
    return label


def _collect_labels(
    raw: RawTask, label: str, values: _Values, problems: RowProblems, named: Collection[str]
) -> LabelColumn:
    of_split = {split: Counter(value for value in these if isinstance(value, str)) for split, these in values.items()}
    counts = sum(of_split.values(), Counter[str]())
    # In a published test set with hidden labels all rows have the same mark, which no other split uses.
    hidden = {
        mark
        for mark in ("-1", "-")
        if mark in counts and all(mark not in labels or len(labels) == 1 for labels in of_split.values())
    }
    hidden -= {*named, *of_split.get("train", ())}
    try:
        column = collect_labels(
            counts, label, named=not {"-1", "-", *map(str.lower, counts)}.isdisjoint(named), hidden=hidden
        )
    except UnusableError as why:
        raise TaskError(f"{raw.source}: {why.message}. {why.remedy}") from why
    n_rows = sum(counts.values())
    if len(problems) and len(column.names) < 2:
        raise TaskError(problems.message(_SKIP))
    if len(column.names) < 2:
        raise TaskError(
            f"column {label!r} of {raw.source} contains fewer than two values (only "
            f"{', '.join(map(abbreviate, column.names)) or 'none'}). Name the label column with --label."
        )
    if len(counts) == n_rows > 2:
        raise TaskError(
            f"column {label!r} of {raw.source} contains {n_rows} different values in {n_rows} rows, so it is not a "
            "label. Name the label column with --label."
        )
    return column


def _label_words(
    raw: RawTask, options: TaskOptions, label_names: tuple[str, ...] | None, wording: Wording | None, label: str
) -> tuple[str, ...] | None:
    if label_names is None:
        if options.label_words is not None:
            raise LabelWordError(
                f"task {raw.name!r} is multiple choice: each row has its own choices, so the label words "
                f"{options.label_words!r} cannot be used. Leave them out."
            )
        return None
    if options.label_words is not None:
        words = words_in_order(options.label_words, label_names, raw.name)
        for word in words:
            if (fault := text_fault(word)) is not None:
                raise LabelWordError(f"label word {abbreviate(word)!r} contains {fault}. Write it in UTF-8.")
        return words
    if wording is not None and wording.label_words is not None:
        return wording.label_words
    return tuple(label_names)


class _RowReader:
    """Converts rows to examples."""

    def __init__(
        self,
        raw: RawTask,
        text: str | None,
        label: str,
        choices: Sequence[str],
        labels: _Labels,
        template: Template,
        truncate: bool,
    ) -> None:
        self._raw = raw
        self._text = text
        self._label = label
        self._choices = choices
        self._labels = labels
        self._fields = template.fields
        self._truncate = truncate
        self._n_cut = 0
        self._look_missing: Counter[tuple[str, str]] = Counter()

    def example(self, split: str, number: int, row: Row, value: str) -> Example:
        """The example of a row.

        Raises:
            UnusableError: The row is unusable.
        """
        texts = {}
        for name, cell in row.items():
            if name != self._label and name not in self._choices and (text := _as_text(cell)) is not None:
                texts[name] = text
        if self._text is not None and self._text in texts:
            texts["text"] = texts[self._text]
        for name in self._fields:
            column = self._text if name == "text" and self._text is not None else name
            texts[name] = self._prompt_text(column, row, texts.get(name))
        texts = {name: text for name, text in texts.items() if text_fault(text) is None}
        choices = self._choices_of(row) if self._choices else None
        index = self._index(row.get(self._label), value, choices)
        lines = self._raw.lines.get(split)
        return Example(texts, index, number, choices, None if lines is None else lines[number])

    def _prompt_text(self, column: str, row: Row, text: str | None) -> str:
        if text is None and isinstance(row.get(column), list | tuple | Mapping):
            kind = "an object with fields" if isinstance(row[column], Mapping) else "a list"
            raise UnusableError(
                f"nested {column}",
                f"{column!r} contains {kind}, not a text",
                "Name a column of plain texts with --text.",
            )
        if text is None and isinstance(row.get(column), bytes):
            raise UnusableError(
                f"bytes {column}", f"the text of {column!r} contains bytes that are not UTF-8", "Write texts in UTF-8."
            )
        if text is None or not clean_text(text):
            raise UnusableError(f"empty {column}", f"the text of {column!r} is empty", _FILL)
        if (fault := text_fault(text)) is not None:
            raise UnusableError(f"surrogate {column}", f"the text of {column!r} contains {fault}", "Correct the text.")
        if len(text) > LONGEST_TEXT:
            if not self._truncate:
                raise UnusableError(
                    f"long {column}",
                    f"the text of {column!r} has {len(text):,} characters; the maximum is {LONGEST_TEXT:,}",
                    "Divide it, or cut it with --truncate.",
                )
            self._n_cut += 1
            text = text[:LONGEST_TEXT]
        if text.strip() in ("nan", "NaN", "None", "null", "NULL", "<NA>"):
            self._look_missing[column, text.strip()] += 1
        return text

    def _index(self, written: Any, value: str, choices: Sequence[str] | None) -> int:
        if self._labels.column is not None:
            return self._labels.column.names.index(self._labels.column.spelled[value])
        names = self._labels.known or ()
        if isinstance(written, str | bytes) and value in names:
            return names.index(value)
        try:
            index = int(value)
        except ValueError:
            what = f"the labels {listed(names)}" if choices is None else "the numbers of the choices"
            raise UnusableError("label", f"label {abbreviate(value)!r} is not among {what}", "Correct it.") from None
        n_answers = len(names) if choices is None else len(choices)
        if not 0 <= index < n_answers:
            raise UnusableError(
                "index",
                f"label {index} is not among the {n_answers} {'labels' if choices is None else 'choices'}, which are "
                "numbered from 0",
                "Correct it; if numbers count from 1, subtract 1.",
            )
        return index

    def _choices_of(self, row: Row) -> tuple[str, ...]:
        columns = self._choices
        values: Any = [row.get(name) for name in columns]
        if len(columns) == 1:
            values = values[0]
            if isinstance(values, str):
                # CSV can represent a list only as text.
                try:
                    values = json.loads(values)
                except (ValueError, RecursionError):
                    values = None
            if not isinstance(values, list):
                raise UnusableError(
                    "choices",
                    f'column {columns[0]!r} must contain a list of choices (in CSV as ["one", "other"]), not '
                    f"{abbreviate(row.get(columns[0]))!r}",
                    "Write a list, or name one column for each choice.",
                )
        choices = [_as_text(value) for value in values]
        if any(choice is None for choice in choices):
            raise UnusableError("choice", f"a choice is missing in {', '.join(columns)}", _FILL)
        texts = tuple(choice or "" for choice in choices)
        if any(not clean_text(text) for text in texts):
            raise UnusableError("empty choice", f"a choice is empty ({abbreviate(list(texts))})", _FILL)
        if len(texts) < 2:
            raise UnusableError("one choice", "there is only one choice", "Give at least two.")
        for text in texts:
            if (fault := text_fault(text)) is not None:
                raise UnusableError("surrogate choice", f"a choice contains {fault}", "Correct the text.")
        return texts

    def notes(self) -> list[str]:
        """Notes on texts that were cut and on texts that look like missing values."""
        notes = [
            f"{count} rows have the text {text!r} in column {column!r}. Some tools write this for a missing value; it "
            "is read as a text here."
            for (column, text), count in self._look_missing.items()
        ]
        if self._n_cut:
            notes.append(f"{self._n_cut} texts were cut to {LONGEST_TEXT:,} characters.")
        return notes


def _as_text(cell: Any) -> str | None:
    """A cell as text; None if it has no text form."""
    if isinstance(cell, str):
        return cell
    if isinstance(cell, bytes):
        try:
            return cell.decode("utf-8")
        except UnicodeDecodeError:
            return None
    if isinstance(cell, float | Decimal) and math.isnan(cell):
        return None
    if isinstance(cell, int) and cell.bit_length() > 1000:
        return None
    return str(cell) if isinstance(cell, int | float | Decimal | date | datetime | time) else None


def _unlabelled_notes(
    raw: RawTask, label: str, unlabelled: Counter[str], examples: Mapping[str, Sequence[Example]]
) -> list[str]:
    notes = []
    for split, count in unlabelled.items():
        if not count:
            continue
        if not examples[split]:
            notes.append(
                f"Left out: split {split} ({show_path(raw.files[split])}), because its {count} rows are unlabelled (-1 "
                "or -)."
            )
        else:
            notes.append(
                f"Left out of {split}: {count} of {len(raw.rows[split])} rows without a label in column {label!r} (-1 "
                "or -)."
            )
    return notes
