"""Cost of the laboratory, estimated from a few steps of each training (see `studies.sampling`).

Most of the work is training. The linear solves of exact predictors, which torch does not count, are missing from the
operations but included in the measured time.
"""

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

from pydantic import PrivateAttr

from dualform.models.cost.machine import Machine
from dualform.studies.laboratory.config import LabName, RegressionConfig
from dualform.studies.laboratory.run import STUDIES, in_order
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.planning import PAGE
from dualform.studies.sampling import (
    BUDGET,
    LinearCost,
    Run,
    cached_cost,
    cached_or_sampled_cost,
    count_operations,
    sample,
)

_SEED_BY_SEED: tuple[LabName, ...] = ("constructed", "layers")
"""Studies that train one seed after the other; the others train the models of all seeds together."""


def plan(config: RegressionConfig, machine: Machine) -> Plan:
    """Estimated cost of the laboratory with these settings. It has no tokens: the models read numbers."""
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory))]
    peak = machine.base_laboratory
    uncounted: tuple[LabName, ...] = ()
    for name in in_order(config.studies):
        sampled = _sampled_config(name, config)
        work_cost = cached_or_sampled_cost(name, _settings(sampled), machine, partial(_sampled, name, sampled))
        uncounted += () if work_cost.counted else (name,)
        parts.append(PricedPart(name, work_cost.cost(config.steps, len(config.seeds))))
        peak = max(peak, work_cost.memory)
    parts.append(PricedPart("numbers, page", Cost(seconds=PAGE * machine.start)))
    memory = {"Python and libraries": machine.base_laboratory, "models and tasks": peak - machine.base_laboratory}
    notes = ["estimated from a few steps of each training"]
    if uncounted:
        notes.append(f"operations of {', '.join(uncounted)} are not counted: counting would have taken too long")
    return Plan("regress", tuple(parts), memory, machine, None, tuple(notes), sampled=True)


def samples(config: RegressionConfig, machine: Machine) -> str:
    """Message to print before samples are run; empty if earlier ones are stored."""
    new = [name for name in in_order(config.studies) if not _is_cached(name, config, machine)]
    if not new:
        return ""
    return f"Running a few training steps for the estimate, about {BUDGET:.0f} s at most each: {', '.join(new)}."


def _is_cached(name: LabName, config: RegressionConfig, machine: Machine) -> bool:
    return cached_cost(name, _settings(_sampled_config(name, config)), machine) is not None


def _sampled_config(name: LabName, config: RegressionConfig) -> RegressionConfig:
    """The settings of one study, with as many seeds as it trains together."""
    seeds = config.seeds[:1] if name in _SEED_BY_SEED else config.seeds
    return config.model_copy(update={"studies": (name,), "seeds": seeds})


def _settings(config: RegressionConfig) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude={"steps"})


def _sampled(name: LabName, config: RegressionConfig) -> LinearCost:
    run = run_of(name, config)
    return sample(run, count_operations(run), len(config.seeds))


class _FewSteps(RegressionConfig):
    """Settings that count the steps taken and the steps of a full training."""

    _taken: int = PrivateAttr(0)
    _whole: int = PrivateAttr(0)

    def scaled(self, steps: int) -> int:
        """Training steps, as in `RegressionConfig`."""
        taken = super().scaled(steps)
        self._taken, self._whole = self._taken + taken, self._whole + steps
        return taken

    @property
    def share(self) -> float:
        """Steps taken, as a share of a full training."""
        return self._taken / self._whole


def run_of(name: LabName, config: RegressionConfig) -> Run:
    """A study of the laboratory as a function for `studies.sampling`."""
    study: Callable[..., Any] = getattr(importlib.import_module(STUDIES[name]), name)

    def run(share: float, seeds: int) -> float:
        few = _FewSteps(**config.model_dump(exclude={"steps", "seeds"}), steps=share, seeds=config.seeds[:seeds])
        study(few, NoPieceStore(), lambda amount, doing: None)
        return few.share

    return run
