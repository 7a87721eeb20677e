"""The card of a folded model: Markdown that says what it is, from what and how it was made, and what it is good for.

Names and settings come from data sets, folders and hubs. They are shown as code, sentences escaped, so that no
Markdown, HTML or link in them gets active, whatever they hold.
"""

import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import yaml

from dualform._version import __version__
from dualform.errors import ConfigError
from dualform.models.licence import GEMMA_NOTICE, Licence
from dualform.models.packaged import PACKAGED_MODELS


@dataclass(frozen=True)
class Measured:
    """Accuracy of one setting on held-out queries."""

    setting: str
    """Such as `base, zero-shot`, `base, prompted` or `folded, zero-shot`."""
    accuracy: float
    """In [0, 1]."""
    ci95: tuple[float, float] | None
    """Ends of its 95 % interval; None where there is none."""
    n: int
    """Queries."""


@dataclass(frozen=True)
class CardFacts:
    """What a card tells. What was not measured is left out of it."""

    base: str
    """Hub id, packaged name or folder of the base model."""
    task: str
    """Name of the task."""
    n_demonstrations: int
    """Demonstrations that were folded."""
    seed: int
    """By which they were drawn."""
    rows: Sequence[int]
    """Their rows in the train split, in order."""
    method: str
    """Name of the way of folding."""
    settings: Mapping[str, object]
    """Its settings by name."""
    changed: Sequence[str]
    """Full names of the parameters that changed."""
    form: Literal["checkpoint", "adapter"] = "checkpoint"
    label_words: Sequence[str] = ()
    """Answers that the task scores."""
    measured: Sequence[Measured] = ()
    """Accuracies, in the order of the table."""
    agreement: float | None = None
    """Share of held-out queries on which the folded model answers as the prompted one, in [0, 1]."""
    perplexity: tuple[float, float] | None = None
    """Perplexity on plain text before and after, per token."""
    notes: Sequence[str] = ()
    """Sentences for the limits; plain text, not Markdown."""
    base_is_local: bool = False
    """Whether `base` is a folder or file of this machine, which no hub knows, though its name may look so."""
    licence: Licence | None = None
    """The base's, under which this one comes, too; None where it is not known."""
    dataset: str | None = None
    """Hub id of the data set that the task was read from; None for data of one's own."""


