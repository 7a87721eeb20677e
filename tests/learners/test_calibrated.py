"""Calibrated prompting: a bias that is a constant added to log-probabilities drops out, and labels are never used."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from dualform.errors import NumericalError
from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.base import LEARNERS
from dualform.learners.calibrated import (
    BATCH,
    CONTENT_FREE,
    FEWEST_TEXTS,
    RANDOM_TEXTS,
    CalibratedModel,
    content_free_queries,
    random_queries,
    unlabelled_examples,
    unlabelled_queries,
)
from dualform.models.cost.work import Work
from dualform.ops.calibration import contextual_calibration
from dualform.studies.comparison.run import compare
from tests.learners.contexts import budget, choices_task, context_of
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import naive_scores
from tests.studies.small import numbers, small_config, small_experiment, small_lm, small_task, with_other_labels
from tests.tiny import tiny_model

NAMES = ("icl_contextual", "icl_batch", "icl_domain")


def biased(model: Any, bias: Tensor) -> Any:
    """A model whose answers have a constant added to the log-probability of each label."""

    class Biased:
        def __getattr__(self, name: str) -> Any:
            return getattr(model, name)

        def read_group(self, *arguments: Any) -> Any:
            readings = model.read_group(*arguments)
            return replace(readings, log_probabilities=readings.log_probabilities + bias)

    return Biased()


def answers(adapted: Any, context: Any) -> Tensor:
    return answer_log_probabilities(adapted, context.lm, context.setup.queries)


@pytest.mark.parametrize("name", NAMES)
def test_it_is_a_loop_of_plain_forwards(name: str):
    context = context_of(small_experiment("llama", k=4, batch_texts=5))
    plain, prefix = tiny_model("llama", dtype=torch.float64), context.encoded.prefix
    learner: Any = LEARNERS[name]

    def log_p(queries: Any) -> Tensor:
        return torch.stack([naive_scores(plain, prefix, query).double() for query in queries]).log_softmax(-1)

    own, reference = log_p(context.setup.queries), log_p(learner.references(context))
    # Contextual and domain calibration divide by the mean probability, batch calibration by the geometric mean.
    mean = reference.mean(0) if name == "icl_batch" else reference.exp().mean(0).log()
    torch.testing.assert_close(answers(learner.adapt(context), context), (own - mean).log_softmax(-1))


@pytest.mark.parametrize("name", NAMES)
def test_uniform_answers_to_the_reference_inputs_change_nothing(name: str):
    context = context_of(small_experiment(k=4))
    learner: Any = LEARNERS[name]
    adapted = learner.adapt(context)
    uniform = replace(adapted, reference=torch.full((3, 2), -7.0, dtype=torch.float64))
    expected = answers(adapted.prompted, context).log_softmax(-1)
    torch.testing.assert_close(answers(uniform, context), expected, rtol=1e-9, atol=1e-12)


def test_a_constant_bias_is_removed_exactly_by_batch_calibration():
    context = context_of(small_experiment(k=4))
    learner: Any = LEARNERS["icl_batch"]
    adapted, bias = learner.adapt(context), torch.tensor([0.0, 9.0], dtype=torch.float64)
    prompted = biased(adapted.prompted, bias)
    assert (answers(prompted, context).argmax(1) == 1).all()
    reference = answer_log_probabilities(prompted, context.lm, learner.references(context))
    corrected = CalibratedModel("icl_batch", prompted, reference, learner.calibrate, adapted.cost)
    torch.testing.assert_close(answers(corrected, context), answers(adapted, context), rtol=1e-9, atol=1e-9)


def test_a_constant_bias_is_removed_exactly_by_one_content_free_input_and_not_by_several():
    # A mean of probabilities is divided out: biased means of several differ from means of biased ones.
    context = context_of(small_experiment(k=4))
    learner: Any = LEARNERS["icl_contextual"]
    adapted, bias = learner.adapt(context), torch.tensor([0.0, 9.0], dtype=torch.float64)
    own = answers(adapted.prompted, context)
    one, several = adapted.reference[:1], adapted.reference
    expected = contextual_calibration(own, one)
    torch.testing.assert_close(contextual_calibration(own + bias, one + bias), expected, rtol=1e-9, atol=1e-9)
    spread = torch.tensor([[0.0, 3.0], [3.0, 0.0]], dtype=torch.float64)
    difference = contextual_calibration(own + bias, spread + bias) - contextual_calibration(own, spread)
    assert difference.abs().max() > 0.1
    assert len(several) == len(CONTENT_FREE)


@pytest.mark.parametrize("name", NAMES)
def test_it_answers_from_the_readings_of_icl(name: str):
    config = small_config(learners=("zsl", "icl", name), controls=())
    together = compare(config, lm=small_lm(), task=small_task())
    alone = compare(config.model_copy(update={"learners": (name,)}), lm=small_lm(), task=small_task())
    assert LEARNERS[name].answers_from == "icl"
    for first, second in zip(together.records, alone.records, strict=True):
        torch.testing.assert_close(first.log_probabilities[name], second.log_probabilities[name], rtol=1e-9, atol=1e-9)
    assert together.result.cost[name].flops == together.result.cost["icl"].flops


@pytest.mark.parametrize("name", NAMES)
def test_no_label_outside_the_prompt_is_used(name: str):
    config = small_config(learners=(name,), k=6, **budget(6))
    expected = compare(config, lm=small_lm(), task=small_task())
    labels = expected.result.labels[name]
    assert (labels.demonstrations, labels.training, labels.settings, labels.total) == (6, 0, 0, 6)
    # Labels of rows that are not in the prompt, and of the selection split, are all wrong here.
    task = with_other_labels(small_task(), small_task().selection_split)
    used = {row for seed in config.seeds for row in expected.records[config.seeds.index(seed)].rows}
    train = tuple(
        example if example.row in used else replace(example, label=1 - example.label) for example in task.split("train")
    )
    poisoned = compare(config, lm=small_lm(), task=replace(task, splits={**task.splits, "train": train}))
    assert numbers(poisoned.result) == numbers(expected.result)


def test_reference_texts_are_those_of_the_train_split_that_are_not_labelled():
    context = context_of(small_experiment(k=4))
    rows = [example.row for example in unlabelled_examples(context)]
    assert not set(rows) & set(context.labelled.rows)
    assert len(rows) == len(context.task.split("train")) - 4
    assert [example.row for example in unlabelled_examples(context_of(small_experiment(k=4)))] == rows
    assert [example.row for example in unlabelled_examples(context_of(small_experiment(k=4), seed=2))] != rows
    assert len(unlabelled_queries(context, 3)) == 3


def test_texts_that_do_not_fit_behind_the_demonstrations_are_left_out():
    context = context_of(small_experiment(k=4))
    lengths = sorted(query.longest() for query in unlabelled_queries(context, 100))
    most = lengths[len(lengths) // 2]
    setup: Any = replace(context.setup, context=len(context.encoded.prefix) + most + 1)  # type: ignore[type-var]
    kept = unlabelled_queries(replace(context, setup=setup), 100)
    assert sorted(query.longest() for query in kept) == [n for n in lengths if n <= most]


def test_without_other_rows_no_text_of_the_prompt_is_a_reference():
    context = context_of(small_experiment(k=4))
    task = replace(context.task, splits={**context.task.splits, "train": context.labelled.examples})
    setup: Any = replace(context.setup, task=task)  # type: ignore[type-var]
    alone = replace(context, setup=setup)
    assert unlabelled_examples(alone) == []
    assert BATCH.references(alone) == content_free_queries(setup)
    vocabulary = {word for example in context.labelled.examples for word in example.fields["text"].split()}
    assert {word for query in random_queries(alone) for word in query.texts[0].split()} <= vocabulary


@pytest.mark.parametrize(("spare", "falls_back"), [(FEWEST_TEXTS - 1, True), (FEWEST_TEXTS, False)])
def test_a_few_unlabelled_texts_are_too_few_for_batch_calibration(spare: int, falls_back: bool):
    context = context_of(small_experiment(k=4))
    train = (*context.labelled.examples, *unlabelled_examples(context)[:spare])
    task = replace(context.task, splits={**context.task.splits, "train": train})
    setup: Any = replace(context.setup, task=task)  # type: ignore[type-var]
    references = BATCH.references(replace(context, setup=setup))
    assert (references == content_free_queries(setup)) is falls_back
    assert falls_back or len(references) == spare


def test_random_texts_are_words_of_the_task_and_as_long_as_its_texts():
    context = context_of(small_experiment(k=4))
    texts = [example.fields["text"] for example in unlabelled_examples(context)]
    vocabulary = {word for text in texts for word in text.split()}
    queries = random_queries(context)
    assert len(queries) == RANDOM_TEXTS
    drawn = [query.texts[0].split() for query in queries]
    assert {word for words in drawn for word in words} <= vocabulary
    mean = sum(len(text.split()) for text in texts) / len(texts)
    longest = max(len(query.prompt) for query in context.setup.queries)
    assert all(len(words) <= round(mean) for words in drawn)
    assert all(len(query.prompt) <= longest for query in queries)
    assert len({query.texts for query in queries}) > RANDOM_TEXTS // 2
    assert random_queries(context_of(small_experiment(k=4))) == queries


@pytest.mark.parametrize("name", NAMES)
def test_adapting_leaves_no_trace_and_equal_seeds_give_equal_numbers(name: str):
    context = context_of(small_experiment(k=4))
    before = Snapshot(context.lm.model)
    first = answers(LEARNERS[name].adapt(context), context)
    before.assert_restored(context.lm.model)
    assert torch.equal(answers(LEARNERS[name].adapt(context), context), first)


def test_a_label_that_no_reference_input_allows_is_an_error():
    context = context_of(small_experiment(k=4))
    adapted: Any = LEARNERS["icl_contextual"].adapt(context)
    impossible = replace(adapted, reference=torch.tensor([[0.0, -torch.inf]], dtype=torch.float64))
    with pytest.raises(NumericalError, match="probability 0 for all reference inputs"):
        answers(impossible, context)


def test_multiple_choice_has_no_label_words_to_calibrate():
    config = small_config(learners=("zsl", "icl", *NAMES), controls=())
    result = compare(config, lm=small_lm(), task=choices_task()).result
    assert set(result.accuracy) == {"zsl", "icl"}


def test_without_demonstrations_zero_shot_is_calibrated():
    context = context_of(small_experiment(k=0))
    adapted: Any = LEARNERS["icl_contextual"].adapt(context)
    assert adapted.n_prefix == len(context.opening)
    assert len(adapted.reference) == len(content_free_queries(context.setup))
    assert LEARNERS["icl_contextual"].work(context) != Work()
