"""What tells one model from another without loading it: a checkpoint may be trained anew while its name stays."""

import contextlib
import hashlib
import json
from pathlib import Path

from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

from dualform.models.packaged import PACKAGED_MODELS

_READ_BY_LOADING = (".json", ".txt", ".model", ".jinja", ".py")
_SAMPLE = 64
_PLACES = 16
"""Of each tensor, so many bytes are read in so many places."""
_SPREAD = 64


def model_identity(name: str) -> str:
    """Digest of a model's files.

    A packaged model has the digest of its package, one of the hub its commit. Of a folder, the small files are read
    whole, of weights the header and bytes from all over every tensor: one trained anew differs everywhere, and reading
    all of a large one would take minutes.

    Args:
        name: As `load_model` takes it.

    Returns:
        Sixteen hexadecimal digits. For a hub model while the hub cannot be reached, a digest of its name.
    """
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].sha256[:16]
    path = Path(name).expanduser()
    found = hashlib.sha256()
    if path.is_file():
        found.update(_sampled(path))
    elif path.is_dir():
        for file in sorted(one for one in path.iterdir() if one.is_file()):
            if file.suffix in _READ_BY_LOADING:
                found.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
            elif file.suffix == ".safetensors":
                found.update(file.name.encode() + _all_over(file))
    else:
        found.update(name.encode())
        found.update(_commit(name).encode())
    return found.hexdigest()[:16]


def _commit(name: str) -> str:
    """Commit of a hub model, in the cache or else on the hub; empty where neither can tell."""
    if name.count("/") != 1:
        return ""
    with contextlib.suppress(OSError, HFValidationError, TransportError):
        cached = try_to_load_from_cache(name, "config.json")
        if isinstance(cached, str):
            # .../snapshots/COMMIT/config.json
            return Path(cached).parent.name
        # Or the same sweep would find other cells once the model is in the cache.
        return HfApi().model_info(name, timeout=10).sha or ""
    return ""


def _all_over(path: Path) -> bytes:
    """Digest of a safetensors file's header and of bytes from all over every tensor in it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(8)
        n = int.from_bytes(length, "little")
        header = file.read(min(n, path.stat().st_size))
        found.update(length + header)
        try:
            tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
            places = sorted((int(start), int(end)) for start, end in (one["data_offsets"] for one in tensors.values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            # Loading it will say that it is damaged.
            return found.digest()
        for start, end in places:
            for part in range(_PLACES):
                file.seek(8 + n + start + (end - start) * part // _PLACES)
                found.update(file.read(min(_SAMPLE, end - start)))
    return found.digest()


def _sampled(path: Path) -> bytes:
    """Digest of a file's size and of samples spread evenly over it."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        for number in range(_SPREAD):
            file.seek(size * number // _SPREAD)
            found.update(file.read(1 << 14))
    return found.digest()
