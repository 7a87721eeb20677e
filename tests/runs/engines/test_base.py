import importlib.util

import pytest

from dualform.errors import ConfigError
from dualform.runs.engines.base import CellJob, best_match, share_cores, warn_if_crowded
from dualform.runs.engines.opening import open_engine


def test_an_unknown_engine_is_named_with_those_that_there_are():
    with pytest.raises(ConfigError, match="unknown engine 'dask': choose one of local, ray, slurm"):
        open_engine("dask")


def test_no_workers_or_threads_are_refused():
    with pytest.raises(ConfigError, match="workers 0 must be 1 or more"):
        open_engine("local", workers=0)
    with pytest.raises(ConfigError, match="threads -1 must be 1 or more"):
        open_engine("local", threads=-1)


@pytest.mark.parametrize(
    ("available", "workers", "threads", "shared"),
    [
        (1, None, None, (1, 1)),
        (2, None, None, (2, 1)),
        (3, None, None, (2, 1)),
        (16, None, None, (8, 2)),
        (16, 3, None, (3, 5)),
        (16, None, 4, (4, 4)),
        (2, None, 4, (1, 4)),
        (16, 2, 1, (2, 1)),
    ],
)
def test_cores_are_shared_out(available, workers, threads, shared):
    assert share_cores(available, workers, threads) == shared


def test_more_workers_than_cores_are_warned_about():
    with pytest.warns(UserWarning, match=r"4 workers with 1 threads each share 2 cores .* use 2 at most"):
        warn_if_crowded(2, 4, 1)
    warn_if_crowded(2, 2, 1)


@pytest.mark.parametrize("package", ["ray", "submitit"])
def test_a_package_that_is_not_installed_is_named_with_what_brings_it(monkeypatch, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    extra = {"ray": "ray", "submitit": "slurm"}[package]
    with pytest.raises(ConfigError, match=rf"pip install 'dualform\[{extra}\]'"):
        open_engine(extra)


def test_a_worker_prefers_jobs_with_its_model_to_larger_jobs():
    waiting = [
        CellJob("1", {}, affinity="a", weight=9),
        CellJob("2", {}, affinity="b", weight=1),
        CellJob("3", {}, affinity="b", weight=2),
    ]
    assert best_match(["b"], waiting) == (0, 2)
    assert best_match(["c", "b"], waiting) == (1, 2)


def test_jobs_without_a_matching_worker_go_to_a_new_worker_largest_first():
    waiting = [
        CellJob("1", {}, affinity="a", weight=1),
        CellJob("2", {}, affinity="b", weight=5),
        CellJob("3", {}, affinity="b", weight=5),
    ]
    assert best_match(["c", ""], waiting) == (1, 1)
    assert best_match(["c"], waiting) == (0, 1)
