import os
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from dualform.configuration import checked
from dualform.errors import ConfigError
from dualform.runs.engines.base import CellJob, Engine, EngineOptions
from dualform.runs.engines.opening import open_engine
from tests.runs.engines.waiting import all_ended, has_text, is_alive, wait_for

submitit = pytest.importorskip("submitit")

WORKS = "tests.runs.engines.works:perform"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Folder of a pretended Slurm whose commands are found first."""
    commands = tmp_path / "commands"
    commands.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel"):
        script = commands / name
        program = Path(__file__).with_name("fake_slurm.py")
        script.write_text(f'#!/bin/sh\nexec {sys.executable} {program} {name} {commands} "$@"\n')
        script.chmod(0o755)
    monkeypatch.setenv("PATH", str(commands), prepend=os.pathsep)
    return commands


@pytest.fixture
def local(tmp_path) -> Iterator[Engine]:
    options = EngineOptions(log_dir=tmp_path / "jobs", executor="local")
    engine = open_engine("slurm", workers=2, threads=1, options=options, perform=WORKS)
    yield engine
    engine.close(kill=True)


def test_jobs_finish_fail_or_are_lost(local, tmp_path):
    names = ["OMP_NUM_THREADS", "TRANSFORMERS_VERBOSITY"]
    payloads: dict[str, dict[str, Any]] = {
        "good": {"do": "environment", "names": names},
        "mistake": {"do": "mistake"},
        "die": {"do": "die"},
    }
    assert local.idle_for() == ["", ""]
    for name, payload in payloads.items():
        local.submit(CellJob(name, payload))
    assert local.idle_for() == []
    ended = all_ended(local, len(payloads))
    assert {name: outcome.status for name, outcome in ended.items()} == {
        "good": "finished",
        "mistake": "failed",
        "die": "lost",
    }
    assert ended["good"].facts == {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    assert ended["mistake"].mistake
    assert re.match(r"job \d+ ended without a result; what it printed is in ", ended["die"].message)


def test_killing_cancels_the_jobs(local, tmp_path):
    local.submit(CellJob("long", {"do": "sleep", "seconds": 60, "begun": str(tmp_path / "pid")}))
    assert local.ended(0) == []
    wait_for(partial(has_text, tmp_path / "pid"), seconds=20)
    local.close(kill=True)
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())), seconds=5)


def test_a_batch_is_one_array_with_what_was_asked_for(slurm, tmp_path):
    options = EngineOptions(
        log_dir=tmp_path / "jobs",
        partition="long",
        minutes=90,
        gpus=2,
        memory=3 * 2**30,
        slurm={"account": "physics", "additional_parameters": {"nice": 5}},
    )
    engine = open_engine("slurm", workers=2, threads=3, options=options, perform=WORKS)
    for number in range(3):
        engine.submit(CellJob(str(number), {"value": number}))
    ended = all_ended(engine, 3)
    assert {name: outcome.facts["value"] for name, outcome in ended.items()} == {"0": 0, "1": 1, "2": 2}
    (script,) = slurm.glob("script-*")
    asked = set(re.findall(r"#SBATCH --(\S+)", script.read_text()))
    assert asked >= {
        "array=0-2%2",
        "partition=long",
        "time=90",
        "gpus-per-node=2",
        "mem=3GB",
        "cpus-per-task=3",
        "account=physics",
        "nice=5",
        "job-name=dualform",
    }
    engine.close()


def test_jobs_that_slurm_ends_are_lost_and_closing_cancels_the_rest(slurm, tmp_path, monkeypatch):
    monkeypatch.setattr("dualform.runs.engines.slurm_engine.ASK_SECONDS", 0.0)
    monkeypatch.setattr("dualform.runs.engines.slurm_engine.MISSING_SECONDS", 0.0)
    engine = open_engine("slurm", workers=2, threads=1, options=EngineOptions(log_dir=tmp_path / "jobs"), perform=WORKS)
    for name in ("ended", "left"):
        engine.submit(CellJob(name, {"do": "sleep", "seconds": 60, "begun": str(tmp_path / name)}))
    assert engine.ended(0) == []
    for name in ("ended", "left"):
        wait_for(partial(has_text, tmp_path / name), seconds=20)
    assert engine.ended(1) == []
    subprocess.run(["scancel", "1000_0"], check=True)
    (ended,) = all_ended(engine, 1).values()
    assert (ended.digest, ended.status) == ("ended", "lost")
    assert ended.message == f"job 1000_0 ended without a result; what it printed is in {tmp_path}/jobs/1000_0_0_log.err"
    # As while its controller is started anew: nothing is known, so nothing is lost.
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert engine.ended(1) == []
    engine.close(kill=True)
    wait_for(lambda: not is_alive(int((tmp_path / "left").read_text())), seconds=5)


def test_a_refusal_of_slurm_is_told(slurm, tmp_path, capfd):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: short' >&2\nexit 1\n")
    engine = open_engine("slurm", options=EngineOptions(log_dir=tmp_path / "jobs", partition="short"), perform=WORKS)
    engine.submit(CellJob("one", {}))
    with pytest.raises(ConfigError, match=r"Slurm does not take the jobs: .*invalid partition specified: short"):
        engine.ended(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "no Slurm on this machine: srun is not found"),
        ({"log_dir": None}, "needs log_dir"),
        ({"gpus": 0.5, "executor": "local"}, "slurm gives whole GPUs, not 0.5"),
        ({"slurm": {"acount": "physics"}, "executor": "local"}, "Unknown argument 'acount'"),
    ],
)
def test_what_cannot_be_is_refused_at_the_beginning(tmp_path, monkeypatch, options, message):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ConfigError, match=message):
        open_engine("slurm", options=EngineOptions(**{"log_dir": tmp_path / "jobs", **options}))


@pytest.mark.parametrize(
    "options",
    [
        {"partition": "gpu\ntouch pwned"},
        {"partition": "gpu\rtouch pwned"},
        {"slurm": {"account": "a\ntouch pwned"}},
        {"slurm": {"account\ntouch pwned": "a"}},
        {"slurm": {"additional_parameters": {"nice": ["5", "x\u2028touch pwned"]}}},
        {"log_dir": "jobs\ntouch pwned\n"},
    ],
)
def test_nothing_that_stands_in_a_jobs_script_can_break_its_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="holds a line break or another control character") as caught:
        checked(EngineOptions, options)
    assert "\n" not in str(caught.value)


def test_the_folder_that_a_sweep_is_started_in_counts_too(slurm, tmp_path, monkeypatch):
    odd = tmp_path / "here\ntouch pwned\n"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ConfigError, match=r"the folder of the jobs' files .* holds a line break"):
        open_engine("slurm", options=EngineOptions(log_dir=Path("jobs")), perform=WORKS)


def test_what_a_shell_would_read_is_quoted(slurm, tmp_path):
    pwned = tmp_path / "pwned"
    options = EngineOptions(
        log_dir=tmp_path / "jobs",
        partition=f"gpu; touch {pwned} `touch {pwned}`",
        slurm={"comment": f"a b' ; touch {pwned} #"},
    )
    engine = open_engine("slurm", workers=1, threads=1, options=options, perform=WORKS)
    engine.submit(CellJob("one", {"value": 1}))
    assert all_ended(engine, 1)["one"].status == "finished"
    engine.close()
    assert f"touch {pwned}" in next(slurm.glob("script-*")).read_text()
    assert not pwned.exists()
