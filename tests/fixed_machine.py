"""A made-up machine with round rates, so that plans in tests hang on nothing that is measured."""

from dataclasses import replace
from typing import Any

from dualform.models.cost.machine import Machine

GIB = 1 << 30

_MACHINE = Machine(
    device="cpu",
    dtype="float32",
    threads=1,
    cores=2,
    ram=16 * GIB,
    gpu=0,
    plain=(1e9, 1e10, 2e10, 4e10, 5e10),
    packed=(2e9, 2e10, 4e10, 8e10, 1e11),
    attention=5e10,
    bandwidth=1e10,
    cached=5e10,
    exponentials=1e9,
    dispatch=1e-6,
    block=1e-4,
    block_training=3e-4,
    model=2e-4,
    model_training=6e-4,
    optimiser=2e-5,
    ranking=(1e-4, 4e-4),
    copying=4e9,
    loading=1.0,
    start=5.0,
    base=GIB // 2,
    start_laboratory=4.0,
    base_laboratory=GIB // 4,
)


def fixed_machine(**changes: Any) -> Machine:
    """The machine, some of it changed."""
    return replace(_MACHINE, **changes)
