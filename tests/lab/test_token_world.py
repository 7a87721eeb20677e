"""The world of words: texts, labels and tokens of in-context regression, for the ordinary encoder."""

import math

import pytest
import torch

from dualform.errors import ConfigError
from dualform.lab.token_world import BOS, EOS, IS, LABEL_WORDS, UNKNOWN, TokenWorld
from dualform.models.reading.encoding import Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.ops.streams import stream
from dualform.tasks.demonstrations import draw_demonstrations
from tests.tiny import tiny_model


@pytest.fixture(scope="module")
def world() -> TokenWorld:
    return TokenWorld.draw(3, 24, seed=1)


def test_equal_seeds_give_equal_worlds_and_others_do_not(world):
    assert torch.equal(TokenWorld.draw(3, 24, seed=1).x, world.x)
    assert not torch.equal(TokenWorld.draw(3, 24, seed=2).x, world.x)
    assert world.x.dtype == torch.float64


@pytest.mark.parametrize("x", [torch.zeros(3, 2), torch.zeros(8)])
def test_a_world_without_words_or_vectors_is_refused(x):
    with pytest.raises(ConfigError, match=r"vectors \(word, d\) of at least 4 words; given \((3, 2|8,)\)"):
        TokenWorld(x)


def test_every_word_is_one_token_and_none_is_added(world):
    tokenizer = world.tokenizer()
    assert tokenizer(" ".join(world.vocabulary))["input_ids"] == list(range(len(world.vocabulary)))
    assert len(tokenizer) == len(world.vocabulary)
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token) == (BOS, EOS, UNKNOWN)
    assert tokenizer("elsewhere")["input_ids"] == [world.vocabulary.index(UNKNOWN)]
    assert [world.vocabulary[i] for i in world.label_ids] == list(LABEL_WORDS)
    assert [world.vocabulary[i] for i in world.memory_ids] == list(world.memories)
    assert world.vocabulary[world.first_word] == world.words[0]


def test_only_words_have_vectors(world):
    vectors = world.vectors(torch.arange(len(world.vocabulary)))
    assert torch.equal(vectors[world.first_word :], world.x)
    assert not vectors[: world.first_word].any()
    assert world.vectors(torch.tensor([[world.first_word + 5]])).shape == (1, 1, 3)


def test_labels_say_on_which_side_of_a_hidden_plane_a_word_lies(world):
    task = world.task(seed=4)
    # The task's own first draw.
    w = torch.randn(3, generator=stream("task", 4), dtype=torch.float64) / math.sqrt(3)
    examples = [example for split in task.splits.values() for example in split]
    assert sorted(example.row for example in examples) == list(range(24))
    for example in examples:
        assert example.label == int(world.x[example.row] @ w > 0)
        assert example.fields["word"] == world.words[example.row]
    assert [len(task.splits[name]) for name in ("train", "validation", "test")] == [12, 4, 8]


def test_other_seeds_ask_for_another_plane_and_deal_words_anew(world):
    first, other = world.task(seed=1), world.task(seed=2)
    assert first == world.task(seed=1)
    assert [e.row for e in first.split("test")] != [e.row for e in other.split("test")]
    labels = [{e.row: e.label for split in task.splits.values() for e in split} for task in (first, other)]
    assert labels[0] != labels[1]


def test_who_is_asked_answers_behind_a_word_of_its_own(world):
    task = world.task(seed=1, asking=True)
    example = task.split("train")[0]
    assert task.template.render(example) == f"{example.fields['word']} {IS}"
    lm = LanguageModel.wrap(tiny_model("gpt2"), world.tokenizer(), "tiny")
    assert Encoder(lm, task).query(example).answers == tuple((label,) for label in world.label_ids)


@pytest.mark.parametrize("remembering", [False, True])
def test_memories_stand_before_queries_and_never_in_demonstrations(world, remembering):
    lm = LanguageModel.wrap(tiny_model("gpt2"), world.tokenizer(), "tiny")
    task = world.task(seed=1, remembering=remembering)
    encoder = Encoder(lm, task)
    chosen = draw_demonstrations(task, 2, seed=1)
    ids = world.tokenizer().convert_tokens_to_ids
    expected = [ids(BOS)]
    for example, label in zip(chosen.examples, chosen.labels, strict=True):
        expected += ids([example.fields["word"], LABEL_WORDS[label], EOS])
    assert list(encoder.demonstrations(chosen).prefix) == expected
    query = encoder.query(task.split("test")[0])
    memory = list(world.memory_ids) if remembering else []
    assert list(query.prompt) == [*memory, ids(task.split("test")[0].fields["word"])]
    assert query.answers == tuple((label,) for label in world.label_ids)
