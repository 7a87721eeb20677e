"""Warnings that several studies share."""

from collections.abc import Mapping, Sequence

from dualform.report.phrases import listed, plural
from dualform.result import FEWEST_FOR_INTERVAL


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


MOST_RARE_LABELS = 8
"""Most labels that a warning lists by name."""


def rare_labels(counts: Mapping[str, int]) -> list[str]:
    """A warning where fewer than `FEWEST_FOR_INTERVAL` of the reported queries have a label.

    Args:
        counts: Label word -> number of reported queries.
    """
    rare = {label: n for label, n in sorted(counts.items(), key=lambda item: item[1]) if n < FEWEST_FOR_INTERVAL}
    if not rare:
        return []
    named = [f"“{label.strip()}” ({n})" for label, n in list(rare.items())[:MOST_RARE_LABELS]]
    more = [plural(len(rare) - len(named), "other label")] if len(rare) > len(named) else []
    return [
        f"Fewer than {FEWEST_FOR_INTERVAL} reported queries have the label {listed([*named, *more])}: scores by class "
        "of such a label, and macro-F1 and balanced accuracy, which count all labels alike, are uncertain."
    ]
