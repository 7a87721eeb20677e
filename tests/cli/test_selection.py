from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from dualform.studies.selection import run as selection
from dualform.studies.selection.config import SelectionConfig
from tests.cli.conftest import SMALL, Done, numbers, result_of

Command = Callable[..., Done]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
LIMITS = ["--untouched-limit", "10", "--similarity-limit", "4"]
QUICK = [*SMALL, *LIMITS, "--seeds", "1,2", "--rates", "1e-2,1e-1"]
"""A second."""


def test_a_study_prints_its_words_and_tables_and_leaves_awhole_folder(dualform: Command, out: Path) -> None:
    done = dualform("selection", "gpt2", "tickets.csv", *QUICK, "--out", out)

    assert done.code == 0, done.err
    assert {path.name for path in out.iterdir()} == PROMISED
    assert done.err.split() == ["Report:", *str(out / "report.html").split()]
    for words in ("Accuracy of the chosen settings", "Chosen settings and search", "SimAOU", "none on report"):
        assert words in done.out
    assert "evaluated on 10 untouched queries" in " ".join(done.out.split())
    result = result_of(out)
    assert result["study"] == "selection"
    assert [(each["select"], each["select_on"]) for each in result["selection"]["choices"]] == [
        ("none", "report"),
        ("icl", "validation"),
        ("icl", "report"),
        ("ft", "validation"),
        ("ft", "report"),
        ("both", "validation"),
        ("both", "report"),
    ]
    assert {"selected", "untouched", "optimism", "tokens", "trials"} == result["selection"]["choices"][0]["scores"][
        "icl"
    ].keys()
    log = (out / "log.txt").read_text()
    assert "gpt2 on tickets.csv" in log
    assert "seed 1: finished" in log
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "dualform: selection for gpt2" in page
    assert set(pq.read_table(out / "examples.parquet")["set"].to_pylist()) == {"validation", "report", "untouched"}


def test_options_reach_the_settings(dualform: Command, out: Path) -> None:
    options = [*SMALL, *LIMITS, "--seeds", "4", "--rates", "1e-3", "--orders", "2", "--shuffled", "--loss-on", "label"]
    options += ["--probe", "label0", "--context", "300", "--dtype", "float64", "--device", "cpu", "--route", "packed"]
    done = dualform("selection", "gpt2", "tickets.csv", *options, "--out", out)

    assert done.code == 0, done.err
    config = SelectionConfig.read(out / "config.yaml")
    assert (config.model, config.task, config.text, config.label) == ("gpt2", "tickets.csv", "body", "topic")
    assert (config.seeds, config.rates, config.orders, config.k, config.balanced) == ((4,), (1e-3,), 2, 4, False)
    limits = (config.limit, config.selection_limit, config.untouched_limit, config.similarity_limit)
    assert limits == (8, 6, 10, 4)
    assert (config.loss_on, config.probe, config.context, config.resamples) == ("label", "label0", 300, 50)
    assert (config.dtype, config.device, config.route) == ("float64", "cpu", "packed")


def test_json_is_the_result_alone(dualform: Command, out: Path) -> None:
    done = dualform("selection", "gpt2", "tickets.csv", *QUICK, "--orders", "1", "--json", "--out", out)

    assert done.out == (out / "result.json").read_text(encoding="utf-8")


def test_the_folder_is_named_after_model_task_and_study(
    dualform: Command, tmp_path: Path, workplace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = dualform("selection", workplace / "gpt2", workplace / "tickets.csv", *QUICK, "--orders", "1")

    assert done.code == 0, done.err
    assert (tmp_path / "runs" / "gpt2-tickets-selection" / "result.json").exists()


def test_a_stopped_study_resumes_and_gives_the_numbers_of_an_uninterrupted_one(
    dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["selection", "gpt2", "tickets.csv", *QUICK]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert dualform(*arguments, "--out", whole).code == 0
    run_seed = selection._run_seed

    def stopping(sets: object, drawn: object, *rest: object) -> object:
        if drawn.demonstrations.seed == 2:  # type: ignore[attr-defined]
            raise KeyboardInterrupt
        return run_seed(sets, drawn, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(selection, "_run_seed", stopping)
        done = dualform(*arguments, "--out", stopped)
    assert done.code == 130
    assert "Finished seeds are kept; run the same command to resume." in done.message
    assert not (stopped / "result.json").exists()
    done = dualform(*arguments, "--out", stopped)

    assert done.code == 0, done.err
    assert "seed 1: finished earlier, reused" in (stopped / "log.txt").read_text()
    assert numbers(result_of(stopped)) == numbers(result_of(whole))
    first, second = (pq.read_table(folder / "examples.parquet") for folder in (whole, stopped))
    assert first.equals(second)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "x"], ["seeds 'x'", "should look like 3, 1..7 or 1,4,9"]),
        (["--seed", "1"], ["--seed 1 and --seeds 1,2 were both given"]),
        (["--rates", "fast"], ["rates 'fast'", "such as 1e-4,1e-3"]),
        (["--orders", "0"], ["orders: ", "(given 0)"]),
        (["--untouched-limit", "-3"], ["--untouched-limit: ", "(given -3)"]),
        (["-k", "0"], ["k 0 leaves no demonstrations to choose"]),
        (["--rates", "1e30"], ["ft, seed 1: every learning rate diverged (1e+30)", "--rates"]),
    ],
)
def test_mistakes_are_named(dualform: Command, out: Path, arguments: list[str], words: list[str]) -> None:
    done = dualform("selection", "gpt2", "tickets.csv", *QUICK, *arguments, "--out", out)

    assert done.code == 2, done.err
    assert done.out == ""
    assert done.err.startswith("error: ")
    for word in words:
        assert word in done.message, done.message
    assert not (out / "result.json").exists()


def test_help_has_worked_examples(dualform: Command) -> None:
    done = dualform("selection", "--help")

    assert done.code == 0
    assert "dualform selection smollm2-135m reviews" in done.out
    for name in ("--untouched-limit", "--orders", "--rates", "--seeds"):
        assert name in done.out
