"""Positions of all tokens when several queries share one row.

A query is a prompt and several answers. All answers continue the same prompt, so the row holds the prompt once,
followed by one branch per answer. A branch leaves out the answer's last token, which is predicted but never an input;
an answer of one token therefore needs no branch.

    prompt            answer 0      answer 1
    t0 t1 t2 t3       a0 a1         b0           positions 0 1 2 3  4 5  4
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from dualform.models.reading.options import Probe as Probe

_PADDING, _PROMPT = -2, -1


@dataclass(frozen=True)
class Query:
    """A prompt and its possible answers, as token ids."""

    prompt: tuple[int, ...]
    """At least one token."""
    answers: tuple[tuple[int, ...], ...]
    """The continuations to score, at least one token each; may be empty if only activations are needed."""
    texts: tuple[str, ...] = field(default=(), compare=False, repr=False)
    """The example's own texts, without the template's words, for learners that read words instead of tokens."""

    def width(self, probe: Probe = "prompt") -> int:
        """Number of tokens that the query takes in a row."""
        return len(self.prompt) + sum(len(branch) for branch in _branches(self, probe))

    def longest(self, probe: Probe = "prompt") -> int:
        """Number of input tokens of the prompt with its longest answer (the answer's last token is only predicted)."""
        return len(self.prompt) + max((len(branch) for branch in _branches(self, probe)), default=0)


@dataclass(frozen=True)
class Layout:
    """Index tensors of one row; the axis `row_pos` counts over the whole row, `own_pos` within one query."""

    tokens: Tensor
    """Token ids, `(row_pos,)`."""
    offsets: Tensor
    """Position of each token counted from its query's first, `(row_pos,)`."""
    gather: Tensor
    """Row position of each query's tokens, `(example, own_pos)`; padding points at 0."""
    own: Tensor
    """True where `gather` is not padding, `(example, own_pos)`."""
    visible: Tensor
    """True where own token `q_pos` may attend to own token `k_pos`, `(example, q_pos, k_pos)`."""
    scored_rows: Tensor
    """Row positions whose next-token distribution is needed, ascending, `(scored,)`."""
    first_scored: Tensor
    """Index into `scored_rows` of the token that predicts each query's first answer token, `(example,)`."""
    term_row: Tensor
    """Index into `scored_rows` of each answer token's predictor, `(term,)`."""
    term_token: Tensor
    """The answer token predicted there, `(term,)`."""
    term_answer: Tensor
    """Flat index example * n_answers + answer that the term belongs to, `(term,)`."""
    n_answers: int
    """Number of columns of the score table: the largest number of answers."""
    probe: Tensor
    """Own position of the probe, `(example,)`."""
    seen: Tensor
    """Number of own tokens that the probe attends to, itself included: the query's first ones, `(example,)`."""

    @property
    def n_examples(self) -> int:
        """Number of queries in the row."""
        return self.gather.shape[0]

    @property
    def probe_rows(self) -> Tensor:
        """Row position of each query's probe, `(example,)`."""
        return self.gather.gather(1, self.probe[:, None])[:, 0]

    @property
    def seen_mask(self) -> Tensor:
        """True for the own tokens that the probe attends to, `(example, seen_pos)`."""
        width = int(self.seen.max())
        return torch.arange(width, device=self.seen.device) < self.seen[:, None]

    def to(self, device: torch.device) -> "Layout":
        """The same on another device."""
        if device == self.tokens.device:
            return self
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        moved: dict[str, Any] = {name: x.to(device) for name, x in values.items() if isinstance(x, Tensor)}
        return replace(self, **moved)

    def score(self, log_probabilities: Tensor) -> Tensor:
        """Mean log-probability of each answer's tokens.

        Args:
            log_probabilities: Log-softmax at `scored_rows`, `(scored, vocab)`.

        Returns:
            Nats per token, `(example, answer)`; -inf where a query has fewer answers than others.
        """
        terms = log_probabilities[self.term_row, self.term_token]
        size = self.n_examples * self.n_answers
        total = torch.zeros(size, dtype=terms.dtype, device=terms.device).index_add_(0, self.term_answer, terms)
        count = torch.bincount(self.term_answer, minlength=size)
        mean = torch.where(count > 0, total / count.clamp(min=1), -torch.inf)
        return mean.view(self.n_examples, self.n_answers)


def lay_out(queries: Sequence[Query], probe: Probe = "prompt", device: torch.device | str = "cpu") -> Layout:
    """Layout of queries placed one after the other in a single row.

    Args:
        queries: At least one query.
        probe: The token at which activations will be recorded.
        device: Device of the index tensors.
    """
    tokens: list[int] = []
    offsets: list[int] = []
    starts: list[int] = []
    kinds: list[list[int]] = []
    probes: list[int] = []
    terms: list[tuple[int, int, int]] = []
    n_answers = max(len(query.answers) for query in queries)
    for example, query in enumerate(queries):
        start, length = len(tokens), len(query.prompt)
        starts.append(start)
        kind = [_PROMPT] * length
        tokens += query.prompt
        offsets += range(length)
        predictor = start + length - 1
        probes.append(length - 1)
        for answer, (word, branch) in enumerate(zip(query.answers, _branches(query, probe), strict=True)):
            first = len(tokens)
            tokens += branch
            offsets += range(length, length + len(branch))
            kind += [answer] * len(branch)
            # Token j of the answer is predicted from the branch token before it, token 0 from the prompt's last token.
            predictors = [predictor, *range(first, first + len(word) - 1)]
            number = example * n_answers + answer
            terms += [(row, token, number) for row, token in zip(predictors, word, strict=True)]
        if probe == "label0":
            probes[-1] = length + len(query.answers[0]) - 1
        kinds.append(kind)

    width = max(len(kind) for kind in kinds)
    kind_table = torch.tensor([kind + [_PADDING] * (width - len(kind)) for kind in kinds])
    own = kind_table != _PADDING
    gather = torch.where(own, torch.tensor(starts)[:, None] + torch.arange(width), 0)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    same_branch = kind_table[:, :, None] == kind_table[:, None, :]
    # Padding attends to itself, so that every softmax has at least one entry.
    visible = causal & (same_branch | (kind_table == _PROMPT)[:, None, :])

    predictors_of_first = [start + len(query.prompt) - 1 for start, query in zip(starts, queries, strict=True)]
    scored = sorted({row for row, _, _ in terms} | set(predictors_of_first))
    index = {row: i for i, row in enumerate(scored)}
    columns = {
        "tokens": tokens,
        "offsets": offsets,
        "scored_rows": scored,
        "first_scored": [index[row] for row in predictors_of_first],
        "term_row": [index[row] for row, _, _ in terms],
        "term_token": [token for _, token, _ in terms],
        "term_answer": [number for _, _, number in terms],
        "probe": probes,
        "seen": [position + 1 for position in probes],
    }
    tensors = {name: torch.tensor(column, dtype=torch.long, device=device) for name, column in columns.items()}
    return Layout(
        gather=gather.to(device), own=own.to(device), visible=visible.to(device), n_answers=n_answers, **tensors
    )


def group(queries: Sequence[Query], max_tokens: int, max_examples: int, probe: Probe) -> list[list[int]]:
    """Group queries of similar length into rows of at most `max_tokens` tokens, which bounds the memory of a forward.

    Args:
        queries: Any number of queries.
        max_tokens: Largest number of tokens in a row; a longer query gets its own row.
        max_examples: Largest number of queries in a row.
        probe: As in `lay_out`.

    Returns:
        One list per row of indices into `queries`, each index exactly once.
    """
    widths = [query.width(probe) for query in queries]
    rows: list[list[int]] = []
    room = 0
    for index in sorted(range(len(queries)), key=widths.__getitem__):
        if not rows or widths[index] > room or len(rows[-1]) == max_examples:
            rows.append([])
            room = max_tokens
        rows[-1].append(index)
        room -= widths[index]
    return rows


def _branches(query: Query, probe: Probe) -> list[tuple[int, ...]]:
    """The input tokens of each answer: all but the last, but all of answer 0 if the probe is at its end."""
    branches = [answer[:-1] for answer in query.answers]
    if probe == "label0":
        branches[0] = query.answers[0]
    return branches
