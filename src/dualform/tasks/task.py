"""A labelled task: its splits of examples, its prompt template and its label words."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter

from dualform.errors import LabelWordError, TaskError


@dataclass(frozen=True)
class Example:
    """One labelled row."""

    fields: Mapping[str, str]
    """Text of each column, without the label column, so that a prompt cannot reveal the answer."""
    label: int
    """Index of the correct label or choice."""
    row: int
    """Row number in the split's file, counting from 0. A row held out of train keeps its number in train."""
    choices: tuple[str, ...] | None = None
    """Candidate answers of a multiple-choice row, exactly as in the source."""
    line: int | None = field(default=None, compare=False)
    """Line of the split's file on which the row begins, counting from 1; None for a format without lines."""

    @property
    def place(self) -> str:
        """The row's position for messages: its line number where the format has lines, otherwise its row number."""
        return f"row {self.row} (counting from 0)" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Template:
    r"""Template that turns an example into a prompt, such as `"Review: {text}\nSentiment:"`.

    Only plain `{name}` fields are filled in; `{{` and `}}` stand for literal braces.

    Raises:
        TaskError: The prompt has no field, ends in white space, has unbalanced braces, or has a field with an
            attribute, index, conversion or format.
    """

    prompt: str
    """Prompt with named fields. The answer follows it after one space."""
    separator: str | None = None
    """Text between two demonstrations; None means the model's end-of-sequence token."""

    def __post_init__(self) -> None:
        if not self.fields:
            raise TaskError(
                f"the prompt {self.prompt!r} contains no field of the example. Add at least one, such as {{text}}."
            )
        if self.prompt != self.prompt.rstrip():
            raise TaskError(
                f"the prompt {self.prompt!r} ends in white space. Remove it: a space is added before each answer."
            )

    @cached_property
    def _pieces(self) -> tuple[tuple[str, str | None], ...]:
        """Pairs of a literal text and the name of the field that follows it, or None."""
        try:
            parsed = list(Formatter().parse(self.prompt))
        except ValueError as error:
            raise TaskError(
                f"the prompt {self.prompt!r} cannot be parsed: {error}. Write a literal brace as {{{{ or }}}}."
            ) from error
        for _, name, format_spec, conversion in parsed:
            if name is None:
                continue
            if not name or format_spec or conversion or any(mark in name for mark in ".[]"):
                field_text = (
                    name + (f"!{conversion}" if conversion else "") + (f":{format_spec}" if format_spec else "")
                )
                raise TaskError(
                    f"the prompt {self.prompt!r} has the field {{{field_text}}}; only plain names such as {{text}} are "
                    "supported. Write a literal brace as {{ or }}."
                )
        return tuple((literal, name) for literal, name, _, _ in parsed)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields in the prompt, each once, in order of appearance."""
        return tuple(dict.fromkeys(name for _, name in self._pieces if name is not None))

    @cached_property
    def tail(self) -> str:
        r"""Literal text after the last field, such as `"\nSentiment:"`; the label word follows it directly."""
        tail = ""
        for literal, name in self._pieces:
            # The parser also ends a piece at an escaped brace, so one literal can consist of several pieces.
            tail = "" if name is not None else tail + literal
        return tail

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The fixed text of the prompt: before, between and after the fields."""
        return tuple(literal for literal, _ in self._pieces if literal)

    def render(self, example: Example) -> str:
        """The prompt for `example`, without its answer.

        Raises:
            TaskError: The example lacks a field that the prompt names.
        """
        return "".join(text for text, _ in self.rendered(example))

    def rendered(self, example: Example) -> list[tuple[str, bool]]:
        """The prompt for `example` as parts: each text, with True for the template's own and False for a field.

        Raises:
            TaskError: The example lacks a field that the prompt names.
        """
        rendered = []
        for literal, name in self._pieces:
            rendered.append((literal, True))
            if name is not None:
                if name not in example.fields:
                    raise TaskError(
                        f"the prompt {self.prompt!r} uses the field {{{name}}}, which the example of row "
                        f"{example.row} does not have. Its fields are: {', '.join(example.fields) or 'none'}."
                    )
                rendered.append((example.fields[name], False))
        return rendered


