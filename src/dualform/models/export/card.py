"""The model card of a folded model: what it is, how it was made, how to use it, and its limits.

Names and settings may come from untrusted data sets, folders and hubs. They are formatted as code, and sentences are
escaped, so that no Markdown, HTML or link in them takes effect.
"""

import keyword
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from huggingface_hub import ModelCardData

from dualform._version import __version__
from dualform.errors import ConfigError
from dualform.models.export.licence import GEMMA_NOTICE, Licence
from dualform.models.loading.packaged import PACKAGED_MODELS


@dataclass(frozen=True)
class MeasuredAccuracy:
    """Accuracy of one setting on held-out queries."""

    setting: str
    """Such as `base, zero-shot`, `base, prompted` or `folded, zero-shot`."""
    accuracy: float
    """In [0, 1]."""
    ci95: tuple[float, float] | None
    """95% confidence interval; None without one."""
    n: int
    """Number of queries."""


@dataclass(frozen=True)
class ChatFacts:
    """How prompts are written as chats by the tokenizer's chat template."""

    system: str | None
    """The system message; None for none, or the template's own."""
    arguments: Mapping[str, str]
    """Further arguments of `apply_chat_template`."""
    answer_context: str
    """The plain text right before an answer."""


@dataclass(frozen=True)
class PromptFacts:
    """The prompt format in which the folded model was measured: all that is needed to reproduce it."""

    template: str
    """The prompt, with `{name}` for each field; `{{` and `}}` stand for braces."""
    fields: Sequence[str]
    """Names of the fields."""
    opening: Sequence[int]
    """Ids of the tokens before every prompt."""
    opening_names: Sequence[str]
    """Names of these tokens in the vocabulary."""
    opening_is_own: bool
    """Whether the tokenizer adds them by default."""
    separator: str
    """Text between the demonstrations that were folded."""
    answers: Mapping[str, Sequence[int]] | None
    """Label word -> its token ids after the prompt; None if each question has its own choices."""
    tail: str
    """Last words of the prompt, which precede the answer."""
    example: Mapping[str, float] | None = None
    """Answer -> mean log-probability, nats, for a prompt in which every field is `EXAMPLE`."""
    plain_text: bool = True
    """Whether names of special tokens in a text are encoded as ordinary text."""
    dtype: str = "float32"
    """Dtype of the model when it was measured."""
    trust_remote_code: bool = False
    """Whether the base model comes with its own code."""
    chat: ChatFacts | None = None
    """How prompts are written as chats; None for plain prompts."""


EXAMPLE = "An example."
"""Text of every field in the card's example prompt."""


@dataclass(frozen=True)
class CardFacts:
    """Contents of a card; anything that was not measured is left out."""

    base: str
    """Hub id, packaged name or folder of the base model."""
    task: str
    """Name of the task."""
    n_demonstrations: int
    """Number of demonstrations that were folded."""
    seed: int
    """Seed with which they were drawn."""
    rows: Sequence[int]
    """Row of each demonstration in the train split, in order."""
    method: str
    """Name of the folding method."""
    settings: Mapping[str, object]
    """Name of a setting of the method -> its value."""
    changed: Sequence[str]
    """Full names of the parameters that changed."""
    form: Literal["checkpoint", "adapter"] = "checkpoint"
    label_words: Sequence[str] = ()
    """Answers of the task."""
    measured: Sequence[MeasuredAccuracy] = ()
    """Accuracies, in the order of the table."""
    agreement: float | None = None
    """Share of held-out queries on which the folded and the prompted model give the same answer, in [0, 1]."""
    chance: float | None = None
    """Agreement expected by chance, given how often each model gives each answer."""
    zero_shot_agreement: float | None = None
    """Agreement of the base model, zero-shot, with the prompted one."""
    collapsed: tuple[str, float] | None = None
    """The prompted model's most frequent answer and its share, if it gives nearly always that answer."""
    prompt: PromptFacts | None = None
    """Prompt format; without it the card has no example program."""
    chat_template: bool = False
    """Whether the base model's tokenizer has a chat template, which is removed from a folded checkpoint."""
    perplexity: tuple[float, float] | None = None
    """Perplexity per token of plain text, before and after folding."""
    notes: Sequence[str] = ()
    """Sentences for the section on limits; plain text, not Markdown."""
    base_is_local: bool = False
    """Whether `base` is a local folder or file, even if it looks like a hub id."""
    licence: Licence | None = None
    """Licence of the base model, which also applies to the folded one; None if unknown."""
    dataset: str | None = None
    """Hub id of the task's data set; None for local data."""


