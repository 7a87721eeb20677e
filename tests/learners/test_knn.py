"""Retrieved demonstrations: a plain loop over queries, each with its own prompt."""

import math
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch

from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.knn import Retrieval, nearest_texts
from dualform.studies.comparison.run import compare
from tests.learners.contexts import budget, choices_task, context_of
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import naive_scores
from tests.studies.small import numbers, sentences, small_config, small_experiment, small_lm, small_task
from tests.tiny import tiny_model

KNN = LEARNERS["knn"]


def answers(context: Any) -> torch.Tensor:
    return answer_log_probabilities(KNN.adapt(context), context.lm, context.setup.queries)


def slow_nearest(texts: list[str], query: str, n: int) -> list[int]:
    """TF-IDF cosine of words and pairs of words by dictionaries."""

    def terms(text: str) -> Counter[str]:
        words = text.lower().split()
        return Counter([*words, *(f"{a} {b}" for a, b in pairwise(words))])

    counts = [terms(text) for text in texts]

    def weights(terms_of: Counter[str]) -> dict[str, float]:
        found = {}
        for term, count in terms_of.items():
            df = sum(term in other for other in counts)
            if df:
                found[term] = (1 + math.log(count)) * (1 + math.log((1 + len(texts)) / (1 + df)))
        return found

    def cosine(a: dict[str, float], b: dict[str, float]) -> float:
        product = sum(weight * b.get(term, 0.0) for term, weight in a.items())
        sizes = [math.sqrt(sum(weight**2 for weight in each.values())) for each in (a, b)]
        return product / (sizes[0] * sizes[1]) if all(sizes) else 0.0

    own = weights(terms(query))
    similarity = [cosine(own, weights(each)) for each in counts]
    return sorted(range(len(texts)), key=lambda i: (-round(similarity[i], 12), i))[:n]


def test_the_nearest_texts_are_those_of_the_slow_version():
    texts = [text.replace(",", "") for text, _ in sentences(30)]
    for query in ("a dull and poor film", "warm story with wit", "plot of the year"):
        (found,) = nearest_texts(texts, [query], 5)
        assert found[::-1] == slow_nearest(texts, query, 5)


def test_the_nearest_comes_last_and_ties_keep_their_order():
    texts = ["cold film", "warm film of the year", "warm film", "unrelated", "unrelated"]
    assert nearest_texts(texts, ["warm film"], 2) == [[1, 2]]
    assert nearest_texts(texts, ["nothing of it known"], 5)[0][-1] == 1
    assert nearest_texts(["x1", "x2", "x3"], ["unheard"], 2) == [[1, 0]]
    assert nearest_texts(["!", "?"], ["!"], 1) == [[0]]
    assert nearest_texts(texts, [], 2) == []


@pytest.mark.parametrize("changes", [{"k": 8}, budget(14)], ids=["demonstrations", "budget"])
def test_it_is_a_plain_loop_over_queries(changes: dict[str, Any]):
    context = context_of(small_experiment("llama", knn_neighbours=3, **changes))
    setup: Any = context.setup
    plain, encoder = tiny_model("llama", dtype=torch.float64), setup.encoder
    texts = [example.fields["text"] for example in context.labelled.examples]
    expected = []
    for example, query in zip(setup.examples, setup.queries, strict=True):
        (nearest,) = nearest_texts(texts, [example.fields["text"]], 3)
        prefix = encoder.demonstrations(context.labelled.at(nearest)).prefix
        expected.append(naive_scores(plain, prefix, query).double())
    torch.testing.assert_close(answers(context), torch.stack(expected), rtol=1e-6, atol=1e-9)


def test_all_of_them_are_the_demonstrations_of_icl_in_another_order():
    context = context_of(small_experiment(k=3, knn_neighbours=9))
    prompted = Retrieval(context).prompted(context.setup.queries)
    own, length = len(context.opening), len(context.encoded.prefix)
    assert all(
        len(each.prompt) - len(query.prompt) == length - own
        for each, query in zip(prompted, context.setup.queries, strict=True)
    )


def test_the_farthest_are_left_out_where_the_context_is_too_short():
    context = context_of(small_experiment(k=8, knn_neighbours=6))
    query = context.setup.queries[0]
    (whole,) = Retrieval(context).prompted([query])
    setup: Any = replace(context.setup, context=len(context.opening) + whole.longest() - 1)  # type: ignore[type-var]
    (shorter,) = Retrieval(replace(context, setup=setup)).prompted([query])
    assert 0 < len(shorter.prompt) < len(whole.prompt)
    # What is left is the end: the nearest examples and the query.
    assert whole.prompt[-len(shorter.prompt) :] == shorter.prompt


def test_the_cost_of_a_query_is_that_of_its_own_prompt():
    result = compare(
        small_config(learners=("zsl", "icl", "knn"), controls=(), k=8, knn_neighbours=2, seeds=(1,)),
        lm=small_lm(),
        task=small_task(),
    ).result
    context = context_of(small_experiment(k=8, knn_neighbours=2))
    prompted = Retrieval(context).prompted(context.setup.queries)
    mean = sum(len(each.prompt) for each in prompted) / len(prompted)
    opening = len(context.opening)
    assert result.cost["knn"].tokens == pytest.approx(opening + mean)
    # Nothing but the opening can be cached.
    assert result.cost["knn"].kept_tokens == pytest.approx(mean)
    assert KNN.reading(context, context.setup.queries, "label0").tokens == sum(each.width() for each in prompted)


def test_labels_seeds_and_multiple_choice():
    config = small_config(learners=("knn",), **budget(9))
    first, second = (compare(config, lm=small_lm(), task=small_task()).result for _ in range(2))
    assert numbers(first) == numbers(second)
    assert first.labels["knn"].model_dump() == {"demonstrations": 9, "training": 0, "settings": 0, "total": 9}
    result = compare(small_config(learners=("knn",), controls=()), lm=small_lm(), task=choices_task()).result
    assert result.accuracy["knn"].n


def test_adapting_leaves_no_trace():
    context = context_of(small_experiment(k=4))
    before = Snapshot(context.lm.model)
    answers(context)
    before.assert_restored(context.lm.model)
