"""Memory that a run needs, whether this machine has it, and options with which it would fit."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from dualform.models.cost.shape import ModelShape

BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

_QUANTIZED = {"8bit": 1.0, "4bit": 0.5625}
"""Bytes of a quantized weight (in 4 bits, every 64 weights share a scale of 4 bytes). Embeddings and the output head
are not quantized."""
_ROOM = 0.9
"""Share of the memory that a run may use; the rest is left for the system and buffers."""


@dataclass(frozen=True)
class MemoryOption:
    """Command-line options with which a run needs less memory."""

    how: str
    """The options."""
    bytes: int
    """Peak memory on the device on which it runs."""
    fits: bool
    note: str = ""
    """Disadvantage of the option."""


@dataclass(frozen=True)
class MemoryEstimate:
    """The memory that a run needs, compared with what this machine has."""

    where: str
    """`memory` or `GPU memory`."""
    needed: int
    """Bytes."""
    room: int
    """Available bytes; 0 if unknown."""
    options: tuple[MemoryOption, ...]
    """Alternatives, if the run as requested does not fit."""

    @property
    def fits(self) -> bool:
        """Whether the run fits; True if the available memory is unknown."""
        return not self.room or self.needed <= _ROOM * self.room

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "where": self.where,
            "needed": self.needed,
            "room": self.room,
            "fits": self.fits,
            "options": [asdict(option) for option in self.options],
        }


def memory_estimate(
    shape: ModelShape,
    memory: Mapping[str, int],
    *,
    dtype: str,
    device: str,
    ram: int,
    gpu: int,
    trains: bool,
    divided: bool = False,
) -> MemoryEstimate:
    """Compare the memory that a run needs with the machine's.

    Args:
        shape: Shape of the model.
        memory: Purpose -> bytes, from the plan: `weights`, `packed copies`, `Python and libraries`, `loading`, and
            others that depend on the study.
        dtype: Requested dtype.
        device: Requested device.
        ram: Bytes of main memory.
        gpu: Bytes of GPU memory; 0 without a GPU.
        trains: Whether the run finetunes, which is not possible with quantized weights.
        divided: Whether a device map or quantized weights are requested; no alternatives are given then.

    Returns:
        The estimate, with alternatives if the run does not fit.
    """
    on_gpu = not device.startswith("cpu") and gpu > 0
    room = gpu if on_gpu else ram
    base = 0 if on_gpu else memory.get("Python and libraries", 0)
    rest = sum(
        n for what, n in memory.items() if what not in ("weights", "packed copies", "Python and libraries", "loading")
    )
    needed = sum(memory.values()) - (memory.get("Python and libraries", 0) if on_gpu else 0)
    where = "GPU memory" if on_gpu else "memory"
    estimate = MemoryEstimate(where, needed, room, ())
    if estimate.fits or divided:
        return estimate
    options: list[MemoryOption] = []

    def option(how: str, n: float, room: int, note: str = "") -> None:
        options.append(MemoryOption(how, round(n), n <= _ROOM * room, note))

    if on_gpu:
        option("--device cpu", weight_bytes(shape, dtype) + rest, ram)
    if BYTES[dtype] > 2:
        n = weight_bytes(shape, "bfloat16") + base + rest / 2
        option("--dtype bfloat16", n, room, "small updates are rounded away, so similarity is unreliable")
        if on_gpu:
            option("--device cpu --dtype bfloat16", weight_bytes(shape, "bfloat16") + rest / 2, ram, "as above")
    layer = layer_bytes(shape, dtype)
    if on_gpu:
        # Weights that do not fit on the GPU stay in main memory and are copied over one layer at a time.
        n = min(weight_bytes(shape, dtype), _ROOM * gpu - rest) + rest
        held = gpu + ram
        fits = weight_bytes(shape, dtype) + rest <= _ROOM * held and 2 * layer + rest <= _ROOM * gpu
        outside = _gib(max(0.0, weight_bytes(shape, dtype) + rest - n))
        note = f"{outside} in main memory, copied to the GPU in every forward"
        options.append(MemoryOption("--device-map auto", round(max(n, 2 * layer + rest)), fits, note))
    disk = 2 * layer + outside_bytes(shape, dtype) + base + rest
    option(
        "--device-map auto --offload-folder FOLDER",
        disk,
        room,
        f"up to {_gib(weight_bytes(shape, dtype))} on disk, read in every forward",
    )
    for bits in _QUANTIZED:
        n = quantized_bytes(shape, bits, dtype) + base + rest
        note = "zsl and icl only: no finetuning, no similarity" if trains else "zsl and icl only"
        option(f"--quantize {bits}", n, room, note)
    return MemoryEstimate(where, needed, room, tuple(options))


def weight_bytes(shape: ModelShape, dtype: str) -> int:
    """Bytes of all weights."""
    return shape.parameters * BYTES[dtype]


def layer_bytes(shape: ModelShape, dtype: str) -> int:
    """Bytes of one block's linears and experts."""
    return (shape.linears + shape.experts) // max(1, shape.n_layers) * BYTES[dtype]


def outside_bytes(shape: ModelShape, dtype: str) -> int:
    """Bytes of embeddings, output head and norms, which are not split."""
    return (shape.parameters - shape.linears - shape.experts) * BYTES[dtype]


def quantized_bytes(shape: ModelShape, bits: str, dtype: str) -> int:
    """Bytes of all weights if the linears of the blocks are quantized (experts are not)."""
    return round(shape.linears * _QUANTIZED[bits]) + (shape.parameters - shape.linears) * BYTES[dtype]


def _gib(n: float) -> str:
    return f"{n / 2**30:.1f} GiB"
