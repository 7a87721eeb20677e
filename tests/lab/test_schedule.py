"""The rate rises to its highest, falls along a cosine, and is the same for every group."""

import math

import pytest
import torch

from dualform.lab.schedule import set_rate_


def rates(steps: int, warmup: int, highest: float = 2.0) -> list[float]:
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimiser = torch.optim.SGD([{"params": [one]} for one in weights], lr=9.0)
    found = []
    for step in range(steps):
        set_rate_(optimiser, highest, step, steps, warmup)
        first, second = (group["lr"] for group in optimiser.param_groups)
        assert first == second
        found.append(float(first))
    return found


def test_the_rate_rises_in_a_line_and_falls_along_a_cosine() -> None:
    expected = [0.5, 1.0, 1.5, 2.0, *(1 + math.cos(math.pi * n / 6) for n in range(6))]
    assert rates(steps=10, warmup=4) == pytest.approx(expected)


def test_one_step_is_taken_at_the_highest_rate() -> None:
    assert rates(steps=1, warmup=1) == [2.0]
