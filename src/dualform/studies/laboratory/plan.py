"""What the laboratory costs. Its models are so small that no rate of products tells: a few steps of each are run.

Each study is run a few times with very few training steps, for one seed where all would take too long, and the line
through these runs is drawn out to all steps and seeds. Operations are counted in runs of their own where there is time
for them. What was found is kept in the cache.
"""

import contextlib
import hashlib
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dualform.files import atomic_write, cache_dir
from dualform.models.cost.machine import Machine, peak_memory
from dualform.source_digest import source_digest
from dualform.studies.laboratory.config import LabName, RegressionConfig
from dualform.studies.laboratory.run import STUDIES, in_order
from dualform.studies.pieces import NoPieceStore
from dualform.studies.plan import Cost, Plan, PricedPart
from dualform.studies.planning import PAGE

_FEW, _MORE, _MANY = 0.002, 0.01, 0.05
"""Shares of a study's steps that are run: the first two in any case, the last where it fits."""
_BUDGET = 20.0
"""Seconds of processor time that the samples of a study may take, as far as that can be foreseen."""
_COUNTING = 2.5
"""How much longer a run takes that counts operations."""
_SEED_BY_SEED: tuple[LabName, ...] = ("constructed", "layers")
"""Studies that train one seed after the other; the others train all seeds' models together."""


@dataclass(frozen=True)
class _LinearCost:
    """Seconds and operations at no steps, and what all steps add."""

    seconds: float
    seconds_of_steps: float
    flops: float
    flops_of_steps: float
    memory: int
    """Bytes at the peak."""
    seeds: int = 1
    """For so many."""

    @property
    def counted(self) -> bool:
        """There was time to count operations."""
        return self.flops_of_steps > 0


def plan(config: RegressionConfig, machine: Machine) -> Plan:
    """What the laboratory with these settings will cost. Tokens are left out: its models read numbers."""
    parts = [PricedPart("start", Cost(seconds=machine.start_laboratory))]
    peak = machine.base_laboratory
    uncounted: tuple[LabName, ...] = ()
    for name in in_order(config.studies):
        asked = _asked(name, config)
        line = _found(name, asked, machine) or _kept(name, asked, machine)
        times = len(config.seeds) / line.seeds
        uncounted += () if line.counted else (name,)
        cost = Cost(
            flops=line.flops + line.flops_of_steps * config.steps,
            seconds=line.seconds + line.seconds_of_steps * config.steps,
        )
        parts.append(PricedPart(name, cost * times))
        peak = max(peak, line.memory)
    parts.append(PricedPart("numbers, page", Cost(seconds=PAGE * machine.start)))
    memory = {"Python and libraries": machine.base_laboratory, "models and tasks": peak - machine.base_laboratory}
    notes = ["estimated from a few steps of each training"]
    if uncounted:
        notes.append(f"operations of {', '.join(uncounted)} are not counted: that would have taken too long")
    return Plan("regress", tuple(parts), memory, machine, None, tuple(notes), sampled=True)


def samples(config: RegressionConfig, machine: Machine) -> str:
    """Message before samples are run; empty where earlier ones are kept."""
    new = [name for name in in_order(config.studies) if _found(name, _asked(name, config), machine) is None]
    if not new:
        return ""
    return f"A few training steps are being run for the estimate, about {_BUDGET:.0f} s at most each: {', '.join(new)}."


def _asked(name: LabName, config: RegressionConfig) -> RegressionConfig:
    seeds = config.seeds[:1] if name in _SEED_BY_SEED else config.seeds
    return config.model_copy(update={"studies": (name,), "seeds": seeds})


def _place(name: LabName, config: RegressionConfig, machine: Machine) -> Path:
    settings = config.model_dump(mode="json", exclude={"steps"})
    about = json.dumps([source_digest(), settings, machine.threads, machine.start, _BUDGET], sort_keys=True)
    return cache_dir() / "machine" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def _found(name: LabName, config: RegressionConfig, machine: Machine) -> _LinearCost | None:
    # One that is damaged is found anew.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _LinearCost(**json.loads(_place(name, config, machine).read_text(encoding="utf-8")))
    return None


def _kept(name: LabName, config: RegressionConfig, machine: Machine) -> _LinearCost:
    """Sample a study, and keep what was found."""
    line = _sampled(name, config)
    kept = _place(name, config, machine)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        temporary.write_text(json.dumps(line.__dict__) + "\n", encoding="utf-8")
    return line


def _sampled(name: LabName, config: RegressionConfig) -> _LinearCost:
    module = importlib.import_module(STUDIES[name])
    study: Callable[..., Any] = getattr(module, name)

    def run(share: float, seeds: int) -> None:
        with warnings.catch_warnings():
            # That so few steps teach nothing is known.
            warnings.simplefilter("ignore")
            few = config.model_copy(update={"steps": share, "seeds": config.seeds[:seeds]})
            study(few, NoPieceStore(), lambda amount, doing: None)

    def counted(share: float, seeds: int) -> float:
        with FlopCounterMode(display=False) as counter:
            run(share, seeds)
        return float(counter.get_total_flops())

    return sample(run, counted, len(config.seeds))


def sample(
    run: Callable[[float, int], None],
    counted: Callable[[float, int], float],
    n_seeds: int,
    clock: Callable[[], float] = time.process_time,
) -> _LinearCost:
    """Seconds and operations of a study, from runs with few steps.

    Args:
        run: The study with a share of its steps and so many seeds.
        counted: The same; what comes back are its operations.
        n_seeds: That are asked for.
        clock: Seconds of processor time.
    """
    begin = clock()

    def left() -> float:
        return _BUDGET - (clock() - begin)

    def timed(share: float, seeds: int) -> float:
        start = clock()
        run(share, seeds)
        return clock() - start

    seeds = 1
    quick = timed(_FEW, seeds)
    if n_seeds > 1 and 2.5 * n_seeds * quick < left():
        # Seeds that are trained together take less time than one after the other.
        seeds = n_seeds
        quick = timed(_FEW, seeds)
    share, slow = _MORE, timed(_MORE, seeds)
    per_share = max(0.0, slow - quick) / (_MORE - _FEW)
    flops = flops_of_steps = 0.0
    if _COUNTING * (quick + slow) < left():
        few, more = counted(_FEW, seeds), counted(_MORE, seeds)
        flops_of_steps = (more - few) / (_MORE - _FEW)
        flops = few - _FEW * flops_of_steps
    if slow + (_MANY - _MORE) * per_share < left():
        # The further apart, the less it matters that no run takes the same time twice.
        share, slow = _MANY, timed(_MANY, seeds)
    # As `machine` counts them: the time that all threads had, shared out.
    threads = torch.get_num_threads()
    of_steps = max(0.0, slow - quick) / (share - _FEW)
    fixed = max(0.0, quick - _FEW * of_steps)
    return _LinearCost(fixed / threads, of_steps / threads, flops, flops_of_steps, peak_memory(), seeds)
