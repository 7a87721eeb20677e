"""What the laboratory found, as in its `result.json`."""

from typing import Literal, Self

from pydantic import model_validator

from dualform.result import Estimate, Record, Result


class Claim(Record):
    """Something that theory says, beside what was found."""

    named_by = ()

    says: str
    """The claim, one sentence."""
    expected: str
    """What should be found, with its tolerance, such as `below 1e-12` or `0.207 within 2 %`."""
    found: Estimate
    """What was found; `n` counts seeds, or is 1 for a number without chance."""
    holds: bool
    """Whether what was found is what was expected."""
    must_fail: bool = False
    """A case made so that the claim is false: then it must not hold, or the measure could not tell."""
    source: str = ""
    """arXiv id and section, or empty."""


class LabCurve(Record):
    """One line of a chart of the laboratory."""

    name: str
    """Name of the curve."""
    x: list[float]
    """Where it was evaluated."""
    y: list[Estimate]
    """Value at each `x`, over seeds."""
    reference: bool = False
    """Whether it is an exact predictor, with which trained models are compared."""

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
    """Name of the axis, with its unit."""
    y: str
    """Name of the axis, with its unit."""
    log_x: bool = False
    """Whether the axis is logarithmic."""
    log_y: bool = False
    """Whether the axis is logarithmic."""
    curves: list[LabCurve]
    """Its curves."""
    note: str = ""
    """A note below it, or empty."""


class LabRow(Record):
    """One row of a table."""

    name: str
    """Name of the row."""
    cells: list[Estimate | None]
    """One a column; None where there is no such number."""


class LabTable(Record):
    """Numbers with a name for each row and column."""

    title: str
    """Title of the table."""
    columns: list[str]
    """Names of the columns."""
    rows: list[LabRow]
    """Its rows."""
    note: str = ""
    """A note below it, or empty."""

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
    """What was asked."""
    answer: str
    """What the numbers say, in a sentence or two."""
    claims: list[Claim] = []
    """What theory says, and what was found."""
    charts: list[LabChart] = []
    """Its charts."""
    tables: list[LabTable] = []
    """Its tables."""
    notes: list[str] = []
    """What was left out, cut short or looked odd."""


class Laboratory(Record):
    """What `dualform regress` found."""

    studies: list[LabStudy]
    """Its studies, in the order in which they were run."""


class LaboratoryResult(Result):
    """What the laboratory found."""

    study: Literal["regression"] = "regression"
    """Always `regression`."""
    laboratory: Laboratory | None = None
    """What `dualform regress` found."""
