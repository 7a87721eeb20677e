"""A made-up but plausible folding study for the tests of its report."""

from typing import Any

from dualform.result import Estimate
from dualform.studies.folding.result import Composition, Folding, FoldingResult, FoldPoint, Perplexity, Transfer

Numbers = tuple[float | None, float | None, float | None]
"""Mean and both ends of the interval."""

NOTHING: Numbers = (None, None, None)


def example_folding(**changes: Any) -> FoldingResult:
    """Every axis, other tasks and sums of folds; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "dualform": "0.1.0",
        "study": "folding",
        "config": {"model": "smollm2-135m", "task": "reviews", "seeds": [1, 2, 3, 4, 5]},
        "environment": {"python": "3.12.3", "device": "cpu", "seconds": 1512.3},
        "model": {"name": "smollm2-135m", "parameters": 134_515_008, "n_layers": 30},
        "task": {
            "name": "reviews",
            "label_words": [" Negative", " Positive"],
            "prompt": "Review: a masterpiece of the obvious\nSentiment:",
            "n_report": 400,
            "report_split": "test",
        },
        "folding": study(),
    }
    return FoldingResult(**(fields | changes))


def study(**changes: Any) -> Folding:
    """The folding part of the example; `changes` replace whole fields."""
    fields: dict[str, Any] = {
        "zero_shot": estimate((0.57, 0.54, 0.6)),
        "icl": estimate((0.722, 0.69, 0.754)),
        "ft": estimate((0.684, 0.66, 0.71)),
        "points": [*_methods(), *_sources(), *_scales(), *_layers()],
        "perplexity": perplexity((1.043, 1.021, 1.066)),
        "transfer": [
            transfer("tweets", 0.61, (0.052, 0.021, 0.083)),
            transfer("agnews", 0.46, (-0.08, -0.11, -0.05)),
            transfer("subj", 0.72, (0.004, -0.02, 0.028)),
        ],
        "compositions": [
            composition(["reviews", "agnews"], {"reviews": (0.66, 0.71), "agnews": (0.7, 0.72)}),
            composition(["reviews", "tweets", "products"], {"reviews": (0.7, 0.71), "tweets": (0.69, 0.68)}),
        ],
    }
    return Folding(**(fields | changes))


def point(axis: str, value: str, accuracy: Numbers = (0.7, 0.67, 0.73), **changes: Any) -> FoldPoint:
    """One way of folding, with this accuracy."""
    mean = accuracy[0]
    fields: dict[str, Any] = {
        "axis": axis,
        "value": value,
        "accuracy": estimate(accuracy),
        "icl": estimate((0.722, 0.69, 0.754)),
        "agreement": estimate(NOTHING if mean is None else (mean + 0.15, mean + 0.12, mean + 0.18)),
        "recovered": estimate(NOTHING if mean is None else ((mean - 0.57) / 0.152, 0.2, 1.1)),
    }
    return FoldPoint(**(fields | changes))


def around(mean: float, half: float = 0.03) -> Numbers:
    """A mean in the middle of its interval."""
    return mean, mean - half, mean + half


def perplexity(ratio: Numbers) -> Perplexity:
    """What a fold with this ratio does to plain text."""
    after = None if ratio[0] is None else 18.2 * ratio[0]
    return Perplexity(
        source="plain.txt", tokens=20_480, before=18.2, after=estimate((after, None, None)), ratio=estimate(ratio)
    )


def transfer(task: str, zero_shot: float, difference: Numbers) -> Transfer:
    """Another task, and the difference that the fold makes there."""
    return Transfer(
        task=task,
        zero_shot=estimate(around(zero_shot)),
        folded=estimate(around(zero_shot + (difference[0] or 0.0))),
        difference=estimate(difference),
    )


def composition(parts: list[str], scores: dict[str, tuple[float, float]], half: float = 0.02) -> Composition:
    """A sum of folds; task -> accuracy of the sum, and of its own fold alone."""
    return Composition(
        parts=parts,
        accuracy={task: estimate(around(both, half)) for task, (both, _) in scores.items()},
        alone={task: estimate(around(alone, half)) for task, (_, alone) in scores.items()},
    )


def estimate(numbers: Numbers) -> Estimate:
    """Mean and interval."""
    return Estimate(mean=numbers[0], ci95=(numbers[1], numbers[2]), n=2000)


def _methods() -> list[FoldPoint]:
    known = {"adapt_flops": 4e12, "query_tokens": 31.2}
    return [
        point("method", "ridge", around(0.712), perplexity_ratio=1.043, strength=0.1, **known),
        point("method", "ridge, last token", around(0.61), perplexity_ratio=1.31, strength=0.08, **known),
        point("method", "thought vector", around(0.575), perplexity_ratio=1.02, **known),
        point("method", "task vector", around(0.69), **known),
        point("method", "MeZO", around(0.6), perplexity_ratio=1.004, adapt_flops=9e13, query_tokens=31.2),
        point("method", "KV momentum", around(0.724), query_tokens=1158, note="A query still reads the prompt's keys."),
    ]


def _sources() -> list[FoldPoint]:
    return [
        point("source", "train", around(0.712)),
        point("source", "generated", around(0.704)),
        point("source", "wiki.txt", around(0.62)),
    ]


def _scales() -> list[FoldPoint]:
    k = [
        point("k", str(shots), around(0.58 + 0.025 * place), icl=estimate(around(0.6 + 0.024 * place)))
        for place, shots in enumerate((2, 4, 8, 16, 32, 64))
    ]
    texts = [point("texts", f"{16 * 4**place:,}", around(0.62 + 0.03 * place)) for place in range(4)]
    strength = [
        point("strength", text, around(0.71 - 0.05 * abs(place - 2)), perplexity_ratio=1.4 - 0.09 * place)
        for place, text in enumerate(("0.001", "0.01", "0.1", "1", "10"))
    ]
    chosen = point("strength", "gcv", around(0.715), strength=0.03, perplexity_ratio=1.25)
    return [*k, *texts, *strength, chosen]


def _layers() -> list[FoldPoint]:
    return [
        point("layers", "all", around(0.712)),
        point("layers", "0 to 14", around(0.6)),
        point("layers", "15 to 29", around(0.66)),
    ]
