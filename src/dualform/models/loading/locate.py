"""Where a model's files are: packaged, in a folder, in a GGUF file or on the hub; also for adapters and their bases."""

import contextlib
import difflib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]

from dualform.errors import ConfigError, DualformError, HubError, ModelError, first_line
from dualform.models.loading.checkpoint_files import INDEX, UnusableFileError, in_one_line, read_json
from dualform.models.loading.packaged import PACKAGED_MODELS, packaged_model
from dualform.plain_text import plain


@dataclass(frozen=True)
class ModelLocation:
    """Where a model's files are."""

    source: str
    """Folder or hub id for `from_pretrained`; for an adapter, that of its base model."""
    gguf: str | None = None
    """Name of the GGUF file in that folder."""
    adapter: Path | None = None
    """Folder of the adapter, if there is one."""
    base: str = ""
    """Name of the adapter's base model, as in `load_model`."""
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """Further arguments of `from_pretrained`."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def folder(self) -> Path | None:
        """The folder; None for a hub id."""
        path = Path(self.source)
        return path if path.is_dir() else None


def find_model(name: str) -> ModelLocation:
    """Find a model by its name, without reading its weights.

    Args:
        name: As in `load_model`.

    Raises:
        ModelError: No such model, or an adapter whose base model is missing.
        HubError: The name is not a local model and the hub did not answer.
    """
    # Checked before `Path`, which would turn `https://` into `https:/`.
    if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
        raise ModelError(
            f"{plain(name)} is a URL, but models are loaded from this machine or the hub only. Give a hub id such as "
            "owner/name, or download the checkpoint and give its folder."
        )
    path = path_of(name)
    if path.suffix == ".gguf":
        if not path.exists():
            raise ModelError(f"no GGUF file at {path}. Check the path.")
        return ModelLocation(str(path.parent), path.name)
    if path.is_dir():
        return _in_folder(path)
    if name in PACKAGED_MODELS:
        return ModelLocation(str(packaged_model(name)))
    if path.exists() or path.is_symlink():
        raise ModelError(
            f"{plain(name)} is neither a checkpoint folder nor a .gguf file. Give one of these, a packaged name "
            f"({', '.join(PACKAGED_MODELS)}) or a hub id."
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at {path}. Check the path.")
    _require_on_hub(name)
    adapter = _adapter_on_hub(name)
    return ModelLocation(name) if adapter is None else _with_base(adapter, name)


def path_of(name: str) -> Path:
    """A model's name as a path, which may not exist.

    Raises:
        ModelError: The name can be neither a path nor a hub id.
    """
    try:
        if not name.strip() or not name.isprintable():
            raise ValueError("it is empty" if not name.strip() else "it contains unprintable characters")
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or in_one_line(error, 120)
        raise ModelError(
            f"{_shortened(name)} is not a valid model name ({reason}). Give a packaged name "
            f"({', '.join(PACKAGED_MODELS)}), a checkpoint folder, a .gguf file or a hub id."
        ) from error
    return path


def _shortened(name: str) -> str:
    return repr(plain(name if len(name) <= 60 else f"{name[:56]} ..."))


def _in_folder(path: Path) -> ModelLocation:
    adapter = _exists_or_link(path / "adapter_config.json")
    if adapter:
        weights = [path / "model.safetensors", path / INDEX, *path.glob("pytorch_model*.bin")]
        if not any(_exists_or_link(file) for file in weights):
            return _with_base(path, str(path))
        # transformers would apply the adapter without notice.
        raise ModelError(
            f"{path} contains both a full model and an adapter (adapter_config.json), which is ambiguous. Move "
            "adapter_config.json and the adapter's weights to a separate folder: give that folder for the model with "
            "the adapter, or this one for the model without it."
        )
    if not _exists_or_link(path / "config.json"):
        raise ModelError(
            f"{path} contains neither config.json (a transformers checkpoint) nor adapter_config.json (a peft "
            "adapter). Check the path."
        )
    return ModelLocation(str(path))


def _exists_or_link(path: Path) -> bool:
    # A broken link counts as existing, so that the error raised on reading it names it.
    return path.exists() or path.is_symlink()


def _with_base(adapter: Path, name: str) -> ModelLocation:
    """Locate an adapter and the base model that its config names."""
    with explain_loading_errors(name):
        settings = read_json(adapter / "adapter_config.json")
        base = settings.get("base_model_name_or_path")
        if not isinstance(base, str) or not base.strip():
            raise UnusableFileError(
                "adapter_config.json has no base_model_name_or_path, the model that the adapter belongs to"
            )
    remedy = "Put the base model there, or set base_model_name_or_path in adapter_config.json to where it is."
    try:
        folders = () if Path(base).is_absolute() else (adapter, adapter.parent)
        paths = [base, *(str(folder / base) for folder in folders)]
        place = base if base in PACKAGED_MODELS else next((path for path in paths if path_of(path).exists()), base)
        if path_of(place).is_dir() and path_of(place).samefile(adapter):
            raise ModelError("that is the adapter's own folder")
        location = find_model(place)
    except DualformError as error:
        raise ModelError(
            f"{name} is an adapter, and its base model {base!r} was not found: {error} {remedy}"
        ) from error
    if location.adapter is not None:
        raise ModelError(
            f"{name} is an adapter whose base model {base!r} is itself an adapter. Merge that one into its base first."
        )
    revision = settings.get("revision")
    notes = location.notes
    if location.folder is None and revision not in (None, "main"):
        notes += (
            f"The adapter was trained on revision {plain(str(revision))} of {base}; the latest revision was loaded.",
        )
    return ModelLocation(location.source, location.gguf, adapter, place, notes)


def _adapter_on_hub(name: str) -> Path | None:
    """Download an adapter from the hub and return its folder; None if the model is not an adapter."""
    try:
        settings = Path(hf_hub_download(name, "adapter_config.json"))
    except (EntryNotFoundError, OSError, TransportError):
        return None
    for file in ("model.safetensors", INDEX, "pytorch_model.bin"):
        with contextlib.suppress(EntryNotFoundError, OSError, TransportError):
            hf_hub_download(name, file, dry_run=True)
            raise ModelError(
                f"{name} contains both a full model and an adapter (adapter_config.json), which is ambiguous. Download "
                "it and give a folder that contains only one of them."
            )
    with contextlib.suppress(EntryNotFoundError, OSError, TransportError):
        hf_hub_download(name, "adapter_model.safetensors")
    return settings.parent


def _require_on_hub(name: str) -> None:
    """Check in one request that the hub has this model; transformers would retry for most of a minute."""
    packaged = ", ".join(PACKAGED_MODELS)
    similar = difflib.get_close_matches(name, PACKAGED_MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {similar[0]}?" if similar else ""
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)
    except GatedRepoError as error:
        raise ModelError(
            f"model {name!r} is gated: accept its terms on the hub, then log in with `hf auth login`."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"unknown model {name!r}.{hint} Give a packaged name ({packaged}), a checkpoint folder, a .gguf file or a "
            "hub id (a private one needs a login)."
        ) from error
    except (OSError, TransportError) as error:
        raise HubError(
            f"{name!r} is neither a packaged model ({packaged}) nor a local folder, and the model hub could not be "
            f"reached ({first_line(error)}).{hint} Give a checkpoint folder, or try again with a network connection."
        ) from error


@contextmanager
def explain_loading_errors(name: str) -> Iterator[None]:
    """Turn any error that a library raises inside the block into one that names the model."""
    try:
        yield
    except DualformError:
        raise
    except Exception as error:
        raise loading_error(name, error) from error
    except BaseException as error:
        # A panic in the Rust code of tokenizers or safetensors is not an Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise loading_error(name, RuntimeError(str(error))) from error


def loading_error(name: str, error: Exception) -> DualformError:
    """Translate a library's error into one that names the model and a remedy."""
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(
            f"{name} does not fit into the device's memory. Split it over devices (--device-map auto, with "
            "--max-memory if other programs need memory too), use --dtype bfloat16, or, if only accuracy matters, "
            "--quantize 8bit."
        )
    if "dispatched on the CPU or the disk" in str(error):
        return ModelError(
            f"{name} does not fit on the GPUs, and quantized weights cannot be offloaded. Allow more GPU memory "
            "(--max-memory), or leave out --quantize: weights that do not fit are then offloaded to memory and disk."
        )
    if any(word in str(error) for word in ("offload_folder", "offload_dir")):
        return ConfigError(
            f"{name} is not stored in a form that can be offloaded directly, so offloaded weights must be written to "
            "disk first: name a folder with --offload-folder."
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{name} needs Python code that comes with it, which is not run by default. Read that code, then allow it "
            "with --trust-remote-code."
        )
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return ModelError(f"{name} does not fit into this machine's memory. Try --device-map auto.")
    return ModelError(f"{name} could not be loaded as a causal language model: {in_one_line(error)}")
