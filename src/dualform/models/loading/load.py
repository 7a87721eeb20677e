"""`load_model`: loads a `LanguageModel` from a name, a folder, an adapter, a GGUF file or the hub."""

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from dualform.errors import ConfigError, DualformError, ModelError, first_line
from dualform.models.editing.adapters import merge_adapter_
from dualform.models.editing.momentum import ENTRY, class_with_momentum
from dualform.models.loading.checkpoint_files import (
    StoredWeights,
    UnusableFileError,
    check_config,
    check_small_files,
    gguf_weights,
    has_weights,
    in_one_line,
    read_json,
    stored_weights,
)
from dualform.models.loading.leftovers import (
    check_gguf_conversion,
    check_unused_weights,
    recorded_gguf_names,
    untie_stored_head_,
)
from dualform.models.loading.locate import ModelLocation, explain_loading_errors, find_model
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.loading.offloading import named_weights
from dualform.models.loading.placement import DeviceMap, placement
from dualform.models.loading.quantized import precision_of, use_model_dtype_in_4bit_products_, without_library_warnings
from dualform.models.reading.language_model import LanguageModel
from dualform.plain_text import plain

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
    """Load a causal language model, find its attention layers and check how it is read.

    Args:
        name: `smollm2-135m` or `gemma3-270m` (packaged), a folder with a checkpoint or a LoRA adapter, a `.gguf` file,
            or a hub id.
        device: `auto` (a GPU if there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        dtype: `float32` for anything that is compared; `bfloat16` rounds away small updates.
        route: Require `packed`, `packed-mask`, `repeated` or `naive`; by default the fastest that passes its check.
        trust_remote_code: Run code that comes with the checkpoint.
        device_map: Split the model: `auto`, `balanced` or `sequential` over all devices, memory and disk, or a mapping
            from modules to `cpu`, `disk` or the number of a GPU. Every learner works as on one device.
        max_memory: Largest size of the weights on each device, such as `cpu=2GiB,0=10GiB`; the rest goes to disk.
            Implies `device_map="auto"`.
        offload_folder: Folder for weights that are offloaded to disk. Not needed for a safetensors checkpoint, which
            is read in place.
        quantize: Store weights in `8bit` or `4bit` (bitsandbytes); for zero-shot and in-context learning only.

    Returns:
        The model, in evaluation mode.

    Raises:
        ModelError: No such model, not a causal language model, or one that dualform does not support.
        HubError: The name is not a local model and the hub did not answer.
        StorageError: The cache cannot be written.
        ConfigError: Unknown device, dtype or device map, incompatible settings, or bitsandbytes is not installed.
    """
    if dtype not in DTYPES:
        raise ConfigError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}")
    placed = placement(
        device=device, dtype=dtype, device_map=device_map, max_memory=max_memory, offload_folder=offload_folder,
        quantize=quantize,
    )  # fmt: skip
    where = torch_device(device)
    location = find_model(name)
    if placed.quantize is not None and location.gguf is not None:
        raise ConfigError(
            f"{name} is a GGUF file, which is unpacked on loading and cannot be quantized again: leave out quantize "
            f"{quantize}, or give a checkpoint folder"
        )
    if placed.quantize is not None and location.adapter is not None:
        raise ConfigError(
            f"{name} is an adapter, which is merged into its base model, and {quantize} weights cannot be changed: "
            "leave out quantize"
        )
    with explain_loading_errors(name):
        files = examine_files(location, trust_remote_code)
        config = read_config(location, trust_remote_code)
        files.require_agreement(config, DTYPES[dtype], trust_remote_code)
        tokenizer = read_tokenizer(location, trust_remote_code)
        arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code, **location.arguments}
        if location.gguf is not None:
            arguments["quantization_config"] = GgufConfig(dequantize=True)
        else:
            # Pickled weights can run code when they are read.
            arguments["use_safetensors"] = True
        arguments |= placed.arguments(DTYPES[dtype], where)
        is_gguf = location.gguf is not None
        names: AbstractContextManager[set[str]] = recorded_gguf_names() if is_gguf else nullcontext(set())
        # Weights created in a caller's inference_mode could not be differentiated later.
        with without_library_warnings(), names as converted, torch.inference_mode(False):
            model, report = _class_for(location.source, config).from_pretrained(
                location.source,
                **arguments,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                # Reported below with both shapes; transformers' own error does not name them.
                ignore_mismatched_sizes=True,
            )
        if "device_map" not in arguments:
            model = model.to(where)
        if precision_of(model) is not None:
            use_model_dtype_in_4bit_products_(model)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head, so it cannot score answers.")
    notes = (*location.notes, *files.notes, *_check_report(model, report, name), *untie_stored_head_(model))
    if location.gguf is not None and files.stored is not None:
        notes += check_gguf_conversion(model, files.stored, converted, Path(location.source) / location.gguf, name)
    _require_finite(model, name)
    if location.adapter is not None:
        with explain_loading_errors(name), torch.inference_mode(False):
            notes += (merge_adapter_(model, location.adapter, location.base),)
    return _wrapped(model, tokenizer, name, route, notes)


