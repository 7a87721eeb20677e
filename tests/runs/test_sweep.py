import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file

from dualform.errors import ConfigError, StorageError
from dualform.result import Result
from dualform.runs import sweep_cells, worker
from dualform.runs.cell_store import CellStore, FinishedCell
from dualform.runs.engines.base import CellJob, Engine, JobOutcome, best_match
from dualform.runs.engines.opening import open_engine
from dualform.runs.engines.performing import job_to_text, outcome_from_text, perform_text
from dualform.runs.sweep import CellState, GroupState, Sweep, cells_record
from dualform.runs.sweep_config import Group, SweepConfig, expand, read_sweep_file
from dualform.runs.sweep_run import run_sweep
from dualform.studies.comparison.config import ComparisonConfig
from dualform.studies.comparison.run import compare
from dualform.sweep_result import SweepResult
from tests.studies.small import numbers, write_csv
from tests.tiny import save_tiny

TASK = {"task": "tickets.csv", "text": "body", "label": "topic"}
SETTINGS = {
    "k": 4,
    "limit": 8,
    "selection_limit": 6,
    "resamples": 50,
    "learners": ["zsl", "icl", "ft"],
    "rates": [1e-3, 1e-2],
    "controls": ["random"],
}
QUICK = {"k": 2, "limit": 4, "selection_limit": 4, "resamples": 10, "learners": ["zsl", "icl"], "controls": []}
WITHOUT_K = {name: value for name, value in SETTINGS.items() if name != "k"}
GRID: dict[str, Any] = {"name": "grid", "models": ["gpt2"], "tasks": [TASK], "seeds": "1..3", "settings": SETTINGS}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's folder with two checkpoints and a table."""
    monkeypatch.chdir(tmp_path)
    for family in ("gpt2", "llama"):
        save_tiny(family, tmp_path / family)
    write_csv(tmp_path / "tickets.csv")
    monkeypatch.setattr(worker, "_loaded", None)
    return tmp_path


def grid(**changes: Any) -> tuple[SweepConfig, list[Group]]:
    config = SweepConfig(**(GRID | changes))
    return config, expand(config)


class Serial:
    """An engine that runs one job after the other in this process."""

    name = "serial"
    workers = 1

    def __init__(self, perform: str = "dualform.runs.worker:perform") -> None:
        self._perform = perform
        self._waiting: list[CellJob] = []
        self.done: list[CellJob] = []
        self._loaded = ""

    def submit(self, job: CellJob) -> None:
        self._waiting.append(job)

    def collect(self, timeout: float) -> list[JobOutcome]:
        if not self._waiting:
            return []
        _, place = best_match([self._loaded], self._waiting)
        self.done.append(self._waiting.pop(place))
        self._loaded = self.done[-1].affinity
        return [outcome_from_text(perform_text(job_to_text(self.done[-1], self._perform, 1)))]

    def idle_affinities(self) -> list[str]:
        return [""]

    def close(self, kill: bool = False) -> None:
        pass


class Deadly(Serial):
    """An engine whose workers die several times for each job."""

    def __init__(self, times: int) -> None:
        super().__init__()
        self._times = times
        self._deaths: Counter[str] = Counter()

    def collect(self, timeout: float) -> list[JobOutcome]:
        if self._waiting and self._deaths[self._waiting[0].digest] < self._times:
            job = self._waiting.pop(0)
            self._deaths[job.digest] += 1
            return [JobOutcome(job.digest, "lost", 0.0, "the worker was killed")]
        return super().collect(timeout)


def run(engine: Engine, store: Path = Path("store"), retries: int = 2, **changes: Any) -> list[GroupState]:
    sweep = Sweep(grid(**changes)[1], CellStore(store), engine, retries=retries)
    return sweep.run()


def result_of(state: GroupState, store: Path = Path("store")) -> Result:
    assert state.result_cell is not None
    cell = CellStore(store).find(state.result_cell.cell.key, verify=True)
    assert cell is not None
    return Result.from_json(cell.read("result.json").decode())


def test_a_swept_group_is_what_compare_gives_with_the_same_settings(place: Path) -> None:
    (state,) = run(Serial())

    config = state.group.config
    assert isinstance(config, ComparisonConfig)
    assert numbers(result_of(state)) == numbers(compare(config).result)


