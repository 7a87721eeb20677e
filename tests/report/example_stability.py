"""Made-up but plausible stability studies for the tests of their report."""

import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dualform.result import Estimate
from dualform.studies.stability.result import (
    Behaviour,
    Contrast,
    FairGap,
    LearnerStability,
    ModelStability,
    RunBehaviour,
    Spread,
    Stability,
    StabilityResult,
    StabilityRun,
    VarianceSplit,
)

SMALL, LARGE = "smollm2-135m", "gemma3-270m"
WORDS = [" Negative", " Positive"]


def example_stability(**changes: Any) -> StabilityResult:
    """Two models, eight sets in five orders, finetuning at two rates; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "stability",
        "config": {"models": [SMALL, LARGE], "task": "reviews", "seeds": [1, 2, 3, 4, 5, 6, 7, 8], "orders": 5},
        "environment": {"python": "3.12.3", "device": "cpu", "seconds": 941.2},
        "model": {"name": f"{SMALL}, {LARGE}"},
        "task": {
            "name": "reviews",
            "source": "vaderSentiment 2.5",
            "label_words": WORDS,
            "prompt": "Review: a masterpiece of the obvious\nSentiment:",
            "n_report": 100,
            "report_split": "test",
        },
        "stability": Stability(
            models={SMALL: example_model(SMALL, 134_515_008), LARGE: example_model(LARGE, 268_098_176, calmer=0.6)},
            contrasts=[
                contrast("ft", 0.02, 0.08, 0.25, (0.15, 0.4), SMALL),
                contrast("ft", 0.02, 0.03, 0.67, (0.4, 1.1), SMALL, calibrated=True),
                contrast("ft@0.01", 0.07, 0.08, 0.88, (0.6, 1.3), SMALL),
                contrast("ft", 0.06, 0.04, 1.5, (1.1, 2.0), LARGE),
                contrast("icl", 0.04, 0.08, 0.5, (0.3, 0.8), LARGE, SMALL, question="size"),
                contrast("icl", 0.03, 0.03, 1.0, (0.7, 1.5), LARGE, SMALL, question="size", calibrated=True),
                contrast("ft", 0.06, 0.02, 3.0, (2.0, 4.1), LARGE, SMALL, question="size"),
            ],
        ),
        "warnings": ["8 demonstration sets: few."],
    }
    return StabilityResult(**(fields | changes))


def one_model(
    learners: dict[str, LearnerStability] | None = None, contrasts: Sequence[Contrast] = (), **changes: Any
) -> StabilityResult:
    """A study of one model."""
    model = example_model(SMALL, 134_515_008)
    if learners is not None:
        model = model.model_copy(update={"learners": learners})
    return example_stability(stability=Stability(models={SMALL: model}, contrasts=list(contrasts)), **changes)


def example_model(name: str, parameters: int, calmer: float = 1.0) -> ModelStability:
    """Zero-shot, ICL that collapses at times, FT at the chosen rate and at a further one."""
    return ModelStability(
        model={"name": name, "architecture": "LlamaForCausalLM", "parameters": parameters, "n_layers": 30},
        learners={
            "zsl": learner(0.52, 0, 0, sets=1, orders=1, top=0.947),
            "icl": learner(
                0.64,
                0.08 * calmer,
                0.05 * calmer,
                labels={"true": (0.64, 0.6, 0.68), "random": (0.61, 0.56, 0.66), "flipped": (0.45, 0.41, 0.5)},
            ),
            "ft@0.01": learner(0.66, 0.06 * calmer, 0.03, sets=4, orders=2, rate=0.01),
            "ft": learner(
                0.68,
                0.02,
                0.01,
                sets=4,
                orders=2,
                rate=0.001,
                labels={"true": (0.68, 0.64, 0.71), "random": (0.53, 0.48, 0.57), "flipped": (0.4, 0.36, 0.45)},
            ),
        },
        fairness=[
            fair_gap("none", (0.64, 0.64), (0.68, 0.68)),
            fair_gap("icl", (0.74, 0.7), (0.68, 0.68)),
            fair_gap("ft", (0.64, 0.64), (0.71, 0.69)),
            fair_gap("both", (0.73, 0.69), (0.69, 0.68)),
        ],
    )


def fair_gap(select: str, icl: tuple[float, float], ft: tuple[float, float]) -> FairGap:
    """Accuracies where the set was chosen and elsewhere, with intervals of five points about the gaps."""
    here, there = (Estimate(mean=a - b, ci95=(a - b - 0.05, a - b + 0.05), n=4) for a, b in zip(icl, ft, strict=True))
    return FairGap(
        select=select,
        icl_chosen_on=icl[0],
        icl_untouched=icl[1],
        ft_chosen_on=ft[0],
        ft_untouched=ft[1],
        gap_chosen_on=here,
        gap_untouched=there,
    )


def learner(
    level: float,
    by_set: float,
    by_order: float,
    *,
    sets: int = 8,
    orders: int = 5,
    calibrated: bool = True,
    top: float = 0.75,
    rate: float | None = None,
    labels: Mapping[str, tuple[float, float | None, float | None]] | None = None,
) -> LearnerStability:
    """One learner's runs, drawn with these standard deviations by set and by order."""
    rng = random.Random(11)
    runs = []
    for seed in range(1, sets + 1):
        aside = rng.gauss(0, by_set)
        for order in range(orders):
            accuracy = min(1.0, max(0.0, level + aside + rng.gauss(0, by_order)))
            share = min(1.0, max(0.5, top + 2 * (level - accuracy)))
            after = min(1.0, max(0.0, level + 0.05 + aside / 3 + rng.gauss(0, by_order / 2)))
            runs.append(
                StabilityRun(
                    seed=seed,
                    order=order,
                    labels="true",
                    plain=run(accuracy, share),
                    calibrated=run(after, 0.6 + 0.1 * rng.random()) if calibrated else None,
                )
            )
    true = list(runs)
    for rule in labels or {}:
        if rule != "true":
            runs += [each.model_copy(update={"labels": rule}) for each in true if each.order == 0]
    return LearnerStability(
        plain=behaviour([each.plain for each in true], orders, by_set, by_order),
        calibrated=(
            behaviour([each.calibrated for each in true if each.calibrated], orders, by_set / 3, by_order / 2)
            if calibrated
            else None
        ),
        labels={
            rule: Estimate(mean=mean, ci95=(low, high), n=100 * sets)
            for rule, (mean, low, high) in (labels or {}).items()
        },
        label_effects={
            rule: difference((mean, low, high), labels["true"])
            for rule, (mean, low, high) in (labels or {}).items()
            if labels and rule != "true" and "true" in labels
        },
        learning_rate=rate,
        runs=runs,
    )


