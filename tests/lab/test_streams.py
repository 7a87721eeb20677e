"""Streams of one seed: what they are for tells them apart, where an offset beyond 32 bits would not."""

from itertools import combinations

import torch

from dualform.lab.streams import stream


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


def test_offsets_beyond_32_bits_would_give_the_same_numbers() -> None:
    """Why seeds are hashed: should torch begin to use all 64 bits, this fails, and the hash may be used whole."""
    plain = numbers(torch.Generator().manual_seed(5))
    for offset in (2**32, 2**33, 2**35):
        assert torch.equal(numbers(torch.Generator().manual_seed(offset + 5)), plain)
        assert not torch.equal(numbers(stream("weights", offset + 5)), numbers(stream("weights", 5)))
