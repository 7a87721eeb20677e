import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualform.tasks.task import Example, Task, Template


def build(
    labels: Sequence[int],
    *,
    words: tuple[str, ...] | None = ("bad", "good"),
    choices: tuple[str, ...] | None = None,
    **changes: Any,
) -> Task:
    train = tuple(Example({"text": f"text {row}"}, label, row, choices) for row, label in enumerate(labels))
    settings: dict[str, Any] = {
        "name": "toy",
        "source": "a test",
        "splits": {
            "train": train,
            "validation": (Example({"text": "selected"}, 0, 0, choices),),
            "test": (Example({"text": "reported"}, 1, 0, choices),),
        },
        "template": Template("Text: {text}\nLabel:", "\n\n"),
        "label_words": words,
        "label_names": None,
        "selection_split": "validation",
        "report_split": "test",
    }
    return Task(**(settings | changes))


@pytest.fixture(scope="session")
def make_task() -> Callable[..., Task]:
    """A task whose train rows have the given labels."""
    return build


@pytest.fixture
def write_directory(tmp_path: Path) -> Callable[..., Path]:
    """Write `dataset.json` and the splits' files, in the format that public copies have."""

    def write(
        name: str,
        splits: Mapping[str, Sequence[Mapping[str, Any]]],
        label_names: Sequence[str] | None = ("negative", "positive"),
        **extra: Any,
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        about: dict[str, Any] = {"name": name, "label_names": label_names, "splits": {}}
        for split, rows in splits.items():
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
            about["splits"][split] = {"file": f"{split}.jsonl", "rows": len(rows)}
        (folder / "dataset.json").write_text(json.dumps(about | extra), encoding="utf-8")
        return folder

    return write


def numbered_rows(prefix: str, n: int, n_labels: int = 2) -> list[dict[str, Any]]:
    return [{"text": f"{prefix} {row}", "label": row % n_labels} for row in range(n)]


@pytest.fixture(scope="session")
def rows() -> Callable[..., list[dict[str, Any]]]:
    """`rows(prefix, n)`: n rows of different texts, labels in turn."""
    return numbered_rows
