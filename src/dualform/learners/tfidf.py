"""TF-IDF with logistic regression: the classical baseline, which reads words and never the model."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from dualform.learners.adapted import AdaptationCost, Adapted
from dualform.learners.base import AdaptationContext, Learner
from dualform.learners.classifier import class_log_probabilities
from dualform.learners.saved_parts import SavedParts, linear_head
from dualform.learners.words import texts_of, tfidf_vectorizer
from dualform.models.cost.work import QueryPass, Work
from dualform.models.reading.capture import Recording
from dualform.models.reading.language_model import NO_RECORDING, Readings
from dualform.models.reading.layout import Probe, Query

C = 10.0
"""Inverse strength of the L2 penalty."""


def fit_tfidf(texts: Sequence[str], labels: Sequence[int]) -> Any:
    """Fit logistic regression to the words of texts (`tfidf_vectorizer`).

    Args:
        texts: At least one text.
        labels: Class of each text.

    Returns:
        A fitted scikit-learn pipeline; None if all texts have the same class. If no text has a word, a classifier that
        answers with the classes' shares.
    """
    # Imported here because it is slow.
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if len(set(labels)) < 2:
        return None
    vectorizer = tfidf_vectorizer()
    if not any(map(vectorizer.build_analyzer(), texts)):
        return DummyClassifier(strategy="prior").fit(texts, labels)
    return make_pipeline(vectorizer, LogisticRegression(C=C, class_weight="balanced", max_iter=1000)).fit(texts, labels)


@dataclass(frozen=True)
class WordClassifier:
    """A classifier of texts by their words."""

    learner: str
    classifier: Any
    """Fitted scikit-learn pipeline of texts; None if all labelled examples have the same label."""
    only_label: int
    """The answer to every query if there is no classifier."""
    n_labels: int
    cost: AdaptationCost
    n_prefix: int = 0
    """No token is read."""

    def read_group(
        self, queries: Sequence[Query], indices: Sequence[int], want: Recording = NO_RECORDING, probe: Probe = "prompt"
    ) -> Readings:
        """The classifier's answers (-inf for labels that it has not seen); the model is not run."""
        texts = texts_of([queries[i] for i in indices])
        table = class_log_probabilities(self.classifier, texts, self.n_labels, self.only_label)
        return Readings.without_model(indices, table)

    def saved_parts(self) -> SavedParts:
        """See `Saveable`."""
        return SavedParts(0, head=linear_head(self.classifier, "words", self.only_label, 0))


class TfidfLearner(Learner):
    """Logistic regression (scikit-learn, L2) on TF-IDF weights of words and pairs of neighbouring words.

    What a language model adds is the difference to this. The texts of all fields are read, without the template's
    words. Classes have equal weight, since a few labels drawn at random are rarely balanced. `C` is fixed: on seven
    data sets, with 32 labels, mean accuracy is 0.52 so, 0.49 without equal weights, and 0.47 with C chosen as well,
    among 1, 10 and 100, by cross-validation inside the labels; with 8 and with 128 labels it is ahead by one point.
    Classes that do not occur among the labels have the log-probability -inf, as for `probe`.
    """

    name = "tfidf"
    title = "TF-IDF"
    noun = "TF-IDF with logistic regression"
    meaning = "Logistic regression on the words of the text; the model is not used."
    colour = "#6B8E6B"
    needs_demonstrations = True
    needs_label_words = True
    trains_on = "labelled"

    def adapt(self, context: AdaptationContext) -> WordClassifier:
        """Fit the classifier to the labelled examples."""
        start, labels = time.perf_counter(), context.labelled.labels
        classifier = fit_tfidf(texts_of(context.labelled_queries()), labels)
        cost = AdaptationCost.of(self.work(context), context.lm.shape, time.perf_counter() - start)
        return WordClassifier(self.name, classifier, labels[0] if labels else 0, context.task.n_labels, cost)

    def prefix_length(self, context: AdaptationContext) -> int:
        """Always 0."""
        return 0

    def work(self, context: AdaptationContext) -> Work:
        """No work: no token is read."""
        return Work()

    def reading(self, context: AdaptationContext, queries: Sequence[Query], probe: Probe) -> Work:
        """No work: no token is read."""
        return Work()

    def query_passes(self, context: AdaptationContext, adapted: Adapted) -> tuple[QueryPass, ...]:
        """None."""
        return ()


TFIDF = TfidfLearner()
