"""A sweep as compact tables for the terminal, at most 80 columns wide for six learners."""

from rich.table import Table
from rich.text import Text

from dualform.report.numerals import MISSING
from dualform.report.palette import learner_style
from dualform.report.phrases import points
from dualform.result import Result
from dualform.runs.sweep_words import (
    accuracy_of,
    cells_by_status,
    compared,
    group_name,
    learners_of,
    slice_name,
    study_name,
)
from dualform.studies.comparison.words import collapsed
from dualform.sweep_result import SweepGroup, SweepResult

SHORT = {"zsl": "ZSL", "icl": "ICL", "ft": "FT", "probe": "probe", "fold": "fold"}
"""Names of learners in a narrow column; others keep their title."""


def sweep_tables(sweep: SweepResult) -> list[Table]:
    """All tables that have rows, in the order of reading."""
    return [table for table in (grid_table(sweep), studies_table(sweep), failures_table(sweep)) if table.row_count]


def grid_table(sweep: SweepResult) -> Table:
    """Accuracy of each learner, one row a group; the highest of a row is marked, and so is a collapse."""
    table = Table(title="Accuracy, % (* highest of its row, ! collapsed)", title_justify="left")
    table.add_column("model", overflow="fold")
    table.add_column("task", overflow="fold")
    learners = learners_of(compared(sweep))
    for key in learners:
        table.add_column(SHORT.get(key, learner_style(key).title), justify="right", overflow="fold")
    blocks: dict[str, list[SweepGroup]] = {}
    for group in sweep.groups:
        if group.result.accuracy if group.result is not None else study_name(group) == "comparison":
            blocks.setdefault(slice_name(group), []).append(group)
    for name, groups in blocks.items():
        for number, group in enumerate(groups):
            cells = [_cell(group.result, key) for key in learners]
            table.add_row(Text("" if number else name), Text(_task(group)), *cells)
    return table


def studies_table(sweep: SweepResult) -> Table:
    """Groups that are no comparisons, and whether each has a result."""
    table = Table(title="Other studies", title_justify="left")
    for name in ("study", "group", "result"):
        table.add_column(name, overflow="fold")
    for group in sweep.groups:
        if study_name(group) != "comparison":
            has = "no" if group.result is None else f"{group.name}/report.html"
            table.add_row(Text(study_name(group)), Text(group_name(group)), Text(has))
    return table


def failures_table(sweep: SweepResult) -> Table:
    """Cells that failed, with their message; tracebacks are on the page and in the store."""
    table = Table(title="What failed", title_justify="left")
    for name in ("group", "seed", "why"):
        table.add_column(name, overflow="fold")
    for cell in cells_by_status(sweep)["failed"]:
        why = cell.failure.message if cell.failure else "no reason was kept"
        table.add_row(Text(cell.group), Text(MISSING if cell.seed is None else str(cell.seed)), Text(why))
    return table


def _task(group: SweepGroup) -> str:
    return (group.task or MISSING) + ("" if not group.missing_seeds else f" ({len(group.missing_seeds)} missing)")


def _cell(result: Result | None, key: str) -> Text:
    mean = accuracy_of(key)(result) if result is not None else None
    if result is None or mean is None:
        return Text("")
    means = [value for each in result.accuracy if (value := accuracy_of(each)(result)) is not None]
    # Said in signs as well as in colour: a terminal may have none.
    highest, fallen = mean == max(means), key in collapsed(result)
    signs = ("*" if highest else "") + ("!" if fallen else "")
    return Text(points(mean) + signs, style="bold" if highest else "red" if fallen else "")
