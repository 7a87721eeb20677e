from typing import Any

import pytest
import torch

from dualform.learners.adapted import answer_log_probabilities
from dualform.learners.prompting import InContext, ZeroShot
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import Encoder
from tests.learners.setting import FAMILIES, assert_same_readings, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.models.reference import naive_scores
from tests.models.sentiment import sentiment, some_demonstrations
from tests.tiny import tiny_model


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_zero_shot_and_in_context_are_plain_forwards_of_the_texts(self, family):
        setting = fresh(family)
        plain = tiny_model(family)
        for learner, prefix in (
            (ZeroShot(setting.encoder.opening), setting.encoder.opening),
            (InContext(), setting.demonstrations.prefix),
        ):
            adapted = learner.adapt(setting.lm, setting.demonstrations)
            table = answer_log_probabilities(adapted, setting.lm, setting.queries)
            for row, query in zip(table, setting.queries, strict=True):
                expected = naive_scores(plain, prefix, query).double()
                torch.testing.assert_close(row, expected, rtol=2e-6, atol=0)
            assert adapted.n_prefix == len(prefix)
            assert adapted.learner == learner.name

    def test_without_demonstrations_in_context_is_zero_shot(self, family):
        setting = fresh(family)
        none = setting.encoder.demonstrations(some_demonstrations(setting.task, 0))
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, none)
        icl = InContext().adapt(setting.lm, none)
        assert_same_readings(readings(zsl, setting), readings(icl, setting))

    def test_with_demonstrations_it_is_not(self, family):
        setting = fresh(family)
        zsl = ZeroShot(setting.encoder.opening).adapt(setting.lm, setting.demonstrations)
        icl = InContext().adapt(setting.lm, setting.demonstrations)
        difference = readings(zsl, setting)[0].log_probabilities - readings(icl, setting)[0].log_probabilities
        assert difference.abs().max() > 0.05

    def test_the_model_is_as_before(self, family):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        for learner in (ZeroShot(setting.encoder.opening), InContext()):
            readings(learner.adapt(setting.lm, setting.demonstrations), setting)
            before.assert_restored(setting.lm.model)

    def test_the_model_is_as_before_when_reading_raises(self, family):
        setting = fresh(family)
        adapted = InContext().adapt(setting.lm, setting.demonstrations)
        before = Snapshot(setting.lm.model)

        def fails(module, args):
            raise RuntimeError("in the middle")

        handle = setting.lm.model.get_output_embeddings().register_forward_pre_hook(fails)
        with pytest.raises(RuntimeError, match="in the middle"):
            readings(adapted, setting)
        handle.remove()
        before.assert_restored(setting.lm.model)


def test_the_cost_is_the_prefix_and_nothing_else():
    setting = fresh("llama")
    adapted = InContext().adapt(setting.lm, setting.demonstrations)
    n = len(setting.demonstrations.prefix)
    assert adapted.cost.tokens == n
    assert adapted.cost.flops == setting.lm.shape.forward(own=n, scored=0)
    assert adapted.cost.seconds > 0


def test_the_table_has_a_row_for_every_query_in_order_and_progress_is_reported():
    setting = fresh("llama", max_examples=2)
    adapted = InContext().adapt(setting.lm, setting.demonstrations)
    calls: list[int] = []
    table = answer_log_probabilities(adapted, setting.lm, setting.queries, calls.append)
    assert sum(calls) == len(setting.queries)
    assert len(calls) == len(setting.lm.groups(setting.queries)) > 1
    assert table.dtype == torch.float64
    alone = torch.cat([answer_log_probabilities(adapted, setting.lm, [query]) for query in setting.queries])
    torch.testing.assert_close(table, alone, rtol=2e-6, atol=0)


def test_choices_of_different_number_are_minus_infinity_where_there_are_none():
    setting = fresh("llama")
    task = sentiment(None)
    encoder = Encoder(setting.lm, task)
    adapted = ZeroShot(encoder.opening).adapt(setting.lm, setting.demonstrations)
    query = encoder.query(task.split("test")[0])
    fewer = type(query)(query.prompt, query.answers[:1])
    table = answer_log_probabilities(adapted, setting.lm, [fewer, query])
    assert torch.isneginf(table[0, 1])
    assert table[1].isfinite().all()


def test_a_trace_is_recorded_at_the_requested_probe():
    setting = fresh("llama")
    adapted = InContext().adapt(setting.lm, setting.demonstrations)
    want = Recording(demo_scores=True)
    trace: Any = adapted.read_group(setting.queries, range(len(setting.queries)), want, "label0").trace
    assert trace.demo_scores.shape[-1] == len(setting.demonstrations.prefix)
    assert (trace.mask.sum(1) == torch.tensor([len(q.prompt) + len(q.answers[0]) for q in setting.queries])).all()
