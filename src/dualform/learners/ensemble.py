"""In-context learning averaged over several orders of the demonstrations."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dualform.learners.adapted import AdaptationCost, Adapted, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.prompting import InContext
from dualform.models.cost.work import QueryPass, Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.models.reading.layout import Probe, Query


def mean_of_probabilities(tables: Sequence[Tensor]) -> Tensor:
    """Logarithm of the mean of several distributions over answers.

    Args:
        tables: Log-probabilities up to a constant for each row, `(example, answer)`, -inf for impossible.

    Returns:
        Nats, normalised over answers, float64 on the CPU, of the same shape.
    """
    log_p = torch.stack([table.double().cpu().log_softmax(dim=1) for table in tables])
    return log_p.logsumexp(dim=0) - math.log(len(tables))


@dataclass(frozen=True)
class EnsembleModel:
    """The model with the same demonstrations in several orders."""

    learner: str
    members: tuple[AdaptedModel, ...]
    """The prompted model, for each order; that in which the demonstrations were drawn comes first."""
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens of the demonstrations, in each order."""
        return self.members[0].n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries after each order; everything but the answers is that of the first order."""
        first = self.members[0].read_group(queries, indices, want, probe)
        others = [member.read_group(queries, indices) for member in self.members[1:]]
        tables = [readings.log_probabilities for readings in (first, *others)]
        return replace(first, log_probabilities=mean_of_probabilities(tables))


class EnsembleLearner(Learner):
    """The mean of the answers' probabilities over `ensemble_orders` orders of the demonstrations.

    Answers depend on the order (arXiv:2104.08786), and none is known to be good without further labels. Every query is
    read once for each order.
    """

    name = "icl_ensemble"
    title = "ICL, several orders"
    noun = "in-context learning averaged over orders"
    meaning = "In-context learning, with probabilities averaged over several orders of the demonstrations."
    colour = "#004C6D"
    shows_demonstrations = True

    def adapt(self, context: AdaptationContext) -> EnsembleModel:
        """Encode the demonstrations in each order."""
        start, encoder = time.perf_counter(), context.setup.encoder
        orders = context.demonstrations.in_orders(context.config.ensemble_orders)
        members = tuple(InContext().adapt(context.lm, encoder.demonstrations(order)) for order in orders)
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return EnsembleModel(self.name, members, cost)

    def prefix_length(self, context: AdaptationContext) -> int:
        """Number of tokens of the demonstrations, which is the same in each order."""
        return len(context.encoded.prefix)

    def work(self, context: AdaptationContext) -> Work:
        """Encoding the demonstrations in each order."""
        return encode(self.prefix_length(context)) * self._n_orders(context)

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """Reading the queries after each order."""
        n_prefix = self.prefix_length(context)
        return read(queries, n_prefix, probe) + read(queries, n_prefix) * (self._n_orders(context) - 1)

    def query_passes(self, context: AdaptationContext, adapted: Adapted) -> tuple[QueryPass, ...]:
        """A pass for each order."""
        return (QueryPass.after(adapted.n_prefix),) * self._n_orders(context)

    def _n_orders(self, context: AdaptationContext) -> int:
        orders: int = min(context.config.ensemble_orders, context.demonstrations.n_orders)
        return orders


ENSEMBLE = EnsembleLearner()
