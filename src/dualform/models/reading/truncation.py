"""Truncating the texts of a task that are too long for a context."""

from dataclasses import replace

from dualform.models.reading.encoding import Encoder
from dualform.models.reading.layout import Query
from dualform.tasks.task import Example, Task


def n_tokens(query: Query) -> int:
    """Number of tokens of a query's prompt with its longest answer."""
    return len(query.prompt) + max(map(len, query.answers), default=0)


def truncate_examples(task: Task, encoder: Encoder, room: int) -> tuple[Task, int]:
    """Truncate the examples of a task to at most `room` tokens, prompt and answer together.

    The longest fields of the prompt are cut at their end; the template's own words stay. An example for which this is
    not enough is left unchanged.

    Args:
        task: The task.
        encoder: Its encoder.
        room: Largest number of tokens of an example.

    Returns:
        The truncated task, and the number of examples that were cut.
    """
    n_cut = 0
    splits = {}
    for name, examples in task.splits.items():
        kept = []
        for example in examples:
            cut = _truncate_example(task, encoder, example, room)
            n_cut += cut is not example
            kept.append(cut)
        splits[name] = tuple(kept)
    return replace(task, splits=splits), n_cut


def _truncate_example(task: Task, encoder: Encoder, example: Example, room: int) -> Example:
    # A text has at most as many tokens as bytes, so most examples need not be encoded.
    answers = max((len(text.encode()) for text in task.answers(example)), default=0)
    if len(task.template.render(example).encode()) + encoder.n_template_tokens + answers <= room:
        return example
    if n_tokens(encoder.query(example)) <= room:
        return example
    short_enough, too_long = 0, max(len(example.fields[name]) for name in task.template.fields)
    while too_long - short_enough > 1:
        length = (short_enough + too_long) // 2
        shortened = _shortened(task, example, length)
        if shortened is not None and n_tokens(encoder.query(shortened)) <= room:
            short_enough = length
        else:
            too_long = length
    return (_shortened(task, example, short_enough) if short_enough else None) or example


def _shortened(task: Task, example: Example, length: int) -> Example | None:
    """`example` with at most `length` characters in each field of the prompt; None if a field would become empty."""
    fields = dict(example.fields)
    for name in task.template.fields:
        fields[name] = fields[name][:length].rstrip() if len(fields[name]) > length else fields[name]
        if not fields[name].strip():
            return None
    return replace(example, fields=fields)
