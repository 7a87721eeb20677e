"""Made-up but plausible results, holes included, for every test of the report."""

import math
import random
from functools import cache
from typing import Any

import torch

from dualform.result import (
    Accuracy,
    Calibrated,
    Classification,
    Cost,
    DemonstrationReport,
    Estimate,
    FoldReport,
    PairedTest,
    Predictions,
    PromptingComparison,
    Result,
    Similarity,
    SweepPoint,
    Trial,
    result_class,
)
from dualform.studies.classification import classification
from dualform.studies.statistics import Statistics

FIELDS = ("mean", "ci95", "n")
SEEDS = [1, 2, 3, 4, 5]
N_LAYERS = 30
N_HEADS = 9

FLOORS = {
    "random": (0.0, 0.004),
    "random_update": (0.01, 0.006),
    "position_shift": (0.35, 0.02),
    "shuffled_labels": (0.65, 0.03),
    "random_labels": (0.6, 0.03),
    "other_task": (0.4, 0.03),
    "untrained": (0.55, 0.05),
    "embeddings": (0.45, 0.05),
}
"""Control -> what it scores as a part of this run's score, and half its interval as such a part."""
OTHERS = {
    "other_demonstrations": (0.85, 0.03),
    "batch": (0.97, 0.03),
    "batch_sequential": (1.6, 0.03),
    "lcgd": (1.2, 0.03),
    "value_one_layer": (0.5, 0.03),
    "mlp": (0.7, 0.03),
    "icl_order": (2.6, 0.03),
    "ft_order": (2.1, 0.03),
}
MEASURED = (
    ("sim_aou", 0.186),
    ("sim_aou_raw", 0.143),
    ("sim_am_delta", 0.102),
    ("kendall", 0.193),
    ("top_k_overlap", 0.35),
)
"""Measures with controls, and this run's score."""


def example_result(**changes: Any) -> Result:
    """Five seeds, thirty layers, nine heads, every control, a rate sweep, a fold; `changes` replace whole fields."""
    rng = random.Random(11)
    older = old_result()
    fields: dict[str, Any] = {
        "similarity": _with_layers_tested(older.similarity | _words_shared()),
        "controls": _controls(rng),
        "calibrated": _calibrated(),
        "tests": _tests(older.accuracy),
        "rate_sweep": _sweep(),
        "cost": _cost(older.cost),
        "against_icl": _against(),
        "fold": _fold(),
        "classification": {
            key: each.model_copy(update={"accuracy": Estimate(**older.accuracy[key].model_dump(include=set(FIELDS)))})
            for key, each in _classification().items()
        },
    }
    return old_result(**(fields | changes))


