"""A labelled task: named splits of examples, the prompt that shows one, the words that stand for the labels."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from string import Formatter

from dualform.errors import LabelWordError, TaskError


@dataclass(frozen=True)
class Example:
    """One labelled row."""

    fields: Mapping[str, str]
    """Texts by column name; the label is not among them, so a prompt cannot give it away."""
    label: int
    """Index of the right label or choice."""
    row: int
    """Row number in the split's file, counting from 0; a held-out row keeps its number in train."""
    choices: tuple[str, ...] | None = None
    """Candidate answers of a multiple-choice row, as the source writes them."""
    line: int | None = field(default=None, compare=False)
    """Line of the split's file on which the row begins, counting from 1; None where the file has no lines."""

    @property
    def place(self) -> str:
        """What a message calls the row: by its line, which an editor shows, where there is one."""
        return f"row {self.row} (counting from 0)" if self.line is None else f"line {self.line}"


@dataclass(frozen=True)
class Template:
    r"""How an example becomes a prompt, such as `"Review: {text}\nSentiment:"`.

    Only plain `{name}` fields are filled in; `{{` and `}}` stand for braces.

    Raises:
        TaskError: The prompt has no field, a field with an attribute, index, conversion or format, unbalanced
            braces, or white space at its end.
    """

    prompt: str
    """Prompt with named fields; the answer follows it after one space."""
    separator: str | None = None
    """Text between two demonstrations; None is the model's end-of-sequence token."""

    def __post_init__(self) -> None:
        if not self.fields:
            raise TaskError(f"the prompt {self.prompt!r} shows no field of the example. Name one, such as {{text}}.")
        if self.prompt != self.prompt.rstrip():
            raise TaskError(
                f"the prompt {self.prompt!r} ends in white space. Remove it: each answer brings its own leading space."
            )

    @cached_property
    def _pieces(self) -> tuple[tuple[str, str | None], ...]:
        """(literal text, name of the field after it or None), in order."""
        try:
            parsed = list(Formatter().parse(self.prompt))
        except ValueError as error:
            raise TaskError(
                f"the prompt {self.prompt!r} cannot be read: {error}. Write a literal brace as {{{{ or }}}}."
            ) from error
        for _, name, format_spec, conversion in parsed:
            if name is None:
                continue
            if not name or format_spec or conversion or any(mark in name for mark in ".[]"):
                shown = name + (f"!{conversion}" if conversion else "") + (f":{format_spec}" if format_spec else "")
                raise TaskError(
                    f"the prompt {self.prompt!r} has the field {{{shown}}}; only plain names such as {{text}} are "
                    "filled in. Write a literal brace as {{ or }}."
                )
        return tuple((literal, name) for literal, name, _, _ in parsed)

    @cached_property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields shown, each once, in order of appearance."""
        return tuple(dict.fromkeys(name for _, name in self._pieces if name is not None))

    @cached_property
    def tail(self) -> str:
        r"""Literal text after the last field (`"\nSentiment:"`): what a label word really stands behind."""
        tail = ""
        for literal, name in self._pieces:
            # An escaped brace ends a piece too, so a literal can come in several parts.
            tail = "" if name is not None else tail + literal
        return tail

    @cached_property
    def literals(self) -> tuple[str, ...]:
        """The prompt's own words: what stands before, between and behind the fields."""
        return tuple(literal for literal, _ in self._pieces if literal)

    def render(self, example: Example) -> str:
        """The prompt that shows `example`, without its answer.

        Raises:
            TaskError: The example lacks a field that the prompt names.
        """
        return "".join(text for text, _ in self.rendered(example))

    def rendered(self, example: Example) -> list[tuple[str, bool]]:
        """The same in parts: a text, and whether the prompt's own words are in it or a field of the example.

        Raises:
            TaskError: The example lacks a field that the prompt names.
        """
        rendered = []
        for literal, name in self._pieces:
            rendered.append((literal, True))
            if name is not None:
                if name not in example.fields:
                    raise TaskError(
                        f"the prompt {self.prompt!r} names the field {{{name}}}, which the example of row "
                        f"{example.row} does not have; its fields: {', '.join(example.fields) or 'none'}."
                    )
                rendered.append((example.fields[name], False))
        return rendered


