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
from tests.runs.engines.waiting import all_ended, has_text, is_alive, wait_for

WORKS = "tests.runs.engines.works:perform"


@pytest.fixture
def engine(tmp_path) -> Iterator[Engine]:
    engine = open_engine("local", workers=2, threads=1, options=EngineOptions(log_dir=tmp_path / "logs"), perform=WORKS)
    yield engine
    engine.close(kill=True)


def test_works_finish_fail_or_are_lost_and_each_is_told_once(engine):
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
    ended = all_ended(engine, 7)
    assert {name: outcome.status for name, outcome in ended.items()} == {
        "good": "finished",
        "mistake": "failed",
        "fault": "failed",
        "unwritable": "failed",
        "killed": "lost",
        "left": "lost",
        "after": "finished",
    }
    assert ended["good"].facts["value"] == 1.5
    mistake = ended["mistake"]
    assert (mistake.mistake, mistake.message, mistake.traceback) == (
        True,
        "TaskError: no such task: choose another",
        "",
    )
    fault = ended["fault"]
    assert not fault.mistake
    assert "RuntimeError" in fault.traceback
    assert "works.py" in fault.traceback
    assert fault.message.startswith("RuntimeError: a \N{REPLACEMENT CHARACTER}[31mfault")
    assert fault.message.isprintable()
    assert len(fault.message) <= 1000
    assert "not JSON serializable" in ended["unwritable"].message
    assert "SIGKILL" in ended["killed"].message
    assert "memory" in ended["killed"].message
    assert "exit code 3" in ended["left"].message
    assert not ended["killed"].mistake
    assert engine.ended(0) == []


def test_a_worker_keeps_what_it_has_loaded_and_gets_the_work_that_fits(engine):
    engine.submit(CellJob("a1", {"do": "sleep", "seconds": 0.5}, warm="a"))
    engine.submit(CellJob("b1", {"do": "sleep", "seconds": 0.5}, warm="b"))
    assert engine.idle_for() == []
    first = all_ended(engine, 2)
    pids = {name: outcome.facts["pid"] for name, outcome in first.items()}
    assert pids["a1"] != pids["b1"]
    assert sorted(engine.idle_for()) == ["a", "b"]
    for name in ("b2", "a2", "b3", "a3"):
        engine.submit(CellJob(name, {"do": "sleep", "seconds": 0.3}, warm=name[0]))
    then = all_ended(engine, 4)
    assert {name: outcome.facts["pid"] for name, outcome in then.items()} == {
        "a2": pids["a1"],
        "a3": pids["a1"],
        "b2": pids["b1"],
        "b3": pids["b1"],
    }
    assert {name: outcome.facts["works"] for name, outcome in then.items()} == {"a2": 2, "a3": 3, "b2": 2, "b3": 3}


def test_a_worker_killed_from_outside_loses_its_own_work_and_is_replaced(engine, tmp_path):
    engine.submit(CellJob("victim", {"do": "sleep", "seconds": 60, "begun": str(tmp_path / "pid")}, warm="a"))
    engine.submit(CellJob("other", {"do": "sleep", "seconds": 1}, warm="b"))
    wait_for(partial(has_text, tmp_path / "pid"))
    os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)
    ended = all_ended(engine, 2)
    assert {name: outcome.status for name, outcome in ended.items()} == {"victim": "lost", "other": "finished"}
    assert "" in engine.idle_for()
    engine.submit(CellJob("victim", {"value": 2}, warm="a"))
    assert all_ended(engine, 1)["victim"].facts["value"] == 2


def test_a_worker_killed_while_idle_costs_no_work(engine):
    engine.submit(CellJob("first", {}, warm="a"))
    pid = all_ended(engine, 1)["first"].facts["pid"]
    os.kill(pid, signal.SIGKILL)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    engine.submit(CellJob("second", {}, warm="a"))
    assert all_ended(engine, 1)["second"].status == "finished"


def test_what_works_print_goes_to_a_log_file_only(engine, tmp_path, capfd):
    engine.submit(CellJob("talker", {"do": "print"}))
    assert all_ended(engine, 1)["talker"].status == "finished"
    engine.close()
    assert capfd.readouterr() == ("", "")
    assert "".join(path.read_text() for path in (tmp_path / "logs").iterdir()) == "chatter\nmore chatter\n"


def test_threads_are_those_asked_for_and_the_environment_is_the_driver_s(engine):
    variables = {
        "OMP_NUM_THREADS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_OFFLINE": os.environ["HF_HUB_OFFLINE"],
    }
    engine.submit(CellJob("look", {"do": "environment", "names": list(variables)}))
    assert all_ended(engine, 1)["look"].facts == variables


@pytest.mark.parametrize(("gpus", "workers", "own"), [(2, 2, ["4,5", "6,7"]), (0.5, 3, ["4", "4", "5"])])
def test_each_worker_has_its_own_gpus(monkeypatch, gpus, workers, own):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr("dualform.runs.engines.local_engine.cores", lambda: 8)
    engine = open_engine("local", workers=workers, threads=1, options=EngineOptions(gpus=gpus), perform=WORKS)
    try:
        for number in range(workers):
            engine.submit(CellJob(str(number), {"do": "environment", "names": ["CUDA_VISIBLE_DEVICES"]}))
            # A new worker for each.
            assert len(engine.idle_for()) == workers - number - 1
        ended = all_ended(engine, workers)
        assert sorted(outcome.facts["CUDA_VISIBLE_DEVICES"] for outcome in ended.values()) == own
    finally:
        engine.close(kill=True)


def test_more_gpus_than_there_are_are_refused(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with pytest.raises(ConfigError, match="3 workers of 1 GPUs each, and this machine has 2"):
        open_engine("local", workers=3, threads=1, options=EngineOptions(gpus=1), perform=WORKS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match="1 workers of 1 GPUs each, and this machine has 0"):
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
from dualform.runs.engines.base import Work
from dualform.runs.engines.opening import open_engine
engine = open_engine("local", workers=2, threads=1, perform="tests.runs.engines.works:perform")
for number in range(2):
    engine.submit(Work(str(number), {"do": "sleep", "seconds": 60, "begun": f"{sys.argv[1]}/{number}"}))
try:
    engine.ended(60)
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
        env=os.environ | {"PYTHONPATH": os.getcwd()},
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
    said = driver.communicate(timeout=30)[0]
    assert said == ("interrupted\n" if how == signal.SIGINT else "")
    wait_for(lambda: not any(is_alive(pid) for pid in workers), seconds=5)
