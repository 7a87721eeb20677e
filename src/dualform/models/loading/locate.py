"""Where a model's files are: packaged, in a folder, in a GGUF file, on the hub, or an adapter's and its base's."""

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
class FoundModel:
    """Where a model's files are."""

    source: str
    """Folder or hub id, as transformers takes it; of an adapter, its base's."""
    gguf: str | None = None
    """Name of the GGUF file in that folder."""
    adapter: Path | None = None
    """Folder of an adapter that belongs on top."""
    base: str = ""
    """Of an adapter: its base, as `load_model` takes it."""
    notes: tuple[str, ...] = ()

    @property
    def arguments(self) -> dict[str, Any]:
        """What goes with the source to transformers."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}

    @property
    def folder(self) -> Path | None:
        """The folder; None for a hub id, whose files transformers finds in its cache."""
        path = Path(self.source)
        return path if path.is_dir() else None


def find_model(name: str) -> FoundModel:
    """Find a model by its name, without reading it.

    Args:
        name: As `load_model` takes it.

    Raises:
        ModelError: There is no such model, or its adapter's base is missing.
        HubError: The name is none of ours and the hub did not answer.
    """
    # A path would lose one of an address's slashes.
    if re.match(r"[a-z][a-z0-9+.-]+://", name, re.IGNORECASE):
        raise ModelError(
            f"{plain(name)} is an address, and models are read from this machine or the hub. Give a hub id such as "
            "owner/name, or download the checkpoint and give its folder."
        )
    path = path_of(name)
    if path.suffix == ".gguf":
        if not path.exists():
            raise ModelError(f"no GGUF file at {path}. Check the path.")
        return FoundModel(str(path.parent), path.name)
    if path.is_dir():
        return _in_folder(path)
    if name in PACKAGED_MODELS:
        return FoundModel(str(packaged_model(name)))
    if path.exists() or path.is_symlink():
        raise ModelError(
            f"{plain(name)} is neither a folder with a checkpoint nor a .gguf file. Give one of these, a packaged name "
            f"({', '.join(PACKAGED_MODELS)}) or a hub id."
        )
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at {path}. Check the path.")
    _ask_hub(name)
    adapter = _adapter_on_hub(name)
    return FoundModel(name) if adapter is None else _with_base(adapter, name)


def path_of(name: str) -> Path:
    """A model's name as a path, whether or not anything is there.

    Raises:
        ModelError: No path and no hub id can have this name.
    """
    try:
        if not name.strip() or not name.isprintable():
            raise ValueError("it is empty" if not name.strip() else "it holds characters that cannot be printed")
        path = Path(name).expanduser()
        path.exists()
    except (OSError, ValueError, RuntimeError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or in_one_line(error, 120)
        raise ModelError(
            f"the model's name {_shortened(name)} cannot be used ({reason}). Give a packaged name "
            f"({', '.join(PACKAGED_MODELS)}), a checkpoint folder, a .gguf file or a hub id."
        ) from error
    return path


def _shortened(name: str) -> str:
    return repr(plain(name if len(name) <= 60 else f"{name[:56]} ..."))


def _in_folder(path: Path) -> FoundModel:
    adapter = _lies(path / "adapter_config.json")
    if adapter:
        weights = [path / "model.safetensors", path / INDEX, *path.glob("pytorch_model*.bin")]
        if not any(_lies(file) for file in weights):
            return _with_base(path, str(path))
        # transformers would load the adapter on top without a word.
        raise ModelError(
            f"{path} holds a whole model and an adapter next to it (adapter_config.json), so which of the two is meant "
            "is not clear. Move adapter_config.json and the adapter's weights to a folder of their own: give that "
            "folder for the model with the adapter, or this one for the model without."
        )
    if not _lies(path / "config.json"):
        raise ModelError(
            f"{path} is a folder but holds no config.json, so it is no checkpoint of transformers, and no "
            "adapter_config.json, so it is no adapter of peft."
        )
    return FoundModel(str(path))


def _lies(path: Path) -> bool:
    # A link that leads nowhere lies there too, and is reported when it is read.
    return path.exists() or path.is_symlink()


def _with_base(adapter: Path, name: str) -> FoundModel:
    """An adapter and the base that its config names."""
    with explained(name):
        settings = read_json(adapter / "adapter_config.json")
        base = settings.get("base_model_name_or_path")
        if not isinstance(base, str) or not base.strip():
            raise UnusableFileError(
                "adapter_config.json names no base_model_name_or_path, the model that it belongs to"
            )
    remedy = "Put the base there, or write where it is as base_model_name_or_path into adapter_config.json."
    try:
        near = [base, *(str(folder / base) for folder in (adapter, adapter.parent) if not Path(base).is_absolute())]
        place = base if base in PACKAGED_MODELS else next((one for one in near if path_of(one).exists()), base)
        if path_of(place).is_dir() and path_of(place).samefile(adapter):
            raise ModelError("that is the adapter's own folder")
        found = find_model(place)
    except DualformError as error:
        raise ModelError(f"{name} is an adapter, and its base {base!r} was not found: {error} {remedy}") from error
    if found.adapter is not None:
        raise ModelError(
            f"{name} is an adapter whose base {base!r} is an adapter too. Merge that one into its own base first."
        )
    revision = settings.get("revision")
    notes = found.notes
    if found.folder is None and revision not in (None, "main"):
        notes += (f"The adapter was trained on revision {plain(str(revision))} of {base}; the latest was loaded.",)
    return FoundModel(found.source, found.gguf, adapter, place, notes)


def _adapter_on_hub(name: str) -> Path | None:
    """The folder of an adapter from the hub; None where the hub's model is none, or has weights of its own."""
    try:
        settings = Path(hf_hub_download(name, "adapter_config.json"))
    except (EntryNotFoundError, OSError, TransportError):
        return None
    for file in ("model.safetensors", INDEX, "pytorch_model.bin"):
        with contextlib.suppress(EntryNotFoundError, OSError, TransportError):
            hf_hub_download(name, file, dry_run=True)
            raise ModelError(
                f"{name} holds a whole model and an adapter next to it (adapter_config.json), so which of the two is "
                "meant is not clear. Download it and give a folder that holds one of them."
            )
    with contextlib.suppress(EntryNotFoundError, OSError, TransportError):
        hf_hub_download(name, "adapter_model.safetensors")
    return settings.parent