def old_result(**changes: Any) -> Result:
    """The same as it was written before there were scales, tests, sweeps and folds, with few controls."""
    rng = random.Random(7)
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "comparison",
        "config": {
            "model": "smollm2-135m",
            "task": "reviews",
            "seeds": SEEDS,
            "shots": 32,
            "learners": ["zsl", "icl", "ft", "lora", "probe", "fold"],
            "ft": {"learning_rates": [1e-4, 1e-3, 1e-2], "epochs": 1},
        },
        "environment": {
            "python": "3.12.3",
            "libraries": {"torch": "2.7.0", "transformers": "5.2.0"},
            "device": "cpu",
            "threads": 8,
            "seconds": 412.7,
        },
        "model": {
            "name": "smollm2-135m",
            "architecture": "LlamaForCausalLM",
            "parameters": 134_515_008,
            "n_layers": N_LAYERS,
            "n_heads": N_HEADS,
            "d_model": 576,
            "dtype": "float32",
            "route": "shared prefix",
            "vocabulary": 49_152,
        },
        "task": {
            "name": "reviews",
            "source": "vaderSentiment 2.5",
            "label_words": [" Negative", " Positive"],
            "prompt": "Review: a masterpiece of the obvious\nSentiment:",
            "n_selection": 200,
            "n_report": 400,
            "report_split": "test",
        },
        "demonstrations": DemonstrationReport(
            k_requested=32,
            k_effective=30,
            k_effective_per_seed={str(seed): 30 + seed % 3 for seed in SEEDS},
            rows={str(seed): [rng.randrange(8000) for _ in range(32)] for seed in SEEDS},
            tokens={str(seed): 1100 + 13 * seed for seed in SEEDS},
        ),
        "accuracy": {
            "icl": _accuracy(0.721, 0.032, rng),
            "ft": _accuracy(0.684, 0.021, rng),
            "zsl": _accuracy(0.512, 0.0, rng),
            "lora": _accuracy(0.655, 0.036, rng),
            "probe": _accuracy(0.633, 0.02, rng),
            "fold": _accuracy(0.709, 0.024, rng),
        },
        "predictions": {
            "zsl": _predictions(0.947, 0.19),
            "icl": _predictions(0.58, 0.52),
            "ft": _predictions(0.66, 0.48),
            "lora": _predictions(0.71, 0.44),
            "probe": _predictions(0.51, 0.37),
            "fold": _predictions(0.61, 0.55),
        },
        "similarity": _similarity(rng),
        "controls": {
            "random": {
                "sim_aou": _layered(0.001, 0.004, rng, heads=False),
                "sim_aou_raw": _layered(0.0, 0.004, rng, heads=False),
                "sim_am_delta": Similarity(mean=0.002, ci95=(-0.004, 0.008), n=2000),
                "kendall": Similarity(mean=float("nan"), ci95=(None, None), n=0),
            },
            "untrained": {"sim_aou": Similarity(mean=0.172, ci95=(0.151, 0.19), n=2000)},
            "shuffled_labels": {
                "sim_aou": Similarity(mean=0.121, ci95=(0.104, 0.139), n=2000),
                "sim_am_delta": Similarity(mean=0.06, ci95=(0.045, 0.074), n=2000),
            },
        },
        "cost": {
            "zsl": Cost(adapt_seconds=0.0, query_seconds=0.011, tokens=31.2, flops=8.4e9),
            "icl": Cost(adapt_seconds=1.21, query_seconds=0.018, tokens=1158.4, flops=3.3e11, adapt_tokens=1127),
            "ft": Cost(
                adapt_seconds=9.7,
                query_seconds=0.0112,
                tokens=31.2,
                flops=8.4e9,
                adapt_flops=9e11,
                search_seconds=143.2,
            ),
            "probe": Cost(
                adapt_seconds=0.4, query_seconds=0.0109, tokens=31.2, flops=None, search_seconds=float("nan")
            ),
        },
        "trials": _trials(rng),
        "warnings": ["2 of 32 demonstrations did not fit in the model's context with seed 3; every learner used 30."],
    }
    return Result(**(fields | changes))


def empty_result(**changes: Any) -> Any:
    """A result in which nothing was measured, of the study's own class."""
    fields: dict[str, Any] = {"dualform": "0.1.0", "study": "comparison", "config": {}, "environment": {}} | changes
    return result_class(fields["study"])(**fields)


def _accuracy(mean: float, spread: float, rng: random.Random) -> Accuracy:
    per_seed: dict[str, float | None] = {str(seed): mean + rng.gauss(0, spread) for seed in SEEDS}
    return Accuracy(mean=mean, ci95=(mean - spread - 0.008, mean + spread + 0.008), n=2000, per_seed=per_seed)


def _predictions(share: float, entropy: float) -> Predictions:
    positive = round(2000 * share)
    counts = {" Negative": 2000 - positive, " Positive": positive}
    return Predictions(majority_share=share, majority_label=" Positive", entropy=entropy, counts=counts)


def _layered(level: float, spread: float, rng: random.Random, heads: bool) -> Similarity:
    layers: list[float | None] = [
        level * (0.6 + 0.8 * math.sin(math.pi * layer / N_LAYERS)) + rng.gauss(0, spread) for layer in range(N_LAYERS)
    ]
    layers[4] = float("nan")
    ci95: list[tuple[float | None, float | None]] = [
        (None, None) if value is None or math.isnan(value) else (value - 2 * spread, value + 2 * spread)
        for value in layers
    ]
    per_head: list[list[float | None]] = [[rng.gauss(level, 0.1) for _ in range(N_HEADS)] for _ in range(N_LAYERS)]
    per_head[2][3] = None
    return Similarity(
        mean=level,
        ci95=(level - spread, level + spread),
        n=2000,
        per_seed={str(seed): level + rng.gauss(0, spread) for seed in SEEDS},
        per_layer=layers,
        per_layer_ci95=ci95,
        per_head=per_head if heads else None,
    )


