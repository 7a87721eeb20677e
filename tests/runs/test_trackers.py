"""The real packages of all trackers, with their numbers on this machine, which are read back if possible."""

import json
import os
import shutil
import socket
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import ConfigError
from dualform.runs import trackers
from dualform.runs.trackers import check_tracker, open_tracker

CONFIG = {"model": "org/tiny", "seeds": [1, 2], "fold": {"method": "ridge", "strength": None}, "_note": "kept"}
SUMMARY = {"accuracy/icl": 0.75, "ci95/accuracy/icl/low": 0.5}
HOME = (
    *("WANDB_ERROR_REPORTING", "MLFLOW_DISABLE_TELEMETRY", "MLFLOW_ALLOW_FILE_STORE", "MLFLOW_TRACKING_URI"),
    *("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"),
)
needs = pytest.importorskip


@pytest.fixture(scope="module")
def trackio_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folder of trackio's databases, which trackio reads once when it is imported."""
    assert "trackio" not in sys.modules
    folder = tmp_path_factory.mktemp("trackio")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRACKIO_DIR", str(folder))
        yield folder


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a finished run, with a name that URLs must escape; no tracker is set in the environment."""
    for name in HOME:
        # So that what is set in a test is gone after it.
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    folder = tmp_path / "a run #1, 100%"
    folder.mkdir()
    (folder / "report.html").write_text("<p>page</p>", encoding="utf-8")
    (folder / "result.json").write_text("{}", encoding="utf-8")
    return folder


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """All connections to other machines that this process tries to open; none succeeds."""
    tried: list[Any] = []
    connect = socket.socket.connect

    def watched(self: socket.socket, address: Any) -> None:
        if self.family in (socket.AF_INET, socket.AF_INET6):
            tried.append(address)
            raise OSError("no network in this test")
        connect(self, address)

    def resolved(host: Any, *rest: Any, **more: Any) -> Any:
        tried.append(host)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket.socket, "connect", watched)
    monkeypatch.setattr(socket, "getaddrinfo", resolved)
    return tried


def track(spec: str, run: Path, name: str = "tiny-sst2") -> list[str]:
    """Track a run of three steps, and return the hint on how to view it."""
    with open_tracker(spec, project="dualform", run_name=name, config=CONFIG, folder=run) as tracker:
        where = tracker.where
        for step in (1, 2, 3):
            tracker.log(step, {"loss": 1.0 / step, "learning_rate": 0.01})
        tracker.finish(SUMMARY, [run / "report.html", run / "result.json", run / "not-there.html"])
    return where


def test_trackio_has_every_step_the_summary_and_the_files(
    run: Path, trackio_home: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    needs("trackio")
    # Asked for by nobody: a token that is saved, and a server that the environment names.
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("TRACKIO_SERVER_URL", "http://192.0.2.1?write_token=x")
    assert track("trackio", run) == ["trackio: trackio show --project dualform"]
    assert os.environ["TRACKIO_SERVER_URL"].startswith("http://192.0.2.1")
    assert no_network == []
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")
    (database,) = trackio_home.glob("*.db")

    from trackio.sqlite_storage import SQLiteStorage

    rows = SQLiteStorage.get_logs("dualform", "tiny-sst2")
    assert [row["loss"] for row in rows if "loss" in row] == [1.0, 0.5, 1 / 3]
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert {name: rows[-1][name] for name in SUMMARY} == SUMMARY
    config = SQLiteStorage.get_run_config("dualform", "tiny-sst2")
    assert config is not None
    assert (config["fold"]["method"], config["note"]) == ("ridge", "kept")
    assert database.name == "dualform.db"
    pages = [path for path in trackio_home.rglob("*") if path.is_file() and path.read_bytes() == b"<p>page</p>"]
    assert pages


def test_two_trackio_runs_may_be_under_way_at_once(run: Path, trackio_home: Path, no_network: list[Any]) -> None:
    needs("trackio")
    opened = {"project": "nested", "config": {}, "folder": run}
    with open_tracker("trackio", run_name="sweep", **opened) as outer:  # type: ignore[arg-type]
        outer.log(1, {"done": 1.0})
        with open_tracker("trackio", run_name="cell", **opened) as inner:  # type: ignore[arg-type]
            inner.log(1, {"loss": 2.0})
        outer.log(2, {"done": 2.0})
        outer.finish({"seconds": 3.0})

    from trackio.sqlite_storage import SQLiteStorage

    assert [row.get("done") for row in SQLiteStorage.get_logs("nested", "sweep")] == [1.0, 2.0, None]
    assert [row["loss"] for row in SQLiteStorage.get_logs("nested", "cell")] == [2.0]


def test_wandb_keeps_an_offline_run_in_the_runs_folder(run: Path, no_network: list[Any], capfd: Any) -> None:
    needs("wandb")
    (where,) = track("wandb", run)
    assert no_network == []
    assert os.environ["WANDB_ERROR_REPORTING"] == "false"
    (offline,) = (run / "wandb").glob("offline-run-*")
    assert where == f"wandb, offline: wandb sync '{offline}'"
    assert (offline / "files" / "report.html").read_text(encoding="utf-8") == "<p>page</p>"
    assert not (offline / "files" / "report.html").is_symlink()
    (log,) = offline.glob("*.wandb")
    logged: list[Any] = []
    # wandb's own process writes the last records after it has said that it is done.
    for _ in range(600):
        logged = list(wandb_records(log))
        if logged and logged[-1].HasField("exit"):
            break
        time.sleep(0.05)
    losses = [json.loads(value) for record in logged for value in values_of(record.history.item, "loss")]
    assert losses == [1.0, 0.5, 1 / 3]
    summary = [json.loads(value) for record in logged for value in values_of(record.summary.update, "accuracy/icl")]
    assert summary[-1] == 0.75
    settings = next(record.run.config.update for record in logged if record.HasField("run"))
    assert {item.key: json.loads(item.value_json) for item in settings}["fold"] == CONFIG["fold"]
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def values_of(items: Any, name: str) -> list[str]:
    """Values of one number among the items of a record of wandb."""
    return [item.value_json for item in items if name in (item.key, "/".join(item.nested_key))]


def wandb_records(log: Path) -> Iterator[Any]:
    """Records in wandb's offline log, which has LevelDB's format: blocks of 32 KiB with divided records."""
    from wandb.proto import wandb_internal_pb2 as protocol

    data = log.read_bytes()
    at, whole = 7, b""
    while at + 7 <= len(data):
        left = 32768 - at % 32768
        if left < 7:
            at += left
            continue
        length, piece = int.from_bytes(data[at + 4 : at + 6], "little"), data[at + 6]
        if at + 7 + length > len(data):
            return
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if piece in (1, 4):  # whole, or the last piece
            record = protocol.Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def test_mlflow_keeps_a_store_in_the_runs_folder(run: Path, no_network: list[Any], capfd: Any) -> None:
    needs("mlflow")
    (where,) = track("mlflow", run)
    assert no_network == []
    uri = (run / "mlflow").as_uri()
    assert where == f"mlflow: mlflow ui --backend-store-uri {uri}"
    logged = mlflow_run(uri)
    assert logged.info.run_name == "tiny-sst2"
    assert logged.info.status == "FINISHED"
    assert logged.data.metrics == {"loss": 1 / 3, "learning_rate": 0.01, **SUMMARY}
    assert logged.data.params["fold.method"] == "ridge"
    assert logged.data.params["seeds"] == "[1, 2]"

    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    steps = client.get_metric_history(logged.info.run_id, "loss")
    assert [(metric.step, metric.value) for metric in steps] == [(1, 1.0), (2, 0.5), (3, 1 / 3)]
    assert {file.path for file in client.list_artifacts(logged.info.run_id)} == {"report.html", "result.json"}
    assert capfd.readouterr() == ("", "")


def mlflow_run(uri: str) -> Any:
    """The only run of a store."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("dualform")
    assert experiment is not None
    (logged,) = client.search_runs([experiment.experiment_id])
    return logged


