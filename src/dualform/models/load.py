"""`load_model`: a name, a folder, a GGUF file or a hub id in, a `LanguageModel` out."""

import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import HfApi, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from huggingface_hub.errors import HTTPError as TransportError  # type: ignore[attr-defined]
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
)

from dualform.errors import ConfigError, DualformError, HubError, ModelError
from dualform.models.language_model import LanguageModel
from dualform.models.momentum import ENTRY, class_with_momentum
from dualform.models.packaged import PACKAGED_MODELS, packaged_model
from dualform.models.placement import DeviceMap, placement
from dualform.models.quantized import compute_as_asked_, precision_of, quietly

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "float64": torch.float64}


def load_model(
    name: str,
    *,
    device: str = "auto",
    dtype: str = "float32",
    route: str | None = None,
    trust_remote_code: bool = False,
    device_map: DeviceMap | None = None,
    max_memory: str | Mapping[str | int, str | int] | None = None,
    offload_folder: str | Path | None = None,
    quantize: str | None = None,
) -> LanguageModel:
    """Load a causal language model and find its anatomy.

    Args:
        name: `smollm2-135m` or `gemma3-270m` (packaged), a checkpoint folder, a `.gguf` file, or a hub id.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32` for everything that is compared; `bfloat16` rounds away small updates.
        route: Insist on `packed`, `packed-mask`, `repeated` or `naive`; default: the fastest that passes the check.
        trust_remote_code: Run code that comes with the checkpoint. Off unless asked for.
        device_map: Divide the model: `auto`, `balanced` or `sequential` over all devices here, memory and disk, or
            a mapping from modules to `cpu`, `disk` or the number of a GPU. Every learner works as on one device.
        max_memory: Most bytes of weights on each, such as `cpu=2GiB,0=10GiB`; the rest goes to disk. Implies `auto`.
        offload_folder: Where weights go that disk is to hold. A safetensors checkpoint is read where it lies and
            needs none.
        quantize: Weights in `8bit` or `4bit`, by bitsandbytes: for answers zero-shot and with demonstrations.

    Returns:
        The model, in eval mode, checked.

    Raises:
        ModelError: No such model, no causal language model, or not one that dualform can look into.
        HubError: The name is none of ours and the hub did not answer.
        StorageError: The cache cannot be written.
        ConfigError: Unknown device, dtype or division, settings that exclude each other, or bitsandbytes is missing.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    placed = placement(
        device=device, dtype=dtype, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder,
        quantize=quantize,
    )  # fmt: skip
    where = device_named(device)
    source, arguments = locate_model(name)
    if placed.quantize is not None and "gguf_file" in arguments:
        raise ConfigError(
            f"{name} is quantized already and is unpacked on loading: quantize {quantize} needs a checkpoint folder"
        )
    arguments["trust_remote_code"] = trust_remote_code
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, **arguments)
        if "gguf_file" in arguments:
            arguments["quantization_config"] = GgufConfig(dequantize=True)
        else:
            # Pickled weights can run code when they are read.
            arguments["use_safetensors"] = True
        arguments |= placed.arguments(DTYPES[dtype], where)
        # Weights made inside a caller's inference_mode could never take part in a gradient.
        with quietly(), torch.inference_mode(False):
            model, found = _class_of(source, trust_remote_code).from_pretrained(
                source, **arguments, dtype=DTYPES[dtype], output_loading_info=True
            )
        if "device_map" not in arguments:
            model = model.to(where)
        if precision_of(model) is not None:
            compute_as_asked_(model)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, ImportError, SafetensorError) as error:
        raise explain_loading(name, error) from error
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head over a vocabulary to read answers from.")
    if found["missing_keys"]:
        # transformers would start them at random and go on.
        missing = sorted(found["missing_keys"])
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}). Give a checkpoint of a causal language model."
        )
    return LanguageModel.wrap(model, tokenizer, name, route)


def _class_of(source: str, trust_remote_code: bool) -> Any:
    """The class to load with: transformers' own choice, or that of a model which was saved with momentum."""
    if not (Path(source) / "config.json").is_file():
        return AutoModelForCausalLM
    config = AutoConfig.from_pretrained(source, trust_remote_code=trust_remote_code)
    arm = str(getattr(config, "dualform_arm", ""))
    if arm and arm.split()[0] not in ("momentum", "normalised", "learned"):
        # Loaded as it lies there, it would attend by softmax and say nothing of it.
        raise ModelError(
            f"{source} was trained with the attention of “{arm}”, which cannot be restored from a "
            "checkpoint. Models with momentum can."
        )
    if getattr(config, ENTRY, None) is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return class_with_momentum(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


def device_named(device: str) -> torch.device:
    """A device by name; `auto` is a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"device {device!r} cannot be used ({reason}); try --device cpu") from error
    return where


def locate_model(name: str) -> tuple[str, dict[str, Any]]:
    """What to hand to transformers: a source and the arguments that go with it."""
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise ModelError(f"no GGUF file at {path}. Check the path.")
        return str(path.parent), {"gguf_file": path.name}
    if path.is_dir():
        if not (path / "config.json").exists():
            raise ModelError(f"{path} is a folder but holds no config.json, so it is no checkpoint of transformers.")
        return str(path), {}
    if name in PACKAGED_MODELS:
        return str(packaged_model(name)), {}
    if name.count("/") > 1 or name.startswith((".", "/", "~")):
        raise ModelError(f"no model folder at {path}. Check the path.")
    _ask_hub(name)
    return name, {}


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
            f"({str(error).splitlines()[0]}).{hint} Give a checkpoint folder, or try again with a network."
        ) from error


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
    reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
    return ModelError(f"{name} could not be loaded as a causal language model: {reason}")
