import json
import warnings
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import typer
from typer.testing import CliRunner

from dualform.cli.results import results
from dualform.runs.cell_store import CellKey, CellStore
from dualform.runs.sweep_cells import code_identity
from tests.cli.conftest import Done
from tests.runs.test_results import HOSTILE

Command = Callable[..., Done]


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `dualform results` in this process."""
    app = typer.Typer()
    app.command()(results)
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path) -> Done:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Done(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four finished cells, and two that failed."""
    store = CellStore(tmp_path / "store")
    for model in ("small", "big"):
        for seed in (1, 2):
            facts = {"study": "compare", "model": model, "task": "sst2", "seed": seed, "accuracy.icl": 0.5 + seed / 10}
            store.write(
                CellKey({**code_identity(), "model": model, "seed": seed}),
                {"a.bin": b"abc"},
                {**facts, "seconds": 1.234567 * seed},
            )
    for seed in (3, 4):
        failure = {"message": f"no memory {seed}", "traceback": 'File "x.py"\n  line', "attempts": 2, "lost": False}
        store.fail(CellKey({"seed": seed}), failure, {"model": "big", "seed": seed})
    return tmp_path / "store"


def big(seed: int) -> CellKey:
    """Key of a cell of the larger model."""
    return CellKey({**code_identity(), "model": "big", "seed": seed})


def test_the_list_shows_what_cells_are_and_how_they_did(listed: Command, folder: Path) -> None:
    done = listed(folder)

    assert done.code == 0
    assert [line.count("│") for line in done.out.splitlines() if "small" in line] == [6, 6]
    for text in ("model", "task", "seed", "accuracy.icl", "0.6", "0.7", "1.235"):
        assert text in done.out
    assert "study" not in done.out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in done.out.splitlines() if "│" in line]
    assert [row[::2][:2] for row in rows] == [["big", "1"], ["big", "2"], ["small", "1"], ["small", "2"]]
    assert done.message == f"4 cells in {folder}; 2 failed (list them with --failed)"


def test_the_default_store_is_that_of_the_runs_here(
    listed: Command, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "runs").mkdir()
    folder.rename(tmp_path / "runs" / "store")
    monkeypatch.chdir(tmp_path)

    assert listed().message.startswith(f"4 cells in {tmp_path}/runs/store")


def test_cells_are_filtered_sorted_and_shown_by_column(listed: Command, folder: Path) -> None:
    done = listed(
        *(folder, "--where", "model=big", "--where", "accuracy.icl>0.55"),
        *("--sort", "-accuracy.icl", "--columns", "seed, accuracy.*,key"),
    )

    rows = [line.split("│")[1:-1] for line in done.out.splitlines() if line.startswith("│")]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [["2", "0.7"], ["1", "0.6"]]
    assert "2 cells of 4" in done.message
    assert big(2).digest[:11] in done.out


def test_json_has_all_columns_and_nothing_else_is_printed(listed: Command, folder: Path) -> None:
    done = listed(folder, "--json", "--where", "seed=1")

    rows = json.loads(done.out)
    assert [row["seed"] for row in rows] == [1, 1]
    assert rows[0]["identity.seed"] == 1
    assert done.err == ""
    assert json.loads(listed(folder, "--json", "--where", "seed=9").out) == []
    assert json.loads(listed(folder, "--json", "--columns", "seed", "--sort", "seed").out)[0] == {"seed": 1}
    assert len(json.loads(listed(folder, "--json", "--failed").out)) == 2


@pytest.mark.parametrize(("ending", "columns"), [("parquet", 14), ("tex", 5), ("md", 5)])
def test_exports_for_programs_have_all_columns_and_those_for_papers_the_overview(
    listed: Command, folder: Path, tmp_path: Path, ending: str, columns: int
) -> None:
    to = tmp_path / "out" / f"table.{ending}"

    done = listed(folder, "--to", to)

    assert (done.code, done.out, done.message) == (0, "", f"4 rows: {to}")
    if ending == "parquet":
        assert pq.read_table(to).num_columns == columns
    else:
        sign = "&" if ending == "tex" else "|"
        assert to.read_text().splitlines()[-3].count(sign) == (columns - 1 if ending == "tex" else columns + 1)


def test_long_shows_every_fact_on_a_line(listed: Command, folder: Path) -> None:
    done = listed(folder, "--long", "--where", "seed=1")

    assert done.out.count("identity.model: ") == 2
    assert "seconds: 1.235" in done.out
    assert len(done.out.split("\n\n")) == 2
    assert "identity.seed" in listed(folder, "--all").out


def test_failures_are_listed_with_message_and_where_they_happened(listed: Command, folder: Path) -> None:
    done = listed(folder, "--failed")
    assert done.code == 0
    assert "no memory 3" in done.out
    assert "no memory 4" in done.out
    assert "x.py" not in done.out
    assert done.message == f"2 cells in {folder}"

    done = listed(folder, "--traceback", "--where", "seed=4")
    assert done.out.splitlines() == [
        f"big 4 ({CellKey({'seed': 4}).digest[:12]}): no memory 4",
        '    File "x.py"',
        "      line",
    ]


