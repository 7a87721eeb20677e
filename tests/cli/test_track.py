"""`--track`: a run's numbers on a dashboard, by the command line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dualform.lab.losses import read_losses
from tests.cli.conftest import QUICK, Done, result_of
from tests.studies.momentum_setting import RECIPE, STEPS, write_texts

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]


@pytest.fixture(autouse=True)
def _own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI", "RANK"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def tracked(folder: Path, project: str) -> tuple[Any, Any]:
    """The only run of a folder's store, and who can tell more."""
    mlflow = pytest.importorskip("mlflow")
    client = mlflow.MlflowClient(tracking_uri=(folder / "mlflow").as_uri())
    (logged_run,) = client.search_runs([client.get_experiment_by_name(project).experiment_id])
    return logged_run, client


def test_a_study_sends_its_numbers_and_its_page(dualform: Command, out: Path) -> None:
    pytest.importorskip("mlflow")
    done = dualform("compare", "gpt2", "tickets.csv", *QUICK, "--track", "mlflow", "--json", "--out", out)

    assert done.code == 0, done.err
    assert json.loads(done.out) == result_of(out)
    assert done.message.endswith(f"mlflow: mlflow ui --backend-store-uri {(out / 'mlflow').as_uri()}")
    logged_run, client = tracked(out, "dualform")
    assert (logged_run.info.run_name, logged_run.info.status) == ("run", "FINISHED")
    assert logged_run.data.metrics["accuracy/icl"] == result_of(out)["accuracy"]["icl"]["mean"]
    assert logged_run.data.params["k"] == "4"
    assert {file.path for file in client.list_artifacts(logged_run.info.run_id)} == {"report.html", "result.json"}


def test_training_sends_every_step(dualform: Command, tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    (corpus,) = write_texts(tmp_path)["corpus"]
    settings = [part for name, value in RECIPE.items() for part in ("--set", f"{name}={value}")]
    to = tmp_path / "model"
    done = dualform("momentum", "train", corpus, *settings, "--device", "cpu", "--track", "mlflow", "--to", to)

    assert done.code == 0, done.err
    logged_run, client = tracked(to, "dualform-momentum")
    steps = client.get_metric_history(logged_run.info.run_id, "loss")
    assert [step.step for step in steps] == list(range(1, STEPS + 1))
    assert [step.value for step in steps] == [record.loss for record in read_losses(to / "losses.jsonl")]
    assert logged_run.data.metrics["seconds"] > 0


def test_of_several_processes_that_train_together_one_tracks_the_numbers(
    dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dualform.runs import trackers

    requested: list[str] = []
    open_tracker = trackers.open_tracker

    def noted(spec: str, **more: Any) -> Any:
        requested.append(spec)
        return open_tracker("none", **more)

    monkeypatch.setattr(trackers, "open_tracker", noted)
    (corpus,) = write_texts(tmp_path)["corpus"]
    settings = [part for name, value in RECIPE.items() for part in ("--set", f"{name}={value}")]
    command = ["momentum", "train", corpus, *settings, "--device", "cpu", "--track", "mlflow", "--to", tmp_path / "a"]
    assert dualform(*command).code == 0
    # As torchrun sets it for the others.
    monkeypatch.setenv("RANK", "1")
    dualform(*command)
    assert requested == ["mlflow", "none"]


@pytest.mark.parametrize(
    "command", [["compare", "gpt2", "tickets.csv", *QUICK, "--out"], ["momentum", "train", "corpus.txt", "--to"]]
)
def test_a_mistake_in_a_trackers_name_is_reported_at_once(dualform: Command, out: Path, command: list[str]) -> None:
    done = dualform(*command, out, "--track", "wandbb")

    assert done.code == 2
    assert done.message.startswith("error: unknown tracker 'wandbb'. Did you mean wandb?")
    assert not out.exists()


def test_a_mistake_in_a_run_ends_the_tracked_run_as_failed(dualform: Command, out: Path) -> None:
    pytest.importorskip("mlflow")
    # A mistake in the data is found before there is a run to track.
    done = dualform("compare", "./nowhere", "tickets.csv", *QUICK, "--track", "mlflow", "--out", out)

    assert done.code == 2
    logged_run, _ = tracked(out, "dualform")
    assert logged_run.info.status == "FAILED"
