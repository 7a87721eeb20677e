"""The result of every learner: a model with a prefix and possibly weight changes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from dualform.learners.saved_parts import SavedParts
from dualform.models.cost.shape import ModelShape
from dualform.models.cost.work import Work
from dualform.models.editing.edit import WeightDelta, applied
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations
from dualform.models.reading.language_model import NO_RECORDING, LanguageModel, Readings
from dualform.models.reading.layout import Probe, Query
from dualform.models.reading.route import EncodedPrefix


@dataclass(frozen=True)
class AdaptationCost:
    """Cost of adapting once."""

    seconds: float
    tokens: int
    """Number of tokens read."""
    flops: float
    """Floating-point operations."""

    @classmethod
    def of(cls, work: Work, shape: ModelShape, seconds: float) -> "AdaptationCost":
        """The cost of some work, without its overhead."""
        charged = work.charged
        return cls(seconds, int(charged.tokens), charged.flops(shape))


class Adapted(Protocol):
    """A model adapted to some demonstrations. Reading does not change the underlying model."""

    @property
    def learner(self) -> str:
        """Name of the learner that made it."""
        ...

    @property
    def cost(self) -> AdaptationCost:
        """Cost of adapting."""
        ...

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        ...

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries (`LanguageModel.groups`)."""
        ...


@dataclass(frozen=True)
class AdaptedModel:
    """A model with a prefix and weight changes, which are applied only while it reads."""

    learner: str
    lm: LanguageModel
    prefix: EncodedPrefix
    cost: AdaptationCost
    deltas: tuple[WeightDelta, ...] = ()
    losses: tuple[float, ...] = ()
    """Training loss before each step, nats per token."""
    training_q: Tensor | None = field(default=None, repr=False)
    """Attention queries at the demonstrations' tokens during training, `(layer, demo_pos, head, d_head)`, where
    `demo_pos` runs over `EncodedDemonstrations.content`."""

    @property
    def n_prefix(self) -> int:
        """Number of tokens before every query."""
        return self.prefix.length

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries with the weight changes applied."""
        with applied(self.lm.model, self.deltas):
            return self.lm.read_group(self.prefix, queries, indices, want, probe)

    def saved_parts(self) -> SavedParts:
        """See `Saveable`."""
        return SavedParts(self.n_prefix, self.deltas)


class Method(Protocol):
    """A way to adapt a model to demonstrations with fixed settings; studies run `learners.base.Learner`."""

    @property
    def name(self) -> str:
        """Short name, as in results."""
        ...

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """Work of adapting a model of that shape."""
        ...

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> Adapted:
        """Adapt `lm`, whose weights are restored afterwards, bit for bit, even if this raises."""
        ...


def answer_log_probabilities(
    adapted: Adapted, lm: LanguageModel, queries: Sequence[Query], after_group: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Mean log-probability of every answer, in nats per token.

    Args:
        adapted: The adapted model.
        lm: The underlying model, which determines the grouping.
        queries: The queries.
        after_group: Called after each group with its number of queries.

    Returns:
        `(example, answer)`, float64 on the CPU, in the order of `queries`; -inf for answers that a query does not have.
    """
    width = max((len(query.answers) for query in queries), default=0)
    table = torch.full((len(queries), width), -torch.inf, dtype=torch.float64)
    for indices in lm.groups(queries):
        readings = adapted.read_group(queries, indices)
        scores = readings.log_probabilities.double().cpu()
        table[list(indices), : scores.shape[1]] = scores
        after_group(len(indices))
    return table
