"""The tables of a folding study, for the terminal, the page, files and data frames."""

from dualform.report.numerals import count, finite, known, scaled
from dualform.report.phrases import is_undefined
from dualform.report.table import BLANK, Cell, Column, Row, Table, estimate_cell, learner_row, without_columns
from dualform.result import Estimate
from dualform.studies.against_words import recovered_share
from dualform.studies.baseline_words import baseline_rows
from dualform.studies.folding.result import FoldingResult, FoldPoint
from dualform.studies.folding.words import axes_in_order, axis_heading, axis_name, join_part_names, points_on


def tables(result: FoldingResult) -> list[Table]:
    """All tables with rows, in page order; none without a folding study."""
    if result.folding is None:
        return []
    axes = axes_in_order(result.folding)
    tables = [levels_table(result), *(axis_table(result, axis) for axis in axes)]
    return [table for table in [*tables, transfer_table(result), compositions_table(result)] if table]


def levels_table(result: FoldingResult) -> Table:
    """Accuracy of zero-shot, ICL and FT, with which the folds are compared."""
    columns = (Column("learner"), Column("accuracy", "share", interval=True), Column("n", "count", where="page"))
    rows = [
        learner_row(key, estimate_cell(each, "share"), Cell(each.n, "count"))
        for key, each in reference_levels(result).items()
    ]
    levels = [
        Row((Cell(name), Cell(level, "share"), BLANK), style="reference") for name, level in baseline_rows(result)
    ]
    return Table("Accuracy without a fold", columns, tuple(rows + levels) if rows else ())


def reference_levels(result: FoldingResult) -> dict[str, Estimate]:
    """Accuracy of zero-shot, ICL and, if it was run, FT."""
    if result.folding is None:
        return {}
    folding = result.folding
    return {"zsl": folding.zero_shot, "icl": folding.icl} | ({"ft": folding.ft} if folding.ft is not None else {})


def axis_table(result: FoldingResult, axis: str) -> Table:
    """The points of one axis, with ICL's accuracy for the same demonstrations."""
    points = points_on(result.folding, axis) if result.folding is not None else []
    columns = (
        Column(axis_name(axis)),
        Column("accuracy", "share", interval=True),
        # If ICL's accuracy is the same for all points, the page shows it in the table of levels.
        Column("ICL", "share", where="everywhere" if _icl_varies(result, points) else "terminal"),
        Column("agreement with ICL", "share", short="like ICL"),
        Column("recovered", "share"),
        Column("ridge strength", "number", where="page"),
        Column("cost of folding, TFLOP", "number", where="page"),
        Column("tokens per query", "count", where="page"),
        Column("perplexity ratio", "ratio", short="perpl.\nratio"),
    )
    rows = tuple(
        Row(
            (
                Cell(point.value, notes=(point.note,) if point.note else ()),
                estimate_cell(point.accuracy, "share"),
                estimate_cell(point.icl, "share"),
                estimate_cell(point.agreement, "share"),
                _recovered(point),
                _where_known(point.strength, Cell(point.strength, "number")),
                _where_known(point.adapt_flops, Cell(scaled(point.adapt_flops, 1e-12), "number")),
                _where_known(point.query_tokens, Cell(point.query_tokens, "count")),
                _where_known(point.perplexity_ratio, Cell(point.perplexity_ratio, "ratio")),
            )
        )
        for point in points
    )
    table = Table(
        axis_heading(axis), columns, rows, note=f"n = {_n(points)}. The configuration lists the other settings."
    )
    filled = {
        "ridge strength": [point.strength for point in points],
        "cost of folding, TFLOP": [point.adapt_flops for point in points],
        "tokens per query": [point.query_tokens for point in points],
        "perplexity ratio": [point.perplexity_ratio for point in points],
    }
    return without_columns(table, [name for name, values in filled.items() if not any(map(_known, values))])


def _icl_varies(result: FoldingResult, points: list[FoldPoint]) -> bool:
    return result.folding is not None and any(point.icl != result.folding.icl for point in points)


def _known(value: object) -> bool:
    return finite(value) is not None


def _where_known(value: object, cell: Cell) -> Cell:
    return cell if _known(value) else BLANK


def _recovered(point: FoldPoint) -> Cell:
    defined = known(point.recovered.ci95) and not is_undefined(point.recovered)
    interval = point.recovered.ci95 if defined else None
    return Cell(point.recovered.mean, "share", interval, point.recovered.n, recovered_share(point))


def _n(points: list[FoldPoint]) -> str:
    n = [point.accuracy.n for point in points]
    return "" if not n else count(n[0]) if min(n) == max(n) else f"{count(min(n))} to {count(max(n))}"


def transfer_table(result: FoldingResult) -> Table:
    """Accuracy of the folded model on other tasks, and its difference from the base model in points."""
    columns = (
        Column("task"),
        Column("base model, zero-shot", "share", short="zero-shot"),
        Column("folded", "share"),
        Column("difference, points", "difference", short="difference", interval=True),
    )
    rows = tuple(
        Row(
            (
                Cell(each.task),
                estimate_cell(each.zero_shot, "share"),
                estimate_cell(each.folded, "share"),
                estimate_cell(each.difference, "difference"),
            )
        )
        for each in (result.folding.transfer if result.folding is not None else [])
    )
    return Table("Other tasks", columns, rows)


def compositions_table(result: FoldingResult) -> Table:
    """Accuracy of each sum of folds on every task, and that of the task's own fold alone."""
    columns = (
        Column("sum of"),
        Column("task"),
        Column("sum", "share", interval=True),
        Column("alone", "share", interval=True),
    )
    rows = tuple(
        Row(
            (
                Cell(join_part_names(each)),
                Cell(task),
                estimate_cell(accuracy, "share"),
                estimate_cell(each.alone[task], "share") if task in each.alone else Cell(None, "share"),
            )
        )
        for each in (result.folding.compositions if result.folding is not None else [])
        for task, accuracy in each.accuracy.items()
    )
    return Table("Sums of folds", columns, rows)