def model_card(facts: CardFacts) -> str:
    """Text of `README.md` for a folded model.

    Args:
        facts: What to tell.

    Returns:
        Markdown with YAML front matter, ending in a newline.

    Raises:
        ConfigError: A share lies outside [0, 1], or a perplexity below 1.
    """
    _check(facts)
    parts = [
        _front_matter(facts),
        f"# {_code(facts.base)} with {_code(facts.task)} folded in",
        _summary(facts),
        "## How to load it",
        _loading(facts),
        "## What was folded",
        _folded(facts),
        "## What changed",
        _changed(facts.changed),
        *_effect(facts),
        "## Limits",
        _limits(facts),
        f"Made with dualform {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _check(facts: CardFacts) -> None:
    shares = [(f"accuracy of {row.setting}", row.accuracy) for row in facts.measured]
    if facts.agreement is not None:
        shares.append(("agreement", facts.agreement))
    for what, share in shares:
        if not 0 <= share <= 1:
            raise ConfigError(f"{what} is {share}; expected a share from 0 to 1.")
    for perplexity in facts.perplexity or ():
        if not perplexity >= 1:
            raise ConfigError(f"a perplexity is {perplexity}; expected 1 or more.")


def _front_matter(facts: CardFacts) -> str:
    adapter = facts.form == "adapter"
    header: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    if base := _hub_base(facts):
        header["base_model"] = base
        header["base_model_relation"] = "adapter" if adapter else "finetune"
    if facts.licence is not None:
        header["license"] = facts.licence.id
        named = {"license_name": facts.licence.name, "license_link": facts.licence.link}
        header |= {name: value for name, value in named.items() if value is not None}
    if facts.dataset is not None and _HUB_ID.fullmatch(facts.dataset):
        header["datasets"] = [facts.dataset]
    header["pipeline_tag"] = "text-generation"
    header["tags"] = ["dualform", "in-context-learning", "folded-prompt", *(["lora"] if adapter else [])]
    return f"---\n{yaml.safe_dump(header, sort_keys=False)}---"


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", flags=re.ASCII)


def _hub_base(facts: CardFacts) -> str | None:
    """The base by its hub's name: hubs refuse a card whose base model is no name of theirs."""
    if facts.base_is_local:
        return None
    if facts.base in PACKAGED_MODELS:
        return PACKAGED_MODELS[facts.base].hub_id
    return facts.base if _HUB_ID.fullmatch(facts.base) else None


def _summary(facts: CardFacts) -> str:
    return (
        f"The language model {_code(facts.base)}, changed so that without a prompt it answers the queries of the task "
        f"{_code(facts.task)} as it would behind {_count(facts.n_demonstrations, 'demonstration')}. The change was "
        "computed by forward passes alone; no gradient was taken."
    )


def _loading(facts: CardFacts) -> str:
    if facts.form == "adapter":
        code = (
            "from peft import PeftModel\n"
            "from transformers import AutoModelForCausalLM\n"
            'model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "path/to/this/folder")'
        )
        return f"```python\n{code}\n```\n\n`BASE` is the base model, {_code(facts.base)}; its tokenizer is unchanged."
    code = (
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n"
        'model = AutoModelForCausalLM.from_pretrained("path/to/this/folder")\n'
        'tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")'
    )
    return f"```python\n{code}\n```"


def _folded(facts: CardFacts) -> str:
    rows = ", ".join(str(row) for row in facts.rows) or "not recorded"
    lines = [
        f"- Task: {_code(facts.task)}",
        f"- Demonstrations: {facts.n_demonstrations}, drawn with seed {facts.seed}",
        f"- Their rows in the train split, in order: {rows}",
    ]
    if facts.label_words:
        lines.append(f"- Label words: {', '.join(_code(word) for word in facts.label_words)}")
    lines.append(f"- Base model: {_code(facts.base)}")
    lines.append(f"- Method: {_code(facts.method)}")
    lines += [f"    - {_code(name)}: {_code(str(value))}" for name, value in facts.settings.items()]
    return "\n".join(lines)


def _changed(names: Sequence[str]) -> str:
    """One line for all parameters that differ in a layer's number alone."""
    layers: dict[str, list[int]] = {}
    for name in names:
        number = re.search(r"(?<=\.)\d+(?=\.)", name)
        pattern = name if number is None else f"{name[: number.start()]}*{name[number.end() :]}"
        layers.setdefault(pattern, []).extend([] if number is None else [int(number[0])])
    lines = [
        f"- {_code(pattern)}" + (f", layers {_ranges(numbers)}" if numbers else "")
        for pattern, numbers in layers.items()
    ]
    return "\n".join([*lines, "", "All other weights are those of the base model."]).lstrip()


def _ranges(numbers: Sequence[int]) -> str:
    """`0-3, 5` for 0, 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _effect(facts: CardFacts) -> list[str]:
    parts: list[str] = []
    if facts.measured:
        rows = ["| setting | accuracy | 95 % interval | queries |", "| --- | --- | --- | --- |"]
        for row in facts.measured:
            interval = "" if row.ci95 is None else f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}"
            rows.append(f"| {_code(row.setting, table=True)} | {row.accuracy:.3f} | {interval} | {row.n} |")
        parts.append("\n".join(rows))
    lines: list[str] = []
    if facts.agreement is not None:
        lines.append(f"- The folded model answers as the prompted one on {facts.agreement:.1%} of the queries.")
    if facts.perplexity is not None:
        before, after = facts.perplexity
        lines.append(f"- Perplexity per token on plain text: {before:.2f} before, {after:.2f} after.")
    if lines:
        parts.append("\n".join(lines))
    return ["## Measured effect", *parts] if parts else []


def _limits(facts: CardFacts) -> str:
    lines = [
        f"- It was made for {_code(facts.task)} with the prompt format and label words of that task. Other tasks, "
        "other formats and free text may have become worse.",
        "- What the base model gets wrong, and the terms it comes under, hold for this one too.",
    ]
    if not facts.measured:
        lines.append("- Its accuracy was not measured when it was made.")
    if facts.perplexity is None:
        lines.append("- What the change does to plain text was not measured.")
    if facts.licence is not None and facts.licence.id == "gemma":
        lines.append(f"- {_plain(GEMMA_NOTICE)}.")
    lines += [f"- {_plain(note)}" for note in facts.notes]
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _plain(text: str) -> str:
    """A sentence in which nothing is active: every sign that Markdown, HTML or a link could be made of is escaped."""
    plain = _one_line(text).strip()
    # A comma or a full stop at the end makes nothing, and reads better as it is.
    return re.sub(r"(?!\.$)[^\w\s,;'%]", lambda sign: f"\\{sign[0]}" if sign[0].isascii() else sign[0], plain).replace(
        "_", "\\_"
    )


def _code(text: str, table: bool = False) -> str:
    """Text as a code span, in which nothing is active: no emphasis, link, HTML or formula."""
    plain = _one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    if table:
        plain = plain.replace("|", "\\|")
    # One space on either side is taken off again, and keeps backticks and spaces at the ends as they are.
    return f"{fence} {plain} {fence}" if plain != plain.strip(" `") or not plain else f"{fence}{plain}{fence}"


def _one_line(text: str) -> str:
    """Control and format characters become spaces: a line's end would end the span, others show what is not there."""
    return "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
