"""Warnings that several studies give in the same words."""

from collections.abc import Mapping, Sequence


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
        f"{k} demonstrations were asked for, but fewer fit the context of {context} tokens next to the longest query "
        f"({seeds}). All learners got these."
    ]


def few_seeds(n: int) -> list[str]:
    """A warning where intervals are taken over few demonstration seeds."""
    if n >= 8:
        return []
    return [f"{n} demonstration seeds: bootstrap intervals over so few are somewhat too narrow."]


def low_precision(dtype: str) -> list[str]:
    """A warning where half precision hides small updates."""
    if dtype not in ("bfloat16", "float16"):
        return []
    return [f"The model ran in {dtype}: small updates are rounded away, so similarities are not to be used."]


def slow_route(route: str, refused: Sequence[str], model: str = "") -> list[str]:
    """A warning where faster routes through the model failed their self-check."""
    if not refused:
        return []
    start = f"{model}: read" if model else "Read"
    return [f"{start} by the route '{route}', slower than others that failed: {'; '.join(refused)}."]
