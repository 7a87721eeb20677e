"""One pass of finetuning W_K and W_V over the demonstrations, against the bound of its forwards and backwards.

The sequences are short, one a step, and the steps depend on one another. Matrix products of so few rows cannot reach
the rate of tall ones: they read every weight for a few dozen rows. A second bound, apart, takes the rate of products of
that height over the model's own weights; what remains over it is ours to save.
"""

import time
from functools import partial

import torch
from torch import Tensor

from benchmarks.common import SEED, GemmRate, Job, Outcome, Patience, Size, beside_rate, features, linears
from dualform.learners.finetuned import Finetuned
from dualform.models.structure.anatomy import row_axis

LEARNING_RATE = 0.01


def run(job: Job, size: Size) -> list[Outcome]:
    """Time `Finetuned.adapt`, beside both rates."""
    learner = Finetuned(job.opening, LEARNING_RATE)
    tall = GemmRate(job.lm, job.lm.max_row, size.gemm_seconds)
    sequences = job.encoded.sequences
    height = max(1, round(sum(map(len, sequences)) / len(sequences)))
    low = _TrainingSweep(job, height)
    flops = learner.adapt(job.lm, job.encoded).cost.flops  # and a first pass, which pays for what happens once
    patience = Patience(size.patience)

    def one_pass() -> dict[str, float]:
        low_before = low.rate()
        (took,), rate = beside_rate(tall, [partial(learner.adapt, job.lm, job.encoded)])
        return {"seconds": took, "rate": rate, "low_rate": max(low_before, low.rate())}

    rounds = []
    for _ in range(size.rounds):
        rounds.append(patience.undisturbed(one_pass))
    raw = {
        "flops": flops,
        "rounds": rounds,
        "others": patience.others,
        "height": height,
        "sequences": len(sequences),
        "tokens": sum(map(len, sequences)),
    }
    best = flops / min(r["seconds"] for r in rounds)
    low_best = max(r["low_rate"] for r in rounds)
    return [
        Outcome(
            "finetuning: time over FLOP bound",
            tuple(r["seconds"] * r["rate"] / flops for r in rounds),
            "at most",
            1.5,
            f"{flops / 1e9:,.0f} GFLOP; at best {best / 1e9:.0f} of {max(tall.seen) / 1e9:.0f} GFLOP/s",
            raw,
        ),
        Outcome(
            "finetuning: over products as low",
            tuple(r["seconds"] * r["low_rate"] / flops for r in rounds),
            "at most",
            None,
            f"products of {height} rows over the model's own weights reach {low_best / 1e9:.0f} GFLOP/s",
        ),
    ]


class _TrainingSweep:
    """Each linear once forwards and once backwards, in the model's order, for activations of some height.

    Unlike one matrix multiplied again and again, this reads the weights from memory, as a training step must.
    """

    def __init__(self, job: Job, height: int) -> None:
        generator = torch.Generator().manual_seed(SEED)
        dtype = job.lm.model.dtype
        modules = [*linears(job.lm), job.lm.model.get_output_embeddings()]
        widths = {width for module in modules for width in features(module)}
        self._rows = {width: torch.randn(height, width, generator=generator).to(dtype) for width in widths}
        self._outs = {width: torch.empty(height, width, dtype=dtype) for width in widths}
        # As (outputs, inputs), whichever way round the family keeps them; a view, no copy.
        self._weights: list[Tensor] = [
            weight if row_axis(module) == 0 else weight.t()
            for module in modules
            for weight in [module.get_parameter("weight").detach()]
        ]
        self._flops = sum(4.0 * height * weight.numel() for weight in self._weights)

    def rate(self) -> float:
        """The better of two sweeps, FLOP/s."""
        return self._flops / min(self._sweep(), self._sweep())

    def _sweep(self) -> float:
        start = time.perf_counter()
        for weight in self._weights:
            n_out, n_in = weight.shape
            torch.mm(self._rows[n_in], weight.t(), out=self._outs[n_out])
        for weight in reversed(self._weights):
            n_out, n_in = weight.shape
            torch.mm(self._rows[n_out], weight, out=self._outs[n_in])
        return time.perf_counter() - start
