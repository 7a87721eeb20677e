"""A folding study as compact tables for the terminal, at most 80 columns wide."""

from rich.table import Table
from rich.text import Text

from dualform.report.numerals import MISSING, finite, percent, percent_interval
from dualform.report.palette import learner_style
from dualform.report.phrases import difference, difference_interval, hundredths, share, share_interval
from dualform.result import Estimate, Result
from dualform.studies.against_words import recovered_share
from dualform.studies.baseline_words import baseline_rows
from dualform.studies.folding.words import axes_in_order, axis_heading, axis_name, parts_name, points_on


def folding_tables(result: Result) -> list[Table]:
    """All tables that have rows, in the order of reading; none without a folding study."""
    if result.folding is None:
        return []
    axes = axes_in_order(result.folding)
    tables = [levels_table(result), *(axis_table(result, axis) for axis in axes)]
    return [table for table in [*tables, transfer_table(result), compositions_table(result)] if table.row_count]


def levels_table(result: Result) -> Table:
    """Accuracy of zero-shot, ICL and FT, beside which the folds are read."""
    table = Table(title="Accuracy without a fold", title_justify="left")
    table.add_column("learner", overflow="fold")
    for name in ("accuracy", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for key, each in reference_levels(result).items():
        table.add_row(Text(learner_style(key).title), share(each), share_interval(each))
    for name, level in baseline_rows(result):
        table.add_row(Text(name), percent(level), "", style="italic")
    return table


def reference_levels(result: Result) -> dict[str, Estimate]:
    """Zero-shot, ICL and, where it was asked for, FT."""
    if result.folding is None:
        return {}
    folding = result.folding
    return {"zsl": folding.zero_shot, "icl": folding.icl} | ({"ft": folding.ft} if folding.ft is not None else {})


def axis_table(result: Result, axis: str) -> Table:
    """The points of one axis: accuracy, that of ICL with the same demonstrations, agreement, share recovered."""
    points = points_on(result.folding, axis) if result.folding is not None else []
    plain = any(finite(point.perplexity_ratio) is not None for point in points)
    # Plain text: an unknown axis is named by the result.
    table = Table(title=Text(axis_heading(axis)), title_justify="left")
    table.add_column(Text(axis_name(axis)), overflow="fold")
    for name in ("accuracy", "95 % interval", "ICL", "as ICL", "recovered"):
        table.add_column(name, justify="right", no_wrap=True)
    if plain:
        table.add_column("perpl.\nratio", justify="right", no_wrap=True)
    for point in points:
        table.add_row(
            Text(point.value),
            share(point.accuracy),
            share_interval(point.accuracy),
            share(point.icl),
            share(point.agreement),
            recovered_share(point),
            *([hundredths(point.perplexity_ratio)] if plain else []),
        )
    return table


def transfer_table(result: Result) -> Table:
    """Other tasks asked of the folded model, and the difference from the base model in points."""
    table = Table(title="Asked another task", title_justify="left")
    table.add_column("task", overflow="fold")
    for name in ("zero-shot", "folded", "difference", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in result.folding.transfer if result.folding is not None else []:
        table.add_row(
            Text(each.task),
            percent(each.zero_shot.mean),
            percent(each.folded.mean),
            difference(each.difference.mean),
            difference_interval(each.difference.ci95),
        )
    return table


def compositions_table(result: Result) -> Table:
    """Each sum of folds: accuracy on every task beside that of the task's own fold alone."""
    table = Table(title="Folds added up", title_justify="left")
    table.add_column("sum of", overflow="fold")
    table.add_column("task", overflow="fold")
    for name in ("sum", "95 % interval", "alone", "95 % interval"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in result.folding.compositions if result.folding is not None else []:
        for task, found in each.accuracy.items():
            alone = each.alone.get(task)
            table.add_row(
                Text(parts_name(each)),
                Text(task),
                percent(found.mean),
                percent_interval(found.ci95),
                percent(alone.mean) if alone is not None else MISSING,
                percent_interval(alone.ci95) if alone is not None else MISSING,
            )
    return table
