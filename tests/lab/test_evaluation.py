"""The loss of a corpus is that of its windows, each read by itself."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedModel

from dualform.errors import ConfigError
from dualform.lab import evaluation
from dualform.lab.corpus import Corpus
from dualform.lab.evaluation import corpus_loss
from tests.lab.setting import small_corpus
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return small_corpus(tmp_path_factory.mktemp("corpus"), n=60)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model("llama", dtype=torch.float64)


def losses(model: PreTrainedModel, ids: Tensor) -> list[float]:
    """What each token but the first costs, in nats."""
    with torch.no_grad():
        logits = model(input_ids=ids[None, :-1], use_cache=False).logits[0]
    return F.cross_entropy(logits, ids[1:], reduction="none").tolist()


def by_window(model: PreTrainedModel, corpus: Corpus, length: int, starts: list[int]) -> float:
    """The slow, obvious twin: a window at a time."""
    ids = torch.tensor(corpus.ids[:].astype("int64"))
    losses_of_tokens = [loss for start in starts for loss in losses(model, ids[start : start + length + 1])]
    assert len(losses_of_tokens) == len(starts) * length
    return sum(losses_of_tokens) / len(losses_of_tokens)


@pytest.mark.parametrize("length", [3, 8, 50])
def test_it_is_the_mean_over_all_tokens_of_all_windows(model: PreTrainedModel, corpus: Corpus, length: int) -> None:
    starts = list(range(0, corpus.count - length, length))
    assert corpus_loss(model, corpus, length, corpus.count) == pytest.approx(
        by_window(model, corpus, length, starts), rel=1e-12
    )


def test_no_more_tokens_are_read_than_were_asked_for_but_one_window_at_least(
    model: PreTrainedModel, corpus: Corpus
) -> None:
    fitting = (corpus.count - 1) // 8
    starts = [8 * (i * fitting // 4) for i in range(4)]
    assert corpus_loss(model, corpus, 8, 39) == pytest.approx(by_window(model, corpus, 8, starts), rel=1e-12)
    assert corpus_loss(model, corpus, 8, 1) == pytest.approx(by_window(model, corpus, 8, [0]), rel=1e-12)


def test_shorter_windows_show_less_of_what_came_before(model: PreTrainedModel, corpus: Corpus) -> None:
    ids = torch.tensor(corpus.ids[:17].astype("int64"))
    halves = losses(model, ids[:9]) + losses(model, ids[8:])
    short = Corpus(corpus.path, corpus.tokenizer, 17, corpus.dtype, "", 0, 0)
    assert corpus_loss(model, short, 8, 16) == pytest.approx(sum(halves) / 16, rel=1e-12)
    # The second half is read without the first, which the whole window has.
    whole = losses(model, ids)
    assert corpus_loss(model, short, 16, 16) == pytest.approx(sum(whole) / 16, rel=1e-12)
    assert halves[:8] == pytest.approx(whole[:8])
    assert halves[9:] != pytest.approx(whole[9:], rel=1e-3)


@pytest.mark.parametrize("at_once", [1, 30, 1 << 20])
def test_how_many_are_read_at_once_changes_nothing(
    model: PreTrainedModel, corpus: Corpus, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = corpus_loss(model, corpus, 8, 200)
    # Fewer than one window is one window.
    monkeypatch.setattr(evaluation, "TOKENS_AT_ONCE", at_once)
    assert corpus_loss(model, corpus, 8, 200) == pytest.approx(expected, rel=1e-12)


def test_half_precision_is_summed_in_single(corpus: Corpus) -> None:
    half = tiny_model("llama", dtype=torch.bfloat16)
    half_loss = corpus_loss(half, corpus, 8, 64)
    assert half_loss == pytest.approx(corpus_loss(tiny_model("llama"), corpus, 8, 64), rel=0.02)
    assert math.isfinite(half_loss)


def test_a_corpus_shorter_than_a_window_is_told(model: PreTrainedModel, tmp_path: Path) -> None:
    corpus = small_corpus(tmp_path, n=12)
    with pytest.raises(ConfigError, match=rf"{corpus.count} tokens has no window of {corpus.count} tokens"):
        corpus_loss(model, corpus, corpus.count, 1000)
    assert corpus_loss(model, corpus, corpus.count - 1, 1000) > 0
