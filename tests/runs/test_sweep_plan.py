from pathlib import Path

import pytest

from dualform.errors import TaskError
from dualform.runs import sweep_plan
from dualform.runs.sweep_config import SweepConfig, expand
from tests.studies.small import write_csv


def test_a_mistake_in_any_groups_data_comes_before_the_machine_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(config: object) -> None:
        raise AssertionError("the machine was measured before the data were read")

    monkeypatch.setattr(sweep_plan, "machine_for", measured)
    write_csv(tmp_path / "tickets.csv")
    good = {"task": str(tmp_path / "tickets.csv"), "text": "body", "label": "topic"}
    tasks = [good, good | {"label": "colour"}]
    groups = expand(SweepConfig.model_validate({"models": ["gpt2"], "tasks": tasks, "seeds": "1"}))
    monkeypatch.setattr("dualform.runs.sweep_cells.model_identity", lambda name: name)
    with pytest.raises(TaskError, match="colour"):
        sweep_plan.plan_groups("s", groups, str(tmp_path / "store"))
