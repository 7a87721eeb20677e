"""Splits of labelled examples, for choosing settings inside them."""

import random
from collections.abc import Sequence
from typing import Literal

Selection = Literal["cross-validation", "prequential"]

FOLDS = 5
"""Folds of the cross-validation, or one for each label if there are fewer."""
FIRST_BLOCK = 2
"""Smallest number of examples to train on in the prequential protocol."""

Split = tuple[tuple[int, ...], tuple[int, ...]]
"""Indices of the labelled examples to train on, and of those to predict."""


def inner_splits(labels: Sequence[int], how: Selection, seed: int) -> list[Split]:
    """Splits of the labelled examples.

    Args:
        labels: Label of each example.
        how: `cross-validation` deals every class out among `FOLDS` folds, so that each example is predicted once.
            `prequential` predicts blocks of doubling size, each from all examples before it, so that all but the first
            block are predicted once.
        seed: Seed of the shuffle that precedes both.

    Returns:
        The splits; empty for fewer than two examples.

    Source:
        Prequential selection without a validation set: arXiv:2512.19879.
    """
    n = len(labels)
    if n < 2:
        return []
    shuffled = random.Random(f"{seed}/inner").sample(range(n), n)
    if how == "prequential":
        splits, known = [], min(FIRST_BLOCK, n - 1)
        while known < n:
            splits.append((tuple(sorted(shuffled[:known])), tuple(sorted(shuffled[known : 2 * known]))))
            known *= 2
        return splits
    # The classes one after the other, so that dealing them out gives every fold its share of each.
    by_class = sorted(shuffled, key=lambda index: labels[index])
    folds = [by_class[first :: min(FOLDS, n)] for first in range(min(FOLDS, n))]
    return [(tuple(sorted(set(range(n)) - set(fold))), tuple(sorted(fold))) for fold in folds]
