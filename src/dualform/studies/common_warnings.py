"""Warnings that several studies share."""

from collections.abc import Mapping, Sequence

from dualform.report.phrases import plural


def few_demonstrations(k: int, fitted: Mapping[int, int], context: int) -> list[str]:
    """A warning where fewer demonstrations fit than were requested.

    Args:
        k: Demonstrations requested.
        fitted: Seed -> demonstrations that fit.
        context: Longest sequence, tokens.
    """
    if min(fitted.values()) >= k:
        return []
    seeds = ", ".join(f"seed {seed}: {n}" for seed, n in fitted.items())
    return [
        f"{k} demonstrations were requested, but fewer fit the context of {context} tokens next to the longest query "
        f"({seeds}). All learners use the same ones."
    ]


def few_seeds(n: int) -> list[str]:
    """A warning where intervals rest on fewer than eight demonstration seeds."""
    if n >= 8:
        return []
    return [f"Bootstrap intervals over only {plural(n, 'demonstration seed')} are somewhat too narrow."]


def low_precision(dtype: str) -> list[str]:
    """A warning where half precision hides small updates."""
    if dtype not in ("bfloat16", "float16"):
        return []
    return [f"The model ran in {dtype}: small updates are rounded away, so similarities are not reliable."]


def slow_route(route: str, refused: Sequence[str], model: str = "") -> list[str]:
    """A warning where faster routes through the model failed their self-check."""
    if not refused:
        return []
    start = f"{model} was" if model else "The model was"
    reasons = "; ".join(refused)
    return [f"{start} read by the slower route '{route}', since faster ones failed their self-check: {reasons}."]
