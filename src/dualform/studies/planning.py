"""What the plans of all studies of a language model share: the model, prices, memory and common parts."""

from collections.abc import Iterable

from dualform.errors import ModelError
from dualform.models.cost.machine import Machine
from dualform.models.cost.memory import MemoryEstimate, layer_bytes, quantized_bytes
from dualform.models.cost.work import Cost, PricedPart
from dualform.models.loading.meta import meta_model
from dualform.models.reading.language_model import LanguageModel
from dualform.studies.plan_costs import Costs, compared_with_machine
from dualform.studies.settings import StudyConfig

PAGE = 0.65
"""Time of writing page and tables, as a share of the time of importing all libraries, since both are Python code.

Measured: 0.63 for a comparison of three learners with one control, 0.75 with all learners and controls."""


def planned_model(config: StudyConfig, name: str) -> LanguageModel:
    """The model of a study on the meta device, without weights.

    Raises:
        ModelError: The model needs code from its checkpoint, which a plan never runs.
    """
    try:
        return meta_model(name, dtype=config.dtype)
    except ModelError as error:
        if "--trust-remote-code" not in str(error):
            raise
        raise ModelError(
            f"{name} comes with code of its own, and a plan runs none, so its cost cannot be estimated. Run the "
            "command itself on a few queries, with --limit 8, and see how long it takes."
        ) from error


def divided(config: StudyConfig) -> bool:
    """Whether the settings divide the model over devices or quantize it."""
    return any((config.device_map, config.max_memory, config.offload_folder, config.quantize))


def prices(config: StudyConfig, lm: LanguageModel, machine: Machine) -> Costs:
    """The prices of a study's work; packed products are off where weights are divided or quantized."""
    costs = Costs(lm.shape, machine, config.dtype)
    return costs if divided(config) else costs.with_packing()


def estimated_memory(
    config: StudyConfig, costs: Costs, memory: dict[str, int], *, trains: bool
) -> tuple[MemoryEstimate, tuple[str, ...]]:
    """A study's memory compared with the machine's, and notes on the estimate.

    `memory` is changed in place where the settings quantize the weights or divide them over devices.
    """
    notes: tuple[str, ...] = ()
    if costs.shape.uncounted:
        notes = (f"operations of {costs.shape.uncounted:,} parameters outside linear layers are not counted",)
    machine, quantize = costs.machine, config.quantize
    if quantize is not None:
        memory["weights"] = quantized_bytes(costs.shape, quantize, costs.dtype)
        notes += (f"Products with {quantize} weights run at another rate than the measured one.",)
    elif divided(config):
        room = machine.gpu or machine.ram
        rest = sum(memory.values()) - memory["weights"]
        held = max(2 * layer_bytes(costs.shape, costs.dtype), min(memory["weights"], int(0.9 * room) - rest))
        memory["weights"] = held if room else memory["weights"]
        notes += ("The time of copying offloaded weights to the device in every forward is not included.",)
    return compared_with_machine(costs, memory, trains=trains, divided=divided(config)), notes


def surrounding_parts(costs: Costs, tokenising: float, summary: float = 0.0) -> list[PricedPart]:
    """Importing libraries, loading with self-checks, tokenising and writing."""
    return [
        PricedPart("start", Cost(seconds=costs.machine.start)),
        PricedPart("loading and self-checks", costs.loading()),
        PricedPart("tokenising, numbers, page", Cost(seconds=tokenising + summary + PAGE * costs.machine.start)),
    ]


def merged(parts: Iterable[PricedPart]) -> tuple[PricedPart, ...]:
    """Add up parts of the same name, such as those of several seeds."""
    by_name: dict[str, PricedPart] = {}
    for part in parts:
        if part.name in by_name:
            before = by_name[part.name]
            least, most = (
                (getattr(before, end) or before.cost) + (getattr(part, end) or part.cost)
                if getattr(before, end) is not None or getattr(part, end) is not None
                else None
                for end in ("least", "most")
            )
            why = tuple(dict.fromkeys((*before.why, *part.why)))
            by_name[part.name] = PricedPart(part.name, before.cost + part.cost, least, most, why)
        else:
            by_name[part.name] = part
    return tuple(by_name.values())
