import contextlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml

from dualform.schema_versions import RESULT_SCHEMA
from dualform.studies.comparison.config import CHEAP_CONTROLS, read_config
from dualform.studies.controls import CONTROLS
from tests.cli.conftest import QUICK, SMALL, Done, numbers, result_of
from tests.studies.small import write_choices

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
Shell = subprocess.CompletedProcess[str]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
LEARNERS = ["zsl", "icl", "ft", "lora", "probe", "fold"]
MEASURES = [
    *("rec2ftp", "agreement", "sim_aou", "sim_aou_raw", "sim_am", "sim_am_before", "sim_am_centred", "sim_am_softmax"),
    *("sim_am_delta", "kendall", "kendall_demo", "direct_update"),
    *("top_k_overlap", "overlap_cosine", "vocabulary_shared"),
]
LAYERED = set(MEASURES) - {"rec2ftp", "agreement", "top_k_overlap", "overlap_cosine", "vocabulary_shared"}


@pytest.fixture(scope="module")
def main_job(
    workplace: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A comparison through the installed entry point, with warnings as errors, run once for several tests."""
    folder = tmp_path_factory.mktemp("main") / "run"
    arguments = ["compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "1,2", "--json", "--out", str(folder)]
    return shell(workplace, *arguments), folder


def shell(workplace: Path, *arguments: str) -> Shell:
    script = "from dualform.cli.main import main; main()"
    command = [sys.executable, "-W", "error::UserWarning", "-c", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, cwd=workplace, env=environment, timeout=180)


def test_success_exits_0_with_the_result_alone_on_standard_output(main_job: Any) -> None:
    done, folder = main_job

    assert done.returncode == 0, done.stderr
    assert done.stdout == (folder / "result.json").read_text(encoding="utf-8")
    # Quiet where there is no terminal: no bars, no library's chatter.
    assert done.stderr.split() == ["Report:", str(folder / "report.html")]


def test_the_folder_holds_exactly_what_was_promised(main_job: Any) -> None:
    _, folder = main_job

    assert {path.name for path in folder.iterdir()} == PROMISED | {"attention.json"}
    config = read_config(folder / "config.yaml")
    assert (config.model, config.task, config.k, config.seeds) == ("gpt2", "tickets.csv", 4, (1, 2))
    log = (folder / "log.txt").read_text()
    assert re.search(r"^\d{4}-\d\d-\d\dT\S+ dualform \S+: gpt2 on tickets\.csv$", log, re.MULTILINE)
    assert "seed 1: finished" in log
    assert "seed 2: finished" in log
    assert (folder / "report.html").stat().st_size > 10_000


def test_the_result_begins_as_promised(main_job: Any) -> None:
    _, folder = main_job
    result = result_of(folder)

    assert list(result)[:5] == ["schema", "dualform", "study", "config", "environment"]
    assert result["schema"] == RESULT_SCHEMA
    assert result["study"] == "comparison"
    assert result["config"] == yaml.safe_load((folder / "config.yaml").read_text())
    assert {"python", "torch", "transformers", "device", "threads", "seconds"} <= result["environment"].keys()


def test_the_result_holds_every_number_that_was_promised(main_job: Any) -> None:
    _, folder = main_job
    result = result_of(folder)

    assert list(result["accuracy"]) == LEARNERS
    for learner in LEARNERS:
        accuracy = result["accuracy"][learner]
        assert accuracy.keys() == {"mean", "ci95", "n", "per_seed", "per_label", "macro_f1", "over_majority"}
        assert accuracy["n"] == (8 if learner == "zsl" else 16)
        if learner == "zsl":
            # Of fewer than ten answers there is no interval.
            assert accuracy["ci95"] == [None, None]
        else:
            assert 0 <= accuracy["ci95"][0] <= accuracy["mean"] <= accuracy["ci95"][1] <= 1
        assert list(accuracy["per_seed"]) == ["1", "2"]
        predictions = result["predictions"][learner]
        assert 0.5 <= predictions["majority_share"] <= 1
        assert predictions["entropy"] >= 0
        cost = result["cost"][learner]
        assert {"adapt_seconds", "query_seconds", "tokens", "flops"} <= cost.keys()
        assert cost["tokens"] > 0
        assert cost["flops"] > 0
    assert set(MEASURES) <= result["similarity"].keys()
    for name in MEASURES:
        measure = result["similarity"][name]
        assert {"mean", "ci95", "n", "per_layer"} <= measure.keys()
        assert (measure["per_layer"] is not None) == (name in LAYERED), name
        if name in LAYERED:
            assert len(measure["per_layer"]) == 2
            assert -1 <= measure["mean"] <= 1
            assert measure["n"] == 16
    assert set(result["controls"]) == set(CHEAP_CONTROLS)
    for control, measures in result["controls"].items():
        assert {"mean", "ci95", "n"} <= measures["sim_aou"].keys()
        assert measures["sim_aou"]["n"] == 16, control
    calibrated = result["calibrated"]["sim_aou"]
    assert {"mean", "ci95", "n", "score", "control", "floor", "ceiling", "minimum_detectable"} <= calibrated.keys()
    assert len(result["similarity"]["sim_aou"]["per_layer_q"]) == 2
    assert len(result["tests"]) == 6 * 5 / 2
    # More is read for context than for zero-shot, and only finetuning has learning rates.
    assert result["cost"]["icl"]["tokens"] > result["cost"]["zsl"]["tokens"] == result["cost"]["ft"]["tokens"]
    assert {trial["learner"] for trial in result["trials"]} == {"ft", "lora"}


def test_the_result_names_the_demonstrations(main_job: Any) -> None:
    _, folder = main_job
    result = result_of(folder)["demonstrations"]

    assert (result["k_requested"], result["k_effective"]) == (4, 4)
    assert list(result["rows"]) == ["1", "2"]
    for rows in result["rows"].values():
        assert len(set(rows)) == 4
        assert all(0 <= row < 60 for row in rows)
    # Balanced: row numbers of the table tell the label.
    assert sorted(row % 2 for row in result["rows"]["1"]) == [0, 0, 1, 1]


def test_the_table_has_every_learners_answer_to_every_query(main_job: Any) -> None:
    _, folder = main_job
    rows = pq.read_table(folder / "examples.parquet").to_pylist()
    demonstrations = result_of(folder)["demonstrations"]["rows"]

    assert list(rows[0]) == [
        "seed", "learner", "query", "label", "prediction", "log_probability:negative", "log_probability:positive",
    ]  # fmt: skip
    keys = {(row["seed"], row["learner"], row["query"]) for row in rows}
    assert len(keys) == len(rows) == 2 * len(LEARNERS) * 8
    assert all(row["label"] == row["query"] % 2 for row in rows)
    # No query is among its demonstrations.
    assert not any(row["query"] in demonstrations[str(row["seed"])] for row in rows)


def test_tables_go_to_standard_output_and_the_rest_to_standard_error(dualform: Command, out: Path) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", out)

    assert done.code == 0
    for title in ("Accuracy", "Similarity of context and finetuning", "Cost", "Note: "):
        assert title in done.out
    assert "Report: " in done.err
    assert "Accuracy" not in done.err


def test_without_a_folder_the_run_is_written_below_runs(dualform: Command, workplace: Path) -> None:
    done = dualform("compare", "./gpt2/", "tickets.csv", *QUICK)

    assert done.code == 0
    assert {path.name for path in (workplace / "runs" / "gpt2-tickets").iterdir()} == PROMISED | {"attention.json"}


def test_without_a_folder_the_result_of_other_settings_is_kept(
    dualform: Command, tmp_path: Path, workplace: Path
) -> None:
    arguments = ["compare", workplace / "gpt2", workplace / "tickets.csv", *QUICK]
    with contextlib.chdir(tmp_path):
        assert dualform(*arguments).code == 0
        before = (tmp_path / "runs" / "gpt2-tickets" / "result.json").read_bytes()
        assert dualform(*arguments, "--resamples", "60").code == 0

    first, second = sorted((tmp_path / "runs").iterdir())
    assert re.fullmatch(r"gpt2-tickets-[0-9a-f]{6}", second.name)
    assert (first / "result.json").read_bytes() == before
    assert result_of(second)["config"]["resamples"] == 60


def test_the_papers_protocol_runs_and_reports_what_it_inflates(dualform: Command, out: Path) -> None:
    arguments = ["--seeds", "1..3", "--rates", "1e-3,1e-2", "--preset", "dai2023"]
    done = dualform("compare", "gpt2", "tickets.csv", *SMALL, *arguments, "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert list(result["accuracy"]) == ["zsl", "icl", "ft"]
    assert result["config"]["probe"] == "label0"
    assert result["config"]["rates"] == [1e-3, 1e-2]
    assert result["task"]["selection_split"] == result["task"]["report_split"]
    assert len(result["accuracy"]["icl"]["per_seed"]) == 1
    assert len(result["trials"]) == 2
    notes = " ".join(result["warnings"])
    assert "was chosen among 3 for the accuracy of ICL on the reported queries" in notes
    assert "chosen on the reported queries, as in the paper, so FT's accuracy is biased upwards" in notes
    assert set(result["controls"]) == {*CHEAP_CONTROLS, "random_released"}


def test_the_seed_can_be_chosen_on_other_queries_than_those_reported(dualform: Command, out: Path) -> None:
    arguments = ["--seeds", "1..3", "--rates", "1e-3,1e-2", "--select", "both"]
    assert dualform("compare", "gpt2", "tickets.csv", *QUICK, *arguments, "--out", out).code == 0

    result = result_of(out)
    assert result["config"]["select"] == "both"
    assert result["task"]["selection_split"] != result["task"]["report_split"]
    (seed,) = result["demonstrations"]["rows"]
    (note,) = [warning for warning in result["warnings"] if "was chosen among 3" in warning]
    assert note.startswith(f"Seed {seed} was chosen among 3 for the accuracy of ICL and FT (mean) on the selection")
    assert note.endswith("The reported queries were not used.")


@pytest.mark.filterwarnings("ignore:label words 'short' and 'long' begin with the same token")
def test_all_controls_can_be_requested_at_once(dualform: Command, out: Path, real_page: None) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--controls", "all", "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert result["config"]["controls"] == list(CONTROLS.own)
    assert set(result["controls"]) == {*CONTROLS.own, "batch_sequential"} - {"rates"}
    assert [point["learning_rate"] for point in result["rate_sweep"]] == [1e-2]
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_controls_can_be_left_out(dualform: Command, out: Path, real_page: None) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--controls", "none", "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert result["config"]["controls"] == []
    assert result["controls"] == result["calibrated"] == {}
    assert "<html" in (out / "report.html").read_text(encoding="utf-8")


def test_controls_can_be_named(dualform: Command, out: Path) -> None:
    arguments = ["--controls", "position_shift, icl_order", "--control-limit", "5"]
    assert dualform("compare", "gpt2", "tickets.csv", *QUICK, *arguments, "--out", out).code == 0

    result = result_of(out)
    assert list(result["controls"]) == ["position_shift", "icl_order"]
    assert result["controls"]["icl_order"]["sim_aou"]["n"] == 5
    assert result["similarity"]["sim_aou"]["n"] == 8


def test_another_tasks_demonstrations_can_be_shown(dualform: Command, out: Path) -> None:
    arguments = ["--controls", "other_task", "--other-task", "tickets.csv", "--out", out]
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, *arguments)

    # A table of one's own needs columns; what can be named is what is known by name.
    assert done.code == 2
    assert "tickets.csv" in done.message


@pytest.mark.parametrize(
    ("arguments", "seeds"),
    [(("--seeds", "1..3"), [1, 2, 3]), (("--seeds", "1,3"), [1, 3]), (("--seed", "0"), [0])],
)
def test_seeds_can_be_written_in_several_ways(
    dualform: Command, out: Path, arguments: tuple[str, ...], seeds: list[int]
) -> None:
    base = [*SMALL, "--learners", "zsl,icl"]
    assert dualform("compare", "gpt2", "tickets.csv", *base, *arguments, "--out", out).code == 0

    result = result_of(out)
    assert result["config"]["seeds"] == seeds
    assert list(result["demonstrations"]["rows"]) == [str(seed) for seed in seeds]


def test_a_family_outside_the_attention_registry_runs_whole(dualform: Command, out: Path) -> None:
    done = dualform("compare", "xglm", "tickets.csv", *SMALL, "--seeds", "1", "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert result["model"]["architecture"] == "XGLMForCausalLM"
    assert result["model"]["route"] == "packed-mask"
    assert list(result["accuracy"]) == LEARNERS
    assert set(MEASURES) <= result["similarity"].keys()
    assert all(result["similarity"][name]["mean"] is not None for name in LAYERED)


def test_a_yaml_task_runs_whole(dualform: Command, out: Path, workplace: Path) -> None:
    task = {
        "name": "film-tickets",
        "data": "tickets.csv",
        "text": "body",
        "label": "topic",
        "prompt": "Review: {body}\nSentiment:",
        "label_words": {"negative": "bad", "positive": "good"},
        "separator": "\n",
    }
    (workplace / "films.yaml").write_text(yaml.safe_dump(task))
    arguments = [*SMALL[4:], "--seeds", "1", "--learners", "zsl,icl,ft"]

    done = dualform("compare", "llama", "films.yaml", *arguments, "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert result["task"]["name"] == "film-tickets"
    assert result["task"]["label_words"] == ["bad", "good"]
    assert re.fullmatch(r"Review: a .*\nSentiment:", result["task"]["prompt"])
    columns = pq.read_schema(out / "examples.parquet").names
    assert columns[5:] == ["log_probability:bad", "log_probability:good"]


def test_a_multiple_choice_task_runs_whole_without_the_probe(dualform: Command, out: Path, workplace: Path) -> None:
    write_choices(workplace / "endings.jsonl")
    arguments = ["--text", "goal", *SMALL[4:], "--seeds", "1"]

    done = dualform("compare", "gpt2", "endings.jsonl", *arguments, "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert list(result["accuracy"]) == ["zsl", "icl", "ft", "lora", "fold"]
    assert "The probe was left out: free-text choices have no classes to predict." in result["warnings"]
    assert result["task"]["label_words"] is None
    assert result["predictions"]["icl"]["majority_label"] is None
    rows = pq.read_table(out / "examples.parquet").to_pylist()
    # Even rows have two choices, odd ones three; what is not there has no log-probability.
    assert all((row["log_probability:2"] is None) == (row["query"] % 2 == 0) for row in rows)


def test_all_queries_are_reported_when_the_limit_is_0(dualform: Command, out: Path) -> None:
    arguments = ["--seeds", "1", "--learners", "zsl,icl", "--limit", "0"]
    assert dualform("compare", "gpt2", "tickets.csv", *SMALL, *arguments, "--out", out).code == 0

    assert result_of(out)["task"]["n_report"] == 18
    assert result_of(out)["config"]["limit"] is None


@pytest.mark.filterwarnings("default")
def test_demonstrations_that_do_not_fit_are_left_out_and_reported(dualform: Command, out: Path) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--context", "85", "--out", out)
    result = result_of(out)

    assert done.code == 0
    assert re.search(r"^note: 4 demonstrations take \d+ tokens, but a context of 85 leaves", done.err, re.MULTILINE)
    demonstrations = result["demonstrations"]
    assert 0 < demonstrations["k_effective"] < demonstrations["k_requested"] == 4
    assert len(demonstrations["rows"]["1"]) == demonstrations["k_effective"]
    assert any("4 demonstrations were requested, but fewer fit" in warning for warning in result["warnings"])


def test_a_rate_that_diverges_is_dropped_and_reported(dualform: Command, out: Path) -> None:
    arguments = [*QUICK, "--rates", "1e-3,1e30", "--out", out]
    assert dualform("compare", "gpt2", "tickets.csv", *arguments).code == 0

    result = result_of(out)
    assert [(trial["learning_rate"], trial["status"]) for trial in result["trials"]] == [
        (1e-3, "finished"),
        (1e30, "diverged"),
    ]
    assert any("Training diverged" in warning and "ft at 1e+30" in warning for warning in result["warnings"])


def test_the_same_command_gives_the_same_numbers(dualform: Command, tmp_path: Path) -> None:
    result = []
    for name in ("one", "two"):
        dualform("compare", "gpt2", "tickets.csv", *QUICK, "--out", tmp_path / name)
        result.append(result_of(tmp_path / name))

    assert numbers(result[0]) == numbers(result[1])


def test_a_json_run_prints_the_file_and_nothing_else(dualform: Command, out: Path) -> None:
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--json", "--out", out)

    assert done.out == (out / "result.json").read_text()
    assert json.loads(done.out)["schema"] == RESULT_SCHEMA
