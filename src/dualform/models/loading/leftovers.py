"""Checks of weights in a file that the model built from its config does not use.

transformers ignores such weights. Some are harmless (buffers of older versions, heads for other purposes); without
others, such as layers or biases, the model computes something different from the one that was trained.
"""

import importlib
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from dualform.errors import ModelError
from dualform.models.loading.checkpoint_files import StoredWeights
from dualform.models.loading.quantized import precision_of
from dualform.plain_text import plain

_BUFFERS = re.compile(
    r"(^|\.)(position_ids|token_type_ids|inv_freq|original_inv_freq|cos_cached|sin_cached|masked_bias|version)$"
    r"|\.(attn|attention|self_attn|self_attention)\.(bias|mask|causal_mask|masked_bias)$"
)
"""Buffers that the model computes itself."""
_OTHER_PURPOSES = re.compile(
    r"(^|[._])(mtp\w*|nextn|eagle\w*|medusa\w*|vision\w*|visual|image\w*|audio\w*|speech\w*|mm_projector"
    r"|multi_modal\w*|v_head|value_head|score|classifier|reward_head|talker|token2wav|code2wav)(\.|$)"
    r"|\.(k|v|q|kv)_scale$"
)
"""Weights for other purposes: drafting tokens, images and audio, reinforcement learning, a quantized cache."""


def check_unused_weights(model: PreTrainedModel, unexpected: Iterable[str], name: str) -> tuple[str, ...]:
    """Check the weights of a file that transformers left out.

    Args:
        model: The model as built.
        unexpected: Names of the unused weights, as transformers reports them.
        name: Name of the checkpoint, for messages.

    Returns:
        Notes on weights whose absence may matter.

    Raises:
        ModelError: Layers, or weights of modules that the model computes with, were left out.
    """
    modules: dict[str, nn.Module] = dict(model.named_modules())
    buffers = {key for key, _ in model.named_buffers()}
    unused = sorted(key for key in unexpected if key not in buffers and not _BUFFERS.search(key))
    surplus: dict[str, list[str]] = {}
    inside: list[str] = []
    others: list[str] = []
    for key in unused:
        kind, where = _place(modules, key)
        drafts = kind == "surplus" and _index(key, where) in _drafting(unused, where)
        if drafts or _OTHER_PURPOSES.search(key) or (kind != "outside" and precision_of(model) is not None):
            # Quantized layers store their numbers under different names.
            others.append(key)
        elif kind == "surplus":
            surplus.setdefault(where, []).append(key)
        elif kind == "inside" or key.startswith("rope_freqs"):
            inside.append(key)
        else:
            others.append(key)
    for series, keys in surplus.items():
        _refuse_layers(model, modules[series], series, keys, name)
    if inside:
        raise ModelError(_describe_missing_parts(model, inside, name))
    if not others:
        return ()
    return (
        f"{len(others)} {'weights' if len(others) > 1 else 'weight'} in the file of {name} {_were(others)} ignored, "
        f"because {type(model).__name__} has no such {'weights' if len(others) > 1 else 'weight'} ({_listed(others)}).",
    )


def _place(modules: Mapping[str, nn.Module], key: str) -> tuple[str, str]:
    """How a weight relates to the model, and to which module.

    `surplus`: of a layer beyond the model's last; `inside`: of an existing module; `outside`: of none.
    """
    parts = key.split(".")
    depth = len(parts) - 1
    while depth > 0 and ".".join(parts[:depth]) not in modules:
        depth -= 1
    where = ".".join(parts[:depth])
    module = modules[where] if where else None
    if isinstance(module, nn.ModuleList) and parts[depth].isdigit() and int(parts[depth]) >= len(module):
        return "surplus", where
    in_series = any(part.isdigit() for part in parts[:depth])
    of_a_leaf = depth == len(parts) - 1 and module is not None and not list(module.children())
    return ("inside" if in_series or of_a_leaf else "outside"), where


def _index(key: str, series: str) -> int:
    return int(key.removeprefix(f"{series}.").partition(".")[0])