def _similarity(rng: random.Random) -> dict[str, Similarity]:
    return {
        "sim_aou": _layered(0.186, 0.012, rng, heads=False),
        "sim_aou_raw": _layered(0.143, 0.012, rng, heads=False),
        "sim_am": _layered(0.612, 0.01, rng, heads=True),
        "sim_am_before": _layered(0.588, 0.01, rng, heads=True),
        "sim_am_centred": _layered(0.55, 0.014, rng, heads=True),
        "sim_am_softmax": _layered(0.71, 0.008, rng, heads=True),
        "sim_am_delta": _layered(0.102, 0.01, rng, heads=True),
        "kendall": _layered(0.193, 0.015, rng, heads=False),
        "kendall_demo": _layered(0.05, 0.03, rng, heads=False),
        "direct_update": _layered(0.021, 0.006, rng, heads=True),
        "rec2ftp": Similarity(
            mean=0.8123,
            ci95=(0.774, 0.847),
            n=533,
            details={
                "numerator": 433,
                "denominator": 533,
                "chance": 0.664,
                "chance_numerator": 648,
                "chance_denominator": 976,
                "lift": 0.1483,
                "lift_ci95": [0.112, 0.187],
                "reverse": 0.31,
                "reverse_numerator": 59,
                "reverse_denominator": 190,
                "jaccard": 0.571,
                "jaccard_numerator": 492,
                "jaccard_denominator": 862,
            },
        ),
        "agreement": Similarity(
            mean=0.79,
            ci95=(0.771, 0.81),
            n=2000,
            details={
                "chance": 0.553,
                "total_variation": {"mean": 0.112, "ci95": [0.104, 0.121], "n": 2000},
                "kl_icl_ft": {"mean": 0.061, "ci95": [0.05, 0.07], "n": 2000},
                "top_k_overlap": {"mean": 0.55, "ci95": [0.53, 0.57], "n": 2000},
                "overlap_cosine": {"mean": None, "ci95": [None, None], "n": 0},
            },
        ),
        "relaxation": _layered(0.72, 0.02, rng, heads=True).model_copy(
            update={"details": {"relative_error": {"mean": 0.68, "ci95": [0.66, 0.7], "n": 2000}}}
        ),
        "a_future_measure": Similarity(mean=0.4, ci95=(None, None), n=12),
    }


def _trials(rng: random.Random) -> list[Trial]:
    trials = []
    for learner, rates in (("ft", [1e-4, 1e-3, 1e-2, 5e-2, 0.2]), ("lora", [1e-5, 1e-4, 1e-3])):
        for seed in SEEDS:
            for place, rate in enumerate(rates):
                diverged = rate == 0.2
                accuracy = None if diverged else 0.55 + 0.05 * place - 0.02 * place**2 + rng.gauss(0, 0.015)
                trials.append(
                    Trial(
                        learner=learner,
                        seed=seed,
                        learning_rate=rate,
                        validation_accuracy=accuracy,
                        validation_log_probability=None if diverged else -0.66,
                        first_loss=3.4,
                        last_loss=float("nan") if diverged else 2.9,
                        status="diverged" if diverged else "finished",
                        chosen=place == 1,
                    )
                )
    return trials


def _words_shared() -> dict[str, Similarity]:
    return {
        "top_k_overlap": Similarity(mean=0.35, ci95=(0.33, 0.37), n=2000),
        "overlap_cosine": Similarity(mean=0.93, ci95=(0.92, 0.94), n=1990),
        "vocabulary_shared": Similarity(mean=0.61, ci95=(0.59, 0.63), n=2000),
    }


