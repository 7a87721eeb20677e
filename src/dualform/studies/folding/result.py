"""What a folding study found, as in its `result.json`."""

from typing import Literal

from dualform.result import Estimate, Number, Record, Result, TaskName


class Perplexity(Record):
    """What folding does to plain text."""

    source: str
    """The file's name."""
    tokens: int
    """Tokens predicted."""
    before: Number
    """Perplexity of the base model: exp of the mean negative log-probability of a token."""
    after: Estimate
    """The same of the folded models; `n` counts seeds."""
    ratio: Estimate
    """Perplexity of the folded models over the base model's, all seeds' losses together; its interval resamples seeds
    and texts, `n` counts texts."""


class FoldPoint(Record):
    """One way of folding, over all seeds."""

    named_by = ("axis", "value")

    axis: str
    """What is varied: `method`, `k` (demonstrations), `texts` (how many), `strength`, `layers` or `source` (of the
    texts)."""
    value: str
    """Where on it, in words or digits, such as `ridge`, `16` or `first half`."""
    accuracy: Estimate
    """Accuracy of the fold."""
    icl: Estimate
    """Accuracy of ICL with the same demonstrations."""
    agreement: Estimate
    """As in `PromptingComparison`: share of queries answered as ICL does."""
    recovered: Estimate
    """As in `PromptingComparison`, of the gain with these demonstrations."""
    gained: int | None = None
    """Right answers that ICL has more than zero-shot, over all pairs: the denominator of `recovered`."""
    strength: Number = None
    """Ridge strength, mean over layers and seeds; None for other methods."""
    adapt_flops: Number = None
    """Operations of folding once."""
    query_tokens: Number = None
    """Tokens read for one query, what stands before it included."""
    perplexity_ratio: Number = None
    """Perplexity on plain text, mean of the seeds' folded models over the base model's; None without `--perplexity` and
    for methods that change no weights."""
    note: str = ""
    """What to know about this point, such as how many demonstrations fitted; often empty."""


class Transfer(Record):
    """A fold made for one task, asked another's queries."""

    named_by = ("task",)

    task: str
    """The other task."""
    zero_shot: Estimate
    """Accuracy of the base model there."""
    folded: Estimate
    """Accuracy there of the model folded for the study's own task."""
    difference: Estimate
    """The second less the first, query by query."""
    majority: Number = None
    """Accuracy there of always giving the commonest label."""


class Composition(Record):
    """Several folds added up in one model."""

    named_by = ("parts",)

    parts: list[str]
    """Names of the tasks whose folds were added."""
    accuracy: dict[TaskName, Estimate]
    """Accuracy of the sum on its queries."""
    alone: dict[TaskName, Estimate]
    """Accuracy of the task's own fold on them."""
    majority: dict[TaskName, Number] = {}
    """Accuracy there of always giving the commonest label."""


class Folding(Record):
    """What `dualform folding` found."""

    zero_shot: Estimate
    """Accuracy of the base model."""
    icl: Estimate
    """Accuracy of ICL with the study's `k` demonstrations."""
    ft: Estimate | None
    """Accuracy of FT on them, at the rate that the selection split chooses for each seed; None with `--no-ft`."""
    points: list[FoldPoint]
    """Each way of folding, axis by axis; one that could not be had is left out, and `warnings` says why."""
    perplexity: Perplexity | None
    """What the default fold does to plain text; None without `--perplexity`."""
    transfer: list[Transfer]
    """The default fold asked other tasks' queries."""
    compositions: list[Composition]
    """The default fold added to other tasks' folds."""


class FoldingResult(Result):
    """What a folding study found."""

    study: Literal["folding"] = "folding"
    """Always `folding`."""
    folding: Folding | None = None
    """What a folding study found."""
