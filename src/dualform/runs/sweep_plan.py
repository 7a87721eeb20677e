"""What a sweep will cost: its groups' plans, less what the store holds already."""

from collections.abc import Sequence

import torch

from dualform.models.machine import Machine, cores, this_machine
from dualform.runs.cell_store import CellStore
from dualform.runs.sweep_cells import Identities, cells_of
from dualform.runs.sweep_config import Group
from dualform.studies.plan import Plan, machine_for, plan_of, plan_sweep


def plan_groups(name: str, groups: Sequence[Group], store: str, workers: int | None = None) -> Plan:
    """A sweep's plan.

    Args:
        name: What it is called.
        groups: Of the sweep.
        store: URL of the store in which finished cells are looked for.
        workers: Cells at a time; None for one for every two cores, two at least.

    Raises:
        DualformError: As `plan_of`, of any of its groups.
    """
    cells, identities = CellStore(store), Identities()
    machine: Machine | None = None
    plans = []
    for group in groups:
        machine = machine_for(group.config)
        own = cells_of(group, identities)
        finished = sum(cells.find(cell.key) is not None for cell in own)
        plans.append((plan_of(group.config, machine), len(own), finished))
    n = workers or max(2, cores() // 2)
    threads = max(1, torch.get_num_threads() // n)
    return plan_sweep(name, plans, workers=n, machine=machine or this_machine(), threads=threads)