def _ask_hub(name: str) -> None:
    """Find out in one request whether the hub has this model: transformers would retry for most of a minute."""
    packaged = ", ".join(PACKAGED_MODELS)
    near = difflib.get_close_matches(name, PACKAGED_MODELS, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    try:
        if not isinstance(try_to_load_from_cache(name, "config.json"), str):
            HfApi().model_info(name, timeout=10)
    except GatedRepoError as error:
        raise ModelError(f"model {name!r} asks for its terms to be accepted: do so on the hub and log in.") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise ModelError(
            f"unknown model {name!r}.{hint} Give a packaged name ({packaged}), a checkpoint folder, a .gguf file or a "
            "hub id (a private one needs a login)."
        ) from error
    except (OSError, TransportError) as error:
        raise HubError(
            f"{name!r} is no packaged model ({packaged}) and no folder here, and the model hub could not be reached "
            f"({first_line(error)}).{hint} Give a checkpoint folder, or try again with a network."
        ) from error


@contextmanager
def explained(name: str) -> Iterator[None]:
    """A block in which whatever a library raises on a model's files becomes an error that names the model."""
    try:
        yield
    except DualformError:
        raise
    except Exception as error:
        raise explain_loading(name, error) from error
    except BaseException as error:
        # What tokenizers and safetensors raise when their own code fails is no Exception.
        if type(error).__name__ != "PanicException":
            raise
        raise explain_loading(name, RuntimeError(str(error))) from error


def explain_loading(name: str, error: Exception) -> DualformError:
    """What went wrong in the library, in one sentence that names the model."""
    if isinstance(error, torch.OutOfMemoryError):
        return ModelError(
            f"{name} does not fit into the device's memory. Divide it (--device-map auto, with --max-memory if other "
            "programs need some), take --dtype bfloat16, or, for accuracy alone, --quantize 8bit."
        )
    if "dispatched on the CPU or the disk" in str(error):
        return ModelError(
            f"{name} does not fit on the GPUs, and quantized weights cannot lie elsewhere. Give them more room "
            "(--max-memory), or leave out --quantize: what does not fit is then read from memory and disk."
        )
    if any(word in str(error) for word in ("offload_folder", "offload_dir")):
        return ConfigError(
            f"{name} does not lie on disk in the form that it is needed in, so what is offloaded must be written "
            "somewhere: name a folder with --offload-folder."
        )
    if "trust_remote_code" in str(error):
        return ModelError(
            f"{name} needs Python code that comes with it, which is not run unasked. Read that code, then allow it "
            "with --trust-remote-code."
        )
    if isinstance(error, MemoryError) or "not enough memory" in str(error):
        return ModelError(f"{name} does not fit into this machine's memory. Divide it: --device-map auto.")
    return ModelError(f"{name} could not be loaded as a causal language model: {in_one_line(error)}")
