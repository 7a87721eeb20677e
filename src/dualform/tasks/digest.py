"""What tells one task from another: a file may change while its name stays."""

import hashlib

from dualform.tasks.task import Task


def task_digest(task: Task) -> str:
    """Digest of all that a study can read of a task: rows, labels, choices, prompt, label words, the splits' parts.

    Returns:
        Sixteen hexadecimal digits. Where the rows came from is not in it: the same rows are the same task.
    """
    found = hashlib.sha256()
    splits = (task.selection_split, task.report_split, task.paper_split)
    found.update(repr((task.name, task.template, task.label_words, task.label_names, splits)).encode())
    for name in sorted(task.splits):
        found.update(repr(name).encode())
        for example in task.splits[name]:
            fields = sorted(example.fields.items())
            found.update(repr((example.row, example.label, example.choices, fields)).encode())
    return found.hexdigest()[:16]
