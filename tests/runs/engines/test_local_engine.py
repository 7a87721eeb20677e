import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from dualform.errors import ConfigError
from dualform.runs.engines.base import CellJob, Engine, EngineOptions
from dualform.runs.engines.opening import open_engine
from tests.runs.engines.waiting import collect_outcomes, has_text, is_alive, wait_for

WORKS = "tests.runs.engines.works:perform"


@pytest.fixture
def engine(tmp_path) -> Iterator[Engine]:
    engine = open_engine("local", workers=2, threads=1, options=EngineOptions(log_dir=tmp_path / "logs"), perform=WORKS)
    yield engine
    engine.close(kill=True)


def test_jobs_finish_fail_or_are_lost_and_each_is_reported_once(engine):
    payloads: dict[str, dict[str, Any]] = {
        "good": {"value": 1.5},
        "mistake": {"do": "mistake"},
        "fault": {"do": "fault"},
        "unwritable": {"do": "unwritable"},
        "killed": {"do": "die"},
        "left": {"do": "exit"},
        "after": {"value": None},
    }
    for name, payload in payloads.items():
        engine.submit(CellJob(name, payload))
    outcomes = collect_outcomes(engine, 7)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "finished",
        "mistake": "failed",
        "fault": "failed",
        "unwritable": "failed",
        "killed": "lost",
        "left": "lost",
        "after": "finished",
    }
    assert outcomes["good"].facts["value"] == 1.5
    mistake = outcomes["mistake"]
    assert (mistake.mistake, mistake.message, mistake.traceback) == (
        True,
        "TaskError: no such task: choose another",
        "",
    )
    fault = outcomes["fault"]
    assert not fault.mistake
    assert "RuntimeError" in fault.traceback
    assert "works.py" in fault.traceback
    assert fault.message.startswith("RuntimeError: a \N{REPLACEMENT CHARACTER}[31mfault")
    assert fault.message.isprintable()
    assert len(fault.message) <= 1000
    assert "not JSON serializable" in outcomes["unwritable"].message
    assert "SIGKILL" in outcomes["killed"].message
    assert "memory" in outcomes["killed"].message
    assert "exit code 3" in outcomes["left"].message
    assert not outcomes["killed"].mistake
    assert engine.collect(0) == []


def test_a_worker_keeps_its_model_and_gets_the_jobs_that_need_it(engine):
    engine.submit(CellJob("a1", {"do": "sleep", "seconds": 0.5}, affinity="a"))
    engine.submit(CellJob("b1", {"do": "sleep", "seconds": 0.5}, affinity="b"))
    assert engine.idle_affinities() == []
    first = collect_outcomes(engine, 2)
    pids = {name: outcome.facts["pid"] for name, outcome in first.items()}
    assert pids["a1"] != pids["b1"]
    assert sorted(engine.idle_affinities()) == ["a", "b"]
    for name in ("b2", "a2", "b3", "a3"):
        engine.submit(CellJob(name, {"do": "sleep", "seconds": 0.3}, affinity=name[0]))
    then = collect_outcomes(engine, 4)
    assert {name: outcome.facts["pid"] for name, outcome in then.items()} == {
        "a2": pids["a1"],
        "a3": pids["a1"],
        "b2": pids["b1"],
        "b3": pids["b1"],
    }
    assert {name: outcome.facts["works"] for name, outcome in then.items()} == {"a2": 2, "a3": 3, "b2": 2, "b3": 3}


