"""`load_model`: a name, a folder, an adapter, a GGUF file or a hub id in, a `LanguageModel` out."""

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
from dualform.models.loading.leftovers import judge_gguf, judge_leftovers, names_converted, note_on_head
from dualform.models.loading.locate import FoundModel, explained, find_model
from dualform.models.loading.meta_device import meta_device_model
from dualform.models.loading.offloading import named_weights
from dualform.models.loading.placement import DeviceMap, placement
from dualform.models.loading.quantized import compute_as_asked_, precision_of, quietly
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
    """Load a causal language model and find its anatomy.

    Args:
        name: `smollm2-135m` or `gemma3-270m` (packaged), a folder with a checkpoint or with a LoRA adapter, a `.gguf`
            file, or a hub id.
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
    found = find_model(name)
    if placed.quantize is not None and found.gguf is not None:
        raise ConfigError(
            f"{name} is quantized already and is unpacked on loading: quantize {quantize} needs a checkpoint folder"
        )
    if placed.quantize is not None and found.adapter is not None:
        raise ConfigError(
            f"{name} is an adapter, which is merged into its base, and weights in {quantize} cannot be added to: leave "
            "out quantize"
        )
    with explained(name):
        files = examine_files(found, trust_remote_code)
        config = read_config(found, trust_remote_code)
        files.require_agreement(config, DTYPES[dtype], trust_remote_code)
        tokenizer = read_tokenizer(found, trust_remote_code)
        arguments: dict[str, Any] = {"trust_remote_code": trust_remote_code, **found.arguments}
        if found.gguf is not None:
            arguments["quantization_config"] = GgufConfig(dequantize=True)
        else:
            # Pickled weights can run code when they are read.
            arguments["use_safetensors"] = True
        arguments |= placed.arguments(DTYPES[dtype], where)
        recorded: AbstractContextManager[set[str]] = nullcontext(set()) if found.gguf is None else names_converted()
        # Weights made inside a caller's inference_mode could never take part in a gradient.
        with quietly(), recorded as converted, torch.inference_mode(False):
            model, report = _class_for(found.source, config).from_pretrained(
                found.source,
                **arguments,
                dtype=DTYPES[dtype],
                output_loading_info=True,
                # Reported below with both shapes, which transformers' own error leaves out.
                ignore_mismatched_sizes=True,
            )
        if "device_map" not in arguments:
            model = model.to(where)
        if precision_of(model) is not None:
            compute_as_asked_(model)
    if model.get_output_embeddings() is None:
        raise ModelError(f"{name} ({type(model).__name__}) has no output head over a vocabulary to read answers from.")
    notes = (*found.notes, *files.notes, *_judge(model, report, name), *note_on_head(model))
    if found.gguf is not None and files.stored is not None:
        notes += judge_gguf(model, files.stored, converted, Path(found.source) / found.gguf, name)
    _require_finite(model, name)
    if found.adapter is not None:
        with explained(name), torch.inference_mode(False):
            notes += (merge_adapter_(model, found.adapter, found.base),)
    return _wrapped(model, tokenizer, name, route, notes)


def _judge(model: Any, report: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """Notes on what transformers reports of loading.

    Raises:
        ModelError: The model is not the one in the file.
    """
    if report["missing_keys"]:
        # transformers would start them at random and go on.
        missing = sorted(report["missing_keys"])
        raise ModelError(
            f"{name} lacks {len(missing)} weights of {type(model).__name__} ({', '.join(missing[:3])}"
            f"{', ...' if len(missing) > 3 else ''}). Give a checkpoint of a causal language model."
        )
    odd = [f"{key} has shape {tuple(stored)} in the file and {tuple(built)} by the config"
           for key, stored, built in sorted(report.get("mismatched_keys") or ())]  # fmt: skip
    odd += [" ".join(str(message).split()) for message in report.get("error_msgs") or ()]
    if odd:
        more = f"; and {len(odd) - 3} more" if len(odd) > 3 else ""
        raise ModelError(f"{name}: the weights do not fit the config: {plain('; '.join(odd[:3])[:600])}{more}.")
    return judge_leftovers(model, report["unexpected_keys"], name)


def _require_finite(model: Any, name: str) -> None:
    """Check that no weight in memory is NaN or infinite; one alone makes every answer NaN.

    Raises:
        ModelError: One is.
    """
    odd = [
        key
        for key, weight in named_weights(model)
        if not weight.is_meta
        and weight.is_floating_point()
        and weight.dtype.itemsize > 1
        and weight.numel()
        and not all(torch.isfinite(end) for end in torch.aminmax(weight.detach()))
    ]
    if odd:
        cause = (
            "The file itself may hold such numbers, or ones above 65504, which float16 cannot: try --dtype float32."
            if model.dtype == torch.float16
            else "The file is damaged, or training that made it diverged. Give another checkpoint."
        )
        raise ModelError(
            f"{name}: {len(odd)} of its weights hold NaN or infinite numbers in "
            f"{str(model.dtype).removeprefix('torch.')} ({', '.join(odd[:3])}{', ...' if len(odd) > 3 else ''}). "
            f"{cause}"
        )


def _wrapped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, name: str, route: str | None, notes: tuple[str, ...]
) -> LanguageModel:
    try:
        lm = LanguageModel.wrap(model, tokenizer, name, route)
    except DualformError:
        raise
    except Exception as error:
        # Where transformers' own forward fails too, it is the config that asks for something impossible.
        with explained(name), torch.no_grad():
            model(input_ids=torch.arange(4, device=model.get_input_embeddings().weight.device)[None])
        raise error
    return replace(lm, notes=(*notes, *lm.notes))


def _class_for(source: str, config: PreTrainedConfig) -> Any:
    """The class to load with: transformers' own choice, or that of a model which was saved with momentum."""
    if not (Path(source) / "config.json").is_file():
        return AutoModelForCausalLM
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


