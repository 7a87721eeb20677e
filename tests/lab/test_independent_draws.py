"""Streams of one seed: what they are for tells them apart, where an offset beyond 32 bits would not."""

from itertools import combinations
from typing import Any

import pytest
import torch

from dualform.lab.constructed_model import Layer
from dualform.lab.regression import LinearTasks, train_regressor
from dualform.lab.regression_tasks import RegressionTasks
from dualform.lab.sequence_model import SequenceModelConfig, train_sequence_model
from dualform.lab.token_world import TokenWorld
from dualform.ops.streams import stream


def numbers(generator: torch.Generator) -> torch.Tensor:
    return torch.randn(4096, generator=generator, dtype=torch.float64)


def test_a_stream_is_the_same_whenever_it_is_asked_for() -> None:
    assert torch.equal(numbers(stream("weights", 3)), numbers(stream("weights", 3)))
    assert torch.equal(numbers(stream("tuning", 3, 7)), numbers(stream("tuning", 3, 7)))


def test_purposes_seeds_and_what_else_is_said_give_unrelated_numbers() -> None:
    purposes = ("weights", "training", "test", "tuning")
    streams = [stream(purpose, seed) for purpose in purposes for seed in range(3)]
    streams += [stream("test", 0, 0), stream("test", 0, 1), stream("test", 0, 2**32)]
    drawn = [numbers(one) for one in streams]
    for one, other in combinations(drawn, 2):
        # Of 4096 pairs without relation the correlation is 0.016 in size on average.
        assert abs(float(torch.corrcoef(torch.stack([one, other]))[0, 1])) < 0.08


def correlated(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether the first numbers of two draws of the same numbers, however scaled, go together."""
    n = min(one.numel(), other.numel())
    pair = torch.stack([one.flatten()[:n].double(), other.flatten()[:n].double()])
    return abs(float(torch.corrcoef(pair)[0, 1])) > 5 / n**0.5


def test_a_constructed_layer_has_nothing_to_do_with_the_words_it_is_drawn_for() -> None:
    for seed in range(3):
        world = TokenWorld.draw(16, 120, seed)
        layer = Layer.draw(world, 16, seed)
        assert not correlated(layer.W_0, world.x)
        assert not correlated(layer.readout, world.x)
    # The case in which it would be seen: both drawn from one raw generator of the same seed.
    raw = torch.randn(120, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    again = torch.randn(16, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert correlated(again, raw)


def test_the_first_batch_is_drawn_from_another_stream_than_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []

    def kept(draw: Any) -> Any:
        def drawn(self: Any, *args: Any) -> Any:
            seen.append(args[-1].get_state())
            return draw(self, *args)

        return drawn

    monkeypatch.setattr(RegressionTasks, "draw", kept(RegressionTasks.draw))
    monkeypatch.setattr(LinearTasks, "draw", kept(LinearTasks.draw))
    config = SequenceModelConfig("softmax", dimension=3, width=8, layers=1)
    train_sequence_model(config, RegressionTasks(dimension=3, points=4), steps=1, seed=4, batch=2)
    train_regressor(LinearTasks(3, 4), (1.0,), steps=1, seed=4, batch=2)

    weights = [torch.Generator().manual_seed(4).get_state(), stream("weights", 4).get_state()]
    assert len(seen) == 2
    assert all(torch.equal(state, stream("training", 4).get_state()) for state in seen)
    assert not any(torch.equal(state, other) for state in seen for other in weights)


def test_offsets_beyond_32_bits_would_give_the_same_numbers() -> None:
    """Why seeds are hashed: should torch begin to use all 64 bits, this fails, and the hash may be used whole."""
    plain = numbers(torch.Generator().manual_seed(5))
    for offset in (2**32, 2**33, 2**35):
        assert torch.equal(numbers(torch.Generator().manual_seed(offset + 5)), plain)
        assert not torch.equal(numbers(stream("weights", offset + 5)), numbers(stream("weights", 5)))
