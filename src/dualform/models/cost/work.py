"""Descriptions of computations, from which costs in results, progress bars and plans are computed.

`Work` is a list of steps. A step states how many tokens are read after a prefix of how many others, or which weights
are trained on how many tokens, independently of model and machine. Operations follow from it and a `ModelShape`,
seconds also from a `Machine` (`studies.plan_costs`). This module does not import torch, so that settings, which name
learners, can be checked quickly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from dualform.models.cost.shape import ModelShape
    from dualform.models.reading.layout import Probe, Query

TrainedWeights = Literal["key_value", "value_one_layer", "mlp", "adapters", "biases", "all"]
"""What a step trains: W_K and W_V of every layer; W_V of the middle layer; every MLP; adapters (whose own products
`Training` does not count); biases; or all weights."""

FINDING_BLOCKS = 1
"""Number of short forwards to find the residual blocks (`models.structure.blocks`)."""
FINDING_MLP_INPUTS = 3
"""Number of short forwards to find which linears read the MLPs' inputs (`models.structure.mlp_inputs`)."""
SEPARATING_BLOCKS = 4
"""Number of short forwards before a block-wise fold: to find the blocks and the norms after them, and to check that
blocks can be run separately."""
_SHORT = 5
"""Tokens of a short forward."""


class WorkStep(Protocol):
    """A step of a computation."""

    @property
    def tokens(self) -> float:
        """Number of tokens read."""
        ...

    @property
    def backward_tokens(self) -> float:
        """Number of these tokens that take part in a backward pass."""
        ...

    def flops(self, shape: ModelShape) -> float:
        """Operations in a model of that shape."""
        ...


class _NoTokens:
    """A step without tokens: passes over memory, random numbers."""

    tokens = 0.0
    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """Always 0."""
        return 0.0


@dataclass(frozen=True)
class Forward:
    """Sequences read in one row, each after the same cached prefix."""

    own: tuple[int, ...]
    """Number of tokens of each sequence."""
    prefix: int = 0
    """Number of tokens of the prefix."""
    scored: int = 0
    """Number of tokens, in all sequences, at which the output head is applied."""

    @property
    def tokens(self) -> float:
        """Tokens of all sequences."""
        return sum(self.own)

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """Every sequence, and the output head."""
        return sum(shape.forward(n, self.prefix, 0) for n in self.own) + shape.forward(0, 0, self.scored)


@dataclass(frozen=True)
class Evaluation:
    """Validation: sequences of one length, `micro_batch` at a time, with the output head applied at every token."""

    sequences: int
    length: int
    micro_batch: int

    @property
    def tokens(self) -> float:
        """Tokens of all sequences."""
        return self.sequences * self.length

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """A forward pass for each sequence."""
        return self.sequences * shape.forward(self.length, 0, self.length)


@dataclass(frozen=True)
class Decoding:
    """Sequences generated token by token after a prefix."""

    own: tuple[int, ...]
    """Number of tokens of each sequence."""
    prefix: int
    """Number of tokens of the prefix."""

    @property
    def tokens(self) -> float:
        """Tokens of all sequences."""
        return sum(self.own)

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """The head is applied at every token."""
        return sum(shape.forward(n, self.prefix, n) for n in self.own)


@dataclass(frozen=True)
class Training:
    """One training step on one sequence."""

    tokens: int
    learned: int
    """Number of tokens in the loss."""
    weights: TrainedWeights = "key_value"
    layer_causal: bool = False
    """Every layer has its own loss."""

    @property
    def backward_tokens(self) -> float:
        """The whole sequence."""
        return self.tokens

    def flops(self, shape: ModelShape) -> float:
        """Forward, backward, and gradients of the trained weights."""
        if self.layer_causal:
            return shape.layer_causal_training(self.tokens, self.learned)
        return shape.training(self.tokens, self.learned, self.weights)