def test_a_store_is_checked_byte_by_byte(listed: Command, folder: Path) -> None:
    done = listed(folder, "--verify")
    assert (done.code, done.out) == (0, "")
    assert done.message == "6 cells checked: none damaged."

    path = next((folder / "cells" / big(1).digest[:2]).glob("*/a-*.bin"))
    path.write_bytes(b"abd")

    assert len(json.loads(listed(folder, "--json").out)) == 4
    done = listed(folder, "--verify")
    assert done.code == 1
    assert done.out.splitlines() == [
        f"cell {big(1).short} is damaged: a.bin has changed since it was written. "
        "It counts as missing; the same sweep computes it again."
    ]
    path.unlink()
    assert "3 cells in" in listed(folder).message
    assert "1 incomplete or damaged (check with --verify)" in listed(folder).message


def test_cells_are_dropped_only_when_selected_and_confirmed(listed: Command, folder: Path) -> None:
    done = listed(folder, "--drop", "--yes")
    assert done.code == 2
    assert "--drop needs --where or --failed to select cells" in done.message

    done = listed(folder, "--drop", "--where", "model=big")
    assert done.code == 0
    assert "This would remove 2 cells. Add --yes" in done.message
    assert len(json.loads(listed(folder, "--json").out)) == 4

    done = listed(folder, "--drop", "--where", "model=big", "--yes")
    assert "Removed 2 cells." in done.message
    assert {row["model"] for row in json.loads(listed(folder, "--json").out)} == {"small"}
    listed(folder, "--drop", "--failed", "--yes")
    assert json.loads(listed(folder, "--json", "--failed").out) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], r"none holds no cells. Give the store of a sweep"),
        (["nosuch://x"], "cannot open the store nosuch://x"),
        (["STORE", "--where", "modle=x"], "no column is called 'modle'. Columns include model"),
        (["STORE", "--where", "seed"], "--where 'seed' is not a condition"),
        (["STORE", "--columns", "nothing"], "no column is called 'nothing'"),
        (["STORE", "--sort", "nothing"], "no column is called 'nothing'"),
        (["STORE", "--to", "x.xlsx"], "use a file name ending in .parquet"),
    ],
)
def test_a_mistake_gives_one_message_and_exit_code_2(
    listed: Command, folder: Path, arguments: list[str], message: str
) -> None:
    done = listed(*[str(folder) if argument == "STORE" else argument for argument in arguments])

    assert (done.code, done.out) == (2, "")
    assert message in done.message
    assert done.err.count("\n") == 1
    assert not Path("none").exists()


def test_a_filter_without_matches_is_reported(listed: Command, folder: Path) -> None:
    done = listed(folder, "--where", "seed=9")

    assert (done.code, done.out) == (0, "")
    assert "No finished cell matches." in done.message
    assert "0 cells of 4" in done.message


def test_hostile_text_does_not_reach_the_terminal(listed: Command, tmp_path: Path) -> None:
    store = CellStore(tmp_path / "store")
    names = {f"{value[:30]}": name for name, value in HOSTILE.items()}
    for number, value in enumerate(HOSTILE.values()):
        facts = {"model": value, "accuracy." + value[:30]: 0.5, **names, "task": value}
        store.write(CellKey({"n": number, "text": value[:1000]}), {}, facts)
        store.fail(CellKey({"failed": number}), {"message": value, "traceback": value}, {"model": value})

    for arguments in ([], ["--all"], ["--long"], ["--json"], ["--failed"], ["--traceback"], ["--verify"]):
        done = listed(store.url, *arguments)
        assert done.code == 0
        steering = {c for c in done.out + done.err if (c < " " and c != "\n") or c in "\x7f\x9b\u202e\ud800"}
        assert steering - ({"\t", "\r"} if arguments == ["--traceback"] else set()) == set(), arguments
    assert "[bold]x[/bold]" in listed(store.url, "--columns", "model").out


def test_the_help_shows_how(listed: Command) -> None:
    done = listed("--help")

    assert done.code == 0
    assert "--where 'accuracy.icl>0.7'" in done.out


def test_cells_of_other_source_code_are_listed_and_exported_with_a_note(
    listed: Command, folder: Path, tmp_path: Path
) -> None:
    facts = {"study": "compare", "model": "old", "task": "sst2", "seed": 1}
    for identity in ({**code_identity(), "source": "0123456789abcdef", "model": "old"}, {"dualform": "0.1.0"}):
        CellStore(folder).write(CellKey(identity), {"a.bin": b"abc"}, facts)
    done = listed(folder)

    assert "2 cells of these were computed by other source code, so" in done.message
    assert len([line for line in done.out.splitlines() if "old" in line]) == 2
    picked = f"source!={code_identity()['source']}"
    assert listed(folder, "--where", picked, "--to", tmp_path / "old.parquet").code == 0
    table = pq.read_table(tmp_path / "old.parquet")
    assert set(table.column("source").to_pylist()) == {"0123456789abcdef", ""}