def _check_report(model: Any, report: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Check transformers' loading report; return notes on harmless differences.

    Raises:
        ModelError: The weights in the file are not those of the model.
    """
    if report["missing_keys"]:
        # transformers would initialise them at random.
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{name}: {len(missing)} weights of {type(model).__name__} are missing ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}). Give a checkpoint of a causal language model."
        )
    problems = [f"{key} has shape {tuple(stored)} in the file and {tuple(built)} by the config"
                for key, stored, built in sorted(report.get("mismatched_keys") or ())]  # fmt: skip
    problems += [" ".join(str(message).split()) for message in report.get("error_msgs") or ()]
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelError(f"{name}: the weights do not match the config: {plain('; '.join(problems[:3])[:600])}{more}.")
    return check_unused_weights(model, report["unexpected_keys"], name)


def _require_finite(model: Any, name: str) -> None:
    """Check that no weight in memory is NaN or infinite.

    Raises:
        ModelError: Some weights are.
    """
    names = [
        key
        for key, weight in named_weights(model)
        if not weight.is_meta
        and weight.is_floating_point()
        and weight.dtype.itemsize > 1
        and weight.numel()
        and not all(torch.isfinite(end) for end in torch.aminmax(weight.detach()))
    ]
    if names:
        remedy = (
            "The file may contain such numbers, or numbers above 65504, the largest in float16: try --dtype float32."
            if model.dtype == torch.float16
            else "The file is damaged, or its training diverged. Give another checkpoint."
        )
        raise ModelError(
            f"{name}: {len(names)} of its weights contain NaN or infinite numbers in "
            f"{str(model.dtype).removeprefix('torch.')} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''}). "
            f"{remedy}"
        )


def _wrapped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, route: str | None, notes: tuple[str, ...]
) -> LanguageModel:
    try:
        lm = LanguageModel.wrap(model, tokenizer, name, route)
    except DualformError:
        raise
    except Exception as error:
        # If the model's own forward fails too, report that error: the config is at fault.
        with explain_loading_errors(name), torch.no_grad():
            model(input_ids=torch.arange(4, device=model.get_input_embeddings().weight.device)[None])
        raise error
    return replace(lm, notes=(*notes, *lm.notes))


def _class_for(source: str, config: PreTrainedConfig) -> Any:
    """The class to load with: transformers' own, or one with momentum if the model was saved with it."""
    if not (Path(source) / "config.json").is_file():
        return AutoModelForCausalLM
    arm = str(getattr(config, "dualform_arm", ""))
    if arm and arm.split()[0] not in ("momentum", "normalised", "learned"):
        # It would otherwise silently run with ordinary softmax attention.
        raise ModelError(
            f"{source} was trained with the attention variant “{arm}”, which cannot be restored from a checkpoint; "
            "only variants with momentum can."
        )
    if getattr(config, ENTRY, None) is None or type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        return AutoModelForCausalLM
    return class_with_momentum(MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])


