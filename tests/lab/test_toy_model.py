"""The trained toy: what it is trained on, and that it is a checkpoint like any other."""

from pathlib import Path

import pytest
import torch

from dualform.errors import TrainingError
from dualform.lab.token_world import IS, LABEL_WORDS, TokenWorld
from dualform.lab.toy_model import save_toy, token_sequences, train_toy
from dualform.models.loading.load import load_model
from dualform.models.reading.encoding import Encoder
from dualform.tasks.demonstrations import draw_demonstrations

WORLD = TokenWorld.draw(2, 24, seed=1)


def test_sequences_are_words_with_the_side_of_a_plane_on_which_they_lie():
    ids = token_sequences(WORLD, 64, 6, torch.Generator().manual_seed(3))
    assert ids.shape == (64, 25)
    assert (ids[:, 0] == 0).all()
    assert (ids[:, 2::4] == WORLD.vocabulary.index(IS)).all()
    assert (ids[:, 4::4] == 1).all()
    x = WORLD.vectors(ids[:, 1::4])
    y = (ids[:, 3::4] == WORLD.label_ids[1]).double() * 2 - 1
    assert set(ids[:, 3::4].flatten().tolist()) == set(WORLD.label_ids)
    # In the plane: some direction has all words of a sequence on the side that their labels say.
    angles = torch.linspace(0, 2 * torch.pi, 7200, dtype=torch.float64)
    directions = torch.stack([angles.cos(), angles.sin()])
    assert ((x @ directions) * y[..., None] > 0).all(1).any(1).double().mean() > 0.98
    for words in ids[:, 1::4].tolist():
        assert len(set(words)) == 6


def test_they_are_written_as_the_encoder_writes_demonstrations(tmp_path: Path):
    toy = train_toy(WORLD, steps=1, seed=0, examples=4, batch=2)
    lm = load_model(str(save_toy(toy, WORLD, tmp_path / "toy")), device="cpu")
    task = WORLD.task(seed=1, asking=True)
    chosen = draw_demonstrations(task, 4, seed=1)
    prefix = Encoder(lm, task).demonstrations(chosen).prefix
    tokens = lm.tokenizer.convert_ids_to_tokens(list(prefix))
    assert tokens[0] == "<s>"
    assert tokens[1::4] == [example.fields["word"] for example in chosen.examples]
    assert tokens[2::4] == [IS] * 4
    assert tokens[3::4] == [LABEL_WORDS[label] for label in chosen.labels]
    assert tokens[4::4] == ["</s>"] * 4


def test_what_is_saved_is_what_is_loaded_and_by_the_fastest_route(tmp_path: Path):
    toy = train_toy(WORLD, steps=2, seed=0, examples=4, batch=2)
    lm = load_model(str(save_toy(toy, WORLD, tmp_path / "toy")), device="cpu")
    assert lm.route.name == "packed"
    assert lm.anatomy.unclear == ()
    for name, weight in toy.named_parameters():
        assert torch.equal(lm.model.get_parameter(name), weight), name


def test_equal_seeds_give_equal_models_and_the_global_random_state_is_left():
    before = torch.random.get_rng_state()
    first, same, other = (train_toy(WORLD, steps=2, seed=seed, examples=4, batch=2) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    for name, weight in first.named_parameters():
        assert torch.equal(weight, same.get_parameter(name)), name
    assert not torch.equal(first.get_parameter("lm_head.weight"), other.get_parameter("lm_head.weight"))


def test_words_start_with_their_vectors_in_front():
    toy = train_toy(WORLD, steps=0, seed=0, examples=4)
    words = toy.get_input_embeddings().weight[WORLD.first_word :]
    assert torch.equal(words[:, :2], WORLD.x.float())
    # The rest says which word it is, and is small beside what the word means.
    assert 0.001 < words[:, 2:].square().mean().sqrt() < 0.1


def test_it_learns_to_learn_from_the_examples_before():
    # On a line one example says all, so that a second of training is enough.
    line = TokenWorld.draw(1, 24, seed=2)
    toy = train_toy(line, steps=150, seed=2, examples=8, width=32, learning_rate=4e-3)
    ids = token_sequences(line, 256, 8, torch.Generator().manual_seed(9))
    with torch.no_grad():
        logits = toy(input_ids=ids[:, :-1]).logits[:, 2::4][..., list(line.label_ids)]
    right = line.label_ids[0] + logits.argmax(-1) == ids[:, 3::4]
    first, *others = right.double().mean(0).tolist()
    assert abs(first - 0.5) < 0.15
    assert min(others) > 0.85


def test_a_loss_that_is_no_number_is_told():
    with pytest.raises(TrainingError, match="the loss is nan"):
        train_toy(WORLD, steps=5, seed=0, examples=4, batch=2, learning_rate=float("inf"))
