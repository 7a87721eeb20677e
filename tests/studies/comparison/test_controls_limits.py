"""Where a control cannot be run, or cannot serve, and what is said then."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from dualform.errors import ConfigError, DualformError, ModelError
from dualform.result import Result
from dualform.studies.comparison import controls as controls_module
from dualform.studies.comparison.calibrate import TotalsRatio, calibrate, floors_of
from dualform.studies.comparison.run import compare
from dualform.studies.stability.config import stability_config
from dualform.tasks.demonstrations import draw_demonstrations
from tests.studies.known_controls import FLOORS
from tests.studies.small import small_config, small_lm, small_task


def run(**changes: Any) -> Result:
    return compare(small_config(seeds=(1,), limit=6, **changes), lm=small_lm(), task=small_task()).result


def test_orders_are_different_and_begin_with_the_one_drawn() -> None:
    drawn = draw_demonstrations(small_task(), 3, 5)
    orders = drawn.in_orders(100)
    assert orders[0] is drawn
    assert len({each.rows for each in orders}) == len(orders) == 6
    assert [each.rows for each in drawn.in_orders(2)] == [each.rows for each in orders[:2]]
    assert len(draw_demonstrations(small_task(), 1, 5).in_orders(4)) == 1


@pytest.mark.parametrize("rule", ["shuffled", "random"])
@pytest.mark.parametrize("drawn_rule", ["true", "shuffled", "random", "flipped"])
def test_new_labels_differ_from_those_drawn_under_every_rule(rule: Any, drawn_rule: Any) -> None:
    task = small_task()
    for seed in range(12):
        drawn = draw_demonstrations(task, 4, seed, balanced=True, label_rule=drawn_rule)
        otherwise = drawn.labelled_otherwise(task, rule)
        if len(set(drawn.labels)) == 1 and rule == "shuffled":
            assert otherwise is None
            continue
        assert otherwise is not None
        assert otherwise.labels != drawn.labels
        assert otherwise.rows == drawn.rows
        if rule == "shuffled":
            assert sorted(otherwise.labels) == sorted(drawn.labels)


def test_one_demonstration_has_no_other_order_and_no_labels_to_shuffle() -> None:
    result = run(k=1, controls=("random", "shuffled_labels", "icl_order", "ft_order", "random_labels"))
    assert set(result.controls) == {"random", "random_labels"}
    for name in ("shuffled_labels", "icl_order", "ft_order"):
        assert any(f"Control {name} was left out for seed 1" in warning for warning in result.warnings), name
    # Without a ceiling there is no scale.
    assert result.calibrated == {}


def test_a_control_that_fails_is_left_out_and_the_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> Any:
        raise ModelError("this family cannot be drawn anew")

    monkeypatch.setattr(controls_module, "untrained", refuse)
    result = run(controls=("random", "untrained"))
    assert set(result.controls) == {"random"}
    assert any(
        "Control untrained was left out for seed 1: this family cannot be drawn anew" in warning
        for warning in result.warnings
    )
    assert result.accuracy["icl"].n == 6


def test_another_task_is_loaded_before_any_work_and_only_if_needed() -> None:
    with pytest.raises(DualformError, match="no-such-task"):
        run(controls=("other_task",), other_task="no-such-task")
    with pytest.raises(ConfigError, match="other_task reviews is for the control other_task"):
        small_config(controls=("random",), other_task="reviews")


def test_controls_without_finetuning_are_left_out_with_a_note() -> None:
    result = run(learners=("zsl", "icl"), controls=("random",))
    assert result.controls == {}
    assert any(warning.startswith("No controls were run") for warning in result.warnings)


def around(mean: float, spread: float = 0.02, n_seeds: int = 3, seed: int = 0) -> TotalsRatio:
    drawn = torch.randn(n_seeds, 60, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return TotalsRatio.of_mean(mean + spread * drawn)


def order_pairs(values: Sequence[float], spread: float) -> dict[str, TotalsRatio]:
    names = ("random", "icl_order", "ft_order")
    return {name: around(value, spread, seed=i + 1) for i, (name, value) in enumerate(zip(names, values, strict=True))}


def test_an_interval_is_given_only_where_the_ceiling_surely_lies_above_the_floor() -> None:
    sure = calibrate(around(0.5), order_pairs((0.2, 0.8, 0.8), 0.02), 200)
    unsure = calibrate(around(0.5), order_pairs((0.2, 0.21, 0.21), 0.5), 200)
    none = calibrate(around(0.5), order_pairs((0.6, 0.5, 0.5), 0.02), 200)
    assert sure is not None
    assert unsure is not None
    assert none is not None
    assert sure.ci95[0] is not None
    assert sure.ci95[0] < 0.5 < sure.ci95[1]  # type: ignore[operator]
    assert unsure.ci95 == (None, None)
    assert (none.mean, none.ci95) == (None, (None, None))


def test_untrained_models_are_floors_of_changes_and_not_of_states() -> None:
    assert set(floors_of("sim_aou_raw")) == set(FLOORS)
    for measure in ("agreement", "sim_am_softmax", "vocabulary_shared"):
        assert set(FLOORS) - set(floors_of(measure)) == {"untrained", "embeddings"}
    controls = order_pairs((0.2, 0.8, 0.8), 0.02) | {"untrained": around(0.99, 0.001, seed=9)}
    place = calibrate(around(0.5), controls, 100, floors_of("agreement"))
    assert place is not None
    assert place.control == "random"
    assert "untrained" in place.by_control


def test_more_orders_than_there_are_is_a_mistake() -> None:
    with pytest.raises(ConfigError, match=r"orders 10: 3 demonstrations have only 6"):
        stability_config(("tiny",), "toy", k=3)
    assert stability_config(("tiny",), "toy", k=3, orders=6, ft_orders=2).orders == 6
