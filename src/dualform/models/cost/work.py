"""What is computed, described once: costs in a result, progress bars and plans are all counted from it.

`Work` is a list of steps. A step says how many tokens are read behind how many others, or which weights are trained on
how many tokens; it knows neither model nor machine. Operations follow from it and a `ModelShape`, seconds from a
`Machine` as well (`studies.plan_costs`). Nothing here loads torch, because settings name learners, which describe their
work, and are checked before torch is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

if TYPE_CHECKING:
    from dualform.models.cost.shape import ModelShape
    from dualform.models.reading.layout import Probe, Query

TrainedWeights = Literal["key_value", "value_one_layer", "mlp", "adapters"]
"""What a step trains: W_K and W_V of every layer, W_V of the middle layer alone, every MLP, or adapters next to the
weights, whose own products are left out."""

FINDING_BLOCKS = 1
"""Short forwards that find the residual blocks (`models.structure.blocks`)."""
FINDING_MLP_INPUTS = 3
"""Short forwards that find which linears read the MLPs' inputs (`models.structure.mlp_inputs`)."""
SEPARATING_BLOCKS = 4
"""Short forwards before a block-wise fold: blocks are found, shown to be separable (in a whole forward, then each by
itself), and the norms behind them found."""
_SHORT = 5
"""Tokens of a short forward."""


class WorkStep(Protocol):
    """Something that is computed."""

    @property
    def tokens(self) -> float:
        """Tokens that are read."""
        ...

    @property
    def backward_tokens(self) -> float:
        """Of these, tokens through which gradients are taken back."""
        ...

    def flops(self, shape: ModelShape) -> float:
        """Operations in a model of that shape."""
        ...


class _NoTokens:
    """A step that takes time alone: passes over memory, random numbers."""

    tokens = 0.0
    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """None that are counted."""
        return 0.0


@dataclass(frozen=True)
class Forward:
    """Sequences read in one row, each of them behind the same prefix, whose keys and values are at hand."""

    own: tuple[int, ...]
    """Tokens of each sequence."""
    prefix: int = 0
    scored: int = 0
    """Tokens of all sequences at which the output head is applied."""

    @property
    def tokens(self) -> float:
        """All sequences'."""
        return sum(self.own)

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """Every sequence alone, and the head."""
        return sum(shape.forward(n, self.prefix, 0) for n in self.own) + shape.forward(0, 0, self.scored)


@dataclass(frozen=True)
class Evaluation:
    """Whole sequences of one length read a few at a time, the head applied at every token, as validation does it."""

    sequences: int
    length: int
    micro_batch: int

    @property
    def tokens(self) -> float:
        """All sequences'."""
        return self.sequences * self.length

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """A forward a sequence."""
        return self.sequences * shape.forward(self.length, 0, self.length)


@dataclass(frozen=True)
class Decoding:
    """Sequences written by the model, token by token, some side by side, behind a prefix."""

    own: tuple[int, ...]
    """Tokens of each sequence."""
    prefix: int

    @property
    def tokens(self) -> float:
        """All sequences'."""
        return sum(self.own)

    backward_tokens = 0.0

    def flops(self, shape: ModelShape) -> float:
        """The head is applied at every token."""
        return sum(shape.forward(n, self.prefix, n) for n in self.own)


@dataclass(frozen=True)
class Training:
    """One step of descent on one sequence."""

    tokens: int
    learned: int
    """Of these, tokens that are learned."""
    weights: TrainedWeights = "key_value"
    layer_causal: bool = False
    """Every layer has a loss of its own."""

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
class FullTraining:
    """One step of AdamW on all weights: whole sequences, every token learned, a few sequences at a time."""

    sequences: int
    length: int
    micro_batch: int
    attends_twice: bool = False
    """Attention is computed once more for momentum."""

    @property
    def tokens(self) -> float:
        """All sequences'."""
        return self.sequences * self.length

    @property
    def backward_tokens(self) -> float:
        """All of them."""
        return self.tokens

    def flops(self, shape: ModelShape) -> float:
        """Three forwards a sequence."""
        once = shape.full_training(self.length, self.length)
        if self.attends_twice:
            once += 3 * sum(layer.attention(self.length * (self.length + 1) / 2) for layer in shape.layers)
        return self.sequences * once


@dataclass(frozen=True)
class RidgeRegression(_NoTokens):
    """The ridge regression of one layer of a fold, its texts read already."""

    lengths: tuple[int, ...]
    """Tokens of each text, opening included."""
    layer: int

    def flops(self, shape: ModelShape) -> float:
        """Equations and their solution."""
        return shape.ridge_equations(self.lengths, self.layer) + shape.ridge_solution(self.layer)


@dataclass(frozen=True)
class ThoughtMatrices(_NoTokens):
    """A matrix a layer summed over the tokens of texts, and the MLP's first weights multiplied with it."""

    read: int
    """Tokens of all texts."""

    def flops(self, shape: ModelShape) -> float:
        """Sums and products."""
        return shape.thought_matrices(self.read)


@dataclass(frozen=True)
class WeightChange(_NoTokens):
    """Changes of W_K and W_V added to the weights for the length of a block."""


@dataclass(frozen=True)
class RandomDirection(_NoTokens):
    """A random number for every weight of W_K and W_V."""