def model_card(facts: CardFacts) -> str:
    """Text of `README.md` for a folded model.

    Args:
        facts: Contents of the card.

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
        *(
            ["## How to load it", _loading(facts)]
            if facts.prompt is None
            else ["## How to use it", _usage(facts, facts.prompt)]
        ),
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
    known = {
        "agreement": facts.agreement,
        "agreement by chance": facts.chance,
        "agreement of zero-shot": facts.zero_shot_agreement,
    }
    shares += [(what, share) for what, share in known.items() if share is not None]
    for what, share in shares:
        if not 0 <= share <= 1:
            raise ConfigError(f"{what} is {share}; expected a share from 0 to 1.")
    for perplexity in facts.perplexity or ():
        if not perplexity >= 1:
            raise ConfigError(f"a perplexity is {perplexity}; expected 1 or more.")


def _front_matter(facts: CardFacts) -> str:
    adapter, base, licence = facts.form == "adapter", _hub_base(facts), facts.licence
    chat = ["conversational"] if facts.prompt is not None and facts.prompt.chat is not None else []
    data = ModelCardData(
        library_name="peft" if adapter else "transformers",
        base_model=base,
        license=None if licence is None else licence.id,
        license_name=None if licence is None else licence.name,
        license_link=None if licence is None else licence.link,
        datasets=[facts.dataset] if facts.dataset is not None and _HUB_ID.fullmatch(facts.dataset) else None,
        pipeline_tag="text-generation",
        tags=["dualform", "in-context-learning", "folded-prompt", *(["lora"] if adapter else []), *chat],
        base_model_relation=("adapter" if adapter else "finetune") if base else None,
    )
    return f"---\n{data.to_yaml()}\n---"


_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?", flags=re.ASCII)


def _hub_base(facts: CardFacts) -> str | None:
    """Hub id of the base model, if it has one: the hub rejects cards with other names."""
    if facts.base_is_local:
        return None
    if facts.base in PACKAGED_MODELS:
        return PACKAGED_MODELS[facts.base].hub_id
    return facts.base if _HUB_ID.fullmatch(facts.base) else None


def _summary(facts: CardFacts) -> str:
    return (
        f"The language model {_code(facts.base)}, changed so that without demonstrations it answers the queries of the "
        f"task {_code(facts.task)} as it would with {_count(facts.n_demonstrations, 'demonstration')} in its prompt. "
        "The change was computed by forward passes only, without gradients."
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


def _usage(facts: CardFacts, prompt: PromptFacts) -> str:
    """The prompt format, and a program that reproduces the measured setting."""
    pairs = zip(prompt.opening_names, prompt.opening, strict=True)
    names = ", ".join(f"{_code(name)} ({index})" for name, index in pairs)
    by = "which the tokenizer adds by default" if prompt.opening_is_own else "which the tokenizer does not add"
    answers = ", ".join(_code(word) for word in prompt.answers) if prompt.answers else "the choices"
    best = "The model's answer is the one with the highest mean log-probability of its tokens."
    lines = [
        "The model was made and measured with this prompt format, and may answer differently with another one:",
        "",
    ]
    if prompt.chat is not None:
        system = prompt.chat.system
        message = "none, unless the chat template writes one" if system is None else _code(ascii(system))
        lines += [
            "- Chat: written by the tokenizer's chat template, with the prompt as the user's message",
            f"- System message, as a Python string: {message}",
            f"- Prompt, as a Python string: {_code(ascii(prompt.template))}",
            f"- Answers: {answers}, each at the beginning of the assistant's message. {best}",
        ]
    else:
        lines += [
            f"- Opening tokens: {f'{names}, {by}' if names else 'none'}",
            f"- Prompt, as a Python string: {_code(ascii(prompt.template))}",
            f"- Answers: {answers}, each after one space. {best}",
            f"- Separator after each folded demonstration, as a Python string: {_code(ascii(prompt.separator))}",
        ]
    if facts.chat_template and prompt.chat is None:
        own = "was left out of this folder" if facts.form == "checkpoint" else "was not applied"
        lines.append(f"- The base model's chat template {own}, because it would change the prompt format.")
    program = _program(facts, prompt)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", program)), default=0))
    base = f"\n\n`BASE` is the base model, {_code(facts.base)}." if facts.form == "adapter" else ""
    return "\n".join(lines) + f"\n\n{fence}python\n{program}\n{fence}{base}"


def _program(facts: CardFacts, prompt: PromptFacts) -> str:
    """A program that prints the answer to one question and its scores; it uses transformers, not dualform."""
    remote = ", trust_remote_code=True" if prompt.trust_remote_code else ""
    adapter = facts.form == "adapter"
    source = "BASE" if adapter else "FOLDER"
    plain = ", split_special_tokens=True" if prompt.plain_text else ""
    lines = ["import torch"]
    if adapter:
        lines.append("from peft import PeftModel")
    lines += ["from transformers import AutoModelForCausalLM, AutoTokenizer", "", 'FOLDER = "path/to/this/folder"']
    if adapter:
        lines.append(f"BASE = {_hub_base(facts) or 'path/to/the/base/model'!a}")
    chat = prompt.chat
    if chat is None:
        lines += ["", f"OPENING = {list(prompt.opening)}  # token ids", f"PROMPT = {prompt.template!a}"]
        tail, space = prompt.tail or ":", " "
    else:
        system = [] if chat.system is None else [{"role": "system", "content": chat.system}]
        lines += ["", f"SYSTEM = [{', '.join(map(ascii, system))}]", f"PROMPT = {prompt.template!a}"]
        tail, space = chat.answer_context or "\n", ""
    if prompt.answers is None:
        lines.append(f"TAIL = {tail!a}  # end of the prompt, before the answer")
    else:
        answers = ", ".join(f"{word!a}: {list(ids)}" for word, ids in prompt.answers.items())
        lines.append(f"ANSWERS = {{{answers}}}  # token ids of each label word after the prompt")
    lines += [
        "",
        f"tokenizer = AutoTokenizer.from_pretrained({source}{remote})",
        f"model = AutoModelForCausalLM.from_pretrained({source}, dtype=torch.{prompt.dtype}{remote})",
        *(["model = PeftModel.from_pretrained(model, FOLDER)"] if adapter else []),
        "model.eval()",
        "",
        "",
        "def encode(text):",
        f'    return tokenizer(text, add_special_tokens=False{plain})["input_ids"]',
        "",
        "",
        f"def scores({'choices, ' if prompt.answers is None else ''}**fields):",
        '    """Mean log-probability of each answer, in nats."""',
        *_prompt_lines(chat),
    ]
    if prompt.answers is None:
        text = f"f'{{TAIL}}{space}{{each.strip()}}'"
        lines.append(f"    answers = {{each: encode({text})[len(encode(TAIL)) :] for each in choices}}")
    lines += [
        "    result = {}",
        f"    for answer, ids in {'answers' if prompt.answers is None else 'ANSWERS'}.items():",
        "        with torch.no_grad():",
        "            logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1]",
        "        result[answer] = logits.log_softmax(-1).gather(1, torch.tensor(ids)[:, None]).mean().item()",
        "    return result",
        "",
        "",
        f"result = scores({_example_arguments(prompt)})",
        "print(max(result, key=result.get), result)",
    ]
    if prompt.example:
        best = max(prompt.example.items(), key=lambda item: item[1])[0]
        values = ", ".join(f"{word!a}: {value:.4f}" for word, value in prompt.example.items())
        lines.append(f"# Output when the model was made: {ascii(best)[1:-1]} {{{values}}}")
    return "\n".join(lines)


def _prompt_lines(chat: ChatFacts | None) -> list[str]:
    """The lines of the program that make the token ids of a prompt."""
    if chat is None:
        return ["    prompt = OPENING + encode(PROMPT.format(**fields))"]
    more = "".join(f", {name}={value!a}" for name, value in chat.arguments.items())
    return [
        '    messages = [*SYSTEM, {"role": "user", "content": PROMPT.format(**fields)}]',
        "    prompt = tokenizer.apply_chat_template(",
        f"        messages, add_generation_prompt=True, return_dict=True{more}",
        '    )["input_ids"]',
    ]


def _example_arguments(prompt: PromptFacts) -> str:
    """Arguments of the program's example question."""
    if all(name.isidentifier() and name.isascii() and not keyword.iskeyword(name) for name in prompt.fields):
        fields = ", ".join(f"{name}={EXAMPLE!a}" for name in prompt.fields)
    else:
        fields = f"**{dict.fromkeys(prompt.fields, EXAMPLE)!a}"
    return f"['one', 'other'], {fields}" if prompt.answers is None else fields


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
    """A list of parameters, with one line for all that differ only in the layer's index."""
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
        rows = ["| setting | accuracy | 95% CI | queries |", "| --- | --- | --- | --- |"]
        for row in facts.measured:
            interval = "" if row.ci95 is None else f"{row.ci95[0]:.3f} to {row.ci95[1]:.3f}"
            rows.append(f"| {_code(row.setting, table=True)} | {row.accuracy:.3f} | {interval} | {row.n} |")
        parts.append("\n".join(rows))
    lines: list[str] = []
    if facts.agreement is not None:
        line = f"- The folded and the prompted model give the same answer to {facts.agreement:.1%} of the queries."
        if facts.chance is not None:
            line += f" By chance, given how often each gives each answer, it would be {facts.chance:.1%}."
        if facts.zero_shot_agreement is not None:
            line += f" The zero-shot base model agrees with the prompted one on {facts.zero_shot_agreement:.1%}."
        lines.append(line)
    if facts.collapsed is not None:
        word, share = facts.collapsed
        lines.append(
            f"- The prompted model gives one answer, {_code(word)}, to {share:.1%} of the queries, so agreement with "
            "it means little more than giving that answer."
        )
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
        "- The base model's weaknesses and its licence apply to this model too.",
    ]
    if not facts.measured:
        lines.append("- Its accuracy was not measured.")
    if facts.perplexity is None:
        lines.append("- The effect of the change on plain text was not measured.")
    if facts.licence is not None and facts.licence.id == "gemma":
        lines.append(f"- {_plain(GEMMA_NOTICE)}.")
    lines += [f"- {_plain(note)}" for note in facts.notes]
    return "\n".join(lines)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _plain(text: str) -> str:
    """Escape every character of a sentence that could be part of Markdown, HTML or a link."""
    plain = _one_line(text).strip()
    # Commas and a final full stop are harmless, and read better unescaped.
    return re.sub(r"(?!\.$)[^\w\s,;'%]", lambda sign: f"\\{sign[0]}" if sign[0].isascii() else sign[0], plain).replace(
        "_", "\\_"
    )


def _code(text: str, table: bool = False) -> str:
    """Text as a code span, in which emphasis, links, HTML and formulas have no effect."""
    plain = _one_line(text)
    fence = "`" * (max((len(run) for run in re.findall("`+", plain)), default=0) + 1)
    if table:
        plain = plain.replace("|", "\\|")
    # Markdown strips one space on either side; adding it preserves backticks and spaces at the ends.
    return f"{fence} {plain} {fence}" if plain != plain.strip(" `") or not plain else f"{fence}{plain}{fence}"


def _one_line(text: str) -> str:
    """Replace control and format characters by spaces: a newline would end the span, others can disguise text."""
    return "".join(" " if unicodedata.category(letter)[0] in "CZ" else letter for letter in text)
