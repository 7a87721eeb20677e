"""A tiny model with a small task, encoded: what every learner needs."""

from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from dualform.learners.adapted import Adapted
from dualform.models.reading.capture import Recording
from dualform.models.reading.encoding import EncodedDemonstrations, Encoder
from dualform.models.reading.language_model import LanguageModel
from dualform.models.reading.layout import Query
from dualform.tasks.demonstrations import Demonstrations
from dualform.tasks.task import Task
from tests.models.sentiment import sentiment, some_demonstrations
from tests.tiny import tiny_model, tiny_tokenizer

FAMILIES = ("llama", "gpt2", "xglm", "gemma3")
EVERYTHING = Recording(**{field.name: True for field in fields(Recording)})


@dataclass(frozen=True)
class Setting:
    """Model, task and data of a test."""

    lm: Any
    """A `LanguageModel`; Any, because tests use many attributes that may be None."""
    task: Task
    encoder: Encoder
    chosen: Demonstrations
    demonstrations: EncodedDemonstrations
    queries: tuple[Query, ...]
    labels: tuple[int, ...]


def fresh(family: str, label_words: tuple[str, ...] = ("positive", "lukewarm"), k: int = 4, **changes: Any) -> Setting:
    """A new model; one label word is several tokens."""
    return setting_of(
        replace(LanguageModel.wrap(tiny_model(family), tiny_tokenizer(), family), **changes), label_words, k
    )


def setting_of(lm: LanguageModel, label_words: tuple[str, ...] = ("positive", "lukewarm"), k: int = 4) -> Setting:
    """The same setting for a given model."""
    task = sentiment(label_words)
    encoder = Encoder(lm, task)
    chosen = some_demonstrations(task, k)
    examples = task.split("test")
    return Setting(
        lm,
        task,
        encoder,
        chosen,
        encoder.demonstrations(chosen),
        tuple(encoder.query(example) for example in examples),
        tuple(example.label for example in examples),
    )


def readings(adapted: Adapted, setting: Setting) -> list[Any]:
    """All readings, group by group."""
    groups = setting.lm.groups(setting.queries)
    return [adapted.read_group(setting.queries, indices, EVERYTHING) for indices in groups]


def assert_same_readings(actual: list[Any], expected: list[Any]) -> None:
    """Check that readings and traces are equal, bit for bit."""
    assert len(actual) == len(expected)
    for reading, other in zip(actual, expected, strict=True):
        assert reading.queries == other.queries
        for name in ("log_probabilities", "next_token", "hidden"):
            assert torch.equal(getattr(reading, name), getattr(other, name)), name
        first, second = reading.trace.by_example(), other.trace.by_example()
        assert first.keys() == second.keys()
        for name, record in first.items():
            assert torch.equal(record, second[name]), name
