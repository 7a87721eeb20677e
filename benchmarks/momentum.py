"""Momentum attention against the same model with PyTorch's own attention, in one run: a forward and a training step.

The term is also timed as the product with a t x t matrix that it is on paper, which is the form to beat.
"""

from collections.abc import Callable
from functools import partial
from unittest.mock import patch

import torch
from torch import Tensor
from transformers import PreTrainedModel

from benchmarks.common import Job, Outcome, Patience, Size, seconds
from dualform.lab.recipe import load_recipe
from dualform.models.editing import momentum as inside
from dualform.models.editing.momentum import momentum
from dualform.ops.momentum import momentum_naive

LENGTH = 1024
QUICK_LENGTH = 128
ETA = 0.3


def run(job: Job, size: Size) -> list[Outcome]:
    """Time the packaged model's forward, and the training step of the recipe `small` at the same length."""
    length = LENGTH if size.rounds > 2 else QUICK_LENGTH
    ids = torch.arange(length)[None] * 7919 % (job.lm.model.get_input_embeddings().weight.shape[0] - 4) + 4
    small = load_recipe("small", length=length, batch_tokens=length, tokens=length).build()
    small.set_attn_implementation("sdpa")
    rows = ids % small.config.vocab_size
    patience = Patience(size.patience)
    before = job.lm.model.config._attn_implementation
    job.lm.model.set_attn_implementation("sdpa")
    try:
        forward = _ratios(job.lm.model, partial(_forward, job.lm.model, ids), patience, size.rounds)
        step = _ratios(small, partial(_step, small, rows), patience, size.rounds)
    finally:
        job.lm.model.set_attn_implementation(before)
    outcomes = []
    for name, rounds in ((f"forward of {job.lm.name}", forward), ("training step of small", step)):
        fastest = min(rounds, key=lambda r: r["vanilla"])
        outcomes.append(
            Outcome(
                f"momentum: {name} over vanilla",
                tuple(r["momentum"] / r["vanilla"] for r in rounds),
                "at most",
                1.15,
                f"length {length}: vanilla {fastest['vanilla'] * 1e3:,.0f} ms; with the t x t form "
                f"{fastest['square'] / fastest['vanilla']:.2f} of it",
                {"rounds": rounds, "length": length, "others": patience.others},
            )
        )
    return outcomes


def _ratios(
    model: PreTrainedModel, work: Callable[[], object], patience: Patience, rounds: int
) -> list[dict[str, float]]:
    work()  # and so pay for what happens once

    def one_round() -> dict[str, float]:
        first = seconds(work)
        with momentum(model, ETA):
            own = seconds(work)
            with patch.object(inside, "momentum_chunked", momentum_naive):
                square = seconds(work)
        return {"vanilla": min(first, seconds(work)), "momentum": own, "square": square}

    return [patience.undisturbed(one_round) for _ in range(rounds)]


@torch.no_grad()
def _forward(model: PreTrainedModel, ids: Tensor) -> None:
    model(input_ids=ids, use_cache=False, logits_to_keep=1)


def _step(model: PreTrainedModel, ids: Tensor) -> None:
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad(set_to_none=True)