def test_a_finished_cell_is_never_computed_again_and_another_setting_is_another_cell(place: Path) -> None:
    first, again, more, other = Serial(), Serial(), Serial(), Serial()
    run(first)
    states = run(again)
    run(more, seeds="1..4")
    run(other, settings={**SETTINGS, "k": 2})

    # Three seeds and what they are put together to; then one seed and all four.
    assert [len(engine.done) for engine in (first, again, more, other)] == [4, 0, 2, 4]
    assert {cell.status for cell in cells_record(states)} == {"reused"}


def test_the_first_seed_is_computed_before_those_that_take_its_rates(place: Path) -> None:
    engine = Serial()
    run(engine)

    assert [job.payload["seed"] for job in engine.done] == [1, 2, 3, None]


def test_models_are_loaded_once_and_zero_shot_is_read_once(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loads: list[str] = []
    load_model = ComparisonConfig.load_model

    def counted(self: ComparisonConfig, name: str) -> Any:
        loads.append(name)
        return load_model(self, name)

    monkeypatch.setattr(ComparisonConfig, "load_model", counted)
    run(Serial(), models=["gpt2", "llama"], grid={"k": [2, 4]}, settings=WITHOUT_K)

    assert sorted(loads) == ["gpt2", "llama"]
    held = worker._loaded
    assert held is not None
    # k 2 and k 4 ask the same queries: one group of them, read once for six seeds.
    assert len(held.memory) == 1


def test_a_cell_that_fails_takes_no_other_with_it(place: Path) -> None:
    engine = Serial()
    states = run(
        engine,
        models=["gpt2", "nowhere"],
        tasks=[TASK],
        settings={**SETTINGS, "rates": [1e-3]},
    )

    good, bad = states
    assert [state.status for state in good.states] == ["finished"] * 4
    assert {state.status for state in bad.seeds} == {"failed"}
    assert bad.result_cell is None
    first, second, _ = bad.seeds
    assert first.failure is not None
    assert second.failure is not None
    assert "nowhere" in first.failure.message
    assert second.failure.message == "seed 1 failed, from which this seed takes its learning rates"
    store = CellStore("store")
    kept = store.failure(first.cell.key)
    assert kept is not None
    assert kept["message"] == first.failure.message
    # A mistake of the user's is not tried again.
    assert sum(job.payload["settings"]["model"] == "nowhere" for job in engine.done) == 1


def test_a_fault_is_stored_with_its_traceback(place: Path) -> None:
    (state,) = run(Serial(perform="tests.runs.test_sweep:raising"), seeds=1)

    failure = state.seeds[0].failure
    assert failure is not None
    assert failure.message == "ZeroDivisionError: division by zero"
    assert "tests/runs/test_sweep.py" in failure.traceback


def raising(payload: dict[str, Any]) -> dict[str, Any]:
    return {"seconds": 1 / 0}


def test_a_seed_that_fails_is_left_out_and_named(place: Path) -> None:
    config, groups = grid(settings={**SETTINGS, "tune": "each"})
    seconds = groups[0]
    engine = Serial(perform="tests.runs.test_sweep:failing_on_seed_2")
    sweep = run_sweep(config, groups, engine, out=Path("out"), store=CellStore("store"))

    (group,) = sweep.groups
    assert group.result is not None
    assert group.result.config["seeds"] == [1, 3]
    assert group.missing_seeds == (2,)
    assert any(seconds.name in warning for warning in sweep.warnings)
    assert [cell.status for cell in sweep.cells] == ["finished", "failed", "finished"]


def failing_on_seed_2(payload: dict[str, Any]) -> dict[str, Any]:
    if payload["seed"] == 2:
        raise RuntimeError("out of memory")
    return worker.perform(payload)


def test_a_worker_that_dies_is_forgiven_twice_and_no_more(place: Path) -> None:
    (state,) = run(Deadly(2), seeds=1)
    assert state.seeds[0].status == "finished"
    assert state.seeds[0].attempts == 3

    (state,) = run(Deadly(3), store=Path("other"), seeds=1)
    failure = state.seeds[0].failure
    assert failure is not None
    assert (failure.lost, failure.attempts, failure.message) == (True, 3, "the worker was killed")


@pytest.mark.parametrize("which", ["seed", "whole"])
def test_a_damaged_cell_is_found_and_computed_again(place: Path, which: str) -> None:
    (state,) = run(Serial())
    expected = numbers(result_of(state))
    damaged = state.seeds[1] if which == "seed" else state.result_cell
    assert damaged is not None
    folder = place / "store" / "cells" / damaged.cell.key.digest[:2] / damaged.cell.key.digest
    (file,) = folder.glob("outcome*" if which == "seed" else "result*")
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(bytes(data))
    assert CellStore("store").find(damaged.cell.key, verify=True) is None
    if which == "seed":
        # What it was put together to is there still; without it the damage comes to light.
        assert state.result_cell is not None
        CellStore("store").drop(state.result_cell.cell.key)

    sweep = Sweep(grid()[1], CellStore("store"), Serial())
    handed: list[FinishedCell | None] = []
    (again,) = sweep.run(lambda group, cell: handed.append(read(cell)))

    assert numbers(result_of(again)) == expected
    assert CellStore("store").find(damaged.cell.key, verify=True) is not None


def read(cell: FinishedCell | None) -> FinishedCell | None:
    if cell is not None:
        cell.read("result.json")
    return cell


def test_what_another_computes_is_waited_for_and_not_computed_twice(place: Path) -> None:
    groups = grid(seeds=1)[1]
    sweep = Sweep(groups, CellStore("store"), Serial())
    (state,) = sweep.states
    key = state.seeds[0].cell.key
    claim = CellStore("store").claim(key)
    assert claim is not None
    release = claim.release
    seen: list[str] = []

    class Watch:
        def changed(self, groups: Sequence[GroupState], state: CellState | None) -> None:
            if state is not None:
                seen.append(state.status)
                if state.status == "elsewhere":
                    # The other has finished while we looked away.
                    release()
                    state.next_check = 0

    sweep.observer = Watch()
    sweep.run()

    assert seen[:2] == ["running", "elsewhere"]
    assert state.seeds[0].status == "finished"


def test_a_sweeps_folder_holds_each_groups_run_and_the_whole(place: Path) -> None:
    config, groups = grid(models=["gpt2", "llama"], seeds="1..2")
    sweep = run_sweep(config, groups, Serial(), out=Path("out"), store=CellStore("store"))

    assert SweepResult.from_json(Path("out/sweep.json").read_text()) == sweep
    for group in groups:
        folder = Path("out") / group.name
        result = Result.from_json((folder / "result.json").read_text())
        assert sweep.groups[groups.index(group)].result == result
        assert pq.read_table(folder / "examples.parquet").num_rows == 2 * 3 * 8
        assert (folder / "report.html").read_text().startswith("<!doctype html>")
    assert (Path("out") / "report.html").read_text().startswith("<!doctype html>")
    # From its folder it goes on; another sweep cannot take its place.
    again, same = read_sweep_file(Path("out"))
    assert [group.name for group in same] == [group.name for group in groups]
    assert run_sweep(again, same, Serial(), out=Path("out"), store=CellStore("store")).cells[0].status == "reused"
    with pytest.raises(ConfigError, match="out holds another sweep"):
        run_sweep(*grid(seeds=5), Serial(), out=Path("out"), store=CellStore("store"))


def test_what_changed_under_a_warm_worker_is_not_taken_for_what_was(place: Path) -> None:
    before = numbers(result_of(run(Serial())[0]))
    text = (place / "tickets.csv").read_text()
    (place / "tickets.csv").write_text(
        text.replace("positive", "x").replace("negative", "positive").replace("x", "negative")
    )
    (state,) = run(Serial())
    config = state.group.config
    assert isinstance(config, ComparisonConfig)
    assert numbers(result_of(state)) == numbers(compare(config).result) != before

    save_tiny("gpt2", place / "gpt2", seed=1)
    (state,) = run(Serial())
    assert numbers(result_of(state)) == numbers(compare(config).result)


def test_two_swapped_rows_of_an_embedding_are_another_model(place: Path) -> None:
    changes: dict[str, Any] = {"seeds": 1, "settings": QUICK}
    before = numbers(result_of(run(Serial(), **changes)[0]))
    path = place / "gpt2" / "model.safetensors"
    times = path.stat()
    weights = load_file(path)
    (embedding,) = [weight for name, weight in weights.items() if name.endswith("wte.weight")]
    # Deep inside the tensor, and the file as large and as old as before.
    embedding[[100, 101]] = embedding[[101, 100]].clone()
    save_file(weights, path, {"format": "pt"})
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    (state,) = run(Serial(), **changes)

    assert {each.status for each in state.states} == {"finished"}
    config = state.group.config
    assert isinstance(config, ComparisonConfig)
    assert numbers(result_of(state)) == numbers(compare(config).result)
    assert before is not None


def test_changes_of_inputs_during_a_sweep_are_reported(place: Path) -> None:
    sweep = Sweep(grid(seeds=1)[1], CellStore("store"), Serial())
    text = (place / "tickets.csv").read_text()
    (place / "tickets.csv").write_text(text.replace("story", "tale"))
    (state,) = sweep.run()

    failure = state.seeds[0].failure
    assert failure is not None
    assert "the model or the data have changed since the sweep started" in failure.message
    assert list(CellStore("store").cells()) == []


def test_a_store_that_the_driver_cannot_access_ends_the_sweep(place: Path) -> None:
    (state,) = run(Serial(perform="tests.runs.test_sweep:writing_elsewhere"), seeds=1)

    failure = state.seeds[0].failure
    assert failure is not None
    assert failure.message.endswith("give a --store that all machines can access")
    assert failure.attempts == 3


def writing_elsewhere(payload: dict[str, Any]) -> dict[str, Any]:
    return worker.perform({**payload, "store": "another"})


def test_a_full_store_ends_the_sweep_with_one_message_and_partial_results(place: Path) -> None:
    config, groups = grid()
    with pytest.raises(StorageError, match="the disk is full"):
        run_sweep(
            config, groups, Serial("tests.runs.test_sweep:full_on_seed_2"), out=Path("out"), store=CellStore("store")
        )

    result = SweepResult.from_json(Path("out/sweep.json").read_text())
    assert [cell.status for cell in result.cells] == ["finished", "pending", "pending"]
    assert result.groups[0].result is None
    assert [cell.facts["seed"] for cell in CellStore("store").cells(verify=True)] == [1]


def full_on_seed_2(payload: dict[str, Any]) -> dict[str, Any]:
    if payload["seed"] == 2:
        raise StorageError("cannot write cell.json: the disk is full. Free some space.")
    return worker.perform(payload)


def test_a_folder_of_another_sweep_or_of_other_runs_is_overwritten_only_on_request(place: Path) -> None:
    config, groups = grid(seeds=1)
    (place / "runs" / groups[0].name).mkdir(parents=True)
    (place / "runs" / groups[0].name / "result.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"holds a run that does not belong to this sweep"):
        run_sweep(config, groups, Serial(), out=Path("runs"), store=CellStore("store"))

    (place / "out").mkdir()
    (place / "out" / "sweep.yaml").write_text("models: [")
    with pytest.raises(ConfigError, match="out holds another sweep"):
        run_sweep(config, groups, Serial(), out=Path("out"), store=CellStore("store"))
    run_sweep(config, groups, Serial(), out=Path("out"), store=CellStore("store"), overwrite=True)
    assert read_sweep_file(Path("out"))[0].seeds == (1,)


def test_a_groups_time_is_that_of_its_seeds_and_its_paths_are_those_of_the_sweep(place: Path) -> None:
    config, groups = grid(seeds="1..2", settings={**SETTINGS, "data_dir": str(place)})
    sweep = run_sweep(config, groups, Serial(), out=Path("out"), store=CellStore("store"))

    (group,) = sweep.groups
    assert group.result is not None
    spent = [cell.facts["seconds"] for cell in CellStore("store").cells() if cell.facts["seed"] is not None]
    assert group.result.environment["seconds"] == pytest.approx(sum(spent), abs=0.1)
    assert group.result.config["data_dir"] == str(place)
    assert "device" not in sweep.environment


def test_a_comparison_that_chooses_its_seed_is_one_cell(place: Path) -> None:
    (state,) = run(Serial(), settings={**SETTINGS, "select": "icl"})

    assert state.result_cell is state.seeds[0]
    result = result_of(state)
    config = state.group.config
    assert isinstance(config, ComparisonConfig)
    assert numbers(result) == numbers(compare(config).result)
    assert result.environment["seconds"] > 0
    assert len(result.accuracy["icl"].per_seed) == 1


_FEW = {name: SETTINGS[name] for name in ("k", "limit", "selection_limit", "resamples")}
WHOLE: dict[str, dict[str, Any]] = {
    "stability": {
        "settings": {**_FEW, "orders": 2, "ft_seeds": 1, "ft_orders": 1, "label_seeds": 1, "rates": [1e-3]},
    },
    "selection": {
        "settings": {**_FEW, "rates": [1e-3], "orders": 1, "untouched_limit": 4, "similarity_limit": 4},
    },
    "folding": {
        "settings": {
            **_FEW,
            "axes": ["method"],
            "methods": ["thought-vector"],
            "fold": {"texts": 8, "plain": "none"},
            "ft": False,
        },
    },
    "regress": {
        "models": (),
        "tasks": (),
        "settings": {"studies": ["constructed"], "dimension": 2, "points": 3, "steps": 0.001},
    },
    # A comparison that chooses its seed is one cell too.
    "compare": {"settings": {**SETTINGS, "select": "icl"}},
}
"""Small settings of studies that are one cell."""


class Killed(BaseException):
    """An error that ends any worker."""


@pytest.mark.parametrize("study", list(WHOLE))
def test_a_cell_of_a_whole_run_resumes_from_its_finished_pieces(
    place: Path, study: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = {"study": study, "seeds": "1..2", **WHOLE[study]}
    (state,) = run(Serial(), Path("undisturbed"), **changes)
    assert state.result_cell is state.seeds[0]
    assert state.seeds[0].failure is None

    kept: list[str] = []
    keep = CellStore.keep_piece

    def counted(self: CellStore, key: Any, name: str, data: bytes) -> None:
        if limit is not None and len(kept) == limit:
            raise Killed
        keep(self, key, name, data)
        kept.append(name)

    monkeypatch.setattr(CellStore, "keep_piece", counted)
    limit: int | None = 1
    # Killed with one part finished, and then, where there are as many, with two.
    with pytest.raises(Killed):
        run(Serial(), **changes)
    limit = 2
    with contextlib.suppress(Killed):
        run(Serial(), **changes)
    limit = None
    (state,) = run(Serial(), **changes)

    assert len(kept) == len(set(kept)) >= 2
    assert numbers(result_of(state)) == numbers(result_of(state, Path("undisturbed")))
    assert not list(Path("store/pieces").glob("*/*"))


def test_cells_of_other_source_code_are_not_reused(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Serial(), Serial()
    run(first, seeds=1, settings=QUICK)
    monkeypatch.setattr(sweep_cells, "source_digest", lambda: "of another day")
    run(second, seeds=1, settings=QUICK)

    assert len(first.done) == len(second.done) == 2
    assert len(list(CellStore("store").cells())) == 4


def test_a_worker_with_other_source_code_reports_it_and_computes_nothing(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sweep = Sweep(grid(seeds=1)[1], CellStore("store"), Serial())
    monkeypatch.setattr(sweep_cells, "source_digest", lambda: "of another day")
    (state,) = sweep.run()

    failure = state.seeds[0].failure
    assert failure is not None
    assert "this worker runs other source code of dualform" in failure.message


def test_a_store_in_the_memory_of_this_process_is_refused_where_others_do_the_work(place: Path) -> None:
    config, groups = grid(seeds=1)
    engine = open_engine("local", workers=1)
    with pytest.raises(ConfigError, match="is in the memory of this process"):
        run_sweep(config, groups, engine, out=Path("out"), store=CellStore("memory://somewhere"))
    assert not Path("out").exists()


def test_a_password_in_the_stores_url_stays_out_of_all_that_is_written(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, groups = grid(seeds="1..2", settings={**QUICK, "tune": "each"})
    store = CellStore("memory://me:s3cr3t@host/store")
    engine = Serial("tests.runs.test_sweep:saying_where")
    run_sweep(config, groups, engine, out=Path("out"), store=store)
    for path in Path("out").rglob("*"):
        assert not path.is_file() or b"s3cr3t" not in path.read_bytes(), path
    assert [cell.failure["message"] for cell in store.failures()] == [
        "RuntimeError: no answer from memory://***@host/store"
    ]
    assert engine.done[0].payload["store"] == store.url

    # Slurm's jobs find it in their environment, because what they are given lies in files.
    monkeypatch.setenv("DUALFORM_SWEEP_STORE", "")
    slurm = Serial()
    slurm.name = "slurm"
    Sweep(groups, store, slurm).run()
    assert all("s3cr3t" not in json.dumps(job.payload) for job in slurm.done)
    assert {cell.facts["seed"] for cell in store.cells()} == {1, 2, None}


def saying_where(payload: dict[str, Any]) -> dict[str, Any]:
    if payload["seed"] == 2:
        raise RuntimeError(f"no answer from {payload['store']}")
    return worker.perform(payload)


def test_a_cell_with_right_hashes_and_wrong_content_is_computed_again(place: Path) -> None:
    (state,) = run(Serial(), seeds=1, settings=QUICK)
    assert state.result_cell is not None
    store, key = CellStore("store"), state.result_cell.cell.key
    store.drop(key)
    store.write(key, {"result.json": b"[" * 100_000, "examples.parquet": b"PAR1"}, {})
    config, groups = grid(seeds=1, settings=QUICK)
    result = run_sweep(config, groups, Serial(), out=Path("out"), store=store)

    assert result.groups[0].result is not None


@cache
def script() -> str:
    return """
import sys
from pathlib import Path
from dualform.runs.cell_store import CellStore
from dualform.runs.engines.opening import open_engine
from dualform.runs.sweep_config import read_sweep_file
from dualform.runs.sweep_run import run_sweep
config, groups = read_sweep_file(Path("grid.yaml"))
engine = open_engine("local", workers=2, threads=1)
run_sweep(config, groups, engine, out=Path(sys.argv[1]), store=CellStore("store"))
engine.close()
"""


def finished_cells() -> dict[str, str]:
    """Digest -> time when the cell was finished."""
    return {cell.digest: cell.finished for cell in CellStore("store", writable=False).cells(verify=True)}


def driver(out: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen([sys.executable, "-c", script(), out], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


def test_a_sweep_whose_driver_and_workers_are_killed_resumes_and_two_sweeps_share_the_work(place: Path) -> None:
    settings = {"limit": 4, "selection_limit": 4, "resamples": 10, "learners": ["zsl", "icl"], "controls": []}
    grid_of_24 = GRID | {"models": ["gpt2", "llama"], "settings": settings, "grid": {"k": [1, 2, 3, 4]}}
    (place / "grid.yaml").write_text(json.dumps(grid_of_24))
    first = driver("out")
    wait_for(lambda: (place / "store" / "cells").exists() and len(finished_cells()) >= 3, first)
    first.kill()
    first.communicate()
    before = finished_cells()
    assert 3 <= len(before) < 32

    both = [driver("out"), driver("other")]
    wait_for(lambda: len(finished_cells()) >= len(before) + 3, both[0])
    for pid in children(both[0].pid)[:1]:
        os.kill(pid, signal.SIGKILL)
    for process in both:
        _, errors = process.communicate(timeout=240)
        assert process.returncode == 0, errors.decode()

    after = finished_cells()
    # 24 seeds and the 8 groups that they are put together to.
    assert len(after) == 32
    # Nothing that was finished has been computed again.
    assert {digest: when for digest, when in after.items() if digest in before} == before
    results = [SweepResult.from_json((place / out / "sweep.json").read_text()) for out in ("out", "other")]
    assert all(cell.status in ("finished", "reused") for sweep in results for cell in sweep.cells)
    computed = [cell.key for sweep in results for cell in sweep.cells if cell.status == "finished"]
    assert len(computed) == len(set(computed))
    first_numbers, second_numbers = (
        [numbers(group.result) for group in sweep.groups if group.result] for sweep in results
    )
    assert first_numbers == second_numbers
    assert len(first_numbers) == 8


def wait_for(condition: Any, process: "subprocess.Popen[bytes]", seconds: float = 240) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "nothing happened for too long"
        assert process.poll() is None, "the driver has ended"
        time.sleep(0.05)


def children(pid: int) -> list[int]:
    """Child processes of a process."""
    return [
        int(number)
        for task in Path(f"/proc/{pid}/task").iterdir()
        for number in (task / "children").read_text().split()
    ]
