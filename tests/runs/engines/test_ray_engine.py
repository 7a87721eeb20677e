import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualform.errors import ConfigError
from dualform.runs.engines import ray_watch
from dualform.runs.engines.base import CellJob, Engine, EngineOptions
from dualform.runs.engines.opening import open_engine
from dualform.runs.engines.ray_engine import _choose_workers
from tests.runs.engines.waiting import collect_outcomes, has_text, is_alive, wait_for
from tests.runs.engines.works import Broken

ray = pytest.importorskip("ray")

WORKS = "tests.runs.engines.works:perform"


@pytest.fixture(scope="module")
def logs(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("logs")


@pytest.fixture(scope="module")
def engine(logs) -> Iterator[Engine]:
    """A cluster takes seconds to start, so the tests of this file share one, with a core left for another driver."""
    options = EngineOptions(log_dir=logs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dualform.runs.engines.ray_engine.cores", lambda: 3)
        engine = open_engine("ray", workers=2, threads=1, options=options, perform=WORKS)
    yield engine
    engine.close(kill=True)
    assert not ray.is_initialized()


def test_jobs_finish_fail_or_are_lost_each_is_reported_once_and_nothing_is_printed(engine, logs, capfd):
    payloads: dict[str, dict[str, Any]] = {"good": {"value": 1.5}, "after": {"value": 2}}
    payloads |= {name: {"do": name} for name in ("mistake", "fault", "die", "print")}
    for name, payload in payloads.items():
        engine.submit(CellJob(name, payload))
    outcomes = collect_outcomes(engine, len(payloads))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "finished",
        "after": "finished",
        "print": "finished",
        "mistake": "failed",
        "fault": "failed",
        "die": "lost",
    }
    assert outcomes["good"].facts["value"] == 1.5
    assert outcomes["mistake"].mistake
    assert outcomes["mistake"].message == "TaskError: no such task: choose another"
    assert "works.py" in outcomes["fault"].traceback
    assert outcomes["die"].message.startswith("the Ray worker is gone: ActorDiedError")
    assert outcomes["die"].message.isprintable()
    assert engine.collect(0) == []
    time.sleep(0.5)  # Ray's own words about the dead would come by now
    assert capfd.readouterr() == ("", "")
    assert "chatter\nmore chatter\n" in [path.read_text() for path in logs.iterdir()]


def begin_both(engine: Engine, folder: Path) -> None:
    """Start jobs a1 and b1, one on each worker."""
    files = [folder / "a1", folder / "b1"]
    for path in files:
        engine.submit(
            CellJob(path.name, {"do": "wait", "until": str(folder / "go"), "begun": str(path)}, affinity=path.name[0])
        )
    wait_for(lambda: engine.collect(0.2) == [] and all(has_text(path) for path in files), seconds=60)


def test_a_worker_keeps_its_model_and_gets_the_jobs_that_need_it(engine, tmp_path):
    begin_both(engine, tmp_path)
    (tmp_path / "go").touch()
    first = collect_outcomes(engine, 2)
    pids = {name: outcome.facts["pid"] for name, outcome in first.items()}
    assert pids["a1"] != pids["b1"]
    assert sorted(engine.idle_affinities()) == ["a", "b"]
    for name in ("b2", "a2", "b3", "a3"):
        engine.submit(CellJob(name, {"do": "sleep", "seconds": 0.3}, affinity=name[0]))
    assert engine.idle_affinities() == []
    then = collect_outcomes(engine, 4)
    assert {name: outcome.facts["pid"] for name, outcome in then.items()} == {
        "a2": pids["a1"],
        "a3": pids["a1"],
        "b2": pids["b1"],
        "b3": pids["b1"],
    }
    assert then["a3"].facts["works"] == first["a1"].facts["works"] + 2


def test_a_worker_killed_from_outside_loses_its_own_work_and_is_replaced(engine, tmp_path):
    begin_both(engine, tmp_path)
    os.kill(int((tmp_path / "a1").read_text()), signal.SIGKILL)
    assert {name: outcome.status for name, outcome in collect_outcomes(engine, 1).items()} == {"a1": "lost"}
    (tmp_path / "go").touch()
    assert collect_outcomes(engine, 1)["b1"].status == "finished"
    engine.submit(CellJob("a1", {"value": 2}, affinity="a"))
    assert collect_outcomes(engine, 1)["a1"].facts["value"] == 2


def test_a_worker_killed_while_idle_costs_no_work(engine):
    engine.submit(CellJob("first", {}, affinity="a"))
    pid = collect_outcomes(engine, 1)["first"].facts["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_alive(pid))
    engine.submit(CellJob("second", {}, affinity="a"))
    assert collect_outcomes(engine, 1)["second"].status == "finished"


def test_workers_have_the_requested_threads_and_the_drivers_environment(engine):
    variables = {
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": os.environ["HF_HUB_OFFLINE"],
    }
    engine.submit(CellJob("look", {"do": "environment", "names": list(variables)}))
    assert collect_outcomes(engine, 1)["look"].facts == variables


def test_a_process_that_has_joined_a_cluster_keeps_it_and_is_warned_of_workers_that_do_not_fit(engine):
    with pytest.warns(UserWarning, match=r"2 Ray workers need 5 CPU each: 0 of them fit now"):
        second = open_engine("ray", workers=2, threads=5, perform=WORKS)
    assert second.idle_affinities() == ["", ""]
    second.submit(CellJob("one", {}))
    assert second.idle_affinities() == [""]
    assert second.collect(0.2) == []
    second.close()
    assert ray.is_initialized()


def test_gpus_that_this_machine_does_not_have_are_refused(engine):
    with pytest.raises(ConfigError, match=r"needs 1 CPU, 1 GPU, but this machine has 3 CPU, 0 GPU"):
        _choose_workers(1, 1, EngineOptions(gpus=1), warn=False)


def test_a_worker_that_cannot_start_is_an_error_after_some_attempts(engine, monkeypatch):
    monkeypatch.setattr("dualform.runs.engines.ray_engine.JobActor", Broken)
    monkeypatch.setattr("dualform.runs.engines.ray_engine.START_ATTEMPTS", 1)
    second = open_engine("ray", workers=1, threads=1, perform=WORKS)
    second.submit(CellJob("one", {}))
    with pytest.raises(ConfigError, match=r"Ray cannot start a worker: .*no module named dualform on this node"):
        second.collect(60)
    second.close(kill=True)


def run_script(tmp_path: Path, script: str, *arguments: str) -> "subprocess.Popen[str]":
    """Run a driver in a new process, because this one has its cluster already."""
    path = tmp_path / "driver.py"
    path.write_text(script)
    return subprocess.Popen(
        [sys.executable, str(path), str(tmp_path), *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((os.getcwd(), f"{os.getcwd()}/src"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def test_a_cluster_that_is_started_here_listens_to_this_machine_alone(engine):
    psutil = pytest.importorskip("psutil")
    listening = {}
    for pid in ray_watch.family(ray_watch.children(os.getpid())):
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(pid).net_connections("inet"):
                if each.status == psutil.CONN_LISTEN:
                    listening[each.laddr.port] = each.laddr.ip.removeprefix("::ffff:")
    assert len(listening) > 3
    assert set(listening.values()) == {"127.0.0.1"}


STRANGER = """
import sys
from ray._raylet import GcsClient
try:
    print("keys", len(GcsClient(address=sys.argv[2]).internal_kv_keys(b"", None, timeout=20)))
except Exception as error:
    print(type(error).__name__)
"""


def test_a_process_without_the_token_is_refused(engine, tmp_path, monkeypatch):
    address = ray.get_runtime_context().gcs_address
    assert "keys" in run_script(tmp_path, STRANGER, address).communicate(timeout=60)[0]
    monkeypatch.setenv("RAY_AUTH_TOKEN", "0" * 64)
    output = run_script(tmp_path, STRANGER, address).communicate(timeout=60)[0]
    assert "AuthenticationError" in output
    assert "keys" not in output


OWN_CLUSTER = """
import sys
from dualform.runs.engines.base import EngineOptions, CellJob
from dualform.runs.engines.opening import open_engine
engine = open_engine("ray", workers=1, threads=1, perform="tests.runs.engines.works:perform")
engine.submit(CellJob("long", {"do": "sleep", "seconds": 60, "begun": f"{sys.argv[1]}/worker"}))
engine.collect(60)
"""


def test_nothing_of_a_cluster_outlives_the_driver_that_started_it(tmp_path):
    driver = run_script(tmp_path, OWN_CLUSTER)
    wait_for(partial(has_text, tmp_path / "worker"), seconds=90)
    started = ray_watch.family([driver.pid])
    assert len(started) > 5
    driver.kill()
    driver.communicate(timeout=30)
    wait_for(lambda: not [pid for pid, begun in started.items() if ray_watch.started(pid) == begun], seconds=10)


def test_a_ray_without_tokens_is_refused(monkeypatch):
    monkeypatch.setattr("dualform.runs.engines.ray_engine.version", lambda name: "2.51.1")
    with pytest.raises(ConfigError, match=r"Ray 2\.51\.1 lets any process .* needs Ray 2\.52 or newer"):
        open_engine("ray", workers=1, perform=WORKS)


UNREACHABLE = """
from dualform.errors import ConfigError
from dualform.runs.engines.base import EngineOptions
from dualform.runs.engines.opening import open_engine
for address in ("127.0.0.1:9", "nonsense"):
    try:
        open_engine("ray", options=EngineOptions(address=address))
    except ConfigError as error:
        print(error)
"""


def test_no_cluster_at_an_address_is_one_sentence(tmp_path):
    first, second = run_script(tmp_path, UNREACHABLE).communicate(timeout=60)[0].splitlines()
    assert first.startswith("no Ray cluster at 127.0.0.1:9 (ConnectionRefusedError")
    assert second.startswith("no Ray cluster at nonsense (ValueError")


DRIVER = """
import sys
from dualform.runs.engines.base import EngineOptions, CellJob
from dualform.runs.engines.opening import open_engine
options = EngineOptions(address=sys.argv[2])
engine = open_engine("ray", workers=1, threads=1, options=options, perform="tests.runs.engines.works:perform")
engine.submit(CellJob("long", {"do": "sleep", "seconds": 60, "begun": f"{sys.argv[1]}/worker"}))
engine.collect(60)
"""


def test_no_worker_outlives_a_driver_that_is_killed(engine, tmp_path):
    driver = run_script(tmp_path, DRIVER, ray.get_runtime_context().gcs_address)
    wait_for(partial(has_text, tmp_path / "worker"), seconds=60)
    worker = int((tmp_path / "worker").read_text())
    driver.kill()
    assert driver.communicate(timeout=30)[0] == ""
    wait_for(lambda: not is_alive(worker), seconds=10)
    engine.submit(CellJob("after", {"value": 3}))
    assert collect_outcomes(engine, 1)["after"].facts["value"] == 3


NODES = """
import os, signal, sys
from functools import partial
from pathlib import Path
import ray
from ray.cluster_utils import Cluster
from dualform.runs.engines.base import EngineOptions, CellJob
from dualform.runs.engines.opening import open_engine
from tests.runs.engines.waiting import collect_outcomes, has_text, wait_for

def main(folder):
    # A dead node is noticed after a second or two; Ray's own patience is a quarter of a minute.
    haste = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    head = {"num_cpus": 1, "include_dashboard": False, "_system_config": haste}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    other = cluster.add_node(num_cpus=1)
    engine = open_engine("ray", workers=2, threads=1, options=EngineOptions(address=cluster.address), perform=PERFORM)
    for name in ("one", "two"):
        engine.submit(CellJob(name, {"do": "wait", "until": str(folder / "go"), "begun": str(folder / name)}))
    # A work is handed out once its worker has started.
    wait_for(lambda: engine.collect(0.2) == [] and all(has_text(folder / name) for name in ("one", "two")), 60)
    os.kill(other.all_processes["raylet"][0].process.pid, signal.SIGKILL)
    ((lost, ended),) = collect_outcomes(engine, 1).items()
    print(ended.status, ended.message)
    (folder / "go").touch()
    engine.submit(CellJob(lost, {"value": 2}))
    print(sorted(ended.status for ended in collect_outcomes(engine, 2).values()))
    engine.close()
    print(ray.is_initialized())
    cluster.shutdown()

PERFORM = "tests.runs.engines.works:perform"
main(Path(sys.argv[1]))
"""


def test_a_killed_node_loses_only_its_own_jobs(tmp_path):
    output = run_script(tmp_path, NODES).communicate(timeout=120)[0].splitlines()
    assert output[0].startswith("lost the Ray worker is gone: ActorDiedError"), output
    assert output[0].isprintable()
    # The cluster is somebody else's: it was left, not ended.
    assert output[1:] == ["['finished', 'finished']", "False"]
