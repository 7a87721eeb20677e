"""A synthetic task and a tiny model in float64, small enough for a comparison in a second."""

import csv
import dataclasses
import json
import random
from functools import cache
from pathlib import Path
from typing import Any

import torch

from dualform.models.reading.language_model import LanguageModel
from dualform.result import Result
from dualform.studies.comparison.config import ComparisonConfig, comparison_config
from dualform.studies.experiment import Experiment
from dualform.studies.pieces import Piece
from dualform.tasks.build import build_task
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task import Task
from tests.tiny import tiny_model, tiny_tokenizer

LABELS = ("negative", "positive")
_WORDS = (("cold", "tedious", "dull", "lifeless", "poor"), ("warm", "funny", "charming", "lively", "fine"))
N_TRAIN, N_SELECTION, N_REPORT = 34, 8, 18
"""Numbers of rows of `sentences()` in each split."""


def sentences(n: int = 60) -> list[tuple[str, str]]:
    """Pairs (text, label) with alternating labels; all texts differ, and have several lengths."""
    generator = random.Random(0)
    rows: dict[str, str] = {}
    while len(rows) < n:
        label = len(rows) % 2
        first, second = generator.sample(_WORDS[label], 2)
        ending = generator.choice(["", " with wit and grace", " told without charm", ", one of the year"])
        rows.setdefault(f"a {first} and {second} {generator.choice(['film', 'story', 'plot'])}{ending}", LABELS[label])
    return list(rows.items())


def write_csv(path: Path, text: str = "body", label: str = "topic") -> Path:
    """The sentences as a table."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([(text, label), *sentences()])
    return path


def write_choices(path: Path) -> Path:
    """A multiple-choice task: each row with two or three endings of its own."""
    rows = []
    for number, (text, label) in enumerate(sentences()):
        choices = [f"the {label} one", "works everywhere", "nothing"][: 2 + number % 2]
        rows.append({"goal": text, "choices": choices, "label": number % 2})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@cache
def small_task() -> Task:
    """The sentences as a task; its report split is `report`, its selection split `selection`."""
    rows = [{"text": text, "label": label} for text, label in sentences()]
    return build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), TaskOptions())


@cache
def long_and_short_task() -> Task:
    """The sentences with every fifth one long: in a small context some selections fit fewer demonstrations."""
    rows = [
        {"text": text + (" and so on" * 12 if number % 5 == 0 else ""), "label": label}
        for number, (text, label) in enumerate(sentences())
    ]
    return build_task(RawTask("toy", "a test", {"train": rows}, {"train": "toy.jsonl"}), TaskOptions())


@cache
def small_lm(family: str = "gpt2") -> LanguageModel:
    """A tiny model in float64, so that two computations of a number agree to many digits. Tests must not change it."""
    return LanguageModel.wrap(tiny_model(family, dtype=torch.float64), tiny_tokenizer(), f"tiny {family}")


def small_config(**changes: Any) -> ComparisonConfig:
    """Four demonstrations, two seeds, eight queries, one rate that changes the model visibly, the cheapest control."""
    settings: dict[str, Any] = {
        "k": 4,
        "seeds": (1, 2),
        "limit": 8,
        "selection_limit": 6,
        "learners": ("zsl", "icl", "ft"),
        "rates": (1e-2,),
        "resamples": 50,
        "controls": ("random",),
        # Rounding would take one more training per seed, which most tests do not need.
        "rounding": "none",
    }
    return comparison_config("tiny", "toy", **(settings | changes))


def small_experiment(family: str = "gpt2", **changes: Any) -> Experiment[ComparisonConfig]:
    """The setup of such a comparison."""
    return Experiment.of(small_config(**changes), small_lm(family), small_task())


def with_other_labels(task: Task, split: str) -> Task:
    """The task with every label of one split flipped."""
    flipped = tuple(dataclasses.replace(example, label=1 - example.label) for example in task.split(split))
    return dataclasses.replace(task, splits={**task.splits, split: flipped})


def numbers(result: Result) -> dict[str, Any]:
    """A result without the times, which may differ between two equal runs."""
    values = result.model_dump(mode="json", by_alias=True, exclude={"environment"})
    for cost in values["cost"].values():
        for name in ("adapt_seconds", "query_seconds", "search_seconds"):
            del cost[name]
    return values


class MemoryStore:
    """A store of pieces in memory."""

    def __init__(self) -> None:
        self.pieces: dict[str, Piece] = {}
        self.put_names: list[str] = []

    def get(self, name: str, inputs: str) -> Piece | None:
        piece = self.pieces.get(name)
        return piece if piece is not None and piece.inputs == inputs else None

    def put(self, piece: Piece) -> None:
        self.pieces[piece.name] = piece
        self.put_names.append(piece.name)


class RecordedProgress:
    """Progress that records how far it came."""

    def __init__(self) -> None:
        self.total = 0.0
        self.done = 0.0

    def start(self, total: float) -> None:
        self.total = self.done + total if self.total else total

    def advance(self, amount: float, doing: str) -> None:
        self.done += amount
