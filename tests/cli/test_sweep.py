import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dualform.cli.sweep_table import Lines, LiveTable, progress_table, remaining
from dualform.runs.cell_store import CellKey
from dualform.runs.sweep import CellState, GroupState
from dualform.runs.sweep_cells import GroupCell
from dualform.runs.sweep_config import Group
from dualform.studies.comparison_config import comparison_config
from dualform.sweep_result import CellFailure
from tests.cli.conftest import Done

GRID = """
models: [gpt2, {model: nowhere}]
tasks: [{task: tickets.csv, text: body, label: topic}]
seeds: 1..2
settings: {k: 4, limit: 8, selection_limit: 6, resamples: 50, learners: [zsl, icl, ft], rates: [0.01], controls: []}
"""


@pytest.fixture
def grid(workplace: Path) -> Path:
    path = workplace / "grid.yaml"
    path.write_text(GRID)
    return path


def test_a_sweep_runs_tells_its_failures_and_goes_on_from_its_folder(
    dualform: Callable[..., Done], grid: Path, tmp_path: Path
) -> None:
    where = ("--store", tmp_path / "store", "--out", tmp_path / "out", "--workers", "1")
    done = dualform("sweep", grid, *where)

    # One model does not exist: a script should notice, and everything else is there.
    assert done.code == 1
    assert "[1/4] gpt2-tickets, seed 1: finished in" in done.err
    assert "nowhere-tickets, seed 1: failed: " in done.err
    assert "seed 1 failed, whose learning rates this one takes" in done.message
    assert (tmp_path / "out" / "gpt2-tickets" / "report.html").exists()
    assert "gpt2" in done.out

    again = dualform("sweep", tmp_path / "out", "--resume", *where[:2], "--json", "--workers", "1")
    found = json.loads(again.out)
    assert [cell["status"] for cell in found["cells"]] == ["reused", "reused", "failed", "failed"]
    assert found["engine"] == "local, 1 worker"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml cannot be read as a sweep"),
        (["grid.yaml", "--resume", "--out", "nothing"], "nothing holds no sweep that could go on"),
        (["grid.yaml", "--engine", "dask"], "engine 'dask' is none of local, ray, slurm"),
        (["grid.yaml", "--retries", "-1"], "retries -1 must be 0 or more"),
        (["grid.yaml", "--memory", "much"], "memory: 'much' is no size: write it like 500MB"),
        (["grid.yaml", "--memory", "0GB"], "memory: Input should be greater than 0"),
        (["grid.yaml", "--slurm", "account"], "--slurm 'account' should look like account=NAME"),
    ],
)
def test_a_mistake_is_told_before_anything_is_run(
    dualform: Callable[..., Done], grid: Path, arguments: list[str], message: str
) -> None:
    done = dualform("sweep", *arguments)

    assert done.code == 2
    assert message in done.message


def test_a_task_that_does_not_exist_is_told_before_anything_is_run(
    dualform: Callable[..., Done], workplace: Path, tmp_path: Path
) -> None:
    (workplace / "other.yaml").write_text("models: [gpt2]\ntasks: [missing.csv]\nsettings: {text: body}\n")
    done = dualform("sweep", "other.yaml", "--store", tmp_path / "store", "--out", tmp_path / "out")

    assert done.code == 2
    assert "missing.csv" in done.message
    assert not (tmp_path / "store" / "cells").exists()


def states(*statuses: str) -> list[GroupState]:
    """A group of so many seeds, in these states."""
    group = Group("tiny\x1b[31m-toy", "compare", comparison_config("tiny", "toy"), "tiny", "toy", {})
    found = [CellState(GroupCell(CellKey({"seed": seed}), group, seed)) for seed in range(len(statuses))]
    for state, status in zip(found, statuses, strict=True):
        state.status = status  # type: ignore[assignment]
        state.seconds = 30.0 if status == "finished" else None
        state.failure = CellFailure(message="no\x1b]0;room\x07", traceback="") if status == "failed" else None
    return [GroupState(group, found)]


def drawn(groups: list[GroupState]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(progress_table(groups, 60.0))
    return console.export_text()


def test_the_live_table_counts_and_says_what_is_left() -> None:
    text = drawn(states("finished", "reused", "running", "failed", "waiting"))

    assert "3/5" in text
    assert "\x1b" not in text
    # A cell a minute so far, and two to go.
    assert remaining(states("finished", "running", "waiting")[0].seeds, 60.0) == "2 min left"
    assert remaining(states("reused", "waiting")[0].seeds, 60.0) == ""
    assert remaining(states("finished", *["waiting"] * 300)[0].seeds, 60.0) == "5 h left"


def test_lines_say_each_cell_once_and_nothing_that_could_move_a_cursor(capsys: pytest.CaptureFixture[str]) -> None:
    lines = Lines()
    groups = states("failed", "finished", "running")
    for state in [*groups[0].seeds, *groups[0].seeds]:
        lines.changed(groups, state)
    lines.changed(groups, None)

    said = capsys.readouterr().err
    assert len(said.splitlines()) == 2
    assert "[2/3]" in said
    assert "\x1b" not in said
    assert "\x07" not in said


def test_the_live_table_is_drawn_at_once_and_then_not_more_often_than_an_eye_sees() -> None:
    class Shown:
        def __init__(self) -> None:
            self.n = 0

        def update(self, table: object) -> None:
            self.n += 1

    shown = Shown()
    table = LiveTable(shown)  # type: ignore[arg-type]
    groups = states("running", "waiting")
    for _ in range(5):
        table.changed(groups, groups[0].seeds[0])

    assert shown.n == 1
