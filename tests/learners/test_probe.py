import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from dualform.learners.probe import LinearProbe
from dualform.models.reading.layout import Query
from tests.learners.setting import EVERYTHING, FAMILIES, fresh, readings
from tests.models.editing.test_edit import Snapshot
from tests.models.sentiment import some_demonstrations
from tests.tiny import tiny_model


def probe(setting, chosen=None, n_labels=2):
    chosen = setting.chosen if chosen is None else chosen
    queries = tuple(setting.encoder.query(example) for example in chosen.examples)
    return LinearProbe(setting.encoder.opening, queries, chosen.labels, n_labels)


def last_hidden(model, ids):
    """Input of the output head at the last token of a plain forward."""
    given = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda module, args: given.append(args[0][0, -1]))
    with torch.no_grad():
        model(input_ids=torch.tensor([ids]), use_cache=False)
    handle.remove()
    return given[0].double().numpy()


@pytest.mark.parametrize("family", FAMILIES)
class TestEveryFamily:
    def test_it_is_logistic_regression_on_hidden_states_of_plain_forwards(self, family):
        setting = fresh(family, k=8)
        model = tiny_model(family)
        opening = setting.encoder.opening

        def features(queries):
            return np.stack([last_hidden(model, (*opening, *query.prompt)) for query in queries])

        hidden = features([setting.encoder.query(example) for example in setting.chosen.examples])
        mean, spread = hidden.mean(0), hidden.std(0)
        classifier = LogisticRegression(max_iter=1000).fit((hidden - mean) / spread, np.array(setting.chosen.labels))
        expected = classifier.predict_log_proba((features(setting.queries) - mean) / spread)

        adapted = probe(setting).adapt(setting.lm, setting.demonstrations)
        actual = torch.zeros(len(setting.queries), 2, dtype=torch.float64)
        for reading in readings(adapted, setting):
            actual[list(reading.queries)] = reading.log_probabilities
        # The solver stops at a gradient of 1e-4.
        np.testing.assert_allclose(actual.numpy(), expected, rtol=1e-2, atol=1e-3)
        assert (actual.argmax(1).numpy() == classifier.predict((features(setting.queries) - mean) / spread)).all()
        assert adapted.learner == "probe"

    def test_it_learns_what_it_was_shown(self, family):
        setting = fresh(family, k=8)
        adapted = probe(setting).adapt(setting.lm, setting.demonstrations)
        queries = probe(setting).queries
        read = adapted.read_group(queries, range(len(queries)))
        assert read.predictions.tolist() == list(setting.chosen.labels)

    def test_the_inside_is_that_of_zero_shot(self, family):
        setting = fresh(family)
        adapted = probe(setting).adapt(setting.lm, setting.demonstrations)
        (reading,) = readings(adapted, setting)
        other = adapted.zero_shot.read_group(setting.queries, reading.queries, EVERYTHING)
        assert torch.equal(reading.next_token, other.next_token)
        assert torch.equal(reading.trace.output, other.trace.output)
        assert torch.equal(adapted.answer(other).log_probabilities, reading.log_probabilities)
        assert adapted.n_prefix == len(setting.encoder.opening)

    def test_the_weights_are_as_before_also_when_fitting_raises(self, family, monkeypatch):
        setting = fresh(family)
        before = Snapshot(setting.lm.model)
        probe(setting).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)
        monkeypatch.setattr(LogisticRegression, "fit", lambda *args: (_ for _ in ()).throw(RuntimeError("no fit")))
        with pytest.raises(RuntimeError, match="no fit"):
            probe(setting).adapt(setting.lm, setting.demonstrations)
        before.assert_restored(setting.lm.model)


def only(setting, label):
    """Demonstrations that show one label alone."""
    chosen = some_demonstrations(setting.task, 8)
    kept = [i for i, other in enumerate(chosen.labels) if other == label]
    return type(chosen)(
        **{**vars(chosen), "examples": tuple(chosen.examples[i] for i in kept), "labels": (label,) * len(kept)}
    )


@pytest.mark.parametrize("label", [0, 1])
def test_with_one_class_shown_it_answers_that_class_for_certain(label):
    setting = fresh("llama")
    adapted = probe(setting, only(setting, label)).adapt(setting.lm, setting.demonstrations)
    (reading,) = readings(adapted, setting)
    assert adapted.classifier is None
    assert (reading.predictions == label).all()
    assert (reading.log_probabilities[:, label] == 0).all()
    assert torch.isneginf(reading.log_probabilities[:, 1 - label]).all()


def test_without_demonstrations_it_answers_the_first_class():
    setting = fresh("llama", k=0)
    adapted = probe(setting).adapt(setting.lm, setting.demonstrations)
    assert (readings(adapted, setting)[0].predictions == 0).all()
    assert adapted.cost.tokens == 0


def test_a_class_never_shown_is_never_answered():
    setting = fresh("llama", k=8)
    chosen = setting.chosen
    shifted = type(chosen)(**{**vars(chosen), "labels": tuple(2 * label for label in chosen.labels)})
    adapted = probe(setting, shifted, n_labels=4).adapt(setting.lm, setting.demonstrations)
    table = readings(adapted, setting)[0].log_probabilities
    assert table.shape == (len(setting.queries), 4)
    assert torch.isneginf(table[:, [1, 3]]).all()
    torch.testing.assert_close(table.exp().sum(1), torch.ones(len(setting.queries), dtype=torch.float64))


def test_the_order_of_reading_does_not_mix_up_the_labels():
    # Groups are sorted by length; hidden states must come back in the order of the demonstrations.
    setting = fresh("llama", k=8, max_examples=3)
    adapted = probe(setting).adapt(setting.lm, setting.demonstrations)
    whole = fresh("llama", k=8)
    expected = probe(whole).adapt(whole.lm, whole.demonstrations)
    query = [Query(q.prompt, q.answers) for q in setting.queries]
    actual = adapted.read_group(query, [0, 1]).log_probabilities
    torch.testing.assert_close(actual, expected.read_group(query, [0, 1]).log_probabilities, rtol=1e-2, atol=1e-3)
