"""The table of all answers to all queries, which a study saves as `examples.parquet`."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from torch import Tensor

from dualform.studies.facts import TaskDescription
from dualform.tasks.task import Example


@dataclass(frozen=True)
class AnswerRows:
    """One adapted model's answers to some queries."""

    about: Mapping[str, Any]
    """Column -> the value that all of these rows have."""
    examples: Sequence[Example]
    log_probabilities: Tensor
    """`(example, answer)`, nats per token."""
    more: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    """Column -> a value for each row."""


def answers_table(
    description: TaskDescription, blocks: Iterable[AnswerRows], types: Mapping[str, pa.DataType] | None = None
) -> pa.Table:
    """One row for each query of each block.

    Args:
        description: The task, which names the answers.
        blocks: Rows with the same columns in the same order.
        types: Types of columns that may hold only nulls.

    Returns:
        Columns of `about`; `query` (row number in its split's file), `label`, `prediction` (label numbers); columns of
        `more`; and one `log_probability:WORD` for each label (nats per token; null where a query has fewer choices).
    """
    blocks = list(blocks)
    names = [
        f"log_probability:{description.answer_name(i)}"
        for i in range(max(b.log_probabilities.shape[1] for b in blocks))
    ]
    types = {**dict.fromkeys(names, pa.float64()), **(types or {})}
    columns: dict[str, list[Any]] = {}
    for block in blocks:
        n_choices = [len(description.task.answers(example)) for example in block.examples]
        values = block.log_probabilities.tolist()
        rows: dict[str, Sequence[Any]] = {
            **{name: [value] * len(block.examples) for name, value in block.about.items()},
            "query": [example.row for example in block.examples],
            "label": [example.label for example in block.examples],
            "prediction": block.log_probabilities.argmax(dim=1).tolist(),
            **block.more,
        }
        for i, name in enumerate(names):
            rows[name] = [row[i] if i < n else None for row, n in zip(values, n_choices, strict=True)]
        for name, column in rows.items():
            columns.setdefault(name, []).extend(column)
    return pa.table({name: pa.array(column, types.get(name)) for name, column in columns.items()})