def test_mlflow_writes_to_the_store_named_in_the_environment(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    uri = (tmp_path / "shared").as_uri()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    track("mlflow", run)
    assert not (run / "mlflow").exists()
    assert mlflow_run(uri).data.metrics["accuracy/icl"] == 0.75


def test_a_run_with_an_error_is_marked_as_failed_and_keeps_its_steps(run: Path) -> None:
    needs("mlflow")
    tracker = open_tracker("mlflow", project="dualform", run_name="x", config={}, folder=run)
    tracker.log(1, {"loss": 2.0})
    with pytest.raises(ZeroDivisionError), tracker:
        raise ZeroDivisionError
    logged = mlflow_run((run / "mlflow").as_uri())
    assert (logged.info.status, logged.data.metrics) == ("FAILED", {"loss": 2.0})


def test_a_tracker_that_fails_during_a_run_gives_one_warning_and_the_others_continue(
    run: Path, trackio_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    needs("trackio")
    monkeypatch.setattr(trackers._Mlflow, "_EVERY", 0.0)
    with open_tracker("mlflow,trackio", project="half", run_name="x", config={}, folder=run) as tracker:
        tracker.log(1, {"loss": 3.0})
        shutil.rmtree(run / "mlflow")
        with pytest.warns(UserWarning, match="the tracker mlflow failed") as caught:
            tracker.log(2, {"loss": 2.0})
        assert len(caught) == 1
        assert tracker.where == ["trackio: trackio show --project half"]
        tracker.log(3, {"loss": 1.0})
        tracker.finish({"seconds": 1.0})

    from trackio.sqlite_storage import SQLiteStorage

    assert [row.get("loss") for row in SQLiteStorage.get_logs("half", "x")] == [3.0, 2.0, 1.0, None]


def test_a_tracker_that_cannot_start_gives_one_warning_and_the_run_continues(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    # A file where a store should be, as a typing error in the environment may have it.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (run / "result.json").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with pytest.warns(UserWarning, match="the tracker mlflow failed") as caught:
        tracker = open_tracker("mlflow", project="dualform", run_name="x", config={}, folder=run)
    assert len(caught) == 1
    tracker.log(1, {"loss": 1.0})
    tracker.finish(SUMMARY, [run / "report.html"])


def test_a_server_that_does_not_answer_gives_one_warning_without_its_password(
    run: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://me:secret@127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.warns(UserWarning, match="the tracker mlflow failed") as caught:
        assert track("mlflow:online", run) == []
    assert len(caught) == 1
    assert "secret" not in str(caught[0].message)
    assert no_network


@pytest.mark.parametrize(
    "uri",
    ["http://me:secret@127.0.0.1:9", "https://example.org", "databricks", "databricks://mine", "postgresql://h/d"],
)
def test_nothing_is_sent_to_a_server_without_online(
    run: Path, no_network: list[Any], monkeypatch: pytest.MonkeyPatch, uri: str
) -> None:
    needs("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    with pytest.warns(UserWarning, match="sends nothing to .*use --track mlflow:online") as caught:
        track("mlflow", run)
    assert len(caught) == 1
    assert "secret" not in str(caught[0].message)
    assert no_network == []
    assert mlflow_run((run / "mlflow").as_uri()).data.metrics["accuracy/icl"] == 0.75


@pytest.mark.parametrize(
    ("uri", "here"),
    [
        *(("", True), ("mlruns", True), ("/data/mlruns", True), ("file:///data/ml", True), ("sqlite:///a.db", True)),
        *(("C:/mlruns", True), ("file://host/share", False), ("databricks-uc://x", False), ("unheard-of://x", False)),
    ],
)
def test_only_files_of_this_machine_stay_here(uri: str, here: bool) -> None:
    assert trackers._stays_here(uri) == here


def test_online_needs_the_name_of_a_server(run: Path) -> None:
    needs("mlflow")
    with pytest.raises(ConfigError, match=r"mlflow:online needs the address of a server\. Set MLFLOW_TRACKING_URI"):
        check_tracker("mlflow:online")


class Failing:
    """A tracker whose server is gone, and whether it was closed."""

    where = "nowhere"

    def __init__(self) -> None:
        self.closed: list[bool] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        raise OSError("gone")

    def finish(self, summary: Mapping[str, float], files: Sequence[Path]) -> None:
        raise OSError("gone")

    def close(self, failed: bool) -> None:
        self.closed.append(failed)
        raise OSError("gone, too")


@pytest.mark.parametrize("when", ["log", "finish"])
def test_a_tracker_that_fails_is_closed_as_failed(when: str) -> None:
    failing = Failing()
    with trackers.RunTracker({"wandb": failing}) as tracker:
        with pytest.warns(UserWarning, match=r"the tracker wandb failed .*\(gone\)") as caught:
            tracker.log(1, {}) if when == "log" else tracker.finish({})
        assert failing.closed == [True]
        assert len(caught) == 1
    assert failing.closed == [True]


@pytest.mark.parametrize("spec", ["none", "", " none , "])
def test_no_tracker_does_nothing(spec: str, run: Path) -> None:
    before = sorted(run.iterdir())
    assert track(spec, run) == []
    assert sorted(run.iterdir()) == before


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ("wandbb", "unknown tracker 'wandbb'. Did you mean wandb?"),
        ("wandb:on", "unknown tracker 'wandb:on'. Did you mean wandb:online?"),
        ("mlflow:onlin", "unknown tracker 'mlflow:onlin'. Did you mean mlflow:online?"),
        ("trackio,tensorboard", "unknown tracker 'tensorboard'."),
    ],
)
def test_an_unknown_tracker_is_reported_before_any_work(spec: str, words: str) -> None:
    needs("trackio")
    with pytest.raises(ConfigError) as caught:
        check_tracker(spec)
    assert str(caught.value).startswith(words)
    assert "Choose from trackio, wandb, mlflow or none" in str(caught.value)


@pytest.mark.parametrize(("name", "package"), [("wandb", "wandb"), ("mlflow", "mlflow-skinny")])
def test_a_missing_package_is_reported_with_how_to_install_it(
    name: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        check_tracker(name)
    assert str(caught.value) == (
        f"tracker {name!r} needs a package that is not installed: pip install 'dualform[trackers]', or only "
        f"pip install {package}."
    )


def test_each_requested_tracker_is_read_once() -> None:
    for package in trackers.KNOWN:
        needs(package)
    assert check_tracker("trackio, wandb:online,mlflow,trackio") == (
        ("trackio", False),
        ("wandb", True),
        ("mlflow", False),
    )
