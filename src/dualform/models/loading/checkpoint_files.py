"""Checks of a checkpoint's files before any library reads them.

A checkpoint may come from an untrusted source, and the libraries that read one trust it: they wait on a pipe, allocate
as much as a header claims, or build a million layers if a config says so. Here the type and size of each file are
checked before it is opened, and config, index and headers for values that would make the libraries fail late or
silently.
"""

import json
import math
import re
import stat
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from transformers.quantizers.auto import AUTO_QUANTIZATION_CONFIG_MAPPING

from dualform.plain_text import plain

MIB = 1 << 20
_MOST_BYTES = {".json": 64 * MIB, ".jinja": 4 * MIB, ".py": 16 * MIB, ".txt": 256 * MIB}
_MOST_TOKENIZER = 512 * MIB
READ_BY_LOADING = (".json", ".txt", ".model", ".jinja", ".py", ".tiktoken", ".spm", ".vocab", ".codes", ".bpe")
"""Suffixes of files, other than weights, that transformers reads when it loads a model and its tokenizer."""

INDEX = "model.safetensors.index.json"
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")

_MOST_LAYERS = 10_000
_MOST_OF_A_SIZE = 1 << 32
_POSITIVE = re.compile(
    r"num_hidden_layers|n_layers?|num_layers|num_attention_heads|n_heads?|num_heads|attention_heads|vocab_size"
    r"|hidden_size|n_embd|d_model|max_position_embeddings|n_positions|num_key_value_heads|head_dim|rope_theta"
)
"""Fields that must be positive, at any level of a config."""
_WHOLE = re.compile(
    _POSITIVE.pattern.replace("|rope_theta", "")
    + r"|intermediate_size|ffn_dim|n_inner|d_ff|\w*num_\w*experts|sliding_window|moe_intermediate_size"
)
"""Fields that must be integers, or lists of them (one for each layer)."""

_OTHER_SENSES = re.compile(r"vision|visual|image|audio|speech|talker|codec|dac|mimi")
"""Parts of a config for images and audio."""


class UnusableFileError(ValueError):
    """A file of a checkpoint cannot or must not be read; the message names the file and the reason."""


@dataclass(frozen=True)
class StoredWeights:
    """Contents of the headers of a checkpoint's weight files."""

    shapes: Mapping[str, tuple[int, ...]]
    """Name of a tensor -> its shape."""
    metadata: Mapping[str, Any]
    """Metadata of a GGUF file: numbers, text and short lists; empty for safetensors."""

    @property
    def numbers(self) -> int:
        """Total number of entries of all tensors."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def layers(self) -> int:
        """Length of the longest numbered series of modules, lists of experts aside; 0 if there is none."""
        longest = 0
        for name in self.shapes:
            place = _NUMBERED.match(name)
            if place is not None and "expert" not in place[1]:
                longest = max(longest, int(place[2]) + 1)
        return longest


_NUMBERED = re.compile(r"(.*?)\.(\d{1,12})\.")


def in_one_line(error: BaseException, most: int = 300) -> str:
    """An exception's message in one line of at most `most` characters, without control characters."""
    text = " ".join(str(error).split())
    # Other types need their name: the text of a KeyError is only the key, and an AssertionError often has none.
    named = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, StrictDataclassError)
    is_clear = isinstance(error, named) and not isinstance(error, RecursionError | NotImplementedError)
    if isinstance(error, UnicodeError):
        text = "text that is not valid UTF-8"
    elif not text or not (is_clear or type(error) is Exception):
        text = f"{type(error).__name__}{f': {text}' if text else ''}"
    text = plain(_RAW_BYTES.sub("...", text))
    return text if len(text) <= most else f"{text[: most - 4].rstrip()} ..."


_RAW_BYTES = re.compile(r"(?:\\x[0-9a-f]{2}){4,}")


