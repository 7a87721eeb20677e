"""The laboratory: small models on in-context regression, where theory predicts the numbers.

Each study answers one question and has its own module. This module runs the chosen studies in order and collects their
claims, charts and tables into one result.
"""

import importlib
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import ModuleType
from typing import Any

import pyarrow as pa

from dualform._version import __version__
from dualform.models.reading.ordinary import ordinary_torch
from dualform.progress import Progress, SilentProgress
from dualform.result import Estimate
from dualform.studies.facts import environment
from dualform.studies.laboratory.config import LAB_NAMES, LabName, RegressionConfig
from dualform.studies.laboratory.result import Laboratory, LaboratoryResult, LabStudy
from dualform.studies.pieces import NoPieceStore, Piece, PieceStore, accepts_cells
from dualform.studies.study import StudyContext, StudyOutput

_SILENT = SilentProgress()
_NO_PIECES = NoPieceStore()

FEW_SEEDS = 5
"""The result warns if it has fewer seeds."""

STUDIES: dict[LabName, str] = {name: f"dualform.studies.laboratory.{name}" for name in LAB_NAMES}
"""Module of each study. It has a function with the study's name, `(config, store, advance) -> LabStudy`, and
`pieces(config) -> int`, the number of times that function calls `advance(1, ...)`."""


@accepts_cells
@ordinary_torch()
def run_laboratory(
    config: RegressionConfig, *, pieces: PieceStore = _NO_PIECES, progress: Progress = _SILENT
) -> tuple[LaboratoryResult, pa.Table]:
    """Run the studies named in the settings.

    Args:
        config: Settings of the laboratory.
        pieces: Stores each finished training, so that an interrupted run can be resumed.
        progress: Receives the progress, in pieces.

    Returns:
        The result, and all of its numbers as a table (see `laboratory_table`).

    Raises:
        DualformError: If a study finds a setting invalid, before it trains anything.
    """
    start = time.perf_counter()
    names = in_order(config.studies)
    # Only chosen studies are imported: each loads libraries that the others do not need.
    modules = {name: importlib.import_module(STUDIES[name]) for name in names}
    progress.start(float(sum(module.pieces(config) for module in modules.values())))
    studies = [_run(name, module, config, pieces, progress) for name, module in modules.items()]
    laboratory = Laboratory(studies=studies)
    result = LaboratoryResult(
        dualform=__version__,
        study="regression",
        config=config.model_dump(mode="json"),
        environment=environment("cpu", time.perf_counter() - start),
        laboratory=laboratory,
        warnings=_warnings(config),
    )
    return result, laboratory_table(laboratory)


def run(config: RegressionConfig, context: StudyContext) -> StudyOutput:
    """The laboratory, as `Study.run`."""
    return StudyOutput(*run_laboratory(config, pieces=context.pieces, progress=context.progress))


def in_order(names: Sequence[LabName]) -> tuple[LabName, ...]:
    """Studies in the order in which they are run and reported."""
    return tuple(sorted(names, key=LAB_NAMES.index))


def _run(
    name: LabName, module: ModuleType, config: RegressionConfig, store: PieceStore, progress: Progress
) -> LabStudy:
    study: Callable[[RegressionConfig, PieceStore, Callable[[float, str], None]], LabStudy] = getattr(module, name)
    return study(config, _StudyPieces(store, name), lambda amount, doing: progress.advance(amount, _named(name, doing)))


class _StudyPieces:
    """A study's own part of a store, so that two studies may use the same name for different pieces."""

    def __init__(self, store: PieceStore, study: str) -> None:
        self._store = store
        self._study = study

    def get(self, name: str, inputs: str) -> Piece | None:
        """The piece that this study stored under a name, or None."""
        piece = self._store.get(_named(self._study, name), inputs)
        return None if piece is None else replace(piece, name=name)

    def put(self, piece: Piece) -> None:
        """Store a piece for this study alone."""
        self._store.put(replace(piece, name=_named(self._study, piece.name)))


def _named(study: str, name: str) -> str:
    """The name with the study's name in front, unless it already begins with it."""
    return name if name.startswith(f"{study}, ") else f"{study}, {name}"


def _warnings(config: RegressionConfig) -> list[str]:
    """Warnings about few seeds and short training."""
    notes = []
    n = len(config.seeds)
    if n == 1:
        notes.append("One seed has no interval: run several, with --seeds 1..5.")
    elif n < FEW_SEEDS:
        notes.append(f"{n} seeds: Student's intervals over so few seeds are wide and assume a normal distribution.")
    if config.steps < 1:
        notes.append(
            f"Models were trained for {config.steps:g} of the steps that the claims assume, so a claim may fail for "
            "lack of training. Leave out --steps to test it."
        )
    return notes


def laboratory_table(laboratory: Laboratory) -> pa.Table:
    """Every number of the laboratory, one a row.

    Returns:
        Columns `study`; `kind` (`claim`, `chart` or `table`); `title` (of the chart or table, or the claim itself);
        `name` (of the curve or row; null for a claim); `column` (of a table, else null); `x` (of a chart, else null);
        `mean`, `low`, `high` (95 % interval), `n`; `holds` (of a claim, else null). Missing values are null.
    """
    rows: list[dict[str, Any]] = []
    for study in laboratory.studies:
        for claim in study.claims:
            about = {"study": study.name, "kind": "claim", "title": claim.says}
            rows.append(about | _numbers(claim.found) | {"holds": claim.holds})
        for chart in study.charts:
            about = {"study": study.name, "kind": "chart", "title": chart.title}
            rows += [
                about | {"name": curve.name, "x": x} | _numbers(y)
                for curve in chart.curves
                for x, y in zip(curve.x, curve.y, strict=True)
            ]
        for table in study.tables:
            about = {"study": study.name, "kind": "table", "title": table.title}
            rows += [
                about | {"name": row.name, "column": column} | _numbers(cell)
                for row in table.rows
                for column, cell in zip(table.columns, row.cells, strict=True)
                if cell is not None
            ]
    return pa.table(
        {name: pa.array([row.get(name) for row in rows], kind) for name, kind in _COLUMNS.items()},
    )


_COLUMNS = {
    "study": pa.string(),
    "kind": pa.string(),
    "title": pa.string(),
    "name": pa.string(),
    "column": pa.string(),
    "x": pa.float64(),
    "mean": pa.float64(),
    "low": pa.float64(),
    "high": pa.float64(),
    "n": pa.int64(),
    "holds": pa.bool_(),
}


def _numbers(estimate: Estimate) -> dict[str, Any]:
    low, high = estimate.ci95
    return {"mean": estimate.mean, "low": low, "high": high, "n": estimate.n}