@dataclass(frozen=True)
class ModelFiles:
    """Facts about a model's files, from `examine_files`."""

    stored: StoredWeights | None
    """None for a model from the hub, whose weights are fetched only on loading."""
    quantized: bool
    notes: tuple[str, ...] = ()

    def require_agreement(self, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> None:
        """Check, before the model is built, that the config describes a model of about the stored size.

        Raises:
            UnusableFileError: The config describes many more layers or weights than the files contain.
        """
        if self.stored is None:
            return
        n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if isinstance(n_layers, int) and self.stored.layers and n_layers > 4 * self.stored.layers + 16:
            raise UnusableFileError(
                f"its config describes {n_layers:,} layers, but its weights have {self.stored.layers}"
            )
        with _attribute_errors_to("its config"):
            needed = sum(weight.numel() for weight in meta_device_model(config, dtype, trust_remote_code).parameters())
        # Several quantized weights may be stored in one number.
        held = self.stored.numbers * (8 if self.quantized else 1)
        if needed > 2 * held + 10_000_000:
            raise UnusableFileError(f"its config describes {needed:,} weights, but the files contain {held:,}")


def examine_files(
    location: ModelLocation, trust_remote_code: bool = False, *, needs_weights: bool = True
) -> ModelFiles:
    """Check a model's files before the model is built.

    Args:
        location: From `find_model`.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        needs_weights: Whether a folder without weights is an error.

    Raises:
        UnusableFileError: A file is damaged, too large, not a regular file, or unsafe to load.
        ModelError: The checkpoint needs its own code, which may not run.
    """
    if location.gguf is not None:
        return ModelFiles(gguf_weights(Path(location.source) / location.gguf), quantized=False)
    folder = location.folder
    if folder is None:
        cached = try_to_load_from_cache(location.source, "config.json")
        config = read_json(Path(cached)) if isinstance(cached, str) else {}
        check_config(config)
        stored = None
    else:
        check_small_files(folder)
        config = read_json(folder / "config.json")
        check_config(config)
        stored = stored_weights(folder, config) if needs_weights or has_weights(folder, config) else None
    quantized = any(key == "quantization_config" for part in (config, *config.values()) if isinstance(part, dict)
                    for key in part)  # fmt: skip
    return ModelFiles(stored, quantized, _own_code(location.source, config, trust_remote_code))


def _own_code(source: str, config: Mapping[str, Any], trust_remote_code: bool) -> tuple[str, ...]:
    """A note if the checkpoint's own code was not run; an error if the model needs that code."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or trust_remote_code:
        return ()
    file = plain(str(auto_map.get("AutoModelForCausalLM") or next(iter(auto_map.values()), "")))
    if config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{source} needs Python code that comes with it ({file}), which is not run by default. Read that code, "
            "then allow it with --trust-remote-code."
        )
    if "AutoModelForCausalLM" not in auto_map:
        return ()
    return (
        f"The checkpoint comes with its own Python code ({file}), which was not run; transformers' class for "
        f"{config['model_type']} was used instead.",
    )


def read_config(location: ModelLocation, trust_remote_code: bool) -> PreTrainedConfig:
    """Read a model's config; code that comes with it runs only if that is allowed."""
    with _attribute_errors_to("its config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            location.source, trust_remote_code=trust_remote_code, **location.arguments
        )
    if location.folder is None:
        # The line above has just downloaded it.
        cached = try_to_load_from_cache(location.source, "config.json")
        if isinstance(cached, str):
            check_config(read_json(Path(cached)))
    return config


def load_tokenizer(name: str, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load a model's tokenizer without the model.

    Args:
        name: As in `load_model`.
        trust_remote_code: Run code that comes with the checkpoint.

    Raises:
        ModelError: No such model, or its tokenizer cannot be used.
        HubError: The name is not a local model and the hub did not answer.
    """
    location = find_model(name)
    with explain_loading_errors(name):
        return read_tokenizer(location, trust_remote_code)


def read_tokenizer(location: ModelLocation, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """Read a model's tokenizer, or its adapter's if the adapter has one."""
    source: str | Path = location.source
    if location.adapter is not None and (location.adapter / "tokenizer_config.json").is_file():
        check_small_files(location.adapter)
        source = location.adapter
    with _attribute_errors_to("its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **location.arguments
        )
    return tokenizer


@contextmanager
def _attribute_errors_to(part: str) -> Iterator[None]:
    """Name the part of the checkpoint in errors that a library raises inside the block."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise UnusableFileError(f"{part} cannot be used: {in_one_line(error)}") from error


def torch_device(device: str) -> torch.device:
    """The device of that name; `auto` is a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        if where.type == "meta":
            raise RuntimeError("the meta device has no data")
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used ({first_line(error)}); try --device cpu") from error
    return where