@dataclass(frozen=True)
class ModelFiles:
    """What a look at a model's files has shown."""

    stored: StoredWeights | None
    """None for a model of the hub, whose weights are fetched only on loading."""
    quantized: bool
    notes: tuple[str, ...] = ()

    def require_agreement(self, config: PreTrainedConfig, dtype: torch.dtype, trust_remote_code: bool) -> None:
        """Check, before anything is built, that the weights are those of the model that the config describes.

        Raises:
            UnusableFileError: The config asks for many more layers or weights than there are.
        """
        if self.stored is None:
            return
        n_layers = getattr(config.get_text_config(), "num_hidden_layers", None)
        if isinstance(n_layers, int) and self.stored.layers and n_layers > 4 * self.stored.layers + 16:
            raise UnusableFileError(
                f"its config asks for {n_layers:,} layers, and its weights hold {self.stored.layers}"
            )
        with _blamed_on("its config"):
            needed = sum(weight.numel() for weight in meta_device_model(config, dtype, trust_remote_code).parameters())
        # Of quantized weights several may lie in one number.
        held = self.stored.numbers * (8 if self.quantized else 1)
        if needed > 2 * held + 10_000_000:
            raise UnusableFileError(f"its config describes {needed:,} weights, and the files hold {held:,}")


def examine_files(found: FoundModel, trust_remote_code: bool = False, *, needs_weights: bool = True) -> ModelFiles:
    """Look over the files of a model without building anything.

    Args:
        found: From `find_model`.
        trust_remote_code: Whether code that comes with the checkpoint is to be run.
        needs_weights: Whether a folder without any weights is refused.

    Raises:
        UnusableFileError: A file is damaged, too large, no regular file, or asks for what must not be done.
        ModelError: The checkpoint needs code of its own, which is not to be run.
    """
    if found.gguf is not None:
        return ModelFiles(gguf_weights(Path(found.source) / found.gguf), quantized=False)
    folder = found.folder
    if folder is None:
        cached = try_to_load_from_cache(found.source, "config.json")
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
    return ModelFiles(stored, quantized, _own_code(found.source, config, trust_remote_code))


def _own_code(source: str, config: Mapping[str, Any], trust_remote_code: bool) -> tuple[str, ...]:
    """A note where a checkpoint brings code of its own in place of transformers' class."""
    auto_map = config.get("auto_map")
    if not isinstance(auto_map, dict) or trust_remote_code:
        return ()
    file = plain(str(auto_map.get("AutoModelForCausalLM") or next(iter(auto_map.values()), "")))
    if config.get("model_type") not in CONFIG_MAPPING:
        raise ModelError(
            f"{source} needs Python code that comes with it ({file}), which is not run unasked. Read that code, then "
            "allow it with --trust-remote-code."
        )
    if "AutoModelForCausalLM" not in auto_map:
        return ()
    return (
        f"The checkpoint brings Python code of its own ({file}), which was not run: transformers' class for "
        f"{config['model_type']} was used.",
    )


def read_config(found: FoundModel, trust_remote_code: bool) -> PreTrainedConfig:
    """A model's config; code that comes with it is run only where that is allowed."""
    with _blamed_on("its config"):
        config: PreTrainedConfig = AutoConfig.from_pretrained(
            found.source, trust_remote_code=trust_remote_code, **found.arguments
        )
    if found.folder is None:
        # Fetched only now.
        cached = try_to_load_from_cache(found.source, "config.json")
        if isinstance(cached, str):
            check_config(read_json(Path(cached)))
    return config


def read_tokenizer(found: FoundModel, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    """A model's tokenizer, or the one that its adapter was trained with."""
    source: str | Path = found.source
    if found.adapter is not None and (found.adapter / "tokenizer_config.json").is_file():
        check_small_files(found.adapter)
        source = found.adapter
    with _blamed_on("its tokenizer"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            source, trust_remote_code=trust_remote_code, **found.arguments
        )
    return tokenizer


@contextmanager
def _blamed_on(part: str) -> Iterator[None]:
    """A block in which a library's errors name the part of the checkpoint that they come from."""
    try:
        yield
    except Exception as error:
        if "trust_remote_code" in str(error):
            raise
        raise UnusableFileError(f"{part} cannot be used: {in_one_line(error)}") from error


def device_named(device: str) -> torch.device:
    """A device by name; `auto` is a GPU if there is one."""
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        where = torch.device(device)
        if where.type == "meta":
            raise RuntimeError("it stores no numbers")
        torch.empty(1, device=where)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!r} cannot be used ({first_line(error)}); try --device cpu") from error
    return where
