"""What a run will cost, before it runs: tokens, operations, memory and time, estimated from its settings.

`plan_of` tokenises the real task with the real tokenizer, draws the real demonstrations, and walks through what the
study will do; the model is on the meta device, without weights. Times come from this machine's measured rates
(`models.cost.machine`); those of the laboratory and of text that becomes tokens come from small samples, which are run
for the plan.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pydantic import BaseModel

from dualform.errors import ConfigError
from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import MemoryEstimate, MemoryOption
from dualform.models.cost.work import Cost as Cost
from dualform.models.cost.work import PricedPart as PricedPart
from dualform.studies.study import study_of


@dataclass(frozen=True)
class Plan:
    """What a run will cost."""

    command: str
    """What is run."""
    parts: tuple[PricedPart, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the moment that needs most, by what they are for."""
    machine: Machine | None = None
    fit: MemoryEstimate | None = None
    """How the model lies in this machine's memory, and what would fit; None for studies of tiny models."""
    notes: tuple[str, ...] = ()
    """What is not counted, or only guessed at."""
    sampled: bool = False
    """It is estimated from samples of the work, which were run for it, now or earlier."""

    @property
    def cost(self) -> Cost:
        """All parts together, as expected."""
        return sum((part.cost for part in self.parts), Cost())

    @property
    def seconds(self) -> float:
        """Expected."""
        return self.cost.seconds

    @property
    def seconds_range(self) -> tuple[float, float]:
        """Where the data decide how much is done (a search that may stop early): the shortest and the longest."""
        least = sum((part.least or part.cost).seconds for part in self.parts)
        return least, sum((part.most or part.cost).seconds for part in self.parts)

    @property
    def why(self) -> tuple[str, ...]:
        """What decides where in that range the time will be."""
        return tuple(dict.fromkeys(why for part in self.parts for why in part.why))

    @property
    def peak(self) -> int:
        """Bytes of memory."""
        return sum(self.memory.values())

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""

        def cost(one: Cost) -> dict[str, float]:
            return {
                "tokens_forwards": one.forwards,
                "tokens_backwards": one.backwards,
                "flops": one.flops,
                "seconds": one.seconds,
            }

        found: dict[str, Any] = {
            "command": self.command,
            **cost(self.cost),
            "seconds_range": list(self.seconds_range),
            "peak_bytes": self.peak,
            "memory": dict(self.memory),
            "parts": [
                {
                    "name": part.name,
                    **cost(part.cost),
                    **({} if part.least is None else {"least": cost(part.least)}),
                    **({} if part.most is None else {"most": cost(part.most)}),
                    **({"why": list(part.why)} if part.why else {}),
                }
                for part in self.parts
            ],
            "notes": list(self.notes),
        }
        if self.machine is not None:
            found["machine"] = {"ram": self.machine.ram, "gpu": self.machine.gpu, "threads": self.machine.threads}
        if self.fit is not None:
            found["fit"] = self.fit.as_dict()
        return found


ONCE = ("start", "loading and self-checks")
"""Parts that a worker of a sweep pays for once, however many cells it runs."""


def ignored(sentence: str) -> None:
    """Do nothing with it."""


def plan_of(
    config: BaseModel,
    machine: Machine | None = None,
    *,
    measure: bool = False,
    told: Callable[[str], None] = ignored,
) -> Plan:
    """What a study with these settings will cost.

    Args:
        config: The settings of any study.
        machine: Rates to estimate with; None for this machine's, measured the first time (a few seconds).
        measure: Measure this machine anew.
        told: Is given a sentence before a sample of the work is run: a few training steps of `RegressionConfig`'s
            studies, unless earlier ones are kept, and a tokenizer of `MomentumConfig`'s texts.

    Raises:
        ConfigError: It is no study's configuration.
        DualformError: What the study itself would raise before it begins: an unknown model or task, texts that do not
            fit.
    """
    study = study_of(config)
    if study.plan is None:
        raise ConfigError(f"the study {study.name} does not say what it costs, so it cannot be planned")
    machine = machine or machine_for(config, measure=measure)
    if study.plan_samples is not None and (sentence := study.plan_samples(config, machine)):
        told(sentence)
    return study.plan(config, machine)


