"""In-context learning with demonstrations retrieved for each query: the labelled texts with the most similar words."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from dualform.learners.adapted import AdaptationCost, Adapted, AdaptedModel
from dualform.learners.base import AdaptationContext, LabelUse, Learner
from dualform.learners.prompting import ZeroShot
from dualform.learners.words import texts_of, tfidf_vectorizer
from dualform.models.cost.work import QueryPass, Work, encode, read
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings, joined_readings
from dualform.models.reading.layout import Probe, Query


def nearest_texts(texts: Sequence[str], queries: Sequence[str], n: int) -> list[list[int]]:
    """The texts nearest to each query, by the cosine of TF-IDF weights (`tfidf_vectorizer`).

    Args:
        texts: The texts to choose from, which also determine the weights.
        queries: The queries' texts.
        n: Number of texts for each query, if there are as many.

    Returns:
        For each query, indices of texts, the nearest last. Of equally near ones, earlier texts count as nearer.
    """
    if not queries:
        return []
    vectorizer = tfidf_vectorizer()
    similarity = np.zeros((len(queries), len(texts)))
    if any(map(vectorizer.build_analyzer(), texts)):
        # Rows have length 1, so products are cosines.
        weights = vectorizer.fit_transform(texts)
        similarity = (vectorizer.transform(queries) @ weights.T).toarray()
    order = np.argsort(-similarity, axis=1, kind="stable")[:, :n]
    return [list(map(int, row[::-1])) for row in order]


@dataclass(frozen=True)
class Retrieval:
    """The labelled examples from which each query's demonstrations are retrieved."""

    context: AdaptationContext

    def prompted(self, queries: Sequence[Query]) -> tuple[Query, ...]:
        """The queries with their demonstrations in the prompt; of these, the farthest are left out if too long."""
        context = self.context
        texts = texts_of(context.labelled_queries())
        nearest = nearest_texts(texts, texts_of(queries), context.config.knn_neighbours)
        return tuple(self._prompted(query, chosen) for query, chosen in zip(queries, nearest, strict=True))

    def _prompted(self, query: Query, chosen: list[int]) -> Query:
        context = self.context
        opening = len(context.opening)
        for first in range(len(chosen) + 1):
            demonstrations = context.labelled.at(chosen[first:])
            prefix = context.setup.encoder.demonstrations(demonstrations).prefix[opening:]
            prompted = replace(query, prompt=(*prefix, *query.prompt))
            if opening + prompted.longest() <= context.setup.context:
                break
        return prompted


@dataclass(frozen=True)
class RetrievalModel:
    """The model with demonstrations that are retrieved for each query."""

    learner: str
    zero_shot: AdaptedModel
    retrieval: Retrieval
    cost: AdaptationCost

    @property
    def n_prefix(self) -> int:
        """Number of tokens that all queries share: the opening."""
        return self.zero_shot.n_prefix

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """Read one group of queries, each with its own demonstrations. Of `want` nothing is recorded."""
        prompted = self.retrieval.prompted([queries[i] for i in indices])
        groups = self.zero_shot.lm.groups(prompted)
        parts = [self.zero_shot.read_group(prompted, group) for group in groups]
        return replace(joined_readings(parts, range(len(prompted))), queries=tuple(indices))


class RetrievalLearner(Learner):
    """In-context learning with the `knn_neighbours` labelled examples whose words are most similar to the query's.

    They stand in the order of similarity, the nearest one last, next to the query (arXiv:2101.06804, which retrieves
    by hidden states). Chosen are only examples that the seed's labels belong to: the demonstrations, or with a budget
    of labels all that it buys. Every query reads its own demonstrations, so no prefix is shared.
    """

    name = "knn"
    title = "ICL, nearest"
    noun = "in-context learning with retrieved demonstrations"
    meaning = "In-context learning, with the labelled examples most similar to each query as its demonstrations."
    colour = "#9C7C1C"
    needs_demonstrations = True
    shows_demonstrations = True

    def adapt(self, context: AdaptationContext) -> RetrievalModel:
        """Encode the opening."""
        start = time.perf_counter()
        zero_shot = ZeroShot(context.opening).adapt(context.lm, context.encoded)
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return RetrievalModel(self.name, zero_shot, Retrieval(context), cost)

    def work(self, context: AdaptationContext) -> Work:
        """Reading the opening."""
        return encode(len(context.opening))

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """Reading each query with its own demonstrations."""
        return read(Retrieval(context).prompted(queries), len(context.opening))

    def query_passes(self, context: AdaptationContext, adapted: Adapted) -> tuple[QueryPass, ...]:
        """One pass, after the demonstrations of an average query, of which all queries share the opening alone."""
        queries, opening = context.setup.queries, len(context.opening)
        prompted = Retrieval(context).prompted(queries)
        own = sum(len(each.prompt) - len(query.prompt) for each, query in zip(prompted, queries, strict=True))
        return (QueryPass(opening + own / len(queries), opening),)

    def labels_used(self, context: AdaptationContext) -> LabelUse:
        """Any labelled example may be shown."""
        n = len(context.labelled.examples)
        return LabelUse(n, 0, 0, n)


KNN = RetrievalLearner()
