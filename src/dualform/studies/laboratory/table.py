"""The laboratory's tables, each declared once for the terminal, the page, files and data frames."""

from dualform.report.numerals import MISSING, known
from dualform.report.table import Cell, Column, Row, Table
from dualform.result import Estimate
from dualform.studies.laboratory.result import LaboratoryResult, LabStudy, LabTable
from dualform.studies.laboratory.words import (
    as_expected,
    count_claims,
    count_sentence,
    number,
    number_interval,
    status,
)


def claim_tables(result: LaboratoryResult) -> list[Table]:
    """A table for each study that has claims."""
    studies = result.laboratory.studies if result.laboratory is not None else []
    return [claim_table(study) for study in studies if study.claims]


def claim_table(study: LabStudy) -> Table:
    """A study's claims, with the expected value, the measured value and whether the claim holds."""
    columns = (
        Column("claim"),
        Column("expected"),
        Column("measured", "number", interval="below"),
        Column("n", "count", where="page"),
        Column("status"),
    )
    rows = tuple(
        Row(
            (
                Cell(claim.says, notes=(claim.source,) if claim.source else ()),
                Cell(claim.expected),
                number_cell(claim.found),
                Cell(claim.found.n, "count"),
                # The words alone say what is wrong, for readers who cannot see the colour.
                Cell(status(claim), tone="good" if as_expected(claim) else "bad"),
            )
        )
        for claim in study.claims
    )
    return Table(f"{study.name}: {study.question}", columns, rows, blocks=True)


def overview_table(result: LaboratoryResult, ids: list[str]) -> Table:
    """Each study with its question, its answer and how many of its claims hold.

    Args:
        result: Result of the laboratory.
        ids: Anchors of the studies on the page, in order.
    """
    studies = result.laboratory.studies if result.laboratory is not None else []
    columns = (Column("study"), Column("question"), Column("claims"))
    rows = tuple(
        Row((Cell(study.name, link=f"#{name}"), Cell(study.question), Cell(count_sentence(count_claims(study.claims)))))
        for name, study in zip(ids, studies, strict=True)
    )
    return Table("Studies", columns, rows, blocks=True)


def lab_table(table: LabTable) -> Table:
    """A table of a study, ready to be rendered."""
    columns = (Column(""), *(Column(name, "number") for name in table.columns))
    rows = tuple(Row((Cell(row.name), *map(number_cell, row.cells))) for row in table.rows)
    return Table(table.title, columns, rows, note=table.note)


def number_cell(estimate: Estimate | None) -> Cell:
    """A cell in the format of `number`; a dash where the number is missing."""
    if estimate is None:
        return Cell(None, "number", override=MISSING)
    interval = number_interval(estimate.ci95) if known(estimate.ci95) else None
    return Cell(estimate.mean, "number", estimate.ci95, estimate.n, number(estimate.mean), shown_interval=interval)