@dataclass(frozen=True)
class BatchTraining:
    """Forward and backward of padded sequences in one training step, with the optimiser's step."""

    sequences: int
    length: int
    """Number of tokens of each sequence, padding included."""
    learned: int
    """Number of tokens in the loss, of all sequences."""
    weights: TrainedWeights
    rank: int = 0
    """Rank of the adapters, for `adapters`."""
    targets: str = ""
    """Modules with adapters, see `ModelShape.adapters`."""

    @property
    def tokens(self) -> float:
        """Tokens of all sequences, padding included."""
        return self.sequences * self.length

    @property
    def backward_tokens(self) -> float:
        """Tokens of all sequences."""
        return self.tokens

    def flops(self, shape: ModelShape) -> float:
        """Forward, backward, gradients of the trained weights, and the products of adapters."""
        scored = self.learned / self.sequences
        if self.weights == "all":
            return self.sequences * shape.full_training(self.length, scored)
        adapters = shape.adapters(self.rank, self.targets) if self.rank else 0
        return self.sequences * shape.training(self.length, scored, self.weights) + 6.0 * self.tokens * adapters


@dataclass(frozen=True)
class FullTraining:
    """One AdamW step on all weights, with all tokens in the loss, `micro_batch` sequences at a time."""

    sequences: int
    length: int
    micro_batch: int
    attends_twice: bool = False
    """Attention is computed once more for momentum."""

    @property
    def tokens(self) -> float:
        """Tokens of all sequences."""
        return self.sequences * self.length

    @property
    def backward_tokens(self) -> float:
        """Tokens of all sequences."""
        return self.tokens

    def flops(self, shape: ModelShape) -> float:
        """Three times a forward pass for each sequence."""
        once = shape.full_training(self.length, self.length)
        if self.attends_twice:
            once += 3 * sum(layer.attention(self.length * (self.length + 1) / 2) for layer in shape.layers)
        return self.sequences * once


@dataclass(frozen=True)
class RidgeRegression(_NoTokens):
    """The ridge regression of one layer of a fold, without the forwards of its texts."""

    lengths: tuple[int, ...]
    """Number of tokens of each text, including the opening."""
    layer: int
    """Index of the layer, 0 for the first."""

    def flops(self, shape: ModelShape) -> float:
        """Equations and their solution."""
        return shape.ridge_equations(self.lengths, self.layer) + shape.ridge_solution(self.layer)


@dataclass(frozen=True)
class ThoughtMatrices(_NoTokens):
    """A matrix for each layer, summed over tokens, and its products with the MLP's input weights."""

    read: int
    """Number of tokens of all texts."""

    def flops(self, shape: ModelShape) -> float:
        """Sums and products."""
        return shape.thought_matrices(self.read)


@dataclass(frozen=True)
class WeightChange(_NoTokens):
    """Changes of W_K and W_V added to the weights, and removed afterwards."""


@dataclass(frozen=True)
class RandomDirection(_NoTokens):
    """A random number for every weight of W_K and W_V."""


@dataclass(frozen=True)
class MeasureComputation(_NoTokens):
    """All measures of one group of queries: ranks, attention maps, and the linear form of each head."""

    examples: int
    """Number of queries."""
    seen: int
    """Number of tokens of the longest query."""
    demonstration_tokens: int
    """Number of demonstration tokens that are ranked; may be 0."""
    relaxed: bool = True
    """The linear form is compared with the head's output; only for ICL."""


@dataclass(frozen=True)
class Work:
    """Steps, each with its number of repetitions."""

    steps: tuple[tuple[float, WorkStep], ...] = ()
    """Steps that are reported as a learner's cost."""
    overhead: tuple[tuple[float, WorkStep], ...] = ()
    """Further steps, such as finding a model's blocks or reading the opening again with changed weights. They count in
    plans and progress bars, but not in a learner's cost."""

    @classmethod
    def of(cls, *steps: WorkStep) -> Work:
        """Work that consists of these steps, once each."""
        return cls(tuple((1.0, step) for step in steps))

    @property
    def uncharged(self) -> Work:
        """The same work, all of it as overhead."""
        return Work((), self.steps + self.overhead)

    @property
    def charged(self) -> Work:
        """The same work without its overhead."""
        return Work(self.steps)

    @property
    def tokens(self) -> float:
        """Number of tokens read."""
        return sum(times * step.tokens for times, step in self.steps + self.overhead)

    @property
    def backward_tokens(self) -> float:
        """Number of these tokens that take part in a backward pass."""
        return sum(times * step.backward_tokens for times, step in self.steps + self.overhead)

    @property
    def passes(self) -> float:
        """Tokens read, with a backward pass counted as two forward passes: the unit of progress bars and budgets."""
        return self.tokens + 2 * self.backward_tokens

    def flops(self, shape: ModelShape) -> float:
        """Operations in a model of that shape."""
        return sum(times * step.flops(shape) for times, step in self.steps + self.overhead)

    def __add__(self, other: Work) -> Work:
        """Both together."""
        return Work(self.steps + other.steps, self.overhead + other.overhead)

    def __mul__(self, times: float) -> Work:
        """The same work, repeated."""
        return Work(_repeated(self.steps, times), _repeated(self.overhead, times))


