"""A source of tasks: which of two numbers is larger? `larger` has all pairs below 10, `larger:50` all below 50."""

from dualform.errors import TaskError
from dualform.tasks.options import TaskOptions
from dualform.tasks.raw import RawTask
from dualform.tasks.task_source import TaskSource, TaskSummary


class Larger(TaskSource):
    name = "larger"

    def read(self, which, options):
        if not (which or "10").isdecimal():
            raise TaskError(f"larger:{which} should be larger:NUMBER, such as larger:50 for all pairs below 50")
        below = int(which or 10)
        pairs = [(a, b) for a in range(below) for b in range(below) if a != b]
        rows = [{"text": f"{a} or {b}", "label": "first" if a > b else "second"} for a, b in pairs]
        return RawTask(
            name=f"larger-{below}",
            source="dualform-larger",
            rows={"train": rows},  # without a split to report on, load_task makes one
            files={"train": "pairs of numbers"},
            columns=TaskOptions(text="text", label="label"),
        )

    def tasks(self):
        return [TaskSummary("larger", "package dualform-larger", ("first", "second"), local=True)]


LARGER = Larger()
