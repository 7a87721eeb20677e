"""What work on very small models costs: a few of its steps are run, and a line is drawn through them.

Such models are so small that no rate of products predicts their time. The work is run a few times with very few
training steps, for one seed where all would take too long, and the line through these runs is extended to all steps and
seeds. Operations are counted in runs of their own where there is time for them: all that torch counts, which leaves out
solving linear systems and decompositions. What was found is kept in the cache.
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
"""Shares of the steps that are run: the first two in any case, the last where it fits."""
BUDGET = 20.0
"""Seconds of processor time that the samples of some work may take, as far as that can be foreseen."""
_COUNTING = 2.5
"""How much longer a run takes that counts operations."""

Run = Callable[[float, int], float]
"""Runs the work with a share of its steps, for so many seeds. Returns the share that was taken, which is another where
it makes no whole number of steps."""


@dataclass(frozen=True)
class LinearCost:
    """Seconds and operations at no steps, and what all steps add."""

    seconds: float
    seconds_of_steps: float
    flops: float
    flops_of_steps: float
    memory: int
    """Bytes at the peak."""
    seeds: int = 1
    """Number of seeds for which this holds."""

    @property
    def counted(self) -> bool:
        """Whether there was time to count operations."""
        return self.flops_of_steps > 0

    def cost(self, steps: float, seeds: int) -> Cost:
        """Cost of a share of the steps, for so many seeds. Tokens are left out: the models read numbers."""
        cost = Cost(
            flops=self.flops + self.flops_of_steps * steps, seconds=self.seconds + self.seconds_of_steps * steps
        )
        return cost * (seeds / self.seeds)


def kept_line(name: str, settings: Any, machine: Machine) -> LinearCost | None:
    """The line of some work that was sampled earlier, None without one.

    Args:
        name: What the work is called.
        settings: All that it depends on, as JSON has it.
        machine: This machine.
    """
    # One that is damaged is sampled anew.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return LinearCost(**json.loads(_place(name, settings, machine).read_text(encoding="utf-8")))
    return None


def line_of(name: str, settings: Any, machine: Machine, make: Callable[[], LinearCost]) -> LinearCost:
    """The line of some work: the one that was kept, or one that is sampled now and kept. See `kept_line`."""
    found = kept_line(name, settings, machine)
    if found is None:
        found = make()
        place = _place(name, settings, machine)
        place.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(place) as temporary:
            temporary.write_text(json.dumps(asdict(found)) + "\n", encoding="utf-8")
    return found


def _place(name: str, settings: Any, machine: Machine) -> Path:
    about = json.dumps([source_digest(), settings, machine.threads, machine.start, BUDGET], sort_keys=True)
    return cache_dir() / "machine" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"


def count_operations(run: Run) -> Callable[[float, int], tuple[float, float]]:
    """The same work, which returns the share that was taken and the operations that torch counted."""

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
    """Seconds and operations of some work, from runs with few steps.

    Args:
        run: The work.
        counted: As `count_operations` returns it.
        n_seeds: Number of seeds that the work is planned for.
        clock: Seconds of processor time.
    """
    begin = clock()

    def left() -> float:
        return BUDGET - (clock() - begin)

    def timed(share: float, seeds: int) -> tuple[float, float]:
        start = clock()
        with warnings.catch_warnings():
            # Models that were trained for so few steps have learned nothing.
            warnings.simplefilter("ignore")
            taken = run(share, seeds)
        return taken, clock() - start

    seeds = 1
    few, quick = timed(_FEW, seeds)
    if n_seeds > 1 and 2.5 * n_seeds * quick < left():
        # Seeds that are trained together take less time than one after the other.
        seeds = n_seeds
        few, quick = timed(_FEW, seeds)
    more, slow = timed(_MORE, seeds)
    per_share = max(0.0, slow - quick) / (more - few)
    flops = flops_of_steps = 0.0
    if _COUNTING * (quick + slow) < left():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            (share, least), (larger, most) = counted(_FEW, seeds), counted(_MORE, seeds)
        flops_of_steps = (most - least) / (larger - share)
        flops = least - share * flops_of_steps
    if slow + (_MANY - _MORE) * per_share < left():
        # The further apart, the less it matters that no run takes the same time twice.
        more, slow = timed(_MANY, seeds)
    # As `machine` counts them: the time that all threads had, shared out.
    threads = torch.get_num_threads()
    of_steps = max(0.0, slow - quick) / (more - few)
    fixed = max(0.0, quick - few * of_steps)
    return LinearCost(fixed / threads, of_steps / threads, flops, flops_of_steps, peak_memory(), seeds)
