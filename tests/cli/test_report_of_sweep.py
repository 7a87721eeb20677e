"""`dualform report` on a sweep's folder."""

from collections.abc import Callable
from pathlib import Path

from dualform.runs.sweep_folder import write_sweep
from tests.cli.conftest import Done
from tests.report.example_sweep import empty_sweep, example_sweep


def test_the_report_of_a_sweep_is_written_again_and_its_chart_saved(
    dualform: Callable[..., Done], tmp_path: Path
) -> None:
    page = write_sweep(tmp_path / "sweep", example_sweep())
    before = page.read_text(encoding="utf-8")
    page.unlink()

    done = dualform("report", page.parent, "--chart", tmp_path / "accuracy.svg")

    assert done.code == 0
    assert f"Report: {page}" in done.message
    assert page.read_text(encoding="utf-8") == before
    assert (tmp_path / "accuracy.svg").read_text(encoding="utf-8").startswith("<svg")


def test_a_sweep_without_accuracy_has_no_chart(dualform: Callable[..., Done], tmp_path: Path) -> None:
    write_sweep(tmp_path, empty_sweep())

    done = dualform("report", tmp_path, "--chart", tmp_path / "accuracy.svg")

    assert done.code == 2
    assert "holds no accuracy, so there is nothing to draw" in done.message


def test_a_folder_that_is_neither_a_runs_nor_a_sweeps_is_refused(dualform: Callable[..., Done], tmp_path: Path) -> None:
    done = dualform("report", tmp_path)

    assert done.code == 2
    assert "has no result.json: give the folder of a finished run, or of a sweep with its sweep.json" in done.message


def test_a_damaged_sweep_is_reported(dualform: Callable[..., Done], tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text("{}", encoding="utf-8")

    done = dualform("report", tmp_path)

    assert done.code == 2
    assert "sweep.json is not a sweep that this version can read" in done.message
