"""Digests that identify a model by its files, without loading it: a name may stay while a checkpoint changes."""

import contextlib
import hashlib
import json
import mmap
import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from torch import Tensor

from dualform.errors import StorageError
from dualform.files import atomic_write, cache_dir
from dualform.models.loading.checkpoint_files import READ_BY_LOADING, require_file
from dualform.models.loading.locate import explain_loading_errors, find_model, path_of
from dualform.models.loading.packaged import PACKAGED_MODELS

_CHUNK = 16 << 20
"""Bytes of a chunk; chunks are hashed in parallel."""
_SMALL = 1 << 20
"""Files up to this size are always hashed, which is as fast as looking up their digest."""
_SETTLED = 2.0
"""Age of a change, in seconds, from which file times reliably show a later one; file systems round them."""


def model_identity(name: str) -> str:
    """Digest of a model's files.

    For a folder it covers all files that loading reads: weights, config, tokenizer, code. For an adapter it also covers
    its base model, for a packaged model it is that of the package, and a hub model is identified by its commit. Digests
    of large files are cached by size, times and inode.

    Args:
        name: As in `load_model`.

    Returns:
        16 hexadecimal digits. For a hub model, a digest of its name only if the hub cannot be reached.

    Raises:
        ModelError: A file is not regular or cannot be read, or an adapter's base model is missing.
    """
    if name in PACKAGED_MODELS:
        return PACKAGED_MODELS[name].sha256[:16]
    digest = hashlib.sha256()
    with explain_loading_errors(name):
        path = path_of(name)
        if path.is_file():
            digest.update(file_digest(path).encode())
        elif path.is_dir():
            for file in _files_read(path):
                digest.update(f"{file.relative_to(path)} {file_digest(file)}".encode())
            if (path / "adapter_config.json").exists():
                digest.update(model_identity(find_model(name).base).encode())
        else:
            digest.update(name.encode())
            digest.update(_commit(name).encode())
    return digest.hexdigest()[:16]


def _files_read(folder: Path) -> Iterator[Path]:
    """All files that loading may read, sorted by name; code and templates also in subfolders."""
    deeper = [path for suffix in (".py", ".jinja") for path in folder.glob(f"*/*{suffix}")]
    for path in sorted((*folder.iterdir(), *deeper)):
        if path.suffix in (*READ_BY_LOADING, ".safetensors") and not path.is_dir():
            yield path


def file_digest(path: Path) -> str:
    """SHA-256 over the digests of a file's chunks, in hexadecimal digits; from the cache if the file is unchanged.

    Raises:
        UnusableFileError: It is not a regular file, or cannot be read.
    """
    require_file(path)
    status = path.stat()
    if status.st_size <= _SMALL:
        return hashlib.sha256(path.read_bytes()).hexdigest()
    # ctime changes even if an edit restores the modification time.
    state = [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev]
    kept = _kept_at(path)
    if kept is not None:
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            known = json.loads(kept.read_text(encoding="utf-8"))
            if known["state"] == state:
                return str(known["sha256"])
    digest = _digest_of(path)
    after = path.stat()
    unchanged = state == [after.st_size, after.st_mtime_ns, after.st_ctime_ns, after.st_ino, after.st_dev]
    settled = time.time() - max(status.st_mtime, status.st_ctime) > _SETTLED
    if kept is not None and unchanged and settled:
        with contextlib.suppress(StorageError, OSError), atomic_write(kept) as temporary:
            temporary.write_text(json.dumps({"file": str(path), "state": state, "sha256": digest}), encoding="utf-8")
    return digest


def _kept_at(path: Path) -> Path | None:
    """File in the cache that stores another file's digest; None without a cache."""
    with contextlib.suppress(StorageError, OSError):
        folder = cache_dir() / "digests"
        folder.mkdir(exist_ok=True)
        return folder / f"{hashlib.sha256(os.fsencode(path.resolve())).hexdigest()[:32]}.json"
    return None


def _digest_of(path: Path) -> str:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:

        def chunk(start: int) -> bytes:
            with memoryview(mapped) as view, view[start : start + _CHUNK] as part:
                return hashlib.sha256(part).digest()

        return _tree(chunk, range(0, len(mapped), _CHUNK))


def _tree(digest: Callable[[int], bytes], starts: Iterable[int]) -> str:
    """Digest of the digests of all chunks, computed in parallel (hashlib releases the GIL)."""
    total = hashlib.sha256()
    threads = min(8, os.cpu_count() or 1)
    pending = iter(starts)
    with ThreadPoolExecutor(threads) as pool:
        # In batches, so that a large model is not read all at once.
        while batch := list(islice(pending, 4 * threads)):
            for chunk_digest in pool.map(digest, batch):
                total.update(chunk_digest)
    return total.hexdigest()


def digest_of_weights(weights: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None = None) -> str:
    """Digest of weights in memory, on any device.

    Args:
        weights: Names and weights.
        dtype: Convert to this dtype first; None for their own.

    Returns:
        16 hexadecimal digits, equal for equal names, shapes, dtypes and bytes.
    """
    digest = hashlib.sha256()
    for name, weight in weights:
        whole = weight.detach().to(device="cpu", dtype=dtype or weight.dtype).contiguous()
        view = whole.flatten().view(torch.uint8).numpy().data

        def chunk(start: int, view: memoryview = view) -> bytes:
            return hashlib.sha256(view[start : start + _CHUNK]).digest()

        content = _tree(chunk, range(0, len(view), _CHUNK)) if len(view) > _SMALL else hashlib.sha256(view).hexdigest()
        digest.update(f"{name} {tuple(weight.shape)} {whole.dtype} {content}\n".encode())
    return digest.hexdigest()[:16]


def cached_commit(name: str) -> str | None:
    """Commit of a hub model that is in the local cache; None for any other model.

    Args:
        name: As in `load_model`.
    """
    if name in PACKAGED_MODELS or name.count("/") != 1 or Path(name).expanduser().exists():
        return None
    with contextlib.suppress(OSError, HFValidationError):
        for file in ("config.json", "adapter_config.json"):
            cached = try_to_load_from_cache(name, file)
            if isinstance(cached, str):
                # .../snapshots/COMMIT/config.json
                return Path(cached).parent.name
    return None


def _commit(name: str) -> str:
    """Commit of a hub model, from the cache or the hub; empty if neither knows it."""
    if name.count("/") != 1:
        return ""
    with contextlib.suppress(OSError, HFValidationError, TransportError):
        # The hub is asked too, so that the identity does not change once the model is in the cache.
        return cached_commit(name) or HfApi().model_info(name, timeout=10).sha or ""
    return ""
