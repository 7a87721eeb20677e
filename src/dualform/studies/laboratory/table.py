"""The laboratory's tables, each declared once for the terminal, the page, files and data frames."""

from dualform.report.numerals import MISSING, known
from dualform.report.table import Cell, Column, Row, Table
from dualform.result import Estimate
from dualform.studies.laboratory.result import LaboratoryResult, LabStudy, LabTable
from dualform.studies.laboratory.words import (
    as_it_should,
    count_sentence,
    counted,
    mark,
    number,
    number_interval,
)


def claim_tables(result: LaboratoryResult) -> list[Table]:
    """A table for each study that makes claims; none without a laboratory."""
    studies = result.laboratory.studies if result.laboratory is not None else []
    return [claim_table(study) for study in studies if study.claims]


def claim_table(study: LabStudy) -> Table:
    """What a study says, what was expected, what was found, and whether that agrees."""
    columns = (
        Column("claim"),
        Column("expected"),
        Column("found", "number", interval="below"),
        Column("n", "count", where="page"),
        Column("stands"),
    )
    rows = tuple(
        Row(
            (
                Cell(claim.says, notes=(claim.source,) if claim.source else ()),
                Cell(claim.expected),
                number_cell(claim.found),
                Cell(claim.found.n, "count"),
                # What is amiss can be seen without colour, too: the words say so.
                Cell(mark(claim), tone="good" if as_it_should(claim) else "bad"),
            )
        )
        for claim in study.claims
    )
    return Table(f"{study.name}: {study.question}", columns, rows, blocks=True)


def overview_table(result: LaboratoryResult, ids: list[str]) -> Table:
    """Each study with its question, its answer and how many of its claims hold.

    Args:
        result: The result.
        ids: The anchors of the studies on the page, in order.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    columns = (Column("study"), Column("question"), Column("claims"))
    rows = tuple(
        Row((Cell(study.name, link=f"#{name}"), Cell(study.question), Cell(count_sentence(counted(study.claims)))))
        for name, study in zip(ids, studies, strict=True)
    )
    return Table("Studies", columns, rows, blocks=True)


def lab_table(table: LabTable) -> Table:
    """A table as the study wrote it."""
    columns = (Column(""), *(Column(name, "number") for name in table.columns))
    rows = tuple(Row((Cell(row.name), *(number_cell(each) for each in row.cells))) for row in table.rows)
    return Table(table.title, columns, rows, note=table.note)


def number_cell(estimate: Estimate | None) -> Cell:
    """A number of the laboratory, from 1e-300 to 1e+300; a dash without one."""
    if estimate is None:
        return Cell(None, "number", shown=MISSING)
    interval = number_interval(estimate.ci95) if known(estimate.ci95) else None
    return Cell(estimate.mean, "number", estimate.ci95, estimate.n, number(estimate.mean), shown_interval=interval)
