"""A made-up but plausible comparison of momentum attention with vanilla for the tests of its report."""

import math
from typing import Any

from scipy.stats import ttest_1samp

from dualform.result import Estimate, Paired
from dualform.studies.momentum.result import (
    CurvePoint,
    MomentumArm,
    MomentumRegression,
    MomentumReport,
    MomentumResult,
    PretrainedMomentum,
    RegressionCurve,
    TaskScore,
)

SEEDS = ("1", "2", "3", "4", "5")
LENGTHS = (64, 128, 256)
EXACT = (("least squares", 2.5), ("gradient descent, 3 steps", 0.11), ("heavy ball, 3 steps", 0.2))
"""Exact predictors, and how fast their error falls at condition number 1."""
SHAPE = (-1.2, -0.5, 0.1, 0.5, 1.1)
"""How the seeds lie around their mean: of mean 0, not symmetric."""


def example_momentum(**changes: Any) -> MomentumResult:
    """Four etas, every control, six tasks, regression, two pretrained models; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "momentum",
        "config": {"recipe": "small", "etas": [0.1, 0.3, 0.5, 0.9], "seeds": [1, 2, 3, 4, 5]},
        "environment": {"python": "3.12.3", "device": "cuda", "seconds": 15123.2},
        "model": {"architecture": "LlamaForCausalLM", "n_layers": 4, "n_heads": 4, "d_model": 256},
        "momentum": study(),
    }
    return MomentumResult(**(fields | changes))


def study(**changes: Any) -> MomentumReport:
    """The momentum part of the example; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "recipe": "small",
        "tokens": 4_194_304,
        "length": 256,
        "arms": [
            arm("vanilla", 0.0),
            arm("momentum", -0.0123, eta=0.1),
            arm("momentum", -0.0081, eta=0.3),
            arm("momentum", 0.0011, eta=0.5),
            arm("momentum", 0.0382, eta=0.9),
            arm("normalised", -0.0042, eta=0.3),
            arm("learned", -0.0151, eta=0.3, learned_eta=[0.031, 0.12, 0.241, 0.42], parameters=4_214_928),
            arm("convolution", -0.0247, parameters=4_217_984),
            arm("linear", 0.31),
            arm("linear-momentum", 0.302, eta=0.3),
            arm("heavy-ball", 0.2913, eta=0.3),
            arm("nesterov", 0.3107, eta=0.3),
        ],
        "regression": regression(),
        "pretrained": [pretrained("smollm2-135m", 0.004), pretrained("gpt2", -0.0002, eta=0.3)],
    }
    return MomentumReport(**(fields | changes))


def arm(kind: str, loss: float | None, eta: float | None = None, seeds: int = 5, **changes: Any) -> MomentumArm:
    """One way of attending, whose loss lies `loss` above vanilla's; None for one without numbers."""
    linear = {"linear-momentum", "heavy-ball", "nesterov"}
    baseline = None if kind in ("vanilla", "linear") else "linear" if kind in linear else "vanilla"
    level = 0.31 if baseline == "linear" else 0.0
    fields: dict[str, Any] = {
        "name": kind if eta is None else f"{kind} {eta:g}",
        "kind": kind,
        "eta": eta,
        "baseline": baseline,
        "parameters": 4_214_912,
        "step_ratio": None if baseline is None else 1.21 if kind == "heavy-ball" else 1.08,
        "perplexity": {},
        "difference": {},
        "curve": [],
    }
    if loss is not None:
        # The shorter the text, the less there is to be gained.
        share = {length: 0.4 + 0.3 * place for place, length in enumerate(LENGTHS)}
        fields["perplexity"] = {
            str(length): estimate(math.exp(3.5 - 0.12 * place + loss * share[length]), 0.35)
            for place, length in enumerate(LENGTHS)
        }
        fields["curve"] = [
            CurvePoint(
                tokens=tokens, loss=3.2 + 2.5 * math.exp(-tokens / 9e5) + loss * (1 + 3 * math.exp(-tokens / 4e5))
            )
            for tokens in range(262_144, 4_194_305, 262_144)
        ]
        gain = 0.0 if kind == "linear" else -2 * (loss - level)
        fields["tasks"] = tasks(baseline, gain, seeds)
        if baseline is not None:
            # Each kind scatters in another order over the seeds.
            turn = sum(kind.encode()) + round(10 * (eta or 0))
            fields["difference"] = {
                str(length): paired((loss - level) * share[length], 0.002, seeds, turn) for length in LENGTHS
            }
    return MomentumArm(**(fields | changes))