NO_WORK = Work()


@dataclass(frozen=True)
class QueryPass:
    """One pass of the model over a query, after some tokens."""

    prefix: float
    """Number of tokens before the query."""
    kept: float
    """Number of these that all queries share, so that their keys and values can be cached."""

    @classmethod
    def after(cls, prefix: float) -> QueryPass:
        """A pass after a prefix that all queries share."""
        return cls(prefix, prefix)


def _repeated(steps: tuple[tuple[float, WorkStep], ...], times: float) -> tuple[tuple[float, WorkStep], ...]:
    return tuple((n * times, step) for n, step in steps)


def encode(tokens: int) -> Work:
    """Reading a prefix once and caching its keys and values."""
    return Work.of(Forward((tokens,))) if tokens else Work()


def read(queries: Sequence[Query], prefix: int, probe: Probe = "prompt", *, head: bool = True) -> Work:
    """Reading queries after a prefix, grouped as in `LanguageModel.groups`.

    Args:
        queries: The queries.
        prefix: Number of tokens of the prefix.
        probe: Position at which internals are recorded, which determines how many tokens of the answers are read.
        head: Whether the output head is applied at tokens that predict an answer's token.
    """
    return Work.of(*(row_of([queries[i] for i in group], prefix, probe, head=head) for group in rows(queries, probe)))


def rows(queries: Sequence[Query], probe: Probe = "prompt") -> list[list[int]]:
    """Indices of the queries that share a row, for each row."""
    from dualform.models.reading.language_model import LanguageModel
    from dualform.models.reading.layout import group

    return group(queries, LanguageModel.max_row, LanguageModel.max_examples, probe)


def row_of(queries: Sequence[Query], prefix: int, probe: Probe = "prompt", *, head: bool = True) -> Forward:
    """Reading a group of queries as one row; see `read`."""
    own = tuple(query.width(probe) for query in queries)
    scored = sum(1 + sum(len(answer) - 1 for answer in query.answers) for query in queries)
    return Forward(own, prefix, scored if head else 0)


def short_forwards(times: int) -> Work:
    """Short forwards that find or check how a model is built."""
    return (Work.of(Forward((_SHORT,))) * times).uncharged if times else Work()


@dataclass(frozen=True)
class WorkPart:
    """One part of a run."""

    name: str
    work: Work
    """Expected work."""
    least: Work | None = None
    """Lower bound, if the amount of work depends on the data."""
    most: Work | None = None
    """Upper bound, if the amount of work depends on the data."""
    why: tuple[str, ...] = ()
    """What the amount of work depends on."""


@dataclass(frozen=True)
class Cost:
    """Cost of work on one machine."""

    forwards: float = 0.0
    """Number of tokens read."""
    backwards: float = 0.0
    """Number of these tokens that take part in a backward pass."""
    flops: float = 0.0
    """Multiplications and additions in matrix products and attention."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both together."""
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> Cost:
        """The same cost, repeated."""
        return Cost(self.forwards * times, self.backwards * times, self.flops * times, self.seconds * times)


@dataclass(frozen=True)
class PricedPart:
    """One part of a run with its cost."""

    name: str
    cost: Cost
    """Expected cost."""
    least: Cost | None = None
    """Lower bound, if the amount of work depends on the data."""
    most: Cost | None = None
    """Upper bound, if the amount of work depends on the data."""
    why: tuple[str, ...] = ()
    """What the amount of work depends on."""
