"""A run that is stopped, whenever and however, leaves no incomplete file and can be resumed."""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from dualform.cli import interrupts
from dualform.runs import store
from dualform.studies.comparison import run as comparison
from dualform.studies.comparison.seed import compute_seed
from tests.cli.conftest import SMALL, Done, numbers, result_of

pytestmark = pytest.mark.usefixtures("quick_page")
Command = Callable[..., Done]
PROMISED = {"config.yaml", "result.json", "examples.parquet", "report.html", "log.txt"}
ATTENTION = {"attention.json"}
"""Where zero-shot, ICL and FT were all run."""
PATIENCE = 120
"""Seconds to wait for another process, most of which go into importing torch on a busy machine."""


def counted(monkeypatch: pytest.MonkeyPatch, stop_before: int | None = None) -> list[int]:
    """The seeds that are run; ctrl-C is pressed before the seed `stop_before` starts."""
    run_seed = compute_seed
    seeds: list[int] = []

    def run(whole: Any, seed: int, *args: Any, **kwargs: Any) -> Any:
        if seed == stop_before:
            raise KeyboardInterrupt
        seeds.append(seed)
        return run_seed(whole, seed, *args, **kwargs)

    monkeypatch.setattr(comparison, "compute_seed", run)
    return seeds


def assert_nothing_half_written(folder: Path) -> None:
    assert not list(folder.rglob("*.tmp"))
    assert {path.name for path in folder.iterdir() if path.is_file()} <= PROMISED
    assert not (folder / "result.json").exists()


def rows_of(folder: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(folder / "examples.parquet").to_pylist()
    return rows


def test_a_stopped_run_resumes_and_gives_the_numbers_of_an_uninterrupted_one(
    dualform: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "1..3", "--rates", "1e-3,1e-2"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert dualform(*arguments, "--out", whole).code == 0

    with monkeypatch.context() as patch:
        seeds = counted(patch, stop_before=2)
        done = dualform(*arguments, "--out", stopped)
    assert done.code == 130
    assert done.message == "Finished seeds are kept; run the same command to resume. stopped"
    assert done.out == ""
    assert seeds == [1]
    assert len(list(stopped.glob("cells-*/seed-1.safetensors"))) == 1
    assert_nothing_half_written(stopped)

    seeds = counted(monkeypatch)
    assert dualform(*arguments, "--out", stopped).code == 0

    assert seeds == [2, 3]
    assert {path.name for path in stopped.iterdir()} == PROMISED | ATTENTION
    assert (stopped / "attention.json").read_bytes() == (whole / "attention.json").read_bytes()
    result, expected = result_of(stopped), result_of(whole)
    assert numbers(result) == numbers(expected)
    # Tables are in the same order, too.
    assert list(result["accuracy"]) == list(expected["accuracy"])
    assert list(result["similarity"]) == list(expected["similarity"])
    assert rows_of(stopped) == rows_of(whole)


def test_a_run_stopped_while_it_writes_is_only_written_again(
    dualform: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*given: Any) -> str:
        raise KeyboardInterrupt

    arguments = ["compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "1,2", "--learners", "zsl,icl", "--out", out]
    with monkeypatch.context() as patch:
        patch.setattr(store, "render_page", stop)
        assert dualform(*arguments).code == 130
    assert_nothing_half_written(out)

    seeds = counted(monkeypatch)
    assert dualform(*arguments).code == 0

    assert seeds == []
    assert {path.name for path in out.iterdir()} == PROMISED


def test_other_settings_do_not_use_what_is_left_of_a_stopped_run(
    dualform: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ["compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "1,2", "--learners", "zsl,icl", "--out", out]
    with monkeypatch.context() as patch:
        counted(patch, stop_before=2)
        assert dualform(*arguments).code == 130

    seeds = counted(monkeypatch)
    assert dualform(*arguments, "-k", "5").code == 0

    assert seeds == [1, 2]
    assert result_of(out)["demonstrations"]["k_effective"] == 5
    # The stopped run's piece stays: it may yet go on.
    assert {path.name for path in out.iterdir() if path.is_file()} == PROMISED
    assert len(list(out.glob("cells-*/seed-1.safetensors"))) == 1


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)], ids=["ctrl-C", "kill -9"]
)
def test_a_stopped_process_resumes(
    dualform: Command, out: Path, workplace: Path, number: signal.Signals, code: int
) -> None:
    arguments = [
        "compare",
        "gpt2",
        "tickets.csv",
        *SMALL,
        "--seeds",
        "1..12",
        "--learners",
        "zsl,icl,ft",
        "--controls",
        "random",
    ]
    # Python leaves ctrl-C alone in a process that was started with it ignored, as a test runner's may be.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from dualform.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, *arguments, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    try:
        wait_for(out / "log.txt", "seed 1: finished", process)
        process.send_signal(number)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code, errors
    assert printed == ""
    assert "Traceback" not in errors
    if number == signal.SIGINT:
        assert errors.endswith("Finished seeds are kept; run the same command to resume.\nstopped\n")
        assert_nothing_half_written(out)
    assert not (out / "result.json").exists()
    before = (out / "log.txt").read_text()

    assert dualform(*arguments, "--out", out).code == 0

    after = (out / "log.txt").read_text().removeprefix(before)
    kept = re.findall(r"seed (\d+): finished earlier", after)
    run = re.findall(r"seed (\d+): finished$", after, re.MULTILINE)
    assert "1" in kept
    assert [*kept, *run] == [str(seed) for seed in range(1, 13)]
    assert {path.name for path in out.iterdir()} == PROMISED | ATTENTION
    assert list(result_of(out)["accuracy"]["icl"]["per_seed"]) == [str(seed) for seed in range(1, 13)]


def wait_for(path: Path, words: str, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + PATIENCE
    while not (path.exists() and words in path.read_text()):
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < end, f"no {words!r} in {path} for {PATIENCE} s"
        time.sleep(0.01)


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.4, 1.0, 2.0])
def test_ctrl_c_while_a_command_starts_prints_one_line(out: Path, workplace: Path, seconds: float) -> None:
    # From the first moment at which it is dualform's to answer: Python itself takes a while before.
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
        "from dualform.cli import interrupts; interrupts.install(); print('up', flush=True);"
        "from dualform.cli.main import main; main()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, "compare", "gpt2", "tickets.csv", *SMALL, "--out", str(out)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=workplace,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "up\n"
        time.sleep(seconds)
        process.send_signal(signal.SIGINT)
        printed, errors = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait()
    assert (process.returncode, printed) == (130, "")
    assert errors.splitlines()[-1] == "stopped"
    assert len(errors.splitlines()) <= 2


def test_what_a_library_makes_of_ctrl_c_is_still_ctrl_c(
    dualform: Command, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(*given: Any, **more: Any) -> Any:
        raise ImportError("numpy.core.multiarray failed to import")

    monkeypatch.setattr(comparison, "compute_seed", spoil)
    monkeypatch.setattr(interrupts, "was_interrupted", lambda: True)
    done = dualform("compare", "gpt2", "tickets.csv", *SMALL, "--seeds", "1", "--out", out)

    assert (done.code, done.message) == (130, "stopped")
