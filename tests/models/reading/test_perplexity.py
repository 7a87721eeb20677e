import math

import pytest
import torch

from dualform.errors import ConfigError, NumericalError
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.perplexity import perplexity, text_losses
from tests.tiny import tiny_model, tiny_tokenizer

TEXTS = [(5, 6, 7, 8), (9, 10), (11, 12, 13)]


@pytest.fixture(scope="module")
def lm():
    return LanguageModel.wrap(tiny_model("llama"), tiny_tokenizer(), "tiny")


@pytest.mark.parametrize("opening", [(0,), (), (0, 4)])
def test_losses_are_those_of_transformers(lm, opening):
    losses = text_losses(lm, opening, TEXTS)
    for row, text in zip(losses, TEXTS, strict=True):
        ids = torch.tensor([[*opening, *text]])
        labels = ids.clone()
        labels[0, : len(opening)] = -100
        with torch.no_grad():
            mean = lm.model(input_ids=ids, labels=labels).loss
        predicted = len(text) if opening else len(text) - 1
        assert row[1] == predicted
        assert float(row[0]) == pytest.approx(float(mean) * predicted, rel=1e-5)


def test_perplexity_is_over_tokens_and_not_over_texts(lm):
    losses = text_losses(lm, (0,), TEXTS)
    assert perplexity(losses) == pytest.approx(math.exp(float(losses[:, 0].sum()) / 9))
    assert perplexity(losses) != pytest.approx(float((losses[:, 0] / losses[:, 1]).exp().mean()))


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary():
    model = tiny_model("llama")
    with torch.no_grad():
        model.lm_head.weight.zero_()
    lm = LanguageModel.wrap(model, tiny_tokenizer(), "tiny")
    assert perplexity(text_losses(lm, (0,), TEXTS)) == pytest.approx(model.config.vocab_size)


def test_nothing_to_predict_and_nan_are_named(lm):
    with pytest.raises(ConfigError, match="at least two tokens"):
        perplexity(text_losses(lm, (), [(5,)]))
    model = tiny_model("llama")
    broken = LanguageModel.wrap(model, tiny_tokenizer(), "tiny")
    with torch.no_grad():
        model.lm_head.weight.fill_(torch.nan)
    with pytest.raises(NumericalError, match="loss on plain text is nan"):
        text_losses(broken, (0,), TEXTS)
