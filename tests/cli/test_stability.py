"""`dualform stability`, end to end on tiny checkpoints."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dualform.runs.store import RunFolder
from dualform.schema_versions import RESULT_SCHEMA
from dualform.studies.pieces import Piece
from dualform.studies.stability import run as stability
from dualform.studies.stability.config import StabilityConfig
from tests.cli.conftest import Done, as_at_a_shell, result_of, run_command
from tests.cli.test_compare import PROMISED
from tests.studies.small import write_choices

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
DATA = ["--task", "tickets.csv", "--text", "body", "--label", "topic"]
SETS = ["-k", "4", "--seeds", "1..3", "--orders", "2", "--ft-seeds", "2", "--ft-orders", "2", "--label-seeds", "2"]
SMALL = [*DATA, *SETS, "--limit", "8", "--selection-limit", "6", "--rates", "1e-2", "--resamples", "50"]
"""Half a second a model."""


@pytest.fixture(scope="module")
def main_job(workplace: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Done, Path]:
    """Two models, once for all tests that look at it; `test_compare` has such a job in a process of its own."""
    folder = tmp_path_factory.mktemp("stability") / "run"
    with as_at_a_shell(workplace):
        return run_command("stability", "gpt2", "llama", *SMALL, "--json", "--out", folder), folder


def stable(result: dict[str, Any]) -> dict[str, Any]:
    """All but what may differ between two equal runs."""
    return {name: value for name, value in result.items() if name != "environment"}


def test_success_exits_0_with_the_result_alone_on_standard_output(main_job: Any) -> None:
    done, folder = main_job

    assert done.code == 0, done.err
    assert done.out == (folder / "result.json").read_text(encoding="utf-8")
    assert done.err.split() == ["Report:", str(folder / "report.html")]


def test_the_folder_holds_exactly_what_was_promised(main_job: Any) -> None:
    _, folder = main_job

    assert {path.name for path in folder.iterdir()} == PROMISED
    config = StabilityConfig.read(folder / "config.yaml")
    assert (config.models, config.task, config.seeds, config.orders) == (("gpt2", "llama"), "tickets.csv", (1, 2, 3), 2)
    log = (folder / "log.txt").read_text()
    assert re.search(r"dualform \S+: gpt2, llama on tickets\.csv$", log, re.MULTILINE)
    for model in ("gpt2", "llama"):
        for seed in (1, 2, 3):
            assert f"{model}, seed {seed}: finished" in log
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_result_holds_every_number_that_was_promised(main_job: Any) -> None:
    _, folder = main_job
    result = result_of(folder)

    assert list(result)[:5] == ["schema", "dualform", "study", "config", "environment"]
    assert (result["schema"], result["study"]) == (RESULT_SCHEMA, "stability")
    # Smallest first: the tiny llama has fewer parameters.
    assert list(result["stability"]["models"]) == ["llama", "gpt2"]
    for model in result["stability"]["models"].values():
        assert list(model["learners"]) == ["zsl", "icl", "ft"]
        for name, n in (("zsl", 1), ("icl", 6), ("ft", 4)):
            learner = model["learners"][name]
            for behaviour in (learner["plain"], learner["calibrated"]):
                assert behaviour["accuracy"]["n"] == n
                assert 0 <= behaviour["accuracy"]["low"] <= behaviour["accuracy"]["high"] <= 1
                assert 0.5 <= behaviour["majority_share"]["mean"] <= 1
                assert 0 <= behaviour["collapse_rate"]["mean"] <= 1
            true = [run for run in learner["runs"] if run["labels"] == "true"]
            assert len(true) == n
        assert list(model["learners"]["icl"]["labels"]) == ["true", "random", "flipped"]
        assert [trial["learning_rate"] for trial in model["trials"]] == [1e-2]
    questions = Counter(contrast["question"] for contrast in result["stability"]["contrasts"])
    assert questions == {"ft_beside_icl": 4, "size": 4}


def test_the_table_has_every_runs_answer_to_every_query(main_job: Any) -> None:
    _, folder = main_job
    rows = pq.read_table(folder / "examples.parquet").to_pylist()

    assert list(rows[0]) == [
        "model", "learner", "seed", "order", "labels", "query", "label", "prediction", "calibrated_prediction",
        "log_probability:negative", "log_probability:positive",
    ]  # fmt: skip
    # Zero-shot once, ICL 3 x 2, FT 2 x 2, and both with two wrong labels on two sets.
    assert len(rows) == 2 * (1 + 6 + 4 + 8) * 8
    assert all(row["label"] == row["query"] % 2 for row in rows)


def test_the_report_can_be_written_again(dualform: Command, main_job: Any, real_page: None) -> None:
    _, folder = main_job
    before = (folder / "report.html").read_bytes()

    assert dualform("report", folder).code == 0
    assert (folder / "report.html").read_bytes() == before


def test_tables_go_to_standard_output_and_the_rest_to_standard_error(dualform: Command, out: Path) -> None:
    done = dualform("stability", "gpt2", *SMALL, "--out", out)

    assert done.code == 0
    assert "ICL" in done.out
    assert "Note: Only 3 demonstration sets" in " ".join(done.out.split())
    assert "Report: " in done.err
    assert "Note" not in done.err


def test_without_a_folder_the_run_is_written_below_runs_by_all_models(dualform: Command, workplace: Path) -> None:
    done = dualform("stability", "./gpt2/", "llama", *SMALL, "--ft-seeds", "0", "--label-seeds", "0")

    assert done.code == 0
    folder = workplace / "runs" / "gpt2-llama-tickets-stability"
    assert {path.name for path in folder.iterdir()} == PROMISED


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [(["--seeds", "2"], [2]), (["--seeds", "4,9"], [4, 9]), (["--seeds", "3..5"], [3, 4, 5]),
     (["--seeds", "0,"], None), (["--seeds", "0"], [0]), (["--seed", "7"], [7])],
)  # fmt: skip
def test_a_bare_number_is_one_seed(dualform: Command, out: Path, arguments: list[str], seeds: list[int] | None) -> None:
    base = [*DATA, "-k", "4", "--orders", "1", "--ft-seeds", "0", "--label-seeds", "0", "--limit", "4"]
    done = dualform("stability", "gpt2", *base, "--resamples", "20", *arguments, "--out", out)

    assert done.code == (2 if seeds is None else 0)
    if seeds is not None:
        assert result_of(out)["config"]["seeds"] == seeds


def test_further_rates_have_rows_of_their_own(dualform: Command, out: Path) -> None:
    assert dualform("stability", "gpt2", *SMALL, "--further-rates", "1e-4,5e-2", "--out", out).code == 0

    assert list(result_of(out)["stability"]["models"]["gpt2"]["learners"]) == [
        "zsl", "icl", "ft", "ft@0.0001", "ft@0.05",
    ]  # fmt: skip


def test_a_multiple_choice_task_runs_whole_without_calibration(
    dualform: Command, out: Path, workplace: Path, real_page: None
) -> None:
    write_choices(workplace / "answers.jsonl")
    arguments = ["--task", "answers.jsonl", "--text", "goal", *SMALL[len(DATA) :]]

    done = dualform("stability", "gpt2", *arguments, "--out", out)

    assert done.code == 0
    learners = result_of(out)["stability"]["models"]["gpt2"]["learners"]
    assert all(learner["calibrated"] is None for learner in learners.values())


def test_the_same_command_gives_the_same_numbers(dualform: Command, tmp_path: Path) -> None:
    result = []
    for name in ("one", "two"):
        assert dualform("stability", "gpt2", *SMALL, "--out", tmp_path / name).code == 0
        result.append(result_of(tmp_path / name))

    assert json.dumps(stable(result[0])) == json.dumps(stable(result[1]))


# Mistakes.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "x"], ["seeds 'x' should look like 3, 1..7 or 1,4,9"]),
        (["--seeds", "3..1"], ["runs backwards"]),
        (["--seeds", "1..10001"], ["more than 10000 seeds"]),
        (["--seed", "1"], ["--seed 1 and --seeds", "were both given"]),
        (["-k", "0"], ["k 0 leaves no demonstrations to draw or reorder"]),
        (["-k", "-1"], ["k: ", "(given -1)"]),
        (["-k", "35"], ["35 demonstrations were requested", "has 34 rows"]),
        (["--orders", "0"], ["orders: ", "(given 0)"]),
        (["--ft-orders", "0"], ["--ft-orders: ", "(given 0)"]),
        (["--ft-seeds", "-1"], ["--ft-seeds: ", "(given -1)"]),
        (["--label-seeds", "-1"], ["--label-seeds: ", "(given -1)"]),
        (["--rates", "fast"], ["rates 'fast'", "such as 1e-4,1e-3"]),
        (["--further-rates", "x"], ["further_rates 'x' should be numbers"]),
        (["--further-rates", "-1"], ["further_rates [-1.0]", "between 0 and 1e+37"]),
        (["--rates", "1e30"], ["every learning rate tried diverged (1e+30)"]),
        (["--task", "reveiws"], ["no task 'reveiws'", "Did you mean 'reviews'?"]),
        (["--label-words", "good,good"], ["label word 'good'"]),
        (["--out", "tickets.csv/run"], ["cannot write tickets.csv/run", "choose another folder with --out"]),
    ],
)
def test_a_mistake_ends_in_one_message_that_names_it(
    dualform: Command, out: Path, arguments: list[str], words: list[str]
) -> None:
    done = dualform("stability", "gpt2", *SMALL, "--out", out, *arguments)

    assert done.code == 2, done.err
    assert done.out == ""
    assert re.fullmatch(r"error: [^\n]+\n", done.err)
    for word in words:
        assert word in done.message, f"{word!r} is not in {done.message!r}"
    assert not (out / "result.json").exists()


@pytest.mark.parametrize(
    ("models", "words"),
    [
        (["gpt3"], "'gpt3' is neither a packaged model"),
        (["gpt2", "./nowhere"], "no model folder at nowhere"),
        (["gpt2", "gpt2"], "models ['gpt2', 'gpt2']: give at least one model, and each only once"),
    ],
)
def test_a_model_that_cannot_be_used_is_named(dualform: Command, out: Path, models: list[str], words: str) -> None:
    done = dualform("stability", *models, *SMALL, "--out", out)

    assert done.code == 2
    assert words in done.message


def test_without_a_model_or_a_task_the_usage_is_shown(dualform: Command) -> None:
    done = dualform("stability", "gpt2")
    assert done.code == 2
    assert "--task" in done.err
    assert dualform("stability", "--task", "reviews").code == 2


def test_the_result_of_other_settings_is_not_written_over(dualform: Command, out: Path) -> None:
    base = [*SMALL, "--ft-seeds", "0", "--label-seeds", "0", "--out", out]
    assert dualform("stability", "gpt2", *base).code == 0

    done = dualform("stability", "gpt2", *base, "--orders", "3")
    assert done.code == 2
    assert "holds the result of other settings" in done.message
    assert dualform("stability", "gpt2", *base, "--orders", "3", "--overwrite").code == 0
    # Another study's result is another's, too.
    done = dualform("compare", "gpt2", *DATA[1:], "--learners", "zsl,icl", "-k", "4", "--out", out)
    assert "holds the result of other settings" in done.message


# Interrupted.


def test_a_stopped_study_resumes_and_gives_the_numbers_of_an_uninterrupted_one(
    dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    arguments = ["stability", "gpt2", "llama", *SMALL]
    assert dualform(*arguments, "--out", whole).code == 0
    put, run_set = RunFolder.put, stability._run_set
    sets: list[int] = []

    def stop_after_four(self: RunFolder, piece: Piece) -> None:
        put(self, piece)
        if len(list(stopped.glob("cells-*/*"))) == 4:
            raise KeyboardInterrupt

    def counted(*args: Any) -> Any:
        sets.append(args[2].seed)
        return run_set(*args)

    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "put", stop_after_four)
        done = dualform(*arguments, "--out", stopped)
    assert done.code == 130
    assert done.out == ""
    assert done.message == "Finished sets are kept; run the same command to resume. stopped"
    assert not (stopped / "result.json").exists()
    assert not list(stopped.rglob("*.tmp"))

    monkeypatch.setattr(stability, "_run_set", counted)
    assert dualform(*arguments, "--out", stopped).code == 0

    # All three of the first model and one of the second were kept.
    assert sets == [2, 3]
    assert {path.name for path in stopped.iterdir()} == PROMISED
    assert json.dumps(stable(result_of(stopped))) == json.dumps(stable(result_of(whole)))
    tables = [pq.read_table(folder / "examples.parquet") for folder in (stopped, whole)]
    assert tables[0] == tables[1]
