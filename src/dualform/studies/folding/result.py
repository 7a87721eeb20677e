"""The schema of a folding study's `result.json`."""

from typing import Literal

from dualform.result import Estimate, Number, Record, Result, TaskName


class Perplexity(Record):
    """Perplexity of plain text before and after folding."""

    source: str
    """Name of the file."""
    tokens: int
    """Number of predicted tokens."""
    before: Number
    """Perplexity of the base model: exp of the mean negative log-probability of a token."""
    after: Estimate
    """Perplexity of the folded models; `n` counts seeds."""
    ratio: Estimate
    """Perplexity of the folded models divided by that of the base model, from the losses of all seeds; seeds and texts
    are resampled for the interval, and `n` counts texts."""


class FoldPoint(Record):
    """One fold, over all seeds."""

    named_by = ("axis", "value")

    axis: str
    """The setting that is varied: `method`, `k` (number of demonstrations), `texts` (number of texts), `strength`,
    `layers` or `source` (of the texts)."""
    value: str
    """The value of that setting, such as `ridge`, `16` or `first half`."""
    accuracy: Estimate
    """Accuracy of the fold."""
    icl: Estimate
    """Accuracy of ICL with the same demonstrations."""
    agreement: Estimate
    """Share of queries answered as ICL does, as in `PromptingComparison`."""
    recovered: Estimate
    """Recovered share of ICL's gain with these demonstrations, as in `PromptingComparison`."""
    gained: int | None = None
    """Correct answers of ICL minus those of zero-shot, over all pairs: the denominator of `recovered`."""
    strength: Number = None
    """Ridge strength, mean over layers and seeds; None for other methods."""
    adapt_flops: Number = None
    """Floating-point operations of one fold."""
    query_tokens: Number = None
    """Tokens read for one query, including those before it."""
    perplexity_ratio: Number = None
    """Perplexity of the folded models on plain text divided by that of the base model; None without `--perplexity` and
    for methods that do not change weights."""
    note: str = ""
    """A remark on this point, such as how many demonstrations fit the context; often empty."""


class Transfer(Record):
    """A fold for one task evaluated on another task."""

    named_by = ("task",)

    task: str
    """The other task."""
    zero_shot: Estimate
    """Accuracy of the base model on the other task."""
    folded: Estimate
    """Accuracy on the other task of the model folded for the study's task."""
    difference: Estimate
    """`folded` minus `zero_shot`, paired by query."""
    majority: Number = None
    """Accuracy of always giving the most common label of the other task."""


class Composition(Record):
    """The sum of several folds in one model."""

    named_by = ("parts",)

    parts: list[str]
    """Names of the tasks whose folds were added."""
    accuracy: dict[TaskName, Estimate]
    """Accuracy of the sum on each task."""
    alone: dict[TaskName, Estimate]
    """Accuracy of each task's own fold on that task."""
    majority: dict[TaskName, Number] = {}
    """Accuracy of always giving the most common label of each task."""


class Folding(Record):
    """Results of `dualform folding`."""

    zero_shot: Estimate
    """Accuracy of the base model."""
    icl: Estimate
    """Accuracy of ICL with the study's `k` demonstrations."""
    ft: Estimate | None
    """Accuracy of FT on them, at the rate chosen on the selection split for each seed; None with `--no-ft`."""
    points: list[FoldPoint]
    """All folds, axis by axis; one that failed is left out, and `warnings` says why."""
    perplexity: Perplexity | None
    """Effect of the default fold on plain text; None without `--perplexity`."""
    transfer: list[Transfer]
    """The default fold evaluated on other tasks."""
    compositions: list[Composition]
    """The default fold added to the folds of other tasks."""


class FoldingResult(Result):
    """Result of a folding study."""

    study: Literal["folding"] = "folding"
    """Always `folding`."""
    folding: Folding | None = None
    """Results of the folding study."""
