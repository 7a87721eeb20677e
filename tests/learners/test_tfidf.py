"""TF-IDF is a plain scikit-learn script, and never runs the model."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from dualform.errors import ConfigError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.tfidf import C, fit_tfidf
from dualform.models.cost.work import Work
from dualform.models.reading.layout import Query
from dualform.studies.comparison.run import compare
from tests.learners.contexts import budget, choices_task, context_of, relabelled
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task

TFIDF = LEARNERS["tfidf"]


def answers(context: Any) -> torch.Tensor:
    return answer_log_probabilities(TFIDF.adapt(context), context.lm, context.setup.queries)


@pytest.mark.parametrize("changes", [{"k": 12}, budget(20)], ids=["demonstrations", "budget"])
def test_it_is_a_plain_scikit_learn_script(changes: dict[str, Any]):
    context = context_of(small_experiment(**changes))
    labelled = context.labelled
    assert len(labelled.examples) == next(iter(changes.values()))
    # All words of these texts have two letters or more, or are "a": their own pattern finds the same.
    vectorizer = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+")
    features = vectorizer.fit_transform([example.fields["text"] for example in labelled.examples])
    classifier = LogisticRegression(C=C, class_weight="balanced", max_iter=1000).fit(features, labelled.labels)
    setup: Any = context.setup
    texts = [example.fields["text"] for example in setup.examples]
    expected = classifier.predict_log_proba(vectorizer.transform(texts))
    np.testing.assert_allclose(answers(context).numpy(), expected, rtol=0, atol=1e-9)


def test_it_reads_no_token(monkeypatch: pytest.MonkeyPatch):
    context = context_of(small_experiment(k=8))

    def fail(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("the model was run")

    monkeypatch.setattr(context.lm.model, "forward", fail)
    adapted = TFIDF.adapt(context)
    readings = adapted.read_group(context.setup.queries, [2, 0])
    assert readings.queries == (2, 0)
    assert readings.trace is None
    assert readings.hidden.shape == readings.next_token.shape == (2, 0)
    assert TFIDF.work(context) == TFIDF.reading(context, context.setup.queries, "label0") == Work()
    assert (adapted.cost.tokens, adapted.cost.flops, adapted.n_prefix) == (0, 0.0, 0)


def test_a_comparison_reports_that_its_queries_cost_nothing():
    result = compare(small_config(learners=("zsl", "tfidf"), controls=()), lm=small_lm(), task=small_task()).result
    cost = result.cost["tfidf"]
    assert (cost.tokens, cost.flops, cost.kept_tokens, cost.kept_flops) == (0, 0, 0, 0)
    assert (cost.adapt_tokens, cost.adapt_flops) == (0, 0)
    assert result.cost["zsl"].flops is not None
    assert result.cost["zsl"].flops > 0


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_it_answers_that_class_for_certain(label: int):
    context = context_of(small_experiment(k=6))
    table = answers(relabelled(context, [label] * 6))
    assert (table[:, label] == 0).all()
    assert torch.isneginf(table[:, 1 - label]).all()


def test_a_class_that_never_occurs_is_never_answered():
    context = context_of(small_experiment(k=6))
    adapted = TFIDF.adapt(relabelled(context, [0, 2, 0, 2, 2, 0], n_labels=4))
    table = adapted.read_group(context.setup.queries, [0, 1]).log_probabilities
    assert torch.isneginf(table[:, [1, 3]]).all()
    torch.testing.assert_close(table.exp().sum(1), torch.ones(2, dtype=torch.float64))


def test_texts_without_words_get_the_shares_of_the_classes():
    classifier = fit_tfidf(["!", "?", "..."], [0, 1, 1])
    np.testing.assert_allclose(classifier.predict_proba(["what"]), [[1 / 3, 2 / 3]])


def test_a_query_of_unknown_words_gets_the_intercept():
    classifier = fit_tfidf(["warm film", "cold film", "warm plot"], [1, 0, 1])
    scores = classifier.predict_log_proba(["unheard of"])[0]
    assert scores[1] - scores[0] == pytest.approx(float(classifier[-1].intercept_[0]))


def test_a_query_made_of_tokens_alone_is_refused():
    adapted = TFIDF.adapt(context_of(small_experiment(k=6)))
    with pytest.raises(ConfigError, match="without texts"):
        adapted.read_group([Query((5, 6), ((7,),))], [0])


def test_equal_seeds_give_equal_numbers():
    config = small_config(learners=("zsl", "tfidf"), **budget(9))
    first, second = (compare(config, lm=small_lm(), task=small_task()).result for _ in range(2))
    assert numbers(first) == numbers(second)


def test_multiple_choice_has_no_classes():
    config = small_config(learners=("zsl", "icl", "tfidf"), controls=())
    result = compare(config, lm=small_lm(), task=choices_task()).result
    assert "tfidf" not in result.accuracy
    assert any("tfidf was left out" in warning for warning in result.warnings)