@dataclass(frozen=True)
class Task:
    """Named splits of labelled examples, a template, and the words that stand for the labels.

    Raises:
        LabelWordError: A label word or a choice is empty, two labels share a word, or words and names differ in
            number.
        TaskError: A split is missing or empty, a label has no label word, or an example lacks a field of the prompt.
    """

    name: str
    source: str
    """Where the rows come from, for people."""
    splits: Mapping[str, tuple[Example, ...]] = field(repr=False)
    """`train`, the selection split and the report split, no text in two of them."""
    template: Template
    label_words: tuple[str, ...] | None
    """Word for each label, no spaces around it; None for multiple choice, where each example has its choices."""
    label_names: tuple[str, ...] | None
    """The source's own name for each label."""
    selection_split: str
    """Split on which learning rates and seeds are chosen."""
    report_split: str
    """Split on which numbers are reported."""
    paper_split: str | None = None
    """Split that arXiv:2212.10559 evaluates (and selects) on, if the source has it."""
    notes: tuple[str, ...] = ()
    """What a reader should know about the splits, in plain sentences."""

    def __post_init__(self) -> None:
        self._check_label_words()
        for role, split in self._roles().items():
            if split not in self.splits:
                raise TaskError(f"task {self.name!r} has no {role} {split!r}; its splits: {', '.join(self.splits)}.")
        for split, examples in self.splits.items():
            if not examples:
                raise TaskError(f"split {split!r} of task {self.name!r} is empty. Give it rows or leave it out.")
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
                raise LabelWordError(f"label word {word!r} of label {label} of task {self.name!r} is empty. Name one.")
            if word != word.strip():
                raise LabelWordError(
                    f"label word {word!r} of label {label} of task {self.name!r} has white space around it. Leave it "
                    "out: the space before an answer is added where it is needed."
                )
            if word in words[:label]:
                raise LabelWordError(
                    f"label word {word!r} of task {self.name!r} stands for labels {words.index(word)} and {label}. "
                    "Choose a different word for each label."
                )
        if len(words) < 2:
            raise LabelWordError(f"task {self.name!r} has the label words {list(words)}. Two labels are the least.")
        if self.label_names is not None and len(self.label_names) != len(words):
            raise LabelWordError(
                f"task {self.name!r} has {len(words)} label words ({', '.join(words)}) for {len(self.label_names)} "
                f"labels ({', '.join(self.label_names)}). Give one word a label."
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
                raise LabelWordError(f"{where}: a choice is empty ({list(example.choices)}). Fill it or drop the row.")
        if not 0 <= example.label < n_answers:
            raise TaskError(
                f"{where}: label {example.label} is not among the {n_answers} {what}, which are numbered from 0. "
                "Correct the row, or give a word for every label."
            )
        for name in self.template.fields:
            if name not in example.fields:
                raise TaskError(
                    f"{where}: the prompt {self.template.prompt!r} names the field {{{name}}}, which is not there; "
                    f"the fields: {', '.join(example.fields) or 'none'}."
                )

    @property
    def is_multiple_choice(self) -> bool:
        """Whether each example brings its own candidate answers."""
        return self.label_words is None

    @cached_property
    def n_labels(self) -> int:
        """How many labels there are; for multiple choice, the most choices that an example has."""
        if self.label_words is not None:
            return len(self.label_words)
        return max(len(example.choices or ()) for examples in self.splits.values() for example in examples)

    @property
    def demonstration_pool(self) -> tuple[Example, ...]:
        """The train examples, from which demonstrations are drawn."""
        return self.splits["train"]

    def split(self, name: str) -> tuple[Example, ...]:
        """Examples of one split.

        Raises:
            TaskError: There is no such split.
        """
        if name not in self.splits:
            raise TaskError(f"task {self.name!r} has no split {name!r}; its splits: {', '.join(self.splits)}.")
        return self.splits[name]

    def answers(self, example: Example) -> tuple[str, ...]:
        """The texts to score after `example`'s prompt, in label order, each with one leading space.

        White space around a choice goes: a trailing space would be scored as a token of its own.
        """
        texts = example.choices if self.label_words is None else self.label_words
        return tuple(f" {text.strip()}" for text in texts or ())
