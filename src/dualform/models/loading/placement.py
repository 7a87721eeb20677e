"""Where a model's weights go, and in how many bits: one device, several, or partly to memory and disk."""

import importlib.util
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from dualform.errors import ConfigError
from dualform.files import writable_dir

if TYPE_CHECKING:
    import torch

DeviceMap = str | Mapping[str, str | int]
"""`auto`, `balanced` or `sequential`; or module names (`` for all) to `cpu`, `disk` or the number of a GPU."""

Quantize = Literal["8bit", "4bit"]

MAPS = ("auto", "balanced", "sequential")
_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12,
          "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "TIB": 1 << 40}  # fmt: skip
_BITS: dict[str, dict[str, Any]] = {
    # Outliers set apart and multiplied in half precision, as arXiv:2208.07339 has it.
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@dataclass(frozen=True)
class Placement:
    """How a model is to be divided and stored. Build it with `placement`, which checks it."""

    device_map: str | dict[str, str | int] | None = None
    """None: the whole model on one device."""
    max_memory: dict[str | int, int] | None = None
    """Bytes of weights on each device, by the number of a GPU, `cpu` or `mps`; what does not fit goes to disk."""
    offload_folder: Path | None = None
    """Where weights go that do not lie on disk as they are needed; a safetensors checkpoint is read where it lies."""
    quantize: Quantize | None = None

    def arguments(self, dtype: "torch.dtype", device: "torch.device") -> dict[str, Any]:
        """What to hand to `from_pretrained`.

        Args:
            dtype: That products are computed in.
            device: Where a model goes that is not divided.

        Raises:
            ConfigError: bitsandbytes is not installed.
            StorageError: The offload folder cannot be written.
        """
        found: dict[str, Any] = {}
        if self.device_map is not None:
            found["device_map"] = self.device_map
            # A copy: accelerate writes into it.
            found["max_memory"] = None if self.max_memory is None else dict(self.max_memory)
            if self.offload_folder is not None:
                remedy = "Choose another folder with --offload-folder."
                found["offload_folder"] = str(writable_dir(self.offload_folder, remedy))
        if self.quantize is not None:
            require_bitsandbytes(self.quantize)
            from transformers import BitsAndBytesConfig

            more = {"bnb_4bit_compute_dtype": dtype} if self.quantize == "4bit" else {}
            found["quantization_config"] = BitsAndBytesConfig(**_BITS[self.quantize], **more)
            # bitsandbytes cannot move a model once it is there.
            found.setdefault("device_map", {"": str(device)})
        return found


def placement(
    *,
    device: str = "auto",
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
    max_memory: str | Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    quantize: str | None = None,
) -> Placement:
    """Check and read the settings.

    Args:
        device: A device map leaves no room for one: `auto`.
        dtype: Quantized weights are multiplied in float32 or less.
        device_map: See `DeviceMap`; text may also be a mapping in JSON. Not given, `max_memory` or an offload folder
            mean `auto`.
        max_memory: `cpu=2GiB,0=10GiB`, or a mapping.
        offload_folder: Where weights go that disk is to hold.
        quantize: `8bit` or `4bit`.

    Raises:
        ConfigError: Something cannot be used, or not together.
    """
    if quantize is not None and quantize not in _BITS:
        raise ConfigError(f"quantize {quantize!r} is unknown: choose one of {', '.join(_BITS)}")
    if quantize is not None and dtype == "float64":
        raise ConfigError(
            f"dtype float64 is for exact comparisons, and quantize {quantize} rounds weights to a handful of bits: "
            "leave out one of them"
        )
    memory = _memory(max_memory)
    divided = _device_map(device_map)
    if divided is None and (memory is not None or offload_folder is not None):
        divided = "auto"
    if isinstance(divided, dict) and memory is not None:
        raise ConfigError(
            f"a device map that names modules ({next(iter(divided))!r}, ...) says where each goes, so max_memory "
            f"({_shown(memory)}) has nothing to decide: leave out one of them"
        )
    if divided is not None and device != "auto":
        raise ConfigError(
            f"device {device!r} and device_map {device_map or 'auto'!r} were both given: choose one (a device map of "
            "CPU and disk: --max-memory cpu=2GiB)"
        )
    if quantize is not None and isinstance(divided, dict) and "disk" in divided.values():
        raise ConfigError(f"quantize {quantize} cannot go with weights on disk: leave out one of them")
    folder = None if offload_folder is None else Path(offload_folder).expanduser()
    return Placement(divided, memory, folder, quantize)  # type: ignore[arg-type] # looked up above


def require_bitsandbytes(quantize: str) -> None:
    """Check that quantizing is possible here.

    Raises:
        ConfigError: bitsandbytes is missing.
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ConfigError(
            f"quantize {quantize} needs bitsandbytes, which is not installed: pip install 'dualform[quantized]'"
        )


def _device_map(given: DeviceMap | None) -> str | dict[str, str | int] | None:
    expected = f'choose one of {", ".join(MAPS)}, or name modules: {{"": "cpu"}}, {{"model.layers.0": 0, ...}}'
    if given is None or (isinstance(given, str) and given in MAPS):
        return given
    named = _read_map(given, expected) if isinstance(given, str) else given
    if not named:
        raise ConfigError(f"device map {given!r} names no module: {expected}")
    found: dict[str, str | int] = {}
    for module, where in named.items():
        found[module] = int(where) if isinstance(where, str) and where.isdigit() else where
        if found[module] != "disk":
            _require_device(module, found[module])
        outer = next((key for key in named if key != module and (not key or module.startswith(f"{key}."))), None)
        if outer is not None:
            # accelerate would put the outer one's weights where the inner one's are looked for.
            raise ConfigError(
                f"device map: {module!r} lies within {repr(outer) if outer else 'the whole model'}: name each part of "
                "the model once"
            )
    return found


def _read_map(given: str, expected: str) -> Mapping[str, str | int]:
    if not given.lstrip().startswith("{"):
        raise ConfigError(f"unknown device map {given!r}: {expected}")
    try:
        read: dict[str, str | int] = json.loads(given)
    except ValueError as error:
        raise ConfigError(f"device map {given!r} is no JSON ({error}): {expected}") from error
    return read


def _require_device(module: str, where: Any) -> None:
    # Settings are checked before torch is loaded, and few of them name devices.
    import torch

    known = isinstance(where, str | int) and not isinstance(where, bool)
    try:
        if not known:
            raise TypeError("no name of a device")
        if torch.empty(1, device=where).is_meta:
            raise TypeError("it stores no numbers")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device map: {module or 'the whole model'!r} goes to {where!r}, which cannot be used here "
            f"({(str(error).splitlines() or [''])[0]}): choose cpu, disk or the number of a GPU that is there"
        ) from error


def _memory(given: str | Mapping[str | int, str | int] | None) -> dict[str | int, int] | None:
    if given is None:
        return None
    if isinstance(given, str):
        parts = [part.strip().partition("=") for part in given.split(",")]
        if not all(name and equals and size for name, equals, size in parts):
            raise ConfigError(f"max_memory {given!r} should look like cpu=2GiB,0=10GiB")
        given = {name.strip(): size.strip() for name, _, size in parts}
    found: dict[str | int, int] = {}
    for name, size in given.items():
        place = int(name) if str(name).isdigit() else name
        if not isinstance(place, int) and place not in ("cpu", "mps"):
            raise ConfigError(f"max_memory: {name!r} should be cpu, mps or the number of a GPU, as in cpu=2GiB,0=10GiB")
        found[place] = size_in_bytes(size, "max_memory")
    if not found:
        raise ConfigError("max_memory names no device: write it like cpu=2GiB,0=10GiB")
    return found


_LARGEST_SIZE = 1 << 60


def size_in_bytes(size: str | int, setting: str) -> int:
    """`500MB`, `2GiB`, `1.5GiB` or a number of bytes.

    Args:
        size: What was given.
        setting: What it is, for the message.

    Raises:
        ConfigError: Anything else.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", str(size).strip().upper())
    if match is None:
        raise ConfigError(f"{setting}: {size!r} is no size: write it like 500MB, 2GiB or 1.5GiB")
    number = float(match[1]) * _UNITS[match[2] or ""]
    # A float of hundreds of digits is infinite; nothing has an exbibyte of memory.
    if number > _LARGEST_SIZE:
        raise ConfigError(f"{setting}: a size of more than 1 EiB is none that a machine has: write it like 2GiB")
    return int(number)


def _shown(memory: Mapping[str | int, int]) -> str:
    return ", ".join(f"{place}={size / (1 << 30):.3g}GiB" for place, size in memory.items())
