import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dualform.result import Result
from dualform.runs import worker
from dualform.runs.cell_store import CellStore
from dualform.runs.engines.base import EngineOptions
from dualform.runs.engines.opening import open_engine
from dualform.runs.sweep import Sweep
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import compare
from tests.runs.test_sweep import grid
from tests.studies.small import numbers, write_csv
from tests.tiny import save_tiny

pytest.importorskip("ray")


def dying_once(payload: dict[str, Any]) -> dict[str, Any]:
    """Compute a cell, but kill the process of the first one while it holds its claim."""
    died = Path(payload["folder"]) / "died"
    if not died.exists():
        died.touch()
        worker._compute = lambda work, store: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[assignment,return-value]
    return worker.perform(payload)


def test_a_sweep_on_ray_gives_the_numbers_of_this_process_though_a_worker_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("gpt2", tmp_path / "gpt2")
    write_csv(tmp_path / "tickets.csv")
    _, groups = grid(seeds="1..2")
    options = EngineOptions(log_dir=tmp_path / "logs")
    engine = open_engine(
        "ray", workers=1, threads=1, options=options, perform="tests.runs.test_sweep_on_ray:dying_once"
    )
    try:
        (state,) = Sweep(groups, CellStore("store"), engine).run()
    finally:
        engine.close(kill=True)

    assert (tmp_path / "died").exists()
    assert [each.status for each in state.states] == ["finished"] * 3
    assert max(each.attempts for each in state.states) == 2
    assert state.result_cell is not None
    cell = CellStore("store").find(state.result_cell.cell.key, verify=True)
    assert cell is not None
    config = groups[0].config
    assert isinstance(config, ComparisonConfig)
    assert numbers(Result.from_json(cell.read("result.json").decode())) == numbers(compare(config).result)
