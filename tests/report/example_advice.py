"""Made-up but plausible advice for the tests of its report."""

from typing import Any

from dualform.result import Accuracy, Estimate, LabelCount
from dualform.studies.advice.result import Advice, AdvicePoint, AdviceResult, BreakEven, Recommendation

BUDGETS = [8, 32, 128]
MEANS = {
    "zsl": [0.57, 0.57, 0.57],
    "icl": [0.72, 0.78, 0.79],
    "lora": [0.61, 0.74, 0.86],
    "tfidf": [0.52, 0.6, 0.71],
}
QUERY_FLOPS = {"zsl": 8e9, "icl": 1.1e10, "lora": 8e9, "tfidf": 0.0}


def example_advice(**changes: Any) -> AdviceResult:
    """Three budgets: prompting wins with 8 and 32 labels, LoRA with 128; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "advice",
        "config": {"model": "smollm2-135m", "task": "reviews", "seeds": [1, 2, 3], "budgets": BUDGETS},
        "environment": {"python": "3.12.3", "device": "cpu", "seconds": 941.2},
        "model": {"name": "smollm2-135m"},
        "task": {
            "name": "reviews",
            "source": "vaderSentiment 2.5",
            "label_words": [" Negative", " Positive"],
            "prompt": "Review: a masterpiece of the obvious\nSentiment:",
            "n_report": 200,
            "report_split": "test",
        },
        "advice": Advice(
            budgets=BUDGETS,
            curves={name: [_point(name, place) for place in range(len(BUDGETS))] for name in MEANS},
            recommendations=[_recommendation(place) for place in range(len(BUDGETS))],
            break_even=BreakEven(prompting="icl", training="lora", labels=128, labels_with_spread=128),
        ),
        "warnings": ["Bootstrap intervals over only 3 demonstration seeds are somewhat too narrow."],
    }
    return AdviceResult(**(fields | changes))


def _point(name: str, place: int) -> AdvicePoint:
    mean, n = MEANS[name][place], BUDGETS[place]
    accuracy = Accuracy(
        mean=mean,
        ci95=(mean - 0.05, mean + 0.05),
        n=600,
        per_seed={str(seed): mean + (seed - 2) / 50 for seed in (1, 2, 3)},
        macro_f1=Estimate(mean=mean - 0.02, ci95=(mean - 0.07, mean + 0.03), n=600),
    )
    trained = n if name in ("lora", "tfidf") else 0
    in_prompt = min(n, 32) if name == "icl" else 0
    return AdvicePoint(
        labels=n,
        accuracy=accuracy,
        spread=0.02,
        log_loss=1.3 - mean,
        used=LabelCount(demonstrations=in_prompt, training=trained, settings=0, total=max(in_prompt, trained)),
        adapt_seconds=0.4 * n if name == "lora" else 0.2,
        adapt_flops=3e10 * n if name == "lora" else 1e10,
        query_seconds=0.001 if name == "tfidf" else 0.05,
        query_flops=QUERY_FLOPS[name],
    )


def _recommendation(place: int) -> Recommendation:
    best = "lora" if BUDGETS[place] == 128 else "icl"
    mean = MEANS[best][place]
    difference = mean - MEANS["icl"][place]
    return Recommendation(
        labels=BUDGETS[place],
        learner=best,
        accuracy=Estimate(mean=mean, ci95=(mean - 0.05, mean + 0.05), n=600),
        probability=0.93,
        as_good=["lora"] if BUDGETS[place] == 32 else [],
        over_prompting=Estimate(mean=difference, ci95=(0.01, 0.12), n=600) if best == "lora" else None,
        regret=0.006,
        regret_of={name: MEANS[best][place] - MEANS[name][place] for name in MEANS},
    )
