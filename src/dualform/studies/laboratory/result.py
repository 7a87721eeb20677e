"""Records of the laboratory's `result.json`."""

from typing import Literal, Self

from pydantic import model_validator

from dualform.result import Estimate, Record, Result


class Claim(Record):
    """A statement of theory with the value that was measured for it."""

    named_by = ()

    says: str
    """The claim, one sentence."""
    expected: str
    """Expected value with its tolerance, such as `below 1e-12` or `0.207 within 2 %`."""
    found: Estimate
    """Measured value; `n` counts seeds, and is 1 for a number that does not depend on the seed."""
    holds: bool
    """Whether the measured value is as expected."""
    must_fail: bool = False
    """Whether the case is constructed so that the claim is false. If it held all the same, the measure could not
    distinguish the claim from its opposite."""
    source: str = ""
    """arXiv id and section, or empty."""


class LabCurve(Record):
    """One line of a chart of the laboratory."""

    name: str
    """Name of the curve."""
    x: list[float]
    """Positions on the x axis."""
    y: list[Estimate]
    """Value at each `x`, over seeds."""
    reference: bool = False
    """Whether the curve belongs to an exact predictor, with which trained models are compared."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(self.x) != len(self.y):
            raise ValueError(
                f"the curve {self.name!r} has {len(self.x)} x and {len(self.y)} y; give an Estimate for each x, with "
                "mean None where there is no number"
            )
        return self


class LabChart(Record):
    """Curves over a common axis."""

    title: str
    """Title of the chart."""
    x: str
    """Title of the x axis, with its unit."""
    y: str
    """Title of the y axis, with its unit."""
    log_x: bool = False
    """Whether the x axis is logarithmic."""
    log_y: bool = False
    """Whether the y axis is logarithmic."""
    curves: list[LabCurve]
    """Curves of the chart."""
    note: str = ""
    """Note below the chart, or empty."""


class LabRow(Record):
    """One row of a table."""

    name: str
    """Name of the row."""
    cells: list[Estimate | None]
    """One a column; None where there is no number."""


class LabTable(Record):
    """Numbers with a name for each row and column."""

    title: str
    """Title of the table."""
    columns: list[str]
    """Names of the columns."""
    rows: list[LabRow]
    """Rows of the table."""
    note: str = ""
    """Note below the table, or empty."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        for row in self.rows:
            if len(row.cells) != len(self.columns):
                raise ValueError(
                    f"row {row.name!r} of the table {self.title!r} has {len(row.cells)} cells for {len(self.columns)} "
                    "columns; give one for each column, None where there is no number"
                )
        return self


class LabStudy(Record):
    """One study of the laboratory."""

    named_by = ("name",)

    name: str
    """`constructed`, `trained`, `phases`, `layers` or `shift`."""
    question: str
    """Question that the study answers."""
    answer: str
    """Answer in a sentence or two, with the main numbers."""
    claims: list[Claim] = []
    """Statements of theory, each with its measured value."""
    charts: list[LabChart] = []
    """Charts of the study."""
    tables: list[LabTable] = []
    """Tables of the study."""
    notes: list[str] = []
    """Remarks on what was left out, reduced or unusual."""


class Laboratory(Record):
    """Results of `dualform regress`."""

    studies: list[LabStudy]
    """Studies in the order in which they were run."""


class LaboratoryResult(Result):
    """Result of the laboratory."""

    study: Literal["regression"] = "regression"
    """Always `regression`."""
    laboratory: Laboratory | None = None
    """Results of `dualform regress`."""
