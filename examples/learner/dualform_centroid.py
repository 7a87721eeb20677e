"""A nearest-centroid learner: a query gets the label whose demonstrations' mean hidden state is closest to its own."""

import time
from dataclasses import dataclass, replace

import torch

from dualform.learners.adapted import AdaptationCost, AdaptedModel
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.prompting import ZeroShot
from dualform.models.cost.work import Work, read


class Centroid(Learner):
    name = "centroid"
    title = "nearest centroid"
    meaning = "The label whose demonstrations' mean hidden state is closest."
    needs_demonstrations = needs_label_words = True
    answers_from = "zsl"

    def adapt(self, context: AdaptationContext) -> "Nearest":
        start, queries = time.perf_counter(), context.demonstration_queries()
        zero_shot = ZeroShot(context.opening).adapt(context.lm, context.encoded)
        states = torch.cat([zero_shot.read_group(queries, [i]).hidden.double() for i in range(len(queries))])
        labels = torch.tensor(context.demonstrations.labels, device=states.device)
        means = torch.stack([states[labels == label].mean(dim=0) for label in range(context.task.n_labels)])
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return Nearest(self.name, zero_shot, means, cost)

    def work(self, context: AdaptationContext) -> Work:
        return read(context.demonstration_queries(), len(context.opening))


@dataclass(frozen=True)
class Nearest:
    learner: str
    zero_shot: AdaptedModel
    means: torch.Tensor  # (label, d_model); NaN for a label without demonstrations
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        return self.zero_shot.n_prefix

    def read_group(self, queries, indices, *how):
        return self.answer(self.zero_shot.read_group(queries, indices, *how))

    def answer(self, readings):
        distances = torch.cdist(readings.hidden.double(), self.means).nan_to_num(torch.inf)
        return replace(readings, log_probabilities=(-distances).log_softmax(dim=1))


CENTROID = Centroid()