def _with_layers_tested(similarity: dict[str, Similarity]) -> dict[str, Similarity]:
    """Some layers above their floor, some not, one untested; and the lengths of the changes."""
    q: list[float | None] = [0.001 if 8 <= layer < 24 else 0.4 for layer in range(N_LAYERS)]
    q[4] = float("nan")
    lengths = {
        "norm_icl": {"mean": 3.21, "ci95": [3.1, 3.3], "n": 2000},
        "norm_ft": {"mean": 0.87, "ci95": [0.8, 0.9], "n": 2000},
        "norm_ratio": {"mean": 0.271, "ci95": [0.25, 0.29], "n": 2000},
    }
    raw = similarity["sim_aou_raw"].model_copy(update={"per_layer_q": q, "details": lengths})
    return similarity | {"sim_aou_raw": raw, "sim_aou": similarity["sim_aou"].model_copy(update={"per_layer_q": q})}


def _controls(rng: random.Random) -> dict[str, dict[str, Similarity]]:
    controls: dict[str, dict[str, Similarity]] = {}
    for control, (part, spread) in (FLOORS | OTHERS).items():
        controls[control] = {
            key: _layered(score * part, score * spread, rng, heads=False)
            if key in ("sim_aou", "sim_aou_raw")
            else Similarity(mean=score * part, ci95=(score * (part - spread), score * (part + spread)), n=500)
            for key, score in MEASURED
        }
        if control != "random":
            controls[control]["rec2ftp"] = Similarity(mean=0.3 * part + 0.4, ci95=(0.4, 0.6), n=140)
            controls[control]["accuracy"] = Similarity(mean=0.55 + 0.05 * part, ci95=(0.5, 0.7), n=500)
    controls["random"]["kendall"] = Similarity(mean=float("nan"), ci95=(None, None), n=0)
    return controls


def _calibrated() -> dict[str, Calibrated]:
    """Every measure on its scale; Kendall has no room on its own, top tokens lie far beyond theirs."""
    found = {key: _placed(score) for key, score in MEASURED}
    nothing: dict[str, Any] = {"mean": None, "ci95": (None, None), "ceiling": 0.1, "by_control": {}}
    far = {"mean": 2.7, "ci95": (-1.4, 6.1), "ceiling": 0.27}
    found["kendall"] = found["kendall"].model_copy(update=nothing)
    found["top_k_overlap"] = found["top_k_overlap"].model_copy(update=far)
    found["rec2ftp"] = Calibrated(
        mean=0.52,
        ci95=(0.31, 0.7),
        n=500,
        score=0.8123,
        control="chance",
        floor=0.664,
        ceiling=0.95,
        minimum_detectable=0.06,
    )
    return found


def _placed(score: float) -> Calibrated:
    ceiling = score * math.sqrt(2.6 * 2.1)

    def against(part: float, spread: float) -> tuple[float, float, float]:
        room = ceiling - score * part
        place = (score - score * part) / room
        return place, place - 2 * spread * score / room, place + 2 * spread * score / room

    place, low, high = against(*FLOORS["shuffled_labels"])
    by_control = {}
    for control, (part, spread) in (FLOORS | OTHERS).items():
        if control not in ("shuffled_labels", "icl_order", "ft_order"):
            mean, start, end = against(part, spread)
            by_control[control] = Estimate(mean=mean, ci95=(start, end), n=500)
    return Calibrated(
        mean=place,
        ci95=(low, high),
        n=500,
        score=score,
        control="shuffled_labels",
        floor=score * 0.65,
        ceiling=ceiling,
        minimum_detectable=score * 0.06,
        by_control=by_control,
    )


@cache
def _classification() -> dict[str, Classification]:
    """Scores of random answers: some overconfident, the probe sometimes certain and wrong."""
    generator = torch.Generator().manual_seed(5)
    labels = (torch.rand(400, generator=generator) < 0.4).long()
    right = torch.nn.functional.one_hot(labels, 2)
    scores = {}
    for key, signal, scale in (
        ("icl", 1.2, 2.0),
        ("ft", 0.9, 1.0),
        ("zsl", 0.1, 3.0),
        ("lora", 0.8, 0.5),
        ("probe", 0.7, 40.0),
        ("fold", 1.1, 1.5),
    ):
        noise = torch.randn(1 if key == "zsl" else len(SEEDS), 400, 2, generator=generator, dtype=torch.float64)
        table = scale * (noise + signal * right)
        scores[key] = classification(table, labels, [" Negative", " Positive"], Statistics(50, tuple(map(str, SEEDS))))
    return scores


