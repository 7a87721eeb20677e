"""The learning rate of the laboratory's short trainings."""

import math

import torch


def set_rate_(optimiser: torch.optim.Optimizer, highest: float, step: int, steps: int, warmup: int) -> None:
    """Give an optimiser the rate of a step: up in a line over the warmup, then down along a cosine.

    Args:
        optimiser: All its groups get the rate.
        highest: Reached at the end of the warmup.
        step: From 0.
        steps: In all.
        warmup: Of these, at least 1.
    """
    way = (step - warmup) / max(1, steps - warmup)
    share = (step + 1) / warmup if step < warmup else (1 + math.cos(math.pi * way)) / 2
    for group in optimiser.param_groups:
        group["lr"] = highest * share
