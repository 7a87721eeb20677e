import json
import os
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from dualform.result import Result
from dualform.runs.cell_store import CellStore
from dualform.runs.engines.base import EngineOptions, open_engine
from dualform.runs.sweep import CellState, GroupState, Sweep
from dualform.studies.comparison import compare
from dualform.studies.comparison_config import ComparisonConfig
from tests.runs.test_sweep import grid
from tests.studies.small import numbers, write_csv
from tests.tiny import save_tiny

pytest.importorskip("ray")


class KillsOnce:
    """Kills the process that holds the first claim it sees in the store."""

    def __init__(self, store: Path) -> None:
        self._claims = store / "claims"
        self.killed: int | None = None

    def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
        if self.killed is None and self._claims.is_dir():
            for path in self._claims.glob("*.json"):
                owner = json.loads(path.read_text())
                self.killed = int(owner["pid"])
                os.kill(self.killed, signal.SIGKILL)
                return


def test_a_sweep_on_ray_gives_the_numbers_of_this_process_though_a_worker_was_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_tiny("gpt2", tmp_path / "gpt2")
    write_csv(tmp_path / "tickets.csv")
    _, groups = grid(seeds="1..2")
    watcher = KillsOnce(tmp_path / "store")
    engine = open_engine("ray", workers=1, threads=1, options=EngineOptions(log_dir=tmp_path / "logs"))
    try:
        (state,) = Sweep(groups, CellStore("store"), engine, watcher=watcher).run()
    finally:
        engine.close(kill=True)

    assert watcher.killed is not None
    assert [one.status for one in state.states] == ["finished"] * 3
    assert max(one.attempts for one in state.states) == 2
    assert state.whole is not None
    cell = CellStore("store").find(state.whole.cell.key, verify=True)
    assert cell is not None
    config = groups[0].config
    assert isinstance(config, ComparisonConfig)
    assert numbers(Result.from_json(cell.read("result.json").decode())) == numbers(compare(config).result)
