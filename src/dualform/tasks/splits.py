"""Arrange a task's rows in three disjoint splits: demonstrations, selection and report.

Results on the rows that chose the learning rate would be too optimistic, and a query that also occurs among the
demonstrations could be copied instead of learned. Disjoint splits rule out both, whatever splits the source has.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dualform.errors import TaskError
from dualform.tasks.task import Example

REPORT_SHARE = 0.3
SELECTION_SHARE = 0.2
MOST_SELECTION_ROWS = 500


@dataclass(frozen=True)
class ArrangedSplits:
    """Splits that share no text."""

    splits: Mapping[str, tuple[Example, ...]]
    """`train`, the selection split, the report split."""
    selection_split: str
    report_split: str
    notes: tuple[str, ...]
    """Sentences that say which rows were held out or left out."""


def arrange_splits(source_splits: Mapping[str, Sequence[Example]], fields: Sequence[str], task: str) -> ArrangedSplits:
    """Make disjoint train, selection and report splits.

    - Report split: `test`, else `validation`, else 30 % of train, held out as `report`.
    - Selection split: `validation` unless that is the report split, else 20 % of train (1 to 500 rows), held out as
      `selection`.
    - A row whose text occurs in the report split is removed from the other two, and a row whose text occurs in the
      selection split is removed from train.
    - Rows are held out by the SHA-256 of their text, in proportion to the labels, so that neither a seed nor the order
      of the rows matters. Each label keeps at least one text in train.

    Args:
        source_splits: Splits of the source, named `train`, `validation` and `test`; only `train` is required.
        fields: Names of the fields that make up the text: those in the prompt.
        task: Name for messages.

    Returns:
        The splits, with order and row numbers as in the source.

    Raises:
        TaskError: There is no train split, there are too few rows to hold any out, or a split would be empty.
    """
    if not source_splits.get("train"):
        raise TaskError(
            f"task {task!r} has no train rows to draw demonstrations from. Its splits are: "
            f"{', '.join(source_splits) or 'none'}."
        )
    splits = {name: tuple(rows) for name, rows in source_splits.items() if name in ("train", "validation", "test")}
    notes = []

    def hold_out(name: str, share: float, most: int | None, reason: str) -> str:
        train = splits["train"]
        splits["train"], splits[name] = _split_off(train, fields, share, most, f"task {task!r}: cannot make {reason}")
        notes.append(
            f"The {name} split consists of {len(splits[name])} of the {len(train)} rows of train, held out by the "
            "hash of their text because the source has no split for it; row numbers are those of train."
        )
        return name

    def leave_out(name: str, others: Sequence[str]) -> None:
        taken = {text_of(example, fields) for other in others for example in splits[other]}
        kept = tuple(example for example in splits[name] if text_of(example, fields) not in taken)
        dropped = len(splits[name]) - len(kept)
        if not kept:
            raise TaskError(
                f"task {task!r}: every text of {name} also occurs in {' or '.join(others)}, so no row of {name} is "
                "left. Give the splits different rows."
            )
        if dropped:
            notes.append(
                f"Left out of {name}: {dropped} of {len(splits[name])} rows, whose text also occurs in "
                f"{' or '.join(others)}."
            )
        splits[name] = kept

    if splits.get("test"):
        report_split = "test"
    elif splits.get("validation"):
        report_split = "validation"
    else:
        report_split = hold_out("report", REPORT_SHARE, None, "a report split")
    if report_split != "validation" and splits.get("validation"):
        selection_split = "validation"
        leave_out("validation", [report_split])
        leave_out("train", [report_split, "validation"])
    else:
        leave_out("train", [report_split])
        selection_split = hold_out("selection", SELECTION_SHARE, MOST_SELECTION_ROWS, "a selection split")
    roles = ("train", selection_split, report_split)
    return ArrangedSplits({name: splits[name] for name in roles}, selection_split, report_split, tuple(notes))


def text_of(example: Example, fields: Sequence[str]) -> str:
    """Text that identifies an example: the values of `fields`, ignoring white space and their order."""
    # Sorted values rather than the rendered prompt: another wording must not move rows between splits.
    return json.dumps(sorted(" ".join(example.fields[name].split()) for name in fields))


def _split_off(
    train: tuple[Example, ...], fields: Sequence[str], share: float, most: int | None, failure: str
) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Divide train into (remaining, held out); rows with equal texts stay together."""
    texts_of_label: dict[int, list[str]] = {}
    seen = set()
    texts = [text_of(example, fields) for example in train]
    for example, text in zip(train, texts, strict=True):
        if text not in seen:
            seen.add(text)
            texts_of_label.setdefault(example.label, []).append(text)
    wanted = max(1, round(share * len(seen)))
    held_out = set()
    for label, quota in _quotas({label: len(texts) for label, texts in texts_of_label.items()}, wanted, most).items():
        by_hash = sorted(texts_of_label[label], key=lambda text: hashlib.sha256(text.encode()).digest())
        held_out.update(by_hash[:quota])
    if not held_out:
        raise TaskError(
            f"{failure}: train has {len(train)} rows with {len(seen)} different texts and {len(texts_of_label)} "
            "labels, and each label must keep one text. Add rows, or give a validation and a test split."
        )
    stays = tuple(example for example, text in zip(train, texts, strict=True) if text not in held_out)
    return stays, tuple(example for example, text in zip(train, texts, strict=True) if text in held_out)


def _quotas(counts: Mapping[int, int], wanted: int, most: int | None) -> dict[int, int]:
    """Number of texts of each label to hold out: `wanted` in proportion to `counts`, leaving one of each label."""
    wanted = wanted if most is None else min(wanted, most)
    total = sum(counts.values())
    exact = {label: wanted * count / total for label, count in counts.items()}
    quotas = {label: min(int(exact[label]), counts[label] - 1) for label in counts}
    by_remainder = sorted(counts, key=lambda label: (quotas[label] - exact[label], label))
    missing = wanted - sum(quotas.values())
    while missing > 0 and any(quotas[label] < counts[label] - 1 for label in counts):
        for label in by_remainder:
            if missing > 0 and quotas[label] < counts[label] - 1:
                quotas[label] += 1
                missing -= 1
    return quotas
