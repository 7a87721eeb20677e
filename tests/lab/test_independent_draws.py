"""Streams of one seed are independent because their purpose is hashed in; an offset beyond 32 bits would not do."""

from collections.abc import Callable
from dataclasses import replace
from itertools import combinations
from typing import Any

import pytest
import torch

from dualform.lab.constructed_model import ConstructedWeights
from dualform.lab.decoder import DecoderConfig, Decoders
from dualform.lab.in_context_training import mean_gram, train_together
from dualform.lab.regression_tasks import RegressionTasks, Sequences
from dualform.lab.self_attention import SelfAttentionConfig
from dualform.lab.sequence_model import SequenceModelConfig, train_sequence_model
from dualform.lab.token_world import TokenWorld
from dualform.lab.training import Training, train
from dualform.ops.streams import stream


def numbers(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4096, generator=generator, dtype=torch.float64)


def test_equal_arguments_give_equal_streams() -> None:
    assert torch.equal(numbers(stream("weights", 3)), numbers(stream("weights", 3)))
    assert torch.equal(numbers(stream("tuning", 3, 7)), numbers(stream("tuning", 3, 7)))


def test_other_purposes_seeds_and_numbers_give_independent_streams() -> None:
    purposes = ("weights", "training", "test", "tuning")
    streams = [stream(purpose, seed) for purpose in purposes for seed in range(3)]
    streams += [stream("test", 0, 0), stream("test", 0, 1), stream("test", 0, 2**32)]
    drawn = [numbers(first) for first in streams]
    for first, other in combinations(drawn, 2):
        # Of 4096 pairs without relation the correlation is 0.016 in size on average.
        assert abs(float(torch.corrcoef(torch.stack([first, other]))[0, 1])) < 0.08


def correlated(first: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the first numbers of two draws of the same numbers, however scaled, go together."""
    n = min(first.numel(), other.numel())
    pair = torch.stack([first.flatten()[:n].double(), other.flatten()[:n].double()])
    return abs(float(torch.corrcoef(pair)[0, 1])) > 5 / n**0.5


def test_a_constructed_layer_has_nothing_to_do_with_the_words_it_is_drawn_for() -> None:
    for seed in range(3):
        world = TokenWorld.draw(16, 120, seed)
        layer = ConstructedWeights.draw(world, 16, seed)
        assert not correlated(layer.W_0, world.x)
        assert not correlated(layer.readout, world.x)
    # The case in which it would be seen: both drawn from one raw generator of the same seed.
    raw = torch.randn(120, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    again = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert correlated(again, raw)


LLAMA = SequenceModelConfig("softmax", dimension=3, width=8, layers=1, heads=2, mlp=8, llama=True)
TRAININGS: dict[str, Callable[[RegressionTasks], Any]] = {
    "mixers": lambda tasks: train_sequence_model(replace(LLAMA, llama=False), tasks, Training(1, 2), seed=4),
    "llama": lambda tasks: train_sequence_model(LLAMA, tasks, Training(1, 2), seed=4),
    "decoders": lambda tasks: train(Decoders(DecoderConfig(3, 8, 1), (4,)), tasks, Training(1, 2)),
    "self-attention": lambda tasks: train_together(SelfAttentionConfig(3), tasks, Training(1, 2), (4,)),
}


@pytest.mark.parametrize("model", TRAININGS)
def test_the_first_batch_is_drawn_from_another_stream_than_the_weights(
    model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.Tensor] = []
    draw = RegressionTasks.draw

    def kept(self: RegressionTasks, n: int, generator: torch.Generator, *args: Any) -> Sequences:
        seen.append(generator.get_state())
        return draw(self, n, generator, *args)

    monkeypatch.setattr(RegressionTasks, "draw", kept)
    TRAININGS[model](RegressionTasks(dimension=3, points=4))
    (state,) = seen
    assert torch.equal(state, stream("training", 4).get_state())
    for other in (torch.Generator().manual_seed(4), stream("weights", 4)):
        assert not torch.equal(state, other.get_state())


def test_first_weights_of_self_attention_are_of_a_stream_of_their_own() -> None:
    tasks = RegressionTasks(dimension=3, points=4)
    kept = train_together(SelfAttentionConfig(3), tasks, Training(1, 2), (4,), keep=(0,))
    first = kept.model(4, 0).weights["W_K"][0]
    assert torch.equal(first, SelfAttentionConfig(3).draw_weights(stream("weights", 4), mean_gram(tasks))["W_K"])
    # With 16 numbers chance alone may correlate; with 256 of them it does not.
    wide = SelfAttentionConfig(15).draw_weights(stream("weights", 4))["W_K"]
    assert not correlated(wide, torch.randn(256, generator=torch.Generator().manual_seed(4)))


def test_offsets_beyond_32_bits_would_give_the_same_numbers() -> None:
    """Why seeds are hashed: should torch begin to use all 64 bits, this fails, and the hash may be used whole."""
    plain = numbers(torch.Generator().manual_seed(5))
    for offset in (2**32, 2**33, 2**35):
        assert torch.equal(numbers(torch.Generator().manual_seed(offset + 5)), plain)
        assert not torch.equal(numbers(stream("weights", offset + 5)), numbers(stream("weights", 5)))
