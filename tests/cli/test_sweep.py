import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from dualform.cli.sweep_table import Lines, LiveTable, progress_table, remaining
from dualform.models.cost import machine
from dualform.runs.cell_store import CellKey
from dualform.runs.sweep import CellState, GroupState
from dualform.runs.sweep_cells import GroupCell
from dualform.runs.sweep_config import Group, read_sweep_file
from dualform.studies.comparison.config import comparison_config
from dualform.sweep_result import CellFailure
from tests.cli.conftest import Done
from tests.fixed_machine import fixed_machine
from tests.tiny import save_tiny

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


def test_a_sweep_runs_reports_its_failures_and_resumes_from_its_folder(
    dualform: Callable[..., Done], grid: Path, tmp_path: Path
) -> None:
    where = ("--store", tmp_path / "store", "--out", tmp_path / "out", "--workers", "1")
    done = dualform("sweep", grid, *where)

    # One model does not exist: a script should notice, and everything else is there.
    assert done.code == 1
    assert "[1/4] gpt2-tickets, seed 1: finished in" in done.err
    assert "nowhere-tickets, seed 1: failed: " in done.err
    assert "seed 1 failed, from which this seed takes its learning rates" in done.message
    assert (tmp_path / "out" / "gpt2-tickets" / "report.html").exists()
    assert "gpt2" in done.out

    again = dualform("sweep", tmp_path / "out", "--resume", *where[:2], "--json", "--workers", "1")
    result = json.loads(again.out)
    assert [cell["status"] for cell in result["cells"]] == ["reused", "reused", "failed", "failed"]
    assert result["engine"] == "local, 1 worker"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.yaml"], "none.yaml does not exist"),
        (["grid.yaml", "--resume", "--out", "nothing"], "nothing holds no sweep to resume"),
        (["grid.yaml", "--engine", "dask"], "unknown engine 'dask': choose one of local, ray, slurm"),
        (["grid.yaml", "--retries", "-1"], "retries -1 must be 0 or more"),
        (["grid.yaml", "--memory", "much"], "memory: 'much' is not a size: write it like 500MB"),
        (["grid.yaml", "--memory", "0GB"], "memory: Input should be greater than 0"),
        (
            ["grid.yaml", "--slurm", "account"],
            "--slurm 'account' is not NAME=VALUE: write for example --slurm account=NAME",
        ),
    ],
)
def test_a_mistake_is_reported_before_anything_is_run(
    dualform: Callable[..., Done], grid: Path, arguments: list[str], message: str
) -> None:
    done = dualform("sweep", *arguments)

    assert done.code == 2
    assert message in done.message


def test_a_task_that_does_not_exist_is_reported_before_anything_is_run(
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
    result = [CellState(GroupCell(CellKey({"seed": seed}), group, seed)) for seed in range(len(statuses))]
    for state, status in zip(result, statuses, strict=True):
        state.status = status  # type: ignore[assignment]
        state.seconds = 30.0 if status == "finished" else None
        state.failure = CellFailure(message="no\x1b]0;room\x07", traceback="") if status == "failed" else None
    return [GroupState(group, result)]


def drawn(groups: list[GroupState]) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(progress_table(groups, 60.0))
    return console.export_text()


def test_the_live_table_counts_cells_and_shows_the_remaining_time() -> None:
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

    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 2
    assert "[2/3]" in errors
    assert "\x1b" not in errors
    assert "\x07" not in errors


def test_the_live_table_is_drawn_at_once_and_then_not_more_often_than_an_eye_sees() -> None:
    class Shown:
        def __init__(self) -> None:
            self.n = 0

        def update(self, table: object) -> None:
            self.n += 1

    display = Shown()
    table = LiveTable(display)  # type: ignore[arg-type]
    groups = states("running", "waiting")
    for _ in range(5):
        table.changed(groups, groups[0].seeds[0])

    assert display.n == 1


@pytest.fixture
def with_code(tmp_path: Path) -> Path:
    """A checkpoint whose own code leaves a mark when it runs."""
    folder = save_tiny("gpt2", tmp_path / "with_code")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "owncode", "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Model"}}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "own.py").write_text(
        f"open({str(tmp_path / 'mark')!r}, 'w').close()\n"
        "from transformers import GPT2Config, GPT2LMHeadModel\n"
        "class Own(GPT2Config):\n    model_type = 'owncode'\n"
        "class Model(GPT2LMHeadModel):\n    config_class = Own\n"
    )
    return folder


def test_a_checkpoints_code_runs_only_if_the_command_line_allows_it_and_never_for_a_plan(
    dualform: Callable[..., Done], with_code: Path, workplace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "this_machine", lambda *given, **more: fixed_machine())
    mark = tmp_path / "mark"
    grid = workplace / "trusting.yaml"
    text = f"models: [{with_code}]\n" + GRID.partition("]\n")[2]
    grid.write_text(text.replace("settings: {", "settings: {trust_remote_code: true, "))
    for arguments in (["sweep", grid], ["sweep", grid, "--dry-run"], ["plan", "sweep", grid]):
        done = dualform(*arguments, "--store", tmp_path / "store")
        assert (done.code, mark.exists()) == (2, False)
        assert "trust_remote_code cannot be allowed by a file" in done.message

    grid.write_text(text)
    plain = ["--text", "body", "--label", "topic", "-k", "4", "--trust-remote-code"]
    for arguments in (
        ["sweep", grid, "--dry-run"],
        ["plan", "sweep", grid],
        ["sweep", grid, "--dry-run", "--trust-remote-code"],
        ["plan", "compare", with_code, "tickets.csv", *plain],
    ):
        done = dualform(*arguments)
        assert (done.code, mark.exists()) == (2, False)
        assert "comes with code of its own, and a plan runs none" in done.message

    _, (group,) = read_sweep_file(grid, trust_remote_code=True)
    group.config.load_model(str(with_code))  # type: ignore[attr-defined]
    assert mark.exists()