def require_file(path: Path, most: int | None = None) -> None:
    """Check that a path is a readable regular file, and not too large.

    Args:
        path: Path of a file; links are followed.
        most: Largest size, bytes.

    Raises:
        UnusableFileError: It is missing, unreadable, too large, or a folder, pipe or device.
    """
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
            raise UnusableFileError(f"{path.name} is {kind}, but a file was expected")
        if most is not None and status.st_size > most:
            raise UnusableFileError(
                f"{path.name} has {status.st_size:,} bytes; dualform accepts at most {most:,} for such a file"
            )
        with path.open("rb"):
            pass
    except OSError as error:
        raise UnusableFileError(f"{path.name} cannot be read: {error.strerror or in_one_line(error)}") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        UnusableFileError: It cannot be read, is not JSON, or is not a JSON object.
    """
    require_file(path, _MOST_BYTES[".json"])
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        # Half of a surrogate pair would fail only later, when a result is written.
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise UnusableFileError(
            f"{path.name} contains text that is not valid Unicode (half of a surrogate pair)"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else in_one_line(error, 150)
        raise UnusableFileError(f"{path.name} is not a valid JSON file: {reason}") from error
    if not isinstance(content, dict):
        raise UnusableFileError(f"{path.name} must be a mapping, not {type(content).__name__}")
    return content


def check_config(config: Mapping[str, Any], name: str = "config.json") -> None:
    """Check the values in a model's config that transformers does not check.

    Args:
        config: As read from JSON.
        name: Name of the file, for messages.

    Raises:
        UnusableFileError: A number is impossible, a dtype or quantization method is unknown, or the weights are not
            named as a safetensors file.
    """
    for place, key, value in _fields(config):
        if _OTHER_SENSES.search(place):
            # Parts for images and audio are not run, and some have no layers.
            continue
        given = f"{name}: {place} is {_short(value)}"
        if _WHOLE.fullmatch(key) and value is not None:
            entries = [entry for entry in value if entry is not None] if isinstance(value, list) else [value]
            if not all(isinstance(entry, int) and not isinstance(entry, bool) for entry in entries):
                raise UnusableFileError(f"{given}, but a whole number was expected")
            most = _MOST_LAYERS if "layer" in key else _MOST_OF_A_SIZE
            if any(entry > most for entry in entries):
                raise UnusableFileError(f"{given}, more than the {most:,} that dualform accepts")
            if any(entry < 0 for entry in entries):
                raise UnusableFileError(f"{given}, which is negative")
        if _POSITIVE.fullmatch(key) and isinstance(value, int | float) and not value > 0:
            raise UnusableFileError(f"{given}, but a number above zero was expected")
        if isinstance(value, float) and not math.isfinite(value) and "time_step" not in key:
            # Only the time steps of Mamba's configs may be infinite.
            raise UnusableFileError(f"{given}, but a finite number was expected")
        if key in ("dtype", "torch_dtype") and value not in (None, "auto"):
            dtype = getattr(torch, value.removeprefix("torch."), None) if isinstance(value, str) else None
            if not isinstance(dtype, torch.dtype):
                raise UnusableFileError(f"{given}, which is not a dtype of torch such as float32 or bfloat16")
        if key in ("quantization_config", "compression_config") and value is not None:
            _check_quantization(value, given)
        if key in _IMPLEMENTATIONS and isinstance(value, str) and "/" in value:
            raise UnusableFileError(f"{given}, which names code on the hub; remove that line")
        if key == "transformers_weights" and value is not None and not _is_weights_file(value):
            raise UnusableFileError(f"{given}, but the name of a safetensors file in the same folder was expected")


_IMPLEMENTATIONS = ("attn_implementation", "_attn_implementation", "experts_implementation")


def _is_weights_file(name: Any) -> bool:
    """Whether this is a valid name of a safetensors file in the checkpoint's folder."""
    return isinstance(name, str) and Path(name).name == name and "\0" not in name and name.endswith(".safetensors")


def _check_quantization(settings: Any, given: str) -> None:
    if not isinstance(settings, dict):
        raise UnusableFileError(f"{given}, but a mapping was expected")
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return
    method = settings.get("quant_method")
    if method not in AUTO_QUANTIZATION_CONFIG_MAPPING:
        # transformers would load the weights as if they were not quantized.
        raise UnusableFileError(
            f"its weights are quantized by a method that transformers does not know ({_short(method)} in "
            "quantization_config). Give the unquantized checkpoint"
        )