def test_a_worker_killed_from_outside_loses_its_own_work_and_is_replaced(engine, tmp_path):
    engine.submit(CellJob("victim", {"do": "sleep", "seconds": 60, "begun": str(tmp_path / "pid")}, affinity="a"))
    engine.submit(CellJob("other", {"do": "sleep", "seconds": 1}, affinity="b"))
    wait_for(partial(has_text, tmp_path / "pid"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    outcomes = collect_outcomes(engine, 2)
    assert {name: outcome.status for name, outcome in outcomes.items()} == {"victim": "lost", "other": "finished"}
    assert "" in engine.idle_affinities()
    engine.submit(CellJob("victim", {"value": 2}, affinity="a"))
    assert collect_outcomes(engine, 1)["victim"].facts["value"] == 2


def test_a_worker_killed_while_idle_costs_no_work(engine):
    engine.submit(CellJob("first", {}, affinity="a"))
    pid = collect_outcomes(engine, 1)["first"].facts["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine.submit(CellJob("second", {}, affinity="a"))
    assert collect_outcomes(engine, 1)["second"].status == "finished"


def test_output_of_jobs_goes_only_to_a_log_file(engine, tmp_path, capfd):
    engine.submit(CellJob("talker", {"do": "print"}))
    assert collect_outcomes(engine, 1)["talker"].status == "finished"
    engine.close()
    assert capfd.readouterr() == ("", "")
    assert "".join(path.read_text() for path in (tmp_path / "logs").iterdir()) == "chatter\nmore chatter\n"


def test_workers_have_the_requested_threads_and_the_drivers_environment(engine):
    variables = {
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": os.environ["HF_HUB_OFFLINE"],
    }
    engine.submit(CellJob("look", {"do": "environment", "names": list(variables)}))
    assert collect_outcomes(engine, 1)["look"].facts == variables


@pytest.mark.parametrize(("gpus", "workers", "own"), [(2, 2, ["4,5", "6,7"]), (0.5, 3, ["4", "4", "5"])])
def test_each_worker_has_its_own_gpus(monkeypatch, gpus, workers, own):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr("dualform.runs.engines.local_engine.cores", lambda: 8)
    engine = open_engine("local", workers=workers, threads=1, options=EngineOptions(gpus=gpus), perform=WORKS)
    try:
        for number in range(workers):
            engine.submit(CellJob(str(number), {"do": "environment", "names": ["CUDA_VISIBLE_DEVICES"]}))
            # A new worker for each.
            assert len(engine.idle_affinities()) == workers - number - 1
        outcomes = collect_outcomes(engine, workers)
        assert sorted(outcome.facts["CUDA_VISIBLE_DEVICES"] for outcome in outcomes.values()) == own
    finally:
        engine.close(kill=True)


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="3 workers with 1 GPUs each need more than the 2 of"):
        open_engine("local", workers=3, threads=1, options=EngineOptions(gpus=1), perform=WORKS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="1 workers with 1 GPUs each need more than the 0 of"):
        open_engine("local", threads=1, options=EngineOptions(gpus=1), perform=WORKS)


def test_closing_waits_for_what_is_being_done_or_kills_it(tmp_path):
    for kill in (False, True):
        begun, done = tmp_path / f"begun-{kill}", tmp_path / f"done-{kill}"
        engine = open_engine("local", workers=1, threads=1, perform="tests.runs.engines.works:begin_and_end")
        engine.submit(CellJob("long", {"begun": str(begun), "done": str(done), "seconds": 1}))
        engine.submit(CellJob("waiting", {"begun": str(tmp_path / "never"), "done": str(done), "seconds": 1}))
        wait_for(partial(has_text, begun))
        engine.close(kill=kill)
        engine.close()
        assert done.exists() is not kill
        assert not is_alive(int(begun.read_text()))
    assert not (tmp_path / "never").exists()


DRIVER = """
import json, sys, time
from dualform.runs.engines.base import CellJob
from dualform.runs.engines.opening import open_engine
engine = open_engine("local", workers=2, threads=1, perform="tests.runs.engines.works:perform")
for number in range(2):
    engine.submit(CellJob(str(number), {"do": "sleep", "seconds": 60, "begun": f"{sys.argv[1]}/{number}"}))
try:
    engine.collect(60)
except KeyboardInterrupt:
    print("interrupted", flush=True)
    engine.close(kill=True)
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT], ids=["kill -9", "ctrl-C"])
def test_no_worker_outlives_its_driver(tmp_path, how):
    # The script has no `if __name__` guard, which a pool of multiprocessing would ask for.
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join((os.getcwd(), f"{os.getcwd()}/src"))},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    files = [tmp_path / str(number) for number in range(2)]
    wait_for(lambda: all(has_text(path) for path in files), seconds=30)
    workers = [int(path.read_text()) for path in files]
    assert all(is_alive(pid) for pid in workers)
    # To the whole foreground group, as a terminal does on ctrl-C.
    os.killpg(driver.pid, how)
    output = driver.communicate(timeout=30)[0]
    assert output == ("interrupted\n" if how == signal.SIGINT else "")
    wait_for(lambda: not any(is_alive(pid) for pid in workers), seconds=5)
