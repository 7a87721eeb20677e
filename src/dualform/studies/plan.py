"""Plans: the tokens, operations, memory and time of a run, estimated from its settings before it starts.

`plan_of` tokenises the real task with the real tokenizer, draws the real demonstrations and counts the work of the
study; the model is on the meta device, without weights. Times follow from the measured rates of this machine
(`models.cost.machine`). Those of the laboratory and of tokenising corpora follow from small samples, which are run for
the plan.
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
    """The estimated cost of a run."""

    command: str
    """Command, model and task."""
    parts: tuple[PricedPart, ...]
    memory: Mapping[str, int] = field(default_factory=dict)
    """Bytes at the peak, by purpose."""
    machine: Machine | None = None
    fit: MemoryEstimate | None = None
    """The memory that is needed and available, with alternatives; None for studies of tiny models."""
    notes: tuple[str, ...] = ()
    """What is not counted, or only roughly estimated."""
    sampled: bool = False
    """Whether it is estimated from samples of the work, which were run now or earlier."""

    @property
    def cost(self) -> Cost:
        """Expected cost of all parts together."""
        return sum((part.cost for part in self.parts), Cost())

    @property
    def seconds(self) -> float:
        """Expected seconds."""
        return self.cost.seconds

    @property
    def seconds_range(self) -> tuple[float, float]:
        """Least and most seconds; they differ where the data decide how much is done, as in a search for a rate."""
        least = sum((part.least or part.cost).seconds for part in self.parts)
        return least, sum((part.most or part.cost).seconds for part in self.parts)

    @property
    def why(self) -> tuple[str, ...]:
        """What the time within that range depends on."""
        return tuple(dict.fromkeys(why for part in self.parts for why in part.why))

    @property
    def peak(self) -> int:
        """Bytes of memory at the peak."""
        return sum(self.memory.values())

    def as_dict(self) -> dict[str, Any]:
        """The plan as JSON values."""

        def values(cost: Cost) -> dict[str, float]:
            return {
                "tokens_forwards": cost.forwards,
                "tokens_backwards": cost.backwards,
                "flops": cost.flops,
                "seconds": cost.seconds,
            }

        plan: dict[str, Any] = {
            "command": self.command,
            **values(self.cost),
            "seconds_range": list(self.seconds_range),
            "peak_bytes": self.peak,
            "memory": dict(self.memory),
            "parts": [
                {
                    "name": part.name,
                    **values(part.cost),
                    **({} if part.least is None else {"least": values(part.least)}),
                    **({} if part.most is None else {"most": values(part.most)}),
                    **({"why": list(part.why)} if part.why else {}),
                }
                for part in self.parts
            ],
            "notes": list(self.notes),
        }
        if self.machine is not None:
            plan["machine"] = {"ram": self.machine.ram, "gpu": self.machine.gpu, "threads": self.machine.threads}
        if self.fit is not None:
            plan["fit"] = self.fit.as_dict()
        return plan


ONCE = ("start", "loading and self-checks")
"""Parts that each worker of a sweep runs once, however many cells it gets."""


def no_announcement(sentence: str) -> None:
    """Do nothing with the sentence."""


def plan_of(
    config: BaseModel,
    machine: Machine | None = None,
    *,
    measure: bool = False,
    announce: Callable[[str], None] = no_announcement,
) -> Plan:
    """Estimate what a study with these settings will cost.

    Args:
        config: The settings of any study.
        machine: Rates to estimate with; None for this machine, which is measured the first time (a few seconds).
        measure: Whether to measure this machine again.
        announce: Called with a sentence before samples of the work are run, which takes some seconds: training steps of
            the laboratory, or tokenising the texts of a momentum study. Sampled work is cached.

    Raises:
        ConfigError: These are not the settings of a study, or the study has no plan.
        DualformError: Anything that the study itself would raise before it begins, such as an unknown model or task.
    """
    study = study_of(config)
    if study.plan is None:
        raise ConfigError(f"the study {study.name} has no estimate of its cost, so it cannot be planned")
    machine = machine or machine_for(config, measure=measure)
    if study.plan_samples is not None and (sentence := study.plan_samples(config, machine)):
        announce(sentence)
    return study.plan(config, machine)


def machine_for(config: BaseModel | None, *, measure: bool = False) -> Machine:
    """The machine that a study would run on, with rates for its precision."""
    from dualform.models.cost.machine import this_machine, where_to_run

    device = where_to_run(str(getattr(config, "device", "cpu") or "cpu"))
    return this_machine(device, str(getattr(config, "dtype", "float32")), measure=measure)


@dataclass(frozen=True)
class GroupPlan:
    """The plan of one group of a sweep."""

    name: str
    """Name of the group."""
    models: str
    """Names of the models that a worker loads for it; empty for none."""
    plan: Plan
    """Plan of the group as one run."""
    cells: int
    """Number of its cells."""
    finished: int = 0
    """Number of its finished cells."""


def plan_sweep(name: str, groups: Sequence[GroupPlan], *, workers: int, machine: Machine, threads: int = 1) -> Plan:
    """The plan of a sweep, from the plans of its groups.

    Args:
        name: Name of the sweep.
        groups: Its groups.
        workers: Number of cells that run at the same time.
        machine: The machine that runs them.
        threads: Threads of each worker.

    Returns:
        A plan with the elapsed seconds, and with the memory of all workers at once, each running the largest group.
        Each worker loads a model once. The threads of all workers are assumed to do no more work than all cores.
    """
    workers = max(1, workers)
    # A group's plan assumes that the run has all threads. Workers together do at most that much.
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
        label = f"{group.name} ({group.cells - group.finished} of {group.cells} cells)"
        parts.append(PricedPart(label, expected, least, most, group.plan.why if left else ()))
        if left:
            for part in group.plan.parts:
                if part.name in ONCE:
                    # Every worker loads the model, all at the same time.
                    once[part.name, "" if part.name == "start" else group.models] = part.cost
    if once:
        alone = sum(once.values(), Cost())
        parts.insert(
            0, PricedPart("starting and loading, once per worker", _at_rate(alone * min(workers, n_cells), rate))
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
    """The memory of all workers, with fewer workers, or the options of a single one, as alternatives."""
    alone = largest.fit or MemoryEstimate("memory", largest.peak, machine.ram, ())
    together = replace(alone, needed=workers * alone.needed, options=())
    if together.fits:
        return together
    fewer = next((n for n in range(workers - 1, 0, -1) if replace(together, needed=n * alone.needed).fits), 0)
    if fewer:
        options = (MemoryOption(f"fewer workers: --workers {fewer}", fewer * alone.needed, True),)
        return replace(together, options=options)
    single = () if workers == 1 else (MemoryOption("fewer workers: --workers 1", alone.needed, False),)
    of_one = tuple(replace(option, how=f"--workers 1, {option.how}") for option in alone.options)
    return replace(together, options=(*single, *of_one))


def _at_rate(cost: Cost, rate: float) -> Cost:
    return Cost(cost.forwards, cost.backwards, cost.flops, cost.seconds / rate)
