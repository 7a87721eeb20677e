"""Where a model's weights are stored, and in how many bits: on one device, several, or partly in memory and on disk."""

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
    # Outliers are multiplied separately in half precision (arXiv:2208.07339).
    "8bit": {"load_in_8bit": True},
    "4bit": {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"},
}


@dataclass(frozen=True)
class Placement:
    """How a model is split over devices and stored. Build it with `placement`, which checks the settings."""

    device_map: str | dict[str, str | int] | None = None
    """None: the whole model on one device."""
    max_memory: dict[str | int, int] | None = None
    """Bytes of weights on each device: the number of a GPU, `cpu` or `mps`; what does not fit goes to disk."""
    offload_folder: Path | None = None
    """Folder for weights that are offloaded to disk; not needed for a safetensors checkpoint, which is read in
    place."""
    quantize: Quantize | None = None

    def arguments(self, dtype: "torch.dtype", device: "torch.device") -> dict[str, Any]:
        """Arguments of `from_pretrained`.

        Args:
            dtype: Dtype of computation.
            device: Device of a model that is not split.

        Raises:
            ConfigError: bitsandbytes is not installed.
            StorageError: The offload folder cannot be written.
        """
        arguments: dict[str, Any] = {}
        if self.device_map is not None:
            arguments["device_map"] = self.device_map
            # Copied because accelerate modifies it.
            arguments["max_memory"] = None if self.max_memory is None else dict(self.max_memory)
            if self.offload_folder is not None:
                remedy = "Choose another folder with --offload-folder."
                arguments["offload_folder"] = str(writable_dir(self.offload_folder, remedy))
        if self.quantize is not None:
            require_bitsandbytes(self.quantize)
            from transformers import BitsAndBytesConfig

            more = {"bnb_4bit_compute_dtype": dtype} if self.quantize == "4bit" else {}
            arguments["quantization_config"] = BitsAndBytesConfig(**_BITS[self.quantize], **more)
            # bitsandbytes cannot move a model after loading.
            arguments.setdefault("device_map", {"": str(device)})
        return arguments


def placement(
    *,
    device: str = "auto",
    dtype: str = "float32",
    device_map: DeviceMap | None = None,
    max_memory: str | Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    quantize: str | None = None,
) -> Placement:
    """Parse and check the settings.

    Args:
        device: Must be `auto` together with a device map.
        dtype: Must not be float64 together with quantization.
        device_map: See `DeviceMap`; a mapping may also be given as JSON. Default: `auto` if `max_memory` or an offload
            folder is given, otherwise one device.
        max_memory: `cpu=2GiB,0=10GiB`, or a mapping.
        offload_folder: Folder for weights that are offloaded to disk.
        quantize: `8bit` or `4bit`.

    Raises:
        ConfigError: A setting is invalid, or two exclude each other.
    """
    if quantize is not None and quantize not in _BITS:
        raise ConfigError(f"quantize {quantize!r} is unknown: choose one of {', '.join(_BITS)}")
    if quantize is not None and dtype == "float64":
        raise ConfigError(
            f"dtype float64 is for exact comparisons, but quantize {quantize} rounds weights to a few bits: leave out "
            "one of them"
        )
    memory = _memory(max_memory)
    divided = _device_map(device_map)
    if divided is None and (memory is not None or offload_folder is not None):
        divided = "auto"
    if isinstance(divided, dict) and memory is not None:
        raise ConfigError(
            f"a device map that names modules ({next(iter(divided))!r}, ...) already determines where each goes, so "
            f"max_memory ({_format_memory(memory)}) would have no effect: leave out one of them"
        )
    if divided is not None and device != "auto":
        raise ConfigError(
            f"device {device!r} and device_map {device_map or 'auto'!r} were both given: choose one (to use only CPU "
            "and disk: --max-memory cpu=2GiB)"
        )
    if quantize is not None and isinstance(divided, dict) and "disk" in divided.values():
        raise ConfigError(f"quantize {quantize} cannot be combined with weights on disk: leave out one of them")
    folder = None if offload_folder is None else Path(offload_folder).expanduser()
    return Placement(divided, memory, folder, quantize)  # type: ignore[arg-type] # looked up above


