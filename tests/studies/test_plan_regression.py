from pathlib import Path

import pytest

from dualform.studies import plan_regression
from dualform.studies.plan import plan_of
from dualform.studies.plan_regression import _Line
from dualform.studies.regression_config import RegressionConfig, regression_config
from tests.fixed_machine import GIB, fixed_machine


@pytest.fixture
def sampled(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[tuple[str, int]]:
    """Studies of which a few steps were run, and over how many seeds; the steps themselves take seconds."""
    monkeypatch.setenv("DUALFORM_CACHE", str(tmp_path))
    done: list[tuple[str, int]] = []

    def sample(name: str, config: RegressionConfig) -> _Line:
        done.append((name, len(config.seeds)))
        return _Line(2.0, 100.0, 1e9, 1e12, GIB)

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
