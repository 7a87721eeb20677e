"""Digest of a task's content, which may change while its name stays the same."""

import hashlib

from dualform.tasks.task import Task


def task_digest(task: Task) -> str:
    """Digest of a task's rows, labels, choices, prompt, label words and split roles.

    Returns:
        Sixteen hexadecimal digits, which do not depend on where the rows came from.
    """
    digest = hashlib.sha256()
    splits = (task.selection_split, task.report_split, task.paper_split)
    digest.update(repr((task.name, task.template, task.label_words, task.label_names, splits)).encode())
    for name in sorted(task.splits):
        digest.update(repr(name).encode())
        for example in task.splits[name]:
            fields = sorted(example.fields.items())
            digest.update(repr((example.row, example.label, example.choices, fields)).encode())
    return digest.hexdigest()[:16]
