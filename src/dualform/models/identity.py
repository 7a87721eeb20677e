"""What tells one model from another without loading it: a checkpoint may be trained anew while its name stays."""

import hashlib
import json
from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dualform.models.packaged import PACKAGED_MODELS

_READ_BY_LOADING = (".json", ".txt", ".model", ".jinja", ".py")
_SAMPLE = 256
_SPREAD = 64


def model_identity(name: str) -> str:
    """Digest of a model's files.

    A packaged model has the digest of its package, one in the hub's cache its commit. Of a folder, the small files are
    read whole, of weights the header and the first bytes of every tensor: one trained anew differs everywhere, and
    reading all of a large one would take minutes.

    Args:
        name: As `load_model` takes it.

    Returns:
        Sixteen hexadecimal digits. For a hub model that is not in the cache yet, a digest of its name.
    """
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].sha256[:16]
    path = Path(name).expanduser()
    found = hashlib.sha256()
    if path.is_file():
        found.update(_sampled(path))
    elif path.is_dir():
        for file in sorted(path.iterdir()):
            if file.suffix in _READ_BY_LOADING:
                found.update(f"{file.name} {hashlib.sha256(file.read_bytes()).hexdigest()}".encode())
            elif file.suffix == ".safetensors":
                found.update(file.name.encode() + _starts_of_tensors(file))
    else:
        found.update(name.encode())
        cached = try_to_load_from_cache(name, "config.json") if name.count("/") == 1 else None
        if isinstance(cached, str):
            # .../snapshots/COMMIT/config.json
            found.update(Path(cached).parent.name.encode())
    return found.hexdigest()[:16]


def _starts_of_tensors(path: Path) -> bytes:
    """Digest of a safetensors file's header and of the first bytes of every tensor in it."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        length = file.read(8)
        n = int.from_bytes(length, "little")
        header = file.read(min(n, path.stat().st_size))
        found.update(length + header)
        try:
            tensors = {key: value for key, value in json.loads(header).items() if key != "__metadata__"}
            starts = sorted(int(tensor["data_offsets"][0]) for tensor in tensors.values())
        except (ValueError, KeyError, TypeError, AttributeError):
            # Loading it will say that it is damaged.
            return found.digest()
        for start in starts:
            file.seek(8 + n + start)
            found.update(file.read(_SAMPLE))
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
