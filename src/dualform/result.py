"""What a run found: the schema of `result.json`, the one thing that `studies` write and `report` reads.

Numbers that do not exist (a ratio over nothing, an interval of one seed) are `null` in the file and None here;
their count `n` says why.
"""

import math
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

SCHEMA_VERSION: Literal[1] = 1


def _finite_or_none(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite_or_none)]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)


class Estimate(_Record):
    """A mean with its uncertainty."""

    mean: Number
    """Mean over examples (within a seed), then over seeds."""
    ci95: tuple[Number, Number]
    """95 % bootstrap interval, resampling demonstration seeds and, independently, the queries that all seeds share."""
    n: int
    """Numbers that the mean stands on: (seed, query) pairs, or the denominator of a ratio."""


class Accuracy(Estimate):
    """Share of queries answered rightly, in [0, 1]."""

    per_seed: dict[str, Number]
    """The same for each demonstration seed."""


class Predictions(_Record):
    """What a learner answers, rightly or wrongly."""

    majority_share: Number
    """Share of the most frequent predicted label, in [0, 1]; near 1 means collapse into one class."""
    majority_label: str | None
    """That label's word (None for tasks with free-text choices)."""
    entropy: Number
    """Mean entropy of the label distribution, nats."""
    counts: dict[str, int]
    """Predictions of each label over all seeds, by label word (choice index for free-text choices)."""


class Similarity(Estimate):
    """One measure of likeness between what context did and what finetuning did."""

    per_seed: dict[str, Number] = {}
    """The mean for each demonstration seed."""
    per_layer: list[Number] | None = None
    """The mean for each layer, first block first; None where the measure has no layers."""
    per_layer_ci95: list[tuple[Number, Number]] | None = None
    """Interval for each layer."""
    per_head: list[list[Number]] | None = None
    """The mean for each layer and head, `per_head[layer][head]`; None where the measure has no heads."""
    details: dict[str, Any] = {}
    """The counts and companions that a reader needs beside the number: chance level, lift, numerators."""


class Cost(_Record):
    """What a learner costs, mean over seeds (the search for a rate: in all)."""

    adapt_seconds: Number
    """Seconds to adapt to one set of demonstrations (for ICL: encoding them), without the search for a rate."""
    query_seconds: Number
    """Seconds a query, demonstrations already encoded, labels and recording included."""
    tokens: Number
    """Tokens that one query makes the model read when nothing is shared: demonstrations + prompt."""
    flops: Number
    """Floating-point operations of one such query."""
    adapt_tokens: Number = None
    """Tokens read while adapting once."""
    adapt_flops: Number = None
    """Floating-point operations of adapting once."""
    search_seconds: Number = None
    """Seconds spent on choosing the learning rate (0 without a search)."""


class Trial(_Record):
    """One learning rate tried for one learner on one seed."""

    learner: str
    seed: int
    learning_rate: float
    validation_accuracy: Number
    """Accuracy on the selection split, in [0, 1]; None when the trial was dropped."""
    validation_log_probability: Number
    """Mean log-probability of the right label on the selection split, nats; breaks ties."""
    first_loss: Number
    last_loss: Number
    status: str
    """`finished`, `diverged` (NaN or infinite loss, rate dropped) or `skipped` (early-out)."""
    chosen: bool


class DemonstrationReport(_Record):
    """Which demonstrations were used."""

    k_requested: int
    k_effective: int
    """How many fitted, the smallest over seeds; every learner used these."""
    k_effective_per_seed: dict[str, int]
    rows: dict[str, list[int]]
    """Row numbers in the train split, in order, for each seed."""
    tokens: dict[str, int]
    """Tokens of the encoded demonstrations, for each seed."""


class Result(_Record):
    """A study's outcome."""

    schema_version: Literal[1] = Field(default=SCHEMA_VERSION, alias="schema")
    dualform: str
    """Version that wrote it."""
    study: str
    """`comparison`."""
    config: dict[str, Any]
    environment: dict[str, Any]
    """Python, library versions, CPU, threads, device, seconds: with the seconds of `cost`, all that may differ between
    two equal runs."""
    model: dict[str, Any] = {}
    """name, architecture, parameters, n_layers, n_heads, d_model, dtype, route, revision (on the hub), vocabulary,
    inputs (digest of weights, texts and labels)."""
    task: dict[str, Any] = {}
    """name, source, label_words, prompt (one rendered example), prompt_tokens (mean), n_report, report_split,
    n_selection, selection_split."""
    demonstrations: DemonstrationReport | None = None
    accuracy: dict[str, Accuracy] = {}
    predictions: dict[str, Predictions] = {}
    similarity: dict[str, Similarity] = {}
    controls: dict[str, dict[str, Similarity]] = {}
    cost: dict[str, Cost] = {}
    trials: list[Trial] = []
    warnings: list[str] = []
    """What a reader must know before believing the numbers, in plain sentences."""

    def to_json(self) -> str:
        """The text of `result.json`, `schema` first."""
        return self.model_dump_json(by_alias=True, indent=2)

    @classmethod
    def from_json(cls, text: str) -> "Result":
        """Read `result.json`.

        Raises:
            pydantic.ValidationError: The text does not follow the schema.
        """
        return cls.model_validate_json(text)