def _drafting(keys: Sequence[str], series: str) -> set[int]:
    """Indices of the modules of a series that predict further tokens (DeepSeek's multi-token prediction)."""
    of_series = (key for key in keys if key.startswith(f"{series}."))
    return {_index(key, series) for key in of_series if re.search(r"\.(eh_proj|enorm|hnorm|shared_head)\.", key)}


def _refuse_layers(model: PreTrainedModel, module: nn.Module, series: str, keys: Sequence[str], name: str) -> None:
    assert isinstance(module, nn.ModuleList)
    n_built = len(module)
    n_stored = 1 + max(_index(key, series) for key in keys)
    config = model.config.get_text_config()
    field = str(getattr(config, "attribute_map", {}).get("num_hidden_layers", "num_hidden_layers"))
    if getattr(config, field, None) == n_built:
        cause = f"its config says {field}: {n_built}"
        remedy = f"Set {field} to {n_stored}, or give the checkpoint that belongs to this config."
    else:
        cause = f"{type(model).__name__} built from its config has {n_built}"
        remedy = "Give the config that belongs to these weights."
    raise ModelError(
        f"{name}: the weights have {n_stored} layers in {series}, but {cause}, so {len(keys)} weights would be "
        f"ignored ({_listed(keys)}). {remedy}"
    )


def _describe_missing_parts(model: PreTrainedModel, keys: Sequence[str], name: str) -> str:
    if all(key.startswith("rope_freqs") for key in keys):
        return _describe_lost_rope_factors(name)
    biases = all(key.endswith("bias") for key in keys)
    values: dict[str, Any] = vars(model.config.get_text_config())
    switches = [field for field, value in values.items() if "bias" in field and value is False]
    remedy = "Give the config that belongs to these weights."
    if biases and switches:
        remedy = f"One of these may have to be true in its config: {', '.join(switches)}."
    return (
        f"{name}: the {type(model).__name__} that its config describes has no place for {len(keys)} "
        f"{'biases' if biases else 'weights'} in the file ({_listed(keys)}); without them its results would be wrong. "
        f"{remedy}"
    )


def _listed(keys: Sequence[str]) -> str:
    return plain(", ".join(keys[:3])) + (", ..." if len(keys) > 3 else "")


def _were(keys: Sequence[str]) -> str:
    return "were" if len(keys) > 1 else "was"


def untie_stored_head_(model: PreTrainedModel) -> tuple[str, ...]:
    """Correct a config that ties the output head to the embedding although the file has a different head.

    transformers then uses the head in the file. With the config unchanged, a checkpoint written from the model would
    lose that head.

    Args:
        model: The loaded model; its config is changed in place.

    Returns:
        A note if the config was corrected.
    """
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    weights: list[Any] = [getattr(module, "weight", None) for module in (head, embedding)]
    if not any(getattr(config, "tie_word_embeddings", False) for config in configs):
        return ()
    if any(weight is None or weight.is_meta for weight in weights) or weights[0] is weights[1]:
        return ()
    if weights[0].shape != weights[1].shape or _tied_under_another_name(model, head):
        return ()
    for config in configs:
        config.tie_word_embeddings = False
    return (
        "The config says that the output head is the embedding (tie_word_embeddings), but the file contains a "
        "different output head. The head in the file is used, as in transformers.",
    )


def _tied_under_another_name(model: PreTrainedModel, head: nn.Module) -> bool:
    # In some families the head shares its matrix with another module than the input embedding.
    return sum(weight is head.weight for _, weight in model.named_parameters(remove_duplicate=False)) > 1


@contextmanager
def recorded_gguf_names() -> Iterator[set[str]]:
    """Record the names of the GGUF tensors that transformers converts inside the block.

    The set stays empty if transformers loads the file in another way, where it reports unused tensors itself.
    """
    converter: Any = importlib.import_module("transformers.modeling_gguf_pytorch_utils")
    original = converter.get_gguf_hf_weights_map
    names: set[str] = set()

    def recording(*args: Any, **settings: Any) -> dict[str, str]:
        weights_map: dict[str, str] = original(*args, **settings)
        names.update(weights_map)
        return weights_map

    converter.get_gguf_hf_weights_map = recording
    try:
        yield names
    finally:
        converter.get_gguf_hf_weights_map = original


