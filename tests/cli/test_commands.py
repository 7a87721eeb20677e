import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

import dualform as package
from dualform.cli.guard import guarded, say
from dualform.cli.main import app
from tests.cli.conftest import QUICK, Done, result_of
from tests.studies.small import LABELS
from tests.tiny import save_tiny

Command = Callable[..., Done]


def commands(command: Any, path: tuple[str, ...] = ()) -> list[str]:
    """Names of all commands; those in groups follow the name of the group."""
    if not hasattr(command, "list_commands"):
        return [" ".join(path)]
    names = command.list_commands(None)
    return [each for name in names for each in commands(command.get_command(None, name), (*path, name))]


COMMANDS = commands(typer.main.get_command(app))


@pytest.fixture(scope="module")
def finished(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run; tests only read it, or write its report again."""
    from typer.testing import CliRunner

    folder = tmp_path_factory.mktemp("finished") / "run"
    arguments = ["compare", str(workplace / "gpt2"), str(workplace / "tickets.csv"), *QUICK, "--out", str(folder)]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    return folder


def test_the_commands_are_the_ones_promised() -> None:
    assert set(COMMANDS) >= {"compare", "stability", "report", "models", "tasks", "doctor"}
    assert set(COMMANDS) >= {"momentum train", "momentum compare"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_worked_examples(dualform: Command, command: str) -> None:
    done = dualform(*command.split(), "--help", COLUMNS="200")

    assert done.code == 0
    _, _, examples = done.out.partition("Examples")
    assert len(re.findall(rf"dualform {command}\b", examples)) >= 1
    # Every option says what it does.
    for line in re.findall(r"^\W*--\S+.*$", done.out, re.MULTILINE):
        assert re.search(r"\s[A-Za-z].*[a-z]{3}", line), line


def test_short_help_is_help(dualform: Command) -> None:
    assert dualform("-h", COLUMNS="200").out == dualform("--help", COLUMNS="200").out
    assert all(command.split()[0] in dualform("-h", COLUMNS="200").out for command in COMMANDS)


def test_a_group_lists_its_commands(dualform: Command) -> None:
    for group in {command.split()[0] for command in COMMANDS if " " in command}:
        done = dualform(group, "-h", COLUMNS="200")
        assert done.code == 0
        assert all(command.split()[1] in done.out for command in COMMANDS if command.startswith(f"{group} "))


def test_the_version_is_the_packages(dualform: Command) -> None:
    assert dualform("--version").out.strip() == package.__version__


def test_an_unknown_command_exits_2(dualform: Command) -> None:
    done = dualform("comprae")

    assert done.code == 2
    assert "comprae" in done.err


def test_the_report_is_written_again(dualform: Command, finished: Path) -> None:
    page = finished / "report.html"
    before = page.read_bytes()
    page.unlink()

    done = dualform("report", finished)

    assert done.code == 0
    assert done.message == f"Report: {page}"
    assert page.read_bytes() == before


@pytest.mark.parametrize(("ending", "begins"), [("svg", b"<svg"), ("html", b"<!DOCTYPE html>")])
def test_a_chart_is_saved_too(dualform: Command, finished: Path, tmp_path: Path, ending: str, begins: bytes) -> None:
    chart = tmp_path / "figures" / f"accuracy.{ending}"

    done = dualform("report", finished, "--chart", chart)

    assert done.code == 0
    assert f"The chart: {chart}" in done.message
    assert chart.read_bytes().startswith(begins)


def test_a_chart_of_an_unknown_kind_is_refused(dualform: Command, finished: Path) -> None:
    done = dualform("report", finished, "--chart", "accuracy.bmp")

    assert done.code == 2
    assert "cannot save a chart as 'accuracy.bmp'" in done.message
    assert ".svg" in done.message


def test_a_chart_below_a_file_is_refused(dualform: Command, finished: Path) -> None:
    done = dualform("report", finished, "--chart", "tickets.csv/accuracy.svg")

    assert done.code == 2
    assert "cannot write tickets.csv: a file of that name exists. Choose another folder" in done.message


@pytest.mark.parametrize("folder", ["nowhere", "gpt2"])
def test_a_folder_without_a_result_is_refused(dualform: Command, folder: str) -> None:
    done = dualform("report", folder)

    assert done.code == 2
    assert f"error: {folder} has no result.json: give the folder of a finished run" in done.message
    assert not (Path(folder) / "report.html").exists()


def test_a_result_without_accuracy_has_no_chart(dualform: Command, finished: Path, tmp_path: Path) -> None:
    nothing = {name: value for name, value in result_of(finished).items() if name != "accuracy"}
    (tmp_path / "result.json").write_text(json.dumps(nothing))

    done = dualform("report", tmp_path, "--chart", tmp_path / "accuracy.svg")

    assert done.code == 2
    assert "holds no accuracy" in done.message


def test_models_are_listed(dualform: Command) -> None:
    done = dualform("models")
    rows = json.loads(dualform("models", "--json").out)

    assert done.code == 0
    assert {row["name"] for row in rows} >= {"smollm2-135m", "gemma3-270m"}
    for row in rows:
        assert row["name"] in done.out
        assert row["local"] is False  # the tests' cache is empty
        assert row["parameters"] > 1e8
    assert "on first use" in done.out


def test_tasks_are_listed(dualform: Command, tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    about = {"name": "moods", "label_names": LABELS, "splits": {"train": {"file": "train.jsonl"}}}
    (tmp_path / "moods" / "dataset.json").write_text(json.dumps(about))

    done = dualform("tasks", "--data-dir", tmp_path, COLUMNS="300")
    rows = {row["name"]: row for row in json.loads(dualform("tasks", "--data-dir", tmp_path, "--json").out)}

    assert done.code == 0
    assert all(name in done.out for name in rows)
    assert {"reviews", "tweets", "products", "editorials", "sst2", "cb"} <= rows.keys()
    assert rows["moods"]["local"]
    assert rows["moods"]["label_words"] == list(LABELS)
    assert not rows["sst2"]["local"]


def test_label_words_in_square_brackets_are_shown_as_they_are(dualform: Command, tmp_path: Path) -> None:
    (tmp_path / "moods").mkdir()
    about = {"name": "moods", "label_names": ["[neg]", "[/pos]"], "splits": {"train": {"file": "train.jsonl"}}}
    (tmp_path / "moods" / "dataset.json").write_text(json.dumps(about))

    done = dualform("tasks", "--data-dir", tmp_path, COLUMNS="300")

    assert done.code == 0
    assert "[neg], [/pos]" in done.out


def test_tasks_of_no_folder_are_refused(dualform: Command) -> None:
    done = dualform("tasks", "--data-dir", "nowhere")

    assert done.code == 2
    assert "--data-dir is 'nowhere', which is not a folder" in done.message


@pytest.mark.parametrize(
    ("model", "route", "reached"),
    [("llama", "packed", "through the registry"), ("xglm", "packed-mask", "by intercepting softmax")],
)
def test_the_doctor_shows_how_a_model_is_read(dualform: Command, model: str, route: str, reached: str) -> None:
    done = dualform("doctor", model, COLUMNS="200")
    result = json.loads(dualform("doctor", model, "--json").out)

    assert done.code == 0
    assert result["facts"]["route"] == route
    assert result["facts"]["attention reached"] == reached
    assert result["facts"]["layers"] == "2"
    assert result["facts"]["W_K (layer 0)"] != "not found"
    assert result["checks"]
    assert all(check["passed"] for check in result["checks"])
    assert all(check["name"] in done.out for check in result["checks"])
    assert "Not verified: " in done.out


def test_the_doctor_shows_what_fails(dualform: Command, tmp_path: Path) -> None:
    save_tiny("mpt", tmp_path / "mpt")

    result = json.loads(dualform("doctor", tmp_path / "mpt", "--json").out)

    assert result["facts"]["route"] == "naive"
    assert not all(check["passed"] for check in result["checks"])


@pytest.mark.parametrize("arguments", [["nowhere"], ["gpt2", "--dtype", "int8"], ["gpt2", "--device", "gpu"]])
def test_the_doctor_refuses_what_compare_refuses(dualform: Command, arguments: list[str]) -> None:
    done = dualform("doctor", *arguments)

    assert done.code == 2
    assert repr(arguments[-1]) in done.message


def test_only_our_own_warnings_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    home = str(Path(package.__file__).parent)
    # A checkout may be called dualform and hold every other package in its virtual environment.
    others = str(Path(package.__file__).parents[2] / "dualform" / ".venv" / "torch" / "x.py")

    @guarded
    def command() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn_explicit("ours", UserWarning, f"{home}/models/reading/encoding.py", 1)
            warnings.warn_explicit("theirs", UserWarning, others, 1)
            warnings.warn_explicit("old", FutureWarning, f"{home}/models/reading/encoding.py", 2)

    command()

    assert capsys.readouterr().err == "note: ours\n"


def test_a_stopped_command_prints_nothing_more(capsys: pytest.CaptureFixture[str]) -> None:
    @guarded
    def command() -> None:
        raise KeyboardInterrupt

    with pytest.raises(typer.Exit) as caught:
        command()

    assert caught.value.exit_code == 130
    assert capsys.readouterr() == ("", "stopped\n")


def test_say_speaks_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    say("well")

    assert capsys.readouterr() == ("", "well\n")
