"""Texts that are longer than a context has room for, cut at their end."""

from dataclasses import replace

from dualform.models.reading.encoding import Encoder
from dualform.models.reading.layout import Query
from dualform.tasks.task import Example, Task


def n_tokens(query: Query) -> int:
    """Tokens of a query's prompt with its longest answer."""
    return len(query.prompt) + max(map(len, query.answers), default=0)


def truncated(task: Task, encoder: Encoder, room: int) -> tuple[Task, int]:
    """A task none of whose examples takes more than `room` tokens, prompt and answer together.

    Of an example that is too long, the longest fields that the prompt shows are cut at their end; the prompt's own
    words stay. One that is too long even so is left as it is.

    Args:
        task: The task.
        encoder: Its encoder.
        room: Tokens.

    Returns:
        The task, and how many of its examples were cut.
    """
    n_cut = 0
    splits = {}
    for name, examples in task.splits.items():
        kept = []
        for example in examples:
            cut = _cut(task, encoder, example, room)
            n_cut += cut is not example
            kept.append(cut)
        splits[name] = tuple(kept)
    return replace(task, splits=splits), n_cut


def _cut(task: Task, encoder: Encoder, example: Example, room: int) -> Example:
    # No tokenizer makes more tokens of a text than it has bytes, so that most need not be encoded to be seen to fit.
    answers = max((len(text.encode()) for text in task.answers(example)), default=0)
    if len(task.template.render(example).encode()) + answers <= room:
        return example
    if n_tokens(encoder.query(example)) <= room:
        return example
    fits, too_long = 0, max(len(example.fields[name]) for name in task.template.fields)
    while too_long - fits > 1:
        length = (fits + too_long) // 2
        shortened = _shortened(task, example, length)
        if shortened is not None and n_tokens(encoder.query(shortened)) <= room:
            fits = length
        else:
            too_long = length
    return (_shortened(task, example, fits) if fits else None) or example


def _shortened(task: Task, example: Example, length: int) -> Example | None:
    """`example` with at most `length` characters in each shown field; None where one of them would be empty."""
    fields = dict(example.fields)
    for name in task.template.fields:
        fields[name] = fields[name][:length].rstrip() if len(fields[name]) > length else fields[name]
        if not fields[name].strip():
            return None
    return replace(example, fields=fields)