def require_bitsandbytes(quantize: str) -> None:
    """Check that bitsandbytes is installed.

    Raises:
        ConfigError: It is not.
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
    devices: dict[str, str | int] = {}
    for module, device in named.items():
        devices[module] = int(device) if isinstance(device, str) and device.isdigit() else device
        if devices[module] != "disk":
            _require_device(module, devices[module])
        outer = next((key for key in named if key != module and (not key or module.startswith(f"{key}."))), None)
        if outer is not None:
            # accelerate would look for the inner module's weights on the wrong device.
            raise ConfigError(
                f"device map: {module!r} is part of {repr(outer) if outer else 'the whole model'}, which is named too: "
                "name each part of the model once"
            )
    return devices


def _read_map(given: str, expected: str) -> Mapping[str, str | int]:
    if not given.lstrip().startswith("{"):
        raise ConfigError(f"unknown device map {given!r}: {expected}")
    try:
        devices: dict[str, str | int] = json.loads(given)
    except ValueError as error:
        raise ConfigError(f"device map {given!r} is not valid JSON ({error}): {expected}") from error
    return devices


def _require_device(module: str, device: Any) -> None:
    # Imported here because settings are checked before torch is loaded.
    import torch

    try:
        if not isinstance(device, str | int) or isinstance(device, bool):
            raise TypeError("not the name of a device")
        if torch.empty(1, device=device).is_meta:
            raise TypeError("the meta device has no data")
    except (RuntimeError, AssertionError, TypeError) as error:
        raise ConfigError(
            f"device map: {module or 'the whole model'!r} goes to {device!r}, which cannot be used here "
            f"({(str(error).splitlines() or [''])[0]}): choose cpu, disk or the number of an available GPU"
        ) from error


def _memory(given: str | Mapping[str | int, str | int] | None) -> dict[str | int, int] | None:
    if given is None:
        return None
    if isinstance(given, str):
        parts = [part.strip().partition("=") for part in given.split(",")]
        if not all(name and equals and size for name, equals, size in parts):
            raise ConfigError(f"max_memory {given!r} should look like cpu=2GiB,0=10GiB")
        given = {name.strip(): size.strip() for name, _, size in parts}
    memory: dict[str | int, int] = {}
    for name, size in given.items():
        place = int(name) if str(name).isdigit() else name
        if not isinstance(place, int) and place not in ("cpu", "mps"):
            raise ConfigError(f"max_memory: {name!r} should be cpu, mps or the number of a GPU, as in cpu=2GiB,0=10GiB")
        memory[place] = size_in_bytes(size, "max_memory")
    if not memory:
        raise ConfigError("max_memory names no device: write it like cpu=2GiB,0=10GiB")
    return memory


_LARGEST_SIZE = 1 << 60


def size_in_bytes(size: str | int, setting: str) -> int:
    """Parse a size into bytes.

    Args:
        size: `500MB`, `2GiB`, `1.5GiB` or a number of bytes.
        setting: Name of the setting, for the message.

    Raises:
        ConfigError: The size cannot be parsed, or is larger than 1 EiB.
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]I?B)?", str(size).strip().upper())
    if match is None:
        raise ConfigError(f"{setting}: {size!r} is not a size: write it like 500MB, 2GiB or 1.5GiB")
    number = float(match[1]) * _UNITS[match[2] or ""]
    # Hundreds of digits give an infinite float, which `int` would not accept.
    if number > _LARGEST_SIZE:
        raise ConfigError(f"{setting}: the size must be at most 1 EiB: write it like 2GiB")
    return int(number)


def _format_memory(memory: Mapping[str | int, int]) -> str:
    return ", ".join(f"{place}={size / (1 << 30):.3g}GiB" for place, size in memory.items())