def difference(
    rule: tuple[float, float | None, float | None], true: tuple[float, float | None, float | None]
) -> Estimate:
    """What a rule changes, as if the two had been measured apart."""
    ends = None if None in (*rule, *true) else (rule[1] - true[2], rule[2] - true[1])  # type: ignore[operator]
    return Estimate(mean=rule[0] - true[0], ci95=ends or (None, None), n=100)


def run(accuracy: float, share: float) -> RunBehaviour:
    """One run."""
    return RunBehaviour(accuracy=accuracy, majority_share=share, majority_label=WORDS[1], entropy=0.4)


def behaviour(runs: Sequence[RunBehaviour], orders: int, by_set: float, by_order: float) -> Behaviour:
    """The summary of runs, intervals made up around it."""
    share = statistics.mean([each.majority_share > 0.9 for each in runs if each.majority_share is not None])
    sets = len(runs) // orders
    several = sets > 1
    residual = 0.002
    return Behaviour(
        accuracy=spread(runs, lambda each: each.accuracy),
        majority_share=spread(runs, lambda each: each.majority_share),
        entropy=spread(runs, lambda each: each.entropy),
        collapse_rate=Estimate(
            mean=share, ci95=(max(0, share - 0.1), min(1, share + 0.1)) if several else (None, None), n=len(runs)
        ),
        order_range=Estimate(mean=by_order * 2 if orders > 1 else None, ci95=(None, None), n=sets),
        variance=(
            VarianceSplit(
                set=by_set**2,
                order=by_order**2 if orders > 1 else None,
                residual=residual,
                total=by_set**2 + by_order**2 * (orders > 1) + residual,
                set_ci95=(by_set**2 * 0.5, by_set**2 * 1.6),
                order_ci95=(by_order**2 * 0.7, by_order**2 * 1.2) if orders > 1 else (None, None),
            )
            if several
            else None
        ),
    )


def spread(runs: Sequence[RunBehaviour], of: Callable[[RunBehaviour], float | None]) -> Spread:
    """How a number is spread over runs."""
    values = sorted(value for each in runs if (value := of(each)) is not None)
    sd = statistics.stdev(values) if len(values) > 1 else None
    quarters = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Spread(
        mean=statistics.mean(values),
        sd=sd,
        sd_ci95=(None, None) if sd is None else (0.8 * sd, 1.25 * sd),
        low=values[0],
        q25=quarters[0],
        median=quarters[1],
        q75=quarters[2],
        high=values[-1],
        n=len(values),
    )


def contrast(
    learner: str,
    sd_first: float | None,
    sd_second: float | None,
    ratio: float | None,
    ci95: tuple[float | None, float | None],
    first: str,
    second: str | None = None,
    *,
    question: str = "ft_beside_icl",
    calibrated: bool = False,
) -> Contrast:
    """One spread beside another."""
    return Contrast(
        question=question,
        learner=learner,
        first=first,
        second=second or first,
        sd_first=sd_first,
        sd_second=sd_second,
        ratio=ratio,
        ci95=ci95,
        n=8,
        calibrated=calibrated,
    )