def tasks(baseline: str | None, gain: float, seeds: int = 5) -> list[TaskScore]:
    """Two tasks above chance, and one at it, for all."""
    return [
        score("sst2", 0.62 + gain, 0.51, None if baseline is None else paired(gain, 0.01, seeds)),
        score("agnews", 0.41 + gain, 0.26, None if baseline is None else paired(0.8 * gain, 0.015, seeds)),
        score("cb", 0.45 + gain / 10, 0.5, None if baseline is None else paired(gain / 10, 0.02, seeds)),
    ]


def score(task: str, accuracy: float, chance: float, difference: Paired | None, half: float = 0.03) -> TaskScore:
    """Accuracy on one task."""
    return TaskScore(task=task, k=4, chance=chance, accuracy=estimate(accuracy, half, n=1000), difference=difference)


def paired(mean: float, sd: float, seeds: int = 5, turn: int = 0) -> Paired:
    """A difference whose seeds scatter by about `sd`, with Student's interval; `turn` changes who lies where."""
    shape = [SHAPE[(place * (1 + turn % 4) + turn) % len(SHAPE)] for place in range(seeds)]
    shape = [each - sum(shape) / seeds for each in shape]
    per_seed: dict[str, float | None] = {
        seed: mean + sd * each for seed, each in zip(SEEDS[:seeds], shape, strict=True)
    }
    if seeds < 2:
        return Paired(mean=mean, ci95=(None, None), p=None, p_signs=1.0, per_seed=per_seed, n=seeds)
    found = ttest_1samp(list(per_seed.values()), 0.0)
    low, high = (float(end) for end in found.confidence_interval(0.95))
    p = float(found.pvalue)
    signs = 2 / 2**seeds if p < 0.05 else 0.5
    return Paired(mean=mean, ci95=(low, high), p=p, p_signs=signs, per_seed=per_seed, n=seeds)


def broken() -> Paired:
    """A difference of runs that failed."""
    return Paired(mean=None, ci95=(None, None), p=None, p_signs=None, per_seed=dict.fromkeys(SEEDS), n=0)


def estimate(mean: float | None, half: float | None = 0.03, n: int = 5) -> Estimate:
    """A mean in the middle of its interval; without `half`, without one."""
    ends = (None, None) if mean is None or half is None else (mean - half, mean + half)
    return Estimate(mean=mean, ci95=ends, n=n)


def regression(**changes: Any) -> MomentumRegression:
    """Three arms and three exact predictors at two condition numbers; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dimension": 10,
        "points": 21,
        "steps": 20_000,
        "curves": [
            curve(name, condition, rate, change)
            for condition in (1.0, 100.0)
            for name, rate, change in (
                ("vanilla", 0.16, None),
                ("momentum 0.3", 0.17, -0.062 if condition > 1 else -0.004),
                ("heavy-ball 0.3", 0.19, None if condition > 1 else 0.11),
            )
        ],
        "references": {
            name: [curve(name, condition, rate / (1 + 0.2 * math.log10(condition)), None) for condition in (1.0, 100.0)]
            for name, rate in EXACT
        },
    }
    return MomentumRegression(**(fields | changes))


def curve(name: str, condition: float, rate: float, change: float | None) -> RegressionCurve:
    """An error that falls by the factor exp(-rate) an example; the first point is 1 and has no interval."""
    loss = [estimate(1.0, None), *(estimate(level := math.exp(-rate * seen), 0.1 * level) for seen in range(1, 21))]
    difference = None if change is None else paired(change, 0.02)
    return RegressionCurve(arm=name, condition=condition, loss=loss, difference=difference)


def pretrained(model: str, change: float, eta: float = 0.1) -> PretrainedMomentum:
    """A model that momentum harms at first, and hardly changes after a finetune."""
    return PretrainedMomentum(
        model=model,
        eta=eta,
        perplexity=31.27,
        base=18.42,
        tuned=estimate(17.2 * math.exp(change), 0.2),
        base_tuned=estimate(17.2, 0.2),
        difference=paired(change, 0.001),
    )