def machine_for(config: BaseModel | None, *, measure: bool = False) -> Machine:
    """The machine that a study would run on, in its precision."""
    from dualform.models.cost.machine import this_machine, where_to_run

    device = where_to_run(str(getattr(config, "device", "cpu") or "cpu"))
    return this_machine(device, str(getattr(config, "dtype", "float32")), measure=measure)


@dataclass(frozen=True)
class GroupPlan:
    """One group of a sweep."""

    name: str
    """The group's."""
    models: str
    """Names of the models that a worker loads for it; empty without."""
    plan: Plan
    """As one run."""
    cells: int
    """Into how many it falls."""
    finished: int = 0
    """Of these."""


def plan_sweep(name: str, groups: Sequence[GroupPlan], *, workers: int, machine: Machine, threads: int = 1) -> Plan:
    """A sweep's cost from its groups'.

    Args:
        name: What the sweep is called.
        groups: Its groups.
        workers: Cells at a time.
        machine: On which.
        threads: Of each worker.

    Returns:
        A plan whose seconds are those on the clock and whose memory is that of all workers at once, each with the
        largest group. Workers load a model once and keep it, and share the machine: their threads together are taken to
        do no more than all cores do.
    """
    workers = max(1, workers)
    # A plan is made for a run that has all threads. Workers together do as much, no more; with one thread each a
    # part of what a run of many threads would do.
    rate = min(1.0, workers * threads / max(1, machine.threads))
    n_cells = sum(group.cells - group.finished for group in groups)
    rate *= min(1.0, n_cells / workers) if n_cells else 1.0
    parts: list[PricedPart] = []
    once: dict[tuple[str, str], Cost] = {}
    for group in groups:
        left = 1 - group.finished / group.cells if group.cells else 0.0
        work = [part for part in group.plan.parts if part.name not in ONCE]
        ends = (
            sum((part.cost for part in work), Cost()),
            sum((part.least or part.cost for part in work), Cost()),
            sum((part.most or part.cost for part in work), Cost()),
        )
        expected, least, most = (_at_rate(end * left, rate) for end in ends)
        told = f"{group.name} ({group.cells - group.finished} of {group.cells} cells)"
        parts.append(PricedPart(told, expected, least, most, group.plan.why if left else ()))
        if left:
            for part in group.plan.parts:
                if part.name in ONCE:
                    # Every worker that gets a model loads it, all at the same time.
                    once[part.name, "" if part.name == "start" else group.models] = part.cost
    if once:
        alone = sum(once.values(), Cost())
        parts.insert(
            0, PricedPart("starting and loading, once a worker", _at_rate(alone * min(workers, n_cells), rate))
        )
    unfinished = [group.plan for group in groups if group.finished < group.cells]
    largest = max(unfinished, key=lambda plan: plan.peak, default=None)
    busy = min(workers, n_cells)
    memory = {} if largest is None else {what: n * busy for what, n in largest.memory.items()}
    notes = dict.fromkeys(note for group in groups for note in group.plan.notes)
    fit = None if largest is None else _fit_together(largest, busy, machine)
    sampled = any(group.plan.sampled for group in groups)
    return Plan(f"sweep {name}", tuple(parts), memory, machine, fit, tuple(notes), sampled)


def _fit_together(largest: Plan, workers: int, machine: Machine) -> MemoryEstimate:
    """How so many workers lie in memory, each with a plan's; fewer of them are an option, and what one could do."""
    alone = largest.fit or MemoryEstimate("memory", largest.peak, machine.ram, ())
    together = replace(alone, needed=workers * alone.needed, options=())
    if together.fits:
        return together
    fewer = next((n for n in range(workers - 1, 0, -1) if replace(together, needed=n * alone.needed).fits), 0)
    if fewer:
        options = (MemoryOption(f"fewer workers: --workers {fewer}", fewer * alone.needed, True),)
        return replace(together, options=options)
    one = () if workers == 1 else (MemoryOption("fewer workers: --workers 1", alone.needed, False),)
    return replace(together, options=(*one, *(replace(each, how=f"--workers 1, {each.how}") for each in alone.options)))


def _at_rate(cost: Cost, rate: float) -> Cost:
    return Cost(cost.forwards, cost.backwards, cost.flops, cost.seconds / rate)