def check_gguf_conversion(
    model: PreTrainedModel, stored: StoredWeights, converted: set[str], path: Path, name: str
) -> tuple[str, ...]:
    """Check the tensors and settings of a GGUF file that its conversion left out.

    Args:
        model: The loaded model.
        stored: Header of the file.
        converted: Names from `recorded_gguf_names`.
        path: The GGUF file.
        name: Name of the checkpoint, for messages.

    Returns:
        Notes on omissions that may matter.

    Raises:
        ModelError: An omission changes what the model computes.
    """
    _require_rope_scaling(model, stored.metadata, name)
    notes = _settings_lost(model, stored.metadata, name)
    if not converted:
        return notes
    unused = [
        key
        for key in stored.shapes
        # Experts are listed without `.weight`; the output matrix is handled by `untie_stored_head_`.
        if key not in converted and key.removesuffix(".weight") not in converted and key != "output.weight"
    ]
    if any(_ROPE.search(key) for key in unused) and not _all_ones(path, [key for key in unused if _ROPE.search(key)]):
        raise ModelError(_describe_lost_rope_factors(name))
    unused = [key for key in unused if not _ROPE.search(key)]
    needed = [key for key in unused if _NEEDED_IN_GGUF.match(key) and ".nextn." not in key]
    if needed:
        raise ModelError(_describe_missing_parts(model, needed, name))
    if unused:
        notes += (
            f"{len(unused)} tensors in the file of {name} {_were(unused)} ignored, because {type(model).__name__} has "
            f"no such tensors ({_listed(unused)}).",
        )
    return notes


_ROPE = re.compile(r"rope_freqs|rope_factors")
_NEEDED_IN_GGUF = re.compile(r"blk\.\d+\.|output|position_embd|token_embd|token_types")


def _describe_lost_rope_factors(name: str) -> str:
    return (
        f"{name}: the file scales rotary positions by stored factors (rope_freqs), as in Llama 3.1, which "
        "transformers' conversion of GGUF ignores: every answer would be wrong. Give the safetensors checkpoint."
    )


def _all_ones(path: Path, names: Sequence[str]) -> bool:
    from gguf import GGUFReader

    tensors = {tensor.name: tensor.data for tensor in GGUFReader(path).tensors}
    return all(bool((tensors[name] == 1).all()) for name in names)


def _require_rope_scaling(model: PreTrainedModel, metadata: Mapping[str, Any], name: str) -> None:
    kind = metadata.get(f"{metadata['general.architecture']}.rope.scaling.type")
    factor = metadata.get(f"{metadata['general.architecture']}.rope.scaling.factor")
    if kind in (None, "none") or factor in (None, 1.0):
        return
    config = model.config.get_text_config()
    rope = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    parts = [rope, *(part for part in rope.values() if isinstance(part, dict))]
    if all(part.get("rope_type", "default") == "default" for part in parts):
        raise ModelError(
            f"{name}: the file scales rotary positions ({plain(str(kind))}, factor {factor:g}), which transformers' "
            "conversion of GGUF ignores. Give the safetensors checkpoint."
        )


_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "attention.sliding_window": ("sliding_window", "window_size"),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier", "scale_emb"),
    "residual_scale": ("residual_multiplier",),
    "attention.scale": ("attention_multiplier", "scaling"),
}
"""Settings of a GGUF file that change what the model computes, and their names in configs."""


def _settings_lost(model: PreTrainedModel, metadata: Mapping[str, Any], name: str) -> tuple[str, ...]:
    config = model.config.get_text_config()
    lost = []
    for field, names in _SETTINGS.items():
        value = metadata.get(f"{metadata['general.architecture']}.{field}")
        if not isinstance(value, int | float) or value in (0, 1):
            continue
        if field == "attention.sliding_window" and value >= (getattr(config, "max_position_embeddings", 0) or 0):
            continue
        known = [getattr(config, alias, None) for alias in names]
        if not any(isinstance(other, int | float) and abs(value - other) <= 1e-4 * abs(value) for other in known):
            lost.append(f"{field} = {value:g}")
    if not lost:
        return ()
    return (
        f"The file of {name} sets {', '.join(lost)}, which transformers' conversion of GGUF ignores, so the model may "
        "differ from the one that was trained. Prefer its safetensors checkpoint.",
    )
