"""The cost of work on very small models, extrapolated from runs with few training steps.

Measured rates of matrix products do not predict the time of such small models. The work is therefore run a few times
with very few training steps, for one seed where all seeds would take too long, and extrapolated linearly to all steps
and seeds. Operations are counted in separate runs if there is time: those that torch counts, without linear solves and
decompositions. The estimates are cached on disk.
"""

import contextlib
import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dualform.files import atomic_write, cache_dir
from dualform.models.cost.machine import Machine, peak_memory
from dualform.models.cost.work import Cost
from dualform.source_digest import source_digest

_FEW, _MORE, _MANY = 0.002, 0.01, 0.05
"""Shares of the steps that are run: the first two always, the last if there is time."""
BUDGET = 20.0
"""Seconds of processor time that sampling should not exceed."""
_COUNTING = 2.5
"""Slowdown of a run by counting operations."""

Run = Callable[[float, int], float]
"""Runs the work with a share of its steps and a number of seeds. Returns the share that was run, which differs from the
requested one where that is not a whole number of steps."""


@dataclass(frozen=True)
class LinearCost:
    """Seconds and operations as linear functions of the share of the steps: a fixed part, and what all steps add."""

    fixed_seconds: float
    step_seconds: float
    fixed_flops: float
    step_flops: float
    memory: int
    """Bytes at the peak."""
    seeds: int = 1
    """Number of seeds that were sampled."""

    @property
    def counted(self) -> bool:
        """Whether operations were counted."""
        return self.step_flops > 0

    def cost(self, share: float, seeds: int) -> Cost:
        """Cost of a share of the steps for a number of seeds. Without tokens, since these models read numbers."""
        cost = Cost(
            flops=self.fixed_flops + self.step_flops * share, seconds=self.fixed_seconds + self.step_seconds * share
        )
        return cost * (seeds / self.seeds)


def cached_cost(name: str, settings: Any, machine: Machine) -> LinearCost | None:
    """The cached cost of some work; None where it was not sampled before.

    Args:
        name: Name of the work.
        settings: Everything that it depends on, as JSON values.
        machine: This machine.
    """
    # A damaged file is sampled again.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return LinearCost(**json.loads(_cache_file(name, settings, machine).read_text(encoding="utf-8")))
    return None


def cached_or_sampled_cost(name: str, settings: Any, machine: Machine, make: Callable[[], LinearCost]) -> LinearCost:
    """The cached cost of some work, or one that is sampled now and cached. See `cached_cost`."""
    cost = cached_cost(name, settings, machine)
    if cost is None:
        cost = make()
        file = _cache_file(name, settings, machine)
        file.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(file) as temporary:
            temporary.write_text(json.dumps(asdict(cost)) + "\n", encoding="utf-8")
    return cost


def _cache_file(name: str, settings: Any, machine: Machine) -> Path:
    key = json.dumps([source_digest(), settings, machine.threads, machine.start, BUDGET], sort_keys=True)
    return cache_dir() / "machine" / f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.json"


def count_operations(run: Run) -> Callable[[float, int], tuple[float, float]]:
    """The same work, returning the share that was run and the operations that torch counted."""

    def counted(share: float, seeds: int) -> tuple[float, float]:
        with FlopCounterMode(display=False) as counter:
            taken = run(share, seeds)
        return taken, float(counter.get_total_flops())

    return counted


def sample(
    run: Run,
    counted: Callable[[float, int], tuple[float, float]],
    n_seeds: int,
    clock: Callable[[], float] = time.process_time,
) -> LinearCost:
    """Estimate seconds and operations of some work from runs with few steps.

    Args:
        run: The work.
        counted: The work with its operations, from `count_operations`.
        n_seeds: Number of seeds that the work is planned for.
        clock: Returns seconds of processor time.
    """
    begin = clock()

    def left() -> float:
        return BUDGET - (clock() - begin)

    def timed(share: float, seeds: int) -> tuple[float, float]:
        start = clock()
        with warnings.catch_warnings():
            # Models trained for so few steps warn that they learned nothing.
            warnings.simplefilter("ignore")
            taken = run(share, seeds)
        return taken, clock() - start

    seeds = 1
    share_low, seconds_low = timed(_FEW, seeds)
    if n_seeds > 1 and 2.5 * n_seeds * seconds_low < left():
        # Seeds trained together take less time than one after the other.
        seeds = n_seeds
        share_low, seconds_low = timed(_FEW, seeds)
    share_high, seconds_high = timed(_MORE, seeds)
    seconds_per_share = max(0.0, seconds_high - seconds_low) / (share_high - share_low)
    fixed_flops = step_flops = 0.0
    if _COUNTING * (seconds_low + seconds_high) < left():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (counted_low, flops_low), (counted_high, flops_high) = counted(_FEW, seeds), counted(_MORE, seeds)
        step_flops = (flops_high - flops_low) / (counted_high - counted_low)
        fixed_flops = flops_low - counted_low * step_flops
    if seconds_high + (_MANY - _MORE) * seconds_per_share < left():
        # Runs that are further apart reduce the effect of noise in their times.
        share_high, seconds_high = timed(_MANY, seeds)
    # Processor time divided by the threads, as in `Machine`.
    threads = torch.get_num_threads()
    step_seconds = max(0.0, seconds_high - seconds_low) / (share_high - share_low)
    fixed_seconds = max(0.0, seconds_low - share_low * step_seconds)
    return LinearCost(fixed_seconds / threads, step_seconds / threads, fixed_flops, step_flops, peak_memory(), seeds)
