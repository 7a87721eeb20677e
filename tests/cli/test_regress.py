"""`dualform regress`: the laboratory from the command line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dualform.studies.laboratory import layers as regression_layers
from dualform.studies.laboratory import run as regression
from tests.cli.conftest import Done, result_of
from tests.studies import small_laboratory

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
SMALL = ["--study", "constructed", "--study", "shift", "--seeds", "1..3"]


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fast studies; the command treats all studies alike."""
    for name in ("constructed", "shift"):
        monkeypatch.setitem(regression.STUDIES, name, small_laboratory.__name__)
    small_laboratory.computed.clear()


def numbers(folder: Path) -> dict[str, Any]:
    return {name: value for name, value in result_of(folder).items() if name != "environment"}


@pytest.mark.usefixtures("small", "real_page")
def test_claims_are_printed_and_a_whole_folder_is_left(dualform: Command, out: Path) -> None:
    done = dualform("regress", *SMALL, "--out", out, COLUMNS="80")

    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == PROMISED
    assert done.out.startswith("2 of 2 claims hold, and 2 of 2 cases that must fail do.\nConstructed: As large")
    for words in ("constructed: How large are seeds?", "Seeds are numbers.", "above 0", "as it must", "Note: 3 seeds"):
        assert words in done.out, words
    assert max(map(len, done.out.splitlines()[4:-1])) <= 80
    assert done.message == f"Report: {out / 'report.html'}"
    result = result_of(out)
    assert (result["study"], result["config"]["seeds"]) == ("regression", [1, 2, 3])
    assert len(pq.read_table(out / "examples.parquet").to_pylist()) == 10
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "fails, as it must" in page

    (out / "report.html").unlink()
    assert dualform("report", out).code == 0
    assert (out / "report.html").read_text(encoding="utf-8") == page


@pytest.mark.usefixtures("small")
def test_options_reach_the_settings_and_json_is_printed(dualform: Command, out: Path) -> None:
    options = ["--study", "shift,constructed", "--seed", "7", "--dimension", "5", "--points", "20", "--steps", "0.5"]
    done = dualform("regress", *options, "--json", "--out", out)

    assert done.code == 0, done.err
    assert done.out == (out / "result.json").read_text(encoding="utf-8")
    expected = {
        "studies": ["shift", "constructed"],
        "seeds": [7],
        "dimension": 5,
        "points": 20,
        "steps": 0.5,
    }
    assert result_of(out)["config"] == expected
    assert yaml.safe_load((out / "config.yaml").read_text(encoding="utf-8")) == expected


@pytest.mark.usefixtures("small")
def test_the_folder_is_named_after_the_studies_and_other_settings_need_another(
    dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "runs" / "regress-constructed-shift"
    assert dualform("regress", *SMALL).code == 0
    assert (folder / "result.json").exists()

    refused = dualform("regress", "--study", "shift", "--out", folder)
    assert refused.code == 2
    assert "holds the result of other settings" in refused.message
    assert dualform("regress", "--study", "shift", "--out", folder, "--overwrite").code == 0
    assert [study["name"] for study in result_of(folder)["laboratory"]["studies"]] == ["shift"]


def test_without_a_study_all_are_run(dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    def seen(config: Any, **more: Any) -> Any:
        started.append(config)
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(regression, "run_laboratory", seen)
    done = dualform("regress")
    assert done.code == 130
    assert started[0].studies == ("constructed", "trained", "phases", "layers", "shift")
    assert started[0].seeds == (1, 2, 3, 4, 5)
    assert (tmp_path / "runs" / "regress").is_dir()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["--study", "konstructed"],
            ["--study, value 1: Input should be 'constructed'", "(given 'konstructed')"],
        ),
        (["--study", ","], ["--study: Tuple should have at least 1 item"]),
        (["--study", "shift,shift"], ["studies ['shift', 'shift'] must be different"]),
        (["--seeds", "5..1"], ["seeds '5..1': 5..1 runs backwards; write 1..5"]),
        (["--seed", "1", "--seeds", "1..3"], ["--seed 1 and --seeds 1..3 were both given"]),
        (["--dimension", "1"], ["dimension: ", "greater than or equal to 2", "(given 1)"]),
        (["--points", "1000"], ["points: ", "less than or equal to 256"]),
        (["--steps", "0"], ["steps: ", "greater than 0"]),
        (["--steps", "much"], ["Invalid value for '--steps'", "valid number"]),
        (["--steps", "nan"], ["steps: "]),
        (["--resamples", "50"], ["No such option", "--resamples"]),
    ],
)
def test_mistakes_are_named(dualform: Command, out: Path, arguments: list[str], words: list[str]) -> None:
    done = dualform("regress", *arguments, "--out", out, COLUMNS="200")

    assert done.code == 2, done.err
    assert done.out == ""
    assert all(word in done.message for word in words), done.message
    assert not out.exists()


def test_a_stopped_real_study_resumes_and_gives_the_numbers_of_an_uninterrupted_one(
    dualform: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(regression_layers, "_TESTED", 16)
    monkeypatch.setattr(regression_layers, "_RATES", [0.1, 1.0])
    monkeypatch.setattr(regression_layers, "NOISES", (0.5,))
    train = regression_layers._train
    trained: list[str] = []
    stop_at: str | None = "momentum"

    def counted(config: Any, shape: Any, *rest: Any) -> Any:
        if shape.mixer == stop_at:
            raise KeyboardInterrupt
        trained.append(shape.mixer)
        return train(config, shape, *rest)

    monkeypatch.setattr(regression_layers, "_train", counted)
    arguments = ["regress", "--study", "layers", "--seed", "1", "--dimension", "2", "--points", "2", "--steps", "1e-3"]
    done = dualform(*arguments, "--out", out)
    assert done.code == 130
    assert done.message == "Finished trainings are kept; run the same command to resume. stopped"
    assert done.out == ""
    assert not (out / "result.json").exists()
    before = list(trained)
    assert len(before) == 2

    stop_at = None
    assert dualform(*arguments, "--out", out).code == 0
    assert len(trained) == len(set(trained))
    assert trained[:2] == before
    assert {path.name for path in out.iterdir()} == PROMISED

    whole = out.with_name("whole")
    assert dualform(*arguments, "--out", whole).code == 0
    result, expected = (numbers(folder)["laboratory"]["studies"][0] for folder in (out, whole))
    assert result["charts"] == expected["charts"]
    assert result["tables"] == expected["tables"]
    # What is computed anew each time, in sums whose order is the machine's, may differ in its last digit.
    assert [each["holds"] for each in result["claims"]] == [each["holds"] for each in expected["claims"]]
