"""What the laboratory costs. Its models are so small that no rate of products tells: a few steps of each are run.

Each study is run twice with very few training steps, once of them counting operations, and the line through both is
drawn out to all steps. What was found is kept in the cache.
"""

import contextlib
import hashlib
import importlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.utils.flop_counter import FlopCounterMode

from dualform._version import __version__
from dualform.files import atomic_write, cache_dir
from dualform.models.machine import Machine, peak_memory
from dualform.studies.pieces import NoCells
from dualform.studies.plan import Cost, Part, Plan
from dualform.studies.plan_comparison import PAGE
from dualform.studies.regression import STUDIES, in_order
from dualform.studies.regression_config import LabName, RegressionConfig

_FEW, _MORE, _MANY = 0.002, 0.01, 0.05
"""Shares of a study's steps that are run: the first two to count operations, the first and the last for time, which
is not the same twice."""
_SEED_BY_SEED: tuple[LabName, ...] = ("constructed", "layers")
"""Studies that train one seed after the other; the others train all seeds' models together."""


@dataclass(frozen=True)
class _Line:
    """Seconds and operations at no steps, and what all steps add."""

    seconds: float
    seconds_of_steps: float
    flops: float
    flops_of_steps: float
    memory: int
    """Bytes at the peak."""


def plan(config: RegressionConfig, machine: Machine) -> Plan:
    """What the laboratory with these settings will cost. Tokens are left out: its models read numbers."""
    parts = [Part("start", Cost(seconds=machine.start_laboratory))]
    peak = machine.base_laboratory
    for name in in_order(config.studies):
        alone = name in _SEED_BY_SEED
        asked = config.model_copy(update={"studies": (name,), **({"seeds": config.seeds[:1]} if alone else {})})
        line = _kept(name, asked, machine)
        times = len(config.seeds) if alone else 1
        cost = Cost(
            flops=line.flops + line.flops_of_steps * config.steps,
            seconds=line.seconds + line.seconds_of_steps * config.steps,
        )
        parts.append(Part(name, cost * times))
        peak = max(peak, line.memory)
    parts.append(Part("numbers, page", Cost(seconds=PAGE * machine.start)))
    memory = {"Python and libraries": machine.base_laboratory, "models and tasks": peak - machine.base_laboratory}
    return Plan("regress", tuple(parts), memory, machine, None, ("reckoned from a few steps of each training",))


def _kept(name: LabName, config: RegressionConfig, machine: Machine) -> _Line:
    settings = config.model_dump(mode="json", exclude={"steps"})
    about = json.dumps([__version__, settings, machine.threads, machine.start], sort_keys=True)
    kept = cache_dir() / "machine" / f"{name}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.json"
    # One that is damaged is found anew.
    with contextlib.suppress(OSError, ValueError, TypeError):
        return _Line(**json.loads(kept.read_text(encoding="utf-8")))
    line = _sampled(name, config)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(kept) as temporary:
        temporary.write_text(json.dumps(line.__dict__) + "\n", encoding="utf-8")
    return line


def _sampled(name: LabName, config: RegressionConfig) -> _Line:
    module = importlib.import_module(STUDIES[name])
    study: Callable[..., Any] = getattr(module, name)

    def run(share: float) -> None:
        with warnings.catch_warnings():
            # That so few steps teach nothing is known.
            warnings.simplefilter("ignore")
            study(config.model_copy(update={"steps": share}), NoCells(), lambda amount, doing: None)

    def counted(share: float) -> float:
        with FlopCounterMode(display=False) as counter:
            run(share)
        return float(counter.get_total_flops())

    def timed(share: float) -> float:
        start = time.process_time()
        run(share)
        return time.process_time() - start

    few, more = counted(_FEW), counted(_MORE)
    quick, slow = min(timed(_FEW), timed(_FEW)), timed(_MANY)
    width = _MORE - _FEW
    of_steps = max(0.0, slow - quick) / (_MANY - _FEW)
    return _Line(
        max(0.0, quick - _FEW * of_steps),
        of_steps,
        few - _FEW * (more - few) / width,
        (more - few) / width,
        peak_memory(),
    )
