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
from tests.runs.engines.waiting import collect_outcomes, has_text, is_alive, wait_for

submitit = pytest.importorskip("submitit")

WORKS = "tests.runs.engines.works:perform"


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Folder of an imitation of Slurm, which comes first in the path."""
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
    assert local.idle_affinities() == ["", ""]
    for name, payload in payloads.items():
        local.submit(CellJob(name, payload))
    assert local.idle_affinities() == []
    outcomes = collect_outcomes(local, len(payloads))
    assert {name: outcome.status for name, outcome in outcomes.items()} == {
        "good": "finished",
        "mistake": "failed",
        "die": "lost",
    }
    assert outcomes["good"].facts == {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    assert outcomes["mistake"].mistake
    assert re.match(r"job \d+ ended without a result; its output is in ", outcomes["die"].message)


def test_killing_cancels_the_jobs(local, tmp_path):
    local.submit(CellJob("long", {"do": "sleep", "seconds": 60, "begun": str(tmp_path / "pid")}))
    assert local.collect(0) == []
    wait_for(partial(has_text, tmp_path / "pid"), seconds=20)
    local.close(kill=True)
    wait_for(lambda: not is_alive(int((tmp_path / "pid").read_text())), seconds=5)


def test_a_batch_is_one_array_with_the_requested_resources(slurm, tmp_path):
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
    outcomes = collect_outcomes(engine, 3)
    assert {name: outcome.facts["value"] for name, outcome in outcomes.items()} == {"0": 0, "1": 1, "2": 2}
    (script,) = slurm.glob("script-*")
    options_in_script = set(re.findall(r"#SBATCH --(\S+)", script.read_text()))
    assert options_in_script >= {
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
    monkeypatch.setattr("dualform.runs.engines.slurm_engine.QUEUE_SECONDS", 0.0)
    monkeypatch.setattr("dualform.runs.engines.slurm_engine.MISSING_SECONDS", 0.0)
    engine = open_engine("slurm", workers=2, threads=1, options=EngineOptions(log_dir=tmp_path / "jobs"), perform=WORKS)
    for name in ("ended", "left"):
        engine.submit(CellJob(name, {"do": "sleep", "seconds": 60, "begun": str(tmp_path / name)}))
    assert engine.collect(0) == []
    for name in ("ended", "left"):
        wait_for(partial(has_text, tmp_path / name), seconds=20)
    assert engine.collect(1) == []
    subprocess.run(["scancel", "1000_0"], check=True)
    (outcome,) = collect_outcomes(engine, 1).values()
    assert (outcome.digest, outcome.status) == ("ended", "lost")
    assert outcome.message == f"job 1000_0 ended without a result; its output is in {tmp_path}/jobs/1000_0_0_log.err"
    # As while its controller is started anew: nothing is known, so nothing is lost.
    (slurm / "squeue").write_text("#!/bin/sh\nexit 1\n")
    assert engine.collect(1) == []
    engine.close(kill=True)
    wait_for(lambda: not is_alive(int((tmp_path / "left").read_text())), seconds=5)


def test_an_error_of_slurm_is_reported(slurm, tmp_path, capfd):
    (slurm / "sbatch").write_text("#!/bin/sh\necho 'sbatch: error: invalid partition specified: short' >&2\nexit 1\n")
    engine = open_engine("slurm", options=EngineOptions(log_dir=tmp_path / "jobs", partition="short"), perform=WORKS)
    engine.submit(CellJob("one", {}))
    with pytest.raises(ConfigError, match=r"Slurm rejected the jobs: .*invalid partition specified: short"):
        engine.collect(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "this machine has no Slurm: srun is not found"),
        ({"log_dir": None}, "needs log_dir"),
        ({"gpus": 0.5, "executor": "local"}, "gpus 0.5 must be a whole number"),
        ({"slurm": {"acount": "physics"}, "executor": "local"}, "Unknown argument 'acount'"),
    ],
)
def test_impossible_options_are_errors_at_once(tmp_path, monkeypatch, options, message):
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
def test_no_option_can_break_a_line_of_a_job_script(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="holds a line break or another control character") as caught:
        checked(EngineOptions, options)
    assert "\n" not in str(caught.value)


def test_the_name_of_the_current_folder_is_checked_too(slurm, tmp_path, monkeypatch):
    odd = tmp_path / "here\ntouch pwned\n"
    odd.mkdir()
    monkeypatch.chdir(odd)
    with pytest.raises(ConfigError, match=r"log_dir: .* holds a line break"):
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
    assert collect_outcomes(engine, 1)["one"].status == "finished"
    engine.close()
    assert f"touch {pwned}" in next(slurm.glob("script-*")).read_text()
    assert not pwned.exists()