@dataclass(frozen=True)
class MeasureComputation(_NoTokens):
    """All measures of one group of queries: ranks, attention maps, and the linear form of each head."""

    examples: int
    """Queries of the group."""
    seen: int
    """Own tokens of the longest."""
    demonstration_tokens: int
    """Tokens that are ranked; 0 for none."""
    relaxed: bool = True
    """The linear form is compared with the head's output, as for ICL alone."""


@dataclass(frozen=True)
class Work:
    """Steps, each with how often it is done."""

    steps: tuple[tuple[float, WorkStep], ...] = ()
    """What the result of a run states as a learner's cost."""
    overhead: tuple[tuple[float, WorkStep], ...] = ()
    """What is done around it: finding out how a model is built, reading the opening again with changed weights. Plans
    and progress bars count it, a learner's cost does not."""

    @classmethod
    def of(cls, *steps: WorkStep) -> Work:
        """Some steps, once each."""
        return cls(tuple((1.0, step) for step in steps))

    @property
    def uncharged(self) -> Work:
        """The same, all of it overhead."""
        return Work((), self.steps + self.overhead)

    @property
    def charged(self) -> Work:
        """The same without overhead."""
        return Work(self.steps)

    @property
    def tokens(self) -> float:
        """Tokens that are read."""
        return sum(times * step.tokens for times, step in self.steps + self.overhead)

    @property
    def backward_tokens(self) -> float:
        """Of these, tokens through which gradients are taken back."""
        return sum(times * step.backward_tokens for times, step in self.steps + self.overhead)

    @property
    def passes(self) -> float:
        """Tokens read, a backward pass counted as two forward ones: the unit of progress bars and search budgets."""
        return self.tokens + 2 * self.backward_tokens

    def flops(self, shape: ModelShape) -> float:
        """Operations in a model of that shape."""
        return sum(times * step.flops(shape) for times, step in self.steps + self.overhead)

    def __add__(self, other: Work) -> Work:
        """Both."""
        return Work(self.steps + other.steps, self.overhead + other.overhead)

    def __mul__(self, times: float) -> Work:
        """So many times over."""
        return Work(_repeated(self.steps, times), _repeated(self.overhead, times))


NO_WORK = Work()


def _repeated(steps: tuple[tuple[float, WorkStep], ...], times: float) -> tuple[tuple[float, WorkStep], ...]:
    return tuple((n * times, step) for n, step in steps)


def encode(tokens: int) -> Work:
    """A prefix read once, every layer's keys and values kept."""
    return Work.of(Forward((tokens,))) if tokens else Work()


def read(queries: Sequence[Query], prefix: int, probe: Probe = "prompt", *, head: bool = True) -> Work:
    """Queries read behind a prefix, group by group as `LanguageModel.groups` has them.

    Args:
        queries: All of them.
        prefix: Tokens of the prefix.
        probe: Where the inside is recorded, which decides how many tokens of answers are read.
        head: Apply the output head at every token that predicts one of an answer's.
    """
    return Work.of(*(row_of([queries[i] for i in group], prefix, probe, head=head) for group in rows(queries, probe)))


def rows(queries: Sequence[Query], probe: Probe = "prompt") -> list[list[int]]:
    """Queries that share a row, as indices."""
    from dualform.models.reading.language_model import LanguageModel
    from dualform.models.reading.layout import group

    return group(queries, LanguageModel.max_row, LanguageModel.max_examples, probe)


def row_of(queries: Sequence[Query], prefix: int, probe: Probe = "prompt", *, head: bool = True) -> Forward:
    """A group of queries as one row; see `read`."""
    own = tuple(query.width(probe) for query in queries)
    scored = sum(1 + sum(len(answer) - 1 for answer in query.answers) for query in queries)
    return Forward(own, prefix, scored if head else 0)


def short_forwards(times: int) -> Work:
    """A few tokens read to find out how the model is built, or to check what was found."""
    return (Work.of(Forward((_SHORT,))) * times).uncharged if times else Work()


@dataclass(frozen=True)
class WorkPart:
    """One part of a run."""

    name: str
    work: Work
    """What is expected."""
    least: Work | None = None
    """Where the data decide how much is done: what is done in any case."""
    most: Work | None = None
    """And what is done at most."""
    why: tuple[str, ...] = ()
    """What decides how much is done."""


@dataclass(frozen=True)
class Cost:
    """The price of some work on one machine."""

    forwards: float = 0.0
    """Tokens read."""
    backwards: float = 0.0
    """Of these, tokens through which gradients were taken back."""
    flops: float = 0.0
    """Multiplications and additions of products and attention."""
    seconds: float = 0.0

    def __add__(self, other: Cost) -> Cost:
        """Both."""
        return Cost(
            self.forwards + other.forwards,
            self.backwards + other.backwards,
            self.flops + other.flops,
            self.seconds + other.seconds,
        )

    def __mul__(self, times: float) -> Cost:
        """So many times over."""
        return Cost(self.forwards * times, self.backwards * times, self.flops * times, self.seconds * times)


@dataclass(frozen=True)
class PricedPart:
    """One part of a run with its price."""

    name: str
    cost: Cost
    least: Cost | None = None
    """Where the data decide how much is done: what is done in any case. `cost` is then what is expected."""
    most: Cost | None = None
    """And what is done at most."""
    why: tuple[str, ...] = ()
    """What decides how much is done."""
