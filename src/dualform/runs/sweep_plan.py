"""Estimates the cost of a sweep, without the cells that are already in the store."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import torch

from dualform.models.cost.machine import Machine, cores, this_machine
from dualform.runs.cell_store import CellStore
from dualform.runs.sweep_cells import DigestCache, cells_of
from dualform.runs.sweep_config import Group
from dualform.studies.plan import GroupPlan, Plan, machine_for, no_announcement, plan_of, plan_sweep
from dualform.studies.study import STUDIES

LOCAL = "estimated for the local engine on this machine"
"""A note in every sweep's plan, because the machines of a cluster are not known."""


def plan_groups(
    name: str,
    groups: Sequence[Group],
    store: str,
    workers: int | None = None,
    announce: Callable[[str], None] = no_announcement,
) -> Plan:
    """Estimate the cost of a sweep, for the local engine on this machine.

    Args:
        name: Name of the sweep.
        groups: Groups of the sweep.
        store: URL of the store of finished cells, which may be missing; nothing is written.
        workers: Cells at a time; by default one for every two cores, and at least two.
        announce: As for `plan_of`.

    Raises:
        DualformError: As for `plan_of`, for any of the groups.
    """
    cells, digests = CellStore(store, writable=False), DigestCache()
    # All data are read before the machine is measured, so that errors in the data are reported at once.
    cells_of_groups = [cells_of(group, digests) for group in groups]
    machine: Machine | None = None
    plans = []
    for group, own in zip(groups, cells_of_groups, strict=True):
        machine = machine_for(group.config)
        finished = sum(cells.find(cell.key) is not None for cell in own)
        models = STUDIES[group.study].models(group.config)
        plan = plan_of(group.config, machine, announce=announce)
        plans.append(GroupPlan(group.name, " ".join(models), plan, len(own), finished))
    n = workers or max(2, cores() // 2)
    threads = max(1, torch.get_num_threads() // n)
    sweep_plan = plan_sweep(name, plans, workers=n, machine=machine or this_machine(), threads=threads)
    return replace(sweep_plan, notes=(*sweep_plan.notes, LOCAL))