def _fields(config: Mapping[str, Any], inside: str = "") -> Iterator[tuple[str, str, Any]]:
    """All fields of a nested config: full name, last part of the name, value."""
    stack: list[tuple[str, Any]] = [(inside, config)]
    while stack:
        where, part = stack.pop()
        for key, value in part.items():
            place = f"{where}.{key}" if where else str(key)
            yield place, str(key), value
            if key == "quantization_config":
                # Its settings may share names with a config's fields but mean something else.
                continue
            if isinstance(value, dict):
                stack.append((place, value))
            elif isinstance(value, list):
                stack += [(f"{place}[{number}]", item) for number, item in enumerate(value) if isinstance(item, dict)]


def _short(value: Any) -> str:
    text = repr(value)
    return plain(text if len(text) <= 40 else f"{text[:36]} ...")


def check_small_files(folder: Path) -> None:
    """Check the type and size of all files in a folder that transformers may read, other than weights.

    Raises:
        UnusableFileError: A file is unreadable, too large, or a folder, pipe or device.
    """
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise UnusableFileError(f"{folder.name} cannot be read: {error.strerror or in_one_line(error)}") from error
    for path in entries:
        if path.suffix in READ_BY_LOADING:
            # A vocabulary may take tens of megabytes.
            large = path.suffix not in _MOST_BYTES or path.name in ("tokenizer.json", "vocab.json")
            require_file(path, _MOST_TOKENIZER if large else _MOST_BYTES[path.suffix])


def stored_weights(folder: Path, config: Mapping[str, Any]) -> StoredWeights:
    """Read the headers of a folder's safetensors files.

    Args:
        folder: Folder of a checkpoint.
        config: Its config, which may name the file.

    Raises:
        UnusableFileError: No such file, files in the index are missing or not safetensors, or a header is damaged.
    """
    named = config.get("transformers_weights")
    if named:
        files = [folder / named]
    elif _exists_or_link(folder / "model.safetensors"):
        files = [folder / "model.safetensors"]
    elif _exists_or_link(folder / INDEX):
        files = _indexed(folder)
    else:
        pickled = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
        hint = ""
        if pickled:
            hint = f" ({pickled[0]} is pickled, and loading a pickle can run code: convert it to safetensors)"
        raise UnusableFileError(f"there is no file named model.safetensors or {INDEX} in {folder}{hint}")
    shapes: dict[str, tuple[int, ...]] = {}
    for file in files:
        shapes |= tensor_shapes(file)
    return StoredWeights(shapes, {})


def has_weights(folder: Path, config: Mapping[str, Any]) -> bool:
    """Whether a folder contains weights, including pickled ones."""
    named = (config.get("transformers_weights") or "model.safetensors", "model.safetensors", INDEX)
    return any(_exists_or_link(folder / name) for name in named) or any(
        any(folder.glob(pattern)) for pattern in _PICKLES
    )


def _exists_or_link(path: Path) -> bool:
    # A broken link counts as existing, so that the error raised on reading it names it.
    return path.exists() or path.is_symlink()


def _indexed(folder: Path) -> list[Path]:
    index = read_json(folder / INDEX).get("weight_map")
    if not isinstance(index, dict) or not index:
        raise UnusableFileError(f"{INDEX} has no weight_map, which lists the weight files")
    names = []
    for name in index.values():
        if not _is_weights_file(name):
            raise UnusableFileError(
                f"{INDEX} names {_short(name)}, but the name of a safetensors file in the same folder was expected"
            )
        names.append(name)
    files = [folder / name for name in dict.fromkeys(names)]
    missing = [file.name for file in files if not _exists_or_link(file)]
    if missing:
        raise UnusableFileError(
            f"{len(missing)} of the {len(files)} files listed in {INDEX} are missing ({plain(missing[0])}"
            f"{', ...' if len(missing) > 1 else ''}). Download the checkpoint again"
        )
    return files


def tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Read names and shapes of the tensors from the header of a safetensors file.

    Raises:
        UnusableFileError: It cannot be opened, or its header is damaged.
    """
    require_file(path)
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except Exception as error:
        raise UnusableFileError(f"{path.name}: {in_one_line(error, 200)}") from error


# A GGUF file has typed metadata, a table of tensors, and their data.
_GGUF_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_GGUF_TEXT, _GGUF_LIST = 8, 9
_LONGEST_LIST = 4096
"""Longer lists in the metadata belong to a vocabulary, and are skipped."""


def gguf_weights(path: Path) -> StoredWeights:
    """Read the header of a GGUF file, and check that the file is complete.

    Raises:
        UnusableFileError: The file is not GGUF, truncated or damaged.

    Source:
        The GGUF specification of ggml, versions 2 and 3.
    """
    # Imported here because it is slow.
    from gguf import GGML_QUANT_SIZES

    require_file(path)
    size = path.stat().st_size
    sizes = {int(kind): size for kind, size in GGML_QUANT_SIZES.items()}
    try:
        with path.open("rb") as file:
            reader = _Gguf(file, size)
            if reader.take(4) != b"GGUF":
                raise UnusableFileError(f"{path.name} is not a GGUF file")
            version = reader.number("I")
            if version not in (2, 3):
                raise UnusableFileError(f"{path.name} has GGUF version {version}; only versions 2 and 3 are supported")
            n_tensors, n_fields = reader.number("Q"), reader.number("Q")
            metadata = {}
            for _ in range(n_fields):
                key = reader.text()
                metadata[key] = reader.value(reader.number("I"))
            table = [reader.tensor() for _ in range(n_tensors)]
            alignment = metadata.get("general.alignment", 32)
            if not isinstance(alignment, int) or not 0 < alignment <= MIB:
                raise UnusableFileError(f"{path.name}: its alignment of {_short(alignment)} is not possible")
            start = -(-file.tell() // alignment) * alignment
    except (struct.error, OverflowError, UnicodeDecodeError, MemoryError) as error:
        raise UnusableFileError(f"{path.name}: its header is damaged ({in_one_line(error, 100)})") from error
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape, kind, offset in table:
        if kind not in sizes:
            raise UnusableFileError(f"{path.name}: {_short(name)} has an unknown data type ({kind})")
        numbers, bytes_ = sizes[kind]
        if start + offset + math.prod(shape) * bytes_ // numbers > size:
            raise UnusableFileError(
                f"{path.name}: {_short(name)} lies beyond the end of the file, which may be truncated"
            )
        shapes[name] = shape
    if not isinstance(metadata.get("general.architecture"), str):
        raise UnusableFileError(f"{path.name} does not name its architecture")
    if not shapes:
        raise UnusableFileError(f"{path.name} contains no weights")
    layers = metadata.get(f"{metadata['general.architecture']}.block_count")
    if layers is not None and (not isinstance(layers, int) or not 0 < layers <= _MOST_LAYERS):
        raise UnusableFileError(f"{path.name}: its number of layers is {_short(layers)}")
    return StoredWeights(shapes, metadata)


@dataclass(frozen=True)
class _Gguf:
    """Reads a GGUF header, never past the end of the file."""

    file: BinaryIO
    size: int

    def take(self, n: int) -> bytes:
        if n > self.size - self.file.tell():
            raise UnusableFileError(f"{Path(self.file.name).name}: its header is truncated or damaged")
        return self.file.read(n)

    def number(self, code: str) -> Any:
        (number,) = struct.unpack(f"<{code}", self.take(struct.calcsize(f"<{code}")))
        return number

    def text(self) -> str:
        return self.take(self.number("Q")).decode()

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in _GGUF_NUMBERS:
            return self.number(_GGUF_NUMBERS[kind])
        if kind == _GGUF_TEXT:
            return self.text()
        if kind != _GGUF_LIST or depth > 4:
            raise UnusableFileError(f"{Path(self.file.name).name}: its header is damaged (a value of type {kind})")
        inner, n = self.number("I"), self.number("Q")
        if inner in _GGUF_NUMBERS:
            code = _GGUF_NUMBERS[inner]
            raw = self.take(n * struct.calcsize(f"<{code}"))
            return None if n > _LONGEST_LIST else list(struct.unpack(f"<{n}{code}", raw))
        values = []
        for number in range(n):
            # Reading fails at the end of the file, so an absurd length does no harm.
            value = self.value(inner, depth + 1)
            if number < _LONGEST_LIST:
                values.append(value)
        return values if n <= _LONGEST_LIST else None

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        name = self.text()
        n = self.number("I")
        if n > 8:
            raise UnusableFileError(f"{Path(self.file.name).name}: {_short(name)} has {n} dimensions")
        shape = tuple(reversed([self.number("Q") for _ in range(n)]))
        return name, shape, self.number("I"), self.number("Q")