@dataclass(frozen=True)
class Task:
    """Named splits of labelled examples, a template, and the words that stand for the labels.

    Raises:
        LabelWordError: A label word or a choice is empty, two labels share a word, or the numbers of label words and
            label names differ.
        TaskError: A split is missing or empty, a label has no label word, or an example lacks a field of the prompt.
    """

    name: str
    source: str
    """Where the rows come from, as text for reports."""
    splits: Mapping[str, tuple[Example, ...]] = field(repr=False)
    """Examples of `train`, of the selection split and of the report split. No text occurs in two of them."""
    template: Template
    label_words: tuple[str, ...] | None
    """Word for each label, without surrounding spaces; None for multiple choice, where each example has choices."""
    label_names: tuple[str, ...] | None
    """Name of each label in the source; None for multiple choice."""
    selection_split: str
    """Name of the split on which learning rates and seeds are chosen."""
    report_split: str
    """Name of the split on which results are reported."""
    paper_split: str | None = None
    """Name of the split on which arXiv:2212.10559 both selects and evaluates; None if the source lacks it."""
    notes: tuple[str, ...] = ()
    """Sentences about the rows and splits that a reader of the results should know."""

    def __post_init__(self) -> None:
        self._check_label_words()
        for role, split in self._roles().items():
            if split not in self.splits:
                raise TaskError(
                    f"task {self.name!r} has no {role} {split!r}. Its splits are: {', '.join(self.splits)}."
                )
        for split, examples in self.splits.items():
            if not examples:
                raise TaskError(f"split {split!r} of task {self.name!r} is empty. Add rows or remove the split.")
            for example in examples:
                self._check_example(split, example)

    def _roles(self) -> dict[str, str]:
        roles = {
            "demonstration pool": "train",
            "selection split": self.selection_split,
            "report split": self.report_split,
        }
        return roles if self.paper_split is None else {**roles, "paper's split": self.paper_split}

    def _check_label_words(self) -> None:
        words = self.label_words
        if words is None:
            return
        for label, word in enumerate(words):
            if not word.strip():
                raise LabelWordError(
                    f"label word {word!r} of label {label} of task {self.name!r} is empty. Give a word for the label."
                )
            if word != word.strip():
                raise LabelWordError(
                    f"label word {word!r} of label {label} of task {self.name!r} has white space around it. Remove "
                    "it: the space before an answer is added automatically."
                )
            if word in words[:label]:
                raise LabelWordError(
                    f"label word {word!r} of task {self.name!r} stands for labels {words.index(word)} and {label}. "
                    "Choose a different word for each label."
                )
        if len(words) < 2:
            raise LabelWordError(f"task {self.name!r} has the label words {list(words)}. Give at least two.")
        if self.label_names is not None and len(self.label_names) != len(words):
            raise LabelWordError(
                f"task {self.name!r} has {len(words)} label words ({', '.join(words)}) for {len(self.label_names)} "
                f"labels ({', '.join(self.label_names)}). Give one word for each label."
            )

    def _check_example(self, split: str, example: Example) -> None:
        where = f"task {self.name!r}, split {split!r}, row {example.row}"
        if self.label_words is not None:
            n_answers, what = len(self.label_words), f"labels ({', '.join(self.label_words)})"
        elif not example.choices:
            raise TaskError(f"{where}: no choices, and the task has no label words. Give one of the two.")
        else:
            n_answers, what = len(example.choices), "choices"
            if any(not choice.strip() for choice in example.choices):
                raise LabelWordError(
                    f"{where}: a choice is empty ({list(example.choices)}). Fill it in or remove the row."
                )
        if not 0 <= example.label < n_answers:
            raise TaskError(
                f"{where}: label {example.label} is out of range; there are {n_answers} {what}, numbered from 0. "
                "Correct the row, or give a word for every label."
            )
        for name in self.template.fields:
            if name not in example.fields:
                raise TaskError(
                    f"{where}: the prompt {self.template.prompt!r} uses the field {{{name}}}, which the row does not "
                    f"have. Its fields are: {', '.join(example.fields) or 'none'}."
                )

    @property
    def is_multiple_choice(self) -> bool:
        """Whether each example has its own candidate answers."""
        return self.label_words is None

    @cached_property
    def n_labels(self) -> int:
        """Number of labels; for multiple choice, the largest number of choices of any example."""
        if self.label_words is not None:
            return len(self.label_words)
        return max(len(example.choices or ()) for examples in self.splits.values() for example in examples)

    @property
    def demonstration_pool(self) -> tuple[Example, ...]:
        """The examples of `train`, from which demonstrations are drawn."""
        return self.splits["train"]

    def split(self, name: str) -> tuple[Example, ...]:
        """Examples of one split.

        Raises:
            TaskError: The task has no split of this name.
        """
        if name not in self.splits:
            raise TaskError(f"task {self.name!r} has no split {name!r}. Its splits are: {', '.join(self.splits)}.")
        return self.splits[name]

    def answers(self, example: Example) -> tuple[str, ...]:
        """The texts to score after `example`'s prompt, in label order, each with one leading space.

        White space around a choice is removed: a trailing space would be scored as a separate token.
        """
        texts = example.choices if self.label_words is None else self.label_words
        return tuple(f" {text.strip()}" for text in texts or ())
