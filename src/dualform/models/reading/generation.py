"""Texts written by the model itself, for those who have demonstrations and no further texts.

Prompts without labels, sampled behind the demonstrations, and plain text, sampled behind nothing.
"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedTokenizerBase

from dualform.errors import ConfigError, ContextError, ModelError, NumericalError
from dualform.models.reading.cached import CachedPrefix
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.forward import cache_argument, forward_rows
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.switch_lengths import switch_lengths
from dualform.models.reading.tokens import special_tokens
from dualform.tasks.task import Example, Task

_MARK = "\0"


@torch.no_grad()
def generate_texts(
    lm: LanguageModel,
    task: Task,
    encoder: Encoder,
    demonstrations: EncodedDemonstrations,
    n: int,
    *,
    seed: int,
    max_tokens: int = 128,
    temperature: float = 1.0,
    top_p: float = 0.95,
    rows: int = 16,
    tries_per_text: int = 10,
) -> tuple[tuple[int, ...], ...]:
    """Sample prompts behind the demonstrations, as one more of them: from the template's first words to its last.

    What the model writes is cut where the template's tail ends (the words that the answer stands behind), taken apart
    into the template's fields, and encoded anew as a query, so that a prompt has the very tokens that it would have as
    a real one. Thrown away, and sampled again, are texts that never reach the tail, that leave a field empty, run into
    the separator or miss words of the template, copies of a demonstration, and duplicates.

    Args:
        lm: The model; read as it is, its weights untouched.
        task: Whose prompts they are.
        encoder: The same task's.
        demonstrations: What the model reads first; the demonstrations are encoded once.
        n: Prompts to write.
        seed: Of the sampling; on the CPU the same seed writes the same prompts.
        max_tokens: Most tokens sampled for a prompt; fewer where the model's context has no room for them.
        temperature: Of the sampling, above 0; 1 leaves the model's distribution as it is.
        top_p: Sample among the likeliest tokens that together have this probability, in (0, 1].
        rows: Prompts sampled side by side; bounds the memory.
        tries_per_text: Give up after `n * tries_per_text` samples.

    Returns:
        Token ids of `n` different prompts, without opening token, in the order in which they were finished.

    Raises:
        ConfigError: A setting cannot be used, or the template ends in a field, so that nothing marks a text's end.
        ContextError: The demonstrations leave no room.
        ModelError: Too few prompts came of so many samples.
        NumericalError: A logit is NaN.

    Source:
        Nucleus sampling: arXiv:1904.09751. That a model's own samples can stand for its data: cf. data-free
        quantization, arXiv:2305.17888.
    """
    _require(temperature, top_p, n=n, max_tokens=max_tokens, rows=rows, tries_per_text=tries_per_text)
    shape = _Shape.of(task, lm.tokenizer, encoder)
    start = (*demonstrations.prefix, *shape.head_ids)
    if not start:
        raise ConfigError(
            "there is no token to begin with: the model has no opening token, the template begins with a field, and "
            "there are no demonstrations. Give texts of your own with --calibration."
        )
    room = max_tokens if lm.max_positions is None else min(max_tokens, lm.max_positions - len(start))
    if room < 1:
        raise ContextError(
            f"demonstrations and first words take {len(start)} tokens of a context of {lm.max_positions}, which leaves "
            "no room to write behind them. Use fewer demonstrations, or give texts with --calibration."
        )
    writer = _Writer(_Sampler(lm, start, torch.Generator().manual_seed(seed), temperature, top_p), shape, room)
    seen = {
        ids[len(encoder.opening) : len(ids) - n_answer]
        for ids, n_answer in zip(demonstrations.sequences, demonstrations.n_answer_tokens, strict=True)
    }
    found: list[tuple[int, ...]] = []
    lost: Counter[str] = Counter()
    tried, limit = 0, n * tries_per_text
    while len(found) < n and tried < limit:
        batch = min(rows, 2 * (n - len(found)), limit - tried)
        tried += batch
        for text in writer.write(batch):
            if text is None:
                lost[f"never came to {task.template.tail!r} within {room} tokens"] += 1
                continue
            fields = shape.fields(text)
            if fields is None:
                lost["did not follow the template"] += 1
                continue
            prompt = encoder.query(Example(fields, 0, 0)).prompt
            if prompt in seen:
                lost["were copies of demonstrations or of one another"] += 1
            elif len(found) < n:
                seen.add(prompt)
                found.append(prompt)
    if len(found) < n:
        reasons = "; ".join(f"{count} {reason}" for reason, count in lost.most_common())
        raise ModelError(
            f"{lm.name} wrote {len(found)} of {n} usable texts in {tried} tries ({reasons}). Give texts of your own "
            "with --calibration, or ask for fewer."
        )
    return tuple(found)


@torch.no_grad()
def generate_plain(
    lm: LanguageModel,
    opening: tuple[int, ...],
    n: int,
    length: int,
    *,
    seed: int,
    temperature: float = 1.0,
    top_p: float = 0.95,
    rows: int = 16,
) -> tuple[tuple[int, ...], ...]:
    """Sample plain text behind the opening token, every text of full length.

    Special tokens are never drawn, so no text ends early.

    Args:
        lm: The model; read as it is, its weights untouched.
        opening: Tokens before every text; at least one.
        n: Texts to write.
        length: Tokens of each.
        seed: Of the sampling; on the CPU the same seed writes the same texts.
        temperature: As in `generate_texts`.
        top_p: As in `generate_texts`.
        rows: Texts sampled side by side; bounds the memory.

    Returns:
        Token ids of `n` texts of `length` tokens, without the opening.

    Raises:
        ConfigError: A setting cannot be used, or the opening is empty.
        ContextError: Opening and text are longer than the model's context.
        NumericalError: A logit is NaN.

    Source:
        Data-free quantization, arXiv:2305.17888: a model's own samples stand for the text that it was trained on.
    """
    _require(temperature, top_p, n=n, length=length, rows=rows)
    if not opening:
        raise ConfigError(
            f"{lm.name} has no opening token, so it cannot write plain text from nothing. Give a file with --plain, or "
            "--plain none."
        )
    if lm.max_positions is not None and len(opening) + length > lm.max_positions:
        raise ContextError(
            f"{len(opening)} opening tokens and a text of {length} do not fit into a context of {lm.max_positions}. "
            "Ask for shorter texts."
        )
    sampler = _Sampler(lm, opening, torch.Generator().manual_seed(seed), temperature, top_p, specials=False)
    texts: list[list[int]] = []
    for first in range(0, n, rows):
        batch: list[list[int]] = [[] for _ in range(min(rows, n - first))]

        def goes_on(number: int, token: int, batch: list[list[int]] = batch) -> bool:
            batch[number].append(token)
            return True

        sampler.run(len(batch), length, goes_on)
        texts += batch
    return tuple(tuple(text) for text in texts)


@dataclass(frozen=True)
class _Shape:
    """What a prompt of the task looks like from outside its fields."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    pattern: re.Pattern[str]
    """Matches a whole prompt; one group a field, in order of appearance."""
    names: tuple[str, ...]
    """Name of each group's field."""
    head_ids: tuple[int, ...]
    """The words before the first field, without the space behind them: it belongs to the next word's token."""
    head_length: int
    """Of those words, characters."""

    @classmethod
    def of(cls, task: Task, tokenizer: PreTrainedTokenizerBase, encoder: Encoder) -> "_Shape":
        template = task.template
        if not template.tail:
            raise ConfigError(
                f"the prompt {template.prompt!r} ends in a field, so nothing tells where a text ends. Put words behind "
                "the last field, or give texts of your own with --calibration."
            )
        literals, names = _literals(task)
        # A field is as short as it can be: a text ends where the words behind it come for the first time.
        head = literals[0].rstrip()
        pattern = re.escape(head.lstrip()) + "".join("(.+?)" + re.escape(literal) for literal in literals[1:])
        return cls(task, tokenizer, re.compile(pattern, re.DOTALL), names, encoder.head(head), len(head.lstrip()))

    def reaches_tail(self, ids: Sequence[int]) -> str | None:
        """The text so far, cut behind the tail; None before that."""
        text = str(self.tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
        tail = self.task.template.tail
        end = text.find(tail, self.head_length)
        return None if end < 0 else text[: end + len(tail)]

    def fields(self, text: str) -> dict[str, str] | None:
        """What the text says in each field; None where it is no prompt of this task."""
        # Some tokenizers write a space before the first word of a text.
        match = self.pattern.fullmatch(text.lstrip())
        if match is None:
            return None
        fields: dict[str, str] = {}
        for name, said in zip(self.names, match.groups(), strict=True):
            said = said.strip()
            separator = self.task.template.separator
            if not said or fields.setdefault(name, said) != said or (separator and separator in said):
                return None
        return fields


def _literals(task: Task) -> tuple[list[str], tuple[str, ...]]:
    """The template's words before, between and behind its fields; and the fields between them, repeats included."""
    template = task.template
    shown = template.render(Example({name: f"{_MARK}{name}{_MARK}" for name in template.fields}, 0, 0))
    pieces = shown.split(_MARK)
    return pieces[::2], tuple(pieces[1::2])


class _Writer:
    """Writes one prompt after another, from the template's first word to its tail."""

    def __init__(self, sampler: "_Sampler", shape: _Shape, max_tokens: int) -> None:
        self._sampler = sampler
        self._shape = shape
        self._max_tokens = max_tokens

    def write(self, n: int) -> list[str | None]:
        """`n` texts, cut behind the tail; None where it did not come."""
        texts: list[str | None] = [None] * n
        written = [list(self._shape.head_ids) for _ in range(n)]
        ends = set(special_tokens(self._shape.tokenizer).values())

        def goes_on(number: int, token: int) -> bool:
            if token in ends:
                return False
            written[number].append(token)
            texts[number] = self._shape.reaches_tail(written[number])
            return texts[number] is None

        self._sampler.run(n, self._max_tokens, goes_on)
        return texts


class _Sampler:
    """Continues one row of tokens in many ways; the row is read once.

    Args:
        lm: The model.
        start: The row, at least one token.
        generator: Draws on the CPU.
        temperature: Above 0.
        top_p: In (0, 1].
        specials: Whether special tokens may be drawn.
    """

    def __init__(
        self,
        lm: LanguageModel,
        start: tuple[int, ...],
        generator: torch.Generator,
        temperature: float,
        top_p: float,
        specials: bool = True,
    ) -> None:
        self._lm = lm
        self._generator = generator
        self._temperature = temperature
        self._top_p = top_p
        self._forbidden = [] if specials else list(special_tokens(lm.tokenizer).values())
        cache = DynamicCache()
        ids = torch.tensor([start], device=lm.device)
        last = ids.new_tensor([len(start) - 1])
        lengths = [one.length for one in switch_lengths(lm.model.config)]
        # A cache is right for as long as nothing changes with length; beyond, rows are read whole at every step.
        self._cached_until = min(lengths, default=None)
        try:
            self._first = self._forward(ids, last, cache)
            sizes = {len(layer.keys[0, 0]) if layer.keys is not None else 0 for layer in cache.layers}
            sound = sizes == {len(start)}
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            sound = False
        if sound:
            self._shared = CachedPrefix(cache, start)
        else:
            # The family has no cache, or layers skip or share places in it: taken out of the model, or in it twice.
            self._shared = CachedPrefix(None, start)
            self._first = self._forward(ids, last, None)
            self._cached_until = 0

    def run(self, n: int, max_tokens: int, goes_on: Callable[[int, int], bool]) -> None:
        """Draw up to `max_tokens` tokens for each of `n` continuations, all of them side by side.

        Args:
            n: Continuations.
            max_tokens: Most tokens of each.
            goes_on: Told a continuation's number and its next token; says whether it wants another.
        """
        numbers = list(range(n))
        start = self._shared.tokens
        cached = self._cached_until is None or len(start) + max_tokens <= self._cached_until
        cache = self._shared.repeated(n) if cached else None
        rows = torch.tensor([start] * n, device=self._lm.device)
        logits = self._first.expand(n, -1)
        for left in reversed(range(max_tokens)):
            tokens = self._draw(logits)
            drawn = zip(numbers, tokens.tolist(), strict=True)
            alive = [row for row, (number, token) in enumerate(drawn) if goes_on(number, token)]
            if not alive or not left:
                return
            kept = torch.tensor(alive, device=self._lm.device)
            if len(alive) < len(numbers):
                numbers = [numbers[row] for row in alive]
                if cache is not None:
                    cache.batch_select_indices(kept)
            tokens = tokens.to(self._lm.device)[kept]
            last = torch.arange(len(alive), device=self._lm.device)
            if cache is not None:
                logits = self._forward(tokens[:, None], last, cache)
            else:
                rows = torch.cat([rows[kept], tokens[:, None]], dim=1)
                logits = self._forward(rows, (last + 1) * rows.shape[1] - 1, None)

    def _forward(self, ids: Tensor, rows: Tensor, cache: DynamicCache | None) -> Tensor:
        """Next-token logits at some rows, `(row, vocab)`."""
        model = self._lm.model
        if cache is None:
            logits, _ = forward_rows(model, rows, input_ids=ids, use_cache=False)
        else:
            # All rows are equally long, so nothing is padding.
            mask = torch.ones(len(ids), cache.get_seq_length() + ids.shape[1], dtype=torch.long, device=ids.device)
            given = cache_argument(model, cache)
            logits, _ = forward_rows(model, rows, input_ids=ids, attention_mask=mask, use_cache=True, **given)
        if torch.isnan(logits).any():
            raise NumericalError(f"{self._lm.name} in {model.dtype}: a logit is NaN. Use --dtype float32.")
        return logits

    def _draw(self, logits: Tensor) -> Tensor:
        """One token a row, `(row,)`, on the CPU, so that a seed draws alike wherever the model computes."""
        wide = logits.double().cpu() / self._temperature
        if self._forbidden:
            wide[:, self._forbidden] = -torch.inf
        ordered, tokens = wide.softmax(-1).sort(dim=-1, descending=True, stable=True)
        # The likeliest token always stays, however little is asked for.
        ordered = ordered.masked_fill(ordered.cumsum(-1) - ordered >= self._top_p, 0.0)
        drawn = torch.multinomial(ordered, 1, generator=self._generator)
        return tokens.gather(1, drawn)[:, 0]


def _require(temperature: float, top_p: float, **counts: int) -> None:
    mistakes = [f"{name} {value} must be at least 1" for name, value in counts.items() if value < 1]
    if not 0 < temperature < float("inf"):
        mistakes.append(f"temperature {temperature} must be above 0, and finite")
    if not 0 < top_p <= 1:
        mistakes.append(f"top_p {top_p} must be above 0 and at most 1")
    if mistakes:
        raise ConfigError("; ".join(mistakes))
