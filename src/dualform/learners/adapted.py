"""What every learner makes: one model, read behind some prefix with some changes of weight."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

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
    """What adapting once took."""

    seconds: float
    tokens: int
    """Tokens read."""
    flops: float
    """Floating-point operations."""

    @classmethod
    def of(cls, work: Work, shape: ModelShape, seconds: float) -> "AdaptationCost":
        """What some work took, its overhead left out."""
        charged = work.charged
        return cls(seconds, int(charged.tokens), charged.flops(shape))


class Adapted(Protocol):
    """A model adapted to some demonstrations. Reading leaves no trace on the model."""

    @property
    def learner(self) -> str:
        """Name of the learner that made it."""
        ...

    @property
    def cost(self) -> AdaptationCost:
        """What adapting took."""
        ...

    @property
    def n_prefix(self) -> int:
        """Tokens that stand before every query."""
        ...

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries (`LanguageModel.groups`)."""
        ...


@dataclass(frozen=True)
class AdaptedModel:
    """The model behind a prefix, with changes to its weights lent while it reads: all learners but the probe."""

    learner: str
    lm: LanguageModel
    prefix: EncodedPrefix
    cost: AdaptationCost
    deltas: tuple[WeightDelta, ...] = ()
    losses: tuple[float, ...] = ()
    """Training loss before each step, nats a token."""
    training_q: Tensor | None = field(default=None, repr=False)
    """Attention queries at the demonstrations' tokens while training passed over them, `(layer, demo_pos, head,
    d_head)`; `demo_pos` runs over `EncodedDemonstrations.content`."""

    @property
    def n_prefix(self) -> int:
        """Tokens that stand before every query."""
        return self.prefix.length

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries, changes applied for as long as it takes."""
        with applied(self.lm.model, self.deltas):
            return self.lm.read_group(self.prefix, queries, indices, want, probe)


class Method(Protocol):
    """A way to adapt a model to demonstrations, its settings given; `learners.base.Learner` is what studies run."""

    @property
    def name(self) -> str:
        """Short name, as in results."""
        ...

    def work(self, shape: ModelShape, demonstrations: EncodedDemonstrations) -> Work:
        """What adapting a model of that shape reads and trains."""
        ...

    def adapt(self, lm: LanguageModel, demonstrations: EncodedDemonstrations) -> Adapted:
        """Adapt `lm`; its weights are the same afterwards, bit for bit, also when this raises."""
        ...


def answer_log_probabilities(
    adapted: Adapted, lm: LanguageModel, queries: Sequence[Query], after_group: Callable[[int], None] = lambda n: None
) -> Tensor:
    """Mean log-probability of every answer, `(example, answer)`, float64 on the CPU, in the order of `queries`.

    Args:
        adapted: Who answers.
        lm: The model that it adapts, for the grouping.
        queries: What is asked.
        after_group: Told the number of queries read, after each group.
    """
    width = max((len(query.answers) for query in queries), default=0)
    table = torch.full((len(queries), width), -torch.inf, dtype=torch.float64)
    for indices in lm.groups(queries):
        readings = adapted.read_group(queries, indices)
        found = readings.log_probabilities.double().cpu()
        table[list(indices), : found.shape[1]] = found
        after_group(len(indices))
    return table
