import json
import os
import time
from dataclasses import asdict
from pathlib import Path

import pytest

from dualform.errors import ConfigError
from dualform.models.cost import machine as module
from dualform.models.cost.machine import (
    LONGEST_USE,
    ROWS,
    Machine,
    container_limit,
    cores,
    faster_of,
    memory,
    peak_memory,
    this_machine,
    where_to_run,
)
from tests.fixed_machine import fixed_machine


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Calls of `measure_machine`, which is replaced because it takes seconds."""
    done: list[tuple[str, str]] = []

    def measure_machine(device: str, dtype: str) -> Machine:
        done.append((device, dtype))
        return fixed_machine(device=device, dtype=dtype, dispatch=1e-6 * len(done))

    monkeypatch.setattr(module, "measure_machine", measure_machine)
    monkeypatch.setattr(module, "checked_rate", lambda device, dtype: fixed_machine().plain[2])
    return done


def test_measured_rates_are_given_back_at_the_rows_where_they_were_measured():
    machine = fixed_machine()
    for packed, rates in ((False, machine.plain), (True, machine.packed)):
        assert [machine.rate(rows, packed) for rows in ROWS] == pytest.approx(rates)


def test_between_measured_rows_a_rate_lies_between_its_neighbours_and_rises_with_them():
    machine = fixed_machine()
    actual = [machine.rate(rows, packed=False) for rows in range(16, 65)]
    assert actual == sorted(actual)
    assert machine.plain[1] < machine.rate(30, packed=False) < machine.plain[2]


def test_beyond_what_was_measured_the_last_rate_holds():
    machine = fixed_machine()
    assert machine.rate(10**6, packed=True) == machine.packed[-1]
    assert machine.rate(0.5, packed=True) == machine.packed[0]


def test_passes_over_a_small_tensor_go_at_the_rate_of_the_cache():
    machine = fixed_machine()
    assert machine.passes(1000, 2, 4) == pytest.approx(2 * 3 * 4 * 1000 / machine.cached)
    assert machine.passes(10**8, 1, 4) == pytest.approx(3 * 4 * 10**8 / machine.bandwidth)
    middle = machine.passes(2**18, 1, 4) / (3 * 4 * 2**18)
    assert 1 / machine.cached < middle < 1 / machine.bandwidth


def test_passes_take_longer_the_more_numbers_there_are():
    machine = fixed_machine()
    actual = [machine.passes(2**power, 1, 4) for power in range(8, 28)]
    assert actual == sorted(actual)


def test_a_machine_is_measured_once_and_read_from_the_cache_then(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    first = this_machine()
    assert this_machine() == first
    assert measurements == [("cpu", "float32")]


def test_measuring_again_replaces_the_cached_rates(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    first = this_machine()
    second = this_machine(measure=True)
    assert first != second
    assert this_machine() == second


def test_a_machine_that_was_busy_when_it_was_measured_is_measured_again(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    this_machine()
    # Slower than before: it is busy now, and its rates stay.
    monkeypatch.setattr(module, "checked_rate", lambda device, dtype: 0.2 * fixed_machine().plain[2])
    this_machine()
    assert len(measurements) == 1
    monkeypatch.setattr(module, "checked_rate", lambda device, dtype: 1.5 * fixed_machine().plain[2])
    this_machine()
    assert len(measurements) == 2


def test_old_rates_are_measured_again(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    this_machine()
    (kept,) = tmp_path.glob("machine/*.json")
    for age, n in ((0.9 * LONGEST_USE, 1), (1.1 * LONGEST_USE, 2)):
        then = time.time() - age
        os.utime(kept, (then, then))
        this_machine()
        assert len(measurements) == n


def test_the_faster_of_two_measurements_is_taken_rate_by_rate():
    busy = fixed_machine(plain=(1e9, 5e9, 2e10, 4e10, 5e10), bandwidth=1e9, block=2e-4, ranking=(2e-4, 3e-4))
    chosen = faster_of(busy, fixed_machine())
    assert chosen == faster_of(fixed_machine(), busy) == fixed_machine(ranking=(1e-4, 3e-4))


def test_each_precision_is_measured_for_itself(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    this_machine(dtype="float32")
    this_machine(dtype="bfloat16")
    assert [dtype for _, dtype in measurements] == ["float32", "bfloat16"]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"device": "cpu"}'])
def test_a_damaged_measurement_is_taken_anew(
    damage: str, measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    this_machine()
    (kept,) = tmp_path.glob("machine/*.json")
    kept.write_text(damage)
    this_machine()
    assert len(measurements) == 2
    assert json.loads(kept.read_text())["device"] == "cpu"


def test_memory_is_read_each_time_and_not_cached(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    for ram in (3, 2):
        monkeypatch.setattr(module, "memory", lambda device, ram=ram: (ram, 1))
        assert (this_machine().ram, this_machine().gpu) == (ram, 1)
    (kept,) = tmp_path.glob("machine/*.json")
    assert not {"ram", "gpu"} & set(json.loads(kept.read_text()))
    assert len(measurements) == 1


def test_another_gpu_is_measured_for_itself(
    measurements: list[tuple[str, str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    for name in ("small", "large", "small"):
        monkeypatch.setattr(module, "_gpu_name", lambda device, name=name: name)
        this_machine()
    assert len(measurements) == 2


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_limits_of_a_control_group_and_of_its_parents_apply(tmp_path: Path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    write(groups, "0::/jobs/mine\n")
    assert container_limit(groups, root) is None
    write(root / "jobs/mine/memory.max", "max\n")
    assert container_limit(groups, root) is None
    write(root / "jobs/memory.max", "4096\n")
    assert container_limit(groups, root) == 4096
    write(root / "jobs/mine/memory.max", "1024\n")
    assert container_limit(groups, root) == 1024


def test_in_a_container_the_limit_is_read_at_the_top_for_any_path(tmp_path: Path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    write(groups, "0::/system/docker-1\n")
    write(root / "memory.max", "2048\n")
    assert container_limit(groups, root) == 2048


def test_version_1_tells_limits_too_and_none_by_a_number_that_no_machine_has(tmp_path: Path):
    groups, root = tmp_path / "cgroup", tmp_path / "fs"
    write(groups, "5:cpu:/\n4:memory:/box\n0::/\n")
    write(root / "memory/memory.limit_in_bytes", "9223372036854771712\n")
    assert container_limit(groups, root) is None
    write(root / "memory/box/memory.limit_in_bytes", "512\n")
    assert container_limit(groups, root) == 512
    assert container_limit(tmp_path / "none", root) is None


def test_memory_is_no_more_than_a_container_allows(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "container_limit", lambda: 1 << 20)
    assert memory("cpu") == (1 << 20, 0)


def test_the_cached_rates_are_plain_json():
    assert json.loads(json.dumps(asdict(fixed_machine())))["plain"] == list(fixed_machine().plain)


def test_memory_and_cores_of_this_machine_are_seen():
    ram, gpu = memory("cpu")
    assert ram > 1 << 28
    assert gpu == 0
    assert cores() >= 1


def test_auto_means_a_device_that_is_there():
    assert where_to_run("auto") in ("cpu", "cuda")
    assert where_to_run("cpu") == "cpu"
    with pytest.raises(ConfigError, match="device 'nonsense' cannot be used"):
        where_to_run("nonsense")


def test_the_memory_that_a_process_took_does_not_fall():
    before = peak_memory()
    held = bytearray(1 << 24)
    assert peak_memory() >= before > 1 << 24
    del held
