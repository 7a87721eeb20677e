from pathlib import Path

import pytest
import torch

from dualform.studies.laboratory import plan as plan_regression
from dualform.studies.laboratory.config import RegressionConfig, regression_config
from dualform.studies.plan import plan_of
from dualform.studies.sampling import BUDGET, LinearCost, sample
from tests.fixed_machine import GIB, fixed_machine


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Studies of which a few steps were run, and over how many seeds; the steps themselves take seconds."""
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    done: list[tuple[str, int]] = []

    def sample(name: str, config: RegressionConfig) -> LinearCost:
        done.append((name, len(config.seeds)))
        return LinearCost(2.0, 100.0, 1e9, 1e12, GIB)

    monkeypatch.setattr(plan_regression, "_sampled", sample)
    return done


def test_steps_are_drawn_out_and_seeds_added_up(sampled: list[tuple[str, int]]):
    plan = plan_of(regression_config(studies=("constructed",), seeds=(1, 2, 3), steps=0.5), fixed_machine())
    (study,) = (part for part in plan.parts if part.name == "constructed")
    assert study.cost.seconds == 3 * (2.0 + 0.5 * 100.0)
    assert study.cost.flops == 3 * (1e9 + 0.5 * 1e12)
    assert sampled == [("constructed", 1)]
    assert plan.peak == GIB


def test_models_that_are_trained_together_are_sampled_together(sampled: list[tuple[str, int]]):
    plan_of(regression_config(studies=("phases",), seeds=(1, 2, 3)), fixed_machine())
    assert sampled == [("phases", 3)]


def test_what_was_found_is_kept_whatever_the_steps(sampled: list[tuple[str, int]]):
    for steps in (0.5, 1.0):
        plan_of(regression_config(studies=("layers",), seeds=(1,), steps=steps), fixed_machine())
    assert len(sampled) == 1


def test_samples_are_announced_unless_earlier_ones_are_kept(sampled: list[tuple[str, int]]):
    config, messages = regression_config(studies=("layers", "shift"), seeds=(1,)), list[str]()
    plan = plan_of(config, fixed_machine(), announce=messages.append)
    assert plan.sampled
    (sentence,) = messages
    assert sentence.endswith("layers, shift.")
    plan_of(config, fixed_machine(), announce=messages.append)
    assert len(messages) == 1


class Study:
    """A study whose time is what it says: so much a seed, and so much more for all steps of one."""

    def __init__(self, fixed: float, of_steps: float, steps: int = 1000) -> None:
        self.fixed, self.of_steps, self.steps, self.now = fixed, of_steps, steps, 0.0
        self.runs: list[tuple[float, int]] = []

    def run(self, share: float, seeds: int) -> float:
        self.runs.append((share, seeds))
        taken = max(1, round(share * self.steps)) / self.steps
        self.now += seeds * (self.fixed + taken * self.of_steps)
        return taken

    def counted(self, share: float, seeds: int) -> tuple[float, float]:
        self.run(share, seeds)
        taken = self.run(share, seeds)
        return taken, seeds * (1e6 + 1e9 * taken)

    def line(self, seeds: int) -> LinearCost:
        return sample(self.run, self.counted, seeds, lambda: self.now)


def test_a_quick_study_is_sampled_with_all_seeds_and_counted():
    study = Study(0.1, 20.0)
    line, threads = study.line(3), torch.get_num_threads()
    assert line.seeds == 3
    assert (line.fixed_seconds * threads, line.step_seconds * threads) == pytest.approx((0.3, 60.0))
    assert (line.fixed_flops, line.step_flops) == pytest.approx((3e6, 3e9))
    assert max(study.runs)[0] == 0.05


@pytest.mark.parametrize("steps", [400, 800, 1500])
def test_shares_that_make_no_whole_number_of_steps_count_as_what_was_taken(steps: int):
    line, threads = Study(0.1, 20.0, steps).line(3), torch.get_num_threads()
    assert (line.step_seconds * threads, line.step_flops) == pytest.approx((60.0, 3e9))


@pytest.mark.parametrize("of_steps", [100.0, 400.0, 700.0])
@pytest.mark.parametrize("fixed", [1.0, 3.0, 6.0])
def test_samples_of_a_slow_study_stay_within_their_time(fixed: float, of_steps: float):
    study = Study(fixed, of_steps)
    line, threads = study.line(5), torch.get_num_threads()
    assert study.now <= BUDGET + 1
    assert (line.fixed_seconds * threads, line.step_seconds * threads) == pytest.approx(
        (line.seeds * fixed, line.seeds * of_steps)
    )


def test_operations_that_there_was_no_time_to_count_are_told_of(
    sampled: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
):
    assert not Study(6.0, 100.0).line(5).counted
    monkeypatch.setattr(plan_regression, "_sampled", lambda name, config: LinearCost(2.0, 100.0, 0.0, 0.0, GIB))
    plan = plan_of(regression_config(studies=("trained",), seeds=(1,)), fixed_machine())
    assert any("operations of trained are not counted" in note for note in plan.notes)