def _tests(accuracy: dict[str, Accuracy]) -> list[PairedTest]:
    """Every pair; five seeds cannot go below 0.0625."""
    tests = []
    names = list(accuracy)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            gap = (accuracy[first].mean or 0.0) - (accuracy[second].mean or 0.0)
            tests.append(
                PairedTest(
                    first=first,
                    second=second,
                    difference=gap,
                    ci95=(gap - 0.028, gap + 0.028),
                    n=2000,
                    p_queries=0.0004 if abs(gap) > 0.03 else 0.214,
                    p_seeds=0.0625 if abs(gap) > 0.03 else 0.4375,
                    minimum_detectable=0.04,
                )
            )
    return tests


def _sweep() -> list[SweepPoint]:
    points = []
    for place, rate in enumerate((1e-4, 1e-3, 1e-2, 5e-2)):
        likeness = {key: score * (1.3 - 0.25 * place) for key, score in MEASURED}
        points.append(
            SweepPoint(
                learning_rate=rate,
                accuracy=Estimate(mean=0.55 + 0.05 * place, ci95=(0.52 + 0.05 * place, 0.58 + 0.05 * place), n=500),
                update_norm=Estimate(mean=0.03 * 4**place, ci95=(0.025 * 4**place, 0.035 * 4**place), n=500),
                similarity={
                    key: Estimate(mean=mean, ci95=(mean - 0.02, mean + 0.02), n=500) for key, mean in likeness.items()
                },
            )
        )
    return points


def _cost(older: dict[str, Cost]) -> dict[str, Cost]:
    """The older costs, with what a kept prompt costs, a fold and a LoRA that is dear to ask."""
    kept = older["icl"].model_copy(update={"kept_tokens": 31.2, "kept_flops": 1.21e10, "adapt_flops": 3.2e11})
    trained = older["ft"].model_copy(update={"adapt_seconds": 12.1, "adapt_flops": 9.6e11, "kept_flops": 1.3e10})
    fold = Cost(
        adapt_seconds=31.0, query_seconds=0.0111, tokens=31.2, flops=8.41e9, adapt_tokens=9_000, adapt_flops=4e12
    )
    return older | {"icl": kept, "lora": trained, "fold": fold}


def _against() -> dict[str, PromptingComparison]:
    def beside(agreement: float, recovered: float, anew: float | None, kept: float | None) -> PromptingComparison:
        return PromptingComparison(
            agreement=Estimate(mean=agreement, ci95=(agreement - 0.02, agreement + 0.02), n=2000),
            recovered=Estimate(mean=recovered, ci95=(recovered - 0.14, recovered + 0.14), n=2000),
            break_even=anew,
            break_even_kept=kept,
        )

    return {
        "zsl": beside(0.563, 0.0, 0, 0),
        "ft": beside(0.79, 0.823, 2.8, 243.2),
        "lora": beside(0.744, 0.684, 3.0, None),
        "probe": beside(0.702, 0.579, None, None),
        "fold": beside(0.884, 0.943, 12.4, 1084.0),
    }


def _fold() -> FoldReport:
    def like(mean: float) -> Similarity:
        return Similarity(mean=mean, ci95=(mean - 0.02, mean + 0.02), n=2000)

    return FoldReport(
        method="ridge",
        texts=256,
        source="train",
        plain_tokens=8192,
        plain_source="generated",
        strength=0.112,
        explained=[0.2 + 0.6 * math.sin(math.pi * layer / N_LAYERS) for layer in range(N_LAYERS)],
        similarity={
            "icl": {"sim_aou": like(0.641), "sim_aou_raw": like(0.602), "agreement": like(0.884)},
            "ft": {"sim_aou": like(0.171), "sim_aou_raw": like(0.132)},
        },
    )
